//! `ncs2ctl bench`

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::aside;
use crate::bench::batches::{self, Batches};
use crate::bench::compare::{self, Comparison};
use crate::bench::flags::{Batch, BenchArgs, Depth};
use crate::bench::levels::{self, Level, Setting};
use crate::bench::measure::Times;
use crate::bench::network::{self, Network, Source};
use crate::bench::report::Report;
use crate::bench::session::{Command, Run, Session};
use crate::bench::soak::{self, Soak, Stretch};
use crate::bench::sweep::{self, Point, Sweep};
use crate::bench::targets::{self, Targets};
use crate::bench::text;
use crate::failure::{Failure, Outcome, Result, Told};
use crate::flags::{Global, OrderingArg};
use crate::interrupt::Interrupt;
use crate::open::Simulation;
use crate::output::{Output, wrap};

/// Graphs on each stick that `--levels` tries where the user names no number.
const LEVELS_GRAPHS: u32 = 4;

/// The document: a report, and what was asked for beside it.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(flatten)]
    report: &'a Report,
    #[serde(skip_serializing_if = "Option::is_none")]
    sweep: Option<&'a Sweep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    levels: Option<&'a [Level]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batches: Option<&'a Batches>,
    #[serde(skip_serializing_if = "Option::is_none")]
    soak: Option<&'a Soak>,
    #[serde(skip_serializing_if = "Option::is_none")]
    compare: Option<&'a Comparison>,
    /// What cut it short, or could not be written: beside the figures that there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Told<'a>>,
}

/// What a mode gave.
struct Done<'a> {
    run: Run,
    simulation: Option<Simulation>,
    sweep: Option<Sweep>,
    levels: Option<Vec<Level>>,
    batches: Option<Batches>,
    soak: Option<Soak>,
    /// Wrong or missing answers of all measurements.
    wrong: u64,
    /// What ended it early, or spoiled what was asked for beside the report.
    trouble: Option<Failure>,
    /// Closed when everything is said: sticks that hang cost no answers of the others.
    session: Option<Session<'a>>,
}

impl<'a> Done<'a> {
    fn of(mut run: Run, session: Session<'a>) -> Self {
        let simulation = session.simulation().cloned();
        let (sweep, levels, batches, soak, wrong) = (None, None, None, None, Point::of(&run.report).wrong());
        let trouble = run.trouble();
        Done { run, simulation, sweep, levels, batches, soak, wrong, trouble, session: Some(session) }
    }

    fn troubled(self, trouble: Option<Failure>) -> Self {
        Done { trouble: trouble.or(self.trouble), ..self }
    }
}

/// Keeps what was measured before a later measurement failed.
fn keep<T>(done: &mut Vec<T>, next: Result<T>) -> Result<Option<Failure>> {
    match next {
        Ok(next) => done.push(next),
        Err(failure) if done.is_empty() => return Err(failure),
        Err(failure) => return Ok(Some(failure)),
    }
    Ok(None)
}

/// Measures; exit 1 when an answer was wrong or missing, a budget was missed, or the speed is below `--min-fps`.
pub fn bench(global: &Global, output: &Output, args: &BenchArgs) -> Result<Outcome> {
    refuse_what_does_not_go_together(args)?;
    args.save.as_deref().map(aside::check).transpose()?;
    let saved =
        args.compare.as_deref().map(|path| Ok::<_, Failure>((path, compare::read(path)?))).transpose()?;
    let networks = match args.batch {
        Some(Batch::Fixed(batch)) => vec![one_variant(args, batch)?],
        Some(Batch::Auto) => vec![all_variants(args)?],
        _ => network::open(args)?,
    };
    let targets = args
        .targets
        .as_deref()
        .map(|path| targets::read(path, networks.iter().map(|n| n.blob.name())))
        .transpose()?;
    let cpu = args.fallback.open()?;
    for (path, network) in args.blobs.iter().zip(&networks) {
        network.variants().iter().try_for_each(|blob| cpu.add(path, blob))?;
    }
    let interrupt = Interrupt::install()?;
    let command = Command { global, args, output, interrupt: &interrupt, cpu: &cpu };
    let done = if args.levels {
        run_levels(command, &networks)?
    } else if !args.batch_sizes.is_empty() {
        run_batches(command, &networks)?
    } else if args.soak {
        run_soak(command, &networks)?
    } else {
        run_sweep(command, &networks)?
    };
    finish(command, done, targets.as_ref(), saved)
}

fn refuse_what_does_not_go_together(args: &BenchArgs) -> Result {
    let ranges = [
        (args.soak, "--soak"),
        (args.levels, "--levels"),
        (!args.batch_sizes.is_empty(), "--batch-sizes"),
        (args.trace_out.is_some(), "--trace-out"),
    ];
    let is_range = matches!(args.depth, Depth::Range(from, to) if from < to);
    if let Some((_, flag)) = ranges.into_iter().find(|(given, _)| *given && is_range) {
        return Err(Failure::usage(
            format!("{flag}: expected one --depth beside it, found a range"),
            "choose a depth",
        ));
    }
    let batches = args.batch.is_some() || !args.batch_sizes.is_empty();
    if batches && args.blobs.len() > 1 {
        return Err(Failure::usage(
            format!("--batch: expected one network, found {}", args.blobs.len()),
            "name one; its variants are looked for beside it",
        ));
    }
    if args.target_latency.is_some() && args.depth != Depth::Auto {
        return Err(Failure::usage(
            "--target-latency: expected --depth auto beside it, found a depth",
            "leave --depth out: the fleet finds the depth that keeps the latency",
        ));
    }
    Ok(())
}

fn one_variant(args: &BenchArgs, batch: u32) -> Result<Network> {
    Network::new(network::variant(only(args)?, batch)?, &Source::of(args), 1.0)
}

fn all_variants(args: &BenchArgs) -> Result<Network> {
    let mut blobs = network::variants(only(args)?)?;
    let smallest = blobs.remove(0);
    let mut network = Network::new(smallest, &Source::of(args), 1.0)?;
    network.larger = blobs;
    Ok(network)
}

fn only(args: &BenchArgs) -> Result<&Path> {
    let first = args.blobs.first().map(PathBuf::as_path);
    first.ok_or_else(|| Failure::usage("expected a blob, found none", "name one"))
}

fn times(args: &BenchArgs) -> Times {
    Times { warmup: args.warmup, duration: args.duration }
}

/// Every depth; the knee's run, and the table when there are several.
fn run_sweep<'a>(command: Command<'a>, networks: &[Network]) -> Result<Done<'a>> {
    let args = command.args;
    let asked = Setting::of(args);
    let settings: Vec<Setting> = match args.depth {
        Depth::Range(from, to) => (from..=to).map(|depth| Setting { depth, ..asked }).collect(),
        _ => vec![asked],
    };
    let session = Session::open(command, args.ordering)?;
    let timeline = session.timeline()?;
    let mut runs: Vec<Run> = Vec::with_capacity(settings.len());
    let mut trouble = None;
    for &setting in &settings {
        let graphs = session.load(networks, setting);
        let run = graphs
            .and_then(|graphs| session.measure(networks, graphs, setting, times(args), timeline.as_ref()));
        trouble = keep(&mut runs, run)?;
        if trouble.is_some() || runs.last().is_some_and(Run::is_over) {
            break;
        }
    }
    let mut trouble = trouble.or_else(|| runs.iter_mut().find_map(Run::trouble));
    let points: Vec<Point> = runs.iter().map(|run| Point::of(&run.report)).collect();
    let wrong = points.iter().map(Point::wrong).sum();
    let speeds: Vec<f64> = points.iter().map(|p| p.fps).collect();
    let at = sweep::knee(&speeds).unwrap_or(0);
    let table = (settings.len() > 1).then(|| Sweep { knee_depth: points[at].depth, points });
    let run = runs.swap_remove(at);
    if let Some(timeline) = timeline {
        trouble = trouble.or(session.finish_timeline(timeline, networks, &run).err());
    }
    Ok(Done { sweep: table, wrong, ..Done::of(run, session) }.troubled(trouble))
}

/// Stretch after stretch until the temperature is level; the last one's run.
fn run_soak<'a>(command: Command<'a>, networks: &[Network]) -> Result<Done<'a>> {
    let args = command.args;
    let session = Session::open(command, args.ordering)?;
    let setting = Setting::of(args);
    let graphs = session.load(networks, setting)?;
    let (mut stretches, mut wrong, mut trouble) = (Vec::new(), Vec::new(), None);
    loop {
        let warmup = if stretches.is_empty() { args.warmup } else { Duration::ZERO };
        let times = Times { warmup, ..times(args) };
        let mut run = session.measure(networks, graphs.clone(), setting, times, None)?;
        stretches.push(Stretch::of(&run.report));
        trouble = trouble.or_else(|| run.trouble());
        let r = &run.report;
        wrong.push((r.failed, r.lost, r.duplicated, r.mismatched));
        if soak::is_level(&stretches) || run.is_over() {
            // An error of an earlier stretch must not be forgotten with its report.
            run.report.failed = wrong.iter().map(|w| w.0).sum();
            run.report.lost = wrong.iter().map(|w| w.1).sum();
            run.report.duplicated = wrong.iter().map(|w| w.2).sum();
            run.report.mismatched = run.report.mismatched.map(|_| wrong.iter().filter_map(|w| w.3).sum());
            return Ok(Done { soak: Soak::of(&stretches), ..Done::of(run, session) }.troubled(trouble));
        }
    }
}

/// The baseline, each lever alone, all together. Each opens the sticks anew: a stick that is warm from the level
/// before would not be the same stick.
fn run_levels<'a>(command: Command<'a>, networks: &[Network]) -> Result<Done<'a>> {
    let args = command.args;
    let graphs = if args.graphs > 1 { args.graphs } else { LEVELS_GRAPHS };
    let best = Setting { graphs, ordering: OrderingArg::Pipelined, ..Setting::of(args) };
    let (mut rows, mut last, mut baseline) = (Vec::new(), None::<Done<'a>>, 0.0);
    let mut trouble = None;
    for (name, setting) in levels::levels(best) {
        if let Some(before) = last.as_mut().and_then(|done| done.session.take()) {
            before.close()?;
        }
        let measured = Session::open(command, setting.ordering)
            .and_then(|session| Ok((session.run(networks, setting, times(args))?, session)));
        let (run, session) = match (measured, &last) {
            (Ok(measured), _) => measured,
            (Err(failure), None) => return Err(failure),
            (Err(failure), Some(_)) => {
                trouble = Some(failure);
                break;
            }
        };
        if rows.is_empty() {
            baseline = run.report.fps;
        }
        let cpu = run.report.host.cpu_us_per_inference;
        rows.push(Level::of(name, Point::of(&run.report), cpu, baseline));
        let (over, mut done) = (run.is_over(), Done::of(run, session));
        trouble = trouble.or(done.trouble.take());
        last = Some(done);
        if over {
            break;
        }
    }
    let wrong = rows.iter().map(|row| row.point.wrong()).sum();
    let done = last.ok_or_else(|| Failure::usage("--levels: nothing was measured", "run it again"))?;
    Ok(Done { levels: Some(rows), wrong, ..done }.troubled(trouble))
}

/// Every variant; the best one's run.
fn run_batches<'a>(command: Command<'a>, networks: &[Network]) -> Result<Done<'a>> {
    let args = command.args;
    network::single(networks, "--batch-sizes")?;
    let mut sizes = args.batch_sizes.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let source = Source::of(args);
    let variants = sizes
        .iter()
        .map(|&n| {
            let blob = network::variant(only(args)?, n)?;
            command.cpu.add(only(args)?, &blob)?;
            Ok([Network::new(blob, &source, 1.0)?])
        })
        .collect::<Result<Vec<[Network; 1]>>>()?;
    let session = Session::open(command, args.ordering)?;
    let mut runs: Vec<Run> = Vec::with_capacity(variants.len());
    let mut trouble = None;
    for variant in &variants {
        trouble = keep(&mut runs, session.run(variant, Setting::of(args), times(args)))?;
        if trouble.is_some() || runs.last().is_some_and(Run::is_over) {
            break;
        }
    }
    let trouble = trouble.or_else(|| runs.iter_mut().find_map(Run::trouble));
    let points: Vec<Point> = runs.iter().map(|run| Point::of(&run.report)).collect();
    let wrong = points.iter().map(Point::wrong).sum();
    let speeds: Vec<f64> = points.iter().map(|p| p.elements_per_s).collect();
    let at = batches::best(&speeds).unwrap_or(0);
    let batches = Batches { best_batch: points[at].batch, points };
    let done = Done { batches: Some(batches), wrong, ..Done::of(runs.swap_remove(at), session) };
    Ok(done.troubled(trouble))
}

/// Says what came out.
fn finish(
    command: Command<'_>,
    done: Done<'_>,
    targets: Option<&Targets>,
    saved: Option<(&Path, serde_json::Value)>,
) -> Result<Outcome> {
    let Command { args, output, .. } = command;
    let Done { run: Run { measured, mut report }, simulation, mut trouble, session, .. } = done;
    if measured.is_nothing()
        && let Some(failure) = trouble.take()
    {
        return Err(failure);
    }
    if trouble.is_some() && measured.was_cut_short() {
        report.diagnosis_text = format!("cut short, so this says little: {}", report.diagnosis_text);
    }
    report.targets = targets.map(|targets| targets.judge(&report));

    let compared = saved.as_ref().map(|(path, saved)| {
        let now = serde_json::to_value(&report).unwrap_or_default();
        compare::compare(path, saved, &report, &now)
    });
    let mut body = Body {
        report: &report,
        sweep: done.sweep.as_ref(),
        levels: done.levels.as_deref(),
        batches: done.batches.as_ref(),
        soak: done.soak.as_ref(),
        compare: compared.as_ref(),
        error: trouble.as_ref().and_then(Failure::told),
    };
    // A full disk must not cost the measurement: it is shown in any case.
    let save = |path: &Path| aside::write(path, (output.render(&body) + "\n").as_bytes());
    let unsaved = args.save.as_deref().and_then(|path| save(path).err());
    body.error = body.error.or(unsaved.as_ref().and_then(Failure::told));
    if output.is_json() {
        output.document(&body)?;
    } else {
        let mut said = String::new();
        said.extend(done.sweep.iter().map(|sweep| sweep::table(output, sweep)));
        said.extend(done.levels.iter().map(|levels| levels::table(output, levels)));
        said.extend(done.batches.iter().map(|batches| batches::table(output, batches)));
        said.push_str(&text::report(output, &report, simulation.as_ref()));
        if let Some(outcomes) = &report.targets {
            said.push_str(&format!("\n{}", targets::table(output, outcomes)));
        }
        said.extend(done.soak.iter().map(|soak| soak.text(output)));
        for line in compared.iter().flat_map(|c| c.lines(report.fps)) {
            said.push_str(&format!("  {}\n", wrap(&line, output.width() - 2, "  ")));
        }
        output.prose(&said)?;
    }
    if let Some(error) = &measured.error {
        output.remark(&format!("first error: {error}"));
    }
    if measured.gave_up {
        output.remark("no stick takes requests any more; the run ended early");
    }
    let slow = args.min_fps.is_some_and(|min| report.fps < min);
    if slow {
        let min = args.min_fps.unwrap_or_default();
        output.remark(&format!("{:.1} fps is below --min-fps {min}", report.fps));
    }
    let missed = report.targets.iter().flatten().filter(|o| !o.met).count();
    if missed > 0 {
        output.remark(&format!("{missed} of the budgets not kept"));
    }
    // In several measurements a wrong answer in any is one too many; a soak has put its stretches into the report.
    let wrong = done.wrong.max(Point::of(&report).wrong());
    let negative = wrong > 0 || slow || missed > 0 || measured.gave_up;
    let closed = session.map_or(Ok(()), Session::close);
    // The first of these is in the document.
    let told = usize::from(output.is_json() && (trouble.is_some() || unsaved.is_some()));
    let failed = trouble.is_some() || unsaved.is_some() || closed.is_err();
    for failure in trouble.iter().chain(&unsaved).chain(closed.as_ref().err()).skip(told) {
        output.failed_behind(failure);
    }
    if failed {
        return Ok(Outcome::Failed);
    }
    Ok(if negative { Outcome::Negative } else { Outcome::Ok })
}
