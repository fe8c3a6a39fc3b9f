//! What nobody knows about the firmware, as settings: every value is one that a real stick may turn out to have.

use ncs2::wire::Capabilities;
use serde::Deserialize;

/// When the stick gives an input element's credit back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputRelease {
    /// When the execution begins.
    Start,
    /// When the result is sent, the latest moment that the vendor's client bears.
    End,
}

/// When a TRIGGER is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TriggerStatus {
    /// As soon as it is queued.
    Before,
    /// After its output. Later commands wait.
    After,
}

/// Zero-length packets on the IN pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ZeroLength {
    /// None: a payload that fills its last packet ends without a sign.
    Never,
    /// After payloads that fill their last packet.
    Full,
    /// After every payload.
    Always,
}

/// What becomes of the input of a refused TRIGGER.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RefusedInput {
    /// Released.
    Release,
    /// Kept: the next trigger takes it.
    Keep,
}

/// Section `[firmware]` of a profile.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Behaviour {
    /// Networks at the same time.
    pub max_graphs: u32,
    /// FIFOs at the same time.
    pub max_fifos: u32,
    /// Executors as the capabilities say.
    pub max_executors: u32,
    /// `[1]` names the chip.
    pub fw_version: [u32; 4],
    /// Not used by any known host.
    pub tensor_version: [u32; 2],
    /// When inputs are released.
    pub input_release: InputRelease,
    /// When triggers are answered.
    pub status: TriggerStatus,
    /// Output payloads go in transfers of this size; 0 for whole.
    pub output_piece_bytes: u32,
    /// The device opens its own side of each stream with CREATE_STREAM.
    pub creates_streams: bool,
    /// Zero-length packets.
    pub zero_length: ZeroLength,
    /// Delay of WRITE responses.
    pub ack_delay_us: f64,
    /// False: leaves the bus without RESET_RESP.
    pub answers_reset: bool,
    /// Input of a refused trigger.
    pub refused_input: RefusedInput,
    /// Without a ping for this long an armed watchdog resets the stick.
    pub watchdog_s: f64,
}

impl Behaviour {
    /// The reply to GET_CAPABILITIES.
    pub fn capabilities(&self, max_memory_bytes: u32) -> Capabilities {
        Capabilities {
            max_graphs: self.max_graphs,
            max_fifos: self.max_fifos,
            max_memory_bytes,
            max_executors: self.max_executors,
            fw_version: self.fw_version,
            tensor_version: self.tensor_version,
        }
    }
}
