//! The device's side of USB/IP, for the kernel's own `vhci-hcd`: an ordinary desktop sees the stick without a virtual
//! machine. [`Session`] is sans-IO; [`attach`] hands one end of a socket pair to the kernel, as root.

pub(crate) mod attach;
mod packet;
#[cfg(test)]
mod tests;

use ncs2::clock::Instant;
use rustix::io::Errno;

use packet::{Incoming, Parser};

use super::outbox::Outbox;
use super::usb::{Done, ENDPOINT_IN, ENDPOINT_OUT, Outcome, Request, RequestKind, UsbDevice};
use crate::{Identity, LinkSpeed, VirtualStick};

pub(crate) use packet::PacketError;

/// One attachment: from an appearance on the bus until the stick leaves.
#[derive(Debug)]
pub(crate) struct Session {
    parser: Parser,
    usb: UsbDevice,
    out: Outbox,
}

impl Session {
    /// A device of this identity.
    pub(crate) fn new(link: LinkSpeed, identity: Identity) -> Self {
        let mut usb = UsbDevice::new(link);
        usb.appear(identity);
        Session { parser: Parser::default(), usb, out: Outbox::default() }
    }

    /// What the kernel sent. After an error the connection is of no use any more.
    pub(crate) fn handle_bytes(
        &mut self,
        bytes: &[u8],
        stick: &mut VirtualStick,
        now: Instant,
    ) -> Result<(), PacketError> {
        self.parser.handle_bytes(bytes);
        while let Some((sequence, packet)) = self.parser.poll()? {
            let kind = match packet {
                Incoming::Unlink { sequence: victim } => {
                    self.unlink(sequence, victim);
                    continue;
                }
                Incoming::Control { setup, data } => RequestKind::Control { setup, data },
                Incoming::Out { endpoint: ENDPOINT_OUT, data } => RequestKind::Out { data },
                Incoming::In { endpoint: ENDPOINT_IN, length } => RequestKind::In { length },
                Incoming::Out { endpoint, .. } | Incoming::In { endpoint, .. } => {
                    RequestKind::Elsewhere { endpoint }
                }
            };
            self.usb.submit(Request { id: u64::from(sequence), kind }, stick, now);
            self.flush();
        }
        Ok(())
    }

    /// Moves data between kernel and stick; true when some moved.
    pub(crate) fn serve(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        let progress = self.usb.serve(stick, self.out.has_room(), now);
        self.flush();
        progress
    }

    /// What to send; say how much went with [`Self::consume`].
    pub(crate) fn outgoing(&self) -> &[u8] {
        self.out.outgoing()
    }

    pub(crate) fn consume(&mut self, n: usize) {
        self.out.consume(n);
    }

    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.usb.poll_timeout(now)
    }

    /// Bulk requests of this connection that ended.
    pub(crate) fn transfers(&self) -> u64 {
        self.usb.transfers()
    }

    /// Exactly one answer: the kernel waits for it, and gets no other for the request that was ended.
    fn unlink(&mut self, sequence: u32, victim: u32) {
        let ended = self.usb.cancel(u64::from(victim));
        let mut others = Vec::new();
        while let Some(done) = self.usb.poll_done() {
            if !(ended && done.id == u64::from(victim)) {
                others.push(done);
            }
        }
        for done in &others {
            self.tell(done);
        }
        let status = if ended { -Errno::CONNRESET.raw_os_error() } else { 0 };
        packet::unlinked(self.out.end(), sequence, status);
    }

    fn flush(&mut self) {
        while let Some(done) = self.usb.poll_done() {
            self.tell(&done);
        }
    }

    fn tell(&mut self, done: &Done) {
        let errno = match done.outcome {
            Outcome::Complete => None,
            Outcome::Cancelled => Some(Errno::CONNRESET),
            Outcome::Stalled => Some(Errno::PIPE),
            Outcome::Overflow => Some(Errno::OVERFLOW),
            Outcome::Refused => Some(Errno::PROTO),
        };
        let status = errno.map_or(0, |errno| -errno.raw_os_error());
        packet::submitted(self.out.end(), done.id as u32, status, done.actual, &done.data);
    }
}
