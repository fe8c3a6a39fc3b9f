//! Where counters come from: sticks that we open, or fleets of other processes that tell theirs.

use std::io;
use std::time::Duration;

use ncs2::ErrorKind;
use ncs2::runtime::FleetConfig;
use ncs2::runtime::stats_socket::{self, StatsReader};
use ncs2::transport::usb::discover::{self, FoundState};
use ncs2_device::Engine;

use super::Snapshot;
use crate::failure::{Failure, Result};
use crate::flags::Global;
use crate::open::{Opened, Sticks};
use crate::output::Output;

/// A stick that has not told its temperature by then is shown without.
const TELEMETRY: Duration = Duration::from_secs(3);

/// One or the other.
pub enum Source {
    /// Opened by us.
    Own(Box<Opened>),
    /// Of other processes.
    Others(Vec<Other>),
}

/// A fleet of another process.
pub struct Other {
    reader: StatsReader,
    /// Sticks to show; all when empty.
    device: Vec<String>,
    /// What it said when it was found.
    first: Option<Snapshot>,
}

impl Source {
    /// With `--sim`: those sticks, ours. Else the fleets of other processes that hold sticks of this machine; else the
    /// sticks themselves, where nobody holds them; and on a machine without sticks the fleets of virtual ones that other
    /// processes of this user have open. `attach` chooses a process.
    pub fn find(global: &Global, output: &Output, attach: Option<u32>) -> Result<Source> {
        if global.sim.is_some() {
            if attach.is_some() {
                return Err(Failure::usage(
                    "--attach: expected no --sim beside it, found one",
                    "choose one of the two",
                ));
            }
            return Self::own(global, output);
        }
        let mut others: Vec<Other> = stats_socket::readers()
            .into_iter()
            .filter_map(|reader| {
                let mut other = Other { reader, device: global.device.clone(), first: None };
                other.first = other.next().ok();
                other.first.is_some().then_some(other)
            })
            .collect();
        if let Some(pid) = attach {
            others.retain(|other| other.pid() == Some(pid));
            return Self::others(others).ok_or_else(|| {
                Failure::new(
                    ErrorKind::NotFound,
                    format!(
                        "process {pid}: expected it to hold sticks and tell their statistics, it does not"
                    ),
                    "see `ncs2ctl doctor`; stats_socket = false turns that off",
                )
            });
        }
        let found = discover::list()?;
        let wanted = |id: &str| global.device.is_empty() || global.device.iter().any(|d| d == id);
        let found: Vec<_> = found.into_iter().filter(|stick| wanted(stick.id.as_str())).collect();
        if found.is_empty() {
            return match Self::others(others) {
                Some(source) => Ok(source),
                // The one place that says what to do without a stick.
                None => Self::own(global, output),
            };
        }
        others.retain(|other| {
            let sticks = other.first.iter().flat_map(|s| &s.sticks);
            sticks.into_iter().any(|s| found.iter().any(|f| f.id.as_str() == s.id && !s.simulated))
        });
        if let Some(source) = Self::others(others) {
            return Ok(source);
        }
        if let Some(busy) = found.iter().find(|stick| stick.state == FoundState::Busy) {
            let owner = discover::owner(busy).unwrap_or_else(|| "another process".into());
            return Err(Failure::new(
                ErrorKind::InUse,
                format!("{}: held by {owner}, which tells no statistics", busy.id),
                "ask that program, end it, or let it run with stats_socket on and as the same user",
            ));
        }
        Self::own(global, output)
    }

    fn own(global: &Global, output: &Output) -> Result<Source> {
        let sticks = Sticks::find(global, Engine::Hash)?;
        let spinner = output.spinner("opening");
        let opened = sticks.open(FleetConfig::default())?;
        spinner.finish_and_clear();
        Ok(Source::Own(Box::new(opened)))
    }

    fn others(others: Vec<Other>) -> Option<Source> {
        (!others.is_empty()).then_some(Source::Others(others))
    }

    /// The fleet, where it is ours.
    pub fn opened(&self) -> Option<&Opened> {
        match self {
            Source::Own(opened) => Some(opened),
            Source::Others(_) => None,
        }
    }

    /// What all fleets say now. Those of other processes that were closed meanwhile are left out.
    /// `fresh` asks our own sticks for their temperature first, which may take a while; else it is a second old at most.
    ///
    /// # Errors
    /// `Closed` when the last one is gone.
    pub fn look(&mut self, fresh: bool) -> Result<Vec<Snapshot>> {
        match self {
            Source::Own(opened) => {
                if fresh
                    && let Err(error) = opened.fleet.refresh_telemetry(TELEMETRY)
                    && error.kind() != ErrorKind::Timeout
                {
                    // A silent sensor shows as unknown; a closed fleet is the end.
                    return Err(error.into());
                }
                let document = opened.fleet.stats_document();
                Ok(vec![Snapshot::read(&document).expect("the library's own document has what we read")])
            }
            Source::Others(others) => {
                let mut snapshots = Vec::new();
                others.retain_mut(|other| {
                    let first = other.first.take();
                    let next = first.map_or_else(|| other.next(), Ok);
                    next.map(|snapshot| snapshots.push(snapshot)).is_ok()
                });
                if snapshots.is_empty() {
                    return Err(Failure::new(
                        ErrorKind::Closed,
                        "the process that held the sticks closed them",
                        "run it again to look at the sticks themselves",
                    ));
                }
                Ok(snapshots)
            }
        }
    }

    /// Closes what is ours.
    pub fn close(self, output: &Output) -> Result {
        match self {
            Source::Own(opened) => opened.close(output),
            Source::Others(_) => Ok(()),
        }
    }
}

impl Other {
    fn pid(&self) -> Option<u32> {
        self.first.as_ref().map(|s| s.process.pid)
    }

    fn next(&mut self) -> io::Result<Snapshot> {
        let mut snapshot = Snapshot::read(&self.reader.next()?)?;
        if !self.device.is_empty() {
            snapshot.sticks.retain(|stick| self.device.contains(&stick.id));
        }
        if snapshot.sticks.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(snapshot) }
    }
}

/// What a stick is called among those of all fleets: `sim0`, or `sim0@123` where another process has one of that name.
pub fn name_of(snapshots: &[Snapshot], fleet: usize, stick: &str) -> String {
    let same = snapshots.iter().flat_map(|s| &s.sticks).filter(|s| s.id == stick).count();
    if same > 1 { format!("{stick}@{}", snapshots[fleet].process.pid) } else { stick.to_owned() }
}
