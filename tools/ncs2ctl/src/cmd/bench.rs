//! `ncs2ctl bench`

use std::fs;

use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, StickState};
use ncs2_device::Engine;

use crate::bench::load::Plan;
use crate::bench::measure::{Times, measure};
use crate::bench::report::{Config, Context, Report};
use crate::bench::text;
use crate::cli::{BenchArgs, Depth, Global};
use crate::failure::{Failure, Outcome, Result};
use crate::interrupt::Interrupt;
use crate::open::Sticks;
use crate::output::Output;
use crate::tensor::input::{self, Element};

/// Different inputs that take turns, so that an answer given to the wrong request shows.
const RANDOM_INPUTS: usize = 8;

/// Measures; exit 1 when an answer was wrong or missing, or the speed is below `--min-fps`.
pub fn bench(global: &Global, output: &Output, args: &BenchArgs) -> Result<Outcome> {
    if let Some(flag) = args.later.first() {
        return Err(Failure::not_built(flag));
    }
    let [path] = &*args.blobs else { return Err(Failure::not_built("bench of several networks at once")) };
    let options = LoadOptions::default();
    let depth = match args.depth {
        Depth::Auto => options.depth,
        Depth::Fixed(depth) => depth,
        Depth::Range(..) => return Err(Failure::not_built("--depth A..B (a sweep)")),
    };
    let blob = Blob::open(path)?;
    let graph = blob.graph();
    let inputs = if args.input.is_empty() {
        input::random(graph, args.random, RANDOM_INPUTS)
    } else {
        input::from_files(graph, &args.input, &args.image)?
    };

    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Hash)?;
    let spinner = output.spinner(&format!("loading {}", blob.name()));
    let fleet_config =
        FleetConfig { ordering: args.ordering.to_library(), retries: args.retries, ..FleetConfig::default() };
    let opened = sticks.open(fleet_config)?;
    let loaded = opened.fleet.load(&blob, LoadOptions { depth, instances: args.graphs, ..options })?;
    let simulation = opened.simulation.clone();
    let references = match &simulation {
        Some(s) if s.engine == Engine::Hash => Some(references(&blob, &inputs)),
        _ => None,
    };
    spinner.finish_and_clear();

    let stats = opened.fleet.stats();
    let sticks = stats.sticks.len();
    let ready = stats.sticks.iter().filter(|s| s.state == StickState::Ready).count();
    let input = inputs.first().map(|i| i.source.clone()).unwrap_or_default();
    let plan = Plan {
        inputs,
        references,
        in_flight: ready.max(1) * (depth * args.graphs) as usize,
        rate: args.rate,
    };
    let times = Times { warmup: args.warmup, duration: args.duration };
    let measured = measure(&opened.fleet, loaded, plan, times, &interrupt, output)?;
    let paced = opened.paced();
    let closed = opened.close();

    if measured.tally.completed() == 0
        && !measured.interrupted
        && let Some(error) = measured.tally.error
    {
        return Err(error.into());
    }
    closed?;
    let context = Context {
        blob: &blob,
        simulation: simulation.as_ref(),
        paced,
        config: Config {
            duration_s: args.duration.as_secs_f64(),
            warmup_s: args.warmup.as_secs_f64(),
            depth,
            graphs: args.graphs,
            batch: blob.graph().batch,
            // What the fleet does until it has a scheduler.
            policy: "round-robin",
            ordering: args.ordering.as_str(),
            rate_fps: args.rate,
            input,
            sticks,
        },
        target_tops: args.target_tops,
    };
    let report = Report::new(&context, &measured);
    if let Some(path) = &args.save {
        let document = output.render(&report) + "\n";
        fs::write(path, document).map_err(|e| Failure::file(path, "write", &e))?;
    }
    if output.is_json() {
        output.document(&report)?;
    } else {
        output.text(&text::report(output, &report, simulation.as_ref()))?;
    }
    if let Some(error) = &measured.tally.error {
        output.remark(&format!("first error: {error}"));
    }
    if measured.gave_up {
        output.remark("no stick takes requests any more; the run ended early");
    }
    let wrong = report.failed + report.lost + report.duplicated + report.mismatched.unwrap_or(0);
    let slow = args.min_fps.is_some_and(|min| report.fps < min);
    if slow {
        let min = args.min_fps.unwrap_or_default();
        output.remark(&format!("{:.1} fps is below --min-fps {min}", report.fps));
    }
    Ok(if wrong > 0 || slow || measured.gave_up { Outcome::Negative } else { Outcome::Ok })
}

/// What the `hash` engine gives for each input, computed here.
fn references(blob: &Blob, inputs: &[Element]) -> Vec<Vec<u8>> {
    let answer = |input: &Element| {
        let mut bytes = vec![0; blob.graph().output_bytes];
        ncs2_device::hash::output(&blob.hash(), &input.bytes, &mut bytes);
        bytes
    };
    inputs.iter().map(answer).collect()
}
