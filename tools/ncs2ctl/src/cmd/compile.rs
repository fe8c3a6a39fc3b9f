//! `ncs2ctl compile`

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use clap::{Args, ValueEnum, ValueHint};
use ncs2::ErrorKind;
use ncs2::blob::{Blob, Graph};
use serde::Serialize;

use crate::failure::{Failure, Outcome, Result};
use crate::flags::Global;
use crate::folders::Scratch;
use crate::onnx::{count, edit};
use crate::output::{Output, Style, bytes, grouped};
use crate::tensor::shape_text;
use crate::vendor_compiler::refusal::{self, Layer, unsupported_layer};
use crate::vendor_compiler::source::{Changes, Ready};
use crate::vendor_compiler::summary::{Summary, summarise};
use crate::vendor_compiler::{Compiler, Options, Refused, Source, cache, explain, run, setup};
use crate::{aside, failure};

/// Runs for naming further layers that the compiler refuses; each takes a fraction of a second.
const MOST_REFUSED: usize = 16;

/// Executors, where the user does not say.
const COMPILERS_STREAMS: u32 = 2;
/// What the compiler gives to all executors together (BLOB_FORMAT 8.2).
const CORES: u32 = 16;
const SLICES: u32 = 19;

/// `compile`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl compile --setup                                # once: fetches the vendor's compiler through pip
  ncs2ctl compile net.onnx -o net.blob --input-type u8
  ncs2ctl compile net.onnx -o net.blob --batch 1,4,8     # net@1.blob, net@4.blob, net@8.blob
  ncs2ctl compile net.onnx -o net.blob --mean 123.7,116.3,103.5 --scale 58.4,57.1,57.4

The compiler is the vendor's own, out of the wheel openvino 2021.4.2 (29 MB); it runs on Linux on x86-64 and needs no
stick. Blobs are kept by the hash of what they were made of: the second time costs nothing.")]
pub struct CompileArgs {
    /// The model: .onnx, or .xml with its .bin beside it
    #[arg(required_unless_present = "setup", value_hint = ValueHint::FilePath)]
    pub model: Option<PathBuf>,
    /// The compiled graph to write
    #[arg(long, short, value_name = "BLOB", required_unless_present = "setup", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Set up the vendor's compiler, from this wheel or from the one that pip fetches
    #[arg(long, value_name = "WHEEL", num_args = 0..=1, value_hint = ValueHint::FilePath, conflicts_with_all = ["model", "output"])]
    pub setup: Option<Option<PathBuf>>,
    /// Type of all inputs; u8 is the smallest on the wire
    #[arg(long, value_enum, default_value = "fp16")]
    pub input_type: TypeArg,
    /// Type of all outputs
    #[arg(long, value_enum, default_value = "fp16")]
    pub output_type: TypeArg,
    /// Order of four-dimensional inputs
    #[arg(long, value_enum)]
    pub layout: Option<LayoutArg>,
    /// Elements of a call; several make several blobs, named OUT@N.blob
    #[arg(long, value_name = "N[,N]", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: Vec<u32>,
    /// Sizes of open dimensions, as in data=1x3x224x224
    #[arg(long, value_name = "[INPUT=]SHAPE")]
    pub shape: Vec<ShapeArg>,
    /// Executors that share the stick: 1 has all cores, 2 and 3 part of them; the compiler takes 2 by itself
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3))]
    pub streams: Option<u32>,
    /// SHAVE cores of an executor
    #[arg(long, value_name = "N", requires = "cmx", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub shaves: Option<u32>,
    /// CMX slices of an executor, at least as many as cores
    #[arg(long, value_name = "N", requires = "shaves", value_parser = clap::value_parser!(u32).range(1..=19))]
    pub cmx: Option<u32>,
    /// Put a subtraction in front of the network, one number or one for each channel
    #[arg(long, value_name = "M[,M,M]", value_delimiter = ',', allow_hyphen_values = true)]
    pub mean: Vec<f32>,
    /// Then a division, one number or one for each channel
    #[arg(long, value_name = "S[,S,S]", value_delimiter = ',')]
    pub scale: Vec<f32>,
    /// One of the vendor's own keys, such as MYRIAD_ENABLE_HW_ACCELERATION=NO
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    pub set: Vec<(String, String)>,
    /// Compile anew, whatever was kept
    #[arg(long)]
    pub no_cache: bool,
}

/// `--input-type`, `--output-type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TypeArg {
    /// One byte; inputs only
    U8,
    /// Two bytes, what the stick computes in
    Fp16,
    /// Four bytes, converted on the stick
    Fp32,
}

impl TypeArg {
    fn vendor(self) -> &'static str {
        match self {
            TypeArg::U8 => "U8",
            TypeArg::Fp16 => "FP16",
            TypeArg::Fp32 => "FP32",
        }
    }
}

/// `--layout`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LayoutArg {
    /// Planes
    Nchw,
    /// Pixels, as cameras and picture files have them
    Nhwc,
}

/// `--shape`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShapeArg {
    /// Input; empty for the only one.
    input: String,
    dims: Vec<u64>,
}

impl FromStr for ShapeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (input, shape) = text.rsplit_once('=').unwrap_or(("", text));
        let dims = shape.split('x').map(|d| d.parse::<u64>().ok().filter(|&n| (1..=1 << 32).contains(&n)));
        match dims.collect::<Option<Vec<u64>>>() {
            Some(dims) if dims.len() <= 8 => Ok(ShapeArg { input: input.to_owned(), dims }),
            _ => Err("expected sizes such as 1x3x224x224".into()),
        }
    }
}

fn setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".into()),
    }
}

#[derive(Serialize)]
struct SetupBody {
    compiler: String,
    folder: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Body {
    model: String,
    compiler: String,
    blobs: Vec<Made>,
}

#[derive(Serialize)]
struct Made {
    file: String,
    sha256: String,
    from_cache: bool,
    seconds: f64,
    /// Counted from the ONNX graph; `None` where it does not note its shapes.
    model_macs: Option<u64>,
    #[serde(flatten)]
    summary: Summary,
    #[serde(skip)]
    tensors: Vec<String>,
}

/// Compiles a model, once for each batch.
pub fn compile(_global: &Global, output: &Output, args: &CompileArgs) -> Result<Outcome> {
    if let Some(wheel) = &args.setup {
        return set_up(output, wheel.as_deref());
    }
    let (Some(model), Some(out)) = (&args.model, &args.output) else {
        return Err(Failure::usage("expected a model and --output", "see `ncs2ctl compile --help`"));
    };
    let options = options(args)?;
    if let Some(twice) =
        args.batch.iter().enumerate().find_map(|(n, b)| args.batch[..n].contains(b).then_some(b))
    {
        return Err(Failure::usage(
            format!("--batch: expected each size once, found {twice} twice"),
            "name each size once",
        ));
    }
    // Everything that the user may have got wrong is looked at before the compiler is.
    let source = Source::read(model)?;
    let shapes: Vec<(String, Vec<u64>)> =
        args.shape.iter().map(|s| (s.input.clone(), s.dims.clone())).collect();
    let batches: Vec<Option<u32>> =
        if args.batch.is_empty() { vec![None] } else { args.batch.iter().copied().map(Some).collect() };
    let mut jobs = Vec::with_capacity(batches.len());
    for &batch in &batches {
        let changes = Changes { batch, shapes: &shapes, mean: &args.mean, scale: &args.scale };
        let ready = source.prepare(&changes)?;
        let path = match batch {
            Some(n) if batches.len() > 1 => variant(out, n),
            _ => out.clone(),
        };
        aside::check(&path)?;
        jobs.push((path, ready));
    }
    let compiler = Compiler::find()?;
    let mut blobs = Vec::with_capacity(jobs.len());
    for (path, ready) in &jobs {
        let spinner = output.spinner(&format!("compiling {}", path.display()));
        let made = make(&compiler, &source, ready, &options, path, args.no_cache);
        spinner.finish_and_clear();
        blobs.push(made?);
    }
    let body = Body { model: model.display().to_string(), compiler: compiler.build.clone(), blobs };
    if output.is_json() {
        output.document(&body)?;
    } else {
        let text: String = body.blobs.iter().map(|made| text(output, &body.model, made)).collect();
        output.text(&text)?;
    }
    Ok(Outcome::Ok)
}

fn set_up(output: &Output, wheel: Option<&Path>) -> Result<Outcome> {
    let spinner = output.spinner("setting up the vendor's compiler");
    let compiler = setup(wheel);
    spinner.finish_and_clear();
    let compiler = compiler?;
    let body = SetupBody {
        compiler: compiler.build,
        folder: compiler.folder.display().to_string(),
        bytes: compiler.bytes,
    };
    if output.is_json() {
        output.document(&body)?;
    } else {
        let size = bytes(body.bytes);
        output.text(&format!(
            "The vendor's compiler {} is set up, {size} in\n  {}\n",
            body.compiler, body.folder
        ))?;
    }
    Ok(Outcome::Ok)
}

fn options(args: &CompileArgs) -> Result<Options> {
    if args.output_type == TypeArg::U8 {
        return Err(Failure::usage("--output-type: expected fp16 or fp32, found u8", "outputs are floats"));
    }
    if let (Some(shaves), Some(cmx)) = (args.shaves, args.cmx) {
        if shaves > cmx {
            return Err(Failure::usage(
                format!("--cmx: expected at least {shaves}, as many as --shaves, found {cmx}"),
                "give as many slices as cores, or more",
            ));
        }
        let streams = args.streams.unwrap_or(COMPILERS_STREAMS);
        if streams * shaves > CORES || streams * cmx > SLICES {
            return Err(Failure::usage(
                format!(
                    "--shaves, --cmx: expected at most {CORES} and {SLICES} for all executors together, found \
                     {shaves} and {cmx} for each of {streams}"
                ),
                "give fewer, or --streams 1",
            ));
        }
    }
    let mut settings = args.set.clone();
    let mut set =
        |key: &str, value: Option<u32>| settings.extend(value.map(|n| (key.to_owned(), n.to_string())));
    set("MYRIAD_THROUGHPUT_STREAMS", args.streams);
    set("MYRIAD_NUMBER_OF_SHAVES", args.shaves);
    set("MYRIAD_NUMBER_OF_CMX_SLICES", args.cmx);
    Ok(Options {
        input_type: Some(args.input_type.vendor()),
        output_type: Some(args.output_type.vendor()),
        layout: args.layout.map(|layout| match layout {
            LayoutArg::Nchw => "NCHW",
            LayoutArg::Nhwc => "NHWC",
        }),
        batch: None,
        settings,
    })
}

/// `net@4.blob` for `net.blob`.
fn variant(out: &Path, batch: u32) -> PathBuf {
    let stem = out.file_stem().unwrap_or_default().to_string_lossy();
    let name = match out.extension() {
        Some(extension) => format!("{stem}@{batch}.{}", extension.to_string_lossy()),
        None => format!("{stem}@{batch}"),
    };
    out.with_file_name(name)
}

fn make(
    compiler: &Compiler,
    source: &Source,
    ready: &Ready,
    options: &Options,
    path: &Path,
    anew: bool,
) -> Result<Made> {
    let start = Instant::now();
    let options = Options { batch: ready.batch, ..options.clone() };
    let folder = cache::folder()?;
    let kept = cache::path(&folder, &cache::key(compiler, &options.words(), &source.parts(ready)));
    // What a disk has done to a kept blob shows when it is read.
    let from_cache = !anew && fs::read(&kept).is_ok_and(|bytes| Graph::parse(&bytes).is_ok());
    if !from_cache {
        compile_to(compiler, source, ready, &options, &kept)?;
        cache::prune(&folder)?;
    }
    let content = fs::read(&kept).map_err(|e| Failure::file(&kept, "read", &e))?;
    aside::write(path, &content)?;
    let blob = Blob::open(path)?;
    let graph = blob.graph();
    let tensor = |what: &str, t: &ncs2::blob::IoTensor| {
        let layout = t.order.layout();
        format!(
            "{what} {} {} {} {layout}",
            failure::one_line(&t.name),
            t.dtype.as_str(),
            shape_text(&t.shape())
        )
    };
    let tensors = graph.inputs.iter().map(|t| tensor("input", t));
    let tensors = tensors.chain(graph.outputs.iter().map(|t| tensor("output", t))).collect();
    Ok(Made {
        file: path.display().to_string(),
        sha256: blob.hash().to_string(),
        from_cache,
        seconds: start.elapsed().as_secs_f64(),
        model_macs: model_macs(ready),
        summary: summarise(&blob),
        tensors,
    })
}

/// The network's own count, from its graph. With a batch that the compiler sets, the shapes in the graph are of another.
fn model_macs(ready: &Ready) -> Option<u64> {
    ready.onnx.as_ref().filter(|_| ready.batch.is_none()).and_then(|model| count::macs(model).ok())
}

/// Has the compiler make `kept`, which is there whole or not at all.
fn compile_to(compiler: &Compiler, source: &Source, ready: &Ready, options: &Options, kept: &Path) -> Result {
    let scratch = Scratch::beside(&kept.with_file_name("making"))?;
    let model = model_file(source, ready, &scratch)?;
    let out = scratch.path().join("out.blob");
    if let Err(refused) = run(&compiler.folder, &model, options, &out)? {
        let others = further_layers(compiler, source.bytes(ready), options, &refused, &scratch)?;
        return Err(explain(&source.path, source.onnx.as_ref(), &refused, &others));
    }
    let bytes = fs::read(&out).map_err(|e| Failure::file(&out, "read", &e))?;
    // The vendor's writer does not notice a full disk.
    Graph::parse(&bytes).map_err(|e| {
        if e.to_string().contains("dynamic shapes") {
            return refusal::dynamic(
                &source.path,
                "the blob would need sizes that are known at run time only",
            );
        }
        Failure::new(
            ErrorKind::InvalidBlob,
            format!("{}: the compiler wrote a damaged blob ({e})", source.path.display()),
            format!("check that {} has room, then try again", kept.parent().unwrap_or(kept).display()),
        )
    })?;
    fs::rename(&out, kept).map_err(|e| Failure::file(kept, "write", &e))
}

/// The model as a file that the compiler reads.
fn model_file(source: &Source, ready: &Ready, scratch: &Scratch) -> Result<PathBuf> {
    let Some(bytes) = &ready.changed else { return Ok(source.path.clone()) };
    let path = scratch.path().join("model.onnx");
    fs::write(&path, bytes).map_err(|e| Failure::file(&path, "write", &e))?;
    Ok(path)
}

/// The compiler stops at the first layer that it has no operator for. Each is replaced by one that it has, until it
/// stops for another reason or not at all: so that the user hears of all in one go.
fn further_layers(
    compiler: &Compiler,
    model: &[u8],
    options: &Options,
    first: &Refused,
    scratch: &Scratch,
) -> Result<Vec<Layer>> {
    let mut others = Vec::new();
    let mut layer = unsupported_layer(first);
    let mut bytes = model.to_vec();
    while let Some(known) = layer.take()
        && others.len() < MOST_REFUSED
    {
        let Some(edited) = edit::stand_in(&bytes, &known.name) else { break };
        bytes = edited;
        let path = scratch.path().join("asked.onnx");
        fs::write(&path, &bytes).map_err(|e| Failure::file(&path, "write", &e))?;
        // A shape that no longer fits is no news: only further layers are.
        if let Ok(Err(refused)) = run(&compiler.folder, &path, options, &scratch.path().join("asked.blob"))
            && let Some(next) = unsupported_layer(&refused)
        {
            others.push(next.clone());
            layer = Some(next);
        }
    }
    Ok(others)
}

fn text(output: &Output, model: &str, made: &Made) -> String {
    let s = &made.summary;
    let how = if made.from_cache { "from cache" } else { "compiled" };
    let mut text = format!(
        "{}  {how}, {:.2} s, from {}\n",
        output.paint(Style::Bold, failure::one_line(&made.file)),
        made.seconds,
        failure::one_line(model)
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<9} {value}\n"));
    for tensor in &made.tensors {
        let (what, rest) = tensor.split_once(' ').unwrap_or(("", tensor));
        line(what, rest.to_owned());
    }
    let ratio = s.macs_nce as f64 / s.macs.max(1) as f64;
    line(
        "work",
        format!("{} multiply-accumulates, {} as run ({ratio:.2}x)", grouped(s.macs), grouped(s.macs_nce)),
    );
    if let Some(own) = made.model_macs.filter(|&own| own != s.macs) {
        line("", format!("{} counted from the model's own graph", grouped(own)));
    }
    line(
        "memory",
        format!("{} on the stick, {} of them the file", bytes(s.stick_bytes), bytes(s.file_bytes)),
    );
    line("executor", format!("{} SHAVEs, {} CMX slices, batch {}", s.shaves, s.cmx_slices, s.batch));
    let shave: usize = s.stages.shave.values().sum();
    let names: Vec<String> = s.stages.shave.iter().map(|(name, n)| format!("{name} {n}")).collect();
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    line("stages", format!("{} compute engine, {} copies, {shave} SHAVE{names}", s.stages.nce, s.stages.dma));
    let indent = " ".repeat(12);
    for warning in &s.warnings {
        let label = output.paint(Style::Warn, "warning");
        text.push_str(&format!(
            "  {label}   {}\n",
            crate::output::wrap(warning, output.width() - 12, &indent)
        ));
    }
    text
}
