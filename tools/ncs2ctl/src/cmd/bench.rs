//! `ncs2ctl bench`

use std::fs;
use std::time::Duration;

use ncs2::Graph;
use ncs2::blob::Blob;
use ncs2::runtime::{FleetConfig, LoadOptions, StickState};
use ncs2_device::Engine;
use serde::Serialize;

use crate::bench::compare::{self, Comparison};
use crate::bench::load::Plan;
use crate::bench::measure::{Measured, Times, measure};
use crate::bench::report::{Config, Context, Report};
use crate::bench::soak::{self, Soak, Stretch};
use crate::bench::sweep::{self, Point, Sweep};
use crate::bench::text;
use crate::cli::{BenchArgs, Depth, Global};
use crate::failure::{Failure, Outcome, Result};
use crate::interrupt::Interrupt;
use crate::open::{Opened, Sticks};
use crate::output::{Output, wrap};
use crate::tensor::input::{self, Element};

/// Different inputs that take turns, so that an answer given to the wrong request shows.
const RANDOM_INPUTS: usize = 8;

/// The document: a report, and what was asked for beside it.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep: Option<&'a Sweep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    soak: Option<&'a Soak>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compare: Option<&'a Comparison>,
}

/// A measurement and its report.
struct Run {
    measured: Measured,
    report: Report,
}

/// What all measurements of this run share.
struct Bench<'a> {
    args: &'a BenchArgs,
    output: &'a Output,
    opened: &'a Opened,
    interrupt: &'a Interrupt,
    blob: &'a Blob,
    inputs: Vec<Element>,
    references: Option<Vec<Vec<u8>>>,
}

/// Measures; exit 1 when an answer was wrong or missing, or the speed is below `--min-fps`.
pub fn bench(global: &Global, output: &Output, args: &BenchArgs) -> Result<Outcome> {
    if let Some(flag) = args.later.first() {
        return Err(Failure::not_built(flag));
    }
    let [path] = &*args.blobs else { return Err(Failure::not_built("bench of several networks at once")) };
    let depths = match args.depth {
        Depth::Auto => vec![LoadOptions::default().depth],
        Depth::Fixed(depth) => vec![depth],
        Depth::Range(from, to) => (from..=to).collect(),
    };
    if args.soak && depths.len() > 1 {
        return Err(Failure::usage(
            "--soak: expected one --depth beside it, found a range",
            "choose a depth",
        ));
    }
    let blob = Blob::open(path)?;
    let inputs = if args.input.is_empty() {
        input::random(blob.graph(), args.random, RANDOM_INPUTS)
    } else {
        input::from_files(blob.graph(), &args.input, &args.image)?
    };
    let saved =
        args.compare.as_deref().map(|path| Ok::<_, Failure>((path, compare::read(path)?))).transpose()?;

    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Hash)?;
    let fleet_config =
        FleetConfig { ordering: args.ordering.to_library(), retries: args.retries, ..FleetConfig::default() };
    let spinner = output.spinner("opening");
    let opened = sticks.open(fleet_config)?;
    spinner.finish_and_clear();
    let references = match &opened.simulation {
        Some(s) if s.engine == Engine::Hash => Some(references(&blob, &inputs)),
        _ => None,
    };
    let bench =
        Bench { args, output, opened: &opened, interrupt: &interrupt, blob: &blob, inputs, references };
    let (run, sweep, soak) = if args.soak {
        let (run, soak) = bench.soak(depths[0])?;
        (run, None, soak)
    } else {
        let (run, sweep) = bench.sweep(&depths)?;
        (run, sweep, None)
    };
    drop(bench);
    let simulation = opened.simulation.clone();
    let closed = opened.close();
    let Run { measured, report } = run;
    if measured.tally.completed() == 0
        && !measured.interrupted
        && let Some(error) = measured.tally.error
    {
        return Err(error.into());
    }
    closed?;

    let compared = saved.as_ref().map(|(path, saved)| {
        let now = serde_json::to_value(&report).unwrap_or_default();
        compare::compare(path, saved, &report, &now)
    });
    let body =
        Body { report: &report, sweep: sweep.as_ref(), soak: soak.as_ref(), compare: compared.as_ref() };
    if let Some(path) = &args.save {
        let document = output.render(&body) + "\n";
        fs::write(path, document).map_err(|e| Failure::file(path, "write", &e))?;
    }
    if output.is_json() {
        output.document(&body)?;
    } else {
        let mut said = sweep.as_ref().map_or_else(String::new, |sweep| sweep::table(output, sweep));
        said.push_str(&text::report(output, &report, simulation.as_ref()));
        if let Some(soak) = &soak {
            said.push_str(&soak.text(output));
        }
        for line in compared.iter().flat_map(|c| c.lines(report.fps)) {
            said.push_str(&format!("  {}\n", wrap(&line, output.width() - 2, "  ")));
        }
        output.text(&said)?;
    }
    if let Some(error) = &measured.tally.error {
        output.remark(&format!("first error: {error}"));
    }
    if measured.gave_up {
        output.remark("no stick takes requests any more; the run ended early");
    }
    // In a sweep a wrong answer at any depth is one too many.
    let points = sweep.iter().flat_map(|s| &s.points);
    let wrong = report.failed
        + report.lost
        + report.duplicated
        + report.mismatched.unwrap_or(0)
        + points.map(|p| p.failed + p.lost + p.duplicated + p.mismatched.unwrap_or(0)).sum::<u64>();
    let slow = args.min_fps.is_some_and(|min| report.fps < min);
    if slow {
        let min = args.min_fps.unwrap_or_default();
        output.remark(&format!("{:.1} fps is below --min-fps {min}", report.fps));
    }
    Ok(if wrong > 0 || slow || measured.gave_up { Outcome::Negative } else { Outcome::Ok })
}

impl Bench<'_> {
    fn load(&self, depth: u32) -> Result<Graph> {
        let spinner = self.output.spinner(&format!("loading {}", self.blob.name()));
        let options = LoadOptions { depth, instances: self.args.graphs, ..LoadOptions::default() };
        let graph = self.opened.fleet.load(self.blob, options)?;
        spinner.finish_and_clear();
        Ok(graph)
    }

    /// One measurement.
    fn run(&self, graph: Graph, depth: u32, warmup: Duration) -> Result<Run> {
        let args = self.args;
        let stats = self.opened.fleet.stats();
        let sticks = stats.sticks.len();
        let ready = stats.sticks.iter().filter(|s| s.state == StickState::Ready).count();
        let input = self.inputs.first().map(|i| i.source.clone()).unwrap_or_default();
        let plan = Plan {
            inputs: self.inputs.clone(),
            references: self.references.clone(),
            in_flight: ready.max(1) * (depth * args.graphs) as usize,
            rate: args.rate,
        };
        let times = Times { warmup, duration: args.duration };
        let measured = measure(&self.opened.fleet, graph, plan, times, self.interrupt, self.output)?;
        let context = Context {
            blob: self.blob,
            simulation: self.opened.simulation.as_ref(),
            paced: self.opened.paced(),
            config: Config {
                duration_s: args.duration.as_secs_f64(),
                warmup_s: warmup.as_secs_f64(),
                depth,
                graphs: args.graphs,
                batch: self.blob.graph().batch,
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
        Ok(Run { measured, report })
    }

    /// Every depth; the knee's run, and the table when there are several.
    fn sweep(&self, depths: &[u32]) -> Result<(Run, Option<Sweep>)> {
        let mut runs = Vec::with_capacity(depths.len());
        for &depth in depths {
            let run = self.run(self.load(depth)?, depth, self.args.warmup)?;
            let over = run.measured.interrupted || run.measured.gave_up;
            runs.push(run);
            if over {
                break;
            }
        }
        let points: Vec<Point> = runs.iter().map(|run| Point::of(&run.report)).collect();
        let speeds: Vec<f64> = points.iter().map(|p| p.fps).collect();
        let at = sweep::knee(&speeds).unwrap_or(0);
        let table = (depths.len() > 1).then(|| Sweep { knee_depth: points[at].depth, points });
        Ok((runs.swap_remove(at), table))
    }

    /// Stretch after stretch until the temperature is level; the last one's run.
    fn soak(&self, depth: u32) -> Result<(Run, Option<Soak>)> {
        let graph = self.load(depth)?;
        let mut stretches = Vec::new();
        let mut wrong = Vec::new();
        loop {
            let warmup = if stretches.is_empty() { self.args.warmup } else { Duration::ZERO };
            let mut run = self.run(graph.clone(), depth, warmup)?;
            stretches.push(Stretch::of(&run.report));
            let r = &run.report;
            wrong.push((r.failed, r.lost, r.duplicated, r.mismatched));
            if soak::is_level(&stretches) || run.measured.interrupted || run.measured.gave_up {
                // An error of an earlier stretch must not be forgotten with its report.
                run.report.failed = wrong.iter().map(|w| w.0).sum();
                run.report.lost = wrong.iter().map(|w| w.1).sum();
                run.report.duplicated = wrong.iter().map(|w| w.2).sum();
                run.report.mismatched = run.report.mismatched.map(|_| wrong.iter().filter_map(|w| w.3).sum());
                return Ok((run, Soak::of(&stretches)));
            }
        }
    }
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
