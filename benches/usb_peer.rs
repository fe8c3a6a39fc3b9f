//! What the USB data path is compared with: plain libusb, synchronous transfers, one thread per direction, in the
//! vendor's order. The protocol engine, the buffers and the depth are those of the driver, so that what differs is the way
//! to the kernel alone. A module of the guest's tests (`tools/vm`), where there is a USB bus.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering as Memory};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use ncs2::blob::Blob;
use ncs2::clock::{Clock as _, Monotonic};
use ncs2::pipeline::{Event, GraphId, GraphSpec, Job, Pipeline, PipelineConfig};
use ncs2::pool::{Pool, Use};
use ncs2::stick::{GraphKey, LoadRequest, Ordering, StickConfig};
use ncs2::transport::{Completion, Direction, Transfer, TransferError};

/// Longest silence.
const PATIENCE: Duration = Duration::from_secs(20);
/// The vendor's client has no limit for a transfer either; a limit would cost libusb system calls.
const NO_LIMIT: Duration = Duration::ZERO;
const GRAPH: GraphId = GraphId(1);

type Handle = rusb::DeviceHandle<rusb::Context>;

struct Bytes(Blob);

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

struct State {
    pipeline: Pipeline<u64>,
    /// IN transfers to do, in order.
    to_read: VecDeque<Transfer>,
}

struct Shared {
    state: Mutex<State>,
    /// Something is to be read.
    wanted: Condvar,
    /// Something came.
    came: Condvar,
    handle: Handle,
    clock: Monotonic,
    ends: AtomicBool,
}

/// An opened stick with one graph. The thread that calls it does the OUT transfers.
pub struct Peer {
    shared: Arc<Shared>,
    reader: Option<std::thread::JoinHandle<()>>,
    pool: Pool,
    blob: Blob,
    depth: usize,
    submitted: u64,
}

impl Peer {
    /// Over a booted stick whose interface is claimed; loads the blob.
    pub fn open(
        handle: Handle,
        max_packet_bytes: usize,
        blob: &Blob,
        executors: u32,
        depth: u32,
    ) -> Result<Self, String> {
        let clock = Monotonic::new();
        let pool = Pool::new("peer", 256 << 20);
        let config = PipelineConfig {
            stick: StickConfig { ordering: Ordering::Vendor, ..StickConfig::default() },
            max_packet_bytes,
            job_timeout: PATIENCE,
            memory_timeout: PATIENCE,
            wanted: |_| true,
        };
        let mut pipeline = Pipeline::new(config, pool.clone(), clock.now());
        pipeline.open(clock.now());
        let shared = Arc::new(Shared {
            state: Mutex::new(State { pipeline, to_read: VecDeque::new() }),
            wanted: Condvar::new(),
            came: Condvar::new(),
            handle,
            clock,
            ends: AtomicBool::new(false),
        });
        let theirs = shared.clone();
        let reader = std::thread::Builder::new()
            .name("peer-in".into())
            .spawn(move || theirs.read())
            .map_err(|e| e.to_string())?;
        let depth_of_fifo = depth;
        let mut peer = Peer {
            shared,
            reader: Some(reader),
            pool,
            blob: blob.clone(),
            depth: depth as usize,
            submitted: 0,
        };
        peer.until(|event| matches!(event, Event::Opened(_)))?;
        let graph = blob.graph();
        let size = |bytes: usize| u32::try_from(bytes).map_err(|e| e.to_string());
        let header = blob.bytes().first_chunk().ok_or("a blob of a few bytes")?;
        let spec = GraphSpec {
            id: GRAPH,
            request: LoadRequest {
                key: GraphKey(0),
                header: *header,
                blob_bytes: size(blob.bytes().len())?,
                input_bytes: size(graph.input_bytes)?,
                output_bytes: size(graph.output_bytes)?,
                stages: size(graph.stages.len())?,
                executors,
                fifo_elements: depth_of_fifo,
            },
            blob: Arc::new(Bytes(blob.clone())),
            instances: 1,
        };
        let now = peer.shared.clock.now();
        peer.shared.lock().pipeline.load(spec, now);
        peer.until(|event| matches!(event, Event::Loaded { .. }))?;
        Ok(peer)
    }

    /// Inferences, twice the depth in the pipeline at a time; `fill` writes the n-th input, `check` sees each output.
    pub fn run(
        &mut self,
        count: usize,
        fill: impl Fn(u64, &mut [u8]),
        check: impl Fn(u64, &[u8]) -> Result<(), String>,
    ) -> Result<(), String> {
        let first = self.submitted;
        let (mut sent, mut done) = (0, 0);
        let output_bytes = self.blob.graph().output_bytes;
        while done < count {
            while sent < count && sent - done < 2 * self.depth {
                let bytes = self.blob.graph().input_bytes;
                let mut input = self.pool.lease(bytes, Use::Input, PATIENCE).map_err(|e| e.to_string())?;
                fill(self.submitted - first, input.as_mut_slice());
                let now = self.shared.clock.now();
                let job = Job { tag: self.submitted - first, graph: GRAPH, input, submitted: now };
                self.shared.lock().pipeline.submit(job, now);
                self.submitted += 1;
                sent += 1;
            }
            match self.until(|event| matches!(event, Event::Done(_)))? {
                Event::Done(answer) => {
                    check(answer.tag, &answer.output.as_slice()[..output_bytes])?;
                    done += 1;
                }
                other => return Err(format!("expected an answer, found {other:?}")),
            }
        }
        Ok(())
    }

    /// Resets the stick, as a client does that ends.
    pub fn close(mut self) -> Result<(), String> {
        let now = self.shared.clock.now();
        self.shared.lock().pipeline.close(now);
        self.until(|event| matches!(event, Event::Closed))?;
        // The stick has left the bus, so no read is under way any more.
        self.shared.ends.store(true, Memory::Release);
        self.shared.wanted.notify_all();
        self.reader.take().map_or(Ok(()), |reader| reader.join().map_err(|_| "the reader died".to_owned()))
    }

    /// Sends what is to be sent and waits until there is such an event.
    fn until(&mut self, wanted: impl Fn(&Event<u64>) -> bool) -> Result<Event<u64>, String> {
        let shared = &*self.shared;
        let deadline = shared.clock.now() + PATIENCE;
        let mut state = shared.lock();
        loop {
            while let Some(event) = state.pipeline.poll_event() {
                match event {
                    event if wanted(&event) => return Ok(event),
                    event @ (Event::Failed(_) | Event::LoadFailed(..) | Event::Returned(..)) => {
                        return Err(format!("{event:?}"));
                    }
                    _ => {}
                }
            }
            let now = shared.clock.now();
            if now >= deadline {
                return Err(format!("nothing came for {PATIENCE:?}"));
            }
            match state.pipeline.poll_transfer(now) {
                Some(transfer) if transfer.direction == Direction::In => {
                    state.to_read.push_back(transfer);
                    shared.wanted.notify_one();
                }
                Some(transfer) => {
                    drop(state);
                    let result = shared.handle.write_bulk(0x01, transfer.bytes(), NO_LIMIT);
                    state = shared.lock();
                    let completion = Completion {
                        actual: result.unwrap_or(0),
                        result: result.map(drop).map_err(error_of),
                        transfer,
                    };
                    state.pipeline.handle_completion(completion, shared.clock.now());
                }
                None => {
                    let until = state.pipeline.poll_timeout().unwrap_or(deadline).min(deadline);
                    let left = until.saturating_since(now);
                    if left.is_zero() {
                        state.pipeline.handle_timeout(now);
                        continue;
                    }
                    let waited = shared.came.wait_timeout(state, left);
                    state = waited.map_err(|_| "the reader died".to_owned())?.0;
                }
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The thread of the IN pipe: one synchronous read at a time.
    fn read(&self) {
        let mut state = self.lock();
        while !self.ends.load(Memory::Acquire) {
            let Some(mut transfer) = state.to_read.pop_front() else {
                state = self.wanted.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            drop(state);
            let result = self.handle.read_bulk(0x81, transfer.bytes_mut(), NO_LIMIT);
            state = self.lock();
            let (actual, result) = (result.unwrap_or(0), result.map(drop).map_err(error_of));
            let completion = Completion { transfer, actual, result };
            state.pipeline.handle_completion(completion, self.clock.now());
            self.came.notify_one();
        }
    }
}

fn error_of(error: rusb::Error) -> TransferError {
    match error {
        rusb::Error::NoDevice | rusb::Error::Io => TransferError::Gone,
        rusb::Error::Pipe => TransferError::Stalled,
        rusb::Error::Overflow => TransferError::Overflow,
        rusb::Error::Timeout => TransferError::Cancelled,
        _ => TransferError::Io(0),
    }
}
