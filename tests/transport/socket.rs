use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ncs2::transport::{
    DeviceEnd, Direction, InWriter, Reactor, ReactorKind, SocketDevice, SocketTransport, TransferError,
    Transport,
};

use crate::{Rng, drain, info, out, read};

fn pair() -> (SocketTransport, SocketDevice) {
    let (a, b) = UnixStream::pair().expect("socketpair");
    (SocketTransport::new(a, info()).expect("host"), SocketDevice::new(b).expect("device"))
}

#[test]
fn bytes_go_both_ways_with_their_boundaries() {
    let (mut host, device) = pair();
    let mut device = DeviceEnd::from(device);
    let mut writer = InWriter::new(1024);
    host.submit(out(b"header", 1)).expect("accepted");
    host.submit(out(b"payload", 2)).expect("accepted");
    host.submit(read(1024, 3)).expect("accepted");
    host.submit(read(2048, 4)).expect("accepted");
    host.submit(read(84, 5)).expect("accepted");
    assert!(!host.arm());
    for expected in [&b"header"[..], b"payload"] {
        let transfer = device.next_out().expect("sent");
        assert_eq!(transfer.bytes(), expected);
        device.complete_out(transfer, Ok(()));
    }
    assert_eq!(device.in_capacity(), 1024 + 2048 + 84);
    assert_eq!(writer.write(&mut device, &[7; 84], false), 84);
    assert_eq!(writer.write(&mut device, &[8; 2048], false), 2048);
    assert_eq!(writer.write(&mut device, &[9; 100], false), 100);
    assert!(!device.arm(false));
    let done = drain(&mut host);
    let summary: Vec<_> = done.iter().map(|c| (c.transfer.token, c.actual, c.result)).collect();
    let overflow = Err(TransferError::Overflow);
    assert_eq!(
        summary,
        [(1, 6, Ok(())), (2, 7, Ok(())), (3, 84, Ok(())), (4, 2048, Ok(())), (5, 84, overflow)]
    );
    assert_eq!(done[3].bytes(), [8; 2048]);
}

#[test]
fn disconnect_and_a_closed_socket_give_every_buffer_back_as_gone() {
    for politely in [true, false] {
        let (mut host, mut device) = pair();
        for token in 0..4 {
            host.submit(out(&[1; 64], token)).expect("accepted");
            host.submit(read(1024, token)).expect("accepted");
        }
        assert!(!host.arm());
        let held = device.next_out().expect("sent");
        if politely {
            device.disconnect();
            device.complete_out(held, Ok(()));
        } else {
            drop(device);
        }
        let done = drain(&mut host);
        assert_eq!(done.len(), 8);
        assert!(done.iter().all(|c| c.result == Err(TransferError::Gone) && !c.transfer.buffer.is_empty()));
        assert_eq!(host.submit(out(&[1], 9)).expect_err("gone").reason, TransferError::Gone);
    }
}

#[test]
fn cancel_waits_for_the_stick_and_gives_up_when_asked_twice() {
    let (mut host, mut device) = pair();
    for token in 0..3 {
        host.submit(read(1024, token)).expect("accepted");
    }
    assert!(!host.arm());
    let held = device.next_in().expect("posted");
    host.cancel_all();
    assert!(!host.arm());
    assert!(device.arm(false), "recalled");
    assert!(device.take_recall());
    device.complete_in(held, 10, Ok(()));
    device.arm(false);
    let done = drain(&mut host);
    assert_eq!(done.len(), 3);
    assert!(done.iter().all(|c| c.result == Err(TransferError::Cancelled)));
    // And goes on.
    host.submit(out(&[4; 5], 7)).expect("accepted");
    host.arm();
    let transfer = device.next_out().expect("sent");
    device.complete_out(transfer, Ok(()));
    device.arm(false);
    assert_eq!(host.poll().expect("done").result, Ok(()));
    // A stick that does not answer.
    host.submit(read(1024, 8)).expect("accepted");
    host.arm();
    let _held = device.next_in().expect("posted");
    host.cancel_all();
    assert!(host.poll().is_none());
    host.cancel_all();
    assert!(host.poll().expect("given up").result.is_err());
}

/// Large and small transfers of random sizes through a socket whose buffer is far smaller, both ends by turns.
#[test]
fn partial_reads_and_writes_keep_the_bytes() {
    for seed in 1..=6u64 {
        let mut rng = Rng(seed);
        let (mut host, device) = pair();
        let mut device = DeviceEnd::from(device);
        let mut writer = InWriter::new(1024);
        let (mut sent, mut echoed, mut came) = (Vec::new(), Vec::new(), Vec::new());
        let (mut written, mut posted, mut outs, mut done_outs) = (0, 0usize, 0, 0);
        let total = 6 << 20;
        let mut rounds = 0;
        while came.len() < total || done_outs < outs {
            rounds += 1;
            assert!(rounds < 200_000, "seed {seed}: stuck at {} of {total}", came.len());
            if sent.len() < total {
                let len = match rng.below(4) {
                    0 => rng.below(3 << 20),
                    _ => rng.below(5000),
                }
                .min(total - sent.len());
                let bytes: Vec<u8> = (0..len).map(|_| rng.next() as u8).collect();
                sent.extend_from_slice(&bytes);
                host.submit(out(&bytes, outs)).expect("accepted");
                outs += 1;
            }
            if posted < 3 {
                host.submit(read((1 + rng.below(3000)) * 1024, 0)).expect("accepted");
                posted += 1;
            }
            while let Some(completion) = host.poll() {
                assert_eq!(completion.result, Ok(()), "seed {seed}");
                match completion.transfer.direction {
                    Direction::Out => {
                        assert_eq!(completion.transfer.token, done_outs, "seed {seed}");
                        done_outs += 1;
                    }
                    Direction::In => {
                        posted -= 1;
                        came.extend_from_slice(completion.bytes());
                    }
                }
            }
            host.arm();
            while let Some(transfer) = device.next_out() {
                echoed.extend_from_slice(transfer.bytes());
                device.complete_out(transfer, Ok(()));
            }
            let end = if echoed.len() == total {
                total
            } else {
                (written + 4096 * rng.below(200)).min(echoed.len())
            };
            // The last message ends by a zero-length packet, for a total of whole packets.
            written += writer.write(&mut device, &echoed[written..end], end == total && written < total);
            writer.flush(&mut device);
            device.arm(written < echoed.len());
        }
        assert!(echoed == sent && came == sent, "seed {seed}");
    }
}

#[test]
fn hostile_bytes_break_the_link_and_nothing_else() {
    for seed in 0..3000u64 {
        let mut rng = Rng(seed);
        let (near, mut far) = UnixStream::pair().expect("socketpair");
        let mut bytes: Vec<u8> = (0..rng.below(200)).map(|_| rng.next() as u8).collect();
        // Half of them begin with something that looks right.
        if rng.below(2) == 0 && bytes.len() >= 16 {
            bytes[0] = [0x81, 0x82, 0x83, 0x01, 0x02, 0x03][rng.below(6)];
            bytes[1] = rng.below(7) as u8;
            bytes[2..8].fill(0);
            bytes[4] = rng.below(100) as u8;
            bytes[8..16].fill(0);
        }
        far.write_all(&bytes).expect("written");
        if seed % 2 == 0 {
            let mut host = SocketTransport::new(near, info()).expect("host");
            host.submit(out(&[1; 50], 0)).expect("accepted");
            host.submit(read(1024, 1)).expect("accepted");
            host.arm();
            drop(far);
            let mut done = drain(&mut host);
            host.arm();
            done.extend(drain(&mut host));
            assert_eq!(done.len(), 2, "seed {seed}");
        } else {
            let mut device = SocketDevice::new(near).expect("device");
            drop(far);
            let mut taken = 0;
            while let Some(transfer) = device.next_out().or_else(|| device.next_in()) {
                taken += 1;
                assert!(taken < 100, "seed {seed}");
                match transfer.direction {
                    Direction::Out => device.complete_out(transfer, Ok(())),
                    Direction::In => device.complete_in(transfer, 0, Ok(())),
                }
            }
            device.arm(true);
            assert!(device.is_closed(), "seed {seed}");
        }
    }
}

#[test]
fn a_host_that_floods_is_cut_off() {
    let (near, mut far) = UnixStream::pair().expect("socketpair");
    let mut device = SocketDevice::new(near).expect("device");
    for id in 0..2000u64 {
        let mut frame = [0u8; 16];
        frame[0] = 0x02;
        frame[4] = 1;
        frame[8..].copy_from_slice(&id.to_le_bytes());
        if far.write_all(&frame).is_err() {
            break;
        }
        device.arm(false);
    }
    assert!(device.is_closed(), "more than 1024 posted buffers");
}

#[test]
fn answers_that_were_never_asked_for_mean_gone() {
    let (near, mut far) = UnixStream::pair().expect("socketpair");
    let mut host = SocketTransport::new(near, info()).expect("host");
    host.submit(read(64, 0)).expect("accepted");
    host.arm();
    let mut frame = [0u8; 16];
    far.read_exact(&mut frame).expect("the request");
    assert_eq!((frame[0], frame[4]), (0x02, 64), "one IN of 64 bytes");
    frame[0] = 0x82;
    frame[4] = 65; // One more than posted.
    far.write_all(&frame).expect("written");
    assert_eq!(host.poll().expect("ended").result, Err(TransferError::Gone));
}

#[test]
fn a_device_thread_serves_a_socket_through_either_reactor() {
    for kind in [ReactorKind::detect().kind, ReactorKind::Epoll] {
        let (mut host, device) = pair();
        let thread = std::thread::spawn(move || {
            let mut device = DeviceEnd::from(device);
            let mut reactor = Reactor::new(kind).expect("reactor");
            let on = device.wait_on().expect("descriptor");
            let token = reactor.register(on.fd, on.interest()).expect("registered");
            let mut writer = InWriter::new(1024);
            let (mut pending, mut ready) = (Vec::new(), Vec::new());
            while !device.is_closed() {
                while let Some(transfer) = device.next_out() {
                    pending.extend_from_slice(transfer.bytes());
                    device.complete_out(transfer, Ok(()));
                }
                let n = writer.write(&mut device, &pending, false);
                pending.drain(..n);
                if !device.arm(!pending.is_empty()) {
                    reactor
                        .set_interest(token, device.wait_on().expect("descriptor").interest())
                        .expect("changed");
                    reactor.turn(Some(Duration::from_secs(20)), &mut ready).expect("turn");
                }
            }
        });
        let mut reactor = Reactor::new(kind).expect("reactor");
        let on = host.wait_on().expect("descriptor");
        let token = reactor.register(on.fd, on.interest()).expect("registered");
        let mut ready = Vec::new();
        for n in 0..200u64 {
            let len = if n % 50 == 0 { 3 << 20 } else { 999 };
            host.submit(out(&vec![n as u8; len], n)).expect("accepted");
            let mut left = len;
            let mut outs = 1;
            host.submit(read(4 << 20, n)).expect("accepted");
            while left > 0 || outs > 0 {
                while let Some(completion) = host.poll() {
                    assert_eq!(completion.result, Ok(()), "round {n} on {kind:?}");
                    match completion.transfer.direction {
                        Direction::Out => outs -= 1,
                        Direction::In => {
                            assert!(completion.bytes().iter().all(|&b| b == n as u8));
                            left -= completion.actual;
                            if left > 0 {
                                host.submit(read(4 << 20, n)).expect("accepted");
                            }
                        }
                    }
                    if left == 0 {
                        break;
                    }
                }
                // A message of whole packets leaves the read open: its bytes are counted when it ends.
                if len.is_multiple_of(1024) && outs == 0 {
                    break;
                }
                if (left > 0 || outs > 0) && !host.arm() {
                    reactor
                        .set_interest(token, host.wait_on().expect("descriptor").interest())
                        .expect("changed");
                    reactor.turn(Some(Duration::from_secs(20)), &mut ready).expect("turn");
                }
            }
            if len.is_multiple_of(1024) {
                // Ended by the next, short, message of the same value.
                host.submit(out(&[n as u8], n)).expect("accepted");
                let mut ended = 0;
                while ended < 2 {
                    match host.poll() {
                        Some(_) => ended += 1,
                        None if host.arm() => {}
                        None => {
                            let on = host.wait_on().expect("descriptor").interest();
                            reactor.set_interest(token, on).expect("changed");
                            reactor.turn(Some(Duration::from_secs(20)), &mut ready).expect("turn");
                        }
                    }
                }
            }
        }
        drop(host);
        thread.join().expect("the server ends with the host");
    }
}
