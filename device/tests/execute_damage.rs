//! Damaged graphs: `prepare` refuses, or they run to their end in the time that they announced. Never a panic.

mod execute_support;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::SystemTime;

use execute_support::{blobs, data};
use ncs2::blob::{DataType, Graph, Location, NceOp, Order, PoolKind, StageKind};
use ncs2_device::execute::{Program, Threads};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// `PROPTEST_CASES` for a longer search, `NCS2_SEED` for the same one again. The seed is printed (and shown on failure).
fn config() -> ProptestConfig {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let seed = number("NCS2_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(0, |now| now.as_nanos() as u64)
    });
    let cases = number("PROPTEST_CASES").map_or(600, |n| n as u32);
    println!("NCS2_SEED={seed} PROPTEST_CASES={cases}");
    let rng_seed = RngSeed::Fixed(seed);
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..ProptestConfig::default() }
}

/// Graphs to damage: whole models, and all small graphs of single stages.
fn victims() -> &'static [(String, Vec<u8>)] {
    static VICTIMS: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    VICTIMS.get_or_init(|| {
        let models =
            ["tiny_fp16_s2", "tiny_u8_s1", "lstm_fp16_s1", "swconv_fp16_s1", "ssd_head_u8_s1", "mlp_fp16_s1"];
        let models = models.iter().map(|name| data("models").join(name).with_extension("blob"));
        let read = |path: PathBuf| {
            let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
            (name, std::fs::read(&path).expect("committed graph"))
        };
        // Models are richer than single stages: each counts several times.
        let models: Vec<_> = models.map(read).collect();
        let many = models.iter().cycle().take(10 * models.len()).cloned();
        many.chain(blobs(&data("stages")).into_iter().map(read)).collect()
    })
}

/// What is accepted is bounded, but perhaps by hours; a test has seconds.
const WORK: u64 = 1 << 28;

/// Runs what `prepare` accepted to its end, and checks that the work it announced bounds the time: 2^28 element operations
/// take some 0.3 s where they are multiply-accumulates, and no more than a few seconds of this thread's time where each is slow.
fn run_bounded(name: &str, bytes: &[u8], graph: &Graph, fill: u8) {
    let memory = graph.bss_bytes.saturating_add(graph.input_bytes).saturating_add(graph.output_bytes);
    let Ok(program) = Program::prepare(bytes, graph) else { return };
    if program.work() >= WORK || memory >= 1 << 26 {
        return;
    }
    let seconds = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
    };
    let mut output = vec![0; graph.output_bytes];
    let mut arena = program.arena();
    arena.fill(u16::from_le_bytes([fill, fill]));
    let start = seconds();
    program.run_on(Threads::One, &mut arena, &vec![fill; graph.input_bytes], &mut output);
    let spent = seconds() - start;
    assert!(spent < 20.0, "{name}: {spent} s for {} element operations", program.work());
}

/// Bytes of inputs and memory: small, about 1 and −1 as FP16, and no numbers.
fn fills() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![0, 1, 0x3C, 0xBC, 0x7C, 0xFF])
}

proptest! {
    #![proptest_config(config())]

    /// Fields of the parsed graph overwritten, as no parser would let them pass, and parameters: `prepare` refuses, or
    /// the graph runs to its end.
    #[test]
    fn damaged_graphs_never_panic(
        victim in any::<prop::sample::Index>(),
        fill in fills(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..24, any::<prop::sample::Index>(), any::<u32>()), 1..5),
    ) {
        let (name, bytes) = victim.get(victims());
        let mut bytes = bytes.clone();
        let mut graph = Graph::parse(&bytes).expect("committed model");
        for (stage, what, index, value) in damage {
            let count = graph.stages.len();
            let stage = &mut graph.stages[stage.index(count)];
            let small = value % 12;
            let wild = [0, 1, 3, 17, 64, 255, 4096, 1 << 16, 1 << 24, 1 << 31, u32::MAX, value][small as usize];
            let buffers = stage.buffers.len();
            let view = &mut stage.buffers[index.index(buffers)];
            if view.dims.is_empty() {
                continue;
            }
            let d = index.index(view.dims.len().min(view.strides.len()));
            match what {
                0 => stage.kind = StageKind(value % 142),
                1 => view.dims[d] = wild,
                2 => view.dims[d] = view.dims[d].wrapping_add(small).wrapping_sub(6),
                3 => view.strides[d] = wild,
                4 => view.strides[d] = view.strides[d].wrapping_mul(small),
                5 => view.offset = wild as usize,
                6 => view.offset = view.offset.wrapping_add(small as usize * 2).wrapping_sub(12),
                7 => view.order = Order([0x1, 0x3, 0x21, 0x43, 0x321, 0x213, 0x4321, 0x4213, 0x3333, 0, wild, value][small as usize]),
                8 => view.dtype = [DataType::F16, DataType::U8, DataType::S32, DataType::F32, DataType::I8][small as usize % 5],
                9 => {
                    use Location::{Blob, Bss, Cmx, Input, None, Output};
                    view.location = [None, Input(0), Input(9), Output(0), Output(9), Blob, Bss, Cmx][small as usize % 8];
                }
                10 => view.dims.truncate(d),
                11 => (view.dims, view.strides) = (vec![small; d + 1], vec![wild; d + 1]),
                12 => stage.buffers.truncate(index.index(buffers + 1).max(1)),
                13 => stage.buffers.swap(0, index.index(buffers)),
                14..=17 => {
                    let words = stage.params.len() / 4;
                    if words > 0 {
                        let at = stage.params.start + index.index(words) * 4;
                        let new = if what < 16 { wild } else { small };
                        bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
                    }
                }
                _ => {
                    let Some(nce) = &mut stage.nce else { continue };
                    match what {
                        18 => nce.kernel = (wild, small),
                        19 => nce.stride = wild,
                        20 => nce.pad = [None, Some(0), Some(15), Some(value)][small as usize % 4],
                        21 => nce.input = small as usize,
                        22 => nce.descriptors[0].channels = wild,
                        _ => nce.op = [NceOp::Conv, NceOp::ConvPool, NceOp::Pool(PoolKind::Max), NceOp::Pool(PoolKind::Average), NceOp::FullyConnected][small as usize % 5],
                    }
                }
            }
        }
        run_bounded(name, &bytes, &graph, fill);
    }

    /// Words of the header, stage records and dims arrays overwritten: either the parser or `prepare` refuses, or the
    /// graph runs to its end.
    #[test]
    fn damaged_blobs_never_panic(
        victim in any::<prop::sample::Index>(),
        fill in fills(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0usize..3, any::<u32>()), 1..6),
    ) {
        let (name, bytes) = victim.get(victims());
        let mut bytes = bytes.clone();
        let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        // Where the structure is: from the counts to the constants, and the dims arrays at their end.
        let consts = word(&bytes, 128) as usize;
        let last = bytes.len() / 4;
        let structure = (17..consts / 4).chain(last.saturating_sub(600)..last).collect::<Vec<_>>();
        for (index, way, value) in damage {
            let at = structure[index.index(structure.len())] * 4;
            let old = word(&bytes, at);
            let new = match way {
                0 => value,
                1 => old.wrapping_add(value % 9).wrapping_sub(4),
                _ => [0, 1, 2, 7, 64, 0xFFFF, 0x7FFF_FFFF, u32::MAX][value as usize % 8],
            };
            bytes[at..at + 4].copy_from_slice(&new.to_le_bytes());
        }
        let Ok(graph) = Graph::parse(&bytes) else { return Ok(()) };
        run_bounded(name, &bytes, &graph, fill);
    }
}
