//! What one virtual stick is made with.

use crate::profile::Profile;
use crate::{Engine, Timing};

/// Settings of one virtual stick.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// Its constants.
    pub profile: Profile,
    /// What outputs are made of.
    pub engine: Engine,
    /// How long things take.
    pub timing: Timing,
    /// Seed of everything that is drawn by chance.
    pub seed: u64,
}
