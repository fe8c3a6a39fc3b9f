//! The report of a selftest: one document that can be pasted into an issue. It holds no serial number, host name, user name
//! or path.

use serde::{Deserialize, Serialize};

use super::findings::Findings;

/// What the report's form is called.
pub const SCHEMA: &str = "ncs2ctl.selftest/1";

/// The whole of it. Fields may be added, none renamed.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// It came from a virtual stick, and proves nothing about a real one.
    pub simulated: bool,
    /// Of the virtual stick.
    pub profile: Option<String>,
    /// Version of the tool.
    pub tool: String,
    /// `quick`, `full` or `heat`.
    pub mode: String,
    /// Whether the disruptive steps were allowed.
    pub consent: bool,
    /// Whether every step that ran passed.
    pub passed: bool,
    /// Ctrl-C: then it has not passed, whatever the steps before say.
    #[serde(default)]
    pub interrupted: bool,
    /// How long it took.
    pub seconds: f64,
    /// The machine.
    pub host: Host,
    /// The stick and its link.
    pub stick: Stick,
    /// Steps in order.
    pub steps: Vec<Step>,
    /// By name: what PROTOCOL section 12 asks.
    pub unknowns: Findings,
    /// Memory in use on the stick after each step.
    pub memory: Vec<Memory>,
    /// The 26 floats as they came.
    pub thermal: Vec<f32>,
    /// One graph each.
    pub graphs: Vec<GraphRun>,
    /// Tiny network at several depths.
    pub depths: Vec<Depth>,
    /// Networks of one ReLU at several sizes.
    #[serde(default)]
    pub sizes: Vec<SizeRun>,
    /// One relaxation of the vendor's order at a time.
    pub ladder: Vec<Rung>,
    /// `--heat`: once a second.
    pub heat: Vec<HeatPoint>,
    /// The first connection, transfer by transfer, as `ncs2ctl decode` reads it.
    pub timeline: Vec<String>,
}

/// The machine, as far as it matters.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Host {
    /// `linux 6.1.0`: the system's release without its flavour.
    pub kernel: String,
    /// `x86_64`.
    pub arch: String,
    /// Logical CPUs.
    pub cpus: usize,
}

/// The stick.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Stick {
    /// SHA-256 of the firmware file, where it was booted by us.
    pub firmware_sha256: Option<String>,
    /// USB descriptors before and after boot, hexadecimal; none of a virtual stick in this process.
    pub descriptors: [Option<String>; 2],
    /// Firmware's own four numbers.
    pub fw_version: [u32; 4],
    /// Mb/s after boot; 0 where there is no bus.
    pub link_mbps: u32,
    /// Of the bulk pipes.
    pub max_packet_bytes: usize,
    /// `mapped`, `copied` or `in-process`. Empty where it never connected.
    pub memory: String,
    /// Reading memory that the kernel shares with the host controller, MB/s; 0 where there is none.
    #[serde(default)]
    pub mapped_read_mb_s: u32,
    /// Reading ordinary memory in the same way.
    #[serde(default)]
    pub ordinary_read_mb_s: u32,
    /// From the call to the open link.
    pub boot_ms: f64,
    /// What the bus showed of it; empty of a virtual stick in this process.
    #[serde(default)]
    pub boot: Vec<BootMoment>,
    /// Fastest ping of the link layer.
    pub ping_us: f64,
}

/// The stick came or went.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BootMoment {
    /// Since the call.
    pub ms: f64,
    /// `2485 at 480 Mb/s`: USB product and speed; `off the bus`.
    pub seen: String,
}

/// What became of a step.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// `passed`, `failed` or `skipped`.
    pub outcome: String,
    /// What was found, or why it failed or was skipped.
    pub detail: String,
    /// How long it took.
    pub took_ms: f64,
}

/// Memory in use.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Memory {
    /// After which step.
    pub after: String,
    /// GET_USED_MEMORY.
    pub used_bytes: u32,
}

/// A graph's way.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GraphRun {
    /// Name of the carried graph.
    pub name: String,
    /// Bytes of the blob, of an input and of an output.
    pub bytes: [usize; 3],
    /// Time of the upload.
    pub upload_ms: f64,
    /// Whole inference in vendor order, median.
    pub infer_ms: f64,
    /// Inferences compared.
    pub compared: usize,
    /// Largest error against the reference, as a share of the largest value.
    pub error: f64,
    /// All within one percent.
    pub good: bool,
    /// n, c, w, h and bytes of input and output, as the stick described them.
    pub descriptors: [[u32; 5]; 2],
}

/// One depth.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Depth {
    /// Inferences in flight.
    pub depth: usize,
    /// Inferences per second.
    pub fps: f64,
    /// All outputs right.
    pub good: bool,
}

/// One size of input and output, from one kind of memory.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SizeRun {
    /// Of the input, and of the output.
    pub bytes: usize,
    /// `copied`, `mapped` or `in-process`: where the input lay.
    pub memory: String,
    /// From the input's first byte to its acknowledgement, fastest.
    pub send_ms: f64,
    /// Whole inference in vendor order, fastest. The output comes in transfers of one packet each.
    pub infer_ms: f64,
    /// All outputs right.
    pub good: bool,
}

/// One rung of the ordering ladder.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Rung {
    /// Which waits are left out.
    pub relaxation: String,
    /// The stick went along, and every output was right.
    pub accepted: bool,
    /// Inferences per second; 0 where it was not accepted.
    pub fps: f64,
    /// What went wrong.
    pub detail: String,
}

/// A second under load.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HeatPoint {
    /// Since the load began.
    pub seconds: f64,
    /// First temperature.
    pub celsius: f32,
    /// Throttle level.
    pub level: f32,
    /// Mean inference of this second; 0 without load.
    pub service_ms: f64,
    /// After the load: how it cools.
    #[serde(default)]
    pub resting: bool,
}

impl Report {
    /// Reads a report; says what is wrong with it.
    pub fn parse(text: &str) -> Result<Report, String> {
        let report: Report = serde_json::from_str(text).map_err(|e| e.to_string())?;
        if report.schema != SCHEMA {
            return Err(format!("expected schema {SCHEMA}, found {}", report.schema));
        }
        Ok(report)
    }

    /// As it is written to a file.
    pub fn text(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report has string keys only");
        text.push('\n');
        text
    }

    /// The first lines for a reader.
    pub fn summary(&self) -> String {
        let mark = if self.simulated { "simulated; proves nothing about a stick" } else { "real stick" };
        let verdict = match (self.passed, self.interrupted) {
            (true, _) => "passed",
            (false, true) => "interrupted",
            (false, false) => "FAILED",
        };
        let mut text = format!("selftest {} ({mark}): {verdict}\n\n", self.mode);
        for step in &self.steps {
            text +=
                &format!("{:8} {:22} {:>9.1} ms  {}\n", step.outcome, step.name, step.took_ms, step.detail);
        }
        text.push('\n');
        for (name, finding) in &self.unknowns {
            text += &format!("{name:20}  {}\n", finding.answer);
        }
        text
    }
}
