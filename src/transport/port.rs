//! Where a stick is plugged in, and how to get a connection to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Transport;
use crate::error::Result;
use crate::id::StickId;
use crate::wire::WireVersion;

/// A connected transport and the variant that the other end speaks.
pub struct Connection {
    /// The two pipes.
    pub transport: Box<dyn Transport>,
    /// Wire variant of the firmware.
    pub version: WireVersion,
}

/// Tells who waits for a stick to appear that nobody wants it any more. For good: a port that was given up connects no more.
#[derive(Clone, Debug, Default)]
pub struct GiveUp(Arc<AtomicBool>);

impl GiveUp {
    /// Ends the wait, of now and of later.
    pub fn now(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// True once somebody said so.
    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

type Connect = Box<dyn FnMut(Duration) -> Result<Connection> + Send>;

/// Whether a virtual stick has kept the pace of its model, so that its figures are those of the model and not of this computer.
#[derive(Clone)]
pub struct Pace(Arc<dyn Fn() -> bool + Send + Sync>);

impl Pace {
    /// `is_kept` is asked now and then, from any thread, and should not wait.
    pub fn new(is_kept: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Pace(Arc::new(is_kept))
    }

    /// Until now.
    pub fn is_kept(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pace").field(&self.is_kept()).finish()
    }
}

/// Where a stick is plugged in, and how to get a connection to it: for a real one boot and open, for a virtual one
/// the same against a model.
pub struct Port {
    id: StickId,
    simulated: Option<String>,
    pace: Option<Pace>,
    connect: Connect,
    give_up: GiveUp,
}

impl Port {
    /// A port; `connect` is given the time it may take and is called again after the stick was lost.
    pub fn new(id: StickId, connect: impl FnMut(Duration) -> Result<Connection> + Send + 'static) -> Self {
        Port { id, simulated: None, pace: None, connect: Box::new(connect), give_up: GiveUp::default() }
    }

    /// What [`Port::give_up`] gives is this, which `connect` looks at while it waits.
    #[must_use]
    pub fn ended_by(mut self, give_up: GiveUp) -> Self {
        self.give_up = give_up;
        self
    }

    /// Ends a wait of [`Port::connect`] on another thread soon, where the port looks at it.
    pub fn give_up(&self) -> GiveUp {
        self.give_up.clone()
    }

    /// Marks what comes from here as simulated; `profile` is the virtual stick's profile name.
    #[must_use]
    pub fn simulated(mut self, profile: impl Into<String>) -> Self {
        self.simulated = Some(profile.into());
        self
    }

    /// Profile name of the virtual stick; `None` for a real one.
    pub fn profile(&self) -> Option<&str> {
        self.simulated.as_deref()
    }

    /// Who knows whether the virtual stick keeps its model's pace.
    #[must_use]
    pub fn paced_by(mut self, pace: Pace) -> Self {
        self.pace = Some(pace);
        self
    }

    /// Of the virtual stick; `None` where nobody knows, and for a real one.
    pub fn pace(&self) -> Option<&Pace> {
        self.pace.as_ref()
    }

    /// The same port; each connection that it makes goes through `around`.
    #[must_use]
    pub fn through(self, mut around: impl FnMut(Connection) -> Connection + Send + 'static) -> Self {
        let Port { id, simulated, pace, mut connect, give_up } = self;
        let connect = Box::new(move |timeout| connect(timeout).map(&mut around));
        Port { id, simulated, pace, connect, give_up }
    }

    /// Boots where needed and opens. Takes at most `timeout`.
    pub fn connect(&mut self, timeout: Duration) -> Result<Connection> {
        (self.connect)(timeout)
    }

    /// The stick's name.
    pub fn id(&self) -> &StickId {
        &self.id
    }
}
