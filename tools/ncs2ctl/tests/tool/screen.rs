//! `ncs2ctl` on a pseudo-terminal.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

/// Longest wait for the screen to show something.
const PATIENCE: Duration = Duration::from_secs(60);

/// A size of the parser.
pub fn lines(n: u16) -> std::num::NonZero<u16> {
    std::num::NonZero::new(n).expect("above 0")
}

/// What a terminal would show, and all bytes; and that there is more of them.
type Shown = (Mutex<(vt100::Parser, Vec<u8>)>, std::sync::Condvar);

/// A program on a terminal of 24 lines of 120 columns.
pub struct Screen {
    /// The program.
    pub child: Box<dyn Child + Send + Sync>,
    /// The terminal.
    pub master: Box<dyn MasterPty + Send>,
    keys: Box<dyn std::io::Write + Send>,
    /// What came of it.
    pub shown: Arc<Shown>,
    reader: Option<JoinHandle<()>>,
}

impl Screen {
    /// Starts `ncs2ctl`.
    pub fn start(args: &[&str]) -> Screen {
        Screen::start_with(args, &[])
    }

    /// With these variables, too.
    pub fn start_with(args: &[&str], variables: &[(&str, &str)]) -> Screen {
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
        for (name, value) in variables {
            command.env(name, value);
        }
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
    pub fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
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

    /// Types.
    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it reads");
        self.keys.flush().expect("it reads");
    }

    /// Its exit code and all bytes that it wrote, when it has ended.
    pub fn end(mut self) -> (u32, String) {
        let code = self.child.wait().expect("it ends").exit_code();
        drop(self.master);
        if let Some(reader) = self.reader.take() {
            reader.join().expect("no panic");
        }
        let state = self.shown.0.lock().expect("no panic");
        (code, String::from_utf8_lossy(&state.1).into_owned())
    }
}
