//! `ncs2ctl check`

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use ncs2::ErrorKind;
use ncs2::blob::{Blob, Graph};
use ncs2::runtime::{FleetConfig, LoadOptions};
use ncs2_device::Engine;
use serde::Serialize;

use crate::answers::{self, Reference};
use crate::check::Score;
use crate::failure::{Failure, Outcome, Result};
use crate::flags::{Global, ImageArgs, OrderingArg, Tolerance};
use crate::in_turn::in_turn;
use crate::interrupt::Interrupt;
use crate::open::{Simulation, Sticks};
use crate::output::{Output, Style};
use crate::tensor::input::{self, Element};
use crate::tensor::{self, layout, shape_text};

/// `check`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl setup openvino                                     # once: the reference on the CPU
  ncs2ctl check net.onnx net.blob --random 20
  ncs2ctl check net.onnx net.blob --dataset pictures/ --labels labels.txt --tolerance 2%
  ncs2ctl --sim 1 check net.blob --input x.npy --reference prob=expected.npy

The model runs in FP32 on the CPU through OpenVINO; with --reference no model is needed, and no OpenVINO.
Exits 1 when an output is beyond the tolerance.")]
pub struct CheckArgs {
    /// The model (.onnx or .xml) and the graph that was compiled from it; with --reference the graph alone will do
    #[arg(value_names = ["MODEL", "BLOB"], num_args = 1..=2, required = true, value_hint = ValueHint::FilePath)]
    pub files: Vec<PathBuf>,
    /// Input file; NAME=FILE where the network has several inputs
    #[arg(long, short, value_name = "[NAME=]FILE", num_args = 1.., conflicts_with_all = ["random", "dataset"])]
    pub input: Vec<OsString>,
    /// So many random inputs; 1 where no inputs are given
    #[arg(long, value_name = "N", conflicts_with = "dataset", value_parser = clap::value_parser!(u32).range(1..))]
    pub random: Option<u32>,
    /// Seed of the random inputs
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,
    /// Every .npy, .bin, .png and .jpg file of this folder
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub dataset: Option<PathBuf>,
    /// Expected output instead of a model's; may be repeated, the k-th of an output is for the k-th input
    #[arg(long, value_name = "[NAME=]FILE", num_args = 1.., conflicts_with_all = ["random", "dataset"])]
    pub reference: Vec<OsString>,
    /// Allowed difference: 1% of the largest reference value, or an absolute number
    #[arg(long, value_name = "X[%]", default_value = "1%")]
    pub tolerance: Tolerance,
    /// Names of the classes, one a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub labels: Option<PathBuf>,
    /// Image preparation.
    #[command(flatten)]
    pub image: ImageArgs,
    /// The blob was compiled with this --mean
    #[arg(long, value_name = "M[,M,M]", value_delimiter = ',', allow_hyphen_values = true)]
    pub compiled_mean: Vec<f32>,
    /// The blob was compiled with this --scale
    #[arg(long, value_name = "S[,S,S]", value_delimiter = ',')]
    pub compiled_scale: Vec<f32>,
    /// Order on the wire
    #[arg(long, value_enum, default_value = "auto")]
    pub ordering: OrderingArg,
}

#[derive(Serialize)]
struct Body {
    simulated: bool,
    profile: Option<String>,
    engine: Option<&'static str>,
    model: Option<String>,
    blob: String,
    reference: String,
    inferences: usize,
    interrupted: bool,
    pass: bool,
    outputs: Vec<Row>,
    /// Executed on this CPU as a virtual stick does, where an output is beyond the tolerance.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<String>,
    /// Why that could not be found out.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_first_difference: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_overflow: Option<String>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    shape: Vec<usize>,
    max_error: f64,
    mean_error: f64,
    max_reference: f64,
    allowed: f64,
    cosine: f64,
    beyond: usize,
    /// Share of lists of classes with the same best class; `None` where the output is no such list.
    top1: Option<f64>,
    top5: Option<f64>,
    misses: Vec<MissRow>,
    pass: bool,
}

#[derive(Serialize)]
struct MissRow {
    input: String,
    found: String,
    reference: String,
}

/// Where references come from.
enum Expected {
    /// From files, per inference.
    Files(Vec<Vec<Reference>>),
    #[cfg(feature = "openvino")]
    Cpu(Box<Cpu>),
}

#[cfg(feature = "openvino")]
struct Cpu {
    reference: crate::check::cpu::Reference,
    path: PathBuf,
    /// The model as it was read, where it can be looked into.
    onnx: Option<(Vec<u8>, crate::onnx::Model)>,
}

/// Compares the answers of sticks with references; exit 1 beyond the tolerance.
pub fn check(global: &Global, output: &Output, args: &CheckArgs) -> Result<Outcome> {
    let (model, path) = match args.files.as_slice() {
        [blob] => (None, blob),
        [model, blob] => (Some(model.as_path()), blob),
        _ => return Err(Failure::usage("expected MODEL and BLOB", "see `ncs2ctl check --help`")),
    };
    let blob = Blob::open(path)?;
    let graph = blob.graph();
    let inputs = inputs(graph, args)?;
    let labels = args.labels.as_deref().map(|path| answers::labels(path, graph)).transpose()?;
    let (mut expected, source) = expected(args, model, graph, inputs.len())?;

    let interrupt = Interrupt::install()?;
    let sticks = Sticks::find(global, Engine::Execute)?;
    let spinner = output.spinner(&format!("loading {}", blob.name()));
    let config = FleetConfig { ordering: args.ordering.to_library(), ..FleetConfig::default() };
    let opened = sticks.open(config)?;
    let loaded = opened.fleet.load(&blob, LoadOptions::default())?;
    let mut scores: Vec<Score> =
        graph.outputs.iter().map(|t| Score::new(&layout::shape(t), args.tolerance)).collect();
    let (mut not_finite, mut first_beyond) = (None, None);
    let done = in_turn(&opened.fleet, &loaded, &inputs, &interrupt, &spinner, |n, ticket| {
        // The reference is computed while the sticks work.
        let references = expected.of(graph, n, &inputs[n])?;
        let answer = ticket.wait()?;
        for (index, reference) in references.into_iter().enumerate() {
            let Some(reference) = reference else { continue };
            let found = tensor::output::array(graph, &answer, index).values.to_f64();
            if found.iter().any(|v| !v.is_finite()) {
                not_finite.get_or_insert(n);
            }
            scores[index].add(&found, &reference);
            if scores[index].beyond > 0 {
                first_beyond.get_or_insert(n);
            }
        }
        Ok(())
    })?;
    spinner.finish_and_clear();
    drop(loaded);
    let simulation = opened.simulation.clone();

    let compared = graph.outputs.iter().zip(&scores).filter(|(_, score)| score.inferences > 0);
    let rows: Vec<Row> = compared
        .map(|(tensor, score)| row(&tensor.name, layout::shape(tensor), score, labels.as_deref(), &inputs))
        .collect();
    let difference = match first_beyond {
        Some(n) => expected.first_difference(&blob, &inputs[n], args.tolerance)?,
        None => None,
    };
    let body = Body {
        simulated: simulation.is_some(),
        profile: simulation.as_ref().map(|s| s.profile.clone()),
        engine: simulation.as_ref().map(Simulation::engine_str),
        model: model.map(|m| m.display().to_string()),
        blob: path.display().to_string(),
        reference: source,
        inferences: done,
        interrupted: interrupt.is_pressed(),
        pass: !rows.is_empty() && rows.iter().all(|row| row.pass),
        outputs: rows,
        no_first_difference: difference.as_ref().and_then(|d| d.as_ref().err().copied()),
        first_difference: difference.and_then(Result::ok),
        first_overflow: not_finite.and_then(|n| first_overflow(&blob, &inputs[n])),
    };
    let written = if output.is_json() {
        output.document(&body)
    } else {
        output.text(&text(output, &body, simulation.as_ref()))
    };
    let closed = opened.close(output);
    written?;
    if let Err(failure) = closed {
        return Ok(output.failed_behind(&failure));
    }
    // What an interrupted run did not get to has not passed.
    Ok(if body.pass && done == inputs.len() { Outcome::Ok } else { Outcome::Negative })
}

impl Expected {
    /// The references of inference `n`, one for each output where there is one.
    #[cfg_attr(
        not(feature = "openvino"),
        allow(unused_variables, reason = "only a model looks at the input")
    )]
    fn of(&mut self, graph: &Graph, n: usize, element: &Element) -> Result<Vec<Option<Vec<f64>>>> {
        match self {
            Expected::Files(files) => {
                let mut of_outputs = vec![None; graph.outputs.len()];
                for reference in files.get(n).into_iter().flatten() {
                    of_outputs[reference.output] = Some(reference.values.clone());
                }
                Ok(of_outputs)
            }
            #[cfg(feature = "openvino")]
            Expected::Cpu(cpu) => {
                Ok(cpu.reference.infer(graph, &element.bytes)?.into_iter().map(Some).collect())
            }
        }
    }

    /// The first layer that differs, or why the layers are not compared; `None` where there is no model to look into.
    #[cfg(feature = "openvino")]
    fn first_difference(
        &self,
        blob: &Blob,
        element: &Element,
        tolerance: Tolerance,
    ) -> Result<Option<Result<String, &'static str>>> {
        let Expected::Cpu(cpu) = self else { return Ok(None) };
        let Some((bytes, model)) = &cpu.onnx else {
            return Ok(Some(Err("only an .onnx that is one file can be looked into")));
        };
        // An absolute tolerance is for the outputs; inside, values are of all sizes.
        let share = match tolerance {
            Tolerance::Share(share) => share,
            Tolerance::Absolute(_) => 0.01,
        };
        let trace = crate::check::trace::trace(&cpu.path, bytes, model, blob, &element.bytes, share)?;
        Ok(Some(trace.map(|trace| trace.text())))
    }

    #[cfg(not(feature = "openvino"))]
    fn first_difference(
        &self,
        _: &Blob,
        _: &Element,
        _: Tolerance,
    ) -> Result<Option<Result<String, &'static str>>> {
        Ok(None)
    }
}

fn inputs(graph: &Graph, args: &CheckArgs) -> Result<Vec<Element>> {
    if !args.input.is_empty() {
        let elements = input::from_files(graph, &args.input, &args.image)?;
        input::refuse_idle_flags(graph, &args.input, &args.image)?;
        return Ok(elements);
    }
    let Some(folder) = &args.dataset else {
        if !args.reference.is_empty() {
            let hint = "give the input that the reference is the answer to";
            return Err(Failure::usage("--reference: expected --input beside it, found none", hint));
        }
        input::refuse_idle_flags(graph, &[], &args.image)?;
        return Ok(input::random(graph, args.seed, args.random.unwrap_or(1) as usize));
    };
    dataset(graph, folder, &args.image)
}

/// Every array, raw tensor and picture of a folder, by name, for a network with one input.
pub fn dataset(graph: &Graph, folder: &Path, image: &ImageArgs) -> Result<Vec<Element>> {
    let wrong = |message: String, hint: &str| {
        Failure::new(ErrorKind::InvalidInput, format!("{}: {message}", folder.display()), hint)
    };
    if graph.inputs.len() != 1 {
        let message = format!("a folder of files is for one input, the network has {}", graph.inputs.len());
        return Err(wrong(message, "give --input NAME=FILE for each"));
    }
    if !folder.is_dir() {
        return Err(wrong("expected a folder of inputs, found none".into(), "name the folder of the inputs"));
    }
    let mut argument = OsString::from(format!("{}=", graph.inputs[0].name));
    argument.push(folder);
    let arguments = [argument];
    let mut elements = input::from_files(graph, &arguments, image)?;
    input::refuse_idle_flags(graph, &arguments, image)?;
    for element in &mut elements {
        element.source = element.source.trim_start_matches(&format!("{}/", folder.display())).to_owned();
    }
    Ok(elements)
}

fn expected(
    args: &CheckArgs,
    model: Option<&Path>,
    graph: &Graph,
    count: usize,
) -> Result<(Expected, String)> {
    if !args.reference.is_empty() {
        return Ok((Expected::Files(answers::references(graph, &args.reference, count)?), "files".into()));
    }
    let Some(model) = model else {
        return Err(Failure::usage(
            "expected MODEL and BLOB, found one file and no --reference",
            "name the model before the blob, or give --reference FILE.npy",
        ));
    };
    cpu(args, model, graph)
}

#[cfg(feature = "openvino")]
fn cpu(args: &CheckArgs, model: &Path, graph: &Graph) -> Result<(Expected, String)> {
    use crate::check::cpu::Reference;
    use crate::vendor_compiler::source::{Changes, Source};

    let source = Source::read(model)?;
    let changes = Changes { mean: &args.compiled_mean, scale: &args.compiled_scale, ..Changes::default() };
    let changed = source.normalised(&changes)?;
    let ready = crate::reference_libraries::find()?;
    let from = match &changed {
        Some(bytes) => ncs2::reference::Source::Onnx(bytes),
        None => ncs2::reference::Source::File(model),
    };
    let reference = Reference::read(model, from, graph)?;
    let onnx = match &changed {
        Some(bytes) => crate::onnx::Model::parse(bytes).ok().map(|model| (bytes.clone(), model)),
        None => source.alone().map(|(bytes, model)| (bytes.to_vec(), model.clone())),
    };
    let cpu = Cpu { reference, path: model.to_path_buf(), onnx };
    Ok((Expected::Cpu(Box::new(cpu)), format!("OpenVINO {} on the CPU, FP32", ready.version)))
}

#[cfg(not(feature = "openvino"))]
fn cpu(_args: &CheckArgs, _model: &Path, _graph: &Graph) -> Result<(Expected, String)> {
    Err(crate::check::without_openvino("check", "compare with --reference FILE.npy, or "))
}

fn row(name: &str, shape: Vec<usize>, score: &Score, labels: Option<&[String]>, inputs: &[Element]) -> Row {
    let share = |n: usize| n as f64 / score.lists as f64;
    let label = |class: usize| match labels.and_then(|l| l.get(class)) {
        Some(label) => format!("{class} {label}"),
        None => class.to_string(),
    };
    let misses = score.misses.iter().map(|miss| MissRow {
        input: inputs
            .get(miss.inference)
            .map_or_else(String::new, |e| format!("{} {}", miss.inference, e.source)),
        found: label(miss.found),
        reference: label(miss.reference),
    });
    Row {
        name: name.to_owned(),
        shape,
        max_error: score.max_error,
        mean_error: score.mean_error(),
        max_reference: score.max_reference,
        allowed: score.allowed,
        cosine: score.cosine,
        beyond: score.beyond,
        top1: (score.lists > 0).then(|| share(score.top1)),
        top5: score.top5.filter(|_| score.lists > 0).map(share),
        misses: misses.collect(),
        pass: score.pass(),
    }
}

/// Executes the blob on this CPU as a virtual stick does, and names the first stage whose values are no numbers: FP16
/// ends at 65504.
fn first_overflow(blob: &Blob, element: &Element) -> Option<String> {
    let graph = blob.graph();
    let program = ncs2_device::execute::Program::prepare(blob.bytes(), graph).ok()?;
    let mut answer = vec![0; graph.output_bytes];
    let mut found = None;
    program.run_stages(&mut program.arena(), &element.bytes, &mut answer, |stage| {
        if found.is_some() {
            return;
        }
        for values in (0..stage.outputs()).filter_map(|index| stage.output(index)) {
            let bad = values.iter().filter(|v| !v.is_finite()).count();
            if bad > 0 {
                let kind = stage.kind.name().unwrap_or("unnamed kind");
                found = Some(format!("stage {} ({kind}): {bad} of {} values", stage.stage, values.len()));
                return;
            }
        }
    });
    found
}

fn count(inferences: usize) -> String {
    if inferences == 1 { "1 inference".to_owned() } else { format!("{inferences} inferences") }
}

fn text(output: &Output, body: &Body, simulation: Option<&Simulation>) -> String {
    let mut text = format!(
        "{}  {} against {}\n\n",
        output.paint(Style::Bold, crate::failure::one_line(&body.blob)),
        count(body.inferences),
        body.reference
    );
    let mut table = output.table(
        &["output", "shape", "max error", "mean error", "allowed", "cosine", "top-1", "top-5", ""],
        &["output", "shape", ""],
    );
    let share = |x: Option<f64>| x.map_or("-".to_owned(), |x| format!("{:.1} %", 100.0 * x));
    for row in &body.outputs {
        table.add_row([
            crate::failure::one_line(&row.name),
            shape_text(&row.shape),
            format!("{:.2e}", row.max_error),
            format!("{:.2e}", row.mean_error),
            format!("{:.2e}", row.allowed),
            format!("{:.6}", row.cosine),
            share(row.top1),
            share(row.top5),
            if row.pass { "within".into() } else { format!("BEYOND in {}", row.beyond) },
        ]);
    }
    text.push_str(&output.lines(&table));
    for miss in body.outputs.iter().flat_map(|row| &row.misses) {
        text.push_str(&format!(
            "  input {}: best is {}, of the reference {}\n",
            miss.input, miss.found, miss.reference
        ));
    }
    if let Some(layer) = &body.first_difference {
        let layer = crate::output::wrap(&format!("  executed here: {layer}"), output.width(), "    ");
        text.push_str(&format!("  {}\n", layer.trim_start()));
    }
    if let Some(why) = body.no_first_difference {
        text.push_str(&format!("  layers not compared: {why}\n"));
    }
    if let Some(stage) = &body.first_overflow {
        text.push_str(&format!(
            "  first values that are no numbers, executed here: {stage}; FP16 ends at 65504\n"
        ));
    }
    if body.interrupted {
        text.push_str(&format!("interrupted after {}\n", count(body.inferences)));
    }
    if let Some(simulation) = simulation {
        text.push_str(&answers::simulated(output, simulation));
    }
    text
}
