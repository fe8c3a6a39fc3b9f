//! The `hash` engine: outputs that are a fixed function of graph and input, at almost no cost.
//!
//! For throughput, soak and mix-up tests: two different answers that were swapped, torn or delivered twice do not match
//! what the host computes for their inputs with the same function.
use ncs2::blob::BlobHash;

/// Most bytes of the input that are looked at.
const SAMPLED: usize = 4096;
/// Bytes of one sample.
const BLOCK: usize = 64;

/// Fills `out` with a function of the graph, the input's length and at most 4 KiB of it: all of a short input, else
/// 64-byte blocks spread evenly over it, the first and the last bytes among them.
pub fn output(graph: &BlobHash, input: &[u8], out: &mut [u8]) {
    let mut lanes = begin(graph, input.len());
    if input.len() <= SAMPLED {
        absorb(&mut lanes, input);
    } else {
        let blocks = SAMPLED / BLOCK;
        let last = input.len() - BLOCK;
        for i in 0..blocks {
            let begin = last * i / (blocks - 1);
            absorb(&mut lanes, &input[begin..begin + BLOCK]);
        }
    }
    finish(lanes, out);
}

/// The same for an input of `len` bytes of which a [`Sampler`](crate::Sampler) took `sample` while they passed.
pub fn output_of_sample(graph: &BlobHash, len: usize, sample: &[u8], out: &mut [u8]) {
    let mut lanes = begin(graph, len);
    absorb(&mut lanes, sample);
    finish(lanes, out);
}

fn begin(graph: &BlobHash, len: usize) -> [u64; 4] {
    let mut lanes = [0u64; 4];
    for (lane, bytes) in lanes.iter_mut().zip(graph.0.as_chunks::<8>().0) {
        *lane = u64::from_le_bytes(*bytes);
    }
    lanes[0] ^= (len as u64).wrapping_mul(PRIME);
    lanes
}

fn finish([a, b, c, d]: [u64; 4], out: &mut [u8]) {
    let mut state = mix(a ^ mix(b ^ mix(c ^ mix(d))));
    // A counter through a bijection: no two words of an answer are equal, and each depends on all that was sampled.
    let (words, rest) = out.as_chunks_mut::<8>();
    for word in words {
        state = state.wrapping_add(PRIME);
        *word = mix(state).to_le_bytes();
    }
    let tail = mix(state.wrapping_add(PRIME)).to_le_bytes();
    rest.copy_from_slice(&tail[..rest.len()]);
}

/// 2^64 divided by the golden ratio, odd.
const PRIME: u64 = 0x9E37_79B9_7F4A_7C15;

/// The finaliser of SplitMix64: a bijection in which each input bit moves half of the output's.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Takes bytes in, 32 at a time over four independent lanes. Each step is a bijection of its lane for given bytes and of
/// the bytes for a given lane, so that a single changed byte always changes the state.
fn absorb(lanes: &mut [u64; 4], bytes: &[u8]) {
    let mut step = |chunk: &[u8; 32]| {
        for (lane, bytes) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            let x = (*lane ^ u64::from_le_bytes(*bytes)).wrapping_mul(PRIME);
            *lane = x ^ (x >> 29);
        }
    };
    let (chunks, rest) = bytes.as_chunks::<32>();
    chunks.iter().for_each(&mut step);
    if !rest.is_empty() {
        let mut last = [0; 32];
        last[..rest.len()].copy_from_slice(rest);
        step(&last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAPH: BlobHash = BlobHash([7; 32]);

    fn of(graph: &BlobHash, input: &[u8], n: usize) -> Vec<u8> {
        let mut out = vec![0; n];
        output(graph, input, &mut out);
        out
    }

    #[test]
    fn it_is_fixed() {
        // Hosts of other builds must compute the same.
        let input: Vec<u8> = (0..10_000u32).map(|i| (i * 31) as u8).collect();
        assert_eq!(of(&GRAPH, &input, 20), of(&GRAPH, &input, 20));
        assert_eq!(of(&GRAPH, &input, 20)[..16], of(&GRAPH, &input, 2000)[..16]);
        assert_ne!(of(&GRAPH, &input, 16), of(&BlobHash([8; 32]), &input, 16));
    }

    #[test]
    fn every_byte_of_a_short_input_matters() {
        for n in [1, 7, 31, 32, 33, 100, 4096] {
            let mut input = vec![0u8; n];
            let before = of(&GRAPH, &input, 16);
            for i in 0..n {
                for bit in 0..8 {
                    input[i] ^= 1 << bit;
                    assert_ne!(of(&GRAPH, &input, 16), before, "byte {i} of {n}, bit {bit}");
                    input[i] ^= 1 << bit;
                }
            }
            assert_ne!(of(&GRAPH, &input[..n - 1], 16), before, "length {n}");
        }
    }

    #[test]
    fn every_sampled_byte_of_a_long_input_matters_and_they_are_4096() {
        let mut input: Vec<u8> =
            (0..150_528u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let before = of(&GRAPH, &input, 16);
        let mut matter = 0;
        for i in 0..input.len() {
            input[i] ^= 1;
            matter += usize::from(of(&GRAPH, &input, 16) != before);
            input[i] ^= 1;
        }
        assert_eq!(matter, SAMPLED);
        for i in [0, 63, input.len() - 64, input.len() - 1] {
            input[i] ^= 0x80;
            assert_ne!(of(&GRAPH, &input, 16), before, "byte {i}");
            input[i] ^= 0x80;
        }
    }

    #[test]
    fn a_changed_bit_moves_half_of_the_output() {
        let input = vec![0u8; 5000];
        let before = of(&GRAPH, &input, 2048);
        let mut changed = input.clone();
        changed[4999] = 1;
        let after = of(&GRAPH, &changed, 2048);
        let bits: u32 = before.iter().zip(&after).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert!((7500..8900).contains(&bits), "{bits} of 16384 bits");
        // Every eight bytes, so that a torn answer is noticed.
        assert!(before.chunks(8).zip(after.chunks(8)).all(|(a, b)| a != b));
    }
}
