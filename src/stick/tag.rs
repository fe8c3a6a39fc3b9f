//! What the engine calls its own requests on the link, so that each answer finds its waiter and each late one its name.

/// Which of a graph's two FIFOs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fifo {
    Input,
    Output,
}

/// Which of a graph's three streams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    Buffer,
    Fifo(Fifo),
}

/// What a graph command is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Verify,
    Allocate,
    AllocationVerify,
    BufferAllocate(Fifo),
    /// The number is the job's.
    Trigger(u64),
    Timing,
    Debug,
    BufferDeallocate(Fifo),
    Deallocate,
}

impl Purpose {
    /// The vendor's name of the command, for errors.
    pub(super) fn step(self) -> &'static str {
        match self {
            Purpose::Verify => "VERIFY",
            Purpose::Allocate => "ALLOCATE",
            Purpose::AllocationVerify => "ALLOCATION_VERIFY",
            Purpose::BufferAllocate(Fifo::Input) => "BUFFER_ALLOCATE of the input FIFO",
            Purpose::BufferAllocate(Fifo::Output) => "BUFFER_ALLOCATE of the output FIFO",
            Purpose::Trigger(_) => "TRIGGER",
            Purpose::Timing => "GET_TIMING_DATA",
            Purpose::Debug => "GET_DEBUG_DATA",
            Purpose::BufferDeallocate(Fifo::Input) => "BUFFER_DEALLOCATE of the input FIFO",
            Purpose::BufferDeallocate(Fifo::Output) => "BUFFER_DEALLOCATE of the output FIFO",
            Purpose::Deallocate => "DEALLOCATE",
        }
    }

    /// What is waited for after the command was acknowledged.
    pub(super) fn reply_step(self) -> &'static str {
        match self {
            Purpose::Verify => "status of VERIFY",
            Purpose::Allocate => "descriptors and status of ALLOCATE",
            Purpose::AllocationVerify => "status of ALLOCATION_VERIFY",
            Purpose::BufferAllocate(_) => "status of BUFFER_ALLOCATE",
            Purpose::Trigger(_) => "status of TRIGGER",
            Purpose::Timing => "reply to GET_TIMING_DATA",
            Purpose::Debug => "reply to GET_DEBUG_DATA",
            Purpose::BufferDeallocate(_) => "status of BUFFER_DEALLOCATE",
            Purpose::Deallocate => "status of DEALLOCATE",
        }
    }
}

/// A command on `deviceMonitor`, without the watchdog's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DeviceOp {
    Capabilities,
    Thermal,
    UsedMemory,
    SetPower,
    AsyncDma,
}

impl DeviceOp {
    pub(super) fn step(self) -> &'static str {
        match self {
            DeviceOp::Capabilities => "GET_CAPABILITIES",
            DeviceOp::Thermal => "GET_THERMAL_STATS",
            DeviceOp::UsedMemory => "GET_USED_MEMORY",
            DeviceOp::SetPower => "SET_POWER_CONFIG",
            DeviceOp::AsyncDma => "ENABLE_ASYNC_DMA",
        }
    }
}

/// Name of one request on the link. `graph` is the number of the graph on this stick, which is never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tag {
    Ping,
    CreateDeviceMonitor,
    CreateGraphMonitor,
    Device(DeviceOp),
    DeviceRelease(DeviceOp),
    Watchdog,
    Create {
        graph: u32,
        part: Part,
    },
    Close {
        graph: u32,
        part: Part,
    },
    Command {
        seq: u64,
        purpose: Purpose,
    },
    Follow {
        seq: u64,
        purpose: Purpose,
    },
    Release {
        seq: u64,
        purpose: Purpose,
    },
    Input {
        graph: u32,
        job: u64,
    },
    OutputRelease {
        graph: u32,
    },
    Goodbye {
        graph: u32,
    },
    CloseDeviceMonitor,
    CloseGraphMonitor,
    Reset,
    /// Nobody waits for the answer, but it is due.
    Unwaited(&'static str),
}

impl Tag {
    /// The step that an error names.
    pub(super) fn step(self) -> &'static str {
        match self {
            Tag::Ping => "PING",
            Tag::CreateDeviceMonitor => "create deviceMonitor",
            Tag::CreateGraphMonitor => "create graphMonitor",
            Tag::Device(op) => op.step(),
            Tag::DeviceRelease(_) => "release of a device reply",
            Tag::Watchdog => "watchdog ping",
            Tag::Create { part: Part::Buffer, .. } => "create graphBuffer",
            Tag::Create { part: Part::Fifo(Fifo::Input), .. } => "create the input FIFO",
            Tag::Create { part: Part::Fifo(Fifo::Output), .. } => "create the output FIFO",
            Tag::Close { part: Part::Buffer, .. } => "close graphBuffer",
            Tag::Close { part: Part::Fifo(Fifo::Input), .. } => "close the input FIFO",
            Tag::Close { part: Part::Fifo(Fifo::Output), .. } => "close the output FIFO",
            Tag::Command { purpose, .. } => purpose.step(),
            Tag::Follow { purpose: Purpose::Verify, .. } => "blob header",
            Tag::Follow { .. } => "blob",
            Tag::Release { .. } => "release of a graph reply",
            Tag::Input { .. } => "input tensor",
            Tag::OutputRelease { .. } => "release of an output",
            Tag::Goodbye { .. } => "goodbye to the input FIFO",
            Tag::CloseDeviceMonitor => "close deviceMonitor",
            Tag::CloseGraphMonitor => "close graphMonitor",
            Tag::Reset => "RESET",
            Tag::Unwaited(step) => step,
        }
    }
}
