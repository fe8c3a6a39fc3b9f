use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};

use super::super::urb::Urb;
use super::*;
use crate::transport::{Buffer, MemoryKind};

/// A port that behaves as the test tells it to.
struct FakePort {
    state: Arc<Mutex<State>>,
    event: OwnedFd,
}

#[derive(Default)]
struct State {
    held: Vec<Urb>,
    finished: VecDeque<Finished>,
    /// `submit` fails with ENOMEM above this many bytes held.
    memory_limit: Option<usize>,
    unplugged: bool,
    suspended: bool,
    reaps: usize,
    discarded: Vec<u64>,
    cleared: Vec<u8>,
    submitted_lens: Vec<usize>,
}

impl State {
    fn finish(&mut self, index: usize, status: i32, actual: usize) {
        let urb = self.held.remove(index);
        self.finished.push_back(Finished { urb, status, actual });
    }

    fn unplug(&mut self) {
        self.unplugged = true;
        for urb in std::mem::take(&mut self.held) {
            self.finished.push_back(Finished { urb, status: Errno::SHUTDOWN.raw_os_error(), actual: 0 });
        }
    }
}

impl UrbPort for FakePort {
    fn submit(&mut self, urb: Urb) -> Result<(), (Urb, Errno)> {
        let mut state = self.state.lock();
        if state.unplugged {
            return Err((urb, Errno::NODEV));
        }
        let held: usize = state.held.iter().map(Urb::len).sum();
        if state.memory_limit.is_some_and(|limit| held + urb.len() > limit) {
            return Err((urb, Errno::NOMEM));
        }
        state.submitted_lens.push(urb.len());
        state.held.push(urb);
        Ok(())
    }

    fn reap(&mut self) -> Result<Finished, Errno> {
        let mut state = self.state.lock();
        state.reaps += 1;
        match state.finished.pop_front() {
            Some(finished) => Ok(finished),
            None if state.unplugged => Err(Errno::NODEV),
            None => Err(Errno::AGAIN),
        }
    }

    fn discard(&mut self, id: u64) {
        let mut state = self.state.lock();
        state.discarded.push(id);
        if let Some(index) = state.held.iter().position(|urb| urb.id == id) {
            state.finish(index, Errno::NOENT.raw_os_error(), 0);
        }
    }

    fn clear_halt(&mut self, endpoint: u8) -> Result<(), Errno> {
        self.state.lock().cleared.push(endpoint);
        Ok(())
    }

    fn was_suspended(&mut self) -> bool {
        self.state.lock().suspended
    }

    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

fn transport() -> (BulkTransport<FakePort>, Arc<Mutex<State>>) {
    let state = Arc::new(Mutex::new(State::default()));
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let info = TransportInfo {
        max_packet_bytes: 1024,
        speed_mbps: 5000,
        memory: MemoryKind::Copied,
        simulated: false,
    };
    (BulkTransport::new(FakePort { state: state.clone(), event }, info), state)
}

fn transfer(direction: Direction, len: usize, token: u64) -> Transfer {
    Transfer { direction, buffer: Buffer::zeroed(len), range: 0..len, token }
}

fn drain(transport: &mut BulkTransport<FakePort>) -> Vec<(u64, usize, Result<(), TransferError>)> {
    std::iter::from_fn(|| transport.poll()).map(|c| (c.transfer.token, c.actual, c.result)).collect()
}

#[test]
fn out_completes_in_order_even_when_reaped_out_of_order() {
    let (mut t, state) = transport();
    t.submit(transfer(Direction::Out, 84, 1)).expect("accepted");
    t.submit(transfer(Direction::Out, 3 * PIECE_BYTES + 5, 2)).expect("accepted");
    t.submit(transfer(Direction::Out, 84, 3)).expect("accepted");
    assert_eq!(state.lock().submitted_lens, [84, PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 5, 84]);
    let last = state.lock().held.len() - 1;
    state.lock().finish(last, 0, 84);
    assert_eq!(drain(&mut t), [], "the third waits for the first two");
    while !state.lock().held.is_empty() {
        let len = state.lock().held[0].len();
        state.lock().finish(0, 0, len);
    }
    assert_eq!(drain(&mut t), [(1, 84, Ok(())), (2, 3 * PIECE_BYTES + 5, Ok(())), (3, 84, Ok(()))]);
}

#[test]
fn short_packet_ends_an_in_transfer_and_the_next_one_goes_on() {
    let (mut t, state) = transport();
    t.submit(transfer(Direction::In, 1024, 1)).expect("accepted");
    t.submit(transfer(Direction::In, 8 * PIECE_BYTES, 2)).expect("accepted");
    t.submit(transfer(Direction::In, 1024, 3)).expect("accepted");
    assert_eq!(state.lock().held.len(), 2, "the third waits: the second is longer than one piece");
    state.lock().finish(0, 0, 84);
    state.lock().finish(0, 0, 4 * PIECE_BYTES);
    assert_eq!(drain(&mut t), [(1, 84, Ok(()))]);
    state.lock().finish(0, 0, 10);
    assert_eq!(drain(&mut t), [(2, 4 * PIECE_BYTES + 10, Ok(()))]);
    assert_eq!(state.lock().held.len(), 1);
}

#[test]
fn in_transfer_that_a_packet_could_overflow_is_refused() {
    let (mut t, _state) = transport();
    for len in [0, 84, 1023, 1025] {
        let rejected = t.submit(transfer(Direction::In, len, 1)).expect_err("no whole number of packets");
        assert_eq!(rejected.reason, TransferError::Overflow, "length {len}");
        assert_eq!(rejected.transfer.buffer.len(), len);
    }
}

#[test]
fn memory_shortage_is_back_pressure_and_makes_pieces_smaller() {
    let (mut t, state) = transport();
    state.lock().memory_limit = Some(100 * 1024);
    t.submit(transfer(Direction::Out, 300 * 1024, 1)).expect("accepted");
    assert_eq!(state.lock().submitted_lens.first(), Some(&(64 * 1024)), "halved until it fits");
    let mut turns = 0;
    while !state.lock().held.is_empty() {
        let len = state.lock().held[0].len();
        state.lock().finish(0, 0, len);
        assert!(!t.arm() || turns > 0);
        turns += 1;
    }
    assert_eq!(drain(&mut t), [(1, 300 * 1024, Ok(()))]);
    assert!(state.lock().submitted_lens.iter().all(|&len| len <= 64 * 1024));
}

#[test]
fn starved_transport_asks_to_be_polled_and_goes_on_when_others_gave_memory_back() {
    let (mut t, state) = transport();
    state.lock().memory_limit = Some(0);
    t.submit(transfer(Direction::In, 1024, 1)).expect("accepted");
    t.submit(transfer(Direction::Out, 84, 2)).expect("accepted");
    assert_eq!(state.lock().held.len(), 0);
    assert!(!t.arm(), "nothing is ready");
    assert_eq!(t.retry_after(), Some(RETRY), "no URB is out that would announce memory");
    // Another process gave some back.
    state.lock().memory_limit = Some(84);
    assert!(t.poll().is_none());
    assert_eq!(state.lock().submitted_lens, [84], "the one that fits");
    assert_eq!(t.retry_after(), Some(RETRY), "the other direction still waits");
    state.lock().memory_limit = None;
    assert!(t.poll().is_none());
    assert_eq!(t.retry_after(), None);
    let mut held = state.lock().held.len();
    while held > 0 {
        let len = state.lock().held[0].len();
        state.lock().finish(0, 0, len);
        held -= 1;
    }
    let mut done = drain(&mut t);
    done.sort_by_key(|d| d.0);
    assert_eq!(done, [(1, 1024, Ok(())), (2, 84, Ok(()))]);
}

#[test]
fn pieces_grow_again_after_a_shortage() {
    let (mut t, state) = transport();
    state.lock().memory_limit = Some(20 * 1024);
    t.submit(transfer(Direction::Out, 100 * 1024, 1)).expect("accepted");
    state.lock().memory_limit = None;
    let mut token = 1;
    while state.lock().submitted_lens.last() != Some(&PIECE_BYTES) {
        while !state.lock().held.is_empty() {
            let len = state.lock().held[0].len();
            state.lock().finish(0, 0, len);
        }
        drain(&mut t);
        token += 1;
        assert!(token < 1000, "pieces stay small: {:?}", state.lock().submitted_lens.last());
        t.submit(transfer(Direction::Out, PIECE_BYTES, token)).expect("accepted");
    }
}

#[test]
fn a_turn_asks_the_kernel_once_more_than_there_is_to_reap() {
    let (mut t, state) = transport();
    for token in 0..3 {
        t.submit(transfer(Direction::Out, 84, token)).expect("accepted");
    }
    for _ in 0..3 {
        state.lock().finish(0, 0, 84);
    }
    assert_eq!(drain(&mut t).len(), 3);
    assert_eq!(state.lock().reaps, 4);
    assert!(!t.arm());
    assert_eq!(state.lock().reaps, 5, "before it waits it looks again");
    t.submit(transfer(Direction::Out, 84, 3)).expect("accepted");
    state.lock().finish(0, 0, 84);
    assert!(t.arm(), "what came between two turns is found");
    assert_eq!(drain(&mut t).len(), 1);
}

#[test]
fn sleep_of_the_machine_is_an_unplug() {
    let (mut t, state) = transport();
    t.submit(transfer(Direction::In, 1024, 1)).expect("accepted");
    assert!(!t.arm());
    state.lock().suspended = true;
    assert!(t.arm(), "every transfer comes back");
    assert_eq!(drain(&mut t), [(1, 0, Err(TransferError::Gone))]);
    let rejected = t.submit(transfer(Direction::Out, 84, 2)).expect_err("gone");
    assert_eq!(rejected.reason, TransferError::Gone);
}

#[test]
fn late_reap_after_a_cancel_gives_what_had_come() {
    let (mut t, state) = transport();
    t.submit(transfer(Direction::In, 4096, 1)).expect("accepted");
    t.submit(transfer(Direction::In, 1024, 2)).expect("accepted");
    // Both completed before the cancel reached the controller, and are reaped after it.
    state.lock().finish(1, 0, 84);
    state.lock().finish(0, 0, 4096);
    t.cancel_all();
    assert_eq!(state.lock().discarded, [1, 0], "nobody had reaped them");
    let done = drain(&mut t);
    assert_eq!(done.len(), 2);
    assert_eq!((done[0].0, done[0].1), (1, 4096), "no byte is lost");
    assert_eq!((done[1].0, done[1].1), (2, 84));
}

#[test]
fn unplug_gives_every_buffer_back_as_gone_and_refuses_more() {
    let (mut t, state) = transport();
    for token in 0..4 {
        let direction = if token % 2 == 0 { Direction::Out } else { Direction::In };
        t.submit(transfer(direction, 4096, token)).expect("accepted");
    }
    state.lock().unplug();
    let mut ended = drain(&mut t);
    ended.sort_by_key(|e| e.0);
    assert_eq!(ended, (0..4).map(|token| (token, 0, Err(TransferError::Gone))).collect::<Vec<_>>());
    let rejected = t.submit(transfer(Direction::Out, 84, 9)).expect_err("gone");
    assert_eq!(rejected.reason, TransferError::Gone);
}

#[test]
fn what_had_completed_before_the_unplug_stays_complete() {
    let (mut t, state) = transport();
    t.submit(transfer(Direction::In, 1024, 1)).expect("accepted");
    t.submit(transfer(Direction::Out, 84, 2)).expect("accepted");
    state.lock().finish(1, 0, 84);
    state.lock().unplug();
    let done = drain(&mut t);
    assert!(done.contains(&(2, 84, Ok(()))), "{done:?}");
    assert!(done.contains(&(1, 0, Err(TransferError::Gone))), "{done:?}");
}

#[test]
fn unplug_of_an_idle_stick_is_noticed() {
    let (mut t, state) = transport();
    state.lock().unplug();
    assert!(t.poll().is_none());
    let rejected = t.submit(transfer(Direction::Out, 84, 9)).expect_err("gone");
    assert_eq!(rejected.reason, TransferError::Gone);
}

#[test]
fn stall_is_cleared_once_and_ends_what_is_in_flight() {
    let (mut t, state) = transport();
    t.submit(transfer(Direction::Out, 84, 1)).expect("accepted");
    t.submit(transfer(Direction::Out, 84, 2)).expect("accepted");
    state.lock().finish(0, Errno::PIPE.raw_os_error(), 0);
    assert_eq!(drain(&mut t), [(1, 0, Err(TransferError::Stalled)), (2, 0, Err(TransferError::Stalled))]);
    assert_eq!(state.lock().cleared, [ENDPOINT_OUT]);
}

#[test]
fn cancel_goes_backwards_and_what_had_completed_stays_complete() {
    let (mut t, state) = transport();
    for token in 0..3 {
        t.submit(transfer(Direction::Out, 84, token)).expect("accepted");
    }
    state.lock().finish(0, 0, 84);
    t.poll().expect("the first is done");
    t.cancel_all();
    assert_eq!(state.lock().discarded, [2, 1]);
    assert_eq!(drain(&mut t), [(1, 0, Err(TransferError::Cancelled)), (2, 0, Err(TransferError::Cancelled))]);
    t.submit(transfer(Direction::Out, 84, 9)).expect("a cancel does not break the transport");
}

proptest! {
    /// Whatever the kernel does, each transfer ends once, in order, with its own buffer.
    #[test]
    fn every_transfer_ends_exactly_once(
        lens in prop::collection::vec((any::<bool>(), 1_usize..40), 1..20),
        choices in prop::collection::vec((any::<prop::sample::Index>(), 0..20_u8), 0..200),
        limit in prop::option::of(20_000_usize..200_000),
    ) {
        let (mut t, state) = transport();
        state.lock().memory_limit = limit;
        let mut expected: [Vec<(u64, usize)>; 2] = [Vec::new(), Vec::new()];
        let mut ended: [Vec<(u64, usize)>; 2] = [Vec::new(), Vec::new()];
        let mut note = |t: &mut BulkTransport<FakePort>| {
            while let Some(c) = t.poll() {
                ended[usize::from(c.transfer.direction == Direction::In)].push((c.transfer.token, c.transfer.buffer.len()));
            }
        };
        for (token, &(is_in, kib)) in lens.iter().enumerate() {
            let direction = if is_in { Direction::In } else { Direction::Out };
            if t.submit(transfer(direction, kib * 1024, token as u64)).is_ok() {
                expected[usize::from(is_in)].push((token as u64, kib * 1024));
            }
        }
        for (index, what) in choices {
            let held = state.lock().held.len();
            if held > 0 {
                let at = index.index(held);
                let len = state.lock().held[at].len();
                match what {
                    0 => state.lock().finish(at, Errno::PROTO.raw_os_error(), len / 2),
                    1 => state.lock().unplug(),
                    2 => t.cancel_all(),
                    3..8 => state.lock().finish(at, 0, len / 2),
                    _ => state.lock().finish(at, 0, len),
                }
            }
            note(&mut t);
        }
        t.cancel_all();
        note(&mut t);
        prop_assert_eq!(ended, expected);
    }
}
