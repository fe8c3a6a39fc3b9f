//! The flags of `bench`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueHint};
use ncs2::sched::Policy;
use ncs2::topology::PinPolicy;

use crate::fallback::FallbackArgs;
use crate::flags::{ImageArgs, OrderingArg, duration, positive, positive_duration, seed};

/// `bench`
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ncs2ctl bench net.blob
  ncs2ctl --sim 3 bench net.blob --duration 30s --target-tops 1
  ncs2ctl --sim 3 --timing zero bench net.blob        # the host's own cost
  ncs2ctl bench net.blob --json --min-fps 100 || echo too slow
  ncs2ctl bench net.blob --depth 1..8                  # which depth pays
  ncs2ctl bench net.blob --levels                      # what each lever pays
  ncs2ctl bench heavy.blob light.blob --shares 3,1     # several networks at once
  ncs2ctl bench net.blob --batch-sizes 1,4,8           # net.blob, net@4.blob, net@8.blob
  ncs2ctl bench net.blob --save a.json; ncs2ctl bench net.blob --compare a.json
  ncs2ctl bench net.blob --soak --duration 1m          # what heat takes
  ncs2ctl bench net.blob --trace-out run.json; ncs2ctl trace run.json
  ncs2ctl bench net.blob --metrics-listen 127.0.0.1:9484

Ctrl-C ends the run early and still prints the report.")]
pub struct BenchArgs {
    /// The compiled graphs; several are run at the same time
    #[arg(value_name = "BLOB", required = true, num_args = 1.., value_hint = ValueHint::FilePath)]
    pub blobs: Vec<PathBuf>,
    /// How long to measure
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = positive_duration)]
    pub duration: Duration,
    /// How long to run before measuring
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub warmup: Duration,
    /// Inferences in flight on each graph of each stick: auto, 1 to 16, or a range for a sweep
    #[arg(long, value_name = "auto|N|A..B", default_value = "auto")]
    pub depth: Depth,
    /// Instances of the graph on each stick, 1 to 4
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4))]
    pub graphs: u32,
    /// Batch of one inference: N takes BLOB or BLOB@N of that batch, auto the one that measures best
    #[arg(long, value_name = "auto|N", conflicts_with = "batch_sizes")]
    pub batch: Option<Batch>,
    /// Measures these batch variants of one network side by side
    #[arg(
        long,
        value_name = "N,N,...",
        value_delimiter = ',',
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub batch_sizes: Vec<u32>,
    /// Share of the load for each network, in their order; the same for all by default
    #[arg(long, value_name = "N,N,...", value_delimiter = ',', value_parser = positive)]
    pub shares: Vec<f64>,
    /// Which stick gets the next inference: thermal, fastest, least-loaded, round-robin, strict-round-robin or
    /// weighted=STICK:WEIGHT,...
    #[arg(long, value_name = "POLICY", default_value = "thermal")]
    pub policy: PolicyArg,
    /// With --depth auto: keep the mean time of an inference on its stick below this, milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    pub target_latency: Option<f64>,
    /// Order on the wire
    #[arg(long, value_enum, default_value = "auto")]
    pub ordering: OrderingArg,
    /// Pin the threads of the driver: auto by this computer's cores and USB controllers, none, or CPUs such as 0,2-3
    #[arg(long, value_name = "auto|none|LIST", default_value = "none")]
    pub pin: Pin,
    /// Send at this rate instead of as fast as answers come; latency counts from the intended time
    #[arg(long, value_name = "FPS", value_parser = positive)]
    pub rate: Option<f64>,
    /// Input file; NAME=FILE where the network has several inputs
    #[arg(long, short, value_name = "[NAME=]FILE", num_args = 1.., conflicts_with = "random")]
    pub input: Vec<OsString>,
    /// Seed of the random inputs
    #[arg(long, value_name = "SEED", default_value_t = 0, value_parser = seed)]
    pub random: u64,
    /// Image preparation.
    #[command(flatten)]
    pub image: ImageArgs,
    /// Show the progress to this many TOPS
    #[arg(long, value_name = "X", value_parser = positive)]
    pub target_tops: Option<f64>,
    /// Compare with a TOML table of budgets for each network; exit 1 when one is missed
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub targets: Option<PathBuf>,
    /// Exit 1 below this speed
    #[arg(long, value_name = "X", value_parser = positive)]
    pub min_fps: Option<f64>,
    /// How often an inference may move to another stick after its own was lost
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub retries: u32,
    /// Write the JSON report to this file too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub save: Option<PathBuf>,
    /// Show the difference to a saved report, and whether it is more than noise
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub compare: Option<PathBuf>,
    /// Measure again and again, each time for --duration, until the temperature is level or Ctrl-C
    #[arg(long)]
    pub soak: bool,
    /// Measure the baseline (depth 1, one graph, vendor order), then each lever alone, then all together
    #[arg(long, conflicts_with_all = ["soak", "batch_sizes"])]
    pub levels: bool,
    /// Write the times of every inference as a Chrome trace (Perfetto opens it too)
    #[arg(
        long,
        value_name = "FILE.json",
        value_hint = ValueHint::FilePath,
        conflicts_with_all = ["levels", "batch_sizes", "soak"]
    )]
    pub trace_out: Option<PathBuf>,
    /// Serve Prometheus metrics at this address while it runs; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDR:PORT",
        value_parser = address,
        conflicts_with_all = ["levels", "batch_sizes"]
    )]
    pub metrics_listen: Option<SocketAddr>,
    /// Let --metrics-listen take an address that other computers reach
    #[arg(long, requires = "metrics_listen")]
    pub metrics_public: bool,
    /// What stands in for sticks.
    #[command(flatten)]
    pub fallback: FallbackArgs,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("expected an address and a port such as 127.0.0.1:9484, found `{text}`"))
}

/// `--depth`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    /// The tool chooses.
    Auto,
    /// 1 to 16.
    Fixed(u32),
    /// A sweep.
    Range(u32, u32),
}

impl FromStr for Depth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |t: &str| t.parse::<u32>().ok().filter(|n| (1..=16).contains(n));
        let expected =
            || format!("expected auto, a number from 1 to 16 or a range such as 1..8, found `{text}`");
        if text == "auto" {
            return Ok(Depth::Auto);
        }
        match text.split_once("..") {
            Some((a, b)) => match (number(a), number(b)) {
                (Some(a), Some(b)) if a <= b => Ok(Depth::Range(a, b)),
                _ => Err(expected()),
            },
            None => number(text).map(Depth::Fixed).ok_or_else(expected),
        }
    }
}

/// `--batch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Batch {
    /// The variant that measures best.
    Auto,
    /// This one.
    Fixed(u32),
}

impl FromStr for Batch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "auto" => Ok(Batch::Auto),
            Ok(n @ 1..) => Ok(Batch::Fixed(n)),
            _ => Err(format!("expected auto or a number from 1 on, found `{text}`")),
        }
    }
}

/// `--policy`.
#[derive(Clone, PartialEq, Debug)]
pub struct PolicyArg {
    /// Which.
    pub policy: Policy,
    /// Sticks and their weights, for [`Policy::Weighted`]; the others weigh 1.
    pub weights: Vec<(String, f64)>,
}

impl PolicyArg {
    /// As it was typed.
    pub fn describe(&self) -> String {
        let weights: Vec<String> = self.weights.iter().map(|(id, weight)| format!("{id}:{weight}")).collect();
        match self.weights.is_empty() {
            true => self.policy.as_str().to_owned(),
            false => format!("{}={}", self.policy.as_str(), weights.join(",")),
        }
    }
}

impl FromStr for PolicyArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, weights) = match text.split_once('=') {
            Some((name, weights)) => (name, Some(weights)),
            None => (text, None),
        };
        let policy: Policy = name.parse()?;
        let wanted = || format!("expected weighted=STICK:WEIGHT,... such as weighted=sim0:2, found `{text}`");
        let Some(weights) = weights else {
            return match policy {
                Policy::Weighted => Err(wanted()),
                policy => Ok(PolicyArg { policy, weights: Vec::new() }),
            };
        };
        if policy != Policy::Weighted {
            return Err(wanted());
        }
        let mut parsed: Vec<(String, f64)> = Vec::new();
        for part in weights.split(',') {
            let (id, weight) = part.rsplit_once(':').ok_or_else(wanted)?;
            let weight = positive(weight).map_err(|_| wanted())?;
            if id.is_empty() || parsed.iter().any(|(known, _)| known == id) {
                return Err(format!("expected each stick once, found `{text}`"));
            }
            parsed.push((id.to_owned(), weight));
        }
        Ok(PolicyArg { policy, weights: parsed })
    }
}

/// `--pin`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pin {
    /// Which.
    pub policy: PinPolicy,
    /// As it was typed.
    pub text: String,
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(policy) => Ok(Pin { policy, text: text.to_owned() }),
            Err(_) => Err(format!("expected auto, none, or CPUs such as 0,2-3, found `{text}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_or_refused() {
        for policy in Policy::ALL.into_iter().filter(|p| *p != Policy::Weighted) {
            let read: PolicyArg = policy.as_str().parse().expect("known");
            assert_eq!((read.policy, read.describe().as_str()), (policy, policy.as_str()));
        }
        let read: PolicyArg = "weighted=sim0:2,1-2.3:0.5".parse().expect("well formed");
        assert_eq!(read.policy, Policy::Weighted);
        assert_eq!(read.weights, [("sim0".to_owned(), 2.0), ("1-2.3".to_owned(), 0.5)]);
        assert_eq!(read.describe(), "weighted=sim0:2,1-2.3:0.5");
        for bad in [
            "weighted",
            "weighted=",
            "weighted=sim0",
            "weighted=sim0:0",
            "weighted=sim0:-1",
            "weighted=:1",
            "weighted=a:1,a:2",
            "fastest=a:1",
            "hottest",
            "",
        ] {
            assert!(bad.parse::<PolicyArg>().is_err(), "{bad}");
        }
    }

    #[test]
    fn depths_are_read_or_refused() {
        assert_eq!("auto".parse(), Ok(Depth::Auto));
        assert_eq!("16".parse(), Ok(Depth::Fixed(16)));
        assert_eq!("1..8".parse(), Ok(Depth::Range(1, 8)));
        for bad in ["0", "17", "8..1", "a", "1..", ""] {
            assert!(bad.parse::<Depth>().is_err(), "{bad}");
        }
    }

    #[test]
    fn batches_are_read_or_refused() {
        assert_eq!("auto".parse(), Ok(Batch::Auto));
        assert_eq!("8".parse(), Ok(Batch::Fixed(8)));
        for bad in ["0", "-1", "", "all", "1.5"] {
            assert!(bad.parse::<Batch>().is_err(), "{bad}");
        }
    }

    #[test]
    fn pins_are_read_or_refused() {
        assert_eq!("auto".parse::<Pin>().expect("known").policy, PinPolicy::Auto);
        assert_eq!("0,2-3".parse::<Pin>().expect("a list").policy, PinPolicy::Cpus(vec![0, 2, 3]));
        assert!("x".parse::<Pin>().expect_err("no list").contains("found `x`"));
    }
}
