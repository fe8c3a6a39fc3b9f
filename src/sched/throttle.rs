//! When a stick rests: what throttling costs on these sticks is found out first, and then avoided only where it pays.
//!
//! Where the firmware slows down in proportion (a linear law), a resting stick loses more than a warm one, and nobody
//! rests. Where it drops to half at once (a cliff), or stays there (latched), a stick rests just below its guard. Which law
//! holds is unknown of the real firmware, so the first stick that comes to its guard is let through and its slow-down
//! measured; the others of the fleet wait below theirs for that second.

use std::time::Duration;

use crate::clock::Instant;

use super::config::HeatConfig;
use super::event::Guards;
use super::heat::Fit;

/// What crossing a guard does.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Law {
    /// Not seen yet.
    #[default]
    Unknown,
    /// A step down: staying below pays.
    Step,
    /// Little by little: staying below costs more than it brings.
    Gradual,
}

/// Samples of slow-down that decide on the law.
const PROBE_SAMPLES: usize = 9;
/// Median slow-down just after the guard that makes it a step.
const STEP_RATIO: f64 = 1.25;

/// Measures the slow-down just behind the guard.
#[derive(Clone, Debug, Default)]
pub struct LawProbe {
    law: Law,
    ratios: Vec<f64>,
    /// Median slow-down that decided.
    ratio: f64,
}

impl LawProbe {
    /// What is known.
    pub fn law(&self) -> Law {
        self.law
    }

    /// Share of full speed just behind the guard; 1 before it was seen.
    pub fn speed(&self) -> f64 {
        1.0 / self.ratio.max(1.0)
    }

    /// A run on a stick that has just come to level 1 took `ratio` times what it takes at level 0. True when that decided.
    pub fn sample(&mut self, ratio: f64) -> bool {
        if self.law != Law::Unknown || !ratio.is_finite() {
            return false;
        }
        self.ratios.push(ratio);
        if self.ratios.len() < PROBE_SAMPLES {
            return false;
        }
        self.ratios.sort_unstable_by(f64::total_cmp);
        let median = self.ratios[self.ratios.len() / 2];
        self.ratio = median;
        self.law = if median >= STEP_RATIO { Law::Step } else { Law::Gradual };
        true
    }

    /// The stick left the level before enough was measured.
    pub fn interrupted(&mut self) {
        self.ratios.clear();
    }
}

/// A stick whose rise is known no better than this, kelvin, is no ground for a decision.
const KNOWN_RISE_K: f64 = 3.0;
/// Running free must bring this much more before the heat limit is given up for it, and this much to stay so.
const FREE_GAIN: f64 = 1.15;
const FREE_STAYS: f64 = 1.08;

/// Mean speed of a stick that rests whenever it comes to `limit_c`.
fn kept_below(fit: &Fit, limit_c: f64) -> f64 {
    ((limit_c - fit.idle_c) / fit.rise_k).clamp(0.0, 1.0)
}

/// Mean speed of a stick that runs on into a step down to `slow` at `guard_c`, which ends `hysteresis_k` lower.
fn running_free(fit: &Fit, guard_c: f64, hysteresis_k: f64, slow: f64) -> f64 {
    let (fast_end, slow_end, low) =
        (fit.idle_c + fit.rise_k, fit.idle_c + fit.rise_k * slow, guard_c - hysteresis_k);
    if fast_end <= guard_c {
        return 1.0;
    }
    if slow_end >= low {
        return slow;
    }
    let up = ((fast_end - low) / (fast_end - guard_c)).ln();
    let down = ((guard_c - slow_end) / (low - slow_end)).ln();
    (up + slow * down) / (up + down)
}

/// Whether resting below the guard brings more work than running into it: in a room too hot to stay below, a throttled
/// stick does more than a resting one. True where it is not known well enough, since heat is the worse mistake.
pub fn resting_pays(sticks: &[Option<(Fit, Guards)>], slow: f64, config: &HeatConfig, pays: bool) -> bool {
    let (mut below, mut free) = (0.0, 0.0);
    for stick in sticks {
        let Some((fit, Guards::Known { lower_c, hysteresis_k, .. })) = stick else { return true };
        if fit.rise_error_k > KNOWN_RISE_K {
            return true;
        }
        below += kept_below(fit, lower_c - config.margin_k - config.band_k / 2.0);
        free += running_free(fit, *lower_c, *hysteresis_k, slow);
    }
    // Hysteresis: what is in force needs less to stay.
    free <= below * if pays { FREE_GAIN } else { FREE_STAYS }
}

/// Slow-down that is no noise, for a stick whose sensor is silent.
const SLOW: f64 = 1.6;
const VERY_SLOW: f64 = 3.2;
const RECOVERED: f64 = 1.25;

/// Level that the service time betrays: `ratio` is the time now over the best lasting one. Hysteresis by `before`.
pub fn inferred_level(ratio: f64, before: u8) -> u8 {
    if ratio >= VERY_SLOW {
        2
    } else if ratio >= SLOW {
        1
    } else if ratio < RECOVERED {
        0
    } else {
        before.min(1)
    }
}

/// One stick, as the plan sees it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct HeatView {
    /// Takes or could take work.
    pub up: bool,
    /// Rests now.
    pub resting: bool,
    /// Since when it rests or is awake.
    pub since: Instant,
    /// Degrees, if the sensor speaks.
    pub celsius: Option<f64>,
    /// Level, reported or inferred.
    pub level: u8,
    /// The level is the sensor's own.
    pub level_reported: bool,
    /// Guards.
    pub guards: Guards,
    /// Its level does not go away by cooling.
    pub latched: bool,
    /// It is the one that is let through to find out the law.
    pub explorer: bool,
}

/// What the plan wants of a stick.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Nothing changes.
    Keep,
    /// Stop giving it work.
    Rest,
    /// Give it work again.
    Wake,
}

/// Degrees at which a stick with known guards shall rest, under this law; `None` where it shall not for degrees.
pub fn rest_at(view: &HeatView, law: Law, config: &HeatConfig) -> Option<f64> {
    let Guards::Known { lower_c, upper_c, .. } = view.guards else { return None };
    let upper = upper_c - config.margin_k;
    Some(match law {
        Law::Gradual => upper,
        Law::Unknown if view.explorer => upper,
        // Behind the guard for good: nothing more to lose until the next one.
        _ if view.latched => upper,
        Law::Unknown | Law::Step => lower_c - config.margin_k,
    })
}

/// Whether it should rest, were it alone in the world.
fn is_hot(view: &HeatView, law: Law, config: &HeatConfig) -> bool {
    match (rest_at(view, law, config), view.celsius) {
        (Some(limit), Some(c)) => c >= limit,
        // Guards unknown or sensor silent: a throttled stick rests between inferences as it is, and stopping it would only
        // take away what it still does. Its level and its slowness move load by themselves.
        _ => false,
    }
}

/// Whether a resting stick may work again.
fn is_cool(view: &HeatView, law: Law, config: &HeatConfig, rested: Duration) -> bool {
    if rested < config.dwell {
        return false;
    }
    match (rest_at(view, law, config), view.celsius) {
        (Some(limit), Some(c)) => c <= limit - config.band_k && (view.level == 0 || law == Law::Gradual),
        _ => rested >= config.blind_rest,
    }
}

/// Whether its level outlasts the cold that should have ended it.
pub fn is_latched(view: &HeatView, config: &HeatConfig, now: Instant) -> bool {
    if !view.resting || view.level == 0 || !view.level_reported {
        return view.latched && view.level > 0;
    }
    let cold = match (view.guards, view.celsius) {
        (Guards::Known { lower_c, hysteresis_k, .. }, Some(c)) => c < lower_c - hysteresis_k - 0.5,
        _ => false,
    };
    cold || now.saturating_since(view.since) >= config.latched_after
}

/// Who rests and who wakes. At most half of the sticks rest at a time, never the last one; of those that want to, the
/// hottest goes first. One that has nearly cooled makes room for a hot one.
pub fn plan(views: &[HeatView], law: Law, config: &HeatConfig, now: Instant) -> Vec<Wish> {
    let mut wishes = vec![Wish::Keep; views.len()];
    let up = views.iter().filter(|v| v.up).count();
    let most = up.div_ceil(2).min(up.saturating_sub(1));
    let mut resting = 0;
    for (wish, v) in wishes.iter_mut().zip(views).filter(|(_, v)| v.up && v.resting) {
        let rested = now.saturating_since(v.since);
        if is_cool(v, law, config, rested) || (v.latched && !is_hot(v, law, config)) {
            *wish = Wish::Wake;
        } else {
            resting += 1;
        }
    }
    // How far beyond its limit, kelvin.
    let heat = |v: &HeatView| match (rest_at(v, law, config), v.celsius) {
        (Some(limit), Some(c)) => c - limit,
        _ => f64::from(v.level),
    };
    let mut hot: Vec<usize> = (0..views.len())
        .filter(|i| {
            let v = &views[*i];
            v.up && !v.resting && now.saturating_since(v.since) >= config.dwell && is_hot(v, law, config)
        })
        .collect();
    hot.sort_by(|a, b| heat(&views[*b]).total_cmp(&heat(&views[*a])));
    // No more resting than allowed, also when sticks left meanwhile: the coolest come back.
    let mut coolest: Vec<usize> =
        (0..views.len()).filter(|i| views[*i].up && views[*i].resting && wishes[*i] == Wish::Keep).collect();
    coolest.sort_by(|a, b| heat(&views[*b]).total_cmp(&heat(&views[*a])));
    while resting > most {
        let Some(i) = coolest.pop() else { break };
        wishes[i] = Wish::Wake;
        resting -= 1;
    }
    for i in hot {
        if resting >= most {
            let swap = coolest.last().copied().filter(|c| {
                let (cool, hot) = (&views[*c], &views[i]);
                now.saturating_since(cool.since) >= config.dwell
                    && heat(cool) + config.band_k / 2.0 <= heat(hot).min(0.0)
                    && cool.level == 0
            });
            let Some(cool) = swap else { break };
            coolest.pop();
            wishes[cool] = Wish::Wake;
            resting -= 1;
        }
        wishes[i] = Wish::Rest;
        resting += 1;
    }
    wishes
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Guards = Guards::Known { lower_c: 75.0, upper_c: 85.0, hysteresis_k: 5.0 };

    fn view(celsius: f64, resting: bool) -> HeatView {
        HeatView {
            up: true,
            resting,
            since: Instant::ZERO,
            celsius: Some(celsius),
            level: 0,
            level_reported: true,
            guards: KNOWN,
            latched: false,
            explorer: false,
        }
    }

    #[test]
    fn the_grid_of_rests() {
        let config = HeatConfig::default();
        let level = |level: u8, resting| HeatView { level, guards: Guards::Reported, ..view(90.0, resting) };
        let cases: [(&str, Vec<HeatView>); 10] = [
            ("all cool", vec![view(60.0, false), view(70.0, false), view(74.0, false)]),
            ("one at its guard", vec![view(60.0, false), view(74.7, false), view(74.0, false)]),
            ("two at their guards", vec![view(60.0, false), view(74.7, false), view(74.8, false)]),
            ("all at their guards", vec![view(74.7, false), view(74.9, false), view(74.8, false)]),
            ("the last stick is hot", vec![view(90.0, false)]),
            ("one cooled", vec![view(70.0, false), view(74.0, true), view(74.3, true)]),
            ("the last awake is hot", vec![view(74.8, false), view(74.3, true), view(74.5, true)]),
            ("all above the upper guard", vec![view(86.0, false), view(87.0, false), view(88.0, false)]),
            ("90 degrees, unknown guards", vec![level(0, false), level(0, false), level(0, false)]),
            ("levels, unknown guards", vec![level(0, false), level(1, false), level(2, false)]),
        ];
        let mut table = String::new();
        for (name, views) in &cases {
            for law in [Law::Unknown, Law::Step, Law::Gradual] {
                let wishes = plan(views, law, &config, Instant::ZERO + Duration::from_secs(10));
                table += &format!("{name:<28} {:<8} {wishes:?}\n", format!("{law:?}"));
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn a_probe_decides_by_the_median() {
        let mut step = LawProbe::default();
        assert!((0..9).any(|i| step.sample(if i == 4 { 50.0 } else { 2.0 })));
        assert_eq!(step.law(), Law::Step);
        let mut gradual = LawProbe::default();
        assert!((0..9).any(|i| gradual.sample(if i < 3 { 50.0 } else { 1.02 })));
        assert_eq!(gradual.law(), Law::Gradual);
    }

    #[test]
    fn resting_pays_where_the_room_allows_it() {
        let fit = |idle_c, rise_error_k| Fit { tau_s: 450.0, idle_c, rise_k: 24.4, rms_k: 0.1, rise_error_k };
        let pays = |idles: &[f64], slow, error| {
            let sticks: Vec<_> = idles.iter().map(|i| Some((fit(*i, error), KNOWN))).collect();
            resting_pays(&sticks, slow, &HeatConfig::default(), true)
        };
        assert!(pays(&[54.3, 54.3, 64.3], 0.5, 0.5), "two in a 25 °C room, one at 35 °C");
        assert!(pays(&[59.2, 59.2], 0.5, 0.5), "30 °C");
        assert!(!pays(&[64.3, 64.3, 64.3], 0.5, 0.5), "all at 35 °C");
        assert!(pays(&[64.3, 64.3, 64.3], 0.25, 0.5), "unless the step is deeper");
        assert!(pays(&[64.3, 64.3, 64.3], 0.5, 9.0), "not known well enough");
        assert!(resting_pays(&[None], 0.5, &HeatConfig::default(), false));
    }

    #[test]
    fn service_time_betrays_the_level() {
        let trace = [1.0, 1.3, 1.7, 1.5, 1.3, 3.5, 2.0, 1.4, 1.2];
        let mut level = 0;
        let said: Vec<u8> = trace
            .iter()
            .map(|r| {
                level = inferred_level(*r, level);
                level
            })
            .collect();
        assert_eq!(said, [0, 0, 1, 1, 1, 2, 1, 1, 0]);
    }

    #[test]
    fn a_level_that_outlasts_the_cold_is_latched() {
        let config = HeatConfig::default();
        let at = |s| Instant::ZERO + Duration::from_secs(s);
        let warm = HeatView { level: 1, ..view(71.0, true) };
        assert!(!is_latched(&warm, &config, at(100)));
        assert!(is_latched(&HeatView { celsius: Some(69.0), ..warm }, &config, at(100)));
        assert!(is_latched(&HeatView { guards: Guards::Reported, ..warm }, &config, at(601)));
        assert!(!is_latched(&HeatView { latched: true, level: 0, ..warm }, &config, at(100)));
    }
}
