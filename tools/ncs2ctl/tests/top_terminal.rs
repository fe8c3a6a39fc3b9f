//! `top` on a terminal: keys, another size, signals, and that the terminal is given back.

mod tool;

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};
use tool::model;

/// Longest wait for the screen to show something.
const PATIENCE: Duration = Duration::from_secs(60);

fn lines(n: u16) -> std::num::NonZero<u16> {
    std::num::NonZero::new(n).expect("above 0")
}

struct Screen {
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    keys: Box<dyn std::io::Write + Send>,
    /// What a terminal would show, and all bytes.
    shown: Arc<(Mutex<(vt100::Parser, Vec<u8>)>, std::sync::Condvar)>,
    reader: Option<JoinHandle<()>>,
}

impl Screen {
    fn start(args: &[&str]) -> Screen {
        let size = PtySize { rows: 24, cols: 120, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).expect("a pseudo-terminal");
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_ncs2ctl"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("NCS2_")) {
            command.env_remove(name);
        }
        command.args(args);
        command.env("TERM", "xterm-256color");
        command.env("LC_ALL", "C.UTF-8");
        command.env("NCS2_STATS_SOCKET", "false");
        command.env("XDG_CONFIG_HOME", env!("CARGO_TARGET_TMPDIR"));
        command.env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"));
        let child = pair.slave.spawn_command(command).expect("it starts");
        drop(pair.slave);
        let mut from = pair.master.try_clone_reader().expect("a reader");
        let shown = Arc::new((
            Mutex::new((vt100::Parser::new(lines(24), lines(120), 0), Vec::new())),
            std::sync::Condvar::new(),
        ));
        let to = shown.clone();
        let reader = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = from.read(&mut bytes) {
                if n == 0 {
                    break;
                }
                let mut state = to.0.lock().expect("no panic");
                state.0.process(&bytes[..n]);
                state.1.extend(&bytes[..n]);
                to.1.notify_all();
            }
        });
        let keys = pair.master.take_writer().expect("a writer");
        Screen { child, master: pair.master, keys, shown, reader: Some(reader) }
    }

    /// Waits until the screen shows what `wanted` looks for.
    fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + PATIENCE;
        let mut state = self.shown.0.lock().expect("no panic");
        loop {
            let text = state.0.screen().contents();
            if wanted(&text) {
                return text;
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the screen never showed {what}:\n{text}");
            state = self.shown.1.wait_timeout(state, left).expect("no panic").0;
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it reads");
        self.keys.flush().expect("it reads");
    }

    /// Its exit code and all bytes that it wrote, when it has ended.
    fn end(mut self) -> (u32, String) {
        let code = self.child.wait().expect("it ends").exit_code();
        drop(self.master);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no panic");
        }
        let state = self.shown.0.lock().expect("no panic");
        (code, String::from_utf8_lossy(&state.1).into_owned())
    }
}

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
    });
    assert!(text.contains("TOPS") || text.contains("no TOPS"), "{text}");
    assert!(text.contains("°C") && text.contains('█'), "plots:\n{text}");
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
    let mut top = Screen::start(&["--sim", "1", "--color", "never", "top", "--interval", "100ms"]);
    top.until("the stick", |t| t.contains("sim0"));
    top.press("q");
    let (_, bytes) = top.end();
    // 3x and 9x are colours; bold and dim are none.
    for code in ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[38;5;"] {
        assert!(!bytes.contains(code), "{code:?} in {bytes:?}");
    }
}
