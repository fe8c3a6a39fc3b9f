//! Readings of heat, and who rests because of them.

use crate::clock::Instant;

use super::config::Policy;
use super::event::{Action, Guards, StickNo, ThermalReading};
use super::heat::Forecast;
use super::scheduler::Scheduler;
use super::throttle::{Law, Wish, is_latched, plan, resting_pays};

impl Scheduler {
    pub(super) fn thermal(&mut self, no: StickNo, reading: Option<ThermalReading>, now: Instant) {
        let warn_c = self.config.heat.warn_c;
        let Some(stick) = self.stick_mut(no).filter(|s| s.up) else { return };
        let Some(reading) = reading else { return };
        let load = stick.load_since_reading(now);
        let before = stick.heat.level;
        stick.heat.read(reading, load, now);
        let changed = stick.heat.level != before;
        let warm = stick.heat.celsius.filter(|c| *c > warn_c);
        let warn = warm.filter(|_| !stick.heat.warned);
        // Once per crossing: it must cool by two kelvin before it is told again.
        stick.heat.warned =
            warm.is_some() || stick.heat.warned && stick.heat.celsius.is_some_and(|c| c > warn_c - 2.0);
        if let Some(celsius) = warn {
            self.actions.push_back(Action::Warn { stick: no, celsius });
        }
        if changed && self.explorer == Some(no) && before > 0 {
            self.law.interrupted();
        }
        self.refresh(no, now);
    }

    /// Once a round: silent sensors, latched levels, the explorer, rests.
    pub(super) fn keep_cool(&mut self, now: Instant) {
        for i in 0..self.sticks.len() {
            let Some(stick) = self.sticks[i].as_mut().filter(|s| s.up) else { continue };
            let ratio = stick.slowness();
            let changed = stick.heat.infer(ratio, &self.config, now);
            if changed {
                self.refresh(StickNo(i as u32), now);
            }
        }
        if self.config.policy != Policy::Thermal {
            return;
        }
        let config = self.config.heat;
        for stick in self.sticks.iter_mut().flatten() {
            let view = stick.heat.view(stick.up, false);
            stick.heat.latched = is_latched(&view, &config, now);
        }
        self.choose_explorer();
        let explorer = self.explorer;
        let views: Vec<_> = (self.sticks.iter().enumerate())
            .map(|(i, s)| match s {
                Some(s) => s.heat.view(!s.is_out(), explorer == Some(StickNo(i as u32))),
                None => super::stick::absent(),
            })
            .collect();
        let wishes = plan(&views, self.law_in_force(), &config, now);
        // Who wakes does so before another rests: at no moment do all rest.
        let in_order = [Wish::Wake, Wish::Rest].into_iter().flat_map(|kind| {
            let chosen = wishes.iter().enumerate().filter(move |(_, w)| **w == kind);
            chosen.map(|(i, w)| (StickNo(i as u32), *w))
        });
        for (no, wish) in in_order {
            let Some(stick) = self.stick_mut(no) else { continue };
            stick.heat.resting = wish == Wish::Rest;
            stick.heat.rests += u32::from(wish == Wish::Rest);
            stick.heat.since = now;
            self.actions.push_back(match wish {
                Wish::Rest => Action::Rest { stick: no },
                _ => Action::Wake { stick: no },
            });
            self.refresh(no, now);
        }
    }

    /// The law that rests go by: where resting does not pay, a step is borne like a gradual slow-down.
    pub(super) fn law_in_force(&self) -> Law {
        match self.law.law() {
            Law::Step if !self.rest_pays => Law::Gradual,
            law => law,
        }
    }

    /// Once in ten seconds: whether staying below the guards is worth it in this room.
    pub(super) fn weigh_resting(&mut self) {
        if self.config.policy != Policy::Thermal || self.law.law() != Law::Step {
            return;
        }
        let cold = self.sticks.iter().flatten().filter(|s| !s.is_out() && !s.heat.latched);
        let fits: Vec<_> = cold.map(|s| s.heat.model.fit().map(|fit| (fit, s.heat.guards))).collect();
        self.rest_pays = resting_pays(&fits, self.law.speed(), &self.config.heat, self.rest_pays);
    }

    /// While the law is unknown, the first stick with known guards that comes to them is let through.
    fn choose_explorer(&mut self) {
        if self.law.law() != Law::Unknown || self.explorer.is_some() {
            return;
        }
        let margin = self.config.heat.margin_k;
        self.explorer = (self.sticks.iter().enumerate())
            .filter_map(|(i, s)| Some((i, s.as_ref().filter(|s| !s.is_out() && !s.heat.resting)?)))
            .find(|(_, s)| match (s.heat.guards, s.heat.celsius) {
                (Guards::Known { lower_c, .. }, Some(c)) => c >= lower_c - margin,
                _ => false,
            })
            .map(|(i, _)| StickNo(i as u32));
    }

    /// Time until a stick throttles at its present load; unsure where its guard or its heat is not known.
    pub fn seconds_to_throttle(&self, no: StickNo, load: f64) -> Forecast {
        let Some(stick) = self.stick(no) else { return Forecast::Unsure };
        let guard = match stick.heat.guards {
            Guards::Known { lower_c, .. } => Some(lower_c),
            Guards::Reported => stick.heat.seen_guard_c,
        };
        guard.map_or(Forecast::Unsure, |guard| stick.heat.model.seconds_to(guard, load))
    }
}
