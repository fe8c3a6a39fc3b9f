//! Every interleaving of a kernel that works on URBs and an owner that submits, cancels and drops: nobody may touch a
//! transfer's memory while the other has it, and each transfer comes back once. The kernel is a thread of the model; the
//! memory is a flag that notices when both are in it.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use rustix::event::{EventfdFlags, eventfd};

use super::super::urb::Urb;
use super::*;
use crate::transport::{Buffer, MemoryKind};

/// Whether somebody is in the memory of a transfer: one each, found by the buffer's address.
type Cells = std::sync::Arc<Vec<(usize, Cell)>>;

#[derive(Default)]
struct Cell(AtomicBool);

impl Cell {
    /// Is in the memory for a while.
    fn occupy(&self) {
        assert!(!self.0.swap(true, Ordering::SeqCst), "two are in the same memory");
        loom::thread::yield_now();
        self.0.store(false, Ordering::SeqCst);
    }
}

/// What the controller and the owner's file share.
#[derive(Default)]
struct Kernel {
    queued: Vec<Urb>,
    /// On the bus: can be discarded, but ends when it ends.
    running: Option<u64>,
    discarded: Vec<u64>,
    finished: Vec<Finished>,
}

struct ModelPort {
    kernel: Arc<Mutex<Kernel>>,
}

impl UrbPort for ModelPort {
    fn submit(&mut self, urb: Urb) -> Result<(), (Urb, Errno)> {
        self.kernel.lock().expect("no thread panicked").queued.push(urb);
        Ok(())
    }

    fn reap(&mut self) -> Result<Finished, Errno> {
        let mut kernel = self.kernel.lock().expect("no thread panicked");
        if kernel.finished.is_empty() { Err(Errno::AGAIN) } else { Ok(kernel.finished.remove(0)) }
    }

    fn discard(&mut self, id: u64) {
        let mut kernel = self.kernel.lock().expect("no thread panicked");
        if kernel.running == Some(id) {
            kernel.discarded.push(id);
        } else if let Some(at) = kernel.queued.iter().position(|urb| urb.id == id) {
            let urb = kernel.queued.remove(at);
            kernel.finished.push(Finished { urb, status: Errno::NOENT.raw_os_error(), actual: 0 });
        }
    }

    fn clear_halt(&mut self, _: u8) -> Result<(), Errno> {
        Ok(())
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        static EVENT: OnceLock<OwnedFd> = OnceLock::new();
        EVENT.get_or_init(|| eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).as_fd()
    }
}

/// One step of the controller: takes the next URB, is in its memory without any lock, and gives it back.
fn work(kernel: &Mutex<Kernel>, cells: &Cells) {
    let urb = {
        let mut kernel = kernel.lock().expect("no thread panicked");
        if kernel.queued.is_empty() {
            return;
        }
        let urb = kernel.queued.remove(0);
        kernel.running = Some(urb.id);
        urb
    };
    let at = urb.address() as usize;
    if let Some((_, cell)) = cells.iter().find(|(start, _)| *start <= at && at < *start + 1024) {
        cell.occupy();
    }
    let mut kernel = kernel.lock().expect("no thread panicked");
    kernel.running = None;
    let cancelled = kernel.discarded.contains(&urb.id);
    let status = if cancelled { Errno::NOENT.raw_os_error() } else { 0 };
    let actual = if cancelled { 0 } else { urb.len() };
    kernel.finished.push(Finished { urb, status, actual });
}

fn new_transport(kernel: &Arc<Mutex<Kernel>>) -> BulkTransport<ModelPort> {
    let info = TransportInfo {
        max_packet_bytes: 1024,
        speed_mbps: 5000,
        memory: MemoryKind::Copied,
        simulated: false,
    };
    BulkTransport::new(ModelPort { kernel: kernel.clone() }, info)
}

/// Runs `owner` beside a controller that does `steps` steps.
fn explore(steps: usize, owner: fn(&mut BulkTransport<ModelPort>, &Cells, Vec<Buffer>)) {
    let mut model = loom::model::Builder::new();
    // Interleavings with up to three forced switches: all that the two can do to each other, in a second.
    model.preemption_bound = Some(3);
    model.check(move || {
        let buffers: Vec<Buffer> = (0..2).map(|_| Buffer::zeroed(1024)).collect();
        let cells: Cells = std::sync::Arc::new(
            buffers.iter().map(|b| (b.as_slice().as_ptr() as usize, Cell::default())).collect(),
        );
        let kernel = Arc::new(Mutex::new(Kernel::default()));
        let mut transport = new_transport(&kernel);
        let (theirs, their_cells) = (kernel, cells.clone());
        let controller = loom::thread::spawn(move || (0..steps).for_each(|_| work(&theirs, &their_cells)));
        owner(&mut transport, &cells, buffers);
        controller.join().expect("the controller ends");
    });
}

/// The owner has the memory again: it writes.
fn touch(cells: &Cells, completion: &Completion) {
    let at = completion.transfer.buffer.as_slice().as_ptr() as usize;
    let (_, cell) = cells.iter().find(|(start, _)| *start == at).expect("a buffer of the test");
    cell.occupy();
}

/// Takes completions until as many came as were submitted; each once.
fn drain(t: &mut BulkTransport<ModelPort>, cells: &Cells, count: usize) -> HashMap<u64, usize> {
    let mut seen = HashMap::new();
    while seen.len() < count {
        match t.poll() {
            Some(completion) => {
                touch(cells, &completion);
                let token = completion.transfer.token;
                assert!(seen.insert(token, completion.actual).is_none(), "{token} came twice");
            }
            None => loom::thread::yield_now(),
        }
    }
    assert!(t.poll().is_none());
    seen
}

fn submit(t: &mut BulkTransport<ModelPort>, direction: Direction, buffer: Buffer, token: u64) {
    t.submit(Transfer::whole(direction, buffer, token)).expect("accepted");
}

#[test]
fn memory_is_never_shared_with_the_kernel() {
    explore(2, |t, cells, buffers| {
        for (token, buffer) in buffers.into_iter().enumerate() {
            let direction = if token == 0 { Direction::In } else { Direction::Out };
            submit(t, direction, buffer, token as u64);
        }
        // The controller may have had too few turns: cancelling ends what it never began.
        loom::thread::yield_now();
        t.cancel_all();
        drain(t, cells, 2);
    });
}

#[test]
fn cancel_races_with_completion_and_the_memory_is_lent_again() {
    explore(3, |t, cells, buffers| {
        let mut buffers = buffers.into_iter();
        submit(t, Direction::In, buffers.next().expect("two"), 0);
        t.cancel_all();
        // The first may still be under way.
        submit(t, Direction::In, buffers.next().expect("two"), 1);
        t.cancel_all();
        let seen = drain(t, cells, 2);
        assert!(seen.values().all(|&actual| actual == 0 || actual == 1024), "{seen:?}");
    });
}

/// Memory whose end is a write to it.
struct Watched {
    bytes: Vec<u8>,
    cells: Cells,
}

impl AsRef<[u8]> for Watched {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.cells[0].1.occupy();
    }
}

#[test]
fn dropped_transport_frees_nothing_that_the_kernel_has() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let bytes = vec![0; 1024];
        let cells: Cells = std::sync::Arc::new(vec![(bytes.as_ptr() as usize, Cell::default())]);
        let kernel = Arc::new(Mutex::new(Kernel::default()));
        let mut transport = new_transport(&kernel);
        let watched = Watched { bytes, cells: cells.clone() };
        submit(&mut transport, Direction::Out, Buffer::shared(std::sync::Arc::new(watched)), 0);
        let (theirs, their_cells) = (kernel, cells);
        let controller = loom::thread::spawn(move || work(&theirs, &their_cells));
        // What came back is freed here, what did not is left to the kernel.
        drop(transport.poll());
        drop(transport);
        controller.join().expect("the controller ends");
    });
}
