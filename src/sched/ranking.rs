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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
