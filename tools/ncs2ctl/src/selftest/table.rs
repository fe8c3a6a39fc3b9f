//! The README's table of sticks that have proven this software: made from the reports under `tests/golden/field/`, and from
//! nothing else. A report of a virtual stick is refused.

#![cfg(test)]

use std::fs;
use std::path::PathBuf;

use super::proven::{self, Evidence};
use super::report::Report;

/// Around the table.
const BEGIN: &str = "<!-- field table -->\n";
const END: &str = "<!-- end of field table -->";
/// The words of an empty table.
const NONE_YET: &str = "none yet";

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// One row for each firmware, host and ordering that passed.
fn table(reports: &[(String, Report)]) -> Result<String, String> {
    let mut rows = Vec::new();
    for (file, report) in reports {
        if report.simulated {
            return Err(format!(
                "{file}: a virtual stick proves nothing; only real sticks stand in the table"
            ));
        }
        if !report.passed {
            continue;
        }
        let firmware =
            report.stick.firmware_sha256.as_deref().map_or("unknown", |hash| &hash[..12.min(hash.len())]);
        let pipelined = report.ladder.iter().all(|rung| rung.accepted) && !report.ladder.is_empty();
        let ordering = if pipelined { "vendor, pipelined" } else { "vendor" };
        rows.push((firmware.to_owned(), report.host.kernel.clone(), ordering, report.tool.clone()));
    }
    if rows.is_empty() {
        return Ok(format!("Proven by real sticks: {NONE_YET}.\n"));
    }
    rows.sort();
    let mut text =
        String::from("| proven by | firmware | host | ordering | since version |\n|---|---|---|---|---|\n");
    for group in rows.chunk_by(|a, b| (&a.0, &a.1, a.2) == (&b.0, &b.1, b.2)) {
        let (firmware, host, ordering, _) = &group[0];
        let since = group.iter().map(|row| &row.3).min().map_or("", String::as_str);
        let sticks = group.len();
        text += &format!("| {sticks} | {firmware} | {host} | {ordering} | {since} |\n");
    }
    Ok(text)
}

fn field() -> Vec<(String, Report)> {
    let folder = repository().join("tests/golden/field");
    let files = fs::read_dir(folder).expect("the folder of reports");
    let mut reports = Vec::new();
    for file in
        files.map(|f| f.expect("readable").path()).filter(|p| p.extension().is_some_and(|e| e == "json"))
    {
        let text = fs::read_to_string(&file).expect("readable");
        let report = Report::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        reports.push((file.file_name().expect("a name").to_string_lossy().into_owned(), report));
    }
    reports
}

/// `FIELD=overwrite cargo test -p ncs2ctl --bins field` writes what the reports say.
fn settle(path: &std::path::Path, found: &str, wanted: &str) {
    if found == wanted {
        return;
    }
    assert!(
        std::env::var_os("FIELD").is_some_and(|value| value == "overwrite"),
        "{}: not what the reports say; run FIELD=overwrite cargo test -p ncs2ctl --bins field",
        path.display()
    );
    fs::write(path, wanted).expect("writable");
}

#[test]
fn the_readme_says_what_the_field_reports_say() {
    let table = table(&field()).expect("only real sticks");
    let path = repository().join("README.md");
    let readme = fs::read_to_string(&path).expect("readable");
    let (before, rest) = readme.split_once(BEGIN).expect("the table's beginning");
    let (_, after) = rest.split_once(END).expect("the table's end");
    settle(&path, &readme, &format!("{before}{BEGIN}{table}{END}{after}"));
}

#[test]
fn what_is_shipped_is_what_the_field_reports_prove() {
    let evidence: Vec<Evidence> = field().iter().filter_map(|(_, report)| Evidence::of(report)).collect();
    let path = repository().join("tools/ncs2ctl/src/selftest/proven.json");
    let found = fs::read_to_string(&path).expect("readable");
    settle(&path, &found, &(serde_json::to_string_pretty(&evidence).expect("JSON") + "\n"));
}

/// Replays each report that a stranger sent.
#[test]
fn every_field_report_replays() {
    for (file, report) in field() {
        super::replay(&report).unwrap_or_else(|why| panic!("{file}: {why}"));
    }
}

#[test]
fn virtual_sticks_never_enter_the_table_and_real_ones_do() {
    let simulated = Report { simulated: true, profile: Some("ncs2".into()), ..proven::tests::real() };
    let refused = table(&[("a.json".into(), simulated.clone())]).expect_err("simulated");
    assert!(refused.contains("a.json") && refused.contains("virtual"), "{refused}");
    // Nor by any other field: what says `simulated` is the one that counts.
    let real = Report { simulated: false, profile: None, ..simulated };
    let two = [("a.json".to_owned(), real.clone()), ("b.json".to_owned(), real.clone())];
    let text = table(&two).expect("real");
    assert!(text.contains("| 2 | 0123456789ab | linux 6.1.0 | vendor | 0.1.0 |"), "{text}");
    let failed = Report { passed: false, ..real };
    assert!(table(&[("c.json".into(), failed)]).expect("real").contains(NONE_YET));
    assert!(table(&[]).expect("none").contains(NONE_YET));
}
