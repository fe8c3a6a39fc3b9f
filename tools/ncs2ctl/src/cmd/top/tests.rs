//! The terminal after a panic. All other ways out are in `tests/top_terminal.rs`.

use std::io::Read as _;

use portable_pty::{CommandBuilder, PtySize, native_pty_system};

use super::*;

/// Set for the process that panics.
const CHILD: &str = "NCS2CTL_TEST_PANICS";

#[test]
fn a_panic_gives_the_terminal_back_before_it_is_told() {
    if std::env::var_os(CHILD).is_some() {
        let interrupt = Interrupt::install().expect("nothing else has it");
        let _ = full_screen(&interrupt, |terminal| {
            terminal.draw(|frame| frame.render_widget("screenful", frame.area())).expect("a terminal");
            panic!("on purpose")
        });
        return;
    }
    let size = PtySize { rows: 24, cols: 80, pixel_width: 0, pixel_height: 0 };
    let pair = native_pty_system().openpty(size).expect("a pseudo-terminal");
    let mut command = CommandBuilder::new(std::env::current_exe().expect("this program"));
    command.args([
        "--exact",
        "--nocapture",
        "cmd::top::tests::a_panic_gives_the_terminal_back_before_it_is_told",
    ]);
    command.env(CHILD, "1");
    command.env("TERM", "xterm-256color");
    let mut child = pair.slave.spawn_command(command).expect("it starts");
    drop(pair.slave);
    let mut reader = pair.master.try_clone_reader().expect("a reader");
    let mut bytes = Vec::new();
    let mut part = [0; 4096];
    // The kernel ends the reading side of a terminal that nobody has open with an error.
    while let Ok(n @ 1..) = reader.read(&mut part) {
        bytes.extend_from_slice(&part[..n]);
    }
    assert!(!child.wait().expect("it ends").success(), "it panicked");
    let text = String::from_utf8_lossy(&bytes);
    let at = |what: &str| text.rfind(what).unwrap_or_else(|| panic!("no {what:?} in {text:?}"));
    let (entered, drawn, left) = (at("\x1b[?1049h"), at("screenful"), at("\x1b[?1049l"));
    assert!(entered < drawn && drawn < left && left < at("on purpose"), "{text:?}");
    assert!(at("\x1b[?25h") > at("\x1b[?25l"), "the cursor shows again: {text:?}");
}
