//! Executors side by side: each works on its own stage, all share the DRAM bus. Exact in time, no steps.

use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;

use crate::cost::GraphCost;
use crate::profile::Speed;

/// Below this a remainder is rounding, in nanoseconds or bytes.
const NOTHING: f64 = 1e-6;

/// Something that an executor finished.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Finished {
    pub(crate) run: u64,
    pub(crate) at: Instant,
}

#[derive(Clone, Debug)]
struct Active {
    run: u64,
    cost: Arc<GraphCost>,
    stage: usize,
    round: u32,
    fixed_ns: f64,
    work_ns: f64,
    bytes: f64,
    on_nce: bool,
    /// Time of each stage so far.
    stage_ns: Vec<f32>,
    /// The result is out; the executor rests, because the stick is hot.
    resting: bool,
    elapsed_ns: f64,
}

impl Active {
    fn is_done(&self) -> bool {
        self.fixed_ns <= NOTHING && self.work_ns <= NOTHING && self.bytes <= NOTHING
    }

    /// Moves to the next stage; false when there is none.
    fn next_stage(&mut self) -> bool {
        if self.stage >= self.cost.stages.len() {
            self.round += 1;
            self.stage = 0;
            if self.round >= self.cost.batch || self.cost.stages.is_empty() {
                return false;
            }
        }
        let cost = self.cost.stages[self.stage];
        (self.fixed_ns, self.work_ns, self.bytes) = (cost.fixed_ns, cost.work_ns, cost.bytes);
        self.on_nce = cost.on_nce;
        self.stage += 1;
        true
    }
}

/// What all executors share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chip {
    pub(crate) dram_bytes_per_ns: f64,
    /// Neural compute engines; more executors than that take turns on them.
    pub(crate) nces: f64,
}

impl Chip {
    pub(crate) fn new(speed: &Speed) -> Self {
        Chip {
            dram_bytes_per_ns: speed.dram_bytes_per_s * speed.dram_efficiency / 1e9,
            nces: f64::from(speed.nces),
        }
    }
}

/// What each executor gets of what is shared: DRAM bytes per nanosecond, and share of an NCE.
#[derive(Clone, Copy)]
struct Share {
    bytes_per_ns: f64,
    nce: f64,
}

/// All executors of one stick.
#[derive(Debug)]
pub(crate) struct Executors {
    chip: Chip,
    active: Vec<Active>,
    /// Sub-nanosecond rest of the clock, so that rounding does not add up.
    clock: Instant,
    fraction_ns: f64,
    finished: Vec<Finished>,
    scratch: Vec<Active>,
    spare_times: Vec<Vec<f32>>,
    /// Kept while nothing starts or ends.
    next: Option<Instant>,
    busy_ns: f64,
    shave_ns: f64,
}

impl Executors {
    pub(crate) fn new(chip: Chip) -> Self {
        Executors {
            chip,
            active: Vec::new(),
            clock: Instant::ZERO,
            fraction_ns: 0.0,
            finished: Vec::new(),
            scratch: Vec::new(),
            spare_times: Vec::new(),
            next: None,
            busy_ns: 0.0,
            shave_ns: 0.0,
        }
    }

    /// Starts `run` at the executors' present; [`Self::advance`] to `now` first.
    pub(crate) fn start(&mut self, run: u64, cost: &Arc<GraphCost>) {
        let mut stage_ns = self.spare_times.pop().unwrap_or_default();
        stage_ns.clear();
        stage_ns.resize(cost.stages.len(), 0.0);
        self.active.push(Active {
            run,
            cost: Arc::clone(cost),
            stage: 0,
            round: 0,
            fixed_ns: cost.trigger_ns,
            work_ns: 0.0,
            bytes: 0.0,
            on_nce: false,
            stage_ns,
            resting: false,
            elapsed_ns: 0.0,
        });
        self.next = None;
    }

    /// Goes on to `now`, or to the first run's end, so that the next one starts then and not when somebody looked.
    /// True when a run ended: take it with [`Self::take_finished`], and call again.
    pub(crate) fn advance(&mut self, now: Instant) -> bool {
        while !self.active.is_empty() {
            let left = now.saturating_since(self.clock).as_nanos() as f64 - self.fraction_ns;
            if left <= 0.0 {
                return false;
            }
            let step = step_ns(&self.active, self.chip).min(left);
            self.busy_ns += step * self.active.iter().filter(|a| !a.resting).count() as f64;
            self.shave_ns += step * f64::from(self.working_shaves());
            progress(&mut self.active, self.chip, step);
            self.pass(step);
            self.settle();
            if !self.finished.is_empty() {
                return true;
            }
        }
        self.clock = self.clock.max(now);
        self.fraction_ns = 0.0;
        false
    }

    fn pass(&mut self, ns: f64) {
        self.fraction_ns += ns;
        let whole = self.fraction_ns.floor();
        self.clock += Duration::from_nanos(whole as u64);
        self.fraction_ns -= whole;
    }

    /// Ends stages and runs that are done.
    fn settle(&mut self) {
        let mut i = 0;
        while i < self.active.len() {
            let active = &mut self.active[i];
            if !active.is_done() || active.resting && active.fixed_ns > NOTHING {
                i += 1;
            } else if active.resting {
                let gone = self.active.remove(i);
                self.spare_times.push(gone.stage_ns);
                self.next = None;
            } else if !active.next_stage() {
                // Stays, at rest, until the owner says for how long.
                active.resting = true;
                active.fixed_ns = f64::INFINITY;
                self.finished.push(Finished { run: active.run, at: self.clock });
                self.next = None;
                i += 1;
            }
        }
    }

    /// The oldest run that ended. Its executor is occupied until [`Self::rest`] was called for it.
    pub(crate) fn take_finished(&mut self) -> Option<Finished> {
        (!self.finished.is_empty()).then(|| self.finished.remove(0))
    }

    /// Frees the executor of a finished run: at once, or after a rest at `speed` (share of full speed) below 1.
    /// Returns how long the run took; `stages` gets each stage's time in nanoseconds.
    pub(crate) fn rest(&mut self, run: u64, speed: f64, stages: &mut Vec<f32>) -> Duration {
        let Some(i) = self.active.iter().position(|a| a.run == run) else { return Duration::ZERO };
        let active = &mut self.active[i];
        stages.clear();
        stages.extend_from_slice(&active.stage_ns);
        let took = active.elapsed_ns;
        let rest = took * (1.0 / speed - 1.0);
        self.next = None;
        if rest <= NOTHING {
            let gone = self.active.remove(i);
            self.spare_times.push(gone.stage_ns);
        } else {
            active.fixed_ns = rest;
        }
        Duration::from_nanos(took as u64)
    }

    /// When the next run or rest ends, if nothing else starts.
    pub(crate) fn poll_timeout(&mut self) -> Option<Instant> {
        if self.active.is_empty() {
            return None;
        }
        if self.next.is_none() {
            self.next = self.predict();
        }
        self.next
    }

    fn predict(&mut self) -> Option<Instant> {
        // Played forward on a copy: a run's stages depend on what the others do at the time.
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        for a in &self.active {
            scratch.push(Active { stage_ns: Vec::new(), cost: Arc::clone(&a.cost), ..*a });
        }
        let mut ahead = self.fraction_ns;
        let found = loop {
            let step = step_ns(&scratch, self.chip);
            if !step.is_finite() {
                break None;
            }
            ahead += step;
            progress(&mut scratch, self.chip, step);
            let ended = scratch.iter_mut().any(|a| a.is_done() && (a.resting || !a.next_stage()));
            if ended {
                // Rounded up: at that time it is surely over.
                break Some(self.clock + Duration::from_nanos(ahead.ceil() as u64 + 1));
            }
            for a in &mut scratch {
                while a.is_done() && !a.resting && a.next_stage() {}
            }
        };
        scratch.clear();
        self.scratch = scratch;
        found
    }

    /// SHAVEs and CMX slices of what runs or rests.
    pub(crate) fn occupied(&self) -> (u32, u32) {
        self.active.iter().fold((0, 0), |(s, c), a| (s + a.cost.shaves, c + a.cost.cmx_slices))
    }

    /// Executors at work, summed over time.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.busy_ns as u64)
    }

    /// SHAVEs at work, summed over time, in nanoseconds. What heats the stick.
    pub(crate) fn shave_ns(&self) -> f64 {
        self.shave_ns
    }

    fn working_shaves(&self) -> u32 {
        self.active.iter().filter(|a| !a.resting).map(|a| a.cost.shaves).sum()
    }
}

/// Time to the next change: a stage's end, or DRAM traffic's, since that gives the others more of the bus.
fn step_ns(active: &[Active], chip: Chip) -> f64 {
    let share = share(active, chip);
    active
        .iter()
        .map(|a| {
            if a.fixed_ns > NOTHING {
                return a.fixed_ns;
            }
            let moved = if a.bytes > NOTHING { a.bytes / share.bytes_per_ns } else { f64::INFINITY };
            // The end of NCE work gives the others more of the engines.
            let worked = match a.work_ns > NOTHING {
                true if a.on_nce => a.work_ns / share.nce,
                true => a.work_ns,
                false => f64::INFINITY,
            };
            let ends = moved.min(worked);
            // Nothing is left of it: it ends now.
            if ends.is_finite() { ends } else { 0.0 }
        })
        .fold(f64::INFINITY, f64::min)
}

fn share(active: &[Active], chip: Chip) -> Share {
    let at_work = |a: &&Active| a.fixed_ns <= NOTHING && !a.resting;
    let moving = active.iter().filter(at_work).filter(|a| a.bytes > NOTHING).count();
    let nce_work = active.iter().filter(at_work).filter(|a| a.on_nce && a.work_ns > NOTHING).count();
    Share {
        bytes_per_ns: chip.dram_bytes_per_ns / moving.max(1) as f64,
        nce: (chip.nces / nce_work.max(1) as f64).min(1.0),
    }
}

fn progress(active: &mut [Active], chip: Chip, ns: f64) {
    let share = share(active, chip);
    for a in active {
        if !a.resting {
            a.elapsed_ns += ns;
            if let Some(time) = a.stage.checked_sub(1).and_then(|s| a.stage_ns.get_mut(s)) {
                *time += ns as f32;
            }
        }
        if a.fixed_ns > NOTHING {
            a.fixed_ns -= ns;
        } else {
            let rate = if a.on_nce { share.nce } else { 1.0 };
            a.work_ns = (a.work_ns - ns * rate).max(0.0);
            if a.bytes > NOTHING {
                a.bytes -= ns * share.bytes_per_ns;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::StageCost;

    fn chip(dram_bytes_per_ns: f64) -> Chip {
        Chip { dram_bytes_per_ns, nces: 2.0 }
    }

    fn cost(stages: &[(f64, f64, f64)]) -> Arc<GraphCost> {
        let stages = stages.iter().map(|&(fixed_ns, work_ns, bytes)| StageCost {
            fixed_ns,
            work_ns,
            bytes,
            on_nce: false,
        });
        Arc::new(GraphCost { stages: stages.collect(), batch: 1, shaves: 4, cmx_slices: 4, trigger_ns: 0.0 })
    }

    /// Runs all to their ends; (run, nanoseconds) in the order of ending.
    fn play(executors: &mut Executors) -> Vec<(u64, u64)> {
        let mut ends = Vec::new();
        while let Some(next) = executors.poll_timeout() {
            while executors.advance(next) {
                while let Some(finished) = executors.take_finished() {
                    ends.push((finished.run, finished.at.as_nanos()));
                    executors.rest(finished.run, 1.0, &mut Vec::new());
                }
            }
        }
        ends
    }

    #[test]
    fn alone_it_takes_what_its_stages_take() {
        let cost = cost(&[(100.0, 1000.0, 500.0), (0.0, 0.0, 0.0), (50.0, 10.0, 4000.0)]);
        let mut executors = Executors::new(chip(2.0));
        executors.start(1, &cost);
        assert_eq!(play(&mut executors), [(1, 100 + 1000 + 50 + 2000)]);
        assert_eq!(cost.solo_ns(2.0).sum::<f64>(), 3150.0);
        assert_eq!(executors.busy(), Duration::from_nanos(3150));
    }

    #[test]
    fn work_is_done_side_by_side_and_the_bus_is_shared() {
        let (work, bytes) = (cost(&[(0.0, 1000.0, 0.0)]), cost(&[(0.0, 0.0, 1000.0)]));
        for (first, second, ends) in [
            (&work, &work, [(1, 1000), (2, 1000)]),
            (&work, &bytes, [(1, 1000), (2, 1000)]),
            // Half the bus each.
            (&bytes, &bytes, [(1, 2000), (2, 2000)]),
        ] {
            let mut executors = Executors::new(chip(1.0));
            executors.start(1, first);
            executors.start(2, second);
            assert_eq!(play(&mut executors), ends);
        }
    }

    #[test]
    fn three_executors_take_turns_on_two_engines() {
        let mut cost = GraphCost::clone(&cost(&[(0.0, 1000.0, 0.0)]));
        cost.stages[0].on_nce = true;
        let cost = Arc::new(cost);
        let mut executors = Executors::new(chip(1.0));
        (1..=3).for_each(|run| executors.start(run, &cost));
        let ends = play(&mut executors);
        assert_eq!(ends.len(), 3);
        assert!(ends.iter().all(|&(_, at)| at.abs_diff(1500) <= 2), "{ends:?}");
    }

    #[test]
    fn a_latecomer_takes_half_the_bus_from_then_on() {
        let bytes = cost(&[(0.0, 0.0, 1000.0)]);
        let mut executors = Executors::new(chip(1.0));
        executors.start(1, &bytes);
        assert!(!executors.advance(Instant::from_nanos(500)));
        executors.start(2, &bytes);
        // 500 left at half speed; then the other has 500 left and the bus for itself.
        assert_eq!(play(&mut executors), [(1, 1500), (2, 2000)]);
    }

    #[test]
    fn looking_late_changes_nothing_but_when_one_knows() {
        let cost = cost(&[(0.0, 1000.0, 0.0)]);
        let mut executors = Executors::new(chip(1.0));
        executors.start(1, &cost);
        let late = Instant::from_nanos(5000);
        assert!(executors.advance(late));
        let first = executors.take_finished().expect("ended");
        executors.rest(first.run, 1.0, &mut Vec::new());
        executors.start(2, &cost);
        assert!(executors.advance(late));
        assert_eq!(executors.take_finished().map(|f| f.at.as_nanos()), Some(2000));
    }

    #[test]
    fn a_hot_executor_rests_before_it_is_free() {
        let cost = cost(&[(0.0, 1000.0, 0.0)]);
        let mut executors = Executors::new(chip(1.0));
        executors.start(1, &cost);
        assert!(executors.advance(Instant::from_nanos(2000)));
        let finished = executors.take_finished().expect("ended");
        let mut stages = Vec::new();
        assert_eq!(executors.rest(finished.run, 0.5, &mut stages), Duration::from_nanos(1000));
        assert_eq!(stages, [1000.0]);
        executors.advance(Instant::from_nanos(1999));
        assert_eq!(executors.occupied(), (4, 4));
        executors.advance(Instant::from_nanos(2001));
        assert_eq!(executors.occupied(), (0, 0));
    }
}
