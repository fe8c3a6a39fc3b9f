//! Where a stick is plugged in, and how to get a connection to it.

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

type Connect = Box<dyn FnMut(Duration) -> Result<Connection> + Send>;

/// Where a stick is plugged in, and how to get a connection to it: for a real one boot and open, for a virtual one
/// the same against a model.
pub struct Port {
    id: StickId,
    simulated: Option<String>,
    connect: Connect,
}

impl Port {
    /// A port; `connect` is given the time it may take and is called again after the stick was lost.
    pub fn new(id: StickId, connect: impl FnMut(Duration) -> Result<Connection> + Send + 'static) -> Self {
        Port { id, simulated: None, connect: Box::new(connect) }
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

    /// Boots where needed and opens. Takes at most `timeout`.
    pub fn connect(&mut self, timeout: Duration) -> Result<Connection> {
        (self.connect)(timeout)
    }

    /// The stick's name.
    pub fn id(&self) -> &StickId {
        &self.id
    }
}
