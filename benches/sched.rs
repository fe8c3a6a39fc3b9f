//! Cost of a decision of the scheduler: `cargo bench --bench sched`.
//!
//! Compares with nothing but the budget of issue 6: under 2 µs at 16 sticks, under 10 µs at 1 000.

use std::hint::black_box;
use std::time::{Duration, Instant as Wall};

use ncs2::blob::BlobHash;
use ncs2::cache::{CacheKey, GraphNeeds, LoadKey, StickLimits};
use ncs2::clock::Instant;
use ncs2::sched::{
    Action, Event, GraphNo, GraphSpec, Guards, JobId, JobSpec, Policy, RunId, SchedConfig, Scheduler, StickNo,
};

const MODELS: u32 = 4;

fn spec(n: u32) -> GraphSpec {
    let key = CacheKey {
        hash: BlobHash([n as u8; 32]),
        options: LoadKey { executors: 1, elements: 4, instances: 1 },
    };
    let needs = GraphNeeds {
        version: (6, 0),
        file_bytes: 5 << 20,
        bss_bytes: 1 << 20,
        input_bytes: 150_528,
        output_bytes: 2048,
        elements: 4,
        instances: 1,
        executors: 1,
        shaves: 4,
        cmx_slices: 4,
    };
    GraphSpec::new(key, needs)
}

struct Bench {
    sched: Scheduler,
    now: Instant,
    job: u64,
    flying: std::collections::VecDeque<RunId>,
}

impl Bench {
    fn new(sticks: u32, policy: Policy) -> Self {
        let config =
            SchedConfig { policy, queue_limit: usize::MAX, fixed_depth: Some(4), ..SchedConfig::default() };
        let mut b = Bench {
            sched: Scheduler::new(config),
            now: Instant::ZERO,
            job: 0,
            flying: std::collections::VecDeque::new(),
        };
        for g in 0..MODELS {
            b.sched.handle(Event::GraphAdded { graph: GraphNo(g), spec: spec(g) }, b.now);
        }
        for s in 0..sticks {
            let limits = StickLimits::myriad_x(522_060_000, 10, 100, 3);
            b.sched.handle(
                Event::StickUp { stick: StickNo(s), limits, guards: Guards::Reported, weight: 1.0 },
                b.now,
            );
        }
        b.act();
        b
    }

    fn act(&mut self) {
        while let Some(action) = self.sched.poll_action() {
            match action {
                Action::Assign { run, .. } => self.flying.push_back(run),
                Action::Load { stick, graph, .. } => {
                    let took = Duration::from_millis(30);
                    self.sched.handle(Event::GraphLoaded { stick, graph, took }, self.now);
                }
                other => {
                    black_box(other);
                }
            }
        }
    }

    fn arrive(&mut self) {
        let spec = JobSpec::new(GraphNo((self.job % u64::from(MODELS)) as u32));
        self.sched.handle(Event::Arrived { job: JobId(self.job), spec }, self.now);
        self.job += 1;
        self.act();
    }

    fn complete(&mut self) {
        if let Some(run) = self.flying.pop_front() {
            self.sched.handle(Event::Completed { run }, self.now);
            self.act();
        }
    }

    /// Nanoseconds of one decision: an arrival or a completion with all that follows; `queued` jobs wait all the time.
    fn run(&mut self, sticks: u32, queued: u32, jobs: u32) -> f64 {
        let flying = if queued > 0 { 4 * sticks + queued } else { 2 * sticks };
        (0..flying).for_each(|_| self.arrive());
        let step = Duration::from_nanos(20_000_000 / u64::from(sticks));
        // The best of some rounds: other programs on the machine only add.
        let rounds = (0..10).map(|_| {
            let begun = Wall::now();
            for _ in 0..jobs / 10 {
                self.now += step;
                self.complete();
                self.arrive();
            }
            begun.elapsed().as_nanos() as f64 / f64::from(jobs / 10)
        });
        // A job is two decisions: one when it comes, one when a place gets free.
        rounds.fold(f64::INFINITY, f64::min) / 2.0
    }
}

fn main() {
    println!(
        "scheduler alone, {MODELS} models on every stick; one decision = an arrival or a completion, with the assignment that follows"
    );
    println!("{:<20} {:>6} {:>16} {:>16} {:>8}", "policy", "sticks", "room, ns", "queued, ns", "budget");
    for (sticks, budget) in [(1, 2_000.0), (16, 2_000.0), (100, 10_000.0), (1000, 10_000.0)] {
        for policy in
            [Policy::RoundRobin, Policy::LeastLoaded, Policy::Fastest, Policy::Weighted, Policy::Thermal]
        {
            let jobs = 200_000;
            let room = Bench::new(sticks, policy).run(sticks, 0, jobs);
            let queued = Bench::new(sticks, policy).run(sticks, 500, jobs);
            let verdict = if room.max(queued) < budget { "kept" } else { "MISSED" };
            println!("{:<20} {sticks:>6} {room:>16.0} {queued:>16.0} {verdict:>8}", policy.as_str());
        }
    }
}
