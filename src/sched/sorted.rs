//! A small ordered set that keeps its memory: a steady stream of requests must not allocate, and a tree that grows from
//! empty and shrinks back does so each time.

/// Values in ascending order, each once. Insertion and removal move what lies behind: meant for at most some hundred.
#[derive(Clone, Debug)]
pub struct Sorted<T>(Vec<T>);

impl<T: Ord> Sorted<T> {
    /// Empty.
    pub fn new() -> Self {
        Sorted(Vec::new())
    }

    /// Adds a value; false where it is there already.
    pub fn insert(&mut self, value: T) -> bool {
        match self.0.binary_search(&value) {
            Ok(_) => false,
            Err(at) => {
                self.0.insert(at, value);
                true
            }
        }
    }

    /// Takes a value out; false where it is not there.
    pub fn remove(&mut self, value: &T) -> bool {
        let found = self.0.binary_search(value);
        found.map(|at| self.0.remove(at)).is_ok()
    }

    /// The smallest.
    pub fn first(&self) -> Option<&T> {
        self.0.first()
    }

    /// Ascending.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Values inside.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Ord> Default for Sorted<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_tree(steps in prop::collection::vec((any::<bool>(), 0u8..20), 0..200)) {
            let (mut sorted, mut tree) = (Sorted::new(), BTreeSet::new());
            for (add, value) in steps {
                if add {
                    prop_assert_eq!(sorted.insert(value), tree.insert(value));
                } else {
                    prop_assert_eq!(sorted.remove(&value), tree.remove(&value));
                }
                prop_assert_eq!(sorted.first(), tree.first());
                prop_assert!(sorted.iter().eq(tree.iter()));
                prop_assert_eq!((sorted.len(), sorted.is_empty()), (tree.len(), tree.is_empty()));
            }
        }
    }
}
