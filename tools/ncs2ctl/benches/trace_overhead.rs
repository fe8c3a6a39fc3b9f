//! What `--trace-out` costs: the same bench with and without it, turn by turn, so that neighbours disturb both alike.
//!
//! `cargo bench -p ncs2ctl --bench trace_overhead [-- ROUNDS]`. With timing `zero` nothing but this computer sets the pace,
//! which is the worst case; with timing `model` a stick does. Simulated, both. Without the flag nothing is recorded and no
//! clock is read: the row `off` is the product as it is.

use std::process::Command;

use serde_json::Value;

/// Turns of each, unless the command line says otherwise.
const ROUNDS: usize = 7;

struct Figures {
    fps: f64,
    cpu_us: f64,
}

fn run(blob: &str, timing: &str, out: Option<&str>) -> Figures {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ncs2ctl"));
    command.args(["--json", "--sim", "1", "--timing", timing, "bench", blob, "--depth", "4"]);
    command.args(["--ordering", "pipelined", "--duration", "2s", "--warmup", "300ms"]);
    if let Some(out) = out {
        command.args(["--trace-out", out]);
    }
    let output = command.output().expect("ncs2ctl starts");
    let document: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert!(output.status.success(), "{document}");
    let number = |field: &Value| field.as_f64().expect("a number");
    let host = &document["host"];
    let cpu_us = number(&host["cpu_us_per_inference"]) + number(&host["virtual_sticks_cpu_us_per_inference"]);
    Figures { fps: number(&document["fps"]), cpu_us }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let rounds = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(ROUNDS);
    let folder = tempfile::tempdir().expect("temporary folder");
    let out = folder.path().join("run.json");
    let out = out.to_str().expect("UTF-8");
    let blob = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/models/tiny_u8_s1.blob");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("tiny_u8_s1, one virtual stick (simulated), {rounds} turns of each, load {}", load.trim());
    println!("{:<8} {:<6} {:>10} {:>14}", "timing", "trace", "fps", "CPU us/inf");
    for timing in ["zero", "model"] {
        let (mut off, mut on) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            off.push(run(blob, timing, None));
            on.push(run(blob, timing, Some(out)));
        }
        let of = |all: &[Figures], what: fn(&Figures) -> f64| median(all.iter().map(what).collect());
        let ratios =
            |what: fn(&Figures) -> f64| median(off.iter().zip(&on).map(|(a, b)| what(b) / what(a)).collect());
        for (name, all) in [("off", &off), ("on", &on)] {
            println!("{timing:<8} {name:<6} {:>10.1} {:>14.1}", of(all, |f| f.fps), of(all, |f| f.cpu_us));
        }
        println!(
            "{timing:<8} on/off {:>10.3} {:>14.3}   (median of the turns' ratios)",
            ratios(|f| f.fps),
            ratios(|f| f.cpu_us)
        );
    }
}
