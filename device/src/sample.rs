//! The 4 KiB of an input that the hash engine looks at, taken while the bytes pass.

/// Bytes that are looked at.
pub const SAMPLE_BYTES: usize = 4096;
const WINDOW: usize = 64;
const WINDOWS: usize = SAMPLE_BYTES / WINDOW;

/// Collects the sample of an input of known length from pieces of any size. Inputs of up to 4 KiB are taken whole,
/// of longer ones 64 windows of 64 bytes, evenly spread, the first and the last bytes among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampler {
    total: usize,
    seen: usize,
    window: usize,
    sample: Vec<u8>,
}

impl Sampler {
    /// For an input of `total` bytes; `memory` is cleared and used for the sample.
    pub fn new(total: usize, mut memory: Vec<u8>) -> Self {
        memory.clear();
        memory.reserve(total.min(SAMPLE_BYTES));
        Sampler { total, seen: 0, window: 0, sample: memory }
    }

    /// The next bytes of the input.
    pub fn push(&mut self, bytes: &[u8]) {
        let end = self.seen + bytes.len();
        if self.total <= SAMPLE_BYTES {
            let room = self.total.saturating_sub(self.sample.len()).min(bytes.len());
            self.sample.extend_from_slice(&bytes[..room]);
        } else {
            while self.window < WINDOWS {
                let start = window_start(self.total, self.window);
                let from = start.max(self.seen);
                let to = (start + WINDOW).min(end);
                if from < to {
                    self.sample.extend_from_slice(&bytes[from - self.seen..to - self.seen]);
                }
                if end < start + WINDOW {
                    break;
                }
                self.window += 1;
            }
        }
        self.seen = end;
    }

    /// The sample, once all bytes were pushed.
    pub fn finish(self) -> Vec<u8> {
        self.sample
    }
}

fn window_start(total: usize, window: usize) -> usize {
    // In 128 bits: an input may have up to 2^32 bytes.
    (window as u128 * (total - WINDOW) as u128 / (WINDOWS as u128 - 1)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(input: &[u8], piece: usize) -> Vec<u8> {
        let mut sampler = Sampler::new(input.len(), Vec::new());
        input.chunks(piece).for_each(|c| sampler.push(c));
        sampler.finish()
    }

    #[test]
    fn the_sample_is_what_the_hash_looks_at() {
        let graph = ncs2::blob::BlobHash([3; 32]);
        for len in [0, 1, 4095, 4096, 4097, 4200, 10_000, 150_528, 602_112] {
            let input: Vec<u8> = (0..len).map(|i: usize| ((i * 2_654_435_761) >> 9) as u8).collect();
            let (mut whole, mut sampled) = ([0; 100], [0; 100]);
            crate::hash::output(&graph, &input, &mut whole);
            crate::hash::output_of_sample(&graph, len, &sample(&input, 1000), &mut sampled);
            assert_eq!(whole, sampled, "{len}");
        }
    }

    #[test]
    fn pieces_do_not_matter() {
        for len in [0, 1, 63, 4095, 4096, 4097, 10_000, 150_528] {
            let input: Vec<u8> = (0..len).map(|i: usize| ((i * 2_654_435_761) >> 7) as u8).collect();
            let whole = sample(&input, len.max(1));
            assert_eq!(whole.len(), len.min(SAMPLE_BYTES), "{len}");
            for piece in [1, 7, 64, 1000, 16_384] {
                assert_eq!(sample(&input, piece), whole, "{len} in pieces of {piece}");
            }
            assert_eq!(whole.last(), input.last());
        }
    }
}
