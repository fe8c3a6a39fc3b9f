//! From the queue to a stick.

use std::time::Duration;

use crate::clock::Instant;

use super::batch::{self, BatchChoice, BatchState, Variant};
use super::breaker::Gate;
use super::config::Policy;
use super::estimate::OPTIMISM;
use super::event::{Action, GraphNo, JobId, Jobs, StickNo};
use super::policy::{StickView, standing};
use super::queue::{Lane, Place};
use super::ranking::Standing;
use super::runs::Run;
use super::scheduler::{Model, Scheduler, Timer, Where, is_live};
use super::stick::{Slot, Stick};
use super::throttle::{Law, rest_at};

/// Device time of a graph of which nothing is known, microseconds: for placement short, so that it is tried; for deadlines
/// long.
const UNKNOWN_US: f64 = 1_000.0;
const UNKNOWN_DEADLINE_US: f64 = 2_000_000.0;
/// How long a stick counts as shared with the latency class after its last job.
const SHARED_FOR: Duration = Duration::from_secs(2);

/// What a stick is to run.
pub(super) struct Order {
    graph: GraphNo,
    variant: usize,
    jobs: Jobs,
    /// Whose share it is charged to.
    place: Option<Place>,
    suspect: bool,
}

impl Scheduler {
    /// Expected device time of one inference, microseconds.
    pub(super) fn expected_us(&self, stick: &Stick, slot: &Slot, variant: usize) -> f64 {
        slot.service[variant].us(stick.heat.level).unwrap_or_else(|| self.prior_us(slot.graph, variant))
    }

    /// What an unmeasured stick is credited with.
    pub(super) fn prior_us(&self, graph: GraphNo, variant: usize) -> f64 {
        self.model(graph).map_or(UNKNOWN_US, |m| {
            let measured = m.service[variant].us().map(|us| us * OPTIMISM);
            measured.or(m.spec.variants[variant].hint_us).unwrap_or(UNKNOWN_US)
        })
    }

    fn is_heavy(&self, stick: &Stick, own_us: f64, now: Instant) -> bool {
        now < stick.shared_until && own_us > self.config.heavy_factor * stick.latency_us
    }

    /// How a stick stands for a graph on it.
    fn standing_of(&self, stick: &Stick, slot: &Slot, takes_work: bool, now: Instant) -> Standing {
        // Graphs share the stick's places: if each had its own, the stick would serve them by turns and no share of device
        // time could be kept.
        let places = stick.places();
        if !takes_work || !slot.ready || stick.runs.len() as u32 >= places {
            return Standing::Out;
        }
        if slot.in_flight >= places.min(slot.depth.max()) {
            return Standing::Out;
        }
        let own_us = self.expected_us(stick, slot, 0);
        if stick.heavy >= self.config.heavy_in_flight && self.is_heavy(stick, own_us, now) {
            return Standing::Out;
        }
        let headroom_k = if self.config.policy == Policy::Thermal && self.law_in_force() != Law::Gradual {
            let limit = rest_at(&stick.heat.view(true, false), Law::Step, &self.config.heat);
            limit.zip(stick.heat.celsius).map(|(limit, c)| limit - c)
        } else {
            None
        };
        let view = StickView {
            ready_ns: (!stick.runs.is_empty()).then(|| stick.ready_ns()),
            own_us,
            in_flight: stick.runs.len() as u32,
            turn: stick.turn,
            served_us: stick.served_us,
            weight: stick.weight,
            headroom_k,
        };
        standing(self.config.policy, &view)
    }

    /// Brings the rankings up to date with a stick: O(graphs on it × log sticks).
    pub(super) fn refresh(&mut self, no: StickNo, now: Instant) {
        let i = no.0 as usize;
        let Some(stick) = self.sticks.get(i).and_then(Option::as_ref) else { return };
        let takes_work = stick.takes_work(now);
        let count = stick.slots.len();
        for s in 0..count {
            let Some(stick) = self.sticks[i].as_ref() else { return };
            let slot = &stick.slots[s];
            let (graph, standing) = (slot.graph, self.standing_of(stick, slot, takes_work, now));
            let Some(model) = self.model_mut(graph) else { continue };
            let was_out = model.board.is_out(i);
            model.board.set(i, standing);
            if was_out && standing != Standing::Out {
                self.queue.unblock(graph);
            }
        }
    }

    /// The stick for a job of this graph and lane.
    fn choose(&mut self, graph: GraphNo, lane: Lane, now: Instant) -> Option<StickNo> {
        let now_ns = now.as_nanos();
        let strict = self.config.policy == Policy::StrictRoundRobin;
        let others = |this: &Scheduler, not: StickNo| {
            this.sticks.iter().enumerate().any(|(i, s)| {
                i != not.0 as usize
                    && s.as_ref()
                        .is_some_and(|s| s.up && !s.resetting && s.slot(graph).is_some_and(|s| s.ready))
            })
        };
        let found = match lane {
            Lane::Only(no) => {
                let out = self.model(graph)?.board.is_out(no.0 as usize);
                (!out).then_some(no.0 as usize)
            }
            Lane::Not(no) => {
                let best = self.model_mut(graph)?.board.best_except(no.0 as usize, now_ns);
                match best {
                    Some(i) => Some(i),
                    None if others(self, no) => None,
                    None => self.model(graph)?.board.best(now_ns),
                }
            }
            Lane::Any if strict => self.next_in_order(graph),
            Lane::Any => self.model(graph)?.board.best(now_ns),
        };
        found.map(|i| StickNo(i as u32))
    }

    /// Strict turn: the next stick that has the graph, even if that means to wait for it.
    fn next_in_order(&self, graph: GraphNo) -> Option<usize> {
        let model = self.model(graph)?;
        let n = self.sticks.len();
        let next = (0..n).map(|k| (model.strict_next + k) % n).find(|i| {
            let stick = self.sticks[*i].as_ref();
            stick.is_some_and(|s| {
                s.up && !s.resetting && !s.reserved && s.slot(graph).is_some_and(|s| s.ready)
            })
        })?;
        (!model.board.is_out(next)).then_some(next)
    }

    /// Gives out work until no stick has room or no job can go.
    pub(super) fn dispatch(&mut self, now: Instant) {
        if !self.suspects.is_empty() || self.suspect_stick.is_some() {
            self.run_suspects(now);
        }
        loop {
            let aged = {
                let jobs = &self.jobs;
                self.queue.next_aged(now, self.config.starvation_bound, |id, seq| is_live(jobs, id, seq))
            };
            let Some(node) = aged.map(|(_, place)| place.node).or_else(|| self.queue.next()) else { return };
            let key = self.queue.key(node);
            if !self.may_start(key.graph, now) {
                self.queue.block(node);
                continue;
            }
            let Some(stick) = self.choose(key.graph, key.lane, now) else {
                self.queue.block(node);
                let only = if let Lane::Only(stick) = key.lane { Some(stick) } else { None };
                self.want_load(key.graph, only, now);
                continue;
            };
            match self.batch_for(node, key.graph, stick, now) {
                BatchChoice::WaitUntil(at) => {
                    self.queue.block(node);
                    self.later(at, Timer::Model(key.graph));
                }
                BatchChoice::Run { variant, jobs } => {
                    let aged = aged.filter(|_| jobs == 1);
                    self.start(node, aged, stick, variant, jobs, now);
                }
            }
        }
    }

    /// Rate limit and breaker of a model. Where they forbid it, a timer is set for when that ends.
    fn may_start(&mut self, graph: GraphNo, now: Instant) -> bool {
        let Some(model) = self.model_mut(graph) else { return false };
        match model.breaker.gate(now) {
            Gate::Closed => {}
            Gate::Trial if model.in_flight == 0 => {}
            Gate::Trial => return false,
            Gate::Open(until) => {
                self.later(until, Timer::Model(graph));
                return false;
            }
        }
        if let Some(rate) = model.spec.rate_limit.filter(|r| *r > 0.0) {
            let burst = (rate * 0.1).max(1.0);
            let earned = now.saturating_since(model.tokens.1).as_secs_f64() * rate;
            model.tokens = ((model.tokens.0 + earned).min(burst), now);
            if model.tokens.0 < 1.0 - 1e-6 {
                let wait = Duration::from_secs_f64((1.0 - model.tokens.0) / rate) + Duration::from_nanos(100);
                self.later(now + wait, Timer::Model(graph));
                return false;
            }
        }
        true
    }

    fn batch_for(&self, node: u32, graph: GraphNo, no: StickNo, now: Instant) -> BatchChoice {
        let (Some(model), Some(stick)) = (self.model(graph), self.stick(no)) else {
            return BatchChoice::Run { variant: 0, jobs: 1 };
        };
        let (1.., Some(slot)) = (model.spec.variants.len() - 1, stick.slot(graph)) else {
            return BatchChoice::Run { variant: 0, jobs: 1 };
        };
        let known = |i: usize| {
            let here = &slot.service[i];
            here.us(stick.heat.level).or_else(|| model.service[i].us())
        };
        let variants: Vec<Variant> = (model.spec.variants.iter().enumerate())
            .map(|(i, v)| Variant { size: v.size, device_us: known(i) })
            .collect();
        let oldest = self.queue.head(node).and_then(|id| self.jobs.get(&id)).map_or(now, |j| j.arrived);
        let state = BatchState {
            variants: &variants,
            queued: self.queue.len_at(node) as u32,
            oldest,
            deadline: self.queue.earliest(node),
            max_delay: model.spec.max_batch_delay,
            busy: !stick.runs.is_empty(),
        };
        batch::choose(state, now)
    }

    /// Takes jobs from the node, or the aged one, and gives them to the stick.
    fn start(
        &mut self,
        node: u32,
        aged: Option<(JobId, Place)>,
        stick: StickNo,
        variant: usize,
        count: u32,
        now: Instant,
    ) {
        let mut taken: Vec<JobId> = Vec::new();
        let mut one = None;
        let mut first: Option<Place> = None;
        for k in 0..count {
            let next = match aged {
                Some(aged) => Some(aged),
                None => {
                    let jobs = &self.jobs;
                    self.queue.take(node, |id, seq| is_live(jobs, id, seq))
                }
            };
            let Some((id, place)) = next else { break };
            let deadline = self.jobs.get(&id).map_or(Instant::FAR_FUTURE, |j| j.spec.deadline);
            self.queue.remove(place, deadline);
            first.get_or_insert(place);
            if count == 1 {
                one = Some(id);
            } else {
                taken.push(id);
            }
            if aged.is_some() || k + 1 == count {
                break;
            }
        }
        let jobs = match (one, taken.as_slice()) {
            (Some(id), _) | (None, &[id]) => Jobs::One(id),
            (None, []) => {
                // Counted as waiting, but none there: nothing to give.
                self.queue.block(node);
                return;
            }
            (None, _) => Jobs::Many(taken.into()),
        };
        let graph = self.queue.key(node).graph;
        self.assign(stick, Order { graph, variant, jobs, place: first, suspect: false }, now);
    }

    /// The run begins: books it everywhere.
    pub(super) fn assign(&mut self, no: StickNo, order: Order, now: Instant) {
        let Order { graph, variant, jobs, place, suspect } = order;
        self.turn += 1;
        let turn = self.turn;
        let latency_class = (jobs.as_slice().iter().filter_map(|id| self.jobs.get(id)))
            .any(|j| j.spec.priority >= self.config.latency_priority);
        let Some((key, sticks)) = self.model(graph).map(|m| (m.spec.key, self.sticks.len())) else { return };
        let Some(stick) = self.stick(no) else { return };
        let Some(slot) = stick.slot(graph) else { return };
        let own_us = self.expected_us(stick, slot, variant);
        let measured = |m: &Model| slot.service[variant].us(0).or(m.service[variant].us());
        let unsure_us =
            self.model(graph).map_or(0.0, |m| match (measured(m), m.spec.variants[variant].hint_us) {
                (Some(_), _) => 0.0,
                (None, _) if self.config.unmeasured_limit.is_some() => {
                    self.config.unmeasured_limit.unwrap_or_default().as_secs_f64() * 1e6
                }
                (None, Some(hint)) => 2.0 * hint,
                (None, None) => UNKNOWN_DEADLINE_US,
            });
        let heavy = !latency_class && self.is_heavy(stick, own_us, now);
        let level = stick.heat.level;
        let Some(stick) = self.stick_mut(no) else { return };
        let Some(slot) = stick.slots.iter_mut().find(|s| s.graph == graph) else { return };
        slot.in_flight += 1;
        let first_here = slot.in_flight == 1;
        stick.cache.touch(&key);
        if first_here {
            stick.cache.pin(&key);
        }
        if stick.runs.is_empty() {
            stick.busy_since = now;
            stick.head_since = now;
        }
        let run = Run {
            stick: no,
            graph,
            variant: variant as u32,
            jobs: jobs.clone(),
            assigned: now,
            own_us,
            ahead_us: stick.backlog_us,
            unsure_us,
            place,
            heavy,
            suspect,
            full: false,
        };
        stick.backlog_us += own_us;
        stick.served_us += own_us;
        stick.turn = turn;
        stick.heavy += u32::from(heavy);
        let mut shared_ends = None;
        if latency_class {
            if stick.shared_until <= now {
                shared_ends = Some(now + SHARED_FOR);
            }
            stick.shared_until = now + SHARED_FOR;
            stick.latency_us = if stick.latency_us > 0.0 && level == 0 {
                stick.latency_us + 0.1 * (own_us - stick.latency_us)
            } else {
                own_us
            };
        }
        let places = stick.places();
        let full = stick.runs.len() as u32 + 1 >= places;
        let run = Run { full, ..run };
        let id = self.runs.insert(run);
        if let Some(stick) = self.stick_mut(no) {
            stick.runs.push(id);
        }
        if let Some(at) = shared_ends {
            self.later(at, Timer::Stick(no));
        }
        for job in jobs.as_slice() {
            if let Some(job) = self.jobs.get_mut(job) {
                job.place = Where::Running(id);
            }
        }
        if let Some(place) = place {
            self.queue.charge(place, (own_us * 1e3) as i64, true);
        }
        if let Some(model) = self.model_mut(graph) {
            model.in_flight += 1;
            model.tokens.0 -= jobs.as_slice().len() as f64;
            model.strict_next = (no.0 as usize + 1) % sticks.max(1);
        }
        self.refresh(no, now);
        self.actions.push_back(Action::Assign { run: id, stick: no, graph, variant: variant as u32, jobs });
    }

    /// Suspects run alone, one at a time, on a stick kept free for them.
    fn run_suspects(&mut self, now: Instant) {
        loop {
            let head = self.suspects.front().copied();
            let Some(id) = head else {
                return self.release_suspect_stick(now);
            };
            let Some(job) = self.jobs.get(&id) else {
                self.suspects.pop_front();
                continue;
            };
            let (graph, only) = (job.spec.graph, job.spec.stick);
            let avoid = job.history.last().map(|a| a.stick);
            let fits = |s: &Stick| s.up && !s.resetting && s.slot(graph).is_some_and(|s| s.ready);
            let gate_ok = |s: &Stick| !matches!(s.breaker.gate(now), Gate::Open(_));
            if let Some(no) = self.suspect_stick {
                let stick = self.stick(no);
                let busy = stick.is_some_and(|s| s.up && !s.runs.is_empty());
                let bad = stick.is_none_or(|s| !fits(s)) || only.is_some_and(|o| o != no);
                if busy {
                    // Draining, or the one before is still at it.
                    return;
                }
                if bad {
                    self.release_suspect_stick(now);
                    continue;
                }
                self.suspects.pop_front();
                let jobs = Jobs::One(id);
                self.assign(no, Order { graph, variant: 0, jobs, place: None, suspect: true }, now);
                return;
            }
            let best = |other: bool| {
                (self.sticks.iter().enumerate())
                    .filter_map(|(i, s)| Some((StickNo(i as u32), s.as_ref()?)))
                    .filter(|(no, s)| fits(s) && gate_ok(s) && only.is_none_or(|o| o == *no))
                    .filter(|(no, _)| !other || Some(*no) != avoid)
                    .min_by_key(|(no, s)| (s.heat.resting, s.runs.len(), *no))
                    .map(|(no, _)| no)
            };
            let Some(no) = best(true).or_else(|| best(false)) else {
                // Nobody can have it now: its graph may have gone with the stick.
                return self.want_load(graph, only, now);
            };
            self.suspect_stick = Some(no);
            if let Some(stick) = self.stick_mut(no) {
                stick.reserved = true;
            }
            self.refresh(no, now);
        }
    }

    fn release_suspect_stick(&mut self, now: Instant) {
        let Some(no) = self.suspect_stick else { return };
        // The last suspect may still be running there: alone to the end.
        if self
            .stick(no)
            .is_some_and(|s| s.up && s.runs.iter().any(|r| self.runs.peek(*r).is_some_and(|r| r.suspect)))
        {
            return;
        }
        self.suspect_stick = None;
        if let Some(stick) = self.stick_mut(no) {
            stick.reserved = false;
        }
        self.refresh(no, now);
    }
}
