//! One virtual stick behind a face that a kernel sees: the stick, the connection, and how the two follow each other.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::transport::{Reactor, Token};

use super::socket::{self, Wire, has_peer};
use super::stream::{Door, Moved, Stream};
use super::usb::Descriptors;
use super::vhci::attach::Vhci;
use super::{Command, usbredir, vhci};
use crate::{BusEvent, Config, Identity, LinkSpeed, VirtualStick};

/// How long to wait before a port or a device file is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// Passes over one stick before the others have their turn.
const PASSES: usize = 64;

#[derive(Debug)]
pub(crate) struct Station {
    pub(crate) stick: VirtualStick,
    link: LinkSpeed,
    face: Kind,
}

#[derive(Debug)]
enum Kind {
    Usbredir {
        door: Door,
        host: Option<(Stream, usbredir::Session)>,
        retry: Option<Instant>,
    },
    Vhci {
        vhci: Vhci,
        place: u32,
        host: Option<(Stream, vhci::Session)>,
        appears: Option<(Identity, Instant)>,
    },
    /// `guest` waits until the stick has booted for him.
    Socket {
        wire: Option<Wire>,
        guest: Option<OwnedFd>,
    },
}

impl Station {
    /// Behind usb-redir: whoever comes through the door finds the stick plugged in.
    pub(crate) fn usbredir(stick: VirtualStick, link: LinkSpeed, door: Door) -> Self {
        Station { stick, link, face: Kind::Usbredir { door, host: None, retry: None } }
    }

    /// Behind a port of this machine's own kernel.
    pub(crate) fn vhci(stick: VirtualStick, link: LinkSpeed, vhci: Vhci, place: u32) -> Self {
        Station { stick, link, face: Kind::Vhci { vhci, place, host: None, appears: None } }
    }

    /// For clients that are handed over with [`Self::connect`].
    pub(crate) fn socket(stick: VirtualStick, link: LinkSpeed) -> Self {
        Station { stick, link, face: Kind::Socket { wire: None, guest: None } }
    }

    /// A client of the socket face: the stick boots for him, unless another has it.
    pub(crate) fn connect(&mut self, guest: OwnedFd, reactor: &mut Reactor, now: Instant) {
        let why = match &mut self.face {
            Kind::Socket { wire, guest }
                if wire.as_ref().is_some_and(Wire::has_peer) || guest.as_ref().is_some_and(has_peer) =>
            {
                "error busy: another client of this server has the stick\n"
            }
            Kind::Socket { wire, guest: waiting } if self.stick.is_plugged() => {
                if let Some(wire) = wire.take() {
                    wire.close(reactor);
                }
                *waiting = Some(guest);
                // Its own client pings; a stick whose client stopped resets itself, as one booted by `ncs2` would.
                self.stick.start_booted(true, now);
                return;
            }
            Kind::Socket { .. } => "error the stick is not in its port\n",
            _ => "error the stick is behind another face\n",
        };
        // Who does not read it sees the end of the connection.
        let _ = rustix::io::write(&guest, why.as_bytes());
    }

    /// Another stick, into the empty port. The profile is taken as it is.
    pub(crate) fn replace(&mut self, config: Arc<Config>, now: Instant) {
        self.link = config.profile.link;
        let before = std::mem::replace(&mut self.stick, VirtualStick::new(config, now));
        self.stick.take_place_of(before);
        match &mut self.face {
            Kind::Usbredir { host: Some((_, session)), .. } => session.set_link(self.link),
            // Their sessions begin with the stick.
            Kind::Usbredir { host: None, .. } | Kind::Vhci { .. } | Kind::Socket { .. } => {}
        }
        self.stick.plug();
    }

    /// True when a host is connected.
    pub(crate) fn is_connected(&self) -> bool {
        match &self.face {
            Kind::Usbredir { host, .. } => host.is_some(),
            Kind::Vhci { host, .. } => host.is_some(),
            Kind::Socket { wire, .. } => wire.is_some(),
        }
    }

    /// Bulk requests that ended since the host connected; 0 where there is no bus.
    pub(crate) fn transfers(&self) -> u64 {
        match &self.face {
            Kind::Usbredir { host: Some((_, session)), .. } => session.transfers(),
            Kind::Vhci { host: Some((_, session)), .. } => session.transfers(),
            _ => 0,
        }
    }

    /// Name of the face.
    pub(crate) fn face_name(&self) -> &'static str {
        match &self.face {
            Kind::Usbredir { .. } => "usbredir",
            Kind::Vhci { .. } => "vhci",
            Kind::Socket { .. } => "socket",
        }
    }

    pub(crate) fn notice(&mut self, tokens: &[Token]) {
        match &mut self.face {
            Kind::Usbredir { door, host, .. } => {
                door.notice(tokens);
                if let Some((stream, _)) = host {
                    stream.notice(tokens);
                }
            }
            Kind::Vhci { host, .. } => {
                if let Some((stream, _)) = host {
                    stream.notice(tokens);
                }
            }
            // Its end looks for itself each time.
            Kind::Socket { .. } => {}
        }
    }

    /// Does what a hand on the stick would do.
    pub(crate) fn command(&mut self, command: Command, reactor: &mut Reactor, now: Instant) {
        let mut faults = self.stick.faults();
        match command {
            Command::Unplug => self.stick.unplug(),
            Command::Plug => self.stick.plug(),
            Command::Crash => self.stick.crash(now),
            Command::Hang => faults.hung = true,
            Command::Mute => faults.mute = true,
            Command::Hold => faults.hold_results = true,
            Command::Resume => faults = crate::Faults::default(),
            Command::Drop => self.hang_up(reactor),
        }
        if faults != self.stick.faults() {
            self.stick.set_faults(faults, now);
        }
    }

    /// Does all that can be done now; true when there is more to do at once.
    pub(crate) fn serve(&mut self, scratch: &mut [u8], reactor: &mut Reactor, now: Instant) -> bool {
        for _ in 0..PASSES {
            self.stick.handle_timeout(now);
            let mut progress = self.follow_bus(reactor, now);
            progress |= self.open_host(reactor, now);
            progress |= self.move_data(scratch, reactor, now);
            if !progress {
                return false;
            }
        }
        true
    }

    pub(crate) fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let face = match &self.face {
            Kind::Usbredir { host, retry, .. } => host
                .as_ref()
                .and_then(|(_, session)| session.poll_timeout(now))
                .into_iter()
                .chain(*retry)
                .min(),
            Kind::Vhci { host, appears, .. } => host
                .as_ref()
                .and_then(|(_, session)| session.poll_timeout(now))
                .into_iter()
                .chain(appears.map(|(_, at)| at))
                .min(),
            Kind::Socket { wire, .. } => wire.as_ref().and_then(|wire| wire.poll_timeout(now)),
        };
        self.stick.poll_timeout(now).into_iter().chain(face).min()
    }

    /// Ends the connection without a word, as when this process is killed.
    fn hang_up(&mut self, reactor: &mut Reactor) {
        match &mut self.face {
            Kind::Usbredir { host, .. } => {
                if let Some((stream, _)) = host.take() {
                    stream.close(reactor);
                }
            }
            Kind::Vhci { host, .. } => {
                if let Some((stream, _)) = host.take() {
                    stream.close(reactor);
                }
            }
            Kind::Socket { wire, guest } => {
                *guest = None;
                if let Some(wire) = wire.take() {
                    wire.cut(reactor);
                }
            }
        }
        self.lost_power();
    }

    /// Whoever connects next finds a stick that was just plugged in.
    fn lost_power(&mut self) {
        if self.stick.is_plugged() {
            self.stick.unplug();
            self.stick.plug();
        }
    }

    fn follow_bus(&mut self, reactor: &mut Reactor, now: Instant) -> bool {
        let mut progress = false;
        while let Some(event) = self.stick.poll_bus_event() {
            progress = true;
            match (&mut self.face, event) {
                (Kind::Usbredir { host, .. }, event) => {
                    if let Some((_, session)) = host {
                        match event {
                            BusEvent::Left => session.leave(),
                            BusEvent::Appeared(identity) => session.appear(identity),
                        }
                    }
                }
                (Kind::Vhci { host, appears, .. }, BusEvent::Left) => {
                    *appears = None;
                    if let Some((mut stream, session)) = host.take() {
                        // What it completed last is told, as far as the socket takes it.
                        stream.write(session.outgoing(), reactor);
                        stream.close(reactor);
                    }
                }
                (Kind::Vhci { appears, .. }, BusEvent::Appeared(identity)) => {
                    *appears = Some((identity, now))
                }
                (Kind::Socket { wire, .. }, BusEvent::Left) => {
                    if let Some(wire) = wire.take() {
                        wire.close(reactor);
                    }
                }
                (Kind::Socket { wire, guest }, BusEvent::Appeared(Identity::Booted)) => {
                    let Some(fd) = guest.take() else { continue };
                    let line = socket::ready_line(&self.link);
                    let told = rustix::io::write(&fd, line.as_bytes()) == Ok(line.len());
                    match Wire::new(fd, &self.link, reactor) {
                        Ok(new) if told => *wire = Some(new),
                        Ok(new) => new.cut(reactor),
                        Err(error) => tracing::warn!(%error, "a connection could not be taken"),
                    }
                }
                (Kind::Socket { .. }, BusEvent::Appeared(Identity::Unbooted)) => {}
            }
        }
        progress
    }

    fn open_host(&mut self, reactor: &mut Reactor, now: Instant) -> bool {
        match &mut self.face {
            Kind::Usbredir { door, host, retry } => {
                if host.is_some() || retry.is_some_and(|at| at > now) {
                    return false;
                }
                if let Some(fd) = door.accept() {
                    *retry = None;
                    match Stream::new(fd, reactor) {
                        Ok(stream) => *host = Some((stream, usbredir::Session::new(self.link))),
                        Err(error) => tracing::warn!(%error, "a connection could not be taken"),
                    }
                    return true;
                }
                *retry = door.is_device().then(|| now + RETRY);
                false
            }
            Kind::Vhci { vhci, place, host, appears } => {
                let Some((identity, _)) = appears.filter(|(_, at)| *at <= now) else { return false };
                *appears = None;
                match plug_in(vhci, *place, Descriptors::new(identity, &self.link)) {
                    Ok(Some(ours)) => match Stream::new(ours, reactor) {
                        Ok(stream) => *host = Some((stream, vhci::Session::new(self.link, identity))),
                        Err(error) => tracing::warn!(%error, "a connection could not be taken"),
                    },
                    Ok(None) => *appears = Some((identity, now + RETRY)),
                    Err(error) => tracing::error!(%error, place, "the stick could not be plugged in"),
                }
                true
            }
            Kind::Socket { guest, .. } => {
                if self.stick.is_plugged() {
                    return false;
                }
                // Pulled out while he waited: the end of the connection says so.
                guest.take().is_some()
            }
        }
    }

    fn move_data(&mut self, scratch: &mut [u8], reactor: &mut Reactor, now: Instant) -> bool {
        let stick = &mut self.stick;
        // The two sessions have the same calls; they differ in what they make of the bytes.
        macro_rules! exchange {
            ($host:expr) => {{
                let Some((stream, session)) = $host.as_mut() else { return false };
                let mut progress = false;
                let mut closed = false;
                match stream.read(scratch) {
                    Moved::Bytes(n) => {
                        progress = true;
                        if let Err(error) = session.handle_bytes(&scratch[..n], stick, now) {
                            tracing::warn!(%error, "the host broke the protocol");
                            closed = true;
                        }
                    }
                    Moved::Nothing => {}
                    Moved::Closed => closed = true,
                }
                progress |= session.serve(stick, now);
                if !closed {
                    match stream.write(session.outgoing(), reactor) {
                        Moved::Bytes(n) => {
                            session.consume(n);
                            progress = true;
                        }
                        Moved::Nothing => {}
                        Moved::Closed => closed = true,
                    }
                }
                (progress, closed)
            }};
        }
        let (progress, closed) = match &mut self.face {
            Kind::Usbredir { host, .. } => exchange!(host),
            Kind::Vhci { host, .. } => exchange!(host),
            Kind::Socket { wire, .. } => {
                let Some(open) = wire else { return false };
                let progress = open.serve(stick, reactor, now);
                if !open.is_closed() {
                    return progress;
                }
                if let Some(wire) = wire.take() {
                    wire.close(reactor);
                }
                // As when a process closes its handle: the stick stays as it is, until its watchdog or the next client.
                stick.handle_closed(now);
                return true;
            }
        };
        if closed {
            tracing::info!(face = self.face_name(), "the host disconnected");
            if let Kind::Usbredir { door, retry, .. } = &mut self.face {
                *retry = door.is_device().then(|| now + RETRY);
            }
            self.hang_up(reactor);
            if matches!(self.face, Kind::Vhci { .. }) {
                // Detached by hand: it stays out until somebody plugs it in.
                self.stick.unplug();
            }
            return true;
        }
        progress
    }
}

/// One end of a socket pair goes to the kernel; `None` when the port is not free yet.
fn plug_in(vhci: &Vhci, place: u32, descriptors: Descriptors) -> ncs2::error::Result<Option<OwnedFd>> {
    use ncs2::error::{Error, ErrorKind};
    let (ours, theirs) = UnixStream::pair().map_err(|e| {
        Error::new(ErrorKind::Unsupported, "attach virtual stick").detail("no socket pair").caused_by(e)
    })?;
    // The kernel takes a reference of its own; closing ours afterwards changes nothing.
    let attached = vhci.attach(place, descriptors.speed(), theirs.as_fd())?;
    Ok(attached.then(|| ours.into()))
}
