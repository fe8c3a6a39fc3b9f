//! Opened sticks for measurements with the same settings of the fleet.

use std::time::Duration;

use ncs2::runtime::{FleetConfig, LoadOptions, StickState};
use ncs2::transport::ReactorKind;
use ncs2::{ErrorKind, Graph, StickId};
use ncs2_device::Engine;

use super::flags::{BenchArgs, Depth, PolicyArg};
use super::levels::Setting;
use super::machine::Counters;
use super::measure::{Measured, Times, Watchers, measure};
use super::network::{self, Network};
use super::report::{Config, Context, Pinned, Report};
use crate::failure::{Failure, Result};
use crate::fallback::Cpu;
use crate::flags::{Global, OrderingArg};
use crate::interrupt::Interrupt;
use crate::metrics::{self, Server};
use crate::open::{Opened, Simulation, Sticks};
use crate::output::Output;
use crate::timeline::{About, Timeline};

/// A measurement and its report.
pub struct Run {
    /// What was counted.
    pub measured: Measured,
    /// What it comes to.
    pub report: Report,
}

impl Run {
    /// True when no more should be measured: Ctrl-C, or nobody takes requests.
    pub fn is_over(&self) -> bool {
        self.measured.interrupted || self.measured.gave_up
    }

    /// Why it is no measurement, or was cut short: taken out of it.
    pub fn trouble(&mut self) -> Option<Failure> {
        let measured = &mut self.measured;
        if measured.is_nothing() && measured.error.is_none() {
            let message = "bench: no answer came while it was measured";
            let hint = "look at the sticks with `ncs2ctl list` and `doctor`; an inference that takes longer than --duration needs more";
            return Some(Failure::new(ErrorKind::Timeout, message, hint));
        }
        let spoiled = measured.is_nothing() || measured.was_cut_short();
        measured.error.take_if(|_| spoiled).map(Failure::from)
    }
}

/// What all sessions of a command share.
#[derive(Clone, Copy)]
pub struct Command<'a> {
    /// Flags of every command.
    pub global: &'a Global,
    /// Flags of `bench`.
    pub args: &'a BenchArgs,
    /// Where to write.
    pub output: &'a Output,
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
    /// What stands in for sticks.
    pub cpu: &'a Cpu,
}

/// Opened sticks.
pub struct Session<'a> {
    command: Command<'a>,
    opened: Opened,
    ordering: OrderingArg,
    pinned: Pinned,
    counters: Counters,
    server: Option<Server>,
}

impl Setting {
    /// As the flags say; of a range its end.
    pub fn of(args: &BenchArgs) -> Self {
        let (depth, adaptive) = match args.depth {
            Depth::Auto => (LoadOptions::MAX_DEPTH, true),
            Depth::Fixed(depth) | Depth::Range(_, depth) => (depth, false),
        };
        Setting { depth, adaptive, graphs: args.graphs, ordering: args.ordering }
    }
}

impl<'a> Session<'a> {
    /// Opens the sticks.
    pub fn open(command: Command<'a>, ordering: OrderingArg) -> Result<Self> {
        let Command { global, args, output, .. } = command;
        let sticks = Sticks::find(global, Engine::Hash)?;
        // Before anything is opened: an address that is taken should cost nobody the time of a boot.
        let listener =
            args.metrics_listen.map(|address| metrics::listen(address, args.metrics_public)).transpose()?;
        let config = FleetConfig {
            ordering: ordering.to_library(),
            retries: args.retries,
            policy: args.policy.policy,
            weights: weights(&args.policy, &sticks)?,
            fallback: command.cpu.fleet(),
            pin: args.pin.policy.clone(),
            target_latency: args.target_latency.map(|ms| Duration::from_secs_f64(ms / 1e3)),
            ..FleetConfig::default()
        };
        // Threads inherit the counters of the one that starts them: the fleet's are started in `open`.
        let counters = Counters::open();
        let spinner = output.spinner("opening");
        let opened = sticks.open(config);
        spinner.finish_and_clear();
        let opened = opened?;
        let server = listener.map(|listener| Server::start(listener, opened.fleet.clone())).transpose()?;
        if let Some(server) = &server {
            output.remark(&format!("metrics at http://{}/metrics", server.address()));
        }
        let reactor = opened.fleet.reactor_cpus().to_vec();
        let pinned = Pinned { policy: args.pin.text.clone(), reactor };
        Ok(Session { command, opened, ordering, pinned, counters, server })
    }

    /// Set for virtual sticks.
    pub fn simulation(&self) -> Option<&Simulation> {
        self.opened.simulation.as_ref()
    }

    /// A timeline for these sticks, where the user wants one.
    pub fn timeline(&self) -> Result<Option<Timeline>> {
        let sticks = || self.opened.fleet.sticks().cloned().collect();
        self.command.args.trace_out.as_deref().map(|path| Timeline::create(path, sticks())).transpose()
    }

    /// Writes the timeline of a run.
    pub fn finish_timeline(&self, timeline: Timeline, networks: &[Network], run: &Run) -> Result {
        let about = About {
            profile: self.simulation().map(|s| s.profile.as_str()),
            models: networks.iter().map(|n| n.blob.name()).collect(),
            config: serde_json::to_value(&run.report.config).unwrap_or_default(),
        };
        let requests = timeline.finish(&about)?;
        if let Some(path) = &self.command.args.trace_out {
            let shown = crate::failure::one_line(&path.display().to_string());
            self.command.output.remark(&format!(
                "{requests} inferences in {shown}; see `ncs2ctl trace {shown}` or https://ui.perfetto.dev"
            ));
        }
        Ok(())
    }

    /// Puts the networks on the sticks.
    pub fn load(&self, networks: &[Network], setting: Setting) -> Result<Vec<Graph>> {
        networks
            .iter()
            .map(|network| {
                let spinner = self.command.output.spinner(&format!("loading {}", network.blob.name()));
                let options = LoadOptions {
                    depth: setting.depth,
                    adaptive_depth: setting.adaptive,
                    instances: setting.graphs,
                    // Of all networks together 1: a mean weight of 1 is what other users of a fleet have.
                    weight: network.share * networks.len() as f64,
                    ..LoadOptions::default()
                };
                let graph = match network.larger.is_empty() {
                    true => self.opened.fleet.load(&network.blob, options)?,
                    false => self.opened.fleet.load_batched(&network.variants(), options)?,
                };
                spinner.finish_and_clear();
                Ok(graph)
            })
            .collect()
    }

    /// One measurement of graphs that are loaded.
    pub fn measure(
        &self,
        networks: &[Network],
        graphs: Vec<Graph>,
        setting: Setting,
        times: Times,
        timeline: Option<&Timeline>,
    ) -> Result<Run> {
        let Command { args, output, interrupt, .. } = self.command;
        let stats = self.opened.fleet.stats();
        let sticks = stats.sticks.len();
        let ready = stats.sticks.iter().filter(|s| s.state == StickState::Ready).count();
        let places = ready.max(1) * (setting.depth * setting.graphs) as usize;
        let checked = self.simulation().is_some_and(|s| s.engine == Engine::Hash);
        let plans = network::plans(networks, graphs, places, args.rate, checked);
        let settle = setting.adaptive && args.rate.is_none();
        let watchers = Watchers { interrupt, output, timeline, counters: &self.counters, settle };
        let measured = measure(&self.opened.fleet, plans, times, watchers)?;
        let input = networks.first().and_then(|n| n.inputs.first()).map(|i| i.source.clone());
        let context = Context {
            networks,
            simulation: self.simulation(),
            paced: self.opened.paced(),
            config: Config {
                duration_s: times.duration.as_secs_f64(),
                warmup_s: times.warmup.as_secs_f64(),
                depth: if setting.adaptive { measured.depth_in_force().max(1) } else { setting.depth },
                depth_mode: if setting.adaptive { "auto" } else { "fixed" },
                graphs: setting.graphs,
                batch: networks.first().map_or(1, Network::batch),
                batch_variants: networks.first().map(Network::batches).unwrap_or_default(),
                policy: args.policy.describe(),
                ordering: self.ordering.as_str(),
                rate_fps: args.rate,
                target_latency_ms: args.target_latency,
                retries: args.retries,
                pin: self.pinned.clone(),
                input: input.unwrap_or_default(),
                sticks,
            },
            target_tops: args.target_tops,
            reactor: ReactorKind::detect().kind.as_str(),
            zero_copy: self.opened.zero_copy(),
        };
        let report = Report::new(&context, &measured);
        Ok(Run { measured, report })
    }

    /// Loads and measures.
    pub fn run(&self, networks: &[Network], setting: Setting, times: Times) -> Result<Run> {
        let graphs = self.load(networks, setting)?;
        self.measure(networks, graphs, setting, times, None)
    }

    /// Drains and closes the sticks.
    pub fn close(self) -> Result {
        drop(self.server);
        self.opened.close(self.command.output)
    }
}

/// The weights of a policy, for sticks that are there.
fn weights(policy: &PolicyArg, sticks: &Sticks) -> Result<Vec<(StickId, f64)>> {
    let known: Vec<&StickId> = sticks.ids().collect();
    let weight = |(name, weight): &(String, f64)| match known.iter().find(|id| id.as_str() == name) {
        Some(id) => Ok(((*id).clone(), *weight)),
        None => {
            let names: Vec<&str> = known.iter().map(|id| id.as_str()).collect();
            let message = format!("--policy: expected one of {}, found {name}", names.join(", "));
            Err(Failure::usage(message, "name the sticks as `ncs2ctl list` does"))
        }
    };
    policy.weights.iter().map(weight).collect()
}
