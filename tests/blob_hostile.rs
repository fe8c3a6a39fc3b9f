//! Damaged and hostile graph files: every one is refused or counted, none panics, none takes much memory or time.
#![allow(unsafe_code, reason = "counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::time::{Duration, Instant};

use ncs2::blob::{Blob, BlobError, Graph};
use ncs2::{ErrorKind, Result};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Counts the live and the most live bytes of each thread, so that tests that run at the same time do not mix.
struct Counting;

thread_local! {
    static LIVE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

fn account(add: usize, remove: usize) {
    // The thread's storage may be gone when it ends; nothing is measured then.
    let _ = LIVE.try_with(|cell| {
        let (live, peak) = cell.get();
        let live = (live + add).saturating_sub(remove);
        cell.set((live, peak.max(live)));
    });
}

// SAFETY: every call goes to the system's allocator unchanged, which owns the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        account(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        account(0, layout.size());
        // SAFETY: `memory` came from `alloc` above, thus from the system.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        account(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs `what` and returns its result and the most memory that it held.
fn peak_of<T>(what: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.with(|cell| {
        let (live, _) = cell.get();
        cell.set((live, live));
        live
    });
    let result = what();
    (result, LIVE.with(Cell::get).1 - before)
}

/// A parsed view takes some 200 bytes and at least 36 in the file; a table of names and a growing list come on top.
fn parse_bound(file: &[u8]) -> usize {
    16 * file.len() + (1 << 20)
}

/// Bits for 512 MB of scratch, those of one stage's output, and some slack.
const COUNT_BOUND: usize = 160 << 20;
const COUNT_TIME: Duration = Duration::from_secs(20);

/// Parses and, where that works, counts; checks the bounds. True where the file parsed.
fn survive(file: &[u8]) -> bool {
    let (graph, bytes) = peak_of(|| Graph::parse(file));
    assert!(bytes <= parse_bound(file), "parsing {} bytes took {bytes} bytes of memory", file.len());
    let Ok(graph) = graph else { return false };
    let start = Instant::now();
    let (macs, bytes) = peak_of(|| graph.macs(file));
    assert!(start.elapsed() < COUNT_TIME, "counting took {:?}", start.elapsed());
    assert!(bytes <= COUNT_BOUND + parse_bound(file), "counting took {bytes} bytes of memory");
    if start.elapsed() > Duration::from_millis(100) {
        println!("{} stages counted in {:.1?} with {} KiB", graph.stages.len(), start.elapsed(), bytes >> 10);
    }
    assert_eq!(macs.per_stage.len(), graph.stages.len());
    assert!(graph.weights_bytes() <= file.len());
    true
}

fn model(name: &str) -> Vec<u8> {
    file_of("models", name)
}

fn file_of(folder: &str, name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(folder).join(name);
    let path = path.with_extension("blob");
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn word(file: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(file[offset..offset + 4].try_into().expect("4 bytes"))
}

fn put(file: &mut [u8], offset: usize, value: u32) {
    file[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
}

#[derive(Clone, Debug)]
enum Damage {
    Bit(Spot, u8),
    Word(Spot, u32),
    Cut(prop::sample::Index),
}

/// Where a change hits: anywhere would nearly always be a weight.
#[derive(Clone, Debug)]
enum Spot {
    Header(prop::sample::Index),
    Stages(prop::sample::Index),
    /// Arrays of dims and strides lie at the end.
    Shapes(prop::sample::Index),
    Anywhere(prop::sample::Index),
}

impl Spot {
    fn of(&self, file: &[u8]) -> usize {
        let consts = (word(file, 128) as usize).min(file.len());
        let (start, end, index) = match self {
            Spot::Header(index) => (52, 132, index),
            Spot::Stages(index) => (192, consts.max(196), index),
            Spot::Shapes(index) => (file.len() - 2048, file.len(), index),
            Spot::Anywhere(index) => (0, file.len(), index),
        };
        (start + 4 * index.index((end - start) / 4)).min(file.len() - 4)
    }
}

fn damages() -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<prop::sample::Index>;
    let spot = prop_oneof![
        1 => index().prop_map(Spot::Header),
        4 => index().prop_map(Spot::Stages),
        4 => index().prop_map(Spot::Shapes),
        1 => index().prop_map(Spot::Anywhere),
    ];
    let edge = prop_oneof![
        Just(0u32),
        Just(1),
        Just(2),
        Just(u32::MAX),
        Just(i32::MAX as u32),
        Just(1 << 31),
        Just(512 << 20),
        (0u32..32).prop_map(|bit| 1 << bit),
        0u32..300,
        any::<u32>(),
    ];
    let damage = prop_oneof![
        3 => (spot.clone(), 0u8..32).prop_map(|(spot, bit)| Damage::Bit(spot, bit)),
        6 => (spot, edge).prop_map(|(spot, value)| Damage::Word(spot, value)),
        1 => index().prop_map(Damage::Cut),
    ];
    prop::collection::vec(damage, 1..4)
}

fn apply(file: &mut Vec<u8>, damages: &[Damage]) {
    for damage in damages {
        match damage {
            Damage::Bit(spot, bit) => {
                let at = spot.of(file);
                let value = word(file, at) ^ (1 << bit);
                put(file, at, value);
            }
            Damage::Word(spot, value) => {
                let at = spot.of(file);
                put(file, at, *value);
            }
            Damage::Cut(index) => {
                let len = 4096 + index.index(file.len() - 4095);
                file.truncate(len);
                // A cut that is not noticed at once gets deeper into the parser.
                put(file, 56, len as u32);
            }
        }
    }
}

/// Another one in each run.
fn rand_seed() -> u64 {
    RandomState::new().hash_one(0)
}

#[test]
fn damaged_files_are_refused_or_counted() {
    let number = std::env::var("NCS2_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand_seed);
    println!("NCS2_SEED={number}");
    let mut seed = [0; 32];
    seed[..8].copy_from_slice(&number.to_le_bytes());
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500);
    for (folder, name) in [
        ("models", "tiny_u8_s1"),
        ("models", "lstm_fp16_s1"),
        ("models", "swconv_fp16_s1"),
        ("models", "ssd_head_u8_s1"),
        ("blobs", "tconv_u8_s2"),
        ("blobs", "pruned_u8_s2"),
        ("blobs", "tiny_nhwc_u8_s2"),
    ] {
        let whole = file_of(folder, name);
        let (tried, parsed) = (Cell::new(0), Cell::new(0));
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed))
            .run(&damages(), |damages| {
                let mut file = whole.clone();
                apply(&mut file, &damages);
                tried.set(tried.get() + 1);
                parsed.set(parsed.get() + u32::from(survive(&file)));
                Ok(())
            })
            .unwrap_or_else(|failure| panic!("{name}, NCS2_SEED={number}: {failure}"));
        println!("{name}: {} of {} damaged files still parse", parsed.get(), tried.get());
        assert!(parsed.get() > tried.get() / 50, "the damage is too coarse to reach the count");
    }
}

#[test]
fn every_cut_of_a_small_file_is_refused() {
    let whole = model("tiny_u8_s1");
    for len in (0..whole.len()).step_by(3) {
        let mut file = whole[..len].to_vec();
        assert!(!survive(&file), "{len} bytes of {} parsed", whole.len());
        if len >= 132 {
            put(&mut file, 56, len as u32);
            survive(&file);
        }
    }
}

#[test]
fn huge_counts_do_not_allocate() {
    // Inputs, outputs, stages, and the counts inside the first NCE stage of tiny: descriptors, buffers.
    for (offset, value) in [72, 76, 80, 84, 88, 96, 100, 440, 548, 552, 652]
        .into_iter()
        .flat_map(|offset| [u32::MAX, i32::MAX as u32, 1 << 24].map(|value| (offset, value)))
    {
        let mut file = model("tiny_u8_s1");
        put(&mut file, offset, value);
        assert!(!survive(&file), "{value} at byte {offset} parsed");
    }
}

/// Writes graph files of any kind: what the compiler would never emit.
struct Builder {
    consts: Vec<u8>,
    stages: Vec<u32>,
    count: u32,
    bss: u32,
}

impl Builder {
    fn new(bss: u32) -> Self {
        Builder { consts: Vec::new(), stages: Vec::new(), count: 0, bss }
    }

    fn array(&mut self, words: &[u32]) -> u32 {
        let at = self.consts.len() as u32;
        self.consts.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        at
    }

    /// FP16 view with 4 dims, in BSS (4) or the file (3).
    fn view(&mut self, dims: [u32; 4], strides: [u32; 4], location: u32, offset: u32) -> Vec<u32> {
        let (dims, strides) = (self.array(&dims), self.array(&strides));
        vec![0, 0x4321, 4, 3, dims, 3, strides, location, offset]
    }

    fn stage(&mut self, kind: u32, params: &[u32], buffers: &[&[u32]]) {
        let mut rest = Vec::new();
        if kind == 38 {
            rest.push(buffers.len() as u32);
        }
        rest.extend(buffers.concat());
        let words = 4 + params.len() + rest.len() + 2;
        self.stages.extend([4 * words as u32, kind, 0, 4 + 4 * params.len() as u32]);
        self.stages.extend(params.iter().chain(&rest));
        self.stages.extend([kind, 0x7F83_FF19]);
        self.count += 1;
    }

    fn build(mut self) -> Vec<u8> {
        let (dims, strides) = (self.array(&[1, 1, 1, 1]), self.array(&[2, 2, 2, 2]));
        let mut words = vec![0x666C_657Fu32];
        words.resize(13, 0);
        words.extend([9709, 0, 6, 0, 1, 1, self.count, 2, 2, 1, self.bss, 19, 16, 1, 1, 1]);
        words.extend([192, 256, 320, 0]);
        for name in [*b"in\0\0", *b"out\0"] {
            words.resize(words.len().next_multiple_of(16), 0);
            words.resize(words.len().max(48), 0);
            words.extend([0, 0, 16, u32::from_le_bytes(name), 0, 0, 0, 0, 0x4321, 4, 3, dims, 3, strides]);
        }
        words.resize(80, 0);
        words.extend(&self.stages);
        words.resize(words.len().next_multiple_of(16), 0);
        words[32] = 4 * words.len() as u32;
        let mut file: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        file.extend(&self.consts);
        file.resize(file.len().next_multiple_of(64), 0);
        let len = file.len() as u32;
        put(&mut file, 56, len);
        file
    }
}

/// A convolution 1×1 with one descriptor, buffers input, weights, output.
fn conv_params(channels: u32) -> Vec<u32> {
    let none = u32::MAX;
    vec![1, 0, 4, 0, 0, 2, 1, none, none, 0, channels, 1, 1, 1, 0, 0, 0, 0, 0]
}

#[test]
fn graphs_that_are_all_work_are_bounded() {
    // Thousands of copies of half a gigabyte in steps of one element each, and of whole stretches.
    let mut builder = Builder::new(400 << 20);
    let from = builder.view([1, 1 << 12, 1 << 12, 1], [2, 4, 1 << 14, 1 << 26], 4, 0);
    let to = builder.view([1, 1 << 12, 1 << 12, 1], [2, 4, 1 << 14, 1 << 26], 4, 2);
    let all = builder.view([1 << 27, 1, 1, 1], [2, 0, 0, 0], 4, 0);
    for _ in 0..2000 {
        builder.stage(19, &[], &[&from, &to]);
        builder.stage(19, &[], &[&all, &all]);
    }
    assert!(survive(&builder.build()));

    // Thousands of convolutions whose weights are all zero: each channel asks who wrote it.
    let channels = 4096;
    let mut builder = Builder::new(400 << 20);
    let weights_at = builder.consts.len() as u32;
    builder.consts.resize(16 * channels as usize, 0);
    let input = builder.view([1, 1, channels, 1], [2, 2, 90_000, 0], 4, 0);
    let weights = builder.view([8, 1, channels, 1], [2, 16, 16, 16 * channels], 3, weights_at);
    let output = builder.view([64, 64, 8, 1], [2, 128, 8192, 0], 4, 1 << 20);
    for _ in 0..8000 {
        builder.stage(38, &conv_params(8), &[&input, &weights, &output]);
    }
    assert!(survive(&builder.build()));
}

#[test]
fn overlapping_strides_do_not_multiply() {
    // Stride 0: a thousand million elements in two bytes.
    let mut builder = Builder::new(4096);
    let dense = builder.view([1, 1 << 15, 1 << 15, 1], [2, 0, 0, 0], 4, 0);
    builder.stage(19, &[], &[&dense, &dense]);
    let error = Graph::parse(&builder.build()).expect_err("more elements than a stick's memory");
    assert!(error.problem.contains("exceed"), "{error}");

    // Fewer: allowed, and counted.
    let mut builder = Builder::new(4096);
    let dense = builder.view([1, 1 << 10, 1 << 10, 1], [2, 0, 2, 0], 4, 0);
    builder.stage(19, &[], &[&dense, &dense]);
    builder.stage(34, &[0, 2, 1, 3, u32::MAX, u32::MAX, u32::MAX, u32::MAX], &[&dense, &dense]);
    builder.stage(34, &[1, 1, 1, 3], &[&dense, &dense]);
    assert!(survive(&builder.build()));
}

fn refusal(change: impl FnOnce(&mut Vec<u8>)) -> BlobError {
    let mut file = model("tiny_u8_s1");
    change(&mut file);
    Graph::parse(&file).expect_err("the change must be refused")
}

#[test]
fn a_refusal_names_byte_field_expected_and_found() {
    let cases: [(usize, u32, &str, &str); 17] = [
        (52, 1, "magic", "9709 expected, 1 found"),
        (60, 5, "version", "6.0 expected, 5.0 found"),
        (88, 0, "batch", "1 to 4294967295 expected, 0 found"),
        (92, 1 << 31, "scratch (BSS) bytes", "0 to 536870912 expected"),
        (96, 21, "CMX slices", "0 to 20 expected, 21 found"),
        (116, 4, "input section", "4 found"),
        (192, 1, "input 0 / index", "0 expected, 1 found"),
        (196, u32::MAX, "input 0 / offset", "-1 found"),
        (352, 5, "stage 0 / buffer 0 / element type", "0 to 4 expected, 5 found"),
        (356, 0x4322, "stage 0 / buffer 0 / order", "0x4322 found"),
        (360, 9, "stage 0 / buffer 0 / number of dimensions", "1 to 8 expected, 9 found"),
        (364, 2, "stage 0 / buffer 0 / dims", "dynamic shapes unsupported"),
        (380, 6, "stage 0 / buffer 0 / location", "0 to 5 expected, 6 found"),
        (384, 1, "stage 0 / buffer 0 / tensor index", "below 1 expected, 1 found"),
        (392, 1, "stage 0 / buffer 0 / offset", "within the 3072 bytes of Input(0)"),
        (436, 0, "stage 0 / end mark", "0x7f83ff19 expected"),
        (576, 4, "stage 2 / descriptor 0 / output", "-1 to 3 expected, 4 found"),
    ];
    for (offset, value, field, problem) in cases {
        let error = refusal(|file| put(file, offset, value));
        assert_eq!(error.field, field, "{error}");
        assert!(error.problem.contains(problem), "{error}");
        // Problems of an order or of an area are reported at their own word.
        assert!(error.offset.abs_diff(offset) <= 4, "{error}, changed at {offset}");
    }
}

#[test]
fn injected_stages_nest_once_only() {
    // Stage 5 of tiny carries a Copy: make it an NCE stage that carries another.
    let mut builder = Builder::new(1 << 16);
    let data = builder.view([4, 4, 8, 1], [2, 16, 64, 512], 4, 0);
    let weights = builder.view([8, 1, 8, 1], [2, 16, 16, 128], 3, 0);
    let record = |injected: &[u32]| {
        let mut part = Builder::new(0);
        let mut params = conv_params(8);
        if !injected.is_empty() {
            *params.last_mut().expect("the flag") = 1;
            params.extend(injected);
        }
        part.stage(38, &params, &[&data, &weights, &data]);
        part.stages
    };
    let plain = record(&[]);
    let once = record(&plain);
    let twice = record(&once);
    builder.consts.resize(1024, 0);
    for (stages, accepted) in [(plain, true), (once, true), (twice, false)] {
        let file = Builder { stages, count: 1, consts: builder.consts.clone(), bss: 1 << 16 }.build();
        match Graph::parse(&file) {
            Ok(_) => assert!(accepted, "two levels parsed"),
            Err(error) => {
                assert!(!accepted, "{error}");
                assert!(error.problem.contains("one level"), "{error}");
            }
        }
    }
}

#[test]
fn the_batch_multiplies_counts_and_buffers() {
    let mut file = model("tiny_u8_s1");
    put(&mut file, 88, 4);
    Graph::parse(&file).expect_err("four elements do not fit into the buffers of one");
    put(&mut file, 80, 4 * 3072);
    put(&mut file, 84, 4 * 20);
    let graph = Graph::parse(&file).expect("a batch of four");
    let macs = graph.macs(&file);
    assert_eq!((macs.model, macs.ordered), (4 * 714_480, 4 * 1_069_296));
    assert_eq!((graph.batch, graph.inputs[0].bytes(), graph.input_bytes), (4, 3072, 12288));
}

fn open(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> Result<Blob> {
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).expect("a file in a temporary folder");
    Blob::open(path)
}

#[test]
fn opening_says_what_is_wrong_and_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let whole = model("tiny_u8_s1");
    let mut old = whole.clone();
    put(&mut old, 60, 5);
    // Four times its output, as of a network with a batch whose output has none.
    let mut alone = whole.clone();
    put(&mut alone, 88, 4);
    let damaged = &whole[..9000];
    for (name, bytes, parts) in [
        ("empty.blob", &[][..], &["empty", "recompile"][..]),
        ("text.blob", b"layer { name: \"data\" }", &["no compiled graph", "recompile"]),
        ("old.blob", &old, &["6.0 expected, 5.0 found", "2021.4.2"]),
        ("alone.blob", &alone, &["× batch 4", "has no batch", "MYRIAD_DETECT_NETWORK_BATCH=NO"]),
        ("cut.blob", damaged, &["23552 bytes announced, the file has 9000", "recompile"]),
    ] {
        let error = open(&folder, name, bytes).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::InvalidBlob, "{error}");
        for part in parts.iter().chain(&[name]) {
            assert!(error.to_string().contains(part), "{part:?} is missing in: {error}");
        }
    }

    let missing = Blob::open(folder.path().join("none.blob")).expect_err("no such file");
    assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    assert!(missing.to_string().contains("none.blob"), "{missing}");
    let dir = Blob::open(folder.path()).expect_err("a folder");
    assert_eq!(dir.kind(), ErrorKind::InvalidInput, "{dir}");
    assert!(dir.to_string().contains("folder"), "{dir}");

    let large = folder.path().join("large.blob");
    std::fs::File::create(&large).and_then(|file| file.set_len(600 << 20)).expect("a sparse file");
    let large = Blob::open(large).expect_err("600 MB");
    assert_eq!(large.kind(), ErrorKind::InvalidBlob, "{large}");
    assert!(large.to_string().contains("536870912"), "{large}");

    use std::os::unix::fs::PermissionsExt;
    let secret = folder.path().join("secret.blob");
    std::fs::write(&secret, &whole).expect("a file");
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o000)).expect("its mode");
    match Blob::open(&secret) {
        Err(error) => assert_eq!(error.kind(), ErrorKind::Permission, "{error}"),
        Ok(_) => println!("skipped: this user (root?) may read any file"),
    }
}

#[test]
fn the_copy_is_sealed_shared_and_hashed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let whole = model("tiny_u8_s1");
    let blob = open(&folder, "tiny_u8_s1.blob", &whole).expect("a good blob");
    // `sha256sum tests/data/models/tiny_u8_s1.blob`
    let hash = "f23ee45c4f281c1dce9854708756412a33e097724a7a6775ff26fb9632042c24";
    assert_eq!(blob.hash().to_string(), hash);
    assert_eq!(blob.name(), "tiny_u8_s1");
    assert_eq!(blob.bytes(), whole);
    if !blob.shared_bytes().is_sealed() {
        println!("this kernel refuses sealed memory files: heap copy");
    }

    // A later change of the file changes nothing.
    std::fs::write(folder.path().join("tiny_u8_s1.blob"), b"changed").expect("a change");
    assert_eq!(blob.bytes(), whole);

    let shared = blob.shared_bytes();
    assert!(std::ptr::eq(blob.clone().bytes(), shared.as_ref()), "one copy");
    drop(blob);
    let there = std::thread::spawn(move || shared.as_ref().len());
    assert_eq!(there.join().expect("the handle crosses threads"), whole.len());

    let memory = Blob::from_bytes("folder/tiny_u8_s1.blob", &whole).expect("a good blob");
    assert_eq!((memory.name(), memory.hash().to_string().as_str()), ("tiny_u8_s1", hash));
    let error = Blob::from_bytes("upload", &whole[..100]).expect_err("cut");
    assert!(error.to_string().contains("upload"), "{error}");
}

#[test]
fn stages_that_bring_code_are_counted() {
    let graph = |kinds: &[u32]| {
        let mut builder = Builder::new(1 << 10);
        let view = builder.view([8, 1, 1, 1], [2, 0, 0, 0], 4, 0);
        for &kind in kinds {
            builder.stage(kind, &[], &[&view, &view]);
        }
        Graph::parse(&builder.build())
    };
    assert_eq!(graph(&[19, 19]).expect("a graph").custom_stages(), 0);
    assert_eq!(graph(&[19, 115, 115]).expect("a graph").custom_stages(), 2);
}
