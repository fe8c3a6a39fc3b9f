//! Properties of the scheduler over random fleets, loads and faults. The simulation itself asserts at every step that a job
//! ends once, that a stick that is given a run has the graph and room, that the last stick is never stopped.

mod sim;

use ncs2::sched::{Placement, Policy};
use proptest::prelude::*;
use sim::setup::{Faults, NO_FAULTS};
use sim::{Arrivals, Sim, SimConfig, model};

fn config() -> impl Strategy<Value = SimConfig> {
    let models =
        prop::collection::vec((1u32..60, 1u32..40, 0u8..32, 1u32..4, any::<bool>(), any::<bool>()), 1..5);
    let faults = (0u8..3, 0.0..0.05);
    (any::<u64>(), 1usize..7, models, faults, 0usize..6, 1usize..200, any::<bool>()).prop_map(
        |(seed, sticks, models, (kind, refuse), policy, queue, heat)| {
            let models =
                models.into_iter().enumerate().map(|(n, (ms, rate, priority, callers, deadline, demand))| {
                    let mut m = model(n as u8, f64::from(ms) / 1e3, Arrivals::Poisson(f64::from(rate)));
                    (m.priority, m.callers) = (priority, callers);
                    m.deadline_s = deadline.then_some(0.5);
                    m.spec.placement = if demand { Placement::OnDemand } else { Placement::Everywhere };
                    m.spec.weight = f64::from(callers);
                    m.spec.rate_limit = (rate % 5 == 0).then_some(f64::from(rate) * 1.5);
                    m
                });
            let mut config = SimConfig::new(seed, sticks, models.collect());
            config.faults = match kind {
                0 => NO_FAULTS,
                1 => Faults { unplug_s: 20.0, hang_s: 30.0, short_output_s: 15.0, silence_s: 10.0, refuse },
                _ => Faults { unplug_s: 4.0, hang_s: 5.0, short_output_s: 4.0, silence_s: 10.0, refuse },
            };
            config.sched.policy = Policy::ALL[policy];
            config.sched.queue_limit = queue * 10;
            config.no_heat = !heat;
            config.jobs = 1500;
            config
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn every_job_ends_exactly_once(config in config()) {
        let seed = config.seed;
        let o = Sim::new(config).run();
        prop_assert_eq!(o.stuck, 0, "seed {}: {:?}", seed, o.ends);
        prop_assert_eq!(o.ends.values().sum::<u64>(), o.arrived);
        prop_assert!(o.history_len <= 3, "at most two retries");
        prop_assert!(o.poisoned.iter().all(|(_, deaths)| *deaths == 2));
    }

    /// Models of one priority share device time by weight, whatever their service times; callers of one model equally.
    #[test]
    fn shares_are_kept(seed in any::<u64>(), a_ms in 2u32..50, b_ms in 2u32..50, weight in 1u32..4) {
        let mut a = model(1, f64::from(a_ms) / 1e3, Arrivals::Saturate(64));
        let b = model(2, f64::from(b_ms) / 1e3, Arrivals::Saturate(64));
        a.spec.weight = f64::from(weight);
        let mut config = SimConfig::new(seed, 2, vec![a, b]);
        config.seconds = 120.0;
        let o = Sim::new(config).run();
        let share = o.device_s[0] / (o.device_s[0] + o.device_s[1]);
        let due = f64::from(weight) / (f64::from(weight) + 1.0);
        prop_assert!((share - due).abs() < 0.04, "seed {seed}: {share:.3}, due {due:.3}");
        prop_assert!(o.device_s[0] + o.device_s[1] > 0.97 * 240.0, "no time is lost by fairness");
    }

    /// Strict priorities, but nobody waits for ever: a low job waits at most the bound, and for those aged before it.
    #[test]
    fn nobody_starves(seed in any::<u64>(), ms in 5u32..40) {
        let mut low = model(1, 0.01, Arrivals::Poisson(2.0));
        low.priority = 0;
        let mut high = model(2, f64::from(ms) / 1e3, Arrivals::Saturate(64));
        high.priority = 20;
        let mut config = SimConfig::new(seed, 2, vec![low, high]);
        config.seconds = 120.0;
        let bound = config.sched.starvation_bound.as_secs_f64();
        let o = Sim::new(config).run();
        // Two a second arrive by chance; those of the last `bound` may still wait. Five deviations below that is no chance.
        let (expected, deviation) = (2.0 * (120.0 - bound - 1.5), 240.0_f64.sqrt());
        prop_assert!(o.answers[0] as f64 > expected - 5.0 * deviation, "{:?}, bound {bound}", o.answers);
        prop_assert!(o.longest_s[0] < bound + 1.5, "seed {seed}: {}", o.longest_s[0]);
    }
}

/// A job that names its stick runs there and nowhere else, waits while the stick is away, and takes its graph there.
#[test]
fn pinned_jobs_stay_on_their_stick() {
    for placement in [Placement::Everywhere, Placement::OnDemand] {
        let mut m = model(1, 0.01, Arrivals::Poisson(40.0));
        m.spec.placement = placement;
        m.stick = Some(ncs2::sched::StickNo(2));
        let mut config = SimConfig::new(7, 4, vec![m]);
        config.faults = Faults { unplug_s: 20.0, ..NO_FAULTS };
        config.jobs = 3000;
        let o = Sim::new(config).run();
        assert_eq!((o.stuck, o.ends.values().sum::<u64>()), (0, 3000), "{:?}", o.ends);
        assert_eq!(o.per_stick[2], o.answered(), "{:?}", o.per_stick);
        assert!(o.answered() > 2950, "{:?}", o.ends);
    }
}
