//! `sim calibrate`, `sim serve`, `sim status` and `--fault`.

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

/// Another process that serves sticks; it ends with the test.
struct Serving(std::process::Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(args: &[&str], socket: &std::path::Path) -> Serving {
    let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("ncs2ctl"));
    command.args(["sim", "serve"]).args(args).env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"));
    let serving = Serving(command.stderr(std::process::Stdio::null()).spawn().expect("it starts"));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(std::time::Instant::now() < deadline, "it does not listen");
        std::thread::yield_now();
    }
    serving
}

#[test]
fn served_sticks_break_as_planned_too() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (plan, socket, work) =
        (folder.path().join("p.toml"), folder.path().join("s"), folder.path().join("w"));
    fs::write(&plan, "[[fault]]\nkind = \"unplug\"\nnth = 2\n").expect("written");
    fs::write(&work, "{\"random\": 1}\n{\"random\": 2}\n{\"random\": 3}\n").expect("written");
    let [plan, at, work] = [&plan, &socket, &work].map(|p| p.to_str().expect("UTF-8"));
    let _serving = serve(&["--socket", at, "--fault", plan, "--timing", "zero"], &socket);
    let (sim, blob) = (format!("unix:{at}"), model("tiny_u8_s1.blob"));
    let ran = run(&["--sim", &sim, "batch", work, "--blob", blob.to_str().expect("UTF-8")]);
    assert_ne!(ran.code, 0, "{}", ran.stdout);
    let (_, d) = json(&["sim", "status", at], "sim");
    assert_eq!(d["sticks"][0]["state"], "unplugged", "{d}");
    fs::write(plan, "[[fault]]\nkind = \"explode\"\nnth = 1\n").expect("written");
    let args = ["sim", "serve", "--socket", "/nowhere/s", "--fault", plan];
    fails(&args, "sim", 2, "InvalidInput", &["explode", "docs/virtual-stick.md"]);
}

#[test]
fn a_server_tells_its_state_and_sticks_come_and_go() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (sticks, control) = (folder.path().join("sticks"), folder.path().join("control"));
    let [sticks_at, control_at] = [&sticks, &control].map(|p| p.to_str().expect("UTF-8"));
    let _serving = serve(
        &["--socket", sticks_at, "--control", control_at, "--sticks", "2", "--profile", "usb2"],
        &control,
    );
    let state = |args: &[&str]| {
        let (code, d) = json(&[&["sim", "status"], args].concat(), "sim");
        assert_eq!((code, &d["simulated"]), (0, &true.into()), "{d}");
        let states = d["sticks"].as_array().expect("sticks").iter();
        states.map(|s| s["state"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    for socket in [control_at, sticks_at] {
        assert_eq!(state(&[socket]), ["unbooted", "unbooted"]);
    }
    let (_, d) = json(&["sim", "status", control_at], "sim");
    let stick = &d["sticks"][1];
    assert_eq!(
        (&stick["id"], &stick["face"], &stick["profile"]),
        (&"sim1".into(), &"socket".into(), &"usb2".into())
    );
    assert_eq!((&stick["inferences"], &stick["connected"]), (&0.into(), &false.into()));
    assert!((15.0..60.0).contains(&stick["temperature_c"].as_f64().expect("a number")), "{stick}");

    assert_eq!(state(&[control_at, "--detach", "sim1"]), ["unbooted", "unplugged"]);
    assert_eq!(state(&[control_at, "--attach", "sim1", "--detach", "0"]), ["unplugged", "unbooted"]);
    let text = run(&["sim", "status", control_at]);
    assert!(text.stdout.contains("unplugged") && text.stdout.contains("simulated"), "{}", text.stdout);
    fails(&["sim", "status", control_at, "--detach", "sim7"], "sim", 2, "InvalidInput", &["0 to 1"]);
    fails(&["sim", "status", "/nowhere/control"], "sim", 2, "NotFound", &["/nowhere/control"]);
}

#[test]
fn what_people_read_is_as_reviewed() {
    use rustix::process::{Pid, Signal, kill_process};
    use std::io::{BufRead as _, BufReader, Read as _};
    use std::process::Stdio;

    let folder = tempfile::tempdir().expect("temporary folder");
    let socket = folder.path().join("sticks");
    let at = socket.to_str().expect("UTF-8");
    let mut server = std::process::Command::new(env!("CARGO_BIN_EXE_ncs2ctl"))
        .args(["sim", "serve", "--socket", at, "--sticks", "2", "--timing", "zero"])
        .env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"))
        .env("COLUMNS", "120")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stderr = BufReader::new(server.stderr.take().expect("piped"));
    let mut told = String::from("$ ncs2ctl sim serve --socket SOCKET --sticks 2 --timing zero &\n");
    stderr.read_line(&mut told).expect("a pipe");
    for flags in [&[][..], &["--detach", "sim1"], &["--attach", "sim1"]] {
        let ran = run(&[&["sim", "status", at], flags].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{}", ran.stdout);
        told.push_str(&format!("$ ncs2ctl sim status SOCKET {}\n{}", flags.join(" "), ran.stdout));
    }
    let pid = Pid::from_raw(i32::try_from(server.id()).expect("a pid")).expect("not 0");
    kill_process(pid, Signal::INT).expect("ours");
    told.push_str("^C\n");
    server.stdout.take().expect("piped").read_to_string(&mut told).expect("a pipe");
    stderr.read_to_string(&mut told).expect("a pipe");
    assert!(server.wait().expect("ours").success(), "{told}");
    insta::assert_snapshot!("served", tool::redact::figures(&told.replace(at, "SOCKET")));
}
