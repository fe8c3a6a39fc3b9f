//! `ncs2ctl top`

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueHint};
use ncs2::blob::Blob;
use ncs2::runtime::LoadOptions;
use ncs2::sched::Policy;
use ncs2::{ErrorKind, Graph};
use ncs2_device::Timing;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;

use crate::bench::load::{Load, Plan};
use crate::failure::{Failure, Outcome, Result};
use crate::flags::{Global, positive_duration};
use crate::interrupt::Interrupt;
use crate::open::Opened;
use crate::output::Output;
use crate::stats::Source;
use crate::tensor::input;
use crate::top::report;
use crate::top::screen::{Means, draw};
use crate::top::view::{Fleet, Row, Sort, Totals, View};

/// Different inputs of the load.
const INPUTS: usize = 4;
/// Longest wait for a key before a signal is looked for.
const SLICE: Duration = Duration::from_millis(100);

/// `top`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl top                               # beside a program that uses the sticks
  ncs2ctl --sim 3 top net.blob              # a load of its own, on virtual sticks
  ncs2ctl top --once --json | jq .totals

Shows what other processes of this user do with the sticks: each fleet tells its statistics at a socket in
the runtime folder ($XDG_RUNTIME_DIR/ncs2), unless stats_socket = false. Sticks that nobody holds are opened.
Keys: q quits, s sorts, r reverses, p pauses, o changes the policy, up and down scroll.")]
pub struct TopArgs {
    /// Load the sticks with this network and random inputs
    #[arg(value_name = "BLOB", value_hint = ValueHint::FilePath)]
    pub blob: Option<PathBuf>,
    /// Print one look instead of the live view
    #[arg(long)]
    pub once: bool,
    /// Time between two looks
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = positive_duration)]
    pub interval: Duration,
    /// What decides the order of the sticks
    #[arg(long, value_enum, default_value = "id")]
    pub sort: Sort,
    /// Of the sticks that this process has open, rather than all that there are
    #[arg(long, value_name = "PID", conflicts_with = "blob")]
    pub attach: Option<u32>,
}

#[derive(Serialize)]
struct Body<'a> {
    simulated: bool,
    fleets: &'a [Fleet],
    totals: &'a Totals,
    devices: &'a [Row],
}

/// Shows the sticks until the user has seen enough.
pub fn top(global: &Global, output: &Output, args: &TopArgs) -> Result<Outcome> {
    let once = args.once || output.is_json();
    let terminal = io::stdout().is_terminal() && io::stdin().is_terminal();
    if !once && !terminal {
        return Err(Failure::usage(
            "top: expected a terminal, found none",
            "use `top --once`, or `thermal watch` for lines",
        ));
    }
    let blob = args.blob.as_deref().map(Blob::open).transpose()?;
    let interrupt = Interrupt::install()?;
    let mut source = Source::find(global, output, args.attach)?;
    let mut view = View::new(source.opened().is_some(), args.sort);
    let work = match (&blob, source.opened()) {
        (None, _) => None,
        (Some(blob), Some(opened)) => Some(Work::start(opened, blob, output)?),
        (Some(_), None) => {
            return Err(Failure::new(
                ErrorKind::InUse,
                "another process has the sticks open, so they cannot be loaded from here",
                "leave the network out to look at what that process does, or use --sim N",
            ));
        }
    };
    let looked = if once {
        one_look(&mut source, &mut view, args.interval, &interrupt).and_then(|()| print(output, &view))
    } else {
        let means = Means { utf8: output.glyph("u", "a") == "u", color: output.is_colored() };
        live(&mut source, &mut view, args.interval, &interrupt, work.as_ref(), means)
    };
    let ended = work.map_or(Ok(()), Work::finish);
    let closed = source.close(output);
    looked.and(ended).and(closed)?;
    Ok(Outcome::Ok)
}

/// A load of our own.
struct Work {
    load: Load,
    _graph: Graph,
}

impl Work {
    fn start(opened: &Opened, blob: &Blob, output: &Output) -> Result<Work> {
        let spinner = output.spinner(&format!("loading {}", blob.name()));
        let options = LoadOptions::default();
        let sticks = opened.fleet.sticks().count();
        let in_flight = sticks * (options.depth * options.instances) as usize;
        let graph = opened.fleet.load(blob, options)?;
        spinner.finish_and_clear();
        let inputs = input::random(blob.graph(), 0, INPUTS);
        let plan = Plan { inputs, references: None, in_flight, batch: 1, rate: None };
        let load = Load::start(vec![(graph.clone(), plan)], None).map_err(|e| {
            Failure::new(
                ErrorKind::OutOfMemory,
                format!("the load's threads: {e}"),
                "raise the limit of threads",
            )
        })?;
        Ok(Work { load, _graph: graph })
    }

    /// Waits for what is in flight; an error when no stick took the work any more.
    fn finish(self) -> Result {
        let alive = self.load.is_alive();
        let first = self.load.finish().into_iter().find_map(|served| served.tally.error);
        match first {
            Some(error) if !alive => Err(error.into()),
            _ => Ok(()),
        }
    }
}

fn look(source: &mut Source, view: &mut View, fresh: bool) -> Result {
    let snapshots = source.look(fresh)?;
    view.no_tops = source.opened().and_then(|opened| {
        let zero = opened.simulation.as_ref().is_some_and(|s| s.timing == Timing::Zero);
        let late = opened.paced() == Some(false);
        zero.then_some("timing zero is the speed of this computer")
            .or_else(|| late.then_some("this computer does not keep the pace of the model"))
    });
    view.handle_look(snapshots);
    Ok(())
}

/// Rates need two looks.
fn one_look(source: &mut Source, view: &mut View, interval: Duration, interrupt: &Interrupt) -> Result {
    look(source, view, true)?;
    let _ = interrupt.channel().recv_timeout(interval);
    look(source, view, false)
}

fn print(output: &Output, view: &View) -> Result {
    if output.is_json() {
        let View { simulated, fleets, totals, rows, .. } = view;
        return output.document(&Body { simulated: *simulated, fleets, totals, devices: rows });
    }
    output.prose(&report::text(output, view))
}

fn live(
    source: &mut Source,
    view: &mut View,
    interval: Duration,
    interrupt: &Interrupt,
    work: Option<&Work>,
    means: Means,
) -> Result {
    look(source, view, true)?;
    full_screen(interrupt, |terminal| show(terminal, source, view, interval, interrupt, work, means))
}

/// Lends the whole terminal to `body`, and gives it back on every way out: a panic hook does it before the panic is told.
fn full_screen(interrupt: &Interrupt, body: impl FnOnce(&mut DefaultTerminal) -> Result) -> Result {
    let mut terminal = ratatui::try_init().map_err(no_terminal)?;
    interrupt.restores_terminal();
    let ended = body(&mut terminal);
    ratatui::restore();
    ended
}

fn show(
    terminal: &mut DefaultTerminal,
    source: &mut Source,
    view: &mut View,
    interval: Duration,
    interrupt: &Interrupt,
    work: Option<&Work>,
    means: Means,
) -> Result {
    let mut next = Instant::now() + interval;
    loop {
        terminal.draw(|frame| draw(frame, view, means)).map_err(no_terminal)?;
        let wait = next.saturating_duration_since(Instant::now()).min(SLICE);
        if is_heard(wait).map_err(no_terminal)? {
            view.remark = None;
            if let Event::Key(key) = event::read().map_err(no_terminal)?
                && key.kind == KeyEventKind::Press
                && !pressed(view, source, key)
            {
                return Ok(());
            }
        }
        if interrupt.is_pressed() || work.is_some_and(|work| !work.load.is_alive()) {
            return Ok(());
        }
        if Instant::now() >= next {
            next = Instant::now() + interval;
            if view.paused {
                // Kept short, so that nothing piles up in another process's socket.
                source.look(false)?;
            } else {
                look(source, view, false)?;
            }
        }
    }
}

/// Whether the terminal says something within the time. The kernel is asked first, since crossterm never comes back from a
/// terminal that is gone.
fn is_heard(wait: Duration) -> io::Result<bool> {
    wait_for_terminal(Duration::ZERO)?;
    if event::poll(Duration::ZERO)? {
        return Ok(true);
    }
    wait_for_terminal(wait)?;
    event::poll(Duration::ZERO)
}

/// Until it says something, a signal came (a new size), or the time is over; an error when it is gone.
fn wait_for_terminal(wait: Duration) -> io::Result<()> {
    let stdin = io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let limit = Timespec::try_from(wait).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it was closed"));
    }
    Ok(())
}

/// Does what a key says; false to quit.
fn pressed(view: &mut View, source: &Source, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('s') => view.sort_by(view.sort.next(), view.reverse),
        KeyCode::Char('r') => view.sort_by(view.sort, !view.reverse),
        KeyCode::Char('p' | ' ') => view.paused = !view.paused,
        KeyCode::Char('o') => {
            view.remark = Some(match source.opened() {
                Some(opened) => {
                    let policy = next_policy(opened.fleet.stats().policy);
                    opened.fleet.set_policy(policy);
                    format!("the policy is {} from now on", policy.as_str())
                }
                None => "the policy is that of the process that has the sticks open".to_owned(),
            });
        }
        KeyCode::Down => view.offset = (view.offset + 1).min(view.rows.len().saturating_sub(1)),
        KeyCode::Up => view.offset = view.offset.saturating_sub(1),
        _ => {}
    }
    true
}

fn next_policy(policy: Policy) -> Policy {
    let at = Policy::ALL.iter().position(|p| *p == policy).unwrap_or(0);
    Policy::ALL[(at + 1) % Policy::ALL.len()]
}

fn no_terminal(error: io::Error) -> Failure {
    Failure::new(ErrorKind::Unsupported, format!("the terminal cannot be used: {error}"), "use `top --once`")
}

#[cfg(test)]
mod tests;
