//! `ncs2ctl`: lists, runs and measures Neural Compute Stick 2 devices, real and virtual.
//!
//! `cli` says what may be asked, made of `flags` and of what each command in `cmd` adds; `open` turns it into sticks, `cmd` does it,
//! `output` writes it.

mod answers;
mod aside;
mod bench;
mod capture;
mod check;
mod cli;
mod cmd;
mod config;
mod doctor;
mod failure;
mod fallback;
mod flags;
mod folders;
mod heat;
mod in_turn;
mod interrupt;
mod metrics;
mod onnx;
mod open;
mod output;
#[cfg(feature = "openvino")]
mod reference_libraries;
mod selftest;
mod stats;
mod tensor;
mod timeline;
mod top;
mod trace;
mod vendor_compiler;
mod warm;
mod wheel;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::error::ErrorKind as ClapKind;
use clap::{CommandFactory, FromArgMatches};

use cli::{BlobCommand, Cli, Command};
use failure::Failure;
use flags::{ColorArg, OrderingArg};
use output::Output;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let file = match config::find(&args) {
        Ok(file) => file,
        Err(failure) => {
            let json = args.iter().skip(1).take_while(|a| *a != "--").any(|a| a == "--json");
            let command = args.iter().skip(1).filter_map(|a| a.to_str());
            return ExitCode::from(Output::bare(json, schema_of(command)).failure(&failure));
        }
    };
    let (mut cli, matches) = match parse(&args, &file) {
        Ok(parsed) => parsed,
        Err(error) => return ExitCode::from(refuse(&error, &args, &file)),
    };
    cli.global.file = file;
    log_to_stderr(cli.global.verbose, cli.global.color);
    if let Some(ordering) = cli.command.ordering()
        && *ordering == OrderingArg::Auto
    {
        *ordering = selftest::proven::of_run(&cli.global).ordering();
    }
    let output = Output::new(&cli.global, cli.command.schema());
    let refused = cli.command.refuse_trace(&cli.global).or_else(|| cli.command.refuse_layers(&cli.global));
    if let Some(failure) = refused {
        return ExitCode::from(output.failure(&failure));
    }
    let result = match &cli.command {
        Command::List => cmd::list::list(&cli.global, &output),
        Command::Info => cmd::info::info(&cli.global, &output),
        Command::Doctor(_) => cmd::doctor::doctor(&cli.global, &output),
        Command::Boot(args) => cmd::boot::boot(&cli.global, &output, args),
        Command::Reset(args) => cmd::boot::reset(&cli.global, &output, args),
        Command::Blob { command: BlobCommand::Info { file, layers } } => {
            cmd::blob::info(&cli.global, &output, file, *layers)
        }
        Command::Run(args) => cmd::run::run(&cli.global, &output, args),
        Command::Batch(args) => cmd::batch::batch(&cli.global, &output, args),
        Command::Bench(args) => cmd::bench::bench(&cli.global, &output, args),
        Command::Compile(args) => cmd::compile::compile(&cli.global, &output, args),
        Command::Check(args) => cmd::check::check(&cli.global, &output, args),
        Command::Quantize(args) => cmd::quantize::quantize(&cli.global, &output, args),
        Command::Setup(args) => cmd::setup::setup(&cli.global, &output, args),
        Command::Thermal(args) => cmd::thermal::thermal(&cli.global, &output, args),
        Command::Top(args) => cmd::top::top(&cli.global, &output, args),
        Command::Config(_) => cmd::config::config(&output, &cli::definition(), &matches, &cli.global),
        Command::Firmware { command } => cmd::firmware::firmware(&cli.global, &output, command),
        Command::Udev { command } => cmd::udev::udev(&output, command),
        Command::Selftest(args) => cmd::selftest::selftest(&cli.global, &output, args),
        Command::Sim { command } => cmd::sim::sim(&cli.global, &output, command),
        Command::Decode(args) => cmd::decode::decode(&output, args),
        Command::Trace(args) => cmd::trace::trace(&output, args),
        Command::Completions { shell } => cmd::completions::completions(&output, cli::definition(), *shell),
        Command::Man { output: folder } => cmd::man::man(&output, cli::definition(), folder.as_deref()),
    };
    ExitCode::from(match result {
        Ok(outcome) => output::exit_code(outcome),
        Err(failure) => output.failure(&failure),
    })
}

impl Command {
    /// What the schema of its documents is called.
    fn schema(&self) -> &'static str {
        match self {
            Command::List => "list",
            Command::Info => "info",
            Command::Doctor(_) => "doctor",
            Command::Boot(_) => "boot",
            Command::Reset(_) => "reset",
            Command::Blob { command: BlobCommand::Info { .. } } => "blob-info",
            Command::Run(_) => "run",
            Command::Batch(_) => "batch",
            Command::Bench(_) => "bench",
            Command::Compile(_) => "compile",
            Command::Check(_) => "check",
            Command::Quantize(_) => "quantize",
            Command::Setup(_) => "setup",
            Command::Thermal(_) => "thermal",
            Command::Top(_) => "top",
            Command::Config(_) => "config",
            Command::Firmware { .. } => "firmware",
            Command::Udev { .. } => "udev",
            Command::Selftest(_) => "selftest",
            Command::Sim { .. } => "sim",
            Command::Decode(_) => "decode",
            Command::Trace(_) => "trace",
            Command::Completions { .. } => "completions",
            Command::Man { .. } => "man",
        }
    }
}

impl Command {
    /// Where the command has one.
    fn ordering(&mut self) -> Option<&mut OrderingArg> {
        match self {
            Command::Run(args) => Some(&mut args.answers.ordering),
            Command::Batch(args) => Some(&mut args.answers.ordering),
            Command::Bench(args) => Some(&mut args.ordering),
            Command::Check(args) => Some(&mut args.ordering),
            _ => None,
        }
    }

    /// `--timing` without a value asks for a table that only `run` has.
    fn refuse_layers(&self, global: &flags::Global) -> Option<Failure> {
        let asked = global.timing == Some(flags::TimingArg::Layers) && !matches!(self, Command::Run(_));
        asked.then(|| {
            Failure::usage(
                format!("--timing: expected model or zero beside {}, found no value", self.schema()),
                "give one; without a value it is for `run`",
            )
        })
    }

    /// A trace of a command that opens no stick would be empty: asked for, it is refused.
    fn refuse_trace(&self, global: &flags::Global) -> Option<Failure> {
        let opens = matches!(
            self,
            Command::Info
                | Command::Run(_)
                | Command::Batch(_)
                | Command::Check(_)
                | Command::Bench(_)
                | Command::Thermal(_)
                | Command::Top(_)
        );
        (global.trace.is_some() && !opens).then(|| {
            Failure::usage(
                format!("--trace: expected a command that opens sticks, found {}", self.schema()),
                "leave it out",
            )
        })
    }
}

fn parse(args: &[OsString], file: &config::File) -> Result<(Cli, clap::ArgMatches), clap::Error> {
    // clap colours its own help and errors before any flag is read, so this one is looked for by hand.
    let never = args.iter().zip(args.iter().skip(1)).any(|(a, b)| a == "--color" && b == "never")
        || args.iter().any(|a| a == "--color=never");
    let command = config::apply(Cli::command(), file, args).color(if never {
        clap::ColorChoice::Never
    } else {
        clap::ColorChoice::Auto
    });
    let matches = command.try_get_matches_from(args)?;
    Ok((Cli::from_arg_matches(&matches)?, matches))
}

/// Shows help, version or a usage error; gives the exit code.
fn refuse(error: &clap::Error, args: &[OsString], file: &config::File) -> u8 {
    match error.kind() {
        // Asked for: stdout, 0. A closed pipe is the reader's choice.
        ClapKind::DisplayHelp | ClapKind::DisplayVersion => {
            let _ = error.print();
            return failure::exit::OK;
        }
        _ => {}
    }
    let json = args.iter().skip(1).take_while(|a| *a != "--").any(|a| a == "--json");
    // Where a variable stands for a flag, clap no longer takes the command line for an empty one.
    let missing = matches!(
        error.kind(),
        ClapKind::DisplayHelpOnMissingArgumentOrSubcommand | ClapKind::MissingSubcommand
    );
    if missing && !json {
        let _ = write!(io::stderr(), "{}", help_of(args));
        return failure::exit::USAGE;
    }
    let words = args.iter().skip(1).filter_map(|a| a.to_str());
    let schema = schema_of(words);
    let help = match schema {
        "blob-info" => "see `ncs2ctl blob --help`".to_owned(),
        "error" => "see `ncs2ctl --help`".to_owned(),
        name => format!("see `ncs2ctl {name} --help`"),
    };
    let message = if missing {
        "expected a command, found none".to_owned()
    } else {
        let from = config::origin(error, args, file).map_or(String::new(), |from| format!(", from {from}"));
        cli::said(error) + &from
    };
    Output::bare(json, schema).failure(&Failure::usage(message, help))
}

/// The help of the command that is named last.
fn help_of(args: &[OsString]) -> clap::builder::StyledStr {
    let mut whole = Cli::command();
    whole.build();
    let mut command = &mut whole;
    for word in args.iter().skip(1).filter_map(|a| a.to_str()) {
        if command.find_subcommand(word).is_some() {
            command = command.find_subcommand_mut(word).expect("it was just there");
        }
    }
    command.render_help()
}

/// The schema of a command line that was not understood: that of the first word that is a command.
fn schema_of<'a>(mut words: impl Iterator<Item = &'a str>) -> &'a str {
    let definition = Cli::command();
    match words.find(|a| definition.get_subcommands().any(|c| c.get_name() == *a)) {
        Some("blob") => "blob-info",
        Some(name) => name,
        None => "error",
    }
}

fn log_to_stderr(verbose: u8, color: ColorArg) {
    use tracing_subscriber::filter::LevelFilter;
    let level = match verbose {
        0 => LevelFilter::ERROR,
        1 => LevelFilter::INFO,
        2 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(output::colored(color, io::stderr().is_terminal()))
        .with_writer(io::stderr)
        .init();
}
