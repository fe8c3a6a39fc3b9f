//! `ncs2ctl quantize`: what INT8 and byte inputs cost and gain on this chip, in one table.
//!
//! Compiling, checking and measuring are the commands that users have, run one after another, so that every figure can be
//! had again by hand.

mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::{Args, ValueHint};
use ncs2::ErrorKind;
use serde_json::Value;

use crate::failure::{Failure, Outcome, Result};
use crate::flags::{EngineArg, Global, Sim, TimingArg, WireArg, positive_duration};
use crate::folders::Scratch;
use crate::onnx::{fold, quantized};
use crate::output::Output;
use crate::tensor::{Array, Values, input, layout, npy};
use crate::{aside, vendor_compiler};
use report::{Body, CpuRow, FACTS, Int8, Row};

/// Bytes a second of a USB 3 link after boot, at most (NCS2_FACTS section 4).
const LINK_BYTES_PER_S: f64 = 350e6;

/// `quantize`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl --sim 1 quantize net.onnx --int8 net_qdq.onnx --dataset pictures/
  ncs2ctl --sim 1 quantize net.onnx --random 20 --mean 123.7,116.3,103.5 --scale 58.4,57.1,57.4
  ncs2ctl quantize net.onnx --int8 net_qdq.onnx --dataset pictures/ -o net_int8.blob

An INT8 model is an ONNX file with pairs of QuantizeLinear and DequantizeLinear (QDQ). The compiler refuses the pairs: weights
become the floats that their integers stand for, pairs on activations go, and a Clip takes the place of those that cut
negative values off. Needs `compile --setup` and `setup openvino`, once.")]
pub struct QuantizeArgs {
    /// The FP32 model
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,
    /// The same network as an INT8 model in QDQ form
    #[arg(long, value_name = "FILE.onnx", value_hint = ValueHint::FilePath)]
    int8: Option<PathBuf>,
    /// Calibration inputs: every .npy, .bin, .png and .jpg file of this folder
    #[arg(long, value_name = "DIR", required_unless_present = "random", value_hint = ValueHint::DirPath)]
    dataset: Option<PathBuf>,
    /// So many random inputs instead
    #[arg(long, value_name = "N", conflicts_with = "dataset", value_parser = clap::value_parser!(u32).range(1..))]
    random: Option<u32>,
    /// Inputs are raw values, from which the network wants this subtracted
    #[arg(long, value_name = "M[,M,M]", value_delimiter = ',', allow_hyphen_values = true)]
    mean: Vec<f32>,
    /// And this divided by
    #[arg(long, value_name = "S[,S,S]", value_delimiter = ',')]
    scale: Vec<f32>,
    /// How long to measure each speed
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = positive_duration)]
    duration: Duration,
    /// Write the graph of the INT8 model here
    #[arg(long, short, value_name = "BLOB", requires = "int8", value_hint = ValueHint::FilePath)]
    output: Option<PathBuf>,
}

/// A model to compile, and how.
struct Variant {
    name: &'static str,
    weights: &'static str,
    file: PathBuf,
    byte_input: bool,
    /// Mean and scale are still to be put in front of it.
    normalise: bool,
}

/// Compiles, checks and measures each variant.
pub fn quantize(global: &Global, output: &Output, args: &QuantizeArgs) -> Result<Outcome> {
    if global.sim.is_none() && crate::open::list(global)?.is_empty() {
        let message = "no Neural Compute Stick 2 found on any USB bus";
        return Err(Failure::new(
            ErrorKind::NotFound,
            message,
            "plug one in, or add --sim 1 for a virtual one",
        ));
    }
    find_reference()?;
    vendor_compiler::Compiler::find()?;
    if let Some(out) = &args.output {
        aside::check(out)?;
    }
    let scratch = Scratch::beside(&std::env::temp_dir().join("ncs2-quantize"))?;
    let mut left_out = Vec::new();
    let (variants, int8) = variants(args, scratch.path(), &mut left_out)?;
    let mut made = Vec::with_capacity(variants.len());
    for (n, variant) in variants.iter().enumerate() {
        let spinner = output.spinner(&format!("{}: compiling", variant.name));
        let blob = scratch.path().join(format!("{n}.blob"));
        let compiled = compile(args, variant, &blob);
        spinner.finish_and_clear();
        compiled?;
        made.push(blob);
    }
    let inputs = inputs(args, &variants, &made, &scratch.path().join("inputs"))?;
    let mut rows = Vec::with_capacity(variants.len());
    for (variant, blob) in variants.iter().zip(&made) {
        rows.push(row(global, output, args, variant, blob, &inputs)?);
        if variant.weights == "INT8"
            && let Some(out) = &args.output
        {
            aside::write(out, &fs::read(blob).map_err(|e| Failure::file(blob, "read", &e))?)?;
        }
    }
    let spinner = output.spinner("measuring this computer's CPU");
    let cpu = cpu(args, &inputs, &made[0]);
    spinner.finish_and_clear();
    let body = Body {
        simulated: global.sim.is_some(),
        model: args.model.display().to_string(),
        int8,
        facts: FACTS,
        left_out,
        rows,
        cpu: cpu?,
    };
    if output.is_json() {
        output.document(&body)?;
    } else {
        output.text(&report::text(output, &body))?;
    }
    Ok(Outcome::Ok)
}

fn variants(
    args: &QuantizeArgs,
    folder: &Path,
    left_out: &mut Vec<String>,
) -> Result<(Vec<Variant>, Option<Int8>)> {
    let raw = !args.mean.is_empty() || !args.scale.is_empty();
    let read = |path: &Path| fs::read(path).map_err(|e| Failure::file(path, "read", &e));
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|e| Failure::file(&path, "write", &e))?;
        Ok::<_, Failure>(path)
    };
    let model = read(&args.model)?;
    let whole = |name, weights, file, byte_input| Variant { name, weights, file, byte_input, normalise: raw };
    let mut variants = vec![whole("as it is", "FP32", args.model.clone(), false)];
    if raw {
        variants.push(whole("bytes in", "FP32", args.model.clone(), true));
        match fold::fold(&model, &args.mean, &args.scale) {
            Ok(folded) => variants.push(Variant {
                name: if folded.mean_in_front { "bytes in, scale folded" } else { "bytes in, folded" },
                weights: "FP32",
                file: write("folded.onnx", &folded.bytes)?,
                byte_input: true,
                normalise: false,
            }),
            Err(why) => left_out.push(format!("mean and scale in the first convolution: {why}")),
        }
    } else {
        left_out.push("an input of bytes: give --mean or --scale for a network that takes pictures".into());
    }
    let Some(path) = &args.int8 else {
        left_out.push("INT8: give --int8 with the model in QDQ form".into());
        return Ok((variants, None));
    };
    let plain = quantized::plain(&read(path)?).map_err(|why| {
        let message = format!("{}: {why}", path.display());
        Failure::new(
            ErrorKind::InvalidInput,
            message,
            "quantize it in QDQ form, as onnxruntime does by itself",
        )
    })?;
    variants.push(whole("INT8 made plain", "INT8", write("int8.onnx", &plain.bytes)?, raw));
    let int8 = Int8 {
        file: path.display().to_string(),
        constants: plain.constants,
        constant_bytes: plain.constant_bytes,
        pairs: plain.pairs,
        clips: plain.clips,
    };
    Ok((variants, Some(int8)))
}

/// `--mean 1,2,3` and `--scale …` under these names, where the user gave them.
fn normalisation(args: &QuantizeArgs, mean: &str, scale: &str) -> Vec<String> {
    let list = |values: &[f32]| values.iter().map(f32::to_string).collect::<Vec<_>>().join(",");
    let given =
        [(mean, &args.mean), (scale, &args.scale)].into_iter().filter(|(_, values)| !values.is_empty());
    given.map(|(flag, values)| format!("{flag}={}", list(values))).collect()
}

fn compile(args: &QuantizeArgs, variant: &Variant, blob: &Path) -> Result {
    let mut words = vec!["compile".to_owned(), path(&variant.file)?, "-o".into(), path(blob)?];
    words.extend(["--input-type".into(), if variant.byte_input { "u8" } else { "fp16" }.to_owned()]);
    if variant.normalise {
        words.extend(normalisation(args, "--mean", "--scale"));
    }
    own(&[], &words).map(|_| ())
}

/// What every row is measured with.
enum Inputs {
    Folder(PathBuf),
    Random(u32),
}

/// The user's folder, or random numbers. Where some variant takes bytes, all of them get the same bytes, written into
/// `folder`: their errors would say nothing of each other if others were given fractions.
fn inputs(args: &QuantizeArgs, variants: &[Variant], blobs: &[PathBuf], folder: &Path) -> Result<Inputs> {
    let count = match (&args.dataset, args.random) {
        (Some(folder), _) => return Ok(Inputs::Folder(folder.clone())),
        (None, count) => count.unwrap_or(1),
    };
    let Some((_, blob)) = variants.iter().zip(blobs).find(|(variant, _)| variant.byte_input) else {
        return Ok(Inputs::Random(count));
    };
    let blob = ncs2::blob::Blob::open(blob)?;
    let graph = blob.graph();
    let [tensor] = graph.inputs.as_slice() else { return Ok(Inputs::Random(count)) };
    crate::folders::make(folder)?;
    for (n, element) in input::random(graph, 0, count as usize).iter().enumerate() {
        let packed = layout::gather(tensor, &element.bytes[tensor.offset..]);
        let array = Array { shape: layout::shape(tensor), values: Values::decode(tensor.dtype, &packed) };
        npy::write(&folder.join(format!("{n:09}.npy")), &array)?;
    }
    Ok(Inputs::Folder(folder.to_path_buf()))
}

fn row(
    global: &Global,
    output: &Output,
    args: &QuantizeArgs,
    variant: &Variant,
    blob: &Path,
    inputs: &Inputs,
) -> Result<Row> {
    let spinner = output.spinner(&format!("{}: comparing with the CPU", variant.name));
    let mut words = vec!["check".to_owned(), path(&args.model)?, path(blob)?];
    match inputs {
        Inputs::Folder(folder) => words.extend(["--dataset".to_owned(), path(folder)?]),
        Inputs::Random(count) => words.extend(["--random".to_owned(), count.to_string()]),
    }
    words.extend(normalisation(args, "--compiled-mean", "--compiled-scale"));
    let mut sticks = sticks(global);
    let checked = own(&sticks, &words)?;
    spinner.set_message(format!("{}: measuring", variant.name));
    // What the answers are does not matter for the time; computing them would take this computer's.
    sticks.retain(|word| !word.starts_with("--engine"));
    let words = ["bench".to_owned(), path(blob)?, format!("--duration={}ms", args.duration.as_millis())];
    let measured = own(&sticks, &words)?;
    spinner.finish_and_clear();

    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let input = ncs2::blob::Blob::open(blob)?.graph().input_bytes as u64;
    let outputs = checked["outputs"].as_array().cloned().unwrap_or_default();
    let worst = |field: &str, pick: fn(f64, f64) -> f64| {
        outputs.iter().filter_map(|o| o[field].as_f64()).reduce(pick)
    };
    Ok(Row {
        name: variant.name,
        weights: variant.weights,
        input_type: if variant.byte_input { "u8" } else { "fp16" }.into(),
        blob_bytes: fs::metadata(blob).map_err(|e| Failure::file(blob, "read", &e))?.len(),
        input_bytes: input,
        link_us_estimate: (input as f64 / LINK_BYTES_PER_S * 1e9).round() / 1e3,
        fps: number(&measured["fps"]),
        p50_ms: number(&measured["latency_ms"]["p50"]),
        upload_us: number(&measured["stage_us"]["upload"]["mean"]),
        max_error: worst("max_error", f64::max),
        cosine: worst("cosine", f64::min),
        top1: worst("top1", f64::min),
        top5: worst("top5", f64::min),
    })
}

/// The FP32 model, and the INT8 one as it is, by what computes where there is no stick. `blob` says what they take.
#[cfg(feature = "openvino")]
fn cpu(args: &QuantizeArgs, inputs: &Inputs, blob: &Path) -> Result<Vec<CpuRow>> {
    use crate::check::{Score, speed};
    use crate::vendor_compiler::source::Changes;

    let blob = ncs2::blob::Blob::open(blob)?;
    let graph = blob.graph();
    let inputs = match inputs {
        Inputs::Folder(folder) => super::check::dataset(graph, folder, &crate::flags::ImageArgs::default())?,
        Inputs::Random(count) => input::random(graph, 0, *count as usize),
    };
    let changes = Changes { mean: &args.mean, scale: &args.scale, ..Changes::default() };
    let models: Vec<&Path> = std::iter::once(args.model.as_path()).chain(args.int8.as_deref()).collect();
    let timed = speed::measure(&models, &changes, graph, &inputs, args.duration)?;
    let names = [("the model", "FP32"), ("the INT8 model", "INT8")];
    let row = |((name, weights), timed): ((&'static str, &'static str), &speed::Timed)| {
        let of = |figure: fn(&Score) -> f64| timed.scores.iter().map(figure);
        let share = |count: fn(&Score) -> Option<usize>| {
            let lists = timed.scores.iter().filter(|s| s.lists > 0);
            lists.filter_map(|s| Some(count(s)? as f64 / s.lists as f64)).reduce(f64::min)
        };
        CpuRow {
            name,
            weights,
            file_bytes: timed.file_bytes,
            fps: timed.fps,
            p50_ms: timed.latency.quantile(0.5).as_secs_f64() * 1e3,
            max_error: of(|s| s.max_error).fold(0.0, f64::max),
            cosine: of(|s| s.cosine).fold(1.0, f64::min),
            top1: share(|s| Some(s.top1)),
            top5: share(|s| s.top5),
        }
    };
    Ok(names.into_iter().zip(&timed).map(row).collect())
}

/// Never gets here: without the feature there is no reference.
#[cfg(not(feature = "openvino"))]
fn cpu(_args: &QuantizeArgs, _inputs: &Inputs, _blob: &Path) -> Result<Vec<CpuRow>> {
    Ok(Vec::new())
}

/// Fails where there is nothing to compare with, before anything is compiled and measured.
fn find_reference() -> Result {
    #[cfg(feature = "openvino")]
    return crate::reference_libraries::find().map(|_| ());
    #[cfg(not(feature = "openvino"))]
    return Err(crate::check::without_openvino("quantize", ""));
}

fn path(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Failure::usage(
            format!("{}: expected a name in UTF-8", path.display()),
            "rename the file or its folder",
        )
    })
}

/// The flags that name the sticks, for a command of our own.
fn sticks(global: &Global) -> Vec<String> {
    let mut words = Vec::new();
    match &global.sim {
        Some(Sim::Rack { sticks, profile }) => {
            let profile = profile.as_ref().map_or(String::new(), |p| format!(",{p}"));
            words.push(format!("--sim={sticks}{profile}"));
        }
        Some(Sim::Server(path)) => words.push(format!("--sim=unix:{}", path.display())),
        None => {}
    }
    words.extend(global.device.iter().map(|id| format!("--device={id}")));
    words.extend(global.firmware.iter().map(|path| format!("--firmware={}", path.display())));
    words.extend(global.any_firmware.then(|| "--any-firmware".to_owned()));
    words.extend(global.wire.map(|WireArg::V1| "--wire=v1".to_owned()));
    words.extend(global.allow_custom.then(|| "--allow-custom".to_owned()));
    words.extend(global.engine.map(|engine| match engine {
        EngineArg::Execute => "--engine=execute".to_owned(),
        EngineArg::Hash => "--engine=hash".to_owned(),
    }));
    words.extend(global.timing.map(|timing| match timing {
        TimingArg::Model => "--timing=model".to_owned(),
        TimingArg::Zero => "--timing=zero".to_owned(),
        // Refused before: only `run` has the table.
        TimingArg::Layers => "--timing=model".to_owned(),
    }));
    words
}

/// Runs a command of this program and gives its document; its failure is ours.
fn own(sticks: &[String], words: &[String]) -> Result<Value> {
    let broken = |why: String| {
        let command = words.first().map_or("", String::as_str);
        Failure::new(ErrorKind::Unsupported, format!("{command}: {why}"), "run it by hand to see more")
    };
    let program = std::env::current_exe().map_err(|e| broken(e.to_string()))?;
    let ran = Command::new(program).arg("--json").args(sticks).args(words).output();
    let ran = ran.map_err(|e| broken(e.to_string()))?;
    let document: Value =
        serde_json::from_slice(&ran.stdout).map_err(|_| broken(format!("no document, {}", ran.status)))?;
    match document["error"].as_object() {
        None => Ok(document),
        Some(error) => {
            let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            Err(Failure::new(kind(&text("kind")), text("message"), text("hint")))
        }
    }
}

/// The kind of another command's failure, as far as it matters here.
fn kind(name: &str) -> ErrorKind {
    let known = [
        ErrorKind::NotFound,
        ErrorKind::Permission,
        ErrorKind::InUse,
        ErrorKind::InvalidBlob,
        ErrorKind::OutOfMemory,
        ErrorKind::Timeout,
        ErrorKind::Unplugged,
        ErrorKind::Firmware,
        ErrorKind::Unsupported,
    ];
    known.into_iter().find(|k| k.as_str() == name).unwrap_or(ErrorKind::InvalidInput)
}
