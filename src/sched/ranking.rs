//! The best of many sticks, kept up to date: a tournament tree. Changing one key costs O(log sticks), reading none.

/// Key of a stick that may not be chosen.
pub const OUT: u64 = u64::MAX;

/// Smallest key wins, the lower index among equals.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// Power of two; leaves stand at `width..2 * width`, the winner of node `i` is the smaller of `2i` and `2i + 1`.
    width: usize,
    tree: Vec<u64>,
}

impl Ranking {
    /// For `sticks` sticks, all out.
    pub fn new(sticks: usize) -> Self {
        let width = sticks.max(1).next_power_of_two();
        Ranking { width, tree: vec![OUT; 2 * width] }
    }

    /// Makes room for more sticks; keys stay.
    pub fn grow(&mut self, sticks: usize) {
        if sticks <= self.width {
            return;
        }
        let mut next = Ranking::new(sticks);
        for i in 0..self.width {
            next.set(i, self.key(i));
        }
        *self = next;
    }

    /// Key of one stick.
    pub fn key(&self, stick: usize) -> u64 {
        self.tree.get(self.width + stick).copied().unwrap_or(OUT)
    }

    /// Gives a stick its key; [`OUT`] takes it out.
    pub fn set(&mut self, stick: usize, key: u64) {
        let mut at = self.width + stick;
        if self.tree[at] == key {
            return;
        }
        self.tree[at] = key;
        while at > 1 {
            at /= 2;
            let winner = self.tree[2 * at].min(self.tree[2 * at + 1]);
            if self.tree[at] == winner {
                break;
            }
            self.tree[at] = winner;
        }
    }

    /// The stick with the smallest key, and the key.
    pub fn best(&self) -> Option<(usize, u64)> {
        let key = self.tree[1];
        if key == OUT {
            return None;
        }
        let mut at = 1;
        while at < self.width {
            at = if self.tree[2 * at] == key { 2 * at } else { 2 * at + 1 };
        }
        Some((at - self.width, key))
    }

    /// The best but for one.
    pub fn best_except(&mut self, stick: usize) -> Option<(usize, u64)> {
        let kept = self.key(stick);
        if kept == OUT {
            return self.best();
        }
        self.set(stick, OUT);
        let best = self.best();
        self.set(stick, kept);
        best
    }
}

/// How a stick stands for one graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It may not be chosen.
    Out,
    /// Key of a stick whose finish is so many nanoseconds after any moment at which it is asked: an idle one. Policies that
    /// do not weigh time use this alone.
    Idle(u64),
    /// It will be finished at this moment, in nanoseconds of the clock: a busy one.
    Busy(u64),
}

/// The rankings of one graph: idle sticks by how long they take, busy ones by when they will have finished. The finish of an
/// idle stick moves with the present and that of a busy one does not, so that one order can not hold both.
#[derive(Clone, Debug)]
pub struct Board {
    idle: Ranking,
    busy: Ranking,
}

impl Board {
    /// For `sticks` sticks, all out.
    pub fn new(sticks: usize) -> Self {
        Board { idle: Ranking::new(sticks), busy: Ranking::new(sticks) }
    }

    /// Makes room for more sticks.
    pub fn grow(&mut self, sticks: usize) {
        self.idle.grow(sticks);
        self.busy.grow(sticks);
    }

    /// True where the stick may not be chosen.
    pub fn is_out(&self, stick: usize) -> bool {
        self.idle.key(stick) == OUT && self.busy.key(stick) == OUT
    }

    /// Gives a stick its standing.
    pub fn set(&mut self, stick: usize, standing: Standing) {
        let (idle, busy) = match standing {
            Standing::Out => (OUT, OUT),
            Standing::Idle(key) => (key, OUT),
            Standing::Busy(key) => (OUT, key),
        };
        self.idle.set(stick, idle);
        self.busy.set(stick, busy);
    }

    /// The stick that finishes first if it gets the job at `now_ns`.
    pub fn best(&self, now_ns: u64) -> Option<usize> {
        Self::first(self.idle.best(), self.busy.best(), now_ns)
    }

    /// The best but for one.
    pub fn best_except(&mut self, stick: usize, now_ns: u64) -> Option<usize> {
        Self::first(self.idle.best_except(stick), self.busy.best_except(stick), now_ns)
    }

    fn first(idle: Option<(usize, u64)>, busy: Option<(usize, u64)>, now_ns: u64) -> Option<usize> {
        match (idle, busy) {
            (Some((i, takes)), Some((b, ends))) => {
                Some(if now_ns.saturating_add(takes) <= ends { i } else { b })
            }
            (idle, busy) => idle.or(busy).map(|(i, _)| i),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_idle_slow_stick_against_a_busy_fast_one() {
        let mut board = Board::new(3);
        board.set(0, Standing::Idle(80));
        board.set(1, Standing::Busy(1030));
        assert_eq!(board.best(1000), Some(1), "1030 comes before 1080");
        assert_eq!(board.best(900), Some(0), "980 comes before 1030");
        assert_eq!(board.best_except(1, 1000), Some(0));
        board.set(1, Standing::Out);
        assert!(board.is_out(1) && !board.is_out(0));
    }

    proptest! {
        #[test]
        fn agrees_with_a_scan(n in 1usize..40, sets in prop::collection::vec((0usize..40, 0u64..9), 0..120)) {
            let mut tree = Ranking::new(n);
            let mut flat = vec![OUT; n];
            for (i, key) in sets {
                if i >= flat.len() {
                    flat.resize(i + 1, OUT);
                    tree.grow(i + 1);
                }
                let key = if key == 8 { OUT } else { key };
                flat[i] = key;
                tree.set(i, key);
                let scan = |skip: usize| flat.iter().enumerate().filter(|(j, k)| *j != skip && **k != OUT)
                    .map(|(j, k)| (j, *k)).min_by_key(|(j, k)| (*k, *j));
                prop_assert_eq!(tree.best(), scan(usize::MAX));
                prop_assert_eq!(tree.best_except(i), scan(i));
            }
        }
    }
}
