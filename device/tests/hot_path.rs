//! What an inference costs on the device side, without its host: no allocation, a few microseconds.
#![allow(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use ncs2::clock::Instant;
use ncs2::wire::{
    EventKind, FifoDirection, GraphCommand, Header, StreamId, StreamName, TensorDescriptor, VERIFY_HEADER_LEN,
};
use ncs2_device::{Config, Engine, PreparedCache, Profile, Timing, VirtualStick};

thread_local!(static ALLOCATIONS: Cell<u64> = const { Cell::new(0) });

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged, which owns the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: as the caller promised us.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised us.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Bare {
    stick: VirtualStick,
    now: Instant,
    id: i32,
}

impl Bare {
    fn event(&mut self, kind: EventKind, stream: u32, payload: &[u8], size: u32, name: &str) {
        self.id += 1;
        let mut header = Header::request(self.id, kind, StreamId(stream), size);
        header.name = StreamName::new(name).expect("short");
        self.stick.handle_out(&header.encode(), self.now);
        self.stick.handle_out(payload, self.now);
    }

    fn write(&mut self, stream: u32, payload: &[u8]) {
        self.event(EventKind::Write, stream, payload, payload.len() as u32, "");
    }

    /// Reads all there is; bytes of it.
    fn drain(&mut self) -> usize {
        let mut bytes = 0;
        loop {
            while let Some(n) = self.stick.poll_in(self.now).map(<[u8]>::len) {
                bytes += n;
                self.stick.consume_in(n);
            }
            match self.stick.poll_timeout(self.now) {
                Some(t) if t < Instant::FAR_FUTURE => {
                    self.now = self.now.max(t);
                    self.stick.handle_timeout(self.now);
                }
                _ => return bytes,
            }
        }
    }
}

/// An inference as the vendor does it, 10 events of the host: input, trigger, two releases, the acks.
fn inference(bare: &mut Bare, input: &[u8], trigger: &[u8], output: u32) -> usize {
    bare.write(3, input);
    bare.write(1, trigger);
    let bytes = bare.drain();
    bare.event(EventKind::ReadRelease, 1, &[], 4, "");
    bare.event(EventKind::ReadRelease, 4, &[], output, "");
    bytes + bare.drain()
}

fn measure(timing: Timing) -> (u64, Duration) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/models/squeezenet1_1_u8_s1.blob");
    let blob = std::fs::read(path).expect("blob");
    let graph = ncs2::blob::Graph::parse(&blob).expect("parses");
    let profile = Profile::load("ncs2").expect("built in");
    let now = Instant::from_nanos(1);
    let mut stick =
        VirtualStick::new(Arc::new(Config { profile, engine: Engine::Hash, timing, seed: 0 }), now);
    stick.plug();
    stick.start_booted(false, now);
    let mut bare = Bare { stick, now, id: 10 };
    bare.drain();
    let name = |n: &str| StreamName::new(n).expect("short");
    let input_bytes = graph.input_bytes as u32;
    for (stream, stream_name, credit) in [
        (1, "graphMonitor", 4096),
        (2, "graphBuffer0", blob.len() as u32),
        (3, "FIFO0", 4 * input_bytes),
        (4, "FIFO1", 64),
    ] {
        bare.event(EventKind::CreateStream, stream, &[], credit, stream_name);
    }
    let load = GraphCommand::Allocate { graph: 0, stream: name("graphBuffer0"), executors: 1 };
    assert!(blob.len() > VERIFY_HEADER_LEN);
    bare.write(1, &load.encode());
    bare.write(2, &blob);
    let mut work = bare.stick.poll_work().expect("a preparation");
    work.perform(&PreparedCache::default());
    bare.stick.handle_work_done(work, bare.now);
    for (fifo, fifo_name, bytes, direction) in [
        (0, "FIFO0", input_bytes, FifoDirection::Input),
        (1, "FIFO1", graph.output_bytes as u32, FifoDirection::Output),
    ] {
        let tensor = TensorDescriptor { n: 1, c: 1, w: 1, h: 1, total_bytes: bytes };
        let command =
            GraphCommand::BufferAllocate { fifo, name: name(fifo_name), elements: 4, tensor, direction };
        bare.write(1, &command.encode());
    }
    bare.drain();
    // Six packets on graphMonitor and graphBuffer0 lie with the host.
    (0..3).for_each(|_| bare.event(EventKind::ReadRelease, 1, &[], 4, ""));
    (0..3).for_each(|_| bare.event(EventKind::ReadRelease, 2, &[], 20, ""));
    bare.drain();

    let input = vec![3; graph.input_bytes];
    let trigger = GraphCommand::Trigger { graph: 0, input_fifo: 0, output_fifo: 1 }.encode();
    let output = graph.output_bytes as u32;
    for _ in 0..100 {
        assert!(inference(&mut bare, &input, &trigger, output) > graph.output_bytes);
    }
    let before = ALLOCATIONS.with(Cell::get);
    let begin = StdInstant::now();
    const ROUNDS: u32 = 2000;
    for _ in 0..ROUNDS {
        inference(&mut bare, &input, &trigger, output);
    }
    assert_eq!(bare.stick.stats().inferences, 100 + u64::from(ROUNDS));
    (ALLOCATIONS.with(Cell::get) - before, begin.elapsed() / ROUNDS)
}

#[test]
fn an_inference_allocates_nothing_and_costs_little() {
    for (timing, most) in [(Timing::Zero, 50), (Timing::Model, 200)] {
        let (allocations, each) = measure(timing);
        println!("{timing:?}: {each:?} per inference, {allocations} allocations in all");
        assert_eq!(allocations, 0, "{timing:?}");
        // Far above what it takes, for slow and busy machines.
        assert!(each < Duration::from_micros(most), "{timing:?}: {each:?} per inference");
    }
}
