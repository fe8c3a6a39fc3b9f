//! Threads that send inferences and wait for the answers, so many in flight at a time.
//!
//! A closed loop: as soon as an answer comes its place is taken by the next request. With a rate it is an open one:
//! requests have intended times, and latency counts from those, so that a slow stick can not hide behind the requests
//! that it kept from being sent (coordinated omission).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use ncs2::runtime::{Output, SubmitOptions, Ticket};
use ncs2::stats::Latency;
use ncs2::{Error, ErrorKind, Fleet, Graph, StickId};

use crate::tensor::input::Element;
use crate::timeline::{self, Timeline};

/// More threads cost more than they bring: each can hold several requests in flight.
const MAX_WORKERS: usize = 8;
/// A fleet that refuses this many requests in a row, with a pause between, will not come back.
const MAX_REFUSALS: u32 = 200;
/// The pause.
const REFUSAL_PAUSE: Duration = Duration::from_millis(10);

/// How often a thread without places looks whether it has some.
const IDLE_PAUSE: Duration = Duration::from_millis(50);

/// What to send to one graph. Several graphs are served at the same time, each by threads of its own.
#[derive(Clone)]
pub struct Plan {
    /// Sent in turn.
    pub inputs: Vec<Element>,
    /// What each input must give, where answers can be checked.
    pub references: Option<Vec<Vec<u8>>>,
    /// Requests in flight at a time, at least 1.
    pub in_flight: usize,
    /// Requests that one inference may answer.
    pub batch: usize,
    /// Requests a second; `None` for as fast as answers come.
    pub rate: Option<f64>,
}

/// What one stick answered while it was measured.
#[derive(Clone, Debug, Default)]
pub struct StickTally {
    /// Right and wrong answers.
    pub completed: u64,
    /// Latency of them.
    pub latency: Latency,
}

/// What was seen. `total_*` from the first request on, everything else while it was measured.
#[derive(Debug, Default)]
pub struct Tally {
    /// From submission, or from the intended time.
    pub latency: Latency,
    /// The six stage times.
    pub stages: [Latency; 6],
    /// By the stick that answered.
    pub sticks: BTreeMap<StickId, StickTally>,
    /// What no stick answered but the fallback, by its name: in no other figure of what was measured.
    pub fallback: Option<(StickId, StickTally)>,
    /// Requests that ended in an error.
    pub failed: u64,
    /// Answers that differ from the reference.
    pub mismatched: u64,
    /// Answers, the unmeasured too.
    pub total_answered: u64,
    /// Errors, the unmeasured too.
    pub total_failed: u64,
    /// The first error.
    pub error: Option<Error>,
}

impl Tally {
    /// Answers that were measured.
    pub fn completed(&self) -> u64 {
        self.sticks.values().map(|s| s.completed).sum()
    }

    /// Adds the counts of `other`; errors stay where they are.
    pub fn merge(&mut self, other: &Tally) {
        self.latency.merge(&other.latency);
        for (mine, theirs) in self.stages.iter_mut().zip(&other.stages) {
            mine.merge(theirs);
        }
        for (id, stick) in &other.sticks {
            let mine = self.sticks.entry(id.clone()).or_default();
            mine.completed += stick.completed;
            mine.latency.merge(&stick.latency);
        }
        if let Some((id, theirs)) = &other.fallback {
            let (_, mine) = self.fallback.get_or_insert_with(|| (id.clone(), StickTally::default()));
            mine.completed += theirs.completed;
            mine.latency.merge(&theirs.latency);
        }
        self.failed += other.failed;
        self.mismatched += other.mismatched;
        self.total_answered += other.total_answered;
        self.total_failed += other.total_failed;
    }
}

/// What came of one plan.
#[derive(Debug, Default)]
pub struct Served {
    /// Counts and times.
    pub tally: Tally,
    /// Requests that were sent, the unmeasured too.
    pub sent: u64,
}

/// The running load.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<(usize, JoinHandle<Tally>)>,
    // Dropped to stop the workers.
    stop: Option<Sender<()>>,
}

struct Shared {
    streams: Vec<Stream>,
    begin: Instant,
    measuring: AtomicBool,
    completed: AtomicU64,
    alive: AtomicUsize,
}

/// One plan under way.
struct Stream {
    graph: Graph,
    plan: Plan,
    sent: AtomicU64,
    turns: AtomicU64,
    /// Requests in flight at a time.
    places: AtomicUsize,
    /// Threads that serve it.
    threads: usize,
}

impl Stream {
    /// Places of the n-th of its threads: dealt out so that none is missing when they do not divide evenly.
    fn places_of(&self, nth: usize) -> usize {
        let places = self.places.load(Ordering::Relaxed);
        places / self.threads + usize::from(nth < places % self.threads)
    }
}

impl Stream {
    /// True where the answer can be checked and is another than that of input `input`.
    fn is_wrong(&self, answer: &Output, input: usize) -> bool {
        self.plan.references.as_ref().is_some_and(|references| answer.bytes() != references[input])
    }
}

impl Load {
    /// Starts sending. With a timeline, each request's times go into it, from the first on, and requests that fail or
    /// whose answer is wrong are marked at the fleet.
    pub fn start(plans: Vec<(Graph, Plan)>, trace: Option<(&Timeline, &Fleet)>) -> std::io::Result<Load> {
        let most = (MAX_WORKERS / plans.len().max(1)).max(1);
        let deal: Vec<usize> = plans
            .iter()
            .enumerate()
            .flat_map(|(at, (_, plan))| std::iter::repeat_n(at, plan.in_flight.clamp(1, most)))
            .collect();
        let streams: Vec<Stream> = plans
            .into_iter()
            .enumerate()
            .map(|(at, (graph, plan))| Stream {
                graph,
                sent: AtomicU64::new(0),
                turns: AtomicU64::new(0),
                places: AtomicUsize::new(plan.in_flight.max(1)),
                threads: deal.iter().filter(|&&other| other == at).count(),
                plan,
            })
            .collect();
        let shared = Arc::new(Shared {
            streams,
            begin: Instant::now(),
            measuring: AtomicBool::new(false),
            completed: AtomicU64::new(0),
            alive: AtomicUsize::new(deal.len()),
        });
        let (stop, stopped) = bounded::<()>(0);
        let workers = deal
            .iter()
            .enumerate()
            .map(|(n, &at)| {
                let nth = deal[..n].iter().filter(|&&other| other == at).count();
                let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
                let trace =
                    trace.map(|(timeline, fleet)| Trace { lane: timeline.lane(), fleet: fleet.clone() });
                let thread = thread::Builder::new().name(format!("bench-{n}")).spawn(move || {
                    let mut worker = Worker {
                        shared: &shared,
                        stream: &shared.streams[at],
                        number: u16::try_from(at).unwrap_or(u16::MAX),
                        nth,
                        stopped,
                        tally: Tally::default(),
                        refusals: 0,
                        trace,
                    };
                    worker.run();
                    let tally = worker.tally;
                    shared.alive.fetch_sub(1, Ordering::Release);
                    tally
                });
                Ok((at, thread?))
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Load { shared, workers, stop: Some(stop) })
    }

    /// From now on answers count, or no longer.
    pub fn set_measuring(&self, on: bool) {
        self.shared.measuring.store(on, Ordering::SeqCst);
    }

    /// From now on no more in flight than the sticks take at `depths`, and one waiting for each: the sum for all graphs of
    /// each stick. A closed loop that offers more measures its own queue.
    pub fn set_places(&self, depths: &[u32]) {
        let sum: usize = depths.iter().filter(|&&d| d > 0).map(|&d| d as usize + 1).sum();
        let all: usize = self.shared.streams.iter().map(|s| s.places.load(Ordering::Relaxed)).sum();
        if sum == 0 || all == 0 {
            return;
        }
        for stream in &self.shared.streams {
            let places = stream.places.load(Ordering::Relaxed);
            let fewer = (sum * stream.plan.batch).saturating_mul(places).div_ceil(all);
            stream.places.store(fewer.clamp(1, places), Ordering::Relaxed);
        }
    }

    /// Measured answers so far.
    pub fn completed(&self) -> u64 {
        self.shared.completed.load(Ordering::Relaxed)
    }

    /// False when every worker has given up.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire) > 0
    }

    /// Stops sending, waits for what is in flight; what came of each plan.
    pub fn finish(mut self) -> Vec<Served> {
        self.stop.take();
        let mut served: Vec<Served> = self.shared.streams.iter().map(|_| Served::default()).collect();
        for (at, worker) in self.workers.drain(..) {
            match worker.join() {
                Ok(mut part) => {
                    let tally = &mut served[at].tally;
                    tally.merge(&part);
                    tally.error = tally.error.take().or(part.error.take());
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        for (served, stream) in served.iter_mut().zip(&self.shared.streams) {
            served.sent = stream.sent.load(Ordering::SeqCst);
        }
        served
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    stream: &'a Stream,
    /// Of the stream.
    number: u16,
    /// Of the stream's threads.
    nth: usize,
    stopped: Receiver<()>,
    tally: Tally,
    refusals: u32,
    trace: Option<Trace>,
}

/// Where one thread's requests are written down.
struct Trace {
    lane: timeline::Lane,
    fleet: Fleet,
}

/// A request under way.
struct Flying {
    ticket: Ticket,
    input: usize,
    /// How much later than intended it was sent.
    late: Duration,
    /// For the timeline.
    sent: Option<timeline::Sent>,
}

impl Worker<'_> {
    fn run(&mut self) {
        let mut flying: VecDeque<Flying> = VecDeque::with_capacity(self.stream.places_of(self.nth));
        loop {
            let places = self.stream.places_of(self.nth);
            if places == 0 && flying.is_empty() && self.pause(IDLE_PAUSE) {
                return;
            }
            while flying.len() < places && !self.is_stopped() {
                match self.send() {
                    Sent::Flying(request) => flying.push_back(request),
                    Sent::Refused => break,
                    Sent::Stop => break,
                }
            }
            match flying.pop_front() {
                Some(request) => self.receive(request),
                None if self.is_stopped() || self.refusals > MAX_REFUSALS => return,
                None => {}
            }
        }
    }

    fn is_stopped(&self) -> bool {
        matches!(self.stopped.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
    }

    /// Waits; true when the load was stopped meanwhile.
    fn pause(&self, time: Duration) -> bool {
        !matches!(self.stopped.recv_timeout(time), Err(crossbeam_channel::RecvTimeoutError::Timeout))
    }

    fn send(&mut self) -> Sent {
        let Stream { graph, plan, sent, turns, .. } = self.stream;
        let turn = turns.fetch_add(1, Ordering::Relaxed);
        let intended = plan.rate.map(|rate| self.shared.begin + Duration::from_secs_f64(turn as f64 / rate));
        if let Some(intended) = intended
            && self.pause(intended.saturating_duration_since(Instant::now()))
        {
            return Sent::Stop;
        }
        let input = (turn % plan.inputs.len() as u64) as usize;
        let request = graph.input().and_then(|mut lease| {
            lease.overwrite().copy_from_slice(&plan.inputs[input].bytes);
            let late = intended.map_or(Duration::ZERO, |t| Instant::now().saturating_duration_since(t));
            let submitted = self.trace.is_some().then(Instant::now);
            let ticket = graph.submit(lease, SubmitOptions::default())?;
            let sent = submitted.map(|at| timeline::Sent { at, id: ticket.id() });
            Ok(Flying { ticket, input, late, sent })
        });
        match request {
            Ok(request) => {
                self.refusals = 0;
                sent.fetch_add(1, Ordering::Relaxed);
                Sent::Flying(request)
            }
            Err(error) => {
                self.refusals += 1;
                if error.kind() == ErrorKind::Closed {
                    self.refusals = MAX_REFUSALS + 1;
                }
                self.tally.error.get_or_insert(error);
                if self.pause(REFUSAL_PAUSE) { Sent::Stop } else { Sent::Refused }
            }
        }
    }

    fn receive(&mut self, request: Flying) {
        let answer = request.ticket.wait();
        let measuring = self.shared.measuring.load(Ordering::Relaxed);
        match answer {
            Ok(answer) => {
                self.refusals = 0;
                self.tally.total_answered += 1;
                let looked_at = measuring || self.trace.is_some();
                let wrong = looked_at && self.stream.is_wrong(&answer, request.input);
                if let (Some(trace), Some(sent)) = (&mut self.trace, request.sent) {
                    if wrong {
                        trace.fleet.mark(sent.id, "wrong answer");
                    }
                    trace.lane.request(sent, answer.stick(), self.number, &answer.times());
                }
                if measuring {
                    self.record(&answer, wrong, request.late);
                }
            }
            Err(error) => {
                if let (Some(trace), Some(sent)) = (&mut self.trace, request.sent) {
                    trace.fleet.mark(sent.id, &format!("failed: {:?}", error.kind()));
                    trace.lane.failed(sent, self.number);
                }
                self.tally.total_failed += 1;
                self.tally.failed += u64::from(measuring);
                self.tally.error.get_or_insert(error);
            }
        }
    }

    fn record(&mut self, answer: &Output, wrong: bool, late: Duration) {
        let latency = answer.latency() + late;
        if answer.is_fallback() {
            let new = || (answer.stick().clone(), StickTally::default());
            return self.tally.fallback.get_or_insert_with(new).1.add(latency);
        }
        self.tally.latency.record(latency);
        for (histogram, ns) in self.tally.stages.iter_mut().zip(answer.times().as_array()) {
            histogram.record(Duration::from_nanos(ns));
        }
        // Cloned once per stick, not once per answer.
        match self.tally.sticks.get_mut(answer.stick()) {
            Some(stick) => stick.add(latency),
            None => self.tally.sticks.entry(answer.stick().clone()).or_default().add(latency),
        }
        self.tally.mismatched += u64::from(wrong);
        self.shared.completed.fetch_add(1, Ordering::Relaxed);
    }
}

enum Sent {
    Flying(Flying),
    Refused,
    Stop,
}

impl StickTally {
    fn add(&mut self, latency: Duration) {
        self.completed += 1;
        self.latency.record(latency);
    }
}
