//! Temperature and throttling of one stick: one RC node and a law. All of it assumed.

use ncs2::clock::Instant;
use ncs2::wire::{THERMAL_FLOATS, ThermalStats, ThrottleLevel};

use crate::profile::{HeatLaw, ThrottleLaw};

/// `dT/dt = (P·R − (T − T_ambient)) / τ`, solved exactly over each interval of constant load.
#[derive(Clone, Debug)]
pub(crate) struct Heat {
    law: HeatLaw,
    celsius: f64,
    level: ThrottleLevel,
    clock: Instant,
    /// How much warmer than the room the air is, because of neighbours.
    warmth: f64,
}

impl Heat {
    /// A stick that lay unpowered at room temperature.
    pub(crate) fn new(law: HeatLaw, now: Instant) -> Self {
        Heat { law, celsius: law.ambient_c, level: ThrottleLevel::None, clock: now, warmth: 0.0 }
    }

    /// Goes on to `now` under `load`, 0 idle to 1 every SHAVE busy.
    pub(crate) fn advance(&mut self, now: Instant, load: f64) {
        let dt = now.saturating_since(self.clock).as_secs_f64();
        if dt <= 0.0 {
            return;
        }
        self.clock = now;
        let watts = self.law.idle_w + (self.law.full_w - self.law.idle_w) * load.clamp(0.0, 1.0);
        let fan = self.law.fan_kelvin_per_w > 0.0 && self.celsius >= self.law.fan_on_c;
        let resistance = if fan { self.law.fan_kelvin_per_w } else { self.law.kelvin_per_w };
        let steady = self.law.ambient_c + self.warmth + watts * resistance;
        // The same heat capacity behind another resistance.
        let tau_s = self.law.tau_s * resistance / self.law.kelvin_per_w.max(1e-9);
        self.celsius = steady + (self.celsius - steady) * (-dt / tau_s.max(1e-3)).exp();
        self.judge();
    }

    /// Air warmer than the room by so much from now on.
    pub(crate) fn set_warmth(&mut self, kelvin: f64) {
        self.warmth = kelvin;
    }

    fn judge(&mut self) {
        let (t, law) = (self.celsius, &self.law);
        let rising = if t >= law.upper_guard_c {
            ThrottleLevel::Upper
        } else if t >= law.lower_guard_c {
            ThrottleLevel::Lower
        } else {
            ThrottleLevel::None
        };
        if rising >= self.level {
            self.level = rising;
            return;
        }
        let falling = if t >= law.upper_guard_c - law.hysteresis_k {
            ThrottleLevel::Upper
        } else if t >= law.lower_guard_c - law.hysteresis_k {
            ThrottleLevel::Lower
        } else {
            ThrottleLevel::None
        };
        if law.law != ThrottleLaw::Latched {
            self.level = self.level.min(falling);
        }
    }

    /// A reset clears a latched level; the heat stays.
    pub(crate) fn reset(&mut self) {
        self.level = ThrottleLevel::None;
        self.judge();
    }

    /// Share of full speed, over 0 and up to 1.
    pub(crate) fn speed(&self) -> f64 {
        let law = &self.law;
        match law.law {
            ThrottleLaw::Linear => {
                let width = (law.upper_guard_c - law.lower_guard_c).max(1e-9);
                let way = ((self.celsius - law.lower_guard_c) / width).clamp(0.0, 1.0);
                1.0 + (law.upper_speed - 1.0) * way
            }
            ThrottleLaw::Cliff | ThrottleLaw::Latched => match self.level {
                ThrottleLevel::None => 1.0,
                ThrottleLevel::Lower => law.lower_speed,
                ThrottleLevel::Upper => law.upper_speed,
            },
        }
    }

    pub(crate) fn celsius(&self) -> f64 {
        self.celsius
    }

    pub(crate) fn level(&self) -> ThrottleLevel {
        self.level
    }

    /// The thermal reply: level, temperature; what real firmware puts into the other floats is unknown, here 0.
    pub(crate) fn stats(&self) -> ThermalStats {
        let mut raw = [0.0; THERMAL_FLOATS];
        raw[0] = f32::from(self.level.as_u8());
        raw[1] = self.celsius as f32;
        ThermalStats { raw }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::profile::Profile;

    fn law(law: ThrottleLaw) -> HeatLaw {
        HeatLaw { law, ..Profile::load("ncs2").expect("built in").heat }
    }

    fn at(minutes: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(60 * minutes)
    }

    #[test]
    fn full_load_comes_to_the_lower_guard_after_some_20_minutes() {
        let mut heat = Heat::new(law(ThrottleLaw::Cliff), Instant::ZERO);
        heat.advance(at(19), 1.0);
        assert_eq!((heat.level(), heat.speed()), (ThrottleLevel::None, 1.0), "{}", heat.celsius());
        heat.advance(at(21), 1.0);
        assert_eq!((heat.level(), heat.speed()), (ThrottleLevel::Lower, 0.5), "{}", heat.celsius());
        assert_eq!(heat.stats().throttle_level(), Some(ThrottleLevel::Lower));
    }

    #[test]
    fn a_level_ends_below_its_hysteresis_unless_latched() {
        for (kind, after) in
            [(ThrottleLaw::Cliff, ThrottleLevel::None), (ThrottleLaw::Latched, ThrottleLevel::Lower)]
        {
            let mut heat = Heat::new(law(kind), Instant::ZERO);
            heat.advance(at(30), 1.0);
            assert_eq!(heat.level(), ThrottleLevel::Lower);
            heat.advance(at(30) + Duration::from_secs(20), 0.0);
            assert!(heat.celsius() < 78.0 && heat.celsius() > 70.0);
            assert_eq!(heat.level(), ThrottleLevel::Lower, "within the hysteresis");
            heat.advance(at(60), 0.0);
            assert_eq!(heat.level(), after);
            heat.reset();
            assert_eq!(heat.level(), ThrottleLevel::None);
        }
    }

    #[test]
    fn a_linear_law_slows_evenly_between_its_guards() {
        let hot = HeatLaw { kelvin_per_w: 30.0, ..law(ThrottleLaw::Linear) };
        let mut heat = Heat::new(hot, Instant::ZERO);
        let (mut last, mut seen) = (1.0, 0);
        for minute in 1..200 {
            heat.advance(at(minute), 1.0);
            let way = ((heat.celsius() - 75.0) / 10.0).clamp(0.0, 1.0);
            assert!((heat.speed() - (1.0 - 0.75 * way)).abs() < 1e-9 && heat.speed() <= last);
            seen += usize::from(heat.speed() < 1.0 && heat.speed() > 0.25);
            last = heat.speed();
        }
        assert!(seen > 3 && last == 0.25, "{seen} steps to {last}");
    }

    #[test]
    fn a_fan_keeps_it_cool_and_a_closed_case_does_not() {
        let end = |profile: &str, warmth: f64| {
            let mut heat = Heat::new(Profile::load(profile).expect("built in").heat, Instant::ZERO);
            heat.set_warmth(warmth);
            (1..24_000).for_each(|s| heat.advance(Instant::ZERO + Duration::from_secs(s), 1.0));
            heat.celsius()
        };
        assert!(end("ncs2-fan", 0.0) < 50.0, "{}", end("ncs2-fan", 0.0));
        assert!(end("ncs2-closed-case", 0.0) > 85.0);
        assert!((end("ncs2", 8.0) - end("ncs2", 0.0) - 8.0).abs() < 0.1, "warm neighbours");
    }

    #[test]
    fn steps_of_time_do_not_matter() {
        let (mut one, mut many) = (
            Heat::new(law(ThrottleLaw::Linear), Instant::ZERO),
            Heat::new(law(ThrottleLaw::Linear), Instant::ZERO),
        );
        one.advance(at(25), 0.7);
        (1..=25).for_each(|m| many.advance(at(m), 0.7));
        assert!((one.celsius() - many.celsius()).abs() < 1e-6);
        assert!((one.speed() - many.speed()).abs() < 1e-6);
    }
}
