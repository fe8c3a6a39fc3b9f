//! A stick as a USB device, sans-IO: endpoint 0, two bulk pipes, pending requests, cancels. The faces that a kernel
//! sees (usb-redir, vhci) translate their packets into [`Request`]s and its [`Done`]s back.
//!
//! Calling order: [`UsbDevice::appear`] and [`UsbDevice::leave`] follow the stick on the bus; [`UsbDevice::submit`],
//! [`UsbDevice::cancel`] and [`UsbDevice::reset`] as the host says; [`UsbDevice::serve`] after anything happened or when
//! [`UsbDevice::poll_timeout`] has come; then [`UsbDevice::poll_done`] until it has nothing.

mod control;
mod descriptors;
#[cfg(test)]
pub(super) mod tests;

use std::collections::VecDeque;

use ncs2::clock::Instant;

pub(crate) use control::Setup;
pub(crate) use descriptors::{BusSpeed, Descriptors, ENDPOINT_IN, ENDPOINT_OUT};

use crate::{Identity, LinkSpeed, VirtualStick};

/// Bytes of OUT requests that may wait, and of one IN request. usbfs holds 16 MB for all devices by default; this
/// leaves room for a raised limit and bounds what a hostile host can make us keep.
pub(crate) const MAX_PENDING_BYTES: usize = 256 << 20;
/// Requests that may wait on one pipe.
pub(crate) const MAX_PENDING: usize = 16 * 1024;

/// What a host asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Request {
    /// The host's number of it.
    pub(crate) id: u64,
    pub(crate) kind: RequestKind,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum RequestKind {
    /// Endpoint 0. `data` is what an OUT request carries.
    Control { setup: Setup, data: Vec<u8> },
    /// To endpoint 0x01. The stick sees a stream of bytes: where a request ends means nothing to it, so a zero-length
    /// packet behind it does not either.
    Out { data: Vec<u8> },
    /// From endpoint 0x81, at most this many bytes.
    In { length: usize },
    /// To or from an endpoint that there is not.
    Elsewhere { endpoint: u8 },
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Complete,
    Cancelled,
    Stalled,
    /// The stick sent a packet longer than what was left of the request.
    Overflow,
    /// No such endpoint, not configured, or too much is waiting.
    Refused,
}

/// A request that ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Done {
    pub(crate) id: u64,
    pub(crate) endpoint: u8,
    pub(crate) outcome: Outcome,
    /// What an IN request brought.
    pub(crate) data: Vec<u8>,
    /// Bytes moved, either way.
    pub(crate) actual: usize,
    /// The setup packet, for faces whose answers repeat it.
    pub(crate) setup: Option<Setup>,
}

#[derive(Debug)]
struct Sent {
    id: u64,
    data: Vec<u8>,
    taken: usize,
    due: Instant,
}

#[derive(Debug)]
struct Posted {
    id: u64,
    length: usize,
    data: Vec<u8>,
}

/// The device as the bus sees it.
#[derive(Debug)]
pub(crate) struct UsbDevice {
    link: LinkSpeed,
    descriptors: Option<Descriptors>,
    configuration: u8,
    out: VecDeque<Sent>,
    out_bytes: usize,
    posted: VecDeque<Posted>,
    done: VecDeque<Done>,
    transfers: u64,
}

impl UsbDevice {
    pub(crate) fn new(link: LinkSpeed) -> Self {
        UsbDevice {
            link,
            descriptors: None,
            configuration: 0,
            out: VecDeque::new(),
            out_bytes: 0,
            posted: VecDeque::new(),
            done: VecDeque::new(),
            transfers: 0,
        }
    }

    // --- getters ---------------------------------------------------------------------------------------------------

    /// What it is; `None` while it is off the bus.
    pub(crate) fn descriptors(&self) -> Option<Descriptors> {
        self.descriptors
    }

    pub(crate) fn configuration(&self) -> u8 {
        self.configuration
    }

    /// Bulk requests that ended, either way.
    pub(crate) fn transfers(&self) -> u64 {
        self.transfers
    }

    // --- inputs ----------------------------------------------------------------------------------------------------

    /// From the next appearance on it has this link.
    pub(crate) fn set_link(&mut self, link: LinkSpeed) {
        self.link = link;
    }

    /// It is on the bus now.
    pub(crate) fn appear(&mut self, identity: Identity) {
        self.leave();
        self.descriptors = Some(Descriptors::new(identity, &self.link));
    }

    /// It left: requests that are pending end with the device, unanswered.
    pub(crate) fn leave(&mut self) {
        self.descriptors = None;
        self.configuration = 0;
        self.forget();
        self.done.clear();
    }

    /// The host resets the port. Pending requests are the host's to give up; the boot ROM starts over.
    pub(crate) fn reset(&mut self, stick: &mut VirtualStick, now: Instant) {
        self.configuration = 0;
        self.forget();
        stick.handle_closed(now);
    }

    pub(crate) fn submit(&mut self, request: Request, stick: &mut VirtualStick, now: Instant) {
        let Request { id, kind } = request;
        let Some(descriptors) = self.descriptors else { return };
        let refused = |endpoint| Done {
            id,
            endpoint,
            outcome: Outcome::Refused,
            data: Vec::new(),
            actual: 0,
            setup: None,
        };
        let ready = self.configuration != 0;
        match kind {
            RequestKind::Control { setup, data } => {
                let done = self.control(id, setup, &data, descriptors, stick, now);
                self.done.push_back(done);
            }
            RequestKind::Out { data } => {
                if !ready
                    || self.out.len() >= MAX_PENDING
                    || self.out_bytes.saturating_add(data.len()) > MAX_PENDING_BYTES
                {
                    self.done.push_back(refused(ENDPOINT_OUT));
                    return;
                }
                let due = stick.out_arrival(data.len(), now);
                self.out_bytes += data.len();
                self.out.push_back(Sent { id, data, taken: 0, due });
            }
            RequestKind::In { length } => {
                if !ready || self.posted.len() >= MAX_PENDING || length > MAX_PENDING_BYTES {
                    self.done.push_back(refused(ENDPOINT_IN));
                    return;
                }
                self.posted.push_back(Posted { id, length, data: Vec::new() });
            }
            RequestKind::Elsewhere { endpoint } => self.done.push_back(refused(endpoint)),
        }
    }

    /// Ends a pending request with [`Outcome::Cancelled`]; false when it has ended already, and then its answer
    /// is on the way and there is no other.
    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        if let Some(at) = self.out.iter().position(|sent| sent.id == id) {
            let Some(sent) = self.out.remove(at) else { return false };
            self.out_bytes -= sent.data.len();
            self.push(id, ENDPOINT_OUT, Outcome::Cancelled, Vec::new(), sent.taken);
            return true;
        }
        if let Some(at) = self.posted.iter().position(|posted| posted.id == id) {
            let Some(posted) = self.posted.remove(at) else { return false };
            let actual = posted.data.len();
            self.push(id, ENDPOINT_IN, Outcome::Cancelled, posted.data, actual);
            return true;
        }
        false
    }

    /// Moves what can be moved now between host and stick. `room` false holds back what the stick has to say, when
    /// the host does not read.
    pub(crate) fn serve(&mut self, stick: &mut VirtualStick, room: bool, now: Instant) -> bool {
        // A request that the stick took may have been its last: what is behind it in the queue is for nobody.
        let mut progress = self.serve_out(stick, now);
        if room {
            progress |= self.serve_in(stick, now);
        }
        progress
    }

    // --- outputs ---------------------------------------------------------------------------------------------------

    pub(crate) fn poll_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// When an OUT request will have crossed the wire.
    pub(crate) fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        // One that is due and not taken waits for a reader, not for time.
        self.out.front().map(|sent| sent.due).filter(|due| *due > now)
    }

    // ---------------------------------------------------------------------------------------------------------------

    fn serve_out(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        let mut progress = false;
        let identity = self.descriptors.map(|d| d.identity());
        while let Some(sent) = self.out.front_mut().filter(|sent| sent.due <= now) {
            if stick.identity() != identity {
                break;
            }
            let taken = stick.handle_out(&sent.data[sent.taken..], now);
            sent.taken += taken;
            progress |= taken > 0;
            if sent.taken < sent.data.len() || stick.faults().hung {
                break;
            }
            if let Some(sent) = self.out.pop_front() {
                self.out_bytes -= sent.data.len();
                self.push(sent.id, ENDPOINT_OUT, Outcome::Complete, Vec::new(), sent.taken);
                progress = true;
            }
        }
        progress
    }

    /// Packet by packet into the posted requests: a short packet ends a request, a full one ends, whole packets that
    /// end before it is full leave it open, a packet that does not fit is lost with [`Outcome::Overflow`].
    fn serve_in(&mut self, stick: &mut VirtualStick, now: Instant) -> bool {
        let Some(descriptors) = self.descriptors else { return false };
        if stick.identity() != Some(descriptors.identity()) {
            return false;
        }
        let packet = usize::from(descriptors.max_packet_bytes());
        let mut progress = false;
        while let (Some(message), Some(posted)) = (stick.poll_in(now), self.posted.front_mut()) {
            progress = true;
            let space = posted.length - posted.data.len();
            let whole = (space / packet * packet).min(message.len() / packet * packet);
            let (consumed, outcome) = if whole > 0 {
                posted.data.extend_from_slice(&message[..whole]);
                (whole, (whole == space).then_some(Outcome::Complete))
            } else {
                // The short last packet, an empty one, or one that is longer than the space.
                let last = message.len().min(packet);
                let fits = last.min(space);
                posted.data.extend_from_slice(&message[..fits]);
                (last, Some(if last > space { Outcome::Overflow } else { Outcome::Complete }))
            };
            stick.consume_in(consumed);
            if let Some(outcome) = outcome
                && let Some(posted) = self.posted.pop_front()
            {
                let actual = posted.data.len();
                self.push(posted.id, ENDPOINT_IN, outcome, posted.data, actual);
            }
        }
        progress
    }

    fn push(&mut self, id: u64, endpoint: u8, outcome: Outcome, data: Vec<u8>, actual: usize) {
        self.transfers += 1;
        self.done.push_back(Done { id, endpoint, outcome, data, actual, setup: None });
    }

    fn forget(&mut self) {
        self.out.clear();
        self.out_bytes = 0;
        self.posted.clear();
    }
}
