//! The in-memory transport: two lanes between a host and a virtual stick of the same process.
//!
//! Buffers are handed over, not copied. The device half sees the host's transfers and owns each from
//! [`PipeDevice::next_out`] or [`PipeDevice::next_in`] until it completes it: holding one is what NAK is on a bus.
//! A busy pipe makes no system call and allocates nothing: a wake-up is written only when the other side has armed, and
//! the host writes it once a turn: when it has polled all there is, or arms.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::lane::Lane;
use super::wake::Bell;
use super::{Completion, Direction, Rejected, Transfer, TransferError, Transport, TransportInfo, WaitOn};

/// A pipe whose ends can sleep: each has a descriptor to wait on.
///
/// Fails where the process may open no more descriptors.
pub fn pipe(info: TransportInfo) -> std::io::Result<(PipeHost, PipeDevice)> {
    Ok(join(info, Bell::with_fd()?, Bell::with_fd()?))
}

/// A pipe for simulation: both ends are driven on one thread, `wait_on` is `None`.
pub fn simulated_pipe(info: TransportInfo) -> (PipeHost, PipeDevice) {
    join(info, Bell::silent(), Bell::silent())
}

fn join(info: TransportInfo, host_bell: Bell, device_bell: Bell) -> (PipeHost, PipeDevice) {
    let shared = Arc::new(Shared {
        out_lane: Mutex::new(Lane::default()),
        in_lane: Mutex::new(Lane::default()),
        host_bell,
        device_bell,
        recall: AtomicBool::new(false),
        in_wanted: AtomicBool::new(false),
        host_gone: AtomicBool::new(false),
    });
    let host = PipeHost {
        info,
        shared: Arc::clone(&shared),
        ready: [VecDeque::new(), VecDeque::new()],
        in_first: false,
        armed: false,
        ring_due: false,
    };
    (host, PipeDevice { shared, armed: false, batches: false, ring_due: false })
}

struct Shared {
    // One lock per direction: the host may submit OUT while the device completes IN.
    out_lane: Mutex<Lane>,
    in_lane: Mutex<Lane>,
    host_bell: Bell,
    device_bell: Bell,
    /// The host has cancelled and the device may still hold transfers.
    recall: AtomicBool,
    /// The device sleeps with something to send: a posted IN transfer wakes it.
    in_wanted: AtomicBool,
    host_gone: AtomicBool,
}

impl Shared {
    fn lane(&self, direction: Direction) -> &Mutex<Lane> {
        match direction {
            Direction::Out => &self.out_lane,
            Direction::In => &self.in_lane,
        }
    }
}

/// The host's end: a [`Transport`].
pub struct PipeHost {
    info: TransportInfo,
    shared: Arc<Shared>,
    /// Completions taken out of the lanes in one go, OUT and IN; saves a lock for each but the first.
    ready: [VecDeque<Completion>; 2],
    /// Which direction `poll` serves first, so that neither starves the other.
    in_first: bool,
    armed: bool,
    /// Something was submitted since the device was last woken.
    ring_due: bool,
}

impl PipeHost {
    fn poll_direction(&mut self, direction: Direction) -> Option<Completion> {
        let ready = &mut self.ready[direction as usize];
        if ready.is_empty() {
            // Swapped, not drained: both queues keep their capacity.
            std::mem::swap(ready, &mut self.shared.lane(direction).lock().done);
        }
        ready.pop_front()
    }
}

impl PipeHost {
    /// Wakes the device for all that was submitted. One wake-up for a turn's transfers: on a shared CPU the device would
    /// else run after each of them.
    fn flush(&mut self) {
        if std::mem::take(&mut self.ring_due) {
            self.shared.device_bell.ring();
        }
    }
}

impl Transport for PipeHost {
    fn info(&self) -> &TransportInfo {
        &self.info
    }

    fn submit(&mut self, transfer: Transfer) -> Result<(), Rejected> {
        if let Err(reason) = transfer.check() {
            return Err(Rejected { transfer, reason });
        }
        let direction = transfer.direction;
        {
            let mut lane = self.shared.lane(direction).lock();
            if lane.closed {
                return Err(Rejected { transfer, reason: TransferError::Gone });
            }
            lane.submitted_bytes += transfer.range.len();
            lane.submitted.push_back(transfer);
        }
        self.ring_due |= direction == Direction::Out || self.shared.in_wanted.load(Ordering::Relaxed);
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        if self.armed {
            self.armed = false;
            self.shared.host_bell.disarm();
        }
        let (first, second) =
            if self.in_first { (Direction::In, Direction::Out) } else { (Direction::Out, Direction::In) };
        self.in_first = !self.in_first;
        let completion = match self.poll_direction(first) {
            Some(completion) => Some(completion),
            None => self.poll_direction(second),
        };
        if completion.is_none() {
            self.flush();
        }
        completion
    }

    fn arm(&mut self) -> bool {
        self.flush();
        self.armed = true;
        self.shared.host_bell.arm();
        let ready = !self.ready[0].is_empty()
            || !self.ready[1].is_empty()
            || !self.shared.out_lane.lock().done.is_empty()
            || !self.shared.in_lane.lock().done.is_empty();
        if ready {
            self.armed = false;
            self.shared.host_bell.disarm();
        }
        ready
    }

    fn wait_on(&self) -> Option<WaitOn<'_>> {
        self.shared.host_bell.fd().map(|fd| WaitOn { fd, readable: true, writable: false })
    }

    fn cancel_all(&mut self) {
        let recall = self.shared.out_lane.lock().cancel() | self.shared.in_lane.lock().cancel();
        if recall {
            self.shared.recall.store(true, Ordering::Release);
        }
        self.shared.device_bell.ring();
    }
}

impl Drop for PipeHost {
    fn drop(&mut self) {
        for lane in [&self.shared.out_lane, &self.shared.in_lane] {
            lane.lock().close();
        }
        self.shared.host_gone.store(true, Ordering::Release);
        self.shared.device_bell.ring();
    }
}

/// The stick's end.
///
/// Calling order: take and complete transfers until there are none, [`arm`](Self::arm), wait on
/// [`wait_on`](Self::wait_on) when `arm` said that there is nothing to do.
pub struct PipeDevice {
    shared: Arc<Shared>,
    armed: bool,
    /// The host is woken by `arm` only.
    batches: bool,
    ring_due: bool,
}

impl PipeDevice {
    /// Wakes this end by `call` instead of its descriptor, and the host once a turn: what is completed reaches a
    /// sleeping host with the next [`arm`](Self::arm). `call` must not block and must not use the pipe.
    pub fn served_by(&mut self, call: impl Fn() + Send + Sync + 'static) {
        self.shared.device_bell.ring_by(call);
        self.batches = true;
    }

    /// The oldest OUT transfer that was not taken yet. The device owns it, and reads `transfer.bytes()`, until
    /// [`complete_out`](Self::complete_out); to hold it is to NAK the host.
    pub fn next_out(&mut self) -> Option<Transfer> {
        self.next(Direction::Out)
    }

    /// The oldest posted IN transfer that was not taken yet. The device fills `transfer.bytes_mut()` and calls
    /// [`complete_in`](Self::complete_in); [`InWriter`](super::InWriter) does it by the rules of the bus.
    pub fn next_in(&mut self) -> Option<Transfer> {
        self.next(Direction::In)
    }

    /// Bytes of the posted IN transfers that were not taken yet.
    pub fn in_capacity(&self) -> usize {
        self.shared.in_lane.lock().submitted_bytes
    }

    /// Gives an OUT transfer back: accepted whole (`Ok`), or failed with nothing accepted. Completed out of
    /// order, it reaches the host after the older ones.
    pub fn complete_out(&mut self, transfer: Transfer, result: Result<(), TransferError>) {
        let actual = if result.is_ok() { transfer.range.len() } else { 0 };
        self.complete(Completion { transfer, actual, result });
    }

    /// Gives an IN transfer back with `actual` bytes in it, counted from the start of its range.
    pub fn complete_in(&mut self, transfer: Transfer, actual: usize, result: Result<(), TransferError>) {
        let actual = actual.min(transfer.range.len());
        self.complete(Completion { transfer, actual, result });
    }

    /// True once after the host cancelled while the device held transfers: it must complete all that it holds (with
    /// whatever result, the host sees `Cancelled`), even if it plays dead otherwise, since the host's kernel would have got them back too.
    pub fn take_recall(&mut self) -> bool {
        self.shared.recall.load(Ordering::Relaxed) && self.shared.recall.swap(false, Ordering::AcqRel)
    }

    /// Leaves the bus by surprise: what was not taken completes as [`TransferError::Gone`] at once, what the device
    /// holds when it gives it back (or drops this end), and the host can submit no more.
    pub fn disconnect(&mut self) {
        for lane in [&self.shared.out_lane, &self.shared.in_lane] {
            lane.lock().close();
        }
        self.shared.host_bell.ring();
    }

    /// The host dropped its end: nothing will come any more.
    pub fn is_closed(&self) -> bool {
        self.shared.host_gone.load(Ordering::Acquire)
    }

    /// About to wait: true when there is an OUT transfer to take, a recall, the host has gone, or, if the device
    /// `wants_in` (it has something to send), a posted IN transfer. Posted IN transfers are the normal state of an
    /// idle link, so a device with nothing to send must not be woken by them.
    pub fn arm(&mut self, wants_in: bool) -> bool {
        if std::mem::take(&mut self.ring_due) {
            self.shared.host_bell.ring();
        }
        self.armed = true;
        self.shared.in_wanted.store(wants_in, Ordering::Relaxed);
        self.shared.device_bell.arm();
        let ready = !self.shared.out_lane.lock().submitted.is_empty()
            || self.in_ready(wants_in)
            || self.shared.recall.load(Ordering::Acquire)
            || self.is_closed();
        if ready {
            self.disarm();
        }
        ready
    }

    // The lock is taken even when the answer is not wanted: it orders `in_wanted` before the host's next look.
    fn in_ready(&self, wants_in: bool) -> bool {
        let posted = !self.shared.in_lane.lock().submitted.is_empty();
        wants_in && posted
    }

    /// What to wait on; `None` for a simulated pipe.
    pub fn wait_on(&self) -> Option<WaitOn<'_>> {
        self.shared.device_bell.fd().map(|fd| WaitOn { fd, readable: true, writable: false })
    }

    fn next(&mut self, direction: Direction) -> Option<Transfer> {
        self.disarm();
        self.shared.lane(direction).lock().take()
    }

    fn complete(&mut self, completion: Completion) {
        let visible = self.shared.lane(completion.transfer.direction).lock().complete(completion);
        if visible && self.batches {
            self.ring_due = true;
        } else if visible {
            self.shared.host_bell.ring();
        }
    }

    fn disarm(&mut self) {
        if self.armed {
            self.armed = false;
            self.shared.device_bell.disarm();
        }
    }
}

impl Drop for PipeDevice {
    fn drop(&mut self) {
        for lane in [&self.shared.out_lane, &self.shared.in_lane] {
            lane.lock().abandon();
        }
        self.shared.host_bell.ring();
    }
}
