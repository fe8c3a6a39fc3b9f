//! Requests that come as numbers: stages 1 and 5 on the fleet's workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use half::f16;
use ncs2::ErrorKind;
use ncs2::blob::IoTensor;
use ncs2::convert::recipe::{InputRecipe, Layout, Numbers, Recipe};
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2_device::Engine;

use super::common::{LONG, Rng, array, blob, fleet, fleet_with, hash_of, path, rack};

fn recipe(input: InputRecipe) -> Arc<Recipe> {
    Arc::new(Recipe { inputs: vec![input], top: 3 })
}

#[test]
fn pictures_as_a_camera_gives_them_are_answered_like_laid_out_ones() {
    let name = "squeezenet1_1_u8_s1";
    let (rack, blob) = (rack(1, Engine::Execute), blob(name));
    let fleet = fleet(&rack);
    let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
    let planar: Vec<u8> = array(&path(&format!("{name}.in.data.npy"))).into_iter().map(|x| x as u8).collect();
    let mut pixels = vec![0; planar.len()];
    ncs2::convert::planar_to_interleaved(&planar, &mut pixels, 3, true);
    let input = InputRecipe { layout: Layout::Interleaved, bgr: true, ..InputRecipe::default() };
    let processing = graph.process(&[Numbers::U8(pixels.into())], &recipe(input), SubmitOptions::default());
    let processed = processing.expect("queued").wait_timeout(LONG).expect("answered").expect("in time");
    let expected = array(&path(&format!("{name}.out.prob.npy")));
    let best = (0..expected.len()).max_by(|&a, &b| expected[a].total_cmp(&expected[b])).expect("not empty");
    assert_eq!(processed.outputs[0].values.len(), expected.len());
    assert_eq!(processed.outputs[0].top.len(), 3);
    let (place, value) = processed.outputs[0].top[0];
    assert_eq!(place, best);
    assert!((value - expected[best]).abs() < 0.01 * expected[best], "{value} and {}", expected[best]);
    let times = processed.output.times();
    assert!(times.prepare_ns > 0 && times.finish_ns > 0, "{times:?}");
}

#[test]
fn each_caller_gets_their_own_answer_and_every_time_is_recorded_once() {
    let (rack, blob) = (rack(2, Engine::Hash), blob("mlp_fp16_s1"));
    let fleet = fleet_with(&rack, FleetConfig { workers: 3, ..FleetConfig::default() });
    let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
    let input = InputRecipe { mean: vec![0.5], scale: vec![0.25], ..InputRecipe::default() };
    let recipe = recipe(input);
    let seed = 7;
    let mut rng = Rng(seed);
    let count = 300;
    let flying: Vec<_> = (0..count)
        .map(|_| {
            let numbers: Vec<f32> =
                (0..blob.graph().input_bytes / 2).map(|_| rng.below(1000) as f32 / 999.0).collect();
            let element: Vec<u8> =
                numbers.iter().flat_map(|x| f16::from_f32((x - 0.5) / 0.25).to_le_bytes()).collect();
            let numbers = [Numbers::F32(numbers.into())];
            (graph.process(&numbers, &recipe, SubmitOptions::default()).expect("queued"), element)
        })
        .collect();
    for (processing, element) in flying {
        let processed = processing.wait().expect("an answer");
        let expected = hash_of(&blob, &element);
        assert!(processed.output.bytes() == expected, "another request's answer (seed {seed})");
        let singles: Vec<f32> =
            expected.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect();
        let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
        assert!(processed.outputs[0].values.iter().zip(&singles).all(same));
    }
    let stats = fleet.stats();
    let recorded: u64 = stats.sticks.iter().map(|s| s.latency.count()).sum();
    assert_eq!((recorded, stats.completed), (count, count));
}

#[test]
fn a_slow_preparation_holds_up_neither_the_stick_nor_other_callers() {
    let (rack, blob) = (rack(1, Engine::Hash), blob("tiny_u8_s1"));
    let fleet = fleet_with(&rack, FleetConfig { workers: 1, ..FleetConfig::default() });
    let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
    let (go, gone) = crossbeam_channel::bounded::<()>(0);
    let on_worker = Arc::new(AtomicBool::new(false));
    let seen = on_worker.clone();
    let wait = move |numbers: &Numbers, _: &IoTensor| {
        let thread = std::thread::current();
        seen.store(thread.name().is_some_and(|n| n.starts_with("ncs2-work")), Ordering::Relaxed);
        gone.recv_timeout(LONG).expect("the test lets it go");
        Ok(numbers.clone())
    };
    let slow = recipe(InputRecipe { resize: Some(Arc::new(wait)), ..InputRecipe::default() });
    let numbers = [Numbers::U8(vec![5; blob.graph().input_bytes].into())];
    let held = graph.process(&numbers, &slow, SubmitOptions::default()).expect("queued");
    // While it is being prepared, the stick answers others.
    let direct = graph.infer(&vec![9; blob.graph().input_bytes]).expect("an answer");
    assert!(direct.bytes() == hash_of(&blob, &vec![9; blob.graph().input_bytes]));
    assert!(held.wait_timeout(Duration::ZERO).expect("no error").is_none());
    go.send(()).expect("it waits");
    let processed = held.wait().expect("an answer");
    assert!(processed.output.bytes() == hash_of(&blob, &vec![5; blob.graph().input_bytes]));
    assert!(on_worker.load(Ordering::Relaxed), "the hook runs on a worker");
}

#[test]
fn what_goes_wrong_in_a_worker_is_the_requests_own_end() {
    let (rack, blob) = (rack(1, Engine::Hash), blob("tiny_u8_s1"));
    let fleet = fleet_with(&rack, FleetConfig { workers: 1, ..FleetConfig::default() });
    let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
    let good = [Numbers::U8(vec![1; blob.graph().input_bytes].into())];
    let plain = recipe(InputRecipe::default());
    let end = |numbers: &[Numbers], recipe: &Arc<Recipe>, options: SubmitOptions| {
        graph.process(numbers, recipe, options).and_then(|p| p.wait()).map(drop).map_err(|e| e.kind())
    };
    let panics = |_: &Numbers, _: &IoTensor| -> ncs2::Result<Numbers> { panic!("the test's own") };
    let panics = recipe(InputRecipe { resize: Some(Arc::new(panics)), ..InputRecipe::default() });
    let two = recipe(InputRecipe { mean: vec![1.0, 2.0], ..InputRecipe::default() });
    let none = SubmitOptions::default;
    assert_eq!(end(&good, &panics, none()), Err(ErrorKind::InvalidInput));
    assert_eq!(end(&good, &two, none()), Err(ErrorKind::InvalidInput), "refused before anything is queued");
    assert_eq!(end(&[Numbers::U8([1].into())], &plain, none()), Err(ErrorKind::InvalidInput));
    let late = SubmitOptions { deadline: Some(Duration::ZERO), ..none() };
    assert_eq!(end(&good, &plain, late), Err(ErrorKind::DeadlineExceeded));
    assert_eq!(end(&good, &plain, none()), Ok(()), "and the worker goes on");
    // One that nobody waits for harms nobody.
    drop(graph.process(&good, &plain, none()).expect("queued"));
    fleet.close(LONG).expect("closes");
    assert_eq!(end(&good, &plain, none()), Err(ErrorKind::Closed));
}
