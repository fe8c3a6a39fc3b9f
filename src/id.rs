//! What a stick is called.

use std::fmt;
use std::sync::Arc;

/// Identity of one stick: its USB port path such as `1-2.3`, or `sim0` for a virtual one.
///
/// The bus address is no identity: it changes when the stick boots, and all unbooted sticks report
/// the same serial number. The port that a stick is plugged into is what stays.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StickId(Arc<str>);

impl StickId {
    /// Takes the name as given; `1-2.3` and `sim0` are the two forms in use.
    pub fn new(name: impl AsRef<str>) -> Self {
        StickId(Arc::from(name.as_ref()))
    }

    /// The `n`-th virtual stick of this process.
    pub fn sim(n: usize) -> Self {
        StickId(Arc::from(format!("sim{n}")))
    }

    /// The name, as users type it after `--device`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StickId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StickId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
