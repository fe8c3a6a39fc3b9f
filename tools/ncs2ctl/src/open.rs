//! `--sim`, `--device` and their companions become sticks, and sticks a fleet. The one place that knows `Rack`.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use ncs2::runtime::{FleetBuilder, FleetConfig, StickState, StickStats};
use ncs2::sched::{Guards, HeatConfig};
use ncs2::transport::usb::discover::FoundState;
use ncs2::transport::usb::watch::Watch;
use ncs2::transport::usb::{boot, discover};
use ncs2::transport::{GiveUp, MemoryKind};
use ncs2::wire::{DdrType, FirmwarePatches};
use ncs2::{ErrorKind, Fleet, Port, StickId};
use ncs2_device::face;
use ncs2_device::{Engine, FaultPlan, Profile, Rack, RackOptions, Timing};

use crate::config;
use crate::failure::{Failure, Result, one_line};
use crate::flags::{EngineArg, Global, Sim, TimingArg, WireArg};
use crate::heat;
use crate::interrupt;
use crate::output::Output;
use crate::selftest::proven;
use crate::trace::Trace;
use crate::warm;

/// Built-in profile of `--sim N`.
const DEFAULT_PROFILE: &str = "ncs2";
/// Time for jobs in flight to end when a command is done with the sticks.
const DRAIN: Duration = Duration::from_secs(10);

/// Time for sticks to open or give up after Ctrl-C.
const OPEN_GRACE: Duration = Duration::from_secs(2);

/// How long a closed stick may take to its boot ROM (how long a real one takes is unverified).
const RETURN: Duration = Duration::from_secs(3);

/// How the virtual sticks of this run behave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Simulation {
    /// Profile name.
    pub profile: String,
    /// What outputs are made of.
    pub engine: Engine,
    /// How long things take.
    pub timing: Timing,
}

impl Simulation {
    /// As JSON has it.
    pub fn engine_str(&self) -> &'static str {
        self.engine.as_str()
    }

    /// As JSON has it.
    pub fn timing_str(&self) -> &'static str {
        self.timing.as_str()
    }

    /// `simulated: profile ncs2, engine hash, timing model`.
    pub fn describe(&self) -> String {
        format!(
            "simulated: profile {}, engine {}, timing {}",
            self.profile,
            self.engine_str(),
            self.timing_str()
        )
    }
}

/// A stick that was found, not opened.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Name.
    pub id: StickId,
    /// `unbooted`, `booted`, `ours`, `busy`, `unsupported`; of a server's also `away`, between two of these.
    pub state: &'static str,
    /// Mb/s; `None` where there is no bus or the kernel does not say.
    pub usb_speed_mbps: Option<u32>,
    /// What it is, in words.
    pub product: String,
    /// Port numbers from the root hub.
    pub ports: Vec<u8>,
    /// A virtual one.
    pub simulated: bool,
}

/// What is behind the ports.
pub enum Models {
    /// USB.
    None,
    /// Virtual sticks of this process, alive as long as this is.
    Rack(Rack),
    /// Those of a server.
    Served(PathBuf),
}

/// The sticks that this run may use, not opened yet.
pub struct Sticks {
    models: Models,
    ports: Vec<Port>,
    simulation: Option<Simulation>,
    /// Of real sticks, where a report has proven them.
    guards: Guards,
    wishes: Wishes,
}

/// What the flags ask of a fleet, whatever its sticks are.
struct Wishes {
    trace: Option<PathBuf>,
    stats_socket: bool,
    allow_custom: bool,
    on_warm: Option<String>,
    warm_at_c: f64,
}

impl Wishes {
    fn of(global: &Global) -> Self {
        Wishes {
            trace: global.trace.clone(),
            stats_socket: global.stats_socket,
            allow_custom: global.allow_custom,
            on_warm: global.on_warm.clone(),
            warm_at_c: global.warm_at,
        }
    }
}

/// Opened sticks.
pub struct Opened {
    /// All of them as one.
    pub fleet: Fleet,
    /// Set for virtual ones.
    pub simulation: Option<Simulation>,
    models: Models,
    trace: Option<Trace>,
}

/// Finds every stick without opening any.
pub fn list(global: &Global) -> Result<Vec<Listed>> {
    let virtual_one = |id: StickId, state, profile: &str| Listed {
        id,
        state,
        usb_speed_mbps: None,
        product: format!("virtual NCS2, profile {}", one_line(profile)),
        ports: Vec::new(),
        simulated: true,
    };
    if let Some(Sim::Server(path)) = &global.sim {
        // Checks the flags, too.
        let ports = Sticks::find(global, Engine::Hash)?.ports;
        let all = face::status(path)?;
        let wanted = |id: &StickId| ports.iter().any(|port| port.id() == id);
        let sticks = all.iter().enumerate().map(|(n, stick)| (StickId::sim(n), stick));
        return Ok(sticks
            // What is in no port is in no list.
            .filter(|(id, stick)| stick.plugged && wanted(id))
            .map(|(id, stick)| {
                let state = if stick.connected { "busy" } else { stick.state() };
                virtual_one(id, state, &stick.profile)
            })
            .collect());
    }
    if global.sim.is_some() {
        let sticks = Sticks::find(global, Engine::Hash)?;
        let profile = sticks.profile().unwrap_or_default();
        return Ok(sticks.ids().map(|id| virtual_one(id.clone(), "unbooted", &profile)).collect());
    }
    refuse_without_sim(global)?;
    let mut found: Vec<Listed> = discover::list()?
        .into_iter()
        .map(|stick| Listed {
            state: stick.state.as_str(),
            usb_speed_mbps: Some(stick.speed_mbps).filter(|&s| s > 0),
            product: product(stick.product_id),
            ports: stick.ports,
            simulated: false,
            id: stick.id,
        })
        .collect();
    if !global.device.is_empty() {
        found.retain(|stick| global.device.iter().any(|id| id == stick.id.as_str()));
    }
    Ok(found)
}

fn product(id: u16) -> String {
    match id {
        discover::PRODUCT_UNBOOTED => "Neural Compute Stick 2 (Myriad X)".into(),
        id if discover::PRODUCT_BOOTED.contains(&id) => "Neural Compute Stick 2 (Myriad X), booted".into(),
        discover::PRODUCT_MYRIAD_2 => "Neural Compute Stick 1 (Myriad 2)".into(),
        id => format!("Movidius {id:04x}"),
    }
}

impl Sticks {
    /// The sticks that the flags name. `engine` is what virtual ones compute unless a flag says otherwise.
    pub fn find(global: &Global, engine: Engine) -> Result<Self> {
        match &global.sim {
            Some(Sim::Server(path)) => Self::served(global, path),
            Some(Sim::Rack { sticks, profile }) => {
                Self::simulated(global, *sticks, profile.as_deref(), engine)
            }
            None => {
                refuse_without_sim(global)?;
                Self::real(global)
            }
        }
    }

    fn simulated(global: &Global, sticks: usize, profile: Option<&str>, engine: Engine) -> Result<Self> {
        let faults = global.fault.as_deref().map(fault_plan).transpose()?;
        let simulation = Simulation {
            profile: profile.unwrap_or(DEFAULT_PROFILE).to_owned(),
            engine: match global.engine {
                Some(EngineArg::Execute) => Engine::Execute,
                Some(EngineArg::Hash) => Engine::Hash,
                None => engine,
            },
            timing: match global.timing {
                Some(TimingArg::Model) => Timing::Model,
                Some(TimingArg::Zero) => Timing::Zero,
                Some(TimingArg::Layers) | None => Timing::default(),
            },
        };
        load_profile(&simulation.profile)?;
        let options = RackOptions {
            sticks,
            profile: simulation.profile.clone(),
            engine: simulation.engine,
            timing: simulation.timing,
            seed: 0,
            faults,
        };
        let rack = Rack::start(options).map_err(refused_plan)?;
        let ports = select(rack.ports(), &global.device)?;
        Ok(Sticks {
            models: Models::Rack(rack),
            ports,
            simulation: Some(simulation),
            guards: Guards::Reported,
            wishes: Wishes::of(global),
        })
    }

    /// Sticks of a running `ncs2ctl sim serve`: it decides how they behave.
    fn served(global: &Global, path: &Path) -> Result<Self> {
        let flag = |set: bool, key: &str| set && !config::is_standing(&global.file, key);
        let given = [
            (flag(global.engine.is_some(), "engine"), "--engine"),
            (flag(sets_pace(global), "timing"), "--timing"),
            (global.fault.is_some(), "--fault"),
        ];
        if let Some((_, flag)) = given.into_iter().find(|(given, _)| *given) {
            return Err(Failure::usage(
                format!("{flag}: expected --sim N beside it, found unix:{}", path.display()),
                format!("give {flag} to `ncs2ctl sim serve`, which makes those sticks"),
            ));
        }
        let sticks = face::status(path)?;
        let first = sticks.first().ok_or_else(|| {
            Failure::new(
                ErrorKind::NotFound,
                format!("{}: expected virtual sticks there, found none", path.display()),
                "start `ncs2ctl sim serve --socket PATH --sticks N`",
            )
        })?;
        let simulation =
            Simulation { profile: first.profile.clone(), engine: first.engine, timing: first.timing };
        let ports = select(face::ports(path)?, &global.device)?;
        Ok(Sticks {
            models: Models::Served(path.to_owned()),
            ports,
            simulation: Some(simulation),
            guards: Guards::Reported,
            wishes: Wishes::of(global),
        })
    }

    fn real(global: &Global) -> Result<Self> {
        let found = discover::list()?;
        if found.is_empty() {
            return Err(no_stick("no Neural Compute Stick 2 found on any USB bus".into()));
        }
        let known: Vec<&str> = found.iter().map(|stick| stick.id.as_str()).collect();
        if let Some(missing) = global.device.iter().find(|id| !known.contains(&id.as_str())) {
            return Err(no_stick(format!(
                "{missing}: expected a stick on this port, found {}",
                known.join(", ")
            )));
        }
        let options = boot_options(global);
        let chosen = found.into_iter().map(|stick| stick.id);
        let ports = chosen
            .filter(|id| global.device.is_empty() || global.device.iter().any(|wanted| wanted == id.as_str()))
            .map(|id| boot::port(id, options.clone()))
            .collect();
        Ok(Sticks {
            models: Models::None,
            ports,
            simulation: None,
            guards: proven::of_run(global).guards(),
            wishes: Wishes::of(global),
        })
    }

    /// Profile of virtual ones.
    pub fn profile(&self) -> Option<String> {
        self.simulation.as_ref().map(|s| s.profile.clone())
    }

    /// The ports alone, and what must live as long as they do.
    pub fn into_ports(self) -> (Models, Vec<Port>) {
        (self.models, self.ports)
    }

    /// Opens them, at the same time. Fails when none opens, and as `Cancelled` when Ctrl-C comes first.
    pub fn open(self, config: FleetConfig) -> Result<Opened> {
        // What the caller asks for; else what a profile or a report says.
        let law = self.simulation.as_ref().and_then(|s| heat::law(&s.profile));
        let known = law.as_ref().map_or(self.guards, heat::guards);
        let guards = if config.guards == Guards::Reported { known } else { config.guards };
        let Wishes { trace, stats_socket, allow_custom, on_warm, warm_at_c } = self.wishes;
        let on_warm = on_warm.map(|command| warm::hook(command, warm_at_c, self.simulation.is_some()));
        let heat = HeatConfig { warn_c: warm_at_c, ..config.heat };
        let config = FleetConfig { stats_socket, guards, allow_custom, on_warm, heat, ..config };
        let trace = trace.as_deref().map(Trace::create).transpose()?;
        let mut builder = Fleet::builder().config(config);
        let mut waits = Vec::new();
        for port in self.ports {
            waits.push(port.give_up());
            builder = builder.port(match &trace {
                Some(trace) => trace.port(port),
                None => port,
            });
        }
        let fleet = open_unless_pressed(builder, &waits)?;
        Ok(Opened { fleet, simulation: self.simulation, models: self.models, trace })
    }

    /// Their names.
    pub fn ids(&self) -> impl Iterator<Item = &StickId> {
        self.ports.iter().map(Port::id)
    }
}

impl Opened {
    /// How tensors reach the sticks: `mapped` from the kernel's own buffers, `copied` by it, `in-process` for virtual
    /// sticks of this process, `mixed`; `None` where no stick was connected.
    pub fn zero_copy(&self) -> Option<&'static str> {
        let stats = self.fleet.stats();
        let mut words = stats.sticks.iter().filter_map(|s| s.memory_kind).map(MemoryKind::as_str);
        let first = words.next()?;
        Some(if words.all(|w| w == first) { first } else { "mixed" })
    }

    /// Whether the virtual sticks kept the pace of their model; `None` for real ones.
    pub fn paced(&self) -> Option<bool> {
        match &self.models {
            Models::None => None,
            Models::Rack(rack) => Some(rack.stats().iter().all(|stick| stick.paced)),
            // A server that is gone kept no pace.
            Models::Served(path) => {
                Some(face::status(path).is_ok_and(|sticks| sticks.iter().all(|stick| stick.paced)))
            }
        }
    }

    /// Drains and closes the sticks; virtual ones stop after that. A stick that does not close well has given its answers:
    /// that is a remark. Fails when a trace is not whole. Call it after the results are written.
    pub fn close(self, output: &Output) -> Result<()> {
        let Opened { fleet, models, trace, simulation } = self;
        let ready = |s: &&StickStats| s.state == StickState::Ready && simulation.is_none();
        let real: Vec<StickId> = fleet.stats().sticks.iter().filter(ready).map(|s| s.id.clone()).collect();
        let closed = fleet.close(DRAIN);
        drop(models);
        wait_for_boot_roms(&real);
        if let Err(error) = closed {
            output.warn(&format!("closing: {error}"));
        }
        trace.map_or(Ok(()), Trace::finish)
    }
}

/// Opening takes up to half a minute of a stick that does not boot, too long to be deaf: it has a thread of its own.
fn open_unless_pressed(builder: FleetBuilder, waits: &[GiveUp]) -> Result<Fleet> {
    let (to, opened) = bounded(1);
    thread::Builder::new()
        .name("open".into())
        // Of a fleet that nobody waits for any more the sticks are closed here.
        .spawn(move || drop(to.send(builder.open())))
        .map_err(|e| {
            Failure::new(
                ErrorKind::OutOfMemory,
                format!("no thread to open sticks: {e}"),
                "end other programs",
            )
        })?;
    if let Some(opened) = interrupt::unless_pressed(&opened) {
        return Ok(opened?);
    }
    tracing::debug!("interrupted while the sticks open");
    waits.iter().for_each(GiveUp::now);
    // Those that are open by then are closed as they should be; the others are left to the system.
    drop(opened.recv_timeout(OPEN_GRACE));
    Err(Failure::interrupted(
        "interrupted while the sticks were opening: nothing was done",
        "run it again; `ncs2ctl reset` helps a stick that does not boot",
    ))
}

/// A closed stick goes back to its boot ROM and is off the bus for a moment: whoever types the next command would not find it.
fn wait_for_boot_roms(ids: &[StickId]) {
    let is_back = |id: &StickId| discover::find(id).is_some_and(|found| found.state == FoundState::Unbooted);
    let deadline = Instant::now() + RETURN;
    let Ok(mut watch) = Watch::new() else { return };
    while !ids.iter().all(is_back) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || watch.next(left).is_err() {
            tracing::info!("a closed stick is not back on the bus yet");
            return;
        }
    }
}

/// The profile of that name or path, checked.
pub fn load_profile(name: &str) -> Result<Profile> {
    const OWN: &str = "a file that begins with base = \"ncs2\": docs/virtual-stick.md says what it may hold";
    Profile::load(name).map_err(|error| match error.kind() {
        // Its message names the built-in ones.
        ErrorKind::NotFound => Failure::from(error).hint(&format!("give one of these, or {OWN}")),
        ErrorKind::InvalidInput => {
            let built_in = Profile::BUILT_IN.join(", ");
            Failure::from(error).hint(&format!("give one of {built_in}, or {OWN}"))
        }
        _ => error.into(),
    })
}

/// The plan of `--fault`.
pub fn fault_plan(path: &Path) -> Result<FaultPlan> {
    FaultPlan::load(path).map_err(refused_plan)
}

/// Why virtual sticks do not start once their profile is known to be good: of what the user gave, the plan is left.
pub fn refused_plan(error: ncs2::Error) -> Failure {
    match error.kind() {
        ErrorKind::InvalidInput => {
            Failure::from(error).hint("docs/virtual-stick.md says what a plan may hold, and shows one")
        }
        _ => error.into(),
    }
}

/// How the flags have real sticks booted.
fn boot_options(global: &Global) -> boot::BootOptions {
    boot::BootOptions {
        firmware: global.firmware.clone(),
        any_firmware: global.any_firmware,
        wire: global.wire.map(WireArg::to_library),
        // The fleet pings, so a stick whose host is gone may reset itself.
        patches: FirmwarePatches { watchdog: true, ddr: DdrType::default() },
        ..boot::BootOptions::default()
    }
}

/// These flags shape virtual sticks; on real ones they would do nothing, so they are refused.
fn refuse_without_sim(global: &Global) -> Result {
    // A default from the environment or the file waits for the day that --sim is given; a flag is meant for this run.
    let flag = |set: bool, key: &str| set && !config::is_standing(&global.file, key);
    let given = [
        (flag(global.engine.is_some(), "engine"), "--engine"),
        (flag(sets_pace(global), "timing"), "--timing"),
        (global.fault.is_some(), "--fault"),
    ];
    match given.into_iter().find(|(given, _)| *given) {
        Some((_, flag)) => {
            Err(Failure::usage(format!("{flag}: expected --sim beside it, found none"), "add --sim N"))
        }
        None => Ok(()),
    }
}

/// `--timing` with one of its two values.
fn sets_pace(global: &Global) -> bool {
    global.timing.is_some_and(|timing| timing != TimingArg::Layers)
}

fn no_stick(message: String) -> Failure {
    Failure::new(
        ErrorKind::NotFound,
        message,
        "check plug, cable, hub power and `ncs2ctl list`; or use virtual sticks with --sim N",
    )
}

/// The ports that `--device` names, in the rack's order; all without `--device`.
fn select(ports: Vec<Port>, wanted: &[String]) -> Result<Vec<Port>> {
    if wanted.is_empty() {
        return Ok(ports);
    }
    if let Some(missing) =
        wanted.iter().find(|id| !ports.iter().any(|port| port.id().as_str() == id.as_str()))
    {
        let found = match &*ports {
            [] => "none".to_owned(),
            [one] => one.id().to_string(),
            [first, .., last] => format!("{} to {}", first.id(), last.id()),
        };
        return Err(Failure::new(
            ErrorKind::NotFound,
            format!("{missing}: expected one of the virtual sticks, found {found}"),
            "see `ncs2ctl --sim N list`",
        ));
    }
    Ok(ports.into_iter().filter(|port| wanted.iter().any(|id| id == port.id().as_str())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser as _;
    use ncs2::wire::WireVersion;

    /// What a boot makes of them is tested with the library's firmware files; a real stick would be needed to see more.
    #[test]
    fn flags_of_real_sticks_reach_their_boot() {
        let options = |flags: &[&str]| {
            let words = ["ncs2ctl"].iter().chain(flags).chain(&["info"]);
            boot_options(&Cli::try_parse_from(words).expect("known flags").global)
        };
        let plain = options(&[]);
        assert_eq!((plain.wire, plain.any_firmware, plain.firmware), (None, false, None));
        assert!(plain.patches.watchdog, "a stick whose host is gone resets itself");
        assert_eq!(options(&["--wire", "v1"]).wire, Some(WireVersion::V1));
        let own = options(&["--firmware", "x.mvcmd", "--any-firmware"]);
        assert_eq!((own.wire, own.any_firmware, own.firmware), (None, true, Some("x.mvcmd".into())));
    }
}
