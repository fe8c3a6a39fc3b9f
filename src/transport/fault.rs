//! Breaks a transport on purpose, the same way each time for the same seed.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::{
    Buffer, Completion, Direction, MappedMemory, Rejected, Transfer, TransferError, Transport, TransportInfo,
    WaitOn,
};
use crate::clock::{Clock, Instant};

/// What is done to a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Its completion is held back this long (and those behind it, which keep their order).
    Delay(Duration),
    /// It never reaches the other side and fails so.
    Fail(TransferError),
    /// One bit of it, chosen by the seed, arrives flipped. The host's own OUT buffer is not touched.
    Corrupt,
    /// Only the first bytes pass, and the completion says so without an error.
    Truncate(usize),
    /// OUT: reported as sent, never arrives. IN: what came is lost, the host sees an empty transfer.
    Drop,
    /// The stick leaves the bus at this transfer: it and all others end as `Gone`.
    Cut,
}

/// Which of the matching transfers a rule hits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum When {
    /// The n-th, counted from 1.
    Nth(u64),
    /// Every n-th.
    Every(u64),
    /// Each with this probability, 0 to 1.
    Chance(f64),
}

/// A predicate over submitted transfers and what happens to those it hits.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FaultRule {
    /// Only this direction; `None` for both.
    pub direction: Option<Direction>,
    /// Only transfers of at least this many bytes (IN: posted).
    pub min_bytes: usize,
    /// Which of them.
    pub when: When,
    /// What happens.
    pub fault: Fault,
}

/// A fault that happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fired {
    /// Number of the transfer, counted from 1 over both directions.
    pub transfer: u64,
    /// Its direction.
    pub direction: Direction,
    /// What was done.
    pub fault: Fault,
}

/// Wraps a transport; each transfer is hit by the first rule that matches and fires.
pub struct FaultInjector<T> {
    inner: T,
    rules: Vec<(FaultRule, u64)>,
    random: u64,
    clock: Arc<dyn Clock>,
    submitted: u64,
    /// OUT and IN: what the host waits for, in its order.
    lanes: [VecDeque<Entry>; 2],
    fired: Vec<Fired>,
    cut: bool,
    alarm: Option<Alarm>,
}

struct Entry {
    fault: Option<Fault>,
    /// Chosen at submission, so that the draw does not depend on timing.
    draw: u64,
    /// The host's transfer, while another one stands in for it.
    original: Option<Transfer>,
    done: Option<Completion>,
    due: Instant,
}

/// One descriptor for two reasons to wake: the inner transport's and the end of a delay.
struct Alarm {
    epoll: OwnedFd,
    timer: OwnedFd,
    watched: Option<(bool, bool)>,
}

impl Alarm {
    fn new() -> rustix::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
        Ok(Alarm { epoll, timer, watched: None })
    }

    fn watch(&mut self, on: &WaitOn<'_>) -> rustix::io::Result<()> {
        let wanted = (on.readable, on.writable);
        if self.watched == Some(wanted) {
            return Ok(());
        }
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN, on.readable);
        flags.set(epoll::EventFlags::OUT, on.writable);
        let data = epoll::EventData::new_u64(0);
        match self.watched {
            None => epoll::add(&self.epoll, on.fd, data, flags)?,
            Some(_) => epoll::modify(&self.epoll, on.fd, data, flags)?,
        }
        self.watched = Some(wanted);
        Ok(())
    }

    fn set(&self, after: Duration) -> rustix::io::Result<()> {
        // A zero time would disarm the timer.
        let after = Timespec::try_from(after.max(Duration::from_nanos(1)))
            .unwrap_or(Timespec { tv_sec: 3600, tv_nsec: 0 });
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: after };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).map(drop)
    }
}

impl<T: Transport> FaultInjector<T> {
    /// Applies `rules` to `inner`; everything drawn by chance comes from `seed`, delays are measured by `clock`.
    /// Fails where delays cannot be waited for: no descriptors left.
    pub fn new(
        inner: T,
        seed: u64,
        rules: impl IntoIterator<Item = FaultRule>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let rules: Vec<_> = rules.into_iter().map(|rule| (rule, 0)).collect();
        let delays = rules.iter().any(|(rule, _)| matches!(rule.fault, Fault::Delay(_)));
        let alarm = if delays && inner.wait_on().is_some() { Some(Alarm::new()?) } else { None };
        let mut injector = FaultInjector {
            inner,
            rules,
            random: seed,
            clock,
            submitted: 0,
            lanes: [VecDeque::new(), VecDeque::new()],
            fired: Vec::new(),
            cut: false,
            alarm,
        };
        injector.watch_inner()?;
        Ok(injector)
    }

    /// What was done so far, in order.
    pub fn fired(&self) -> &[Fired] {
        &self.fired
    }

    /// When the next delayed completion is due, for owners that simulate time.
    pub fn next_due(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(|lane| lane.front()).filter(|e| e.done.is_some()).map(|e| e.due).min()
    }

    fn watch_inner(&mut self) -> rustix::io::Result<()> {
        match (&mut self.alarm, self.inner.wait_on()) {
            (Some(alarm), Some(on)) => alarm.watch(&on),
            _ => Ok(()),
        }
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Drawn once per transfer and rule, whether needed or not: one rule's chance does not depend on another's.
    fn choose(&mut self, direction: Direction, bytes: usize) -> Option<Fault> {
        let mut chosen = None;
        for at in 0..self.rules.len() {
            let draw = self.next_random();
            let (rule, count) = &mut self.rules[at];
            if rule.direction.is_some_and(|d| d != direction) || bytes < rule.min_bytes {
                continue;
            }
            *count += 1;
            let hit = match rule.when {
                When::Nth(n) => *count == n,
                When::Every(n) => n > 0 && count.is_multiple_of(n),
                When::Chance(p) => ((draw >> 11) as f64) < p * (1u64 << 53) as f64,
            };
            if hit && chosen.is_none() {
                chosen = Some(rule.fault);
            }
        }
        chosen
    }

    /// What the other side gets in place of the host's OUT transfer.
    fn stand_in(transfer: &Transfer, fault: Fault, draw: u64) -> Option<Transfer> {
        let bytes = transfer.bytes();
        let bytes = match fault {
            Fault::Truncate(len) if len < bytes.len() => &bytes[..len],
            Fault::Corrupt if !bytes.is_empty() => bytes,
            _ => return None,
        };
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer.as_mut_slice()?.copy_from_slice(bytes);
        let mut stand_in = Transfer::whole(Direction::Out, buffer, transfer.token);
        if fault == Fault::Corrupt {
            flip(stand_in.bytes_mut(), draw);
        }
        Some(stand_in)
    }

    /// Takes what the inner transport has finished.
    fn pump(&mut self) {
        while let Some(mut completion) = self.inner.poll() {
            let lane = &mut self.lanes[completion.transfer.direction as usize];
            // The inner transport keeps the order too: it is the oldest that it has.
            let Some(entry) = lane.iter_mut().find(|e| e.done.is_none()) else { continue };
            if let Some(original) = entry.original.take() {
                completion.transfer = original;
            }
            if self.cut {
                completion.result = Err(TransferError::Gone);
                completion.actual = 0;
            } else if completion.result.is_ok() {
                let received = completion.transfer.direction == Direction::In;
                match entry.fault {
                    Some(Fault::Delay(by)) => entry.due = self.clock.now() + by,
                    Some(Fault::Corrupt) if received => {
                        let actual = completion.actual;
                        flip(
                            completion.transfer.bytes_mut().get_mut(..actual).unwrap_or_default(),
                            entry.draw,
                        );
                    }
                    Some(Fault::Truncate(len)) if received => completion.actual = completion.actual.min(len),
                    Some(Fault::Drop) if received => completion.actual = 0,
                    _ => {}
                }
            }
            entry.done = Some(completion);
        }
    }

    fn ready(&self, lane: usize) -> bool {
        self.lanes[lane].front().is_some_and(|e| e.done.is_some() && (self.cut || e.due <= self.clock.now()))
    }
}

fn flip(bytes: &mut [u8], draw: u64) {
    if !bytes.is_empty() {
        let bit = (draw % (bytes.len() as u64 * 8)) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

impl<T: Transport> Transport for FaultInjector<T> {
    fn info(&self) -> &TransportInfo {
        self.inner.info()
    }

    fn submit(&mut self, transfer: Transfer) -> Result<(), Rejected> {
        if self.cut {
            return Err(Rejected { transfer, reason: TransferError::Gone });
        }
        if let Err(reason) = transfer.check() {
            return Err(Rejected { transfer, reason });
        }
        let direction = transfer.direction;
        // Counted only when accepted: how often a full transport refuses is a matter of timing.
        let before = (self.random, self.rules.clone());
        let fault = self.choose(direction, transfer.range.len());
        let draw = self.next_random();
        let mut entry = Entry { fault, draw, original: None, done: None, due: Instant::ZERO };
        let local = match fault {
            Some(Fault::Fail(reason)) => Some((0, Err(reason))),
            Some(Fault::Drop) if direction == Direction::Out => Some((transfer.range.len(), Ok(()))),
            Some(Fault::Cut) => Some((0, Err(TransferError::Gone))),
            _ => None,
        };
        if let Some((actual, result)) = local {
            entry.done = Some(Completion { transfer, actual, result });
        } else {
            let stand_in = match (direction, fault) {
                (Direction::Out, Some(fault)) => Self::stand_in(&transfer, fault, draw),
                _ => None,
            };
            let sent = match stand_in {
                Some(stand_in) => {
                    entry.original = Some(transfer);
                    self.inner.submit(stand_in)
                }
                None => self.inner.submit(transfer),
            };
            if let Err(mut rejected) = sent {
                (self.random, self.rules) = before;
                if let Some(original) = entry.original.take() {
                    rejected.transfer = original;
                }
                return Err(rejected);
            }
        }
        self.submitted += 1;
        self.lanes[direction as usize].push_back(entry);
        if let Some(fault) = fault {
            self.fired.push(Fired { transfer: self.submitted, direction, fault });
        }
        if fault == Some(Fault::Cut) {
            self.cut = true;
            self.inner.cancel_all();
        }
        Ok(())
    }

    fn poll(&mut self) -> Option<Completion> {
        self.pump();
        let lane = (0..2).find(|&lane| self.ready(lane))?;
        self.lanes[lane].pop_front()?.done
    }

    fn arm(&mut self) -> bool {
        let inner = self.inner.arm();
        if let Some(alarm) = &self.alarm {
            // Clears an alarm that has rung; EAGAIN when it has not.
            let _ = rustix::io::read(alarm.timer.as_fd(), &mut [0u8; 8]);
        }
        if inner || self.ready(0) || self.ready(1) {
            return true;
        }
        let due = self.next_due();
        if let (Some(alarm), Some(due)) = (&self.alarm, due) {
            // Without an alarm nothing would end the wait: better a busy turn.
            if alarm.set(due - self.clock.now()).is_err() {
                return true;
            }
        }
        self.watch_inner().is_err()
    }

    fn wait_on(&self) -> Option<WaitOn<'_>> {
        match &self.alarm {
            Some(alarm) => Some(WaitOn { fd: alarm.epoll.as_fd(), readable: true, writable: false }),
            None => self.inner.wait_on(),
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after()
    }

    fn memory(&self) -> Option<&Arc<MappedMemory>> {
        self.inner.memory()
    }

    fn cancel_all(&mut self) {
        self.inner.cancel_all();
        // A delay ends too: nothing may be waited for after a cancel.
        for entry in self.lanes.iter_mut().flatten() {
            entry.due = Instant::ZERO;
            entry.fault = None;
        }
    }
}
