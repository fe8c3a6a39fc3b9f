//! What reports of real sticks have proven about a firmware file: the order on the wire and the guards of its throttle that
//! this tool takes by default for sticks booted with it. Where there is no report, the careful defaults stay.
//!
//! Two places have evidence: what is shipped with the tool (made of the reports under `tests/golden/field/`), and the reports
//! of this user's own sticks, `field/*.json` in his data folder. A report of a virtual stick is none.

use std::path::Path;

use ncs2::sched::Guards;
use ncs2::transport::usb::firmware::Firmware;
use serde::{Deserialize, Serialize};

use super::report::{HeatPoint, Report};
use crate::flags::{Global, OrderingArg};
use crate::folders;

/// Evidence of the reports in `tests/golden/field/`; a test keeps it in step.
const SHIPPED: &str = include_str!("proven.json");
/// Reports of this user's own sticks, under his data folder.
const FOLDER: &str = "field";

/// What one report says of one firmware file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Evidence {
    /// The file.
    pub firmware_sha256: String,
    /// Every rung of the ordering ladder gave right outputs.
    pub pipelined: bool,
    /// Guards that a heat run met.
    pub guards: Option<Met>,
}

/// Guards of the throttle, as a heat run met them.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Met {
    /// Level 1 was first read here, °C.
    pub lower_c: f64,
    /// Level 2 was first read here; the hottest reading where there was none.
    pub upper_c: f64,
    /// Level 1 ended this far below `lower_c`, kelvin.
    pub hysteresis_k: f64,
}

/// All reports of one firmware file together.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Proven {
    /// How many.
    pub reports: usize,
    /// Each of them went without the vendor's waits.
    pub pipelined: bool,
    /// The most careful of their guards.
    pub guards: Option<Met>,
}

impl Evidence {
    /// Of a report; `None` where it proves nothing: a virtual stick, a failed step, a firmware that nobody knows.
    pub fn of(report: &Report) -> Option<Evidence> {
        if report.simulated || !report.passed {
            return None;
        }
        Some(Evidence {
            firmware_sha256: report.stick.firmware_sha256.clone()?,
            pipelined: !report.ladder.is_empty() && report.ladder.iter().all(|rung| rung.accepted),
            guards: Met::of(&report.heat),
        })
    }
}

impl Met {
    /// `None` unless level 1 was seen to come and to go: a guard whose end nobody saw is no ground to rest on.
    fn of(points: &[HeatPoint]) -> Option<Met> {
        let celsius = |p: &HeatPoint| f64::from(p.celsius);
        let rises = points.windows(2).filter(|p| p[0].level < 1.0 && p[1].level >= 1.0);
        let falls = points.windows(2).filter(|p| p[0].level >= 1.0 && p[1].level < 1.0);
        let lower_c = rises.map(|p| celsius(&p[1])).reduce(f64::min)?;
        // It lasted at least down to the last reading that still had it.
        let end_c = falls.map(|p| celsius(&p[1])).reduce(f64::min)?;
        let hottest = points.iter().map(celsius).reduce(f64::max)?;
        let upper_c =
            points.iter().filter(|p| p.level >= 2.0).map(celsius).reduce(f64::min).unwrap_or(hottest);
        Some(Met { lower_c, upper_c: upper_c.max(lower_c), hysteresis_k: (lower_c - end_c).max(0.0) })
    }

    fn careful(self, other: Met) -> Met {
        Met {
            lower_c: self.lower_c.min(other.lower_c),
            upper_c: self.upper_c.min(other.upper_c),
            hysteresis_k: self.hysteresis_k.max(other.hysteresis_k),
        }
    }
}

impl Proven {
    /// About the file with this hash.
    pub fn by(evidence: &[Evidence], sha256: &str) -> Proven {
        let about: Vec<_> = evidence.iter().filter(|e| e.firmware_sha256 == sha256).collect();
        Proven {
            reports: about.len(),
            pipelined: !about.is_empty() && about.iter().all(|e| e.pipelined),
            guards: about.iter().filter_map(|e| e.guards).reduce(Met::careful),
        }
    }

    /// The order on the wire that it allows.
    pub fn ordering(&self) -> OrderingArg {
        if self.pipelined { OrderingArg::Pipelined } else { OrderingArg::Vendor }
    }

    /// What the scheduler may know of the guards.
    pub fn guards(&self) -> Guards {
        self.guards.map_or(Guards::Reported, |met| Guards::Known {
            lower_c: met.lower_c,
            upper_c: met.upper_c,
            hysteresis_k: met.hysteresis_k,
        })
    }

    /// `by 2 reports: pipelined, guards at 75 and 85 C`.
    pub fn describe(&self) -> String {
        if self.reports == 0 {
            return "nothing: no report of a real stick, so the careful defaults".into();
        }
        let plural = if self.reports == 1 { "report" } else { "reports" };
        let guards = self.guards.map_or("guards not met".into(), |met| {
            format!("guards at {:.0} and {:.0} C", met.lower_c, met.upper_c)
        });
        format!("by {} {plural}: ordering {}, {guards}", self.reports, self.ordering().as_str())
    }
}

/// Everything that is known: shipped, and of this user.
pub fn evidence() -> Vec<Evidence> {
    let mut evidence = shipped();
    if let Ok(data) = folders::data() {
        evidence.extend(of_folder(&data.join(FOLDER)));
    }
    evidence
}

fn shipped() -> Vec<Evidence> {
    serde_json::from_str(SHIPPED).expect("proven.json is tested")
}

/// Of the reports in a folder; a file that is none is left out, with a word in the log.
fn of_folder(folder: &Path) -> Vec<Evidence> {
    let Ok(files) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> =
        files.flatten().map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    let read = |path: &Path| {
        let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
        Report::parse(&text)
    };
    paths
        .iter()
        .filter_map(|path| match read(path) {
            Ok(report) => Evidence::of(&report),
            Err(why) => {
                tracing::warn!("{}: no report of `ncs2ctl selftest`: {why}", path.display());
                None
            }
        })
        .collect()
}

/// About the firmware that this run's real sticks are booted with. Virtual sticks of this process prove nothing and need
/// nothing.
pub fn of_run(global: &Global) -> Proven {
    if global.sim.is_some() {
        return Proven::default();
    }
    let evidence = evidence();
    // A hash of two megabytes that nothing would be compared with is not made.
    if evidence.is_empty() {
        return Proven::default();
    }
    match Firmware::find(global.firmware.as_deref(), global.any_firmware) {
        Ok(firmware) => Proven::by(&evidence, &firmware.sha256),
        // Whoever opens the sticks says what is wrong with it.
        Err(_) => Proven::default(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::selftest::report::Rung;

    const HASH: &str = "0123456789abcdef";

    /// A made-up report of a real stick.
    pub fn real() -> Report {
        let text = format!(
            r#"{{"schema":"ncs2ctl.selftest/1","simulated":false,"profile":null,"tool":"0.1.0","mode":"quick",
            "consent":false,"passed":true,"seconds":1.0,"host":{{"kernel":"linux 6.1.0","arch":"x86_64","cpus":2}},
            "stick":{{"firmware_sha256":"{HASH}","descriptors":[null,null],"fw_version":[2,9344,0,0],
            "link_mbps":5000,"max_packet_bytes":1024,"memory":"copied","boot_ms":1.0,"ping_us":1.0}},"steps":[],
            "unknowns":{{}},"memory":[],"thermal":[],"graphs":[],"depths":[],"ladder":[],"heat":[],"timeline":[]}}"#
        );
        Report::parse(&text).expect("a report")
    }

    fn rung(accepted: bool) -> Rung {
        Rung { relaxation: "one".into(), accepted, fps: 1.0, detail: String::new() }
    }

    fn point(celsius: f32, level: f32) -> HeatPoint {
        HeatPoint { seconds: 0.0, celsius, level, service_ms: 1.0, resting: false }
    }

    #[test]
    fn defaults_are_careful_until_a_real_stick_has_proven_more() {
        let proven = |reports: &[Report]| {
            Proven::by(&reports.iter().filter_map(Evidence::of).collect::<Vec<_>>(), HASH)
        };
        let nothing = proven(&[]);
        assert_eq!((nothing.ordering(), nothing.guards()), (OrderingArg::Vendor, Guards::Reported));
        // A report without the ladder proves no order.
        assert_eq!(proven(&[real()]).ordering(), OrderingArg::Vendor);
        let good = Report { ladder: vec![rung(true), rung(true)], ..real() };
        assert_eq!(proven(std::slice::from_ref(&good)).ordering(), OrderingArg::Pipelined);
        // One stick that did not bear it is enough.
        let bad = Report { ladder: vec![rung(true), rung(false)], ..real() };
        assert_eq!(proven(&[good.clone(), bad]).ordering(), OrderingArg::Vendor);
        // What proves nothing: a virtual stick, a failed step, another firmware.
        let virtual_one = Report { simulated: true, ..good.clone() };
        let failed = Report { passed: false, ..good.clone() };
        let mut other = good.clone();
        other.stick.firmware_sha256 = Some("another".into());
        for report in [virtual_one, failed, other] {
            assert_eq!(proven(&[report]), Proven::default());
        }
    }

    #[test]
    fn guards_count_when_they_were_seen_to_come_and_to_go() {
        let with = |heat: Vec<HeatPoint>| Evidence::of(&Report { heat, ..real() }).expect("real").guards;
        let up = vec![point(60.0, 0.0), point(74.0, 0.0), point(75.0, 1.0), point(80.0, 1.0)];
        assert_eq!(with(up.clone()), None, "nobody saw it end");
        let whole = [up, vec![point(72.0, 1.0), point(69.0, 0.0)]].concat();
        let met = Met { lower_c: 75.0, upper_c: 80.0, hysteresis_k: 6.0 };
        assert_eq!(with(whole.clone()), Some(met));
        let second = [whole, vec![point(73.0, 1.0), point(83.0, 2.0), point(70.0, 0.0)]].concat();
        assert_eq!(with(second), Some(Met { lower_c: 73.0, upper_c: 83.0, hysteresis_k: 4.0 }));
        // Of two sticks the more careful.
        let of = |met| Evidence { firmware_sha256: HASH.into(), pipelined: true, guards: Some(met) };
        let other = Met { lower_c: 70.0, upper_c: 90.0, hysteresis_k: 2.0 };
        let both = Proven::by(&[of(met), of(other)], HASH);
        let careful = Guards::Known { lower_c: 70.0, upper_c: 80.0, hysteresis_k: 6.0 };
        assert_eq!(both.guards(), careful);
    }

    #[test]
    fn a_folder_of_reports_is_read_and_what_is_none_left_out() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let good = Report { ladder: vec![rung(true)], ..real() };
        for (name, text) in [
            ("a.json", good.text()),
            ("b.json", "{}".into()),
            ("c.json", Report { simulated: true, ..good.clone() }.text()),
            ("d.txt", good.text()),
        ] {
            std::fs::write(folder.path().join(name), text).expect("written");
        }
        let found = of_folder(folder.path());
        let one = Evidence { firmware_sha256: HASH.into(), pipelined: true, guards: None };
        assert_eq!(found, [one]);
        assert_eq!(of_folder(&folder.path().join("nowhere")), []);
        let said = Proven::by(&found, HASH).describe();
        assert_eq!(said, "by 1 report: ordering pipelined, guards not met");
    }
}
