//! A stick for another process over a Unix socket (`--sim unix:PATH`): a line to say which stick, then the frames of
//! [`ncs2::transport::SocketDevice`]. The other half is `client.rs`.
//!
//! The line protocol is that of the control socket (`list`, `crash N`, …) and, on this face, `connect N`: the stick is
//! booted afresh, then comes `ok`, and from there on the connection is the stick's two pipes.

use std::os::fd::{AsFd, OwnedFd};

use ncs2::clock::Instant;
use ncs2::transport::{DeviceEnd, Reactor, SocketDevice, Token};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::carrier::Carrier;
use crate::{LinkSpeed, VirtualStick};

/// The stick's end of one connection, watched by a reactor.
pub(crate) struct Wire {
    carrier: Carrier,
    token: Token,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("token", &self.token).finish_non_exhaustive()
    }
}

impl Wire {
    pub(crate) fn new(socket: OwnedFd, link: &LinkSpeed, reactor: &mut Reactor) -> std::io::Result<Self> {
        let end = DeviceEnd::from(SocketDevice::new(socket)?);
        let wait = end.wait_on().ok_or(std::io::ErrorKind::Unsupported)?;
        let token = reactor.register(wait.fd, wait.interest())?;
        Ok(Wire { carrier: Carrier::new(end, link.max_packet_bytes), token })
    }

    /// The stick left the bus: what the host posted ends.
    pub(crate) fn close(self, reactor: &mut Reactor) {
        self.carrier.close();
        reactor.deregister(self.token);
    }

    /// Ends it without a word.
    pub(crate) fn cut(self, reactor: &mut Reactor) {
        reactor.deregister(self.token);
    }

    /// True while somebody is at the other end.
    pub(crate) fn has_peer(&self) -> bool {
        self.carrier.end().wait_on().is_some_and(|wait| has_peer(wait.fd))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.carrier.is_closed()
    }

    /// Does all that can be done now, and says to the reactor what it waits for.
    pub(crate) fn serve(&mut self, stick: &mut VirtualStick, reactor: &mut Reactor, now: Instant) -> bool {
        if self.carrier.serve(stick, now) || self.carrier.arm(stick, now) {
            return true;
        }
        if let Some(wait) = self.carrier.end().wait_on()
            && let Err(error) = reactor.set_interest(self.token, wait.interest())
        {
            tracing::error!(%error, "a connection cannot be watched any more");
        }
        false
    }

    /// When [`Self::serve`] is due for what crosses the wire.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.carrier.poll_timeout(now)
    }
}

/// True while somebody is at the other end of this socket.
pub(crate) fn has_peer(socket: impl AsFd) -> bool {
    let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
    let mut sockets = [PollFd::new(&socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut sockets, Some(&now)).is_ok() && !sockets[0].revents().intersects(gone)
}

/// What the server says when a stick is ready, the rest of the `ok` line.
pub(crate) fn ready_line(link: &LinkSpeed) -> String {
    format!("ok {} {}\n", link.max_packet_bytes, link.speed_mbps)
}
