//! Load: sticks × load × policy × ambient, mixed models, bursts, batches, depth, more models than fit. Simulated.

mod sim;

use std::time::Duration;

use ncs2::sched::{Placement, Policy, SchedConfig, VariantSpec};
use sim::heat::ThrottleLaw;
use sim::{Arrivals, Sim, SimConfig, SimStickSpec, model, report};

#[test]
fn sticks_by_load_by_policy_by_ambient() {
    let mut table =
        String::from("sticks  load  ambient     policy         answers/s   p50 ms    p99 ms  above 75 °C\n");
    for sticks in [1_usize, 2, 4, 8] {
        for load in [0.5, 0.9] {
            for (ambient, place) in [(25.0, "25 °C"), (35.0, "25/35 °C")] {
                for policy in [
                    Policy::RoundRobin,
                    Policy::LeastLoaded,
                    Policy::Fastest,
                    Policy::Weighted,
                    Policy::Thermal,
                ] {
                    let rate = load * sticks as f64 / 0.16;
                    let mut config = SimConfig::new(1, sticks, vec![model(1, 0.16, Arrivals::Poisson(rate))]);
                    config.sched = SchedConfig { policy, fixed_depth: Some(2), ..config.sched };
                    for (i, s) in config.sticks.iter_mut().enumerate() {
                        s.ambient_c = if i % 2 == 0 { ambient } else { 25.0 };
                    }
                    (config.no_heat, config.law, config.seconds) = (false, ThrottleLaw::Cliff, 2400.0);
                    let o = Sim::new(config).run();
                    let l = o.all_latency();
                    table += &format!(
                        "{sticks:>6}  {load:.1}   {place:<10}  {:<13} {:>10.1} {:>8} {:>9} {:>11.2}%\n",
                        policy.as_str(),
                        o.per_second(),
                        report::ms(l.quantile(0.5).as_secs_f64()),
                        report::ms(l.quantile(0.99).as_secs_f64()),
                        report::above(&o)
                    );
                }
            }
        }
    }
    println!("{table}");
    insta::assert_snapshot!(table);
}

#[test]
fn unequal_sticks() {
    let mut table =
        String::from("load  policy         answers/s and latency, sticks at speed 1, 1, 1/2, 1/4\n");
    for load in [0.5, 0.8] {
        for policy in [
            Policy::StrictRoundRobin,
            Policy::RoundRobin,
            Policy::LeastLoaded,
            Policy::Weighted,
            Policy::Fastest,
        ] {
            let mut config =
                SimConfig::new(1, 4, vec![model(1, 0.02, Arrivals::Poisson(load * 2.75 / 0.02))]);
            config.sched = SchedConfig { policy, fixed_depth: Some(2), ..config.sched };
            for (s, slow) in config.sticks.iter_mut().zip([1.0, 1.0, 2.0, 4.0]) {
                (s.slow, s.weight) = (slow, 1.0 / slow);
            }
            config.seconds = 600.0;
            let o = Sim::new(config).run();
            table += &format!("{load:.1}   {:<19} {}\n", policy.as_str(), report::speed(&o));
        }
    }
    println!("{table}");
    insta::assert_snapshot!(table);
}

/// One heavy model, three light ones of the latency class.
#[test]
fn mixed_load_keeps_its_bound() {
    let mut table =
        String::from("sticks depth  heavy share  light p50 ms  light p99 ms  light longest ms  bound ms\n");
    for (sticks, depth) in [(1, 2), (2, 4), (4, 3)] {
        let light = |n: u8| {
            let mut m = model(n, 0.005, Arrivals::Poisson(15.0 * sticks as f64));
            m.priority = 28;
            m
        };
        let heavy = model(4, 0.1, Arrivals::Saturate(20 * sticks as u32));
        let mut config = SimConfig::new(6, sticks, vec![light(1), light(2), light(3), heavy]);
        config.sched.fixed_depth = Some(depth);
        config.seconds = 600.0;
        let o = Sim::new(config).run();
        let mut lights = ncs2::stats::Latency::new();
        o.latency[..3].iter().for_each(|l| lights.merge(l));
        let longest = o.longest_s[..3].iter().copied().fold(0.0, f64::max);
        let share = o.device_s[3] / (o.seconds * sticks as f64);
        let bound = f64::from(depth) * 0.1 * 1.02 + 0.005 * 1.02;
        table += &format!(
            "{sticks:>6} {depth:>5} {:>11.1}% {:>13} {:>13} {:>17} {:>9}\n",
            100.0 * share,
            report::ms(lights.quantile(0.5).as_secs_f64()),
            report::ms(lights.quantile(0.99).as_secs_f64()),
            report::ms(longest),
            report::ms(bound)
        );
        assert!(longest <= bound, "{table}");
        assert!(share >= 0.70, "the heavy one keeps what the light ones leave (77.5 %):\n{table}");
    }
    insta::assert_snapshot!(table);
}

/// Without a knob: a burst goes to throughput, a single request to latency.
#[test]
fn bursts_and_single_requests() {
    let mut table = String::new();
    for (name, arrivals) in [
        ("one a second", Arrivals::Bursts(1, 1.0)),
        ("8 at once, each second", Arrivals::Bursts(8, 1.0)),
        ("100 at once, each 5 s", Arrivals::Bursts(100, 5.0)),
    ] {
        let mut config = SimConfig::new(2, 4, vec![model(1, 0.02, arrivals)]);
        config.seconds = 300.0;
        let o = Sim::new(config).run();
        let l = o.all_latency();
        let longest = o.longest_s[0];
        table += &format!(
            "{name:<24} p50 {:>6} ms, longest {:>6} ms\n",
            report::ms(l.quantile(0.5).as_secs_f64()),
            report::ms(longest)
        );
        if arrivals == Arrivals::Bursts(1, 1.0) {
            assert!(longest < 0.021, "{table}");
        }
        if arrivals == Arrivals::Bursts(100, 5.0) {
            assert!(longest < 0.02 * 25.0 * 1.1, "four sticks share the burst:\n{table}");
        }
    }
    insta::assert_snapshot!(table);
}

#[test]
fn batches_only_where_they_pay() {
    let mut table = String::new();
    for (name, batch_s) in [("batch of 4 costs two", 0.04), ("batch of 4 costs four", 0.08)] {
        for (what, arrivals) in [("saturated", Arrivals::Saturate(40)), ("10 /s", Arrivals::Poisson(10.0))] {
            let mut m = model(1, 0.02, arrivals);
            m.spec.variants =
                vec![VariantSpec { size: 1, hint_us: None }, VariantSpec { size: 4, hint_us: None }];
            m.spec.max_batch_delay = Duration::from_millis(5);
            m.batch_s = vec![0.02, batch_s];
            let mut config = SimConfig::new(2, 2, vec![m]);
            config.seconds = 120.0;
            let o = Sim::new(config).run();
            table += &format!("{name:<22} {what:<10} {}  batches {}\n", report::speed(&o), o.batches);
            let ideal = if batch_s < 0.05 { 200.0 } else { 100.0 };
            if what == "saturated" {
                assert!(o.per_second() > 0.97 * ideal, "{table}");
            }
        }
    }
    insta::assert_snapshot!(table);
}

/// More models than the sticks hold: loads follow demand, and do not thrash.
#[test]
fn more_models_than_fit() {
    let mut models: Vec<_> = (0..6)
        .map(|n| {
            let mut m = model(n, 0.01, Arrivals::Poisson(if n < 2 { 30.0 } else { 2.0 }));
            m.spec.placement = Placement::OnDemand;
            m.spec.needs.file_bytes = 150 << 20;
            m
        })
        .collect();
    models[0].spec.placement = Placement::Everywhere;
    let mut config = SimConfig::new(3, 2, models);
    config.seconds = 300.0;
    let o = Sim::new(config).run();
    let lost: u64 = o.arrived - o.answered();
    assert!(lost < 40, "{:?} of {}", o.ends, o.arrived);
    let hits: Vec<f64> = o.sched.sticks.iter().filter_map(|s| s.cache.hit_rate()).collect();
    let table = format!("{}  loads {}  hit rates {hits:.3?}\n", report::speed(&o), o.loads);
    println!("{table}");
    assert!((o.loads as f64) < 0.15 * o.answered() as f64, "{table}");
    insta::assert_snapshot!(table);
}

/// The depth is found while serving: with a stick that needs 1, no more than 2 in flight.
#[test]
fn depth_is_found_in_service() {
    let mut config = SimConfig::new(3, 2, vec![model(1, 0.01, Arrivals::Saturate(40))]);
    config.seconds = 120.0;
    config.sticks = vec![SimStickSpec::default(); 2];
    let o = Sim::new(config).run();
    assert!(o.sched.sticks.iter().all(|s| s.graphs[0].depth <= 2), "{:?}", o.sched.sticks);
    assert!(o.per_second() > 198.0, "{}", o.per_second());
}

fn scale(jobs: u64) -> (f64, f64) {
    let mut config = SimConfig::new(1, 100, vec![model(1, 0.02, Arrivals::Poisson(4_500.0))]);
    config.jobs = jobs;
    let begun = std::time::Instant::now();
    let o = Sim::new(config).run();
    let took = begun.elapsed().as_secs_f64();
    assert_eq!(o.answered(), jobs, "{:?}", o.ends);
    println!(
        "100 sticks, {jobs} jobs: {took:.1} s, {:.2} us a job with its simulation",
        took * 1e6 / jobs as f64
    );
    (took, o.per_second())
}

#[test]
fn a_hundred_sticks_thinned() {
    let (_, rate) = scale(200_000);
    assert!(rate > 4_000.0);
}

#[test]
#[ignore = "ten million jobs: cargo test --release --test sched_load -- --ignored --nocapture"]
fn a_hundred_sticks_ten_million_jobs_in_a_minute() {
    let (took, _) = scale(10_000_000);
    assert!(took < 60.0, "{took}");
}
