//! `top` on a terminal: keys, another size, signals, and that the terminal is given back.

mod tool;

use portable_pty::PtySize;
use tool::model;
use tool::redact::figures;
use tool::screen::{Screen, lines};

/// It left the alternate screen and showed the cursor again after all else.
fn gave_back(bytes: &str) -> bool {
    let last = |code: &str| bytes.rfind(code);
    last("\x1b[?1049l") > last("\x1b[?1049h") && last("\x1b[?25h") >= last("\x1b[?25l")
}

#[test]
fn top_shows_the_sticks_takes_keys_and_gives_the_terminal_back() {
    let blob = model("squeezenet1_1_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let mut top = Screen::start(&["--sim", "2", "top", blob, "--interval", "100ms"]);
    let text = top.until("speed of two sticks", |t| {
        t.contains("simulated")
            && t.contains("sim1")
            && t.contains("squeezenet1_1_u8_s1")
            && t.contains(" fps, ")
            // Plots have bars from the first answers on, which may be several looks away.
            && t.contains('█')
    });
    assert!(text.contains("TOPS") || text.contains("no TOPS"), "{text}");
    assert!(text.contains("°C"), "the plots have units:\n{text}");
    top.press("s");
    top.until("another order", |t| t.contains("sort (fps)"));
    top.press("r");
    top.until("the order reversed", |t| t.contains("sort (fps, reversed)"));
    top.press("p");
    top.until("the pause", |t| t.contains("paused"));
    top.press("p");
    top.until("the end of the pause", |t| !t.contains("paused"));
    top.press("o");
    top.until("another policy", |t| t.contains("from now on"));
    // Another size: the parser first, so that it knows where lines end.
    top.shown.0.lock().expect("no panic").0.screen_mut().set_size(lines(40), lines(100));
    top.master.resize(PtySize { rows: 40, cols: 100, pixel_width: 0, pixel_height: 0 }).expect("resized");
    top.until("the last line at its new place", |t| {
        t.lines().count() == 40
            && t.lines().last().is_some_and(|l| l.contains("quit") || l.contains("policy"))
    });
    top.press("q");
    let (code, bytes) = top.end();
    assert_eq!(code, 0, "{bytes}");
    assert!(gave_back(&bytes), "{bytes:?}");
}

/// Figures, and the plots made of them, are left out: they are this computer's.
#[test]
fn the_live_screen_is_as_reviewed() {
    let blob = model("tiny_u8_s1.blob");
    let blob = blob.to_str().expect("UTF-8");
    let mut top = Screen::start(&["--sim", "2", "--timing", "zero", "top", blob, "--interval", "100ms"]);
    let known = |line: &str| line.starts_with("sim") && line.contains("ready") && !line.contains(" - ");
    let text = top.until("all figures", |t| {
        t.lines().filter(|line| known(line)).count() == 2
            && t.lines().last().is_some_and(|l| l.contains("quit"))
    });
    top.press("q");
    assert_eq!(top.end().0, 0);
    let bars = |c: char| ('\u{2581}'..='\u{2588}').contains(&c);
    let lines = text.lines().filter(|line| !line.contains(bars) && !line.trim().is_empty());
    let text = lines.collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!("live-screen", figures(&text));
}

#[test]
fn a_signal_and_ctrl_c_give_the_terminal_back() {
    use rustix::process::{Pid, Signal, kill_process};
    let mut top = Screen::start(&["--sim", "1", "top", "--interval", "100ms"]);
    top.until("the stick", |t| t.contains("sim0"));
    top.press("\x03");
    let (code, bytes) = top.end();
    assert!(code == 0 && gave_back(&bytes), "Ctrl-C: {code} {bytes:?}");
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let top = Screen::start(&["--sim", "1", "top", "--interval", "100ms"]);
        top.until("the stick", |t| t.contains("sim0"));
        let pid =
            top.child.process_id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("a pid");
        kill_process(pid, signal).expect("ours");
        let (code, bytes) = top.end();
        assert!(code == 0 && gave_back(&bytes), "{signal:?}: {code} {bytes:?}");
    }
}

#[test]
fn without_utf8_and_colours_the_screen_is_plain() {
    let args = ["--sim", "1", "--color", "never", "top", "--interval", "100ms", "--sort", "temperature"];
    let mut top = Screen::start(&args);
    top.until("the stick, in the order asked for", |t| {
        t.contains("sim0") && t.contains("sort (temperature)")
    });
    top.press("q");
    let (_, bytes) = top.end();
    // 3x and 9x are colours; bold and dim are none.
    for code in ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[38;5;"] {
        assert!(!bytes.contains(code), "{code:?} in {bytes:?}");
    }
}

#[test]
fn a_terminal_that_is_closed_ends_top() {
    let size = PtySize { rows: 24, cols: 120, pixel_width: 0, pixel_height: 0 };
    let pair = portable_pty::native_pty_system().openpty(size).expect("a pseudo-terminal");
    let mut command = portable_pty::CommandBuilder::new(env!("CARGO_BIN_EXE_ncs2ctl"));
    command.args(["--sim", "1", "top", "--interval", "100ms"]);
    command.env("TERM", "xterm-256color");
    command.env("NCS2_STATS_SOCKET", "false");
    let mut child = pair.slave.spawn_command(command).expect("it starts");
    drop(pair.slave);
    let mut from = pair.master.try_clone_reader().expect("a reader");
    // What it draws first shows that it has begun.
    let mut bytes = [0; 4096];
    let mut seen = String::new();
    while !seen.contains("sim0") {
        let n = std::io::Read::read(&mut from, &mut bytes).expect("it draws");
        seen.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    drop((from, pair.master));
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while child.try_wait().expect("ours").is_none() {
        if std::time::Instant::now() > end {
            let _ = child.kill();
            panic!("it goes on without its terminal");
        }
        std::thread::yield_now();
    }
}
