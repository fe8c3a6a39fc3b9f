//! Ctrl-C and SIGTERM: once drains, twice stops.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crossbeam_channel::{Receiver, bounded, select};

use crate::failure::{Failure, Result};

static PRESSED: AtomicU32 = AtomicU32::new(0);
static INSTALLED: OnceLock<Receiver<()>> = OnceLock::new();
static FULL_SCREEN: AtomicBool = AtomicBool::new(false);

/// Exit code of a program that a signal stopped, as shells have it: 128 + SIGINT.
const STOPPED: i32 = 130;

/// Knows whether the user pressed Ctrl-C, and can be waited on.
pub struct Interrupt {
    pressed: Receiver<()>,
}

impl Interrupt {
    /// Takes over Ctrl-C from now on. Call once per process.
    pub fn install() -> Result<Self> {
        let (sender, pressed) = bounded(1);
        ctrlc::set_handler(move || {
            if PRESSED.fetch_add(1, Ordering::SeqCst) > 0 {
                if FULL_SCREEN.load(Ordering::SeqCst) {
                    ratatui::restore();
                }
                std::process::exit(STOPPED);
            }
            let _ = sender.try_send(());
        })
        .map_err(|e| {
            Failure::new(
                ncs2::ErrorKind::Unsupported,
                format!("could not take over Ctrl-C: {e}"),
                "run it in an ordinary shell",
            )
        })?;
        Ok(Interrupt { pressed: INSTALLED.get_or_init(|| pressed).clone() })
    }

    /// True since the first Ctrl-C.
    pub fn is_pressed(&self) -> bool {
        PRESSED.load(Ordering::SeqCst) > 0
    }

    /// From now on the terminal is given back before the second Ctrl-C ends the process.
    pub fn restores_terminal(&self) {
        FULL_SCREEN.store(true, Ordering::SeqCst);
    }

    /// Becomes readable at the first Ctrl-C.
    pub fn channel(&self) -> &Receiver<()> {
        &self.pressed
    }
}

/// Waits for what `work` sends, `None` where the first Ctrl-C comes before it. A command that left Ctrl-C to the system is
/// ended by it, so there it only waits.
pub fn unless_pressed<T>(work: &Receiver<T>) -> Option<T> {
    match INSTALLED.get() {
        None => work.recv().ok(),
        Some(pressed) => select! {
            recv(work) -> done => done.ok(),
            recv(pressed) -> _ => None,
        },
    }
}
