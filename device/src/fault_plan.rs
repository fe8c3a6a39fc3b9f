//! What goes wrong, and when: a seeded plan, from a file or by hand, so that a failing run can be repeated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::Instant;
use ncs2::error::{Error, ErrorKind, Result};
use ncs2::transport::{Direction, Fault as TransferFault, FaultRule, TransferError, When};
use parking_lot::Mutex;
use serde::Deserialize;

use crate::calibrate::Random;

/// Longer than any run: a transfer that is held.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);

/// What goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// A transfer never completes.
    Hold,
    /// A transfer completes at once and its bytes are lost.
    Complete,
    /// A transfer completes `ms` late, and those behind it.
    Delay,
    /// A transfer fails with a stall (EPIPE).
    Fail,
    /// One bit of a transfer arrives flipped.
    Corrupt,
    /// Only the first half of `min_bytes` passes of a transfer (1 byte without it), and nobody says so.
    Short,
    /// At a TRIGGER or a time: out of its port; with `ms`, back in after so long.
    Unplug,
    /// At a time: back into its port.
    Replug,
    /// At a TRIGGER or a time: dead, but on the bus.
    Hang,
    /// At a TRIGGER: sends bytes that are no XLink header.
    Babble,
    /// A thermal request gets no reply.
    SilentSensor,
    /// A thermal reply has a temperature drawn by chance, and no known level.
    LyingSensor,
    /// A capabilities reply is nonsense.
    Capabilities,
    /// At a boot: the image is refused, the stick stays unbooted.
    BootNack,
    /// At a boot: it leaves the bus and does not come back.
    Vanish,
    /// A TRIGGER's output is half as long as it should be.
    ShortOutput,
    /// A TRIGGER is not answered; its output comes.
    NoStatus,
    /// A TRIGGER has no output.
    NoOutput,
    /// A TRIGGER's input is released `ms` late.
    LateRelease,
    /// A TRIGGER is answered "out of resources"; what becomes of its input is a knob.
    RefuseTrigger,
    /// An ALLOCATE or BUFFER_ALLOCATE is answered "out of memory".
    RefuseAllocation,
}

impl FaultKind {
    /// What its `nth`, `every` and `chance` count; `None` for transfers, which the host's end counts.
    fn point(self) -> Option<Point> {
        use FaultKind as F;
        match self {
            F::Hold | F::Complete | F::Delay | F::Fail | F::Corrupt | F::Short => None,
            F::SilentSensor | F::LyingSensor => Some(Point::Sensor),
            F::Capabilities => Some(Point::Capabilities),
            F::BootNack | F::Vanish => Some(Point::Boot),
            F::RefuseAllocation => Some(Point::Allocation),
            _ => Some(Point::Trigger),
        }
    }
}

/// Where a fault can strike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Point {
    Trigger,
    Allocation,
    Sensor,
    Capabilities,
    Boot,
}

/// One fault of a plan. Exactly one of `nth`, `every`, `chance` and `at_ms` says when.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedFault {
    /// Name of the stick, `sim0` for the first; `None` for every stick, each with counts of its own.
    pub stick: Option<String>,
    /// What goes wrong.
    pub kind: FaultKind,
    /// The n-th transfer, command or boot, from 1.
    pub nth: Option<u64>,
    /// Every n-th.
    pub every: Option<u64>,
    /// Each with this probability.
    pub chance: Option<f64>,
    /// So long after the start: only unplug, replug and hang.
    pub at_ms: Option<f64>,
    /// How long, where the kind says so.
    pub ms: Option<f64>,
    /// Transfers: `in` or `out`; both if it is missing.
    pub direction: Option<Way>,
    /// Transfers: only of at least so many bytes (`in`: as posted).
    pub min_bytes: Option<usize>,
}

/// Direction of a transfer, as the host sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Stick to host.
    In,
    /// Host to stick.
    Out,
}

impl PlannedFault {
    /// A fault of every stick at its n-th chance.
    pub fn nth(kind: FaultKind, nth: u64) -> Self {
        PlannedFault {
            stick: None,
            kind,
            nth: Some(nth),
            every: None,
            chance: None,
            at_ms: None,
            ms: None,
            direction: None,
            min_bytes: None,
        }
    }

    /// Only this stick.
    pub fn on(self, stick: &str) -> Self {
        PlannedFault { stick: Some(stick.to_owned()), ..self }
    }

    /// For so long.
    pub fn lasting(self, ms: f64) -> Self {
        PlannedFault { ms: Some(ms), ..self }
    }

    fn when(&self) -> Option<When> {
        match (self.nth, self.every, self.chance) {
            (Some(n), None, None) => Some(When::Nth(n)),
            (None, Some(n), None) => Some(When::Every(n)),
            (None, None, Some(p)) => Some(When::Chance(p)),
            _ => None,
        }
    }

    fn lasts(&self) -> Duration {
        Duration::from_nanos((self.ms.unwrap_or(0.0) * 1e6) as u64)
    }

    fn check(&self) -> std::result::Result<(), String> {
        let said = [self.nth.is_some(), self.every.is_some(), self.chance.is_some(), self.at_ms.is_some()];
        if said.iter().filter(|&&s| s).count() != 1 {
            return Err("expected exactly one of nth, every, chance and at_ms".into());
        }
        if self.nth == Some(0) || self.every == Some(0) {
            return Err("nth and every count from 1".into());
        }
        if self.chance.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            return Err(format!("chance = {}: expected 0 to 1", self.chance.unwrap_or_default()));
        }
        for (name, value) in [("at_ms", self.at_ms), ("ms", self.ms)] {
            if value.is_some_and(|v| !(0.0..=1e9).contains(&v)) {
                return Err(format!("{name} = {}: expected 0 to 1e9", value.unwrap_or_default()));
            }
        }
        let timed = matches!(self.kind, FaultKind::Unplug | FaultKind::Replug | FaultKind::Hang);
        if self.at_ms.is_some() && !timed {
            return Err("at_ms is for unplug, replug and hang".into());
        }
        if self.at_ms.is_none() && self.kind == FaultKind::Replug {
            return Err("replug needs at_ms (or unplug with ms)".into());
        }
        if matches!(self.kind, FaultKind::Delay | FaultKind::LateRelease) && self.ms.is_none() {
            return Err("needs ms".into());
        }
        if self.kind.point().is_some() && (self.direction.is_some() || self.min_bytes.is_some()) {
            return Err("direction and min_bytes are for faults of transfers".into());
        }
        Ok(())
    }
}

/// Faults of a rack's sticks, repeated exactly by the same seed.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// Seed of chances, bits and lies; the rack's if it is missing.
    pub seed: Option<u64>,
    /// Each by itself; the first that strikes a command or transfer is the one.
    #[serde(default)]
    pub fault: Vec<PlannedFault>,
}

impl FaultPlan {
    /// A plan of one fault.
    pub fn of(fault: PlannedFault) -> Self {
        FaultPlan { seed: None, fault: vec![fault] }
    }

    /// A plan from a TOML file. `NotFound` and `InvalidInput` name the file and what is wrong.
    pub fn load(path: impl AsRef<Path>) -> Result<FaultPlan> {
        let path = path.as_ref();
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::new(ErrorKind::NotFound, "load fault plan").detail(path.display().to_string()).caused_by(e)
        })?;
        Self::parse(&path.display().to_string(), &text)
    }

    /// A plan from its text; `name` is for messages.
    pub fn parse(name: &str, text: &str) -> Result<FaultPlan> {
        let plan: FaultPlan = toml::from_str(text).map_err(|e| {
            let why = e.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ");
            Error::new(ErrorKind::InvalidInput, "load fault plan").detail(format!("{name}: {why}"))
        })?;
        plan.check(name, None)?;
        Ok(plan)
    }

    /// `InvalidInput` for a fault that makes no sense or, where they are known, names none of `sticks` sticks.
    pub(crate) fn check(&self, name: &str, sticks: Option<usize>) -> Result<()> {
        for (i, fault) in self.fault.iter().enumerate() {
            let unknown = match (&fault.stick, sticks) {
                (Some(stick), Some(n)) if !(0..n).any(|k| *stick == format!("sim{k}")) => {
                    Err(format!("no stick is called {stick}: there are sim0 to sim{}", n.saturating_sub(1)))
                }
                _ => Ok(()),
            };
            fault.check().and(unknown).map_err(|why| {
                Error::new(ErrorKind::InvalidInput, "load fault plan").detail(format!(
                    "{name}: fault {} ({:?}): {why}",
                    i + 1,
                    fault.kind
                ))
            })?;
        }
        Ok(())
    }

    fn of_stick(&self, n: usize) -> impl Iterator<Item = &PlannedFault> {
        let name = format!("sim{n}");
        self.fault.iter().filter(move |f| f.stick.as_ref().is_none_or(|s| *s == name))
    }

    /// Rules for the host's end of stick `n`'s transport.
    pub(crate) fn transfer_rules(&self, n: usize) -> Vec<FaultRule> {
        let rule = |f: &PlannedFault| {
            let fault = match f.kind {
                FaultKind::Hold => TransferFault::Delay(FOR_EVER),
                FaultKind::Complete => TransferFault::Drop,
                FaultKind::Delay => TransferFault::Delay(f.lasts()),
                FaultKind::Fail => TransferFault::Fail(TransferError::Stalled),
                FaultKind::Corrupt => TransferFault::Corrupt,
                FaultKind::Short => TransferFault::Truncate(f.min_bytes.unwrap_or(2) / 2),
                _ => return None,
            };
            let direction = f.direction.map(|d| if d == Way::In { Direction::In } else { Direction::Out });
            Some(FaultRule { direction, min_bytes: f.min_bytes.unwrap_or(0), when: f.when()?, fault })
        };
        self.of_stick(n).filter_map(rule).collect()
    }

    /// What stick `n` itself does wrong, from `now` on; `seed` where the plan has none.
    pub fn script(&self, n: usize, seed: u64, now: Instant) -> Script {
        let seed = self.seed.unwrap_or(seed) ^ (n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut timed = Vec::new();
        let mut counted = Vec::new();
        for fault in self.of_stick(n) {
            match (fault.at_ms, fault.kind.point(), fault.when()) {
                (Some(ms), ..) => timed.push((now + Duration::from_nanos((ms * 1e6) as u64), fault.clone())),
                (None, Some(point), Some(when)) => counted.push((point, when, 0, fault.clone())),
                _ => {}
            }
        }
        timed.sort_by_key(|(at, _)| *at);
        let state = State { random: Random(seed), timed, counted, pending: Vec::new() };
        Script(Arc::new(Mutex::new(state)))
    }
}

/// A stick's part of a plan. Copies share their counts.
#[derive(Clone, Debug)]
pub struct Script(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    random: Random,
    timed: Vec<(Instant, PlannedFault)>,
    counted: Vec<(Point, When, u64, PlannedFault)>,
    /// Struck by a command, to be done by the stick.
    pending: Vec<(FaultKind, Option<Duration>)>,
}

impl Script {
    /// Something happens that a fault may strike: which one does, and for how long.
    pub(crate) fn strike(&self, at: Point) -> Option<(FaultKind, Duration)> {
        let mut state = self.0.lock();
        let state = &mut *state;
        let mut struck = None;
        for (point, when, count, fault) in &mut state.counted {
            if *point != at {
                continue;
            }
            *count += 1;
            let hits = match *when {
                When::Nth(n) => *count == n,
                When::Every(n) => count.is_multiple_of(n),
                When::Chance(p) => state.random.unit() < p,
            };
            if hits && struck.is_none() {
                struck = Some((fault.kind, fault.lasts()));
                if matches!(fault.kind, FaultKind::Unplug | FaultKind::Hang) {
                    state.pending.push((fault.kind, fault.ms.map(|_| fault.lasts())));
                }
            }
        }
        if let Some((kind, _)) = struck {
            tracing::warn!(?kind, "virtual stick: planned fault");
        }
        struck
    }

    /// What the stick as a whole does now: struck by a command, or due.
    pub(crate) fn due(&self, now: Instant) -> Option<FaultKind> {
        let mut state = self.0.lock();
        if !state.pending.is_empty() {
            let (kind, back) = state.pending.remove(0);
            if let Some(back) = back.filter(|_| kind == FaultKind::Unplug) {
                state.plan_return(now + back);
            }
            return Some(kind);
        }
        if state.timed.first().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        let (at, fault) = state.timed.remove(0);
        if fault.kind == FaultKind::Unplug && fault.ms.is_some() {
            state.plan_return(at + fault.lasts());
        }
        Some(fault.kind)
    }

    /// When [`Self::due`] has something.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let state = self.0.lock();
        if state.pending.is_empty() { state.timed.first().map(|(at, _)| *at) } else { Some(Instant::ZERO) }
    }

    /// A number by chance, 0 to 1.
    pub(crate) fn unit(&self) -> f64 {
        self.0.lock().random.unit()
    }
}

impl State {
    fn plan_return(&mut self, at: Instant) {
        let replug = PlannedFault { at_ms: Some(0.0), nth: None, ..PlannedFault::nth(FaultKind::Replug, 1) };
        let place = self.timed.partition_point(|(t, _)| *t <= at);
        self.timed.insert(place, (at, replug));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_plan_is_named_with_its_fault() {
        for (text, word) in [
            ("[[fault]]\nkind = \"explode\"\nnth = 1", "explode"),
            ("[[fault]]\nkind = \"hang\"", "exactly one"),
            ("[[fault]]\nkind = \"hang\"\nnth = 1\nevery = 2", "exactly one"),
            ("[[fault]]\nkind = \"hang\"\nnth = 0", "from 1"),
            ("[[fault]]\nkind = \"corrupt\"\nat_ms = 1", "at_ms"),
            ("[[fault]]\nkind = \"delay\"\nnth = 1", "needs ms"),
            ("[[fault]]\nkind = \"delay\"\nnth = 1\nms = -1", "ms = -1"),
            ("[[fault]]\nkind = \"fail\"\nchance = 1.5", "chance = 1.5"),
            ("[[fault]]\nkind = \"hang\"\nnth = 1\ndirection = \"in\"", "direction"),
            ("fault = 1", "fault"),
        ] {
            let error = FaultPlan::parse("plan.toml", text).expect_err(text).to_string();
            assert!(error.contains("plan.toml") && error.contains(word), "{error}");
        }
        let plan =
            FaultPlan::parse("p", "[[fault]]\nkind = \"hang\"\nnth = 1\nstick = \"sim3\"").expect("good");
        assert!(plan.check("p", Some(4)).is_ok());
        assert!(plan.check("p", Some(3)).expect_err("three").to_string().contains("sim3"));
    }

    #[test]
    fn the_same_seed_strikes_the_same_commands() {
        let plan = FaultPlan::parse("p", "[[fault]]\nkind = \"no-output\"\nchance = 0.2").expect("good");
        let strikes = |n: usize, seed: u64| -> Vec<bool> {
            let script = plan.script(n, seed, Instant::ZERO);
            (0..200).map(|_| script.strike(Point::Trigger).is_some()).collect()
        };
        assert_eq!(strikes(0, 7), strikes(0, 7));
        assert_ne!(strikes(0, 7), strikes(0, 8));
        assert_ne!(strikes(0, 7), strikes(1, 7));
        assert!((15..70).contains(&strikes(0, 7).iter().filter(|&&s| s).count()));
    }
}
