//! A virtual stick of this process and the pipe that it is connected by.

use std::sync::{Arc, OnceLock};
use std::thread::Thread;

use ncs2::clock::Instant;
use ncs2::transport::{MemoryKind, PipeDevice, TransportInfo};

use crate::carrier::Carrier;
use crate::{BusEvent, Config, FaultPlan, Hub, VirtualStick};

/// The thread that serves the bays, once it runs.
pub(crate) type ServerThread = Arc<OnceLock<Thread>>;

/// Ends its sleep, or keeps the next one from beginning.
pub(crate) fn wake(server: &ServerThread) {
    if let Some(thread) = server.get() {
        thread.unpark();
    }
}

/// So many sticks in their ports, unbooted, behind the profile's hub, each with its part of the plan from its `now` on.
pub(crate) fn row(
    config: &Arc<Config>,
    sticks: usize,
    faults: Option<&FaultPlan>,
    now: impl Fn() -> Instant,
) -> impl Iterator<Item = Bay> {
    let hub = Hub::new(&config.profile, sticks).map(Arc::new);
    (0..sticks).map(move |n| {
        let now = now();
        let mut stick = VirtualStick::new(Arc::clone(config), now);
        if let Some(hub) = &hub {
            stick.join_hub(Arc::clone(hub), n);
        }
        if let Some(plan) = faults {
            stick.follow(plan.script(n, config.seed, now));
        }
        stick.plug();
        Bay::new(stick)
    })
}

/// What the host's end of a pipe to such a stick says of it.
pub(crate) fn transport_info(config: &Config) -> TransportInfo {
    let link = &config.profile.link;
    TransportInfo {
        max_packet_bytes: link.max_packet_bytes,
        speed_mbps: link.speed_mbps,
        memory: MemoryKind::InProcess,
        simulated: true,
    }
}

pub(crate) struct Bay {
    pub(crate) stick: VirtualStick,
    wire: Option<Carrier>,
}

impl Bay {
    pub(crate) fn new(stick: VirtualStick) -> Self {
        Bay { stick, wire: None }
    }

    /// A new connection; the stick is booted. What the host does wakes `server`.
    pub(crate) fn attach(&mut self, mut device: PipeDevice, server: &ServerThread) {
        self.disconnect();
        let max_packet = self.stick.config().profile.link.max_packet_bytes;
        let server = Arc::clone(server);
        // A futex wakes a thread for less than a descriptor does.
        device.served_by(move || wake(&server));
        self.wire = Some(Carrier::new(device.into(), max_packet));
    }

    /// Ends the connection; every transfer goes back to the host.
    pub(crate) fn disconnect(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.close();
        }
    }

    /// Does all that can be done now. True when something happened on the bus.
    pub(crate) fn serve(&mut self, now: Instant) -> bool {
        loop {
            self.stick.handle_timeout(now);
            if self.settle() {
                return true;
            }
            let Some(wire) = &mut self.wire else { return false };
            if wire.is_closed() {
                self.stick.handle_closed(now);
                self.disconnect();
                continue;
            }
            if !wire.serve(&mut self.stick, now) {
                return self.settle();
            }
        }
    }

    /// Follows the stick on the bus. True when something happened there.
    pub(crate) fn settle(&mut self) -> bool {
        let mut changed = false;
        while let Some(event) = self.stick.poll_bus_event() {
            changed = true;
            if event == BusEvent::Left {
                self.disconnect();
            }
        }
        changed
    }

    /// When [`Self::serve`] is due.
    pub(crate) fn poll_timeout(&mut self, now: Instant) -> Option<Instant> {
        let out = self.wire.as_ref().and_then(|wire| wire.poll_timeout(now));
        self.stick.poll_timeout(now).into_iter().chain(out).min()
    }

    /// About to sleep: true when there is something to do first.
    pub(crate) fn arm(&mut self, now: Instant) -> bool {
        self.wire.as_mut().is_some_and(|wire| wire.arm(&self.stick, now))
    }
}
