//! Sticks come and go, graphs follow.

use std::time::Duration;

use crate::cache::{Plan, Refusal, StickCache, StickLimits};
use crate::clock::Instant;

use super::breaker::Breaker;
use super::estimate::Estimate;
use super::event::{Action, GiveUpReason, GraphNo, GraphSpec, Guards, Placement, StickNo};
use super::ranking::{Board, Standing};
use super::scheduler::{Model, Scheduler};
use super::stick::{Slot, Stick};

/// Pause before a load that failed is tried again.
const LOAD_RETRY: Duration = Duration::from_secs(5);
/// Pause between two looks at whether a model needs one more stick.
const LOAD_LOOK: Duration = Duration::from_millis(100);
/// A graph that jobs wait for stays at least this many times as long as its load took.
const RESIDENCY: u32 = 4;

impl Scheduler {
    pub(super) fn graph_added(&mut self, graph: GraphNo, mut spec: GraphSpec, now: Instant) {
        let i = graph.0 as usize;
        if self.models.len() <= i {
            self.models.resize_with(i + 1, || None);
        }
        if spec.variants.is_empty() {
            spec.variants.push(super::event::VariantSpec { size: 1, hint_us: None });
        }
        spec.variants.sort_by_key(|v| v.size);
        let same = |old: &Model| old.spec.variants.len() == spec.variants.len() && old.spec.key == spec.key;
        if let Some(old) = self.models[i].as_mut().filter(|m| same(m)) {
            // Named again: served again, with what was measured.
            old.removed = false;
            old.next_load = now;
            old.spec = spec;
        } else {
            self.models[i] = Some(Model {
                board: Board::new(self.sticks.len()),
                service: vec![Estimate::default(); spec.variants.len()],
                breaker: Breaker::new(self.config.graph_breaker),
                in_flight: 0,
                failed_on: None,
                tokens: (1.0, now),
                next_load: Instant::ZERO,
                strict_next: 0,
                removed: false,
                spec,
            });
        }
        for s in 0..self.sticks.len() {
            self.follow(StickNo(s as u32), graph, now);
        }
        // No room anywhere: then something that nobody uses now makes room on one stick.
        let kept = self.model(graph).is_some_and(|m| m.spec.placement == Placement::Everywhere);
        if kept && !self.sticks.iter().flatten().any(|s| s.slot(graph).is_some()) {
            self.want_load(graph, None, now);
        }
    }

    /// Why each stick that is up would not take this graph now, whatever may be evicted; none where one would.
    pub fn refusals(&self, graph: GraphNo) -> Vec<(StickNo, Refusal)> {
        let Some(model) = self.model(graph) else { return Vec::new() };
        let plan = |s: &Stick| s.cache.plan(&model.spec.key, &model.spec.needs);
        let up =
            || self.sticks.iter().enumerate().filter_map(|(i, s)| Some((i, s.as_ref().filter(|s| s.up)?)));
        let refusals = up().filter_map(|(i, s)| match plan(s) {
            Plan::Refused(refusal) => Some((StickNo(i as u32), refusal)),
            _ => None,
        });
        let refusals: Vec<_> = refusals.collect();
        if refusals.len() < up().count() { Vec::new() } else { refusals }
    }

    /// Takes a stick out, so that nothing is given to it while its jobs are handed back.
    pub(super) fn stick_halted(&mut self, no: StickNo, now: Instant) {
        if let Some(stick) = self.stick_mut(no).filter(|s| s.up) {
            stick.resetting = true;
            self.refresh(no, now);
        }
    }

    pub(super) fn stick_up(
        &mut self,
        no: StickNo,
        limits: StickLimits,
        guards: Guards,
        weight: f64,
        now: Instant,
    ) {
        let i = no.0 as usize;
        if self.sticks.len() <= i {
            self.sticks.resize_with(i + 1, || None);
        }
        for model in self.models.iter_mut().flatten() {
            model.board.grow(i + 1);
        }
        if self.sticks[i].as_ref().is_some_and(|s| s.up) {
            // Up again without having been told lost: what it had is gone.
            self.stick_lost(no, now);
        }
        let mut next = Stick::new(StickCache::new(limits), guards, weight, &self.config);
        if let Some(old) = self.sticks[i].take() {
            // Its history stays; its memory and its slots are new.
            next.breaker = old.breaker;
            next.heat = old.heat;
            next.heat.guards = guards;
            next.heat.latched = false;
            next.heat.resting = false;
            next.heat.since = now;
            next.heat.level = 0;
            next.heat.reported = false;
            (next.completed, next.failed, next.deaths, next.resets) =
                (old.completed, old.failed, old.deaths, old.resets);
            (next.served_us, next.busy_ns) = (old.served_us, old.busy_ns);
        } else {
            // Device time counts from now: a new stick does not owe what the others did before.
            let least = self.sticks.iter().flatten().filter(|s| s.up).map(|s| s.served_us / s.weight);
            next.served_us = least.reduce(f64::min).unwrap_or(0.0) * next.weight;
        }
        next.read_at = (next.busy_ns, now);
        self.sticks[i] = Some(next);
        self.wake_after_breaker(no, now);
        for g in 0..self.models.len() {
            self.follow(no, GraphNo(g as u32), now);
        }
    }

    /// Loads a graph that is kept everywhere, where there is room.
    fn follow(&mut self, no: StickNo, graph: GraphNo, now: Instant) {
        let Some(model) = self.model(graph).filter(|m| !m.removed) else { return };
        if model.spec.placement != Placement::Everywhere {
            return;
        }
        let Some(stick) = self.stick(no).filter(|s| s.up && !s.resetting) else { return };
        if stick.refused.iter().any(|(g, until)| *g == graph && now < *until) {
            return;
        }
        if matches!(stick.cache.plan(&model.spec.key, &model.spec.needs), Plan::Load { evict, .. } if evict.is_empty())
        {
            self.load(no, graph);
        }
    }

    /// Begins a load; the ledger has agreed before.
    fn load(&mut self, no: StickNo, graph: GraphNo) {
        let Some(model) = self.model(graph) else { return };
        let (key, needs) = (model.spec.key, model.spec.needs);
        let slot = Slot::loading(graph, &model.spec, &self.config);
        let keys: Vec<_> = self.models.iter().map(|m| m.as_ref().map(|m| m.spec.key)).collect();
        let Some(stick) = self.stick_mut(no) else { return };
        let Ok(gone) = stick.cache.begin_load(key, needs) else { return };
        let evict: Vec<GraphNo> = (gone.iter())
            .filter_map(|key| keys.iter().position(|k| k.as_ref() == Some(key)))
            .map(|g| GraphNo(g as u32))
            .collect();
        stick.slots.retain(|s| !evict.contains(&s.graph));
        stick.slots.push(slot);
        for g in &evict {
            if let Some(model) = self.model_mut(*g) {
                model.board.set(no.0 as usize, Standing::Out);
            }
        }
        self.actions.push_back(Action::Load { stick: no, graph, evict });
    }

    pub(super) fn graph_loaded(&mut self, no: StickNo, graph: GraphNo, took: Duration, now: Instant) {
        let Some(key) = self.model(graph).map(|m| m.spec.key) else { return };
        let Some(stick) = self.stick_mut(no).filter(|s| s.up) else { return };
        if !stick.cache.loaded(&key, took) {
            return;
        }
        if let Some(slot) = stick.slot_mut(graph) {
            slot.ready = true;
            slot.loaded = (now, took);
        }
        self.drop_removed(no, graph);
        self.refresh(no, now);
    }

    pub(super) fn load_failed(&mut self, no: StickNo, graph: GraphNo, now: Instant) {
        let Some(key) = self.model(graph).map(|m| m.spec.key) else { return };
        let Some(stick) = self.stick_mut(no) else { return };
        stick.cache.gone(&key);
        stick.slots.retain(|s| s.graph != graph);
        stick.refused.retain(|(g, until)| *g != graph && now < *until);
        stick.refused.push((graph, now + LOAD_RETRY));
        self.forget(no, graph);
    }

    fn forget(&mut self, no: StickNo, graph: GraphNo) {
        if let Some(model) = self.model_mut(graph) {
            model.board.set(no.0 as usize, Standing::Out);
        }
    }

    /// Unloads a graph that is served no more, once nothing of it is in flight.
    pub(super) fn drop_removed(&mut self, no: StickNo, graph: GraphNo) {
        let Some(key) = self.model(graph).filter(|m| m.removed).map(|m| m.spec.key) else { return };
        let Some(stick) = self.stick_mut(no) else { return };
        if stick.slot(graph).is_some_and(|s| s.ready && s.in_flight == 0) {
            stick.slots.retain(|s| s.graph != graph);
            stick.cache.gone(&key);
            self.actions.push_back(Action::Evict { stick: no, graph });
            self.forget(no, graph);
        }
    }

    pub(super) fn reset_stick(&mut self, no: StickNo, now: Instant) {
        if let Some(stick) = self.stick_mut(no) {
            stick.resetting = true;
            stick.resets += 1;
            self.actions.push_back(Action::Reset { stick: no });
            self.refresh(no, now);
        }
    }

    pub(super) fn stick_lost(&mut self, no: StickNo, now: Instant) {
        let Some(stick) = self.stick_mut(no).filter(|s| s.up) else { return };
        stick.up = false;
        stick.resetting = false;
        stick.reserved = false;
        stick.deaths += 1;
        stick.breaker.trip(now);
        if self.suspect_stick == Some(no) {
            self.suspect_stick = None;
        }
        if self.explorer == Some(no) {
            self.explorer = None;
            self.law.interrupted();
        }
        // Those who rest may be the only ones left: look at once.
        self.next_round = now;
        self.refresh(no, now);
        self.fail_all(no, now);
        let Some(stick) = self.stick_mut(no) else { return };
        stick.cache.clear();
        let graphs: Vec<GraphNo> = stick.slots.drain(..).map(|s| s.graph).collect();
        stick.refused.clear();
        for graph in graphs {
            self.forget(no, graph);
            // Who waited for room there must look for it elsewhere.
            self.queue.unblock(graph);
        }
    }

    /// A model has jobs that no stick has room for: one more stick, where that is worth the load. `only` is the stick that
    /// the jobs ask for, if they do.
    pub(super) fn want_load(&mut self, graph: GraphNo, only: Option<StickNo>, now: Instant) {
        let Some(model) = self.model(graph).filter(|m| now >= m.next_load && !m.removed) else { return };
        let (key, needs) = (model.spec.key, model.spec.needs);
        let (mut holders, mut loading, mut up, mut never) = (0_u32, false, 0_u32, 0_u32);
        let mut best: Option<(f64, StickNo, Duration)> = None;
        for (i, stick) in self.sticks.iter().enumerate() {
            let Some(stick) = stick.as_ref().filter(|s| s.up && !s.resetting) else { continue };
            if only.is_some_and(|o| o.0 as usize != i) {
                continue;
            }
            up += 1;
            if let Some(slot) = stick.slot(graph) {
                holders += u32::from(slot.ready);
                loading |= !slot.ready;
                continue;
            }
            let Plan::Load { evict, cost } = stick.cache.plan(&key, &needs) else {
                never += u32::from(stick.cache.limits().refuses(&needs).is_some());
                continue;
            };
            let barred = stick.refused.iter().any(|(g, until)| *g == graph && now < *until);
            let in_use = stick.slots.iter().any(|s| {
                let stays = s.loaded.0 + s.loaded.1 * RESIDENCY + Duration::from_millis(100);
                let victim = self.model(s.graph).is_some_and(|m| evict.contains(&m.spec.key));
                victim && now < stays && self.queue.len_of(s.graph) > 0
            });
            if barred || in_use || !stick.takes_work(now) {
                continue;
            }
            let delay = stick.backlog_us / 1e6 + cost.as_secs_f64() * (1.0 + evict.len() as f64);
            if best.is_none_or(|(d, ..)| delay < d) {
                best = Some((delay, StickNo(i as u32), cost));
            }
        }
        if let Some(model) = self.model_mut(graph) {
            model.next_load = now + LOAD_LOOK;
        }
        if holders == 0 && up > 0 && never == up {
            self.flush(graph, |this, job| {
                let bound = this.jobs.get(&job).and_then(|j| j.spec.stick);
                if only.is_none() || bound == only {
                    this.give_up(job, GiveUpReason::NoStick);
                }
            });
            return;
        }
        let Some((_, no, cost)) = best.filter(|_| !loading) else { return };
        let waiting = self.queue.len_of(graph) as f64 * self.prior_us(graph, 0) / 1e6;
        // Two loads' worth of work per stick that has it: then a further one pays for itself.
        if holders == 0 || waiting / f64::from(holders) > 2.0 * cost.as_secs_f64() {
            self.load(no, graph);
        }
    }

    /// Graphs that wait for a stick, or were refused by one, are looked at again.
    pub(super) fn retry_loads(&mut self, now: Instant) {
        for g in 0..self.models.len() {
            let graph = GraphNo(g as u32);
            let due = |s: &Stick| s.refused.iter().any(|(r, until)| *r == graph && now >= *until);
            let sticks: Vec<StickNo> = (self.sticks.iter().enumerate())
                .filter(|(_, s)| s.as_ref().is_some_and(|s| s.up && due(s)))
                .map(|(i, _)| StickNo(i as u32))
                .collect();
            for no in sticks {
                if let Some(stick) = self.stick_mut(no) {
                    stick.refused.retain(|(r, until)| *r != graph || now < *until);
                }
                self.follow(no, graph, now);
            }
            if self.queue.len_of(graph) > 0 {
                self.queue.unblock(graph);
            }
        }
    }

    /// Lets estimates that nobody confirmed lately fade towards optimism.
    pub(super) fn fade(&mut self, before: Instant, now: Instant) {
        for i in 0..self.sticks.len() {
            let Some(stick) = self.sticks[i].take() else { continue };
            let mut stick = stick;
            for slot in &mut stick.slots {
                for v in 0..slot.service.len() {
                    let prior = self.prior_us(slot.graph, v);
                    slot.service[v].fade(before, prior);
                }
            }
            self.sticks[i] = Some(stick);
            self.refresh(StickNo(i as u32), now);
        }
    }
}
