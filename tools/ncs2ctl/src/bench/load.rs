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
use ncs2::{Error, ErrorKind, Graph, StickId};

use crate::tensor::input::Element;

/// More threads cost more than they bring: each can hold several requests in flight.
const MAX_WORKERS: usize = 8;
/// A fleet that refuses this many requests in a row, with a pause between, will not come back.
const MAX_REFUSALS: u32 = 200;
/// The pause.
const REFUSAL_PAUSE: Duration = Duration::from_millis(10);

/// What to send.
#[derive(Clone)]
pub struct Plan {
    /// Sent in turn.
    pub inputs: Vec<Element>,
    /// What each input must give, where answers can be checked.
    pub references: Option<Vec<Vec<u8>>>,
    /// Requests in flight at a time, at least 1.
    pub in_flight: usize,
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

    fn merge(&mut self, other: Tally) {
        self.latency.merge(&other.latency);
        for (mine, theirs) in self.stages.iter_mut().zip(&other.stages) {
            mine.merge(theirs);
        }
        for (id, stick) in other.sticks {
            let mine = self.sticks.entry(id).or_default();
            mine.completed += stick.completed;
            mine.latency.merge(&stick.latency);
        }
        self.failed += other.failed;
        self.mismatched += other.mismatched;
        self.total_answered += other.total_answered;
        self.total_failed += other.total_failed;
        self.error = self.error.take().or(other.error);
    }
}

/// The running load.
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Tally>>,
    // Dropped to stop the workers.
    stop: Option<Sender<()>>,
}

struct Shared {
    graph: Graph,
    plan: Plan,
    begin: Instant,
    measuring: AtomicBool,
    sent: AtomicU64,
    turns: AtomicU64,
    completed: AtomicU64,
    alive: AtomicUsize,
}

impl Load {
    /// Starts sending.
    pub fn start(graph: Graph, plan: Plan) -> std::io::Result<Load> {
        let places = plan.in_flight.max(1);
        let threads = places.min(MAX_WORKERS);
        let shared = Arc::new(Shared {
            graph,
            plan,
            begin: Instant::now(),
            measuring: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            turns: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            alive: AtomicUsize::new(threads),
        });
        let (stop, stopped) = bounded::<()>(0);
        let workers = (0..threads)
            .map(|n| {
                // The places are dealt out so that none is missing when they do not divide evenly.
                let places = places / threads + usize::from(n < places % threads);
                let (shared, stopped) = (Arc::clone(&shared), stopped.clone());
                thread::Builder::new().name(format!("bench-{n}")).spawn(move || {
                    let mut worker =
                        Worker { shared: &shared, stopped, tally: Tally::default(), refusals: 0 };
                    worker.run(places);
                    shared.alive.fetch_sub(1, Ordering::Release);
                    worker.tally
                })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Load { shared, workers, stop: Some(stop) })
    }

    /// From now on answers count, or no longer.
    pub fn set_measuring(&self, on: bool) {
        self.shared.measuring.store(on, Ordering::SeqCst);
    }

    /// Measured answers so far.
    pub fn completed(&self) -> u64 {
        self.shared.completed.load(Ordering::Relaxed)
    }

    /// False when every worker has given up.
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire) > 0
    }

    /// Stops sending, waits for what is in flight; the tally and the number of requests sent.
    pub fn finish(mut self) -> (Tally, u64) {
        self.stop.take();
        let mut tally = Tally::default();
        for worker in self.workers.drain(..) {
            match worker.join() {
                Ok(part) => tally.merge(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        (tally, self.shared.sent.load(Ordering::SeqCst))
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    stopped: Receiver<()>,
    tally: Tally,
    refusals: u32,
}

/// A request under way.
struct Flying {
    ticket: Ticket,
    input: usize,
    /// How much later than intended it was sent.
    late: Duration,
}

impl Worker<'_> {
    fn run(&mut self, places: usize) {
        let mut flying: VecDeque<Flying> = VecDeque::with_capacity(places);
        loop {
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
        let shared = self.shared;
        let turn = shared.turns.fetch_add(1, Ordering::Relaxed);
        let intended =
            shared.plan.rate.map(|rate| shared.begin + Duration::from_secs_f64(turn as f64 / rate));
        if let Some(intended) = intended
            && self.pause(intended.saturating_duration_since(Instant::now()))
        {
            return Sent::Stop;
        }
        let input = (turn % shared.plan.inputs.len() as u64) as usize;
        let sent = shared.graph.input().and_then(|mut lease| {
            lease.as_mut_slice().copy_from_slice(&shared.plan.inputs[input].bytes);
            let late = intended.map_or(Duration::ZERO, |t| Instant::now().saturating_duration_since(t));
            let ticket = shared.graph.submit(lease, SubmitOptions::default())?;
            Ok(Flying { ticket, input, late })
        });
        match sent {
            Ok(request) => {
                self.refusals = 0;
                shared.sent.fetch_add(1, Ordering::Relaxed);
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
                if measuring {
                    self.record(&answer, request.input, request.late);
                }
            }
            Err(error) => {
                self.tally.total_failed += 1;
                self.tally.failed += u64::from(measuring);
                self.tally.error.get_or_insert(error);
            }
        }
    }

    fn record(&mut self, answer: &Output, input: usize, late: Duration) {
        let latency = answer.latency() + late;
        self.tally.latency.record(latency);
        for (histogram, ns) in self.tally.stages.iter_mut().zip(answer.times().as_array()) {
            histogram.record(Duration::from_nanos(ns));
        }
        // Cloned once per stick, not once per answer.
        match self.tally.sticks.get_mut(answer.stick()) {
            Some(stick) => stick.add(latency),
            None => self.tally.sticks.entry(answer.stick().clone()).or_default().add(latency),
        }
        if let Some(references) = &self.shared.plan.references
            && answer.bytes() != references[input]
        {
            self.tally.mismatched += 1;
        }
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
