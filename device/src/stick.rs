//! One virtual stick, sans-IO: no thread, no clock, no descriptor of its own.
//!
//! Calling order for a face: [`VirtualStick::handle_out`] with what the host sends (however cut) and
//! [`VirtualStick::handle_timeout`] when [`VirtualStick::poll_timeout`] has come; after either, until they have nothing:
//! [`VirtualStick::poll_work`] (give it back with [`VirtualStick::handle_work_done`]),
//! [`VirtualStick::poll_in`] with [`VirtualStick::consume_in`], [`VirtualStick::poll_bus_event`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::transport::Direction;
use ncs2::wire::ThrottleLevel;

use crate::boot_rom::{BootRom, Booted};
use crate::config::Config;
use crate::fault_plan::{FaultKind, Point, Script, Way};
use crate::firmware::Firmware;
use crate::graphs::GraphStats;
use crate::heat::Heat;
use crate::hub::Hub;
use crate::link::Violations;
use crate::tape::Tape;
use crate::work::Work;
use crate::{Timing, VirtualStats};

/// What the stick is on the bus.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Identity {
    /// 03e7:2485, high speed, takes a firmware image.
    Unbooted,
    /// 03e7:f63b, speaks XLink.
    Booted,
}

/// What happened on the bus, on the stick's own port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BusEvent {
    /// It left: all transfers end.
    Left,
    /// It is there.
    Appeared(Identity),
}

#[derive(Debug)]
enum State {
    Unplugged,
    /// Between two identities.
    Away {
        until: Instant,
        then: Next,
    },
    Rom(BootRom),
    Up(Box<Firmware>),
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Unbooted,
    Booted { watchdog: bool },
}

/// Faults that last until they are taken back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    /// Dead but on the bus: takes nothing, sends nothing.
    pub hung: bool,
    /// Sends nothing; takes all.
    pub mute: bool,
    /// Computes, but keeps the results.
    pub hold_results: bool,
}

/// A virtual stick.
#[derive(Debug)]
pub struct VirtualStick {
    config: Arc<Config>,
    state: State,
    heat: Heat,
    faults: Faults,
    events: VecDeque<BusEvent>,
    epoch: u64,
    /// Of former power cycles.
    past: GraphStats,
    resets: u64,
    hub: Option<(Arc<Hub>, usize)>,
    script: Option<Script>,
    /// Bytes of endpoint 0x01 since it appeared.
    received: u64,
    /// Bytes to go on a pipe until it breaks, and how.
    trap: Option<(Way, u64, FaultKind)>,
    tape: Option<Tape>,
    /// How often it was pulled out.
    unplugs: u32,
}

impl VirtualStick {
    /// A stick that is not plugged in.
    pub fn new(config: Arc<Config>, now: Instant) -> Self {
        VirtualStick {
            heat: Heat::new(config.profile.heat, now),
            config,
            state: State::Unplugged,
            faults: Faults::default(),
            events: VecDeque::new(),
            epoch: 0,
            past: GraphStats { inferences: 0, busy: Duration::ZERO, paced: true },
            resets: 0,
            hub: None,
            script: None,
            received: 0,
            trap: None,
            tape: None,
            unplugs: 0,
        }
    }

    // --- getters ---------------------------------------------------------------------------------------------------

    /// What it is on the bus; `None` while it is away or unplugged.
    pub fn identity(&self) -> Option<Identity> {
        match self.state {
            State::Rom(_) => Some(Identity::Unbooted),
            State::Up(_) => Some(Identity::Booted),
            State::Away { .. } | State::Unplugged => None,
        }
    }

    /// True when it is in a port.
    pub fn is_plugged(&self) -> bool {
        !matches!(self.state, State::Unplugged)
    }

    /// Counters since it was made, resets included.
    pub fn stats(&self) -> VirtualStats {
        let mut sum = self.past;
        if let State::Up(firmware) = &self.state {
            add(&mut sum, firmware.graphs.stats());
        }
        VirtualStats { inferences: sum.inferences, busy: sum.busy, paced: sum.paced }
    }

    /// DRAM of graphs and FIFOs.
    pub fn used_bytes(&self) -> u64 {
        match &self.state {
            State::Up(firmware) => firmware.graphs.used_bytes(),
            _ => 0,
        }
    }

    /// Temperature and level, assumed.
    pub fn heat(&self) -> (f64, ThrottleLevel) {
        (self.heat.celsius(), self.heat.level())
    }

    /// What the host did against the protocol since boot.
    pub fn violations(&self) -> Violations {
        match &self.state {
            State::Up(firmware) => firmware.link.violations,
            _ => Violations::default(),
        }
    }

    /// Times it left the bus by itself or by RESET.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// Bytes that the host sent since the stick appeared as what it is.
    pub fn received_bytes(&self) -> u64 {
        self.received
    }

    /// What it is made of.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// Faults in force.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    // --- commands --------------------------------------------------------------------------------------------------

    /// Behind a hub that it shares with others, as number `n` of them; from its next boot on.
    pub fn join_hub(&mut self, hub: Arc<Hub>, n: usize) {
        self.hub = Some((hub, n));
    }

    /// In the place of another, it follows the same plan onto the same tape behind the same hub.
    pub fn take_place_of(&mut self, other: VirtualStick) {
        (self.hub, self.script, self.tape) = (other.hub, other.script, other.tape);
    }

    /// Breaks by a plan from now on.
    pub fn follow(&mut self, script: Script) {
        if let State::Up(firmware) = &mut self.state {
            firmware.graphs.script = Some(script.clone());
        }
        self.script = Some(script);
    }

    /// Writes down all that crosses its XLink pipes from now on.
    pub fn record(&mut self, tape: Tape) {
        self.tape = Some(tape);
    }

    /// Into its port: it appears unbooted.
    pub fn plug(&mut self) {
        if !self.is_plugged() {
            self.appear(Next::Unbooted, Instant::ZERO);
        }
    }

    /// How often it was pulled out of its port: whoever waits for it may have missed it.
    pub(crate) fn unplugs(&self) -> u32 {
        self.unplugs
    }

    /// Out of its port, at once.
    pub fn unplug(&mut self) {
        if self.identity().is_some() {
            self.events.push_back(BusEvent::Left);
        }
        self.leave_state();
        self.state = State::Unplugged;
        self.unplugs += 1;
        self.faults = Faults::default();
        self.trap = None;
    }

    /// Power-cycles it into the booted identity without an image, for an in-process port. It appears after the
    /// profile's start time (at once with zero timing), if it is plugged in.
    pub fn start_booted(&mut self, watchdog: bool, now: Instant) {
        if !self.is_plugged() {
            return;
        }
        if self.identity().is_some() {
            self.events.push_back(BusEvent::Left);
        }
        self.leave_state();
        let delay = self.model_time(self.config.profile.boot.start_ms);
        let (then, until) = self.boot_fault(Next::Booted { watchdog }, now + delay);
        self.state = State::Away { until, then };
        self.handle_timeout(now);
    }

    /// Crashes: leaves the bus and comes back unbooted.
    pub fn crash(&mut self, now: Instant) {
        if self.identity().is_some() {
            self.go_away(Next::Unbooted, now);
        }
    }

    /// Sets the faults.
    pub fn set_faults(&mut self, faults: Faults, now: Instant) {
        self.faults = faults;
        if let State::Up(firmware) = &mut self.state {
            firmware.graphs.hold_results = faults.hold_results;
        }
        self.handle_timeout(now);
    }

    /// Does [`FaultKind::Unplug`] or [`FaultKind::Hang`] to it as soon as so many more bytes have moved on a pipe, in the
    /// middle of whatever that is. OUT is cut at the byte, IN at the packet. One at a time; it survives a change of identity.
    pub fn break_after(&mut self, way: Way, bytes: u64, kind: FaultKind) {
        self.trap = Some((way, bytes, kind));
        self.moved(way, 0);
    }

    // --- inputs ----------------------------------------------------------------------------------------------------

    /// When an OUT transfer that starts now will have crossed the wire: hand its bytes over then.
    pub fn out_arrival(&mut self, len: usize, now: Instant) -> Instant {
        match &mut self.state {
            State::Up(firmware) => firmware.link.out_arrival(len, now),
            _ => now,
        }
    }

    /// Bytes of endpoint 0x01. Returns how many it took; it takes no more while too much waits to be read (NAK).
    pub fn handle_out(&mut self, bytes: &[u8], now: Instant) -> usize {
        if self.faults.hung {
            return 0;
        }
        let bytes = match self.trap {
            Some((Way::Out, left, _)) => {
                &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))]
            }
            _ => bytes,
        };
        let taken = self.take_out(bytes, now);
        self.received += taken as u64;
        self.moved(Way::Out, taken);
        taken
    }

    fn take_out(&mut self, bytes: &[u8], now: Instant) -> usize {
        let booted = match &mut self.state {
            State::Rom(rom) => rom.handle_out(bytes, now),
            State::Up(firmware) => {
                let taken = firmware.handle_out(bytes, &mut self.heat, now);
                if let Some(tape) = &mut self.tape {
                    tape.moved(Direction::Out, &bytes[..taken]);
                }
                self.break_down(now);
                return taken;
            }
            State::Away { .. } | State::Unplugged => None,
        };
        if let Some(booted) = booted {
            self.boot(booted, now);
        }
        bytes.len()
    }

    /// The host closed its handle.
    pub fn handle_closed(&mut self, now: Instant) {
        if let State::Rom(rom) = &mut self.state
            && let Some(booted) = rom.handle_closed()
        {
            self.boot(booted, now);
        }
    }

    /// Computing is done. What was begun before a reset is dropped.
    pub fn handle_work_done(&mut self, work: Work, now: Instant) {
        if work.epoch == self.epoch
            && let State::Up(firmware) = &mut self.state
        {
            firmware.handle_work_done(work, &mut self.heat, now);
        }
    }

    /// Time has come to `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.break_down(now);
        if self.faults.hung {
            return;
        }
        match &mut self.state {
            State::Away { until, then } if *until <= now => {
                let then = *then;
                self.appear(then, now);
            }
            State::Rom(rom) => {
                if let Some(booted) = rom.handle_timeout(now) {
                    self.boot(booted, now);
                }
            }
            State::Up(firmware) => {
                let leaves = firmware.handle_timeout(&mut self.heat, now);
                if leaves {
                    self.go_away(Next::Unbooted, now);
                }
            }
            _ => {}
        }
    }

    // --- outputs ---------------------------------------------------------------------------------------------------

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let planned = self.script.as_ref().and_then(Script::poll_timeout);
        if self.faults.hung {
            return planned;
        }
        let own = match &mut self.state {
            State::Away { until, .. } => Some(*until),
            State::Rom(rom) => rom.poll_timeout(),
            State::Up(firmware) => firmware.poll_timeout(now),
            State::Unplugged => None,
        };
        own.into_iter().chain(planned).min()
    }

    /// What is left of the next IN transfer. A header is one transfer, a payload another (1 MiB at most); empty is a
    /// zero-length packet. Say how much was taken with [`Self::consume_in`].
    pub fn poll_in(&self, now: Instant) -> Option<&[u8]> {
        if self.faults.hung || self.faults.mute {
            return None;
        }
        match &self.state {
            State::Up(firmware) => firmware.link.next_in(now),
            _ => None,
        }
    }

    /// The host took `n` bytes of what [`Self::poll_in`] shows (0 of a zero-length packet).
    pub fn consume_in(&mut self, n: usize) {
        if let State::Up(firmware) = &mut self.state {
            if let (Some(tape), Some(sent)) = (&mut self.tape, firmware.link.next_in(Instant::FAR_FUTURE)) {
                tape.moved(Direction::In, &sent[..n]);
            }
            firmware.link.consume_in(n);
        }
        self.moved(Way::In, n);
    }

    /// Computing to be done.
    pub fn poll_work(&mut self) -> Option<Work> {
        match &mut self.state {
            State::Up(firmware) => firmware.graphs.poll_work(),
            _ => None,
        }
    }

    /// What happened on the bus.
    pub fn poll_bus_event(&mut self) -> Option<BusEvent> {
        self.events.pop_front()
    }

    // --- power -----------------------------------------------------------------------------------------------------

    /// Does what the plan has for the stick as a whole.
    fn break_down(&mut self, now: Instant) {
        while let Some(kind) = self.script.as_ref().and_then(|s| s.due(now)) {
            self.suffer(kind);
        }
    }

    fn suffer(&mut self, kind: FaultKind) {
        match kind {
            FaultKind::Unplug => self.unplug(),
            FaultKind::Replug => self.plug(),
            FaultKind::Hang => self.faults.hung = true,
            _ => {}
        }
    }

    /// Bytes went one way: the trap may close.
    fn moved(&mut self, way: Way, n: usize) {
        let Some((trapped, left, kind)) = &mut self.trap else { return };
        if *trapped != way {
            return;
        }
        *left = left.saturating_sub(n as u64);
        if *left == 0 {
            let kind = *kind;
            self.trap = None;
            self.suffer(kind);
        }
    }

    /// What the plan does to this boot: where it leads, and when.
    fn boot_fault(&mut self, then: Next, until: Instant) -> (Next, Instant) {
        let fault = match then {
            Next::Booted { .. } => self.script.as_ref().and_then(|s| s.strike(Point::Boot)),
            Next::Unbooted => None,
        };
        match fault {
            Some((FaultKind::BootNack, _)) => (Next::Unbooted, until),
            Some((FaultKind::Vanish, _)) => (then, Instant::FAR_FUTURE),
            _ => (then, until),
        }
    }

    fn boot(&mut self, booted: Booted, now: Instant) {
        self.go_away(Next::Booted { watchdog: booted.watchdog }, now);
    }

    fn go_away(&mut self, then: Next, now: Instant) {
        self.events.push_back(BusEvent::Left);
        self.leave_state();
        if matches!(then, Next::Unbooted) {
            self.resets += 1;
        }
        let away = self.model_time(self.config.profile.boot.leave_ms);
        let (then, until) = self.boot_fault(then, now + away);
        self.state = State::Away { until, then };
        self.handle_timeout(now);
    }

    fn appear(&mut self, then: Next, now: Instant) {
        self.epoch += 1;
        self.received = 0;
        self.heat.reset();
        let identity = match then {
            Next::Unbooted => {
                self.state = State::Rom(BootRom::new(self.config.profile.boot.clone()));
                Identity::Unbooted
            }
            Next::Booted { watchdog } => {
                let mut firmware =
                    Firmware::new(Arc::clone(&self.config), self.epoch, watchdog, self.hub.clone(), now);
                firmware.graphs.hold_results = self.faults.hold_results;
                firmware.graphs.script = self.script.clone();
                self.state = State::Up(Box::new(firmware));
                Identity::Booted
            }
        };
        if let Some(tape) = &mut self.tape {
            tape.note(match identity {
                Identity::Unbooted => "appeared unbooted",
                Identity::Booted => "appeared booted",
            });
        }
        self.events.push_back(BusEvent::Appeared(identity));
    }

    fn leave_state(&mut self) {
        if let State::Up(firmware) = &self.state {
            add(&mut self.past, firmware.graphs.stats());
        }
    }

    fn model_time(&self, ms: f64) -> Duration {
        match self.config.timing {
            Timing::Zero => Duration::ZERO,
            Timing::Model => Duration::from_nanos((ms * 1e6) as u64),
        }
    }
}

fn add(sum: &mut GraphStats, more: GraphStats) {
    sum.inferences += more.inferences;
    sum.busy += more.busy;
    sum.paced &= more.paced;
}
