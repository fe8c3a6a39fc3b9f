//! Virtual sticks whose time is a number, on the caller's thread: the model of a [`crate::Rack`] without its threads, for
//! simulations that can be repeated to the nanosecond.

use std::sync::Arc;

use ncs2::clock::Instant;
use ncs2::transport::{PipeHost, simulated_pipe};

use crate::bay::{self, Bay, ServerThread};
use crate::{Config, FaultPlan, Identity, PreparedCache, VirtualStick};

/// Sticks, each in its port. Their owner calls [`Self::serve`] after all that concerns a stick, and when
/// [`Self::poll_timeout`] has come.
pub struct SteppedRack {
    config: Arc<Config>,
    bays: Vec<Bay>,
    cache: PreparedCache,
    /// Nobody sleeps here.
    server: ServerThread,
}

impl SteppedRack {
    /// So many sticks, unbooted. A plan's faults of transfers do not strike here: they sit in the host's end.
    pub fn new(config: Config, sticks: usize, faults: Option<&FaultPlan>, now: Instant) -> Self {
        let config = Arc::new(config);
        let bays = bay::row(&config, sticks, faults, || now).collect();
        SteppedRack { config, bays, cache: PreparedCache::default(), server: ServerThread::default() }
    }

    /// Ends stick `n`'s connection and power-cycles it; false where none is in the port. [`Self::attach`] when it is booted.
    pub fn power_cycle(&mut self, n: usize, now: Instant) -> bool {
        let bay = &mut self.bays[n];
        bay.disconnect();
        if bay.stick.is_plugged() {
            bay.stick.start_booted(true, now);
            bay.settle();
        }
        bay.stick.is_plugged()
    }

    /// A connection to stick `n`, once it is booted.
    pub fn attach(&mut self, n: usize) -> Option<PipeHost> {
        let bay = &mut self.bays[n];
        if bay.stick.identity() != Some(Identity::Booted) {
            return None;
        }
        let (host, device) = simulated_pipe(bay::transport_info(&self.config));
        bay.attach(device, &self.server);
        Some(host)
    }

    /// Stick `n` does all that it can do now; what is to be computed is computed at once.
    pub fn serve(&mut self, n: usize, now: Instant) {
        let bay = &mut self.bays[n];
        loop {
            bay.settle();
            let mut changed = bay.serve(now);
            while let Some(mut work) = bay.stick.poll_work() {
                work.perform(&self.cache);
                bay.stick.handle_work_done(work, now);
                changed = true;
            }
            if !changed {
                return;
            }
        }
    }

    /// When stick `n` is to be served next.
    pub fn poll_timeout(&mut self, n: usize, now: Instant) -> Option<Instant> {
        self.bays[n].poll_timeout(now)
    }

    /// Stick `n`, to break it or to look at it; [`Self::serve`] it afterwards.
    pub fn stick(&mut self, n: usize) -> &mut VirtualStick {
        &mut self.bays[n].stick
    }
}
