//! Bytes of the wire ⇄ values: XLink headers, device and graph commands, boot framing.
//!
//! Two levels, as in smoltcp: a *view* ([`zerocopy`] struct, length checked, any content) and a *value* (an enum or
//! struct that cannot be wrong). Nothing outside this room sees a view. All integers are little-endian.
//! Facts come from the protocol of the vendor's client of OpenVINO 2021.4.2, called variant V1 here.

mod boot;
mod device;
mod graph;
mod header;

#[cfg(test)]
mod tests;

pub use boot::{
    BOOT_CHUNK_BYTES, BOOT_CHUNK_BYTES_FULL_SPEED, BootError, DdrType, FirmwarePatches, boot_chunk_bytes,
    boot_chunks, patch_ddr, patch_firmware, patch_watchdog,
};
pub use device::{
    CAPABILITIES_LEN, Capabilities, DEVICE_COMMAND_LEN, DeviceCommand, PowerConfig, THERMAL_FLOATS,
    THERMAL_LEN, ThermalStats, ThrottleLevel, USED_MEMORY_LEN, UsedMemory,
};
pub use graph::{
    BUFFER_ALLOCATE_LEN, COMMON_COMMAND_LEN, DEBUG_DATA_LEN, DebugData, EncodedGraphCommand, FIFO_GOODBYE,
    FifoDirection, GRAPH_COMMAND_LEN, GraphCommand, STAGE_COUNT_LEN, STATUS_LEN, StageCount, Status,
    TENSOR_DESCRIPTOR_LEN, TensorDescriptor, TimingData, VERIFY_HEADER_LEN,
};
pub use header::{
    CREDIT_ALIGN_BYTES, EventKind, Flags, HEADER_LEN, Header, MAX_TRANSFER_BYTES, Side, StreamId, StreamName,
};

/// Which numbering and header length the firmware speaks. The firmware manifest says which one a file has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
#[non_exhaustive]
pub enum WireVersion {
    /// OpenVINO 2021.4.2: 84-byte headers, requests 0..=7, responses are requests + 9. The only one that was
    /// proven with the vendor's client; V0 (2021.4.0) and V2 (later 2022.x) are known from source alone.
    #[default]
    V1,
}

/// Bytes that are no value of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The length is not that of the structure.
    #[error("{what}: expected {expected} bytes, found {found}")]
    Length {
        /// The structure.
        what: &'static str,
        /// Its size in bytes.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A field has a value that the protocol does not know.
    #[error("{what}: unknown value {value:#x}")]
    Value {
        /// Structure and field.
        what: &'static str,
        /// What stands there.
        value: u32,
    },
    /// A name without its closing NUL, or with control bytes.
    #[error("{what}: not a NUL-terminated name")]
    Name {
        /// Structure and field.
        what: &'static str,
    },
}
