//! All commands and flags, each from where it is done; help, completions and man pages are all made from this.

use std::path::PathBuf;

use clap::{CommandFactory, Parser, Subcommand, ValueHint};

use crate::bench::flags::BenchArgs;
use crate::cmd;
use crate::flags::Global;

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
    Doctor(cmd::doctor::DoctorArgs),
    /// Loads the firmware into the sticks, at the same time
    Boot(cmd::boot::BootArgs),
    /// Brings sticks back to their boot ROM
    Reset(cmd::boot::ResetArgs),
    /// Looks into compiled graphs
    #[command(
        subcommand_required = true,
        arg_required_else_help = true,
        after_help = "\
Examples:
  ncs2ctl blob info net.blob"
    )]
    Blob {
        /// What to do.
        #[command(subcommand)]
        command: BlobCommand,
    },
    /// Runs a network on files
    Run(Box<cmd::run::RunArgs>),
    /// Runs one inference for each line of a file, and prints a line for each
    Batch(cmd::batch::BatchArgs),
    /// Measures speed, latency and share of peak
    Bench(Box<BenchArgs>),
    /// Compiles a model for the stick with the vendor's compiler; needs no stick
    Compile(Box<cmd::compile::CompileArgs>),
    /// Compares answers of the sticks with the model on the CPU
    Check(Box<cmd::check::CheckArgs>),
    /// Shows what INT8 and byte inputs cost and gain on this chip
    Quantize(Box<cmd::quantize::QuantizeArgs>),
    /// Sets up what some commands need
    #[command(
        subcommand_required = true,
        arg_required_else_help = true,
        after_help = "\
Examples:
  ncs2ctl setup openvino"
    )]
    Setup(cmd::setup::SetupArgs),
    /// Prints temperatures, levels and what is left until the sticks slow down
    Thermal(cmd::thermal::ThermalArgs),
    /// Shows speed, temperature and memory of every stick, live
    Top(cmd::top::TopArgs),
    /// Prints the defaults in force and where each came from
    Config(cmd::config::ConfigArgs),
    /// Finds and checks the vendor's firmware file
    #[command(
        subcommand_required = true,
        arg_required_else_help = true,
        after_help = "\
Examples:
  ncs2ctl firmware list
  ncs2ctl firmware install openvino-2021.4.2-*.whl"
    )]
    Firmware {
        /// What to do.
        #[command(subcommand)]
        command: cmd::firmware::FirmwareCommand,
    },
    /// Lets users reach the sticks
    #[command(
        subcommand_required = true,
        arg_required_else_help = true,
        after_help = "\
Examples:
  ncs2ctl udev print
  sudo ncs2ctl udev install"
    )]
    Udev {
        /// What to do.
        #[command(subcommand)]
        command: cmd::udev::UdevCommand,
    },
    /// Exercises a stick step by step and writes a report that can be sent back
    Selftest(cmd::selftest::SelftestArgs),
    /// Virtual sticks for other processes and kernels, and how well their timing fits
    #[command(
        subcommand_required = true,
        arg_required_else_help = true,
        after_help = "\
Examples:
  ncs2ctl sim serve --socket /tmp/sticks --sticks 2
  ncs2ctl --sim unix:/tmp/sticks list"
    )]
    Sim {
        /// What to do.
        #[command(subcommand)]
        command: cmd::sim::SimCommand,
    },
    /// Prints a capture of transfers that --trace wrote, or Wireshark; needs no stick
    Decode(cmd::decode::DecodeArgs),
    /// Prints what the stages of a timeline took that `bench --trace-out` wrote; needs no stick
    Trace(cmd::trace::TraceArgs),
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

/// The whole definition, for completions and man pages.
pub fn definition() -> clap::Command {
    Cli::command()
}

/// What clap has to say, without its usage and its pointer to the help: errors are one line here.
pub fn said(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text
        .split("\n\n")
        .map(str::trim)
        .filter(|part| !part.starts_with("Usage:") && !part.starts_with("For more information"));
    let words = said.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
    words.trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests;
