//! How many inferences to keep in flight: the fewest that keep the stick busy, within a target latency.
//!
//! As BBR does, it takes the largest rate and the smallest latency seen; their product is the least number in flight that
//! could reach that rate. It climbs from 1 while the measured rate grows, settles on the smallest depth within
//! [`KEEP`] of the best, and from then on tries one more or one less for a short window every two minutes at most. Windows
//! in which the caller did not fill the depth teach nothing.

use std::time::Duration;

use crate::clock::Instant;

/// Largest depth there is: elements of a FIFO.
pub const MAX_DEPTH: u32 = 16;
/// A rate within this of the best is as good.
const KEEP: f64 = 0.985;
/// One more in flight must give this much to be kept when tried at rest.
const WORTH: f64 = 1.02;
/// Completions of a window while climbing, and when judging at rest, where noise must not decide.
const WINDOW: u32 = 48;
const LONG_WINDOW: u32 = 160;
/// Share of completions in a window that must have found the depth full.
const FULL: f64 = 0.9;
/// Depth where other graphs always share the stick, so that nothing can be measured: 1 to 4 gave 2.3 times the rate
/// (NCS2_FACTS section 2), and more was never shown to give more.
const GUESS: u32 = 4;
/// Depths in a row that must bring nothing before climbing ends.
const PATIENCE: u32 = 2;
/// Time between two trials at rest. A trial is two changes, so that there is at most one a minute.
const TRIAL_EVERY: Duration = Duration::from_secs(130);
/// Longest time between two trials, reached when trials keep finding nothing.
const TRIAL_MAX: Duration = Duration::from_secs(1040);
/// A rate at rest that differs by this factor is another regime: the next trial comes after the shortest time.
const REGIME: f64 = 1.2;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Phase {
    /// Looking for the knee; so many depths brought nothing.
    Climb { idle: u32 },
    /// Settled.
    Rest { next: Instant, pause: Duration },
    /// One more or one less for a window; `home` is the depth to go back to, and its rate.
    Trial { home: u32, rate: f64, pause: Duration },
}

#[derive(Clone, Copy, Debug)]
struct Window {
    begun: Option<Instant>,
    skip: u32,
    count: u32,
    full: u32,
    shared: u32,
    latency_s: f64,
    want: u32,
}

impl Window {
    /// Skips what was still under way at the old depth.
    fn after_change(depth: u32, want: u32) -> Self {
        Window { begun: None, skip: 2 * depth + 2, count: 0, full: 0, shared: 0, latency_s: 0.0, want }
    }
}

/// Controller of one graph on one stick.
#[derive(Clone, Debug)]
pub struct DepthControl {
    max: u32,
    target_s: f64,
    depth: u32,
    phase: Phase,
    window: Window,
    /// Rate and mean latency last measured at each depth.
    rate: [f64; MAX_DEPTH as usize + 1],
    latency: [f64; MAX_DEPTH as usize + 1],
    least_latency_s: f64,
    up_next: bool,
    fixed: bool,
    changes: u32,
}

impl DepthControl {
    /// For FIFOs of `elements`; mean time in the stick shall stay below `target`.
    pub fn new(elements: u32, target: Option<Duration>) -> Self {
        let max = elements.clamp(1, MAX_DEPTH);
        DepthControl {
            max,
            target_s: target.map_or(f64::INFINITY, |t| t.as_secs_f64()),
            depth: 1,
            phase: Phase::Climb { idle: 0 },
            window: Window::after_change(1, WINDOW),
            rate: [0.0; MAX_DEPTH as usize + 1],
            latency: [0.0; MAX_DEPTH as usize + 1],
            least_latency_s: f64::INFINITY,
            up_next: true,
            fixed: false,
            changes: 0,
        }
    }

    /// No controller, always this depth.
    pub fn fixed(depth: u32, elements: u32) -> Self {
        let mut control = DepthControl::new(elements, None);
        control.depth = depth.clamp(1, control.max);
        control.fixed = true;
        control
    }

    /// In flight now at most.
    pub fn depth(&self) -> u32 {
        self.depth
    }

    /// The FIFO's elements: more can not be in flight.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// Changes of depth so far.
    pub fn changes(&self) -> u32 {
        self.changes
    }

    /// True once it settled.
    pub fn is_at_rest(&self) -> bool {
        self.fixed || !matches!(self.phase, Phase::Climb { .. })
    }

    /// The bandwidth-delay product: the least number in flight that could reach the best rate seen.
    pub fn product(&self) -> Option<f64> {
        let best = self.rate.iter().copied().fold(0.0, f64::max);
        (best > 0.0 && self.least_latency_s.is_finite()).then_some(best * self.least_latency_s)
    }

    /// An inference came back after `latency` in the stick; `full` says that the depth was reached just before, and
    /// `alone` that no other graph kept the stick busy. Returns the new depth if it changes.
    pub fn completed(&mut self, now: Instant, latency: Duration, full: bool, alone: bool) -> Option<u32> {
        if self.fixed {
            return None;
        }
        let w = &mut self.window;
        if w.skip > 0 {
            w.skip -= 1;
            w.begun = Some(now);
            return None;
        }
        let Some(begun) = w.begun else {
            w.begun = Some(now);
            return None;
        };
        w.count += 1;
        w.full += u32::from(full && alone);
        w.shared += u32::from(!alone);
        w.latency_s += latency.as_secs_f64();
        if w.count < w.want {
            return None;
        }
        let elapsed = now.saturating_since(begun).as_secs_f64();
        let taught = f64::from(w.full) >= FULL * f64::from(w.count) && elapsed > 0.0;
        let (rate, latency_s) = (f64::from(w.count) / elapsed, w.latency_s / f64::from(w.count));
        let (want, shared) = (w.want, 2 * w.shared > w.count);
        self.window =
            Window { begun: Some(now), skip: 0, count: 0, full: 0, shared: 0, latency_s: 0.0, want };
        if !taught {
            // A trial that the caller's demand interrupts is given up, not judged.
            return match self.phase {
                Phase::Trial { home, pause, .. } => self.rest(now, home, pause),
                Phase::Climb { .. } if shared => self.rest(now, GUESS.min(self.max), TRIAL_EVERY),
                _ => None,
            };
        }
        self.judge(now, rate, latency_s)
    }

    fn judge(&mut self, now: Instant, rate: f64, latency_s: f64) -> Option<u32> {
        let d = self.depth as usize;
        match self.phase {
            Phase::Climb { idle } => {
                self.note(rate, latency_s);
                let before = self.rate[1..d].iter().copied().fold(0.0, f64::max);
                let idle = if rate >= before * WORTH { 0 } else { idle + 1 };
                if self.depth == self.max || idle >= PATIENCE || latency_s > self.target_s {
                    let best = self.smallest_good();
                    return self.rest(now, best, TRIAL_EVERY);
                }
                self.phase = Phase::Climb { idle };
                self.go(self.depth + 1, WINDOW)
            }
            Phase::Rest { next, pause } => {
                let old = self.rate[d];
                let regime = old > 0.0 && !(1.0 / REGIME..REGIME).contains(&(rate / old));
                if regime {
                    // What was measured at other depths belongs to another time.
                    self.rate = [0.0; MAX_DEPTH as usize + 1];
                    self.least_latency_s = f64::INFINITY;
                    self.phase = Phase::Rest { next: next.min(now + TRIAL_EVERY), pause: TRIAL_EVERY };
                }
                self.note(rate, latency_s);
                if latency_s > self.target_s * 1.1 && self.depth > 1 && now >= next {
                    return self.rest(now, self.depth - 1, TRIAL_EVERY);
                }
                if now < next {
                    return None;
                }
                self.trial(now, self.rate[d], pause)
            }
            Phase::Trial { home, rate: home_rate, pause } => {
                self.note(rate, latency_s);
                let longer = (pause * 2).min(TRIAL_MAX);
                let better = self.depth > home && rate >= home_rate * WORTH && latency_s <= self.target_s;
                let cheaper = self.depth < home && rate >= home_rate * KEEP;
                if better || cheaper {
                    // It paid: the next trial goes the same way and comes soon.
                    self.up_next = better;
                    let kept = self.depth;
                    return self.rest(now, kept, TRIAL_EVERY);
                }
                self.up_next = self.depth < home;
                self.rest(now, home, longer)
            }
        }
    }

    fn note(&mut self, rate: f64, latency_s: f64) {
        let d = self.depth as usize;
        let old = self.rate[d];
        self.rate[d] = if old > 0.0 { old + 0.5 * (rate - old) } else { rate };
        self.latency[d] = latency_s;
        self.least_latency_s = self.least_latency_s.min(latency_s);
    }

    /// The smallest depth whose rate is within [`KEEP`] of the best that meets the target.
    fn smallest_good(&self) -> u32 {
        let meets = |d: &usize| *d == 1 || self.latency[*d] <= self.target_s;
        let tried = || (1..=self.max as usize).filter(|d| self.rate[*d] > 0.0).filter(meets);
        let best = tried().map(|d| self.rate[d]).fold(0.0, f64::max);
        tried().find(|d| self.rate[*d] >= best * KEEP).unwrap_or(1) as u32
    }

    fn trial(&mut self, now: Instant, rate: f64, pause: Duration) -> Option<u32> {
        // One less than the product can not do; one more than the FIFO there is not.
        let up_possible = self.depth < self.max && self.latency[self.depth as usize] <= self.target_s * 0.95;
        let down_possible =
            self.depth > 1 && self.product().is_none_or(|p| f64::from(self.depth) - 1.0 >= p * 0.8);
        let up = match (up_possible, down_possible) {
            (true, true) => self.up_next,
            (up, down) if up || down => up,
            _ => {
                self.phase = Phase::Rest { next: now + pause, pause };
                return None;
            }
        };
        self.phase = Phase::Trial { home: self.depth, rate, pause };
        self.go(if up { self.depth + 1 } else { self.depth - 1 }, LONG_WINDOW)
    }

    fn rest(&mut self, now: Instant, depth: u32, pause: Duration) -> Option<u32> {
        self.phase = Phase::Rest { next: now + pause, pause };
        self.go(depth, LONG_WINDOW)
    }

    fn go(&mut self, depth: u32, want: u32) -> Option<u32> {
        let changed = depth != self.depth;
        self.depth = depth;
        self.window = Window::after_change(depth, want);
        self.changes += u32::from(changed);
        changed.then_some(depth)
    }
}

#[cfg(test)]
#[path = "depth_tests.rs"]
mod tests;
