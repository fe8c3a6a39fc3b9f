//! Which stick a job goes to: each policy is one standing, the smallest wins.

use super::config::Policy;
use super::ranking::Standing;

/// What a policy may look at. Times in microseconds of device time.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct StickView {
    /// When what is in flight there is expected to be done, nanoseconds of the clock; `None` for an idle stick.
    pub ready_ns: Option<u64>,
    /// Expected time of the job itself there.
    pub own_us: f64,
    /// In flight.
    pub in_flight: u32,
    /// Number of the fleet's assignment that it got last; 0 for never.
    pub turn: u64,
    /// Device time given to it so far.
    pub served_us: f64,
    /// Its weight.
    pub weight: f64,
    /// Kelvin until it rests; `None` where that is unknown or does not matter.
    pub headroom_k: Option<f64>,
}

/// Below this headroom a stick looks slower than it is, so that load moves before the guard is reached.
const HEADROOM_K: f64 = 10.0;
/// How much slower at no headroom.
const HEAT_PENALTY: f64 = 0.5;

/// How the stick stands: the smallest wins.
pub fn standing(policy: Policy, s: &StickView) -> Standing {
    // Nanoseconds: whole, ordered, and far from overflow for any time that is not nonsense.
    let whole = |x: f64| (x * 1e3).clamp(0.0, 1e18) as u64;
    let finish = |own_us: f64| match s.ready_ns {
        None => Standing::Idle(whole(own_us)),
        Some(ready) => Standing::Busy(ready.saturating_add(whole(own_us)).min(u64::MAX - 1)),
    };
    match policy {
        Policy::RoundRobin | Policy::StrictRoundRobin => Standing::Idle(s.turn),
        Policy::LeastLoaded => Standing::Idle((u64::from(s.in_flight) << 40) | (s.turn & ((1 << 40) - 1))),
        Policy::Weighted => Standing::Idle(whole(s.served_us / s.weight)),
        Policy::Fastest => finish(s.own_us),
        Policy::Thermal => {
            let warm = s.headroom_k.map_or(0.0, |k| 1.0 - (k / HEADROOM_K).clamp(0.0, 1.0));
            finish(s.own_us * (1.0 + HEAT_PENALTY * warm))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ranking::Board;
    use super::*;

    /// Each policy's choice among three sticks, over a grid of situations.
    #[test]
    fn the_grid_of_choices() {
        let base = StickView {
            ready_ns: None,
            own_us: 100.0,
            in_flight: 0,
            turn: 1,
            served_us: 1000.0,
            weight: 1.0,
            headroom_k: Some(30.0),
        };
        let cases = [
            (
                "A slow, B busy, C last used",
                [
                    StickView { own_us: 400.0, ..base },
                    StickView { ready_ns: Some(1_200_000), in_flight: 2, ..base },
                    StickView { turn: 9, served_us: 1100.0, ..base },
                ],
            ),
            (
                "A hot, B warm, C cool and busy",
                [
                    StickView { headroom_k: Some(0.5), ..base },
                    StickView { headroom_k: Some(4.0), turn: 2, served_us: 1200.0, ..base },
                    StickView { ready_ns: Some(1_010_000), in_flight: 1, turn: 3, served_us: 1300.0, ..base },
                ],
            ),
            (
                "A weight 3, B light, C unmeasured",
                [
                    StickView {
                        weight: 3.0,
                        served_us: 2500.0,
                        ready_ns: Some(1_100_000),
                        in_flight: 1,
                        ..base
                    },
                    StickView { served_us: 900.0, ready_ns: Some(1_100_000), in_flight: 1, turn: 2, ..base },
                    StickView {
                        own_us: 90.0,
                        ready_ns: Some(1_090_000),
                        in_flight: 1,
                        served_us: 950.0,
                        turn: 3,
                        ..base
                    },
                ],
            ),
        ];
        let mut table = String::new();
        for (name, sticks) in cases {
            table += &format!("{name:<34}");
            for policy in Policy::ALL {
                let mut board = Board::new(3);
                (0..3).for_each(|i| board.set(i, standing(policy, &sticks[i])));
                let best = board.best(1_000_000).expect("three");
                table += &format!(" {}={}", policy.as_str(), ["A", "B", "C"][best]);
            }
            table += "\n";
        }
        insta::assert_snapshot!(table);
    }
}
