//! Whether a failed job is tried again: at most so often, within a share of the traffic, and never a third stick.

use super::event::{Fault, GiveUpReason};

/// Retries that traffic has earned: each first attempt earns a share of one.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    share: f64,
    tokens: f64,
    most: f64,
    spent: u64,
    denied: u64,
}

/// Retries that may be made before any traffic earned them: a whole stick's worth of jobs, or a small fleet could not
/// survive its first lost stick.
pub const RESERVE: f64 = 64.0;

impl RetryBudget {
    /// `share` of traffic, such as 0.1.
    pub fn new(share: f64) -> Self {
        RetryBudget { share, tokens: RESERVE, most: 4.0 * RESERVE, spent: 0, denied: 0 }
    }

    /// A first attempt was made.
    pub fn earn(&mut self) {
        self.tokens = (self.tokens + self.share).min(self.most);
    }

    fn spend(&mut self) -> bool {
        if self.tokens < 1.0 {
            self.denied += 1;
            return false;
        }
        self.tokens -= 1.0;
        self.spent += 1;
        true
    }

    /// Retries made, and retries refused for want of budget.
    pub fn counts(&self) -> (u64, u64) {
        (self.spent, self.denied)
    }
}

/// What becomes of a job whose attempt failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Again, on another stick if there is one.
    Again,
    /// Again, alone on one stick: its stick died under it.
    AloneNow,
    /// No more.
    GiveUp(GiveUpReason),
}

/// Judges a failed attempt. `deaths` counts sticks that died under the job, this one included; `retries` those made.
/// A job that had not been sent is as good as new: it costs neither a retry nor budget.
pub fn judge(fault: Fault, deaths: u32, retries: u32, limit: u32, budget: &mut RetryBudget) -> Verdict {
    match fault {
        Fault::NotSent => return Verdict::Again,
        Fault::Input => return Verdict::GiveUp(GiveUpReason::Input),
        Fault::StickDied if deaths >= 2 => return Verdict::GiveUp(GiveUpReason::Poison),
        _ => {}
    }
    if retries >= limit {
        return Verdict::GiveUp(GiveUpReason::Retries);
    }
    if !budget.spend() {
        return Verdict::GiveUp(GiveUpReason::Budget);
    }
    if fault == Fault::StickDied { Verdict::AloneNow } else { Verdict::Again }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_of_verdicts() {
        let mut table = String::new();
        for fault in [Fault::NotSent, Fault::Refused, Fault::Timeout, Fault::StickDied, Fault::Input] {
            for (deaths, retries) in [(0, 0), (1, 1), (1, 2), (2, 1)] {
                let verdict = judge(fault, deaths, retries, 2, &mut RetryBudget::new(0.1));
                table += &format!("{fault:<9?} deaths {deaths} retries {retries}: {verdict:?}\n");
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn retries_stay_within_a_tenth_of_traffic() {
        let mut budget = RetryBudget::new(0.1);
        let made = (0..100_000)
            .filter(|_| {
                budget.earn();
                judge(Fault::Refused, 0, 0, 2, &mut budget) == Verdict::Again
            })
            .count();
        assert!((10_000..=10_000 + RESERVE as usize).contains(&made), "{made}");
    }
}
