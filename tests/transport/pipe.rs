use std::sync::Arc;
use std::time::{Duration, Instant};

use ncs2::transport::{
    Buffer, DeviceEnd, Direction, InWriter, PipeDevice, Reactor, ReactorKind, Transfer, TransferError,
    Transport, pipe, simulated_pipe,
};

use crate::{drain, info, out, read};

#[test]
fn out_transfers_arrive_whole_and_in_order() {
    let (mut host, mut device) = simulated_pipe(info());
    for n in 0..5u8 {
        host.submit(out(&[n; 10], u64::from(n))).expect("accepted");
    }
    for n in 0..5u8 {
        let transfer = device.next_out().expect("submitted");
        assert_eq!(transfer.bytes(), [n; 10]);
        device.complete_out(transfer, Ok(()));
    }
    assert!(device.next_out().is_none());
    let done = drain(&mut host);
    assert_eq!(done.iter().map(|c| c.transfer.token).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(done.iter().all(|c| c.result == Ok(()) && c.actual == 10));
}

#[test]
fn the_buffer_that_comes_back_is_the_one_that_went() {
    let (mut host, mut device) = simulated_pipe(info());
    let transfer = out(&[7; 4096], 1);
    let address = transfer.buffer.as_slice().as_ptr();
    host.submit(transfer).expect("accepted");
    let seen = device.next_out().expect("submitted");
    assert_eq!(seen.buffer.as_slice().as_ptr(), address, "handed over, not copied");
    device.complete_out(seen, Ok(()));
    assert_eq!(host.poll().expect("done").transfer.buffer.as_slice().as_ptr(), address);
}

#[test]
fn a_held_transfer_does_not_complete_and_later_ones_wait_behind_it() {
    let (mut host, mut device) = simulated_pipe(info());
    for token in 0..3 {
        host.submit(out(&[0; 4], token)).expect("accepted");
    }
    let first = device.next_out().expect("first");
    let second = device.next_out().expect("second");
    device.complete_out(second, Ok(()));
    assert!(host.poll().is_none(), "one direction completes in order");
    device.complete_out(first, Err(TransferError::Stalled));
    let done = drain(&mut host);
    assert_eq!(done.iter().map(|c| c.transfer.token).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(done[0].result, Err(TransferError::Stalled));
    assert_eq!(done[0].actual, 0);
    assert_eq!(done[1].result, Ok(()));
}

#[test]
fn disconnect_gives_every_buffer_back_as_gone() {
    let (mut host, mut device) = simulated_pipe(info());
    for token in 0..4 {
        host.submit(out(&[1; 64], token)).expect("accepted");
        host.submit(read(128, 100 + token)).expect("accepted");
    }
    let held_out = device.next_out().expect("held");
    let held_in = device.next_in().expect("held");
    device.disconnect();
    let refused = host.submit(out(&[1; 64], 9)).expect_err("the stick has left");
    assert_eq!(refused.reason, TransferError::Gone);
    assert_eq!(refused.transfer.buffer.len(), 64);
    device.complete_out(held_out, Ok(()));
    device.complete_in(held_in, 3, Ok(()));
    let done = drain(&mut host);
    assert_eq!(done.len(), 8);
    assert!(done.iter().all(|c| c.result == Err(TransferError::Gone)));
    for direction in [Direction::Out, Direction::In] {
        let tokens: Vec<_> = done
            .iter()
            .filter(|c| c.transfer.direction == direction)
            .map(|c| c.transfer.token % 100)
            .collect();
        assert_eq!(tokens, [0, 1, 2, 3], "{direction:?}");
    }
    assert!(done.iter().all(|c| !c.transfer.buffer.is_empty()));
}

#[test]
fn a_dropped_device_ends_even_what_it_held() {
    let (mut host, mut device) = simulated_pipe(info());
    host.submit(out(&[1; 64], 0)).expect("accepted");
    host.submit(out(&[1; 64], 1)).expect("accepted");
    let lost = device.next_out().expect("held");
    drop(device);
    drop(lost);
    let done = drain(&mut host);
    assert_eq!(done.iter().map(|c| c.transfer.token).collect::<Vec<_>>(), [0, 1]);
    assert!(done.iter().all(|c| c.result == Err(TransferError::Gone)));
}

#[test]
fn cancel_ends_the_waiting_at_once_and_recalls_the_held() {
    let (mut host, mut device) = simulated_pipe(info());
    for token in 0..3 {
        host.submit(read(64, token)).expect("accepted");
    }
    host.submit(out(&[5; 8], 10)).expect("accepted");
    let held = device.next_in().expect("held");
    host.cancel_all();
    assert_eq!(drain(&mut host).iter().map(|c| c.transfer.token).collect::<Vec<_>>(), [10]);
    assert!(device.take_recall());
    assert!(!device.take_recall(), "once");
    assert!(device.next_in().is_none());
    assert_eq!(device.in_capacity(), 0);
    device.complete_in(held, 5, Ok(()));
    let done = drain(&mut host);
    assert_eq!(done.iter().map(|c| c.transfer.token).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(done.iter().all(|c| c.result == Err(TransferError::Cancelled)));
    host.submit(out(&[5; 8], 11)).expect("a cancelled pipe goes on");
    assert_eq!(device.next_out().expect("next").token, 11);
}

#[test]
fn bad_ranges_and_shared_memory_for_reading_are_refused() {
    let (mut host, _device) = simulated_pipe(info());
    let transfer = Transfer { direction: Direction::Out, buffer: Buffer::zeroed(8), range: 4..9, token: 0 };
    assert!(matches!(host.submit(transfer).expect_err("outside").reason, TransferError::Io(_)));
    let buffer = Buffer::shared(Arc::new(vec![0u8; 8]));
    let transfer = Transfer::whole(Direction::In, buffer, 0);
    assert!(matches!(host.submit(transfer).expect_err("read-only").reason, TransferError::Io(_)));
}

/// (posted lengths, message length, zlp) → (actual, overflow) of each completed transfer, bytes consumed.
fn write(posted: &[usize], message: usize, zlp: bool) -> (Vec<(usize, bool)>, usize) {
    let (mut host, device) = simulated_pipe(info());
    let mut end = DeviceEnd::from(device);
    for (token, &len) in posted.iter().enumerate() {
        host.submit(read(len, token as u64)).expect("accepted");
    }
    let bytes: Vec<u8> = (0..message).map(|n| (n % 251) as u8).collect();
    let mut writer = InWriter::new(1024);
    let consumed = writer.write(&mut end, &bytes, zlp);
    let done = drain(&mut host);
    let mut came = Vec::new();
    for c in &done {
        came.extend_from_slice(c.bytes());
    }
    if done.iter().all(|c| c.result.is_ok()) {
        assert_eq!(came[..], bytes[..came.len()], "content");
    }
    (done.iter().map(|c| (c.actual, c.result == Err(TransferError::Overflow))).collect(), consumed)
}

#[test]
fn in_transfers_end_as_on_a_bus() {
    assert_eq!(write(&[84], 84, false), (vec![(84, false)], 84), "a header into its own buffer");
    assert_eq!(write(&[1024], 84, false), (vec![(84, false)], 84), "short");
    assert_eq!(write(&[84], 100, false), (vec![(84, true)], 100), "longer than the buffer");
    assert_eq!(write(&[1500], 2048, false), (vec![(1500, true)], 2048), "second packet overflows");
    assert_eq!(write(&[4096], 4096, false), (vec![(4096, false)], 4096), "exactly full");
    assert_eq!(write(&[8192], 4096, false), (vec![], 4096), "whole packets leave the transfer open");
    assert_eq!(write(&[8192], 4096, true), (vec![(4096, false)], 4096), "until a zero-length packet");
    assert_eq!(write(&[1024, 1024], 1024, true), (vec![(1024, false), (0, false)], 1024));
    assert_eq!(write(&[1024, 1024], 1025, false), (vec![(1024, false), (1, false)], 1025));
    assert_eq!(write(&[2048], 1023, false), (vec![(1023, false)], 1023));
    assert_eq!(write(&[1024], 3000, false), (vec![(1024, false)], 1024), "the rest is held back");
    assert_eq!(write(&[], 84, false), (vec![], 0), "no buffer: NAK");
}

#[test]
fn arming_sees_what_is_there_and_bells_what_comes() {
    let (mut host, mut device) = pipe(info()).expect("eventfd");
    let mut reactor = Reactor::new(ReactorKind::Epoll).expect("epoll");
    let on = host.wait_on().expect("a descriptor");
    let token = reactor.register(on.fd, on.interest()).expect("registered");
    let mut ready = Vec::new();
    for round in 0..3 {
        assert!(!host.arm(), "nothing there in round {round}");
        reactor.turn(Some(Duration::ZERO), &mut ready).expect("turn");
        assert!(ready.is_empty(), "asleep in round {round}");
        host.submit(out(&[1], round)).expect("accepted");
        let transfer = device.next_out().expect("submitted");
        device.complete_out(transfer, Ok(()));
        reactor.turn(Some(Duration::ZERO), &mut ready).expect("turn");
        assert_eq!(ready, [token], "belled in round {round}");
        assert!(host.arm(), "a completion is there");
        assert_eq!(drain(&mut host).len(), 1);
    }
    // Not armed: no bell.
    host.submit(out(&[1], 9)).expect("accepted");
    let transfer = device.next_out().expect("submitted");
    device.complete_out(transfer, Ok(()));
    reactor.turn(Some(Duration::ZERO), &mut ready).expect("turn");
    assert!(ready.is_empty(), "a busy pipe makes no system call");
}

#[test]
fn a_sleeping_device_is_not_woken_by_posted_reads_unless_it_wants_them() {
    let (mut host, mut device) = pipe(info()).expect("eventfd");
    let mut reactor = Reactor::new(ReactorKind::Epoll).expect("epoll");
    let on = device.wait_on().expect("a descriptor");
    let token = reactor.register(on.fd, on.interest()).expect("registered");
    let mut ready = Vec::new();
    host.submit(read(64, 0)).expect("accepted");
    assert!(!device.arm(false));
    host.submit(read(64, 1)).expect("accepted");
    reactor.turn(Some(Duration::ZERO), &mut ready).expect("turn");
    assert!(ready.is_empty());
    assert!(device.arm(true));
    assert!(device.next_in().is_some() && device.next_in().is_some());
    assert!(!device.arm(true));
    host.submit(read(64, 2)).expect("accepted");
    assert!(host.poll().is_none(), "the host's turn is over: the bell goes");
    reactor.turn(Some(Duration::ZERO), &mut ready).expect("turn");
    assert_eq!(ready, [token]);
}

/// Echoes until the host leaves: each OUT transfer's bytes go into the next IN transfer.
fn echo(mut device: PipeDevice, kind: ReactorKind) {
    let mut reactor = Reactor::new(kind).expect("reactor");
    let on = device.wait_on().expect("a descriptor");
    reactor.register(on.fd, on.interest()).expect("registered");
    let mut ready = Vec::new();
    let mut answer: Option<Transfer> = None;
    loop {
        loop {
            if answer.is_none() {
                answer = device.next_out();
            }
            let Some(request) = answer.take() else { break };
            let Some(mut reply) = device.next_in() else {
                answer = Some(request);
                break;
            };
            let n = request.range.len();
            reply.bytes_mut()[..n].copy_from_slice(request.bytes());
            device.complete_out(request, Ok(()));
            device.complete_in(reply, n, Ok(()));
        }
        if device.is_closed() {
            return;
        }
        if !device.arm(answer.is_some()) {
            reactor.turn(None, &mut ready).expect("turn");
        }
    }
}

/// `count` echoes with at most `depth` in flight; returns the time and the number of sleeps of the host.
fn ping_pong(kind: ReactorKind, depth: usize, count: u64, len: usize) -> (Duration, u64) {
    let (mut host, device) = pipe(info()).expect("eventfd");
    let thread = std::thread::spawn(move || echo(device, kind));
    let mut reactor = Reactor::new(kind).expect("reactor");
    let on = host.wait_on().expect("a descriptor");
    reactor.register(on.fd, on.interest()).expect("registered");
    let mut ready = Vec::new();
    let start = Instant::now();
    let (mut next_out, mut next_in, mut sleeps, mut done) = (0u64, 0u64, 0u64, 0u64);
    let mut idle: Vec<(Transfer, Transfer)> =
        (0..depth).map(|_| (out(&vec![0; len], 0), read(len, 0))).collect();
    let (mut outs, mut ins) = (Vec::new(), Vec::new());
    while done < count {
        while let Some((mut o, mut i)) = idle.pop() {
            if done + (depth - idle.len()) as u64 > count {
                break;
            }
            (o.token, i.token) = (next_out, next_out);
            o.bytes_mut()[..8].copy_from_slice(&next_out.to_le_bytes());
            next_out += 1;
            host.submit(i).expect("accepted");
            host.submit(o).expect("accepted");
        }
        while let Some(completion) = host.poll() {
            assert_eq!(completion.result, Ok(()));
            match completion.transfer.direction {
                Direction::Out => outs.push(completion.transfer),
                Direction::In => {
                    assert_eq!(completion.transfer.token, next_in, "in order");
                    assert_eq!(completion.bytes()[..8], next_in.to_le_bytes(), "its own answer");
                    next_in += 1;
                    done += 1;
                    ins.push(completion.transfer);
                }
            }
            while !outs.is_empty() && !ins.is_empty() {
                idle.extend(outs.pop().zip(ins.pop()));
            }
        }
        if idle.is_empty() && done < count && !host.arm() {
            sleeps += 1;
            reactor.turn(Some(Duration::from_secs(20)), &mut ready).expect("turn");
        }
    }
    let elapsed = start.elapsed();
    drop(host);
    thread.join().expect("the echo ends when the host leaves");
    (elapsed, sleeps)
}

#[test]
fn two_threads_keep_order_and_content() {
    for kind in [ReactorKind::detect().kind, ReactorKind::Epoll] {
        for depth in [1, 3, 64] {
            ping_pong(kind, depth, 4_000, 64);
        }
    }
}

/// `cargo test --test transport -- --ignored --nocapture micro_bench`
#[test]
#[ignore = "a measurement, not a test"]
fn micro_bench() {
    for kind in [ReactorKind::detect().kind, ReactorKind::Epoll] {
        for depth in [1, 4, 16, 64] {
            let count = if depth == 1 { 100_000 } else { 1_000_000 };
            let (cpu_before, start) = (cpu(), count);
            let (elapsed, sleeps) = ping_pong(kind, depth, count, 84);
            let cpu = cpu() - cpu_before;
            let transfers = 2.0 * start as f64;
            println!(
                "{} depth {depth}: {:.0} ns wall and {:.0} ns CPU (both threads) per transfer, {:.4} host sleeps per transfer",
                kind.as_str(),
                elapsed.as_nanos() as f64 / transfers,
                cpu * 1e9 / transfers,
                sleeps as f64 / transfers,
            );
        }
    }
    // One thread, no contention: the cost of the calls themselves.
    let (mut host, mut device) = simulated_pipe(info());
    let mut transfer = Some(out(&[0; 84], 0));
    let start = Instant::now();
    for _ in 0..1_000_000 {
        host.submit(transfer.take().expect("back")).expect("accepted");
        let t = device.next_out().expect("submitted");
        device.complete_out(t, Ok(()));
        transfer = Some(host.poll().expect("done").transfer);
    }
    println!("one thread: {:.0} ns per transfer, both sides", start.elapsed().as_nanos() as f64 / 1e6);
}

/// CPU seconds of this process.
fn cpu() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}
