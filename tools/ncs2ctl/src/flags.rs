//! Flags that several commands understand, and how their values are read.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum, ValueHint};

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
    pub fault: Option<PathBuf>,
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
    /// No pace, but what stands for a flag without a value: see `run --layers`.
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
/// What becomes of the answers of `run` and `batch`.
#[derive(Args, Debug)]
pub struct AnswerArgs {
    /// Write every output as .npy into this folder
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub output: Option<PathBuf>,
    /// Print the K largest values of every output
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    pub top: Option<u32>,
    /// Order on the wire
    #[arg(long, value_enum, default_value = "auto")]
    pub ordering: OrderingArg,
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

impl ImageArgs {
    /// The first of the flags that was given.
    pub fn first(&self) -> Option<&'static str> {
        let given = [
            (!self.mean.is_empty(), "--mean"),
            (!self.scale.is_empty(), "--scale"),
            (self.bgr, "--bgr"),
            (self.crop.is_some(), "--crop"),
        ];
        given.into_iter().find_map(|(given, flag)| given.then_some(flag))
    }
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

#[cfg(test)]
mod tests;
