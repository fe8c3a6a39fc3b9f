//! The definitions of commands and flags; help, completions and man pages are all made from them.

mod bench;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};

pub use bench::{Batch, BenchArgs, Depth, PolicyArg};

use crate::fallback::FallbackArgs;

/// Drives Intel Neural Compute Stick 2 devices, real and virtual, without the vendor's runtime
#[derive(Parser, Debug)]
#[command(
    name = "ncs2ctl",
    version = VERSION,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "\
Examples:
  ncs2ctl list
  ncs2ctl blob info net.blob --layers
  ncs2ctl run net.blob --input cat.jpg --top 5 --labels labels.txt
  ncs2ctl --sim 3 bench net.blob --duration 10s

Exit codes: 0 done, 1 negative result (no stick listed, a check failed), 2 failure, 64 wrong usage."
)]
pub struct Cli {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Version, and the commit where it was known at build time.
pub const VERSION: &str = env!("NCS2CTL_VERSION");

/// Flags that every command understands.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Use N virtual sticks instead of real ones, PROFILE being a built-in name or a file; or those of a server
    #[arg(
        long,
        global = true,
        env = "NCS2_SIM",
        hide_env_values = true,
        value_name = "N[,PROFILE]|unix:PATH",
        help_heading = "Sticks"
    )]
    pub sim: Option<Sim>,
    /// Use only this stick: a USB port path such as 1-2.3, or sim0; may be repeated
    #[arg(
        long,
        global = true,
        env = "NCS2_DEVICE",
        hide_env_values = true,
        value_name = "ID",
        value_delimiter = ',',
        help_heading = "Sticks"
    )]
    pub device: Vec<String>,
    /// Boot real sticks with this firmware file instead of the installed one
    #[arg(long, global = true, value_name = "FILE", help_heading = "Sticks", value_hint = ValueHint::FilePath)]
    pub firmware: Option<PathBuf>,
    /// Accept a firmware file that the manifest does not name
    #[arg(long, global = true, help_heading = "Sticks")]
    pub any_firmware: bool,
    /// Speak this variant of the protocol to real sticks, whatever the manifest says of their firmware
    #[arg(long, global = true, value_enum, hide_short_help = true, help_heading = "Sticks")]
    pub wire: Option<WireArg>,
    /// Load blobs whose stages bring code of their own to the stick
    #[arg(long, global = true, hide_short_help = true, help_heading = "Sticks")]
    pub allow_custom: bool,
    /// With --sim: compute the network on the CPU, or a fixed function of graph and input
    #[arg(
        long,
        global = true,
        env = "NCS2_ENGINE",
        hide_env_values = true,
        value_enum,
        help_heading = "Sticks"
    )]
    pub engine: Option<EngineArg>,
    /// With --sim: take the time that a stick would take, or none. Without a value, of `run`: the same as --layers
    #[arg(
        long,
        global = true,
        env = "NCS2_TIMING",
        hide_env_values = true,
        value_enum,
        num_args = 0..=1,
        default_missing_value = "layers",
        help_heading = "Sticks"
    )]
    pub timing: Option<TimingArg>,
    /// With --sim, and of `sim serve`: break as this plan says
    #[arg(long, global = true, value_name = "PLAN", help_heading = "Sticks", value_hint = ValueHint::FilePath)]
    pub fault: Option<String>,
    /// Write every transfer to this file: .log for text, .pcapng for Wireshark
    #[arg(long, global = true, value_name = "FILE", help_heading = "Sticks", value_hint = ValueHint::FilePath)]
    pub trace: Option<PathBuf>,
    /// Tell `ncs2ctl top` and `thermal` of this user how the sticks of this run do
    #[arg(
        long,
        global = true,
        value_name = "true|false",
        default_value_t = true,
        action = ArgAction::Set,
        hide_possible_values = true,
        hide_default_value = true,
        hide_short_help = true,
        help_heading = "Sticks"
    )]
    pub stats_socket: bool,
    /// Run this shell command when a stick becomes warmer than --warm-at; NCS2_STICK and NCS2_TEMPERATURE_C tell it which
    #[arg(long, global = true, value_name = "COMMAND", hide_short_help = true, help_heading = "Sticks")]
    pub on_warm: Option<String>,
    /// Degrees Celsius above which a stick is called warm
    #[arg(
        long,
        global = true,
        value_name = "C",
        default_value_t = 65.0,
        value_parser = positive,
        hide_short_help = true,
        help_heading = "Sticks"
    )]
    pub warm_at: f64,
    /// Take defaults from this TOML file
    #[arg(long, global = true, value_name = "FILE", help_heading = "Output", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// What that file says.
    #[arg(skip)]
    pub file: crate::config::File,
    /// Print one JSON document instead of text
    #[arg(long, global = true, help_heading = "Output")]
    pub json: bool,
    /// No progress and no remarks
    #[arg(long, short, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Log to stderr; twice for more
    #[arg(long, short, global = true, action = ArgAction::Count, help_heading = "Output")]
    pub verbose: u8,
    /// When to colour
    #[arg(long, global = true, value_enum, default_value = "auto", help_heading = "Output")]
    pub color: ColorArg,
}

/// `--sim`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Sim {
    /// Virtual sticks of this process.
    Rack {
        /// How many, at least 1.
        sticks: usize,
        /// Profile; `None` for the default one.
        profile: Option<String>,
    },
    /// Those of a server.
    Server(PathBuf),
}

/// Most virtual sticks of one process: each costs memory and turns of a thread, more is a slip of the finger.
const MAX_SIM: usize = 256;

impl FromStr for Sim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() {
                Err("expected a path after `unix:`".into())
            } else {
                Ok(Sim::Server(path.into()))
            };
        }
        let (count, profile) = match text.split_once(',') {
            Some((_, "")) => return Err("expected a profile after the comma".into()),
            Some((count, profile)) => (count, Some(profile.to_owned())),
            None => (text, None),
        };
        match count.parse::<usize>() {
            Ok(sticks) if (1..=MAX_SIM).contains(&sticks) => Ok(Sim::Rack { sticks, profile }),
            _ => Err(format!("expected a number of virtual sticks from 1 to {MAX_SIM}, found `{count}`")),
        }
    }
}

/// `--wire`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum WireArg {
    /// OpenVINO 2021.4.2's, the one that was proven with the vendor's client
    V1,
}

impl WireArg {
    /// As the library has it.
    pub fn to_library(self) -> ncs2::wire::WireVersion {
        match self {
            WireArg::V1 => ncs2::wire::WireVersion::V1,
        }
    }
}

/// `--engine`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum EngineArg {
    /// The network itself, on the CPU
    Execute,
    /// A fixed function of graph and input, at almost no cost
    Hash,
}

/// `--timing`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TimingArg {
    /// As long as the profile says a stick would take
    Model,
    /// As fast as this machine goes
    Zero,
    /// No pace, but what stands for a flag without a value: see [`RunArgs::layers`].
    #[value(hide = true)]
    Layers,
}

/// `--color`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ColorArg {
    /// When standard output is a terminal and `NO_COLOR` is not set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Lists every stick without opening any
    #[command(after_help = "\
Examples:
  ncs2ctl list
  ncs2ctl --json list | jq -r '.devices[].id'

Exits 1 when there is no stick.")]
    List,
    /// Opens the sticks and prints what they say of themselves
    #[command(after_help = "\
Examples:
  ncs2ctl info
  ncs2ctl --sim 2 info --json
  ncs2ctl info --device 1-2.3")]
    Info,
    /// Looks at everything that sticks need, and says how to mend what is missing
    Doctor(crate::cmd::doctor::DoctorArgs),
    /// Loads the firmware into the sticks, at the same time
    Boot(crate::cmd::boot::BootArgs),
    /// Brings sticks back to their boot ROM
    Reset(crate::cmd::boot::ResetArgs),
    /// Looks into compiled graphs
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Blob {
        /// What to do.
        #[command(subcommand)]
        command: BlobCommand,
    },
    /// Runs a network on files
    Run(Box<RunArgs>),
    /// Runs one inference for each line of a file, and prints a line for each
    Batch(crate::cmd::batch::BatchArgs),
    /// Measures speed, latency and share of peak
    Bench(Box<BenchArgs>),
    /// Compiles a model for the stick with the vendor's compiler; needs no stick
    Compile(Box<crate::cmd::compile::CompileArgs>),
    /// Compares answers of the sticks with the model on the CPU
    Check(Box<crate::cmd::check::CheckArgs>),
    /// Shows what INT8 and byte inputs cost and gain on this chip
    Quantize(Box<crate::cmd::quantize::QuantizeArgs>),
    /// Sets up what some commands need
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Setup(crate::cmd::setup::SetupArgs),
    /// Prints temperatures, levels and what is left until the sticks slow down
    Thermal(crate::cmd::thermal::ThermalArgs),
    /// Shows speed, temperature and memory of every stick, live
    Top(crate::cmd::top::TopArgs),
    /// Prints the defaults in force and where each came from
    Config(crate::cmd::config::ConfigArgs),
    /// Finds and checks the vendor's firmware file
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Firmware {
        /// What to do.
        #[command(subcommand)]
        command: crate::cmd::firmware::FirmwareCommand,
    },
    /// Lets users reach the sticks
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Udev {
        /// What to do.
        #[command(subcommand)]
        command: crate::cmd::udev::UdevCommand,
    },
    /// Exercises a stick step by step and writes a report that can be sent back
    Selftest(crate::cmd::selftest::SelftestArgs),
    /// Virtual sticks for other processes and kernels, and how well their timing fits
    #[command(subcommand_required = true, arg_required_else_help = true)]
    Sim {
        /// What to do.
        #[command(subcommand)]
        command: crate::cmd::sim::SimCommand,
    },
    /// Prints a capture of transfers that --trace wrote, or Wireshark; needs no stick
    Decode(crate::cmd::decode::DecodeArgs),
    /// Prints what the stages of a timeline took that `bench --trace-out` wrote; needs no stick
    Trace(crate::cmd::trace::TraceArgs),
    /// Prints completions for a shell
    #[command(after_help = "\
Examples:
  ncs2ctl completions bash > ~/.local/share/bash-completion/completions/ncs2ctl
  ncs2ctl completions fish > ~/.config/fish/completions/ncs2ctl.fish")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Prints the manual page, or writes one for every command
    #[command(after_help = "\
Examples:
  ncs2ctl man | man -l -
  ncs2ctl man --output ~/.local/share/man/man1")]
    Man {
        /// Write one page for every command into this folder
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
        output: Option<PathBuf>,
    },
}

/// `blob …`
#[derive(Subcommand, Debug)]
pub enum BlobCommand {
    /// Prints what a compiled graph takes, gives and costs; needs no stick
    #[command(after_help = "\
Examples:
  ncs2ctl blob info net.blob
  ncs2ctl blob info net.blob --layers
  ncs2ctl blob info net.blob --json | jq .macs")]
    Info {
        /// The compiled graph
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Add a table of all stages
        #[arg(long)]
        layers: bool,
    },
}

/// `run`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl run net.blob --input cat.jpg --top 5 --labels labels.txt
  ncs2ctl run net.blob --input data=a.npy --input state=b.npy --output answers/
  ncs2ctl --sim 1 run net.blob --random 7 --json
  ncs2ctl run net.blob --input x.npy --check prob=expected.npy --tolerance 1%
  ncs2ctl run net.blob --input photos/ --crop 256 --top 1
  ncs2ctl run net.blob --input cat.jpg --timing
  cat a.npy b.npy | ncs2ctl run net.blob - > answers.npy

Files: .npy (converted to the network's own type where no value is lost), .png and .jpg (resized),
.bin (the network's own type, values in the order of the shape that `blob info` prints).
A file that holds several elements, several files, and a folder of files are several inferences.
Outputs: DIR/TENSOR.npy, or DIR/N.TENSOR.npy for the N-th of several inferences, counted from 0.
Streams: .npy arrays one behind the other, or raw tensors, each behind its length in bytes (32 bits,
little-endian). For each inference all inputs in the order of `blob info`; answers in the same form,
all outputs in that order; with --json a document a line. See docs/scripts.md.")]
pub struct RunArgs {
    /// The compiled graph
    #[arg(value_name = "BLOB", value_hint = ValueHint::FilePath)]
    pub blob: PathBuf,
    /// `-`: a stream of tensors on standard input, answers on standard output as they come
    #[arg(value_name = "-", value_parser = ["-"], hide_possible_values = true, conflicts_with_all = ["input", "random"])]
    pub stdin: Option<String>,
    /// Input file, folder of files, or - as above; NAME=FILE where the network has several inputs
    #[arg(long, short, value_name = "[NAME=]FILE", num_args = 1..,
        required_unless_present_any = ["random", "stdin"])]
    pub input: Vec<String>,
    /// Random input instead, the same for the same seed
    #[arg(long, value_name = "SEED", conflicts_with = "input", value_parser = seed)]
    pub random: Option<u64>,
    /// Image preparation.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Write every output as .npy into this folder
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: Option<PathBuf>,
    /// Print the K largest values of every output
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub top: Option<u32>,
    /// Names of the values, one a line
    #[arg(long, value_name = "FILE", requires = "top", value_hint = ValueHint::FilePath)]
    pub labels: Option<PathBuf>,
    /// Compare an output with this .npy; exit 1 when it is not within the tolerance; may be repeated
    #[arg(long, value_name = "[NAME=]REF", num_args = 1..)]
    pub check: Vec<String>,
    /// Allowed difference: 1% of the largest reference value, or an absolute number
    #[arg(long, value_name = "X[%]", default_value = "1%", requires = "check")]
    pub tolerance: Tolerance,
    /// Add a table of all stages with the times that the stick measured, of its latest inference
    #[arg(long)]
    pub layers: bool,
    /// Order on the wire
    #[arg(long, value_enum, default_value = "auto")]
    pub ordering: OrderingArg,
    /// What stands in for sticks.
    #[command(flatten)]
    pub fallback: FallbackArgs,
}

impl RunArgs {
    /// Tensors come on standard input.
    pub fn is_stream(&self) -> bool {
        self.stdin.is_some() || self.input.iter().any(|input| input == "-")
    }
}

/// How a picture becomes a tensor.
#[derive(Args, Debug, Clone, Default)]
pub struct ImageArgs {
    /// Pictures: subtract this from every value, one number or one for each channel
    #[arg(long, value_name = "M[,M,M]", value_delimiter = ',', allow_hyphen_values = true)]
    pub mean: Vec<f32>,
    /// Pictures: then divide by this, one number or one for each channel
    #[arg(long, value_name = "S[,S,S]", value_delimiter = ',')]
    pub scale: Vec<f32>,
    /// Pictures: blue first
    #[arg(long)]
    pub bgr: bool,
    /// Pictures: cut before resizing: the largest `center` of the network's shape; the same after the shorter side
    /// was resized to SIDE pixels; or this part
    #[arg(long, value_name = "center|SIDE|WxH+X+Y")]
    pub crop: Option<Crop>,
}

/// `--crop`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crop {
    /// The largest part around the middle that has the network's shape.
    Center,
    /// The network's own size around the middle, after the shorter side was resized to this.
    Side(u32),
    /// In pixels of the picture.
    Part {
        /// Width.
        w: u32,
        /// Height.
        h: u32,
        /// From the left.
        x: u32,
        /// From the top.
        y: u32,
    },
}

impl FromStr for Crop {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse::<u32>().ok();
        let part = || {
            let (size, place) = text.split_once('+')?;
            let ((w, h), (x, y)) = (size.split_once('x')?, place.split_once('+')?);
            Some(Crop::Part {
                w: number(w).filter(|w| *w > 0)?,
                h: number(h).filter(|h| *h > 0)?,
                x: number(x)?,
                y: number(y)?,
            })
        };
        let side = || number(text).filter(|side| (1..=1 << 14).contains(side)).map(Crop::Side);
        match text {
            "center" => Ok(Crop::Center),
            _ => side().or_else(part).ok_or_else(|| {
                format!("expected center, a side such as 256 or a part such as 200x200+10+0, found `{text}`")
            }),
        }
    }
}

/// `--tolerance`.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Tolerance {
    /// Of the largest absolute reference value, 0.01 for `1%`.
    Share(f64),
    /// In the tensor's own unit.
    Absolute(f64),
}

impl FromStr for Tolerance {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, share) = match text.strip_suffix('%') {
            Some(number) => (number, true),
            None => (text, false),
        };
        match number.parse::<f64>() {
            Ok(x) if x.is_finite() && x >= 0.0 => {
                Ok(if share { Tolerance::Share(x / 100.0) } else { Tolerance::Absolute(x) })
            }
            _ => Err("expected a number such as 0.001, or a share such as 1%".into()),
        }
    }
}

/// `--ordering`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OrderingArg {
    /// `pipelined` where a selftest's report of a real stick proved it for this firmware, else `vendor`
    Auto,
    /// Every step waits for the one before, as the vendor's client does
    Vendor,
    /// Nothing waits that need not; unproven on real firmware
    Pipelined,
}

impl OrderingArg {
    /// As JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            OrderingArg::Auto => "auto",
            OrderingArg::Vendor => "vendor",
            OrderingArg::Pipelined => "pipelined",
        }
    }

    /// As the library has it.
    pub fn to_library(self) -> ncs2::stick::Ordering {
        match self {
            // What is not settled is careful.
            OrderingArg::Auto | OrderingArg::Vendor => ncs2::stick::Ordering::Vendor,
            OrderingArg::Pipelined => ncs2::stick::Ordering::Pipelined,
        }
    }
}

/// `1.5s`, `500ms`, `2m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("expected a time such as 500ms, 10s, 2m or 1h, found `{text}`");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(expected)?;
    let (number, unit) = text.split_at(digits);
    let seconds = number.parse::<f64>().map_err(|_| expected())?
        * match unit {
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            _ => return Err(expected()),
        };
    // A year is more than any run; beyond it the arithmetic of clocks is not worth trusting.
    if seconds > 3.2e7 {
        return Err(format!("{text} is longer than a year"));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| expected())
}

/// As [`duration`], at least 10 ms.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        d if d < Duration::from_millis(10) => Err("expected at least 10ms".into()),
        d => Ok(d),
    }
}

/// A number above 0.
pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(x) if x.is_finite() && x > 0.0 => Ok(x),
        _ => Err("expected a number above 0".into()),
    }
}

/// A seed.
pub fn seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("expected a whole number from 0 on, found `{text}`"))
}

/// The whole definition, for completions and man pages.
pub fn definition() -> clap::Command {
    Cli::command()
}

#[cfg(test)]
mod tests;
