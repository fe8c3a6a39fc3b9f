//! Exact operation counts.
use super::Graph;

/// Multiply-accumulates of one inference call (whole batch).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Macs {
    /// The original network's own count: what TOPS are made of.
    pub model: u64,
    /// What the descriptors and software stages order: what time is made of ("NCE work").
    pub ordered: u64,
    /// Per stage of [`Graph::stages`], (model, ordered); an injected stage counts with its parent.
    pub per_stage: Vec<(u64, u64)>,
}

pub(super) fn count(_graph: &Graph, _bytes: &[u8]) -> Macs {
    unreachable!("written by the blob author")
}

pub(super) fn weights_bytes(_graph: &Graph) -> usize {
    unreachable!("written by the blob author")
}
