//! One inference on the stick, from its trigger to its output.

use std::time::Duration;

use crate::FaultKind;

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// Waits for its input or an executor.
    Queued,
    /// On an executor.
    Running,
    /// The graph or a FIFO was taken away while it ran: no output.
    Cancelled,
}

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) id: u64,
    pub(crate) graph: u32,
    pub(crate) input_fifo: u32,
    pub(crate) output_fifo: u32,
    pub(crate) progress: Progress,
    /// The engine is done.
    pub(crate) computed: bool,
    /// The model's time is over.
    pub(crate) elapsed: bool,
    /// The input's credit was given back.
    pub(crate) released: bool,
    pub(crate) output: Option<Vec<u8>>,
    /// What goes wrong with it.
    pub(crate) fault: Option<(FaultKind, Duration)>,
}

impl Run {
    pub(crate) fn is_done(&self) -> bool {
        self.progress == Progress::Running && self.computed && self.elapsed
    }
}
