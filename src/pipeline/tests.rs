//! The pipeline against the behaving peer of the `stick` room, on virtual time. The transport is this file: it completes,
//! holds, refuses, cuts and merges as a seed says. Whatever happens, each request ends exactly once and all memory
//! comes back.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::*;
use crate::pool::Use;
use crate::stick::Ordering;
use crate::stick::tests::peer::{self, INPUT_BYTES, Peer, long_answer};
use crate::transport::Completion;
use crate::transport::Rejected;
use crate::transport::Transfer;
use crate::wire::{HEADER_LEN, Header};

const PACKET: usize = 512;
const GRAPH: GraphId = GraphId(5);
const ORDERINGS: [Ordering; 2] = [Ordering::Vendor, Ordering::Pipelined];

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How a request ended.
#[derive(Clone, PartialEq, Debug)]
enum How {
    Done(Vec<u8>),
    Returned(Reason),
    InputLost,
}

struct Rig {
    pipeline: Pipeline<u64>,
    peer: Peer,
    pool: Pool,
    now: Instant,
    /// With the transport, oldest first.
    outs: VecDeque<Transfer>,
    ins: VecDeque<Transfer>,
    /// What crossed, and the peer has not understood yet.
    sent: Vec<u8>,
    /// What the peer says, and no IN transfer took yet.
    said: VecDeque<u8>,
    next_tag: u64,
    ended: BTreeMap<u64, How>,
    order: Vec<u64>,
    loaded: Option<u32>,
    over: Option<Event<u64>>,
}

fn input_of(tag: u64) -> Vec<u8> {
    (0..u64::from(INPUT_BYTES)).map(|i| (tag.wrapping_mul(31).wrapping_add(i * 7)) as u8).collect()
}

impl Rig {
    fn loaded(ordering: Ordering, output_len: usize, instances: u32) -> Rig {
        let config = PipelineConfig {
            stick: StickConfig { ordering, ..StickConfig::default() },
            max_packet_bytes: PACKET,
            job_timeout: Duration::from_secs(60),
            memory_timeout: Duration::from_secs(1),
            wanted: |tag| tag % 16 != 15,
        };
        let pool = Pool::new("test", 1 << 20);
        let mut peer = Peer::new();
        peer.output_len = output_len;
        peer.descriptor_bytes = (INPUT_BYTES, output_len as u32);
        let mut rig = Rig {
            pipeline: Pipeline::new(config, pool.clone(), Instant::ZERO),
            peer,
            pool,
            now: Instant::ZERO,
            outs: VecDeque::new(),
            ins: VecDeque::new(),
            sent: Vec::new(),
            said: VecDeque::new(),
            next_tag: 0,
            ended: BTreeMap::new(),
            order: Vec::new(),
            loaded: None,
            over: None,
        };
        rig.pipeline.open(rig.now);
        rig.run();
        let request = LoadRequest { output_bytes: output_len as u32, ..peer::request(0) };
        let spec = GraphSpec { id: GRAPH, request, blob: Arc::new(vec![9; 5000]), instances };
        rig.pipeline.load(spec, rig.now);
        rig.run();
        assert_eq!(rig.loaded, Some(instances));
        rig
    }

    fn submit(&mut self) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        let mut input = self.pool.try_lease(INPUT_BYTES as usize, Use::Input).expect("room");
        input.as_mut_slice().copy_from_slice(&input_of(tag));
        self.pipeline.submit(Job { tag, graph: GRAPH, input, submitted: self.now }, self.now);
        tag
    }

    fn end(&mut self, tag: u64, how: How) {
        assert_eq!(self.ended.insert(tag, how), None, "request {tag} ended twice");
        self.order.push(tag);
    }

    fn events(&mut self) {
        while let Some(event) = self.pipeline.poll_event() {
            // But for what is submitted too late, the end is the last event.
            let late = matches!(event, Event::Returned(_, Reason::Lost { sent: false }));
            assert!(self.over.is_none() || late, "after the end: {event:?}");
            match event {
                Event::Done(done) => {
                    let bytes = done.output.as_slice()[..self.peer.output_len].to_vec();
                    self.end(done.tag, How::Done(bytes));
                }
                Event::Returned(job, reason) => {
                    assert_eq!(job.input.as_slice(), input_of(job.tag), "the input comes back as it was");
                    self.end(job.tag, How::Returned(reason));
                }
                Event::InputLost(tag) => self.end(tag, How::InputLost),
                Event::Loaded { instances, .. } => self.loaded = Some(instances),
                Event::Closed | Event::Failed(_) => self.over = Some(event),
                _ => {}
            }
        }
    }

    /// Takes the pipeline's transfers; refuses each with a chance of one in `busy`.
    fn accept(&mut self, rng: &mut Rng, busy: Option<u64>) {
        while let Some(transfer) = self.pipeline.poll_transfer(self.now) {
            if busy.is_some_and(|n| rng.one_in(n)) {
                let rejected = Rejected { transfer, reason: TransferError::Busy };
                self.pipeline.handle_rejected(rejected, self.now);
                continue;
            }
            match transfer.direction {
                Direction::Out => self.outs.push_back(transfer),
                Direction::In => self.ins.push_back(transfer),
            }
        }
    }

    /// The oldest OUT transfer crosses.
    fn cross(&mut self) -> bool {
        let Some(transfer) = self.outs.pop_front() else { return false };
        self.sent.extend_from_slice(transfer.bytes());
        let actual = transfer.range.len();
        self.pipeline.handle_completion(Completion { transfer, actual, result: Ok(()) }, self.now);
        self.understand();
        true
    }

    fn understand(&mut self) {
        while self.sent.len() >= HEADER_LEN {
            let header = Header::parse(&self.sent[..HEADER_LEN]).expect("a header");
            let end = HEADER_LEN + if header.has_payload() { header.size as usize } else { 0 };
            if self.sent.len() < end {
                break;
            }
            let payload: Vec<u8> = self.sent.drain(..end).skip(HEADER_LEN).collect();
            self.peer.receive(header, &payload);
        }
        self.say();
    }

    fn say(&mut self) {
        while let Some(unit) = self.peer.outbox.pop_front() {
            self.said.extend(unit.header.encode());
            self.said.extend(unit.payload);
        }
    }

    /// The oldest IN transfer ends with at most `most` bytes: a short packet may end it anywhere.
    fn arrive(&mut self, most: usize) -> bool {
        if self.said.is_empty() {
            return false;
        }
        let Some(mut transfer) = self.ins.pop_front() else { return false };
        let actual = most.min(transfer.range.len()).min(self.said.len());
        for to in &mut transfer.bytes_mut()[..actual] {
            *to = self.said.pop_front().expect("counted");
        }
        self.pipeline.handle_completion(Completion { transfer, actual, result: Ok(()) }, self.now);
        true
    }

    /// All that is possible, without chance.
    fn run(&mut self) {
        let mut rng = Rng(0);
        loop {
            self.accept(&mut rng, None);
            let progress = self.cross() | self.arrive(usize::MAX);
            if self.pipeline.wants_cancel() {
                for transfer in self.outs.drain(..).chain(self.ins.drain(..)) {
                    let result = Err(TransferError::Cancelled);
                    self.pipeline.handle_completion(Completion { transfer, actual: 0, result }, self.now);
                }
            }
            self.events();
            if !progress && self.outs.is_empty() && (self.said.is_empty() || self.over.is_some()) {
                return;
            }
        }
    }

    /// The link breaks: one transfer fails, the others come back cancelled, some without their memory.
    fn lose(&mut self, keep_memory: bool) {
        let mut all: Vec<Transfer> = self.outs.drain(..).chain(self.ins.drain(..)).collect();
        if all.is_empty() {
            self.pipeline.abort(Failure::Stick(StickError::Gone), self.now);
        }
        let mut result = Err(TransferError::Gone);
        for mut transfer in all.drain(..) {
            if !keep_memory && transfer.direction == Direction::Out {
                transfer.buffer = crate::transport::Buffer::zeroed(0);
                transfer.range = 0..0;
            }
            self.pipeline.handle_completion(Completion { transfer, actual: 0, result }, self.now);
            result = Err(TransferError::Cancelled);
        }
        self.accept(&mut Rng(0), None);
        assert!(self.outs.is_empty() && self.ins.is_empty(), "nothing is submitted after the end");
        self.events();
        assert!(matches!(self.over, Some(Event::Failed(_))), "{:?}", self.over);
    }

    /// Each request ended, exactly once (see `end`), answers are right, and no memory is out.
    fn check(self, what: &str) {
        assert_eq!(self.ended.len() as u64, self.next_tag, "{what}: requests without an end");
        assert_eq!(self.pipeline.outstanding(), 0, "{what}");
        for (tag, how) in &self.ended {
            match how {
                How::Done(bytes) => {
                    let right = long_answer(&input_of(*tag), self.peer.output_len);
                    assert!(*bytes == right, "{what}: another request's answer for {tag}");
                }
                How::Returned(Reason::Unwanted) => assert_eq!(tag % 16, 15, "{what}"),
                How::Returned(Reason::Lost { .. }) | How::InputLost => {
                    assert!(self.over.is_some(), "{what}: request {tag} {how:?} on a stick that goes on");
                }
                How::Returned(other) => panic!("{what}: request {tag}: {other:?}"),
            }
        }
        let done: Vec<_> = self.order.iter().filter(|t| matches!(self.ended[t], How::Done(_))).collect();
        assert!(done.is_sorted(), "{what}: answers out of order");
        drop(self.pipeline);
        let stats = self.pool.stats();
        assert_eq!((stats.leases, stats.in_use_bytes, stats.reserved_bytes), (0, 0, 0), "{what}: memory");
    }
}

/// Random requests, holds, completions in pieces and merged, a busy transport; in half of the cases the stick is lost.
fn storm(seed: u64) {
    let mut rng = Rng(seed);
    let ordering = ORDERINGS[rng.below(2) as usize];
    let output_len = [40, 512, 1000, 4096, 5 * 512, 20_000][rng.below(6) as usize];
    let instances = 1 + rng.below(3) as u32;
    let what = format!("seed {seed}, {ordering:?}, {output_len} bytes, {instances} instances");
    let mut rig = Rig::loaded(ordering, output_len, instances);
    rig.peer.executes = false;
    let steps = 300 + rng.below(600);
    let loss = rng.one_in(2).then(|| rng.below(steps));
    let pieces = rng.one_in(2);
    for step in 0..steps {
        rig.now += Duration::from_micros(rng.below(50));
        match rng.below(8) {
            0 if rig.next_tag < 60 => {
                rig.submit();
            }
            1 => {
                rig.peer.execute();
                rig.say();
            }
            2 => {
                rig.peer.releases_inputs = rng.one_in(2);
                rig.peer.release_held();
                rig.say();
            }
            3 | 4 => {
                rig.cross();
            }
            5 | 6 => {
                let most = if pieces { 1 + rng.below(700) as usize } else { usize::MAX };
                rig.arrive(most);
            }
            _ => {
                rig.pipeline.handle_timeout(rig.now);
            }
        }
        if rng.one_in(50) {
            rig.pipeline.hold();
        }
        if rng.one_in(10) {
            rig.pipeline.resume(rig.now);
        }
        rig.accept(&mut rng, Some(20));
        if rng.one_in(3) {
            rig.events();
        }
        if loss == Some(step) {
            rig.lose(rng.one_in(2));
            // Too late: it comes back.
            rig.submit();
            rig.events();
            return rig.check(&what);
        }
    }
    // Now all goes well.
    rig.pipeline.resume(rig.now);
    rig.peer.releases_inputs = true;
    for _ in 0..200 {
        rig.now += Duration::from_millis(2);
        rig.pipeline.handle_timeout(rig.now);
        rig.peer.execute();
        rig.peer.release_held();
        rig.say();
        rig.run();
    }
    assert!(rig.over.is_none(), "{what}: {:?}", rig.over);
    assert!(rig.pipeline.is_idle(), "{what}");
    rig.pipeline.close(rig.now);
    rig.run();
    assert!(matches!(rig.over, Some(Event::Closed)), "{what}: {:?}", rig.over);
    rig.check(&what);
}

#[test]
fn each_request_ends_once_whatever_happens() {
    for seed in 0..400 {
        storm(seed);
    }
}

/// Moves one transfer at a time until the stage is reached.
fn steps(rig: &mut Rig, mut until: impl FnMut(&mut Rig) -> bool) {
    let mut rng = Rng(0);
    for _ in 0..10_000 {
        rig.accept(&mut rng, None);
        if until(rig) {
            return;
        }
        if !rig.cross() {
            rig.arrive(PACKET);
        }
    }
    panic!("the stage was not reached");
}

#[test]
fn a_stick_lost_in_each_stage_gives_everything_back() {
    for ordering in ORDERINGS {
        for keep_memory in [true, false] {
            for stage in ["prepare", "upload", "execute", "download", "finish"] {
                let what = format!("{stage}, {ordering:?}, memory kept: {keep_memory}");
                let mut rig = Rig::loaded(ordering, 20_000, 1);
                rig.peer.executes = matches!(stage, "download" | "finish");
                match stage {
                    "prepare" => {
                        rig.pipeline.hold();
                        rig.submit();
                    }
                    "upload" => {
                        rig.submit();
                        let input = |t: &Transfer| t.range.len() == INPUT_BYTES as usize;
                        steps(&mut rig, |rig| rig.outs.iter().any(input));
                    }
                    "execute" => {
                        rig.submit();
                        steps(&mut rig, |rig| !rig.peer.triggered.is_empty());
                    }
                    "download" => {
                        rig.submit();
                        let tensor = |t: &Transfer| t.range.len() > PACKET;
                        steps(&mut rig, |rig| rig.ins.iter().any(tensor));
                    }
                    _ => {
                        rig.submit();
                        steps(&mut rig, |rig| rig.pipeline.in_flight() == 0);
                    }
                }
                rig.lose(keep_memory);
                let how = rig.ended.get(&0).cloned();
                match stage {
                    "prepare" => {
                        assert_eq!(how, Some(How::Returned(Reason::Lost { sent: false })), "{what}");
                    }
                    "upload" if !keep_memory => assert_eq!(how, Some(How::InputLost), "{what}"),
                    "finish" => assert!(matches!(how, Some(How::Done(_))), "{what}: {how:?}"),
                    _ => assert_eq!(how, Some(How::Returned(Reason::Lost { sent: true })), "{what}"),
                }
                rig.check(&what);
            }
        }
    }
}

#[test]
fn what_the_stick_says_in_a_burst_is_taken_without_asking_in_between() {
    for ordering in ORDERINGS {
        let mut rig = Rig::loaded(ordering, 40, 1);
        rig.accept(&mut Rng(0), None);
        assert!(rig.ins.len() >= 8, "{} transfers posted ahead", rig.ins.len());
        assert!(rig.ins.iter().all(|t| t.range.len() == PACKET), "no packet can overflow one");
        rig.pipeline.abort(Failure::Stick(StickError::Gone), rig.now);
        rig.lose(true);
    }
}
