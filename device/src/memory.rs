//! The ledger of the stick's DRAM.

/// What graphs and FIFOs take. The firmware's own part is not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ledger {
    limit: u64,
    used: u64,
}

impl Ledger {
    pub(crate) fn new(limit: u64) -> Self {
        Ledger { limit, used: 0 }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// False where it does not fit; nothing is charged then.
    pub(crate) fn charge(&mut self, bytes: u64) -> bool {
        match self.used.checked_add(bytes).filter(|&sum| sum <= self.limit) {
            Some(sum) => {
                self.used = sum;
                true
            }
            None => false,
        }
    }

    pub(crate) fn refund(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used, "refund of {bytes} bytes, {} are charged", self.used);
        self.used = self.used.saturating_sub(bytes);
    }
}
