//! `sim calibrate`, `sim serve` and `--fault`.

mod tool;

use std::fs;

use tool::{fails, json, model, run};

#[test]
fn calibration_prints_both_sides_and_says_simulated() {
    let (code, d) = json(&["sim", "calibrate"], "sim");
    assert_eq!((code, &d["simulated"]), (0, &true.into()));
    let figures = d["figures"].as_array().expect("figures");
    assert!(figures.len() >= 10, "{} figures", figures.len());
    for f in figures {
        let (published, predicted) = (f["published"].as_f64().expect("a number"), f["predicted"].as_f64());
        let error = predicted.expect("a number") / published - 1.0;
        assert!((error - f["error"].as_f64().expect("a number")).abs() < 1e-9, "{f}");
    }
    // The profile promises this much of itself.
    assert!(d["median_error"].as_f64().expect("a number") <= 0.15, "{d}");
    assert!(d["largest_error"].as_f64().expect("a number") <= 0.35, "{d}");
    let text = run(&["sim", "calibrate"]);
    assert!(text.stdout.contains("published"), "{}", text.stdout);
    fails(&["sim", "calibrate", "--profile", "no-such"], "sim", 2, "NotFound", &["no-such"]);
}

#[test]
fn serving_nothing_is_a_slip_of_usage() {
    fails(&["sim", "serve"], "sim", 64, "Usage", &["--usbredir"]);
}

#[test]
fn planned_faults_reach_the_stick() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let plan = folder.path().join("plan.toml");
    let path = plan.to_str().expect("UTF-8");
    fs::write(&plan, "[[fault]]\nstick = \"sim9\"\nkind = \"hang\"\nnth = 1\n").expect("written");
    let blob = model("tiny_fp16_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    fails(
        &["--sim", "1", "--fault", path, "run", blob, "--random", "1"],
        "run",
        2,
        "InvalidInput",
        &["sim9"],
    );
}
