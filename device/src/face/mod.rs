//! Virtual sticks for other processes and for kernels: [`serve`] puts sticks behind [`Face`]s and drives them on a thread
//! of their own until the [`Server`] is dropped.

mod client;
mod control;
mod outbox;
mod server;
mod socket;
mod station;
mod status;
mod stream;
mod usb;
mod usbredir;
mod vhci;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use crate::{Engine, FaultPlan, Timing};

pub use client::{command, ports, status};
pub use server::{Server, serve};
pub use status::StickStatus;

/// Where a face listens.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Address {
    /// A Unix stream socket, made with mode 0600.
    Unix(PathBuf),
    /// TCP. Whoever can reach it holds the sticks: loopback, unless there is a reason.
    Tcp(SocketAddr),
    /// A character device that is opened, such as a virtio-serial port inside a virtual machine.
    Device(PathBuf),
}

impl Address {
    /// `1234` is that port on loopback, `/dev/…` a device, all else the path of a socket.
    pub fn parse(text: &str) -> Address {
        if let Ok(port) = text.parse() {
            return Address::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
        }
        if let Ok(at) = text.parse() {
            return Address::Tcp(at);
        }
        if text.starts_with("/dev/") { Address::Device(text.into()) } else { Address::Unix(text.into()) }
    }

    /// Of stick `n` of `of`: alone it has the address itself, else `.n` is added to a path, a number
    /// to a device's name (`/dev/virtio-ports/stick` is `stick0`, …) and to a port.
    #[must_use]
    pub fn numbered(&self, n: usize, of: usize) -> Address {
        if of <= 1 {
            return self.clone();
        }
        let with = |path: &PathBuf, end: String| {
            let mut name = path.clone().into_os_string();
            name.push(end);
            PathBuf::from(name)
        };
        match self {
            Address::Unix(path) => Address::Unix(with(path, format!(".{n}"))),
            Address::Device(path) => Address::Device(with(path, n.to_string())),
            Address::Tcp(at) => {
                let port = at.port().saturating_add(u16::try_from(n).unwrap_or(u16::MAX));
                Address::Tcp(SocketAddr::new(at.ip(), port))
            }
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) | Address::Device(path) => path.display().fmt(f),
            Address::Tcp(at) => at.fmt(f),
        }
    }
}

/// How the world sees a stick.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub enum Face {
    /// The device's side of usb-redir, for QEMU's `usb-redir` device; each stick at its [`Address::numbered`].
    Usbredir(Address),
    /// Ports of this machine's own `vhci-hcd`. Root.
    Vhci,
    /// For other processes of this software, all sticks at one socket: [`ports`] is the other side.
    Socket(Address),
}

/// Settings of a [`Server`].
#[derive(Clone, PartialEq, Debug)]
pub struct ServeOptions {
    /// Each face has `sticks` sticks of its own.
    pub faces: Vec<Face>,
    /// Sticks of each face.
    pub sticks: usize,
    /// Name of a built-in profile, or a path.
    pub profile: String,
    /// What outputs are made of.
    pub engine: Engine,
    /// How long things take.
    pub timing: Timing,
    /// Boot any image that ends with a jump command, not only those of a known size.
    pub any_firmware: bool,
    /// Seed of everything that is drawn by chance.
    pub seed: u64,
    /// Where [`Command`]s are taken, line by line (`unplug 0`, `list`); `None` for nowhere.
    pub control: Option<Address>,
    /// What goes wrong, and when; sticks are `sim0`, … in the order of the faces. Faults of single transfers cannot be had
    /// here: they are made at the end of a host that is in this process.
    pub faults: Option<FaultPlan>,
    /// Where to write down all that the sticks say and are told, as text.
    pub trace: Option<PathBuf>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        ServeOptions {
            faces: Vec::new(),
            sticks: 1,
            profile: "ncs2".into(),
            engine: Engine::Execute,
            timing: Timing::Model,
            any_firmware: false,
            seed: 0,
            control: None,
            faults: None,
            trace: None,
        }
    }
}

/// What a hand on a served stick can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Command {
    /// Pulls it out of its port.
    Unplug,
    /// Puts it back, unbooted.
    Plug,
    /// It leaves the bus by itself and comes back unbooted.
    Crash,
    /// Dead but on the bus, until [`Command::Resume`].
    Hang,
    /// Takes all, sends nothing, until [`Command::Resume`].
    Mute,
    /// Computes but keeps the results, until [`Command::Resume`].
    Hold,
    /// Ends hang, mute and hold.
    Resume,
    /// Cuts the connection without a word, as if this process had been killed. Whoever connects again finds a stick
    /// that was just plugged in.
    Drop,
}

impl Command {
    /// Every command with its word.
    pub const WORDS: [(&'static str, Command); 8] = [
        ("unplug", Command::Unplug),
        ("plug", Command::Plug),
        ("crash", Command::Crash),
        ("hang", Command::Hang),
        ("mute", Command::Mute),
        ("hold", Command::Hold),
        ("resume", Command::Resume),
        ("drop", Command::Drop),
    ];

    /// Its word in the line protocol.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, command)| *command == self).map_or("", |(word, _)| word)
    }
}
