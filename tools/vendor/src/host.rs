//! The host's side: virtual sticks behind usb-redir that are set up anew for every test, as the guest says.
//!
//! One JSON object a line each way: `{"serve": {…}}` stops what was served and serves that, `{"stop": true}`,
//! `{"command": "unplug", "stick": 0}`, `{"status": true}`; the answer has `"ok"` or `"error"`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ncs2_device::face::{Address, Command, Face, ServeOptions, Server, serve};
use ncs2_device::{Engine, FaultPlan, Timing};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::chain;

/// What is served.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Setup {
    /// Sticks in ports 1 to this.
    pub(crate) sticks: usize,
    /// The blob's stages are computed; otherwise outputs are a hash.
    #[serde(default)]
    pub(crate) execute: bool,
    /// Things take the time of the model; otherwise none.
    #[serde(default)]
    pub(crate) model_time: bool,
    /// TOML over the profile `ncs2`.
    #[serde(default)]
    pub(crate) profile: String,
    /// A fault plan, TOML.
    #[serde(default)]
    pub(crate) faults: String,
    /// Name of the trace in the folder that host and guest share.
    #[serde(default)]
    pub(crate) trace: Option<String>,
}

impl Setup {
    /// So many sticks that compute, without waiting.
    pub(crate) fn executing(sticks: usize) -> Setup {
        Setup { execute: true, ..Setup::hashing(sticks) }
    }

    /// So many sticks that answer by a hash, without waiting.
    pub(crate) fn hashing(sticks: usize) -> Setup {
        Setup {
            sticks,
            execute: false,
            model_time: false,
            profile: String::new(),
            faults: String::new(),
            trace: None,
        }
    }
}

/// A line of the guest.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    serve: Option<Setup>,
    #[serde(default)]
    stop: bool,
    command: Option<String>,
    #[serde(default)]
    stick: usize,
    #[serde(default)]
    status: bool,
}

/// Takes the guest's lines at `control` until standard input ends.
pub(crate) fn serve_until_end(stick: &Path, control: &Path, out: &Path) -> Result<(), String> {
    let listener = UnixListener::bind(control).map_err(|e| format!("{}: {e}", control.display()))?;
    let mut host = Host { stick: stick.to_path_buf(), out: out.to_path_buf(), server: None };
    std::thread::spawn(move || {
        for guest in listener.incoming().flatten() {
            if let Err(error) = host.talk(&guest) {
                eprintln!("control: {error}");
            }
        }
    });
    // Whoever started this holds the other end: when he goes, this goes.
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop).map_err(|e| e.to_string())
}

struct Host {
    stick: PathBuf,
    out: PathBuf,
    server: Option<Server>,
}

impl Host {
    fn talk(&mut self, guest: &UnixStream) -> std::io::Result<()> {
        let mut writer = guest.try_clone()?;
        for line in BufReader::new(guest).lines() {
            let line = line?;
            let answer = match serde_json::from_str::<Ask>(&line) {
                Ok(ask) => self.answer(ask).unwrap_or_else(|why| json!({ "error": why })),
                Err(why) => json!({ "error": format!("{line}: {why}") }),
            };
            writeln!(writer, "{answer}")?;
        }
        Ok(())
    }

    fn answer(&mut self, ask: Ask) -> Result<Value, String> {
        if ask.stop || ask.serve.is_some() {
            self.server = None;
        }
        if let Some(setup) = ask.serve {
            self.server = Some(serve(self.options(&setup)?).map_err(|e| chain(&e))?);
        }
        if let Some(word) = ask.command {
            let (_, command) = Command::WORDS
                .into_iter()
                .find(|(name, _)| *name == word)
                .ok_or_else(|| format!("no command {word}"))?;
            let server = self.server.as_ref().ok_or("nothing is served")?;
            server.command(ask.stick, command).map_err(|e| chain(&e))?;
        }
        if ask.status {
            let server = self.server.as_ref().ok_or("nothing is served")?;
            let sticks = server.status().map_err(|e| chain(&e))?;
            let sticks: Vec<Value> = sticks
                .iter()
                .map(|s| json!({ "inferences": s.inferences, "resets": s.resets, "transfers": s.transfers }))
                .collect();
            return Ok(json!({ "ok": true, "sticks": sticks }));
        }
        Ok(json!({ "ok": true }))
    }

    fn options(&self, setup: &Setup) -> Result<ServeOptions, String> {
        let face = |n: usize| {
            let mut path = self.stick.clone().into_os_string();
            path.push(format!(".{n}"));
            Face::Usbredir(Address::Unix(path.into()))
        };
        let profile = if setup.profile.is_empty() {
            "ncs2".into()
        } else {
            let path = self.out.join("profile.toml");
            let text = format!("base = \"ncs2\"\n{}", setup.profile);
            std::fs::write(&path, text).map_err(|e| format!("{}: {e}", path.display()))?;
            path.display().to_string()
        };
        let faults = match setup.faults.as_str() {
            "" => None,
            text => Some(FaultPlan::parse("fault plan", text).map_err(|e| chain(&e))?),
        };
        Ok(ServeOptions {
            faces: (0..setup.sticks).map(face).collect(),
            profile,
            engine: if setup.execute { Engine::Execute } else { Engine::Hash },
            timing: if setup.model_time { Timing::Model } else { Timing::Zero },
            faults,
            trace: setup.trace.as_ref().map(|name| self.out.join(name)),
            ..ServeOptions::default()
        })
    }
}
