//! Which 2-byte elements of memory a later stage, or the caller, still needs: one bit each.
use super::Graph;
use super::tensor::{Location, View};
use super::trace::Budget;

/// Bits of CMX, scratch and outputs. Inputs and constants are never written and need no bits.
pub(super) struct Needed {
    words: Vec<u64>,
    bss_at: usize,
    outputs_at: Vec<usize>,
}

impl Needed {
    /// All outputs are needed at the end, nothing else.
    pub fn at_end(graph: &Graph) -> Self {
        let slots = |bytes: usize| bytes.div_ceil(2);
        let bss_at = slots(graph.cmx_slices as usize * super::CMX_SLICE_BYTES);
        let mut end = bss_at + slots(graph.bss_bytes);
        let first_output = end;
        let mut outputs_at = Vec::with_capacity(graph.outputs.len());
        for output in &graph.outputs {
            outputs_at.push(end);
            end += slots(output.bytes());
        }
        let mut needed = Needed { words: vec![0; end / 64 + 1], bss_at, outputs_at };
        set(&mut needed.words, first_output, end - first_output);
        needed
    }

    /// Slot of the area's first byte; `None` for areas that are never written.
    fn area(&self, location: Location) -> Option<usize> {
        match location {
            Location::Cmx => Some(0),
            Location::Bss => Some(self.bss_at),
            Location::Output(i) => self.outputs_at.get(i as usize).copied(),
            Location::None | Location::Input(_) | Location::Blob => None,
        }
    }

    /// Number of needed elements of the view. `None` when the budget is used up.
    pub fn count(&self, view: &View, budget: &mut Budget) -> Option<u64> {
        let Some(area) = self.area(view.location) else { return Some(0) };
        let mut sum = 0;
        runs(view, &view.strides, budget, |byte, elements| {
            let (slot, slots) = slots_of(view, area, byte, elements);
            sum += count(&self.words, slot, slots);
        })?;
        Some(sum)
    }

    /// One bit for each element of the view, in the order of its dims.
    pub fn gather(&self, view: &View, budget: &mut Budget) -> Option<Vec<u64>> {
        let mut bits = vec![0; view.elements() / 64 + 1];
        let Some(area) = self.area(view.location) else { return Some(bits) };
        let size = view.dtype.bytes();
        let mut at = 0;
        runs(view, &view.strides, budget, |byte, elements| {
            if size == 2 {
                or_bits(&mut bits, at, &self.words, area + byte / 2, elements);
            } else {
                for i in 0..elements {
                    let (slot, slots) = slots_of(view, area, byte + i * size, 1);
                    if count(&self.words, slot, slots) > 0 {
                        set(&mut bits, at + i, 1);
                    }
                }
            }
            at += elements;
        })?;
        Some(bits)
    }

    /// Marks the elements whose bit is set. `strides` are the view's own or permuted ones, for the dims of `bits`.
    pub fn scatter(
        &mut self,
        view: &View,
        strides: &[u32],
        dims_of: &View,
        bits: &[u64],
        b: &mut Budget,
    ) -> Option<()> {
        let Some(area) = self.area(view.location) else { return Some(()) };
        let size = view.dtype.bytes();
        let walk = View { dims: dims_of.dims.clone(), ..view.clone() };
        let mut at = 0;
        runs(&walk, strides, b, |byte, elements| {
            if size == 2 {
                or_bits(&mut self.words, area + byte / 2, bits, at, elements);
            } else {
                for i in (0..elements).filter(|i| count(bits, at + i, 1) > 0) {
                    let (slot, slots) = slots_of(view, area, byte + i * size, 1);
                    set(&mut self.words, slot, slots);
                }
            }
            at += elements;
        })
    }

    /// Nobody needs what was there before the stage that writes this view.
    pub fn clear(&mut self, view: &View, budget: &mut Budget) -> Option<()> {
        let Some(area) = self.area(view.location) else { return Some(()) };
        runs(view, &view.strides, budget, |byte, elements| {
            let (slot, slots) = slots_of(view, area, byte, elements);
            masks(slot, slots, |word, mask| self.words[word] &= !mask);
        })
    }

    /// Marks the whole view.
    pub fn mark(&mut self, view: &View, budget: &mut Budget) -> Option<()> {
        let Some(area) = self.area(view.location) else { return Some(()) };
        runs(view, &view.strides, budget, |byte, elements| {
            let (slot, slots) = slots_of(view, area, byte, elements);
            set(&mut self.words, slot, slots);
        })
    }
}

fn slots_of(view: &View, area: usize, byte: usize, elements: usize) -> (usize, usize) {
    let first = byte / 2;
    let last = (byte + elements * view.dtype.bytes() - 1) / 2;
    (area + first, last - first + 1)
}

/// Calls `each` with the first byte (from the area's base) and the length in elements of each stretch of memory that
/// has no gap. Costs one step a stretch and one for each 64 elements, or one an element where those are not of 2 bytes.
fn runs(view: &View, strides: &[u32], budget: &mut Budget, mut each: impl FnMut(usize, usize)) -> Option<()> {
    let size = view.dtype.bytes();
    let mut stretch = 1usize;
    let mut level = 0;
    while level < view.dims.len() && (strides[level] as usize == stretch * size || view.dims[level] == 1) {
        stretch *= view.dims[level] as usize;
        level += 1;
    }
    let elements = view.elements();
    let per_step = if size == 2 { 64 } else { 1 };
    if !budget.spend((elements / stretch) as u64 + (elements / per_step) as u64) {
        return None;
    }
    let (dims, strides) = (&view.dims[level..], &strides[level..]);
    let mut index = [0u32; super::MAX_DIMS];
    let mut byte = view.offset;
    loop {
        each(byte, stretch);
        let mut k = 0;
        loop {
            let Some(&dim) = dims.get(k) else { return Some(()) };
            index[k] += 1;
            byte += strides[k] as usize;
            if index[k] < dim {
                break;
            }
            byte -= dim as usize * strides[k] as usize;
            index[k] = 0;
            k += 1;
        }
    }
}

/// Calls `each` with word number and mask for the bits `start..start + len`.
fn masks(start: usize, len: usize, mut each: impl FnMut(usize, u64)) {
    let end = start + len;
    let mut at = start;
    while at < end {
        let take = (64 - at % 64).min(end - at);
        each(at / 64, (u64::MAX >> (64 - take)) << (at % 64));
        at += take;
    }
}

fn set(words: &mut [u64], start: usize, len: usize) {
    masks(start, len, |word, mask| words[word] |= mask);
}

fn count(words: &[u64], start: usize, len: usize) -> u64 {
    let mut sum = 0;
    masks(start, len, |word, mask| sum += u64::from((words[word] & mask).count_ones()));
    sum
}

/// ORs `len` bits of `source` from `from` on into `target` from `to` on.
fn or_bits(target: &mut [u64], to: usize, source: &[u64], from: usize, len: usize) {
    let mut done = 0;
    while done < len {
        let (to, from) = (to + done, from + done);
        let take = (64 - to % 64).min(64 - from % 64).min(len - done);
        let bits = (source[from / 64] >> (from % 64)) & (u64::MAX >> (64 - take));
        target[to / 64] |= bits << (to % 64);
        done += take;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::blob::{DataType, Order};

    const BYTES: usize = 4096;

    fn memory() -> Needed {
        Needed { words: vec![0; BYTES / 2 / 64 + 1], bss_at: 0, outputs_at: Vec::new() }
    }

    /// A view of CMX that fits, with gaps and of any element type.
    fn views() -> impl Strategy<Value = View> {
        let dtype = prop_oneof![Just(DataType::F16), Just(DataType::U8), Just(DataType::F32)];
        (dtype, prop::array::uniform3(1u32..9), prop::array::uniform2(0u32..3), 0usize..200).prop_map(
            |(dtype, dims, gaps, offset)| {
                let size = dtype.bytes() as u32;
                let row = size * (dims[0] + gaps[0]);
                let strides = vec![size, row, row * dims[1] + 2 * gaps[1]];
                let offset = offset * dtype.bytes();
                let dims = dims.to_vec();
                View { dtype, order: Order(0x321), dims, strides, location: Location::Cmx, offset }
            },
        )
    }

    /// First bytes of the elements, in the order of the dims, the slow way.
    fn elements(view: &View) -> Vec<usize> {
        let mut bytes = Vec::new();
        for z in 0..view.dims[2] {
            for y in 0..view.dims[1] {
                for x in 0..view.dims[0] {
                    let along = [x, y, z].into_iter().zip(&view.strides).map(|(i, s)| (i * s) as usize);
                    bytes.push(view.offset + along.sum::<usize>());
                }
            }
        }
        bytes
    }

    fn is_set(needed: &Needed, byte: usize, size: usize) -> bool {
        (byte / 2..=(byte + size - 1) / 2).any(|slot| needed.words[slot / 64] >> (slot % 64) & 1 == 1)
    }

    proptest! {
        #[test]
        fn views_agree_with_the_slow_way(first in views(), second in views()) {
            let mut budget = Budget::new(1 << 20);
            let mut needed = memory();
            needed.mark(&first, &mut budget).expect("steps enough");
            let marked = needed.words.clone();
            for byte in elements(&first) {
                prop_assert!(is_set(&needed, byte, first.dtype.bytes()));
            }

            // Gather sees exactly what is marked, count as many where an element is one slot.
            let bits = needed.gather(&second, &mut budget).expect("steps enough");
            let size = second.dtype.bytes();
            let mut sum = 0;
            for (i, byte) in elements(&second).into_iter().enumerate() {
                let expected = is_set(&needed, byte, size);
                prop_assert_eq!(bits[i / 64] >> (i % 64) & 1 == 1, expected, "element {}", i);
                sum += u64::from(expected);
            }
            if size == 2 {
                prop_assert_eq!(needed.count(&second, &mut budget), Some(sum));
            }

            // Clear and put back: what was marked in the view is marked again.
            needed.clear(&second, &mut budget).expect("steps enough");
            for byte in elements(&second) {
                prop_assert!(!is_set(&needed, byte, size));
            }
            needed.scatter(&second, &second.strides, &second, &bits, &mut budget).expect("steps enough");
            if size == 2 {
                prop_assert_eq!(needed.words, marked);
            }
        }
    }

    #[test]
    fn an_empty_budget_stops_the_walk() {
        let view = View {
            dtype: DataType::F16,
            order: Order(0x21),
            dims: vec![1, 1000],
            strides: vec![2, 4],
            location: Location::Cmx,
            offset: 0,
        };
        let mut needed = memory();
        assert_eq!(needed.mark(&view, &mut Budget::new(500)), None);
        assert_eq!(needed.mark(&view, &mut Budget::new(5000)), Some(()));
    }
}
