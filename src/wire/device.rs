//! Commands and replies of the `deviceMonitor` stream.

use zerocopy::little_endian::{F32, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::WireError;

/// Bytes of a device command.
pub const DEVICE_COMMAND_LEN: usize = 8;
/// Bytes of the capabilities reply.
pub const CAPABILITIES_LEN: usize = 40;
/// Bytes of the reply to GET_USED_MEMORY.
pub const USED_MEMORY_LEN: usize = 4;
/// Floats of the thermal reply.
pub const THERMAL_FLOATS: usize = 26;
/// Bytes of the thermal reply.
pub const THERMAL_LEN: usize = THERMAL_FLOATS * 4;

/// Argument of SET_POWER_CONFIG.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum PowerConfig {
    /// `POWER_FULL`
    #[default]
    Full,
    /// `POWER_INFER`
    Infer,
    /// `POWER_STAGE`
    Stage,
    /// `POWER_STAGE_SHAVES`
    StageShaves,
    /// `POWER_STAGE_NCES`
    StageNces,
}

/// A command on `deviceMonitor`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum DeviceCommand {
    /// `DEVICE_GET_THERMAL_STATS` → [`ThermalStats`]
    ThermalStats,
    /// `DEVICE_GET_CAPABILITIES` → [`Capabilities`]
    Capabilities,
    /// `DEVICE_GET_USED_MEMORY` → [`UsedMemory`]
    UsedMemory,
    /// `DEVICE_GET_DEVICE_ID`; not used by any known host, its reply is unverified.
    DeviceId,
    /// `DEVICE_WATCHDOG_PING`; no reply, the WRITE response is the pong.
    WatchdogPing,
    /// `DEVICE_SET_STDIO_REDIRECT_XLINK`; no reply.
    StdioRedirect(bool),
    /// `DEVICE_SET_POWER_CONFIG`; no reply.
    SetPower(PowerConfig),
    /// `DEVICE_RESET_POWER_CONFIG`; no reply.
    ResetPower,
    /// `DEVICE_ENABLE_ASYNC_DMA`; no reply.
    AsyncDma(bool),
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CommandView {
    kind: U32,
    arg: U32,
}

impl DeviceCommand {
    /// Reads a command. The argument of commands that take none may be garbage and is ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let view = CommandView::ref_from_bytes(bytes).map_err(|_| WireError::Length {
            what: "device command",
            expected: DEVICE_COMMAND_LEN,
            found: bytes.len(),
        })?;
        let arg = view.arg.get();
        Ok(match view.kind.get() {
            0 => DeviceCommand::ThermalStats,
            1 => DeviceCommand::Capabilities,
            2 => DeviceCommand::UsedMemory,
            3 => DeviceCommand::DeviceId,
            4 => DeviceCommand::WatchdogPing,
            5 => DeviceCommand::StdioRedirect(switch(arg, "device command: stdio redirect")?),
            6 => DeviceCommand::SetPower(match arg {
                0 => PowerConfig::Full,
                1 => PowerConfig::Infer,
                2 => PowerConfig::Stage,
                3 => PowerConfig::StageShaves,
                4 => PowerConfig::StageNces,
                value => return Err(WireError::Value { what: "device command: power config", value }),
            }),
            7 => DeviceCommand::ResetPower,
            8 => DeviceCommand::AsyncDma(switch(arg, "device command: async DMA")?),
            value => return Err(WireError::Value { what: "device command: type", value }),
        })
    }

    /// Writes a command; an argument that means nothing is zero.
    pub fn encode(self) -> [u8; DEVICE_COMMAND_LEN] {
        let (kind, arg) = match self {
            DeviceCommand::ThermalStats => (0, 0),
            DeviceCommand::Capabilities => (1, 0),
            DeviceCommand::UsedMemory => (2, 0),
            DeviceCommand::DeviceId => (3, 0),
            DeviceCommand::WatchdogPing => (4, 0),
            DeviceCommand::StdioRedirect(on) => (5, u32::from(on)),
            DeviceCommand::SetPower(power) => (6, power as u32),
            DeviceCommand::ResetPower => (7, 0),
            DeviceCommand::AsyncDma(on) => (8, u32::from(on)),
        };
        let mut out = [0; DEVICE_COMMAND_LEN];
        out.copy_from_slice(CommandView { kind: U32::new(kind), arg: U32::new(arg) }.as_bytes());
        out
    }

    /// Bytes of the reply packet, or `None` where the stick answers nothing but the WRITE response.
    pub fn reply_len(self) -> Option<usize> {
        match self {
            DeviceCommand::ThermalStats => Some(THERMAL_LEN),
            DeviceCommand::Capabilities => Some(CAPABILITIES_LEN),
            DeviceCommand::UsedMemory => Some(USED_MEMORY_LEN),
            _ => None,
        }
    }
}

fn switch(arg: u32, what: &'static str) -> Result<bool, WireError> {
    match arg {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(WireError::Value { what, value }),
    }
}

/// What the stick says that it can hold. Real values of an NCS2 are unverified.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Capabilities {
    /// Networks at the same time.
    pub max_graphs: u32,
    /// FIFOs at the same time.
    pub max_fifos: u32,
    /// Bytes of DRAM for graphs.
    pub max_memory_bytes: u32,
    /// Executors of one graph.
    pub max_executors: u32,
    /// `[1]` names the chip: 0x2480 Myriad X, 0x2450 Myriad 2.
    pub fw_version: [u32; 4],
    /// Not used by any known host.
    pub tensor_version: [u32; 2],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct CapabilitiesView([U32; 10]);

impl Capabilities {
    /// `fw_version[1]` of a Myriad X.
    pub const CHIP_MYRIAD_X: u32 = 0x2480;
    /// `fw_version[1]` of a Myriad 2 (the first stick).
    pub const CHIP_MYRIAD_2: u32 = 0x2450;

    /// Reads the reply; any content is a value, callers judge the chip.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let CapabilitiesView(w) = CapabilitiesView::ref_from_bytes(bytes).map_err(|_| WireError::Length {
            what: "capabilities",
            expected: CAPABILITIES_LEN,
            found: bytes.len(),
        })?;
        Ok(Capabilities {
            max_graphs: w[0].get(),
            max_fifos: w[1].get(),
            max_memory_bytes: w[2].get(),
            max_executors: w[3].get(),
            fw_version: [w[4].get(), w[5].get(), w[6].get(), w[7].get()],
            tensor_version: [w[8].get(), w[9].get()],
        })
    }

    /// Writes the reply, for the device side.
    pub fn encode(&self) -> [u8; CAPABILITIES_LEN] {
        let f = self.fw_version;
        let t = self.tensor_version;
        let words = [
            self.max_graphs,
            self.max_fifos,
            self.max_memory_bytes,
            self.max_executors,
            f[0],
            f[1],
            f[2],
            f[3],
            t[0],
            t[1],
        ];
        let mut out = [0; CAPABILITIES_LEN];
        out.copy_from_slice(CapabilitiesView(words.map(U32::new)).as_bytes());
        out
    }
}

/// The reply to GET_USED_MEMORY: bytes of the stick's DRAM in use. Known from source alone, the vendor's plugin does
/// not ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct UsedMemory(pub u32);

impl UsedMemory {
    /// Reads the reply.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let raw: [u8; USED_MEMORY_LEN] = bytes.try_into().map_err(|_| WireError::Length {
            what: "used memory",
            expected: USED_MEMORY_LEN,
            found: bytes.len(),
        })?;
        Ok(UsedMemory(u32::from_le_bytes(raw)))
    }

    /// Writes the reply, for the device side.
    pub fn encode(self) -> [u8; USED_MEMORY_LEN] {
        self.0.to_le_bytes()
    }
}

/// How much the firmware slows itself down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord, Default)]
pub enum ThrottleLevel {
    /// Full speed.
    #[default]
    None,
    /// Lower guard: a short sleep between inferences.
    Lower,
    /// Upper guard: a long sleep.
    Upper,
}

impl ThrottleLevel {
    /// 0, 1, 2.
    pub fn as_u8(self) -> u8 {
        self as u8
    }

    /// From the stick's float; anything but 0, 1, 2 is no level.
    pub fn from_float(value: f32) -> Option<Self> {
        if value == 0.0 {
            Some(ThrottleLevel::None)
        } else if value == 1.0 {
            Some(ThrottleLevel::Lower)
        } else if value == 2.0 {
            Some(ThrottleLevel::Upper)
        } else {
            None
        }
    }
}

/// The thermal reply. Only the first two floats are understood: `[0]` the level, `[1]` the temperature that the
/// vendor shows. The others are unverified and carried as they come.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ThermalStats {
    /// As received; may be NaN, a hostile or broken sensor is not an error of the wire.
    pub raw: [f32; THERMAL_FLOATS],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ThermalView([F32; THERMAL_FLOATS]);

impl ThermalStats {
    /// Reads the reply.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let ThermalView(floats) = ThermalView::ref_from_bytes(bytes).map_err(|_| WireError::Length {
            what: "thermal stats",
            expected: THERMAL_LEN,
            found: bytes.len(),
        })?;
        Ok(ThermalStats { raw: floats.map(F32::get) })
    }

    /// Writes the reply, for the device side.
    pub fn encode(&self) -> [u8; THERMAL_LEN] {
        let mut out = [0; THERMAL_LEN];
        out.copy_from_slice(ThermalView(self.raw.map(F32::new)).as_bytes());
        out
    }

    /// Degrees Celsius; `None` when the sensor says nonsense.
    pub fn temperature_c(&self) -> Option<f32> {
        Some(self.raw[1]).filter(|t| t.is_finite() && (-55.0..=150.0).contains(t))
    }

    /// The level; `None` when the sensor says nonsense.
    pub fn throttle_level(&self) -> Option<ThrottleLevel> {
        ThrottleLevel::from_float(self.raw[0])
    }
}
