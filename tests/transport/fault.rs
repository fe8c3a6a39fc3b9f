use std::sync::Arc;
use std::time::Duration;

use ncs2::clock::{Clock, Instant, Manual, Monotonic};
use ncs2::transport::{
    Direction, Fault, FaultInjector, FaultRule, Fired, PipeDevice, PipeHost, Reactor, ReactorKind,
    TransferError, Transport, When, pipe, simulated_pipe,
};

use crate::{drain, info, out, read};

fn rule(direction: Option<Direction>, min_bytes: usize, when: When, fault: Fault) -> FaultRule {
    FaultRule { direction, min_bytes, when, fault }
}

fn broken(seed: u64, rules: &[FaultRule]) -> (FaultInjector<PipeHost>, PipeDevice, Arc<Manual>) {
    let (host, device) = simulated_pipe(info());
    let clock = Arc::new(Manual::new());
    (FaultInjector::new(host, seed, rules.iter().copied(), clock.clone()).expect("no alarm"), device, clock)
}

/// Accepts all OUT transfers and answers each posted IN with 0xAA; returns what came.
fn serve(device: &mut PipeDevice) -> Vec<Vec<u8>> {
    let mut came = Vec::new();
    while let Some(transfer) = device.next_out() {
        came.push(transfer.bytes().to_vec());
        device.complete_out(transfer, Ok(()));
    }
    while let Some(mut transfer) = device.next_in() {
        transfer.bytes_mut().fill(0xaa);
        let len = transfer.range.len();
        device.complete_in(transfer, len, Ok(()));
    }
    came
}

#[test]
fn each_fault_hits_its_transfer_and_no_other() {
    let faults = [Fault::Fail(TransferError::Stalled), Fault::Corrupt, Fault::Truncate(3), Fault::Drop];
    for direction in [Direction::Out, Direction::In] {
        for fault in faults {
            let (mut host, mut device, _) = broken(1, &[rule(Some(direction), 8, When::Nth(2), fault)]);
            for token in 0..4u64 {
                let transfer =
                    if direction == Direction::Out { out(&[5; 16], token) } else { read(16, token) };
                host.submit(transfer).expect("accepted");
            }
            host.submit(out(&[6; 4], 9)).expect("too small to be hit");
            let came = serve(&mut device);
            let done: Vec<_> = drain(&mut host).into_iter().filter(|c| c.transfer.token != 9).collect();
            let label = format!("{fault:?} {direction:?}");
            assert_eq!(done.iter().map(|c| c.transfer.token).collect::<Vec<_>>(), [0, 1, 2, 3], "{label}");
            for (n, c) in done.iter().enumerate().filter(|(n, _)| *n != 1) {
                assert_eq!((c.result, c.actual), (Ok(()), 16), "{label} {n}");
            }
            let hit = &done[1];
            assert_eq!(hit.transfer.range.len(), 16, "{label}: its own buffer");
            let arrived = came.iter().filter(|b| b.len() != 4).count();
            let flipped = |bytes: &[u8], of: u8| bytes.iter().map(|b| (b ^ of).count_ones()).sum::<u32>();
            match (fault, direction) {
                (Fault::Fail(error), _) => assert_eq!(hit.result, Err(error), "{label}"),
                (Fault::Corrupt, Direction::Out) => {
                    assert_eq!(flipped(&came[1], 5), 1, "{label}");
                    assert_eq!(hit.transfer.bytes(), [5; 16], "{label}: the host's own bytes are whole");
                }
                (Fault::Corrupt, Direction::In) => assert_eq!(flipped(hit.bytes(), 0xaa), 1, "{label}"),
                (Fault::Truncate(_), _) => assert_eq!((hit.result, hit.actual), (Ok(()), 3), "{label}"),
                (Fault::Drop, Direction::Out) => {
                    assert_eq!((hit.result, hit.actual, arrived), (Ok(()), 16, 3), "{label}");
                }
                (_, _) => assert_eq!((hit.result, hit.actual), (Ok(()), 0), "{label}"),
            }
            assert_eq!(host.fired(), [Fired { transfer: 2, direction, fault }], "{label}");
        }
    }
}

#[test]
fn cut_ends_everything_as_gone() {
    let (mut host, mut device, _) = broken(1, &[rule(None, 0, When::Nth(4), Fault::Cut)]);
    for token in 0..3 {
        host.submit(read(64, token)).expect("accepted");
    }
    host.submit(out(&[1; 4], 3)).expect("taken, and cut");
    assert_eq!(host.submit(out(&[1; 4], 4)).expect_err("gone").reason, TransferError::Gone);
    assert!(device.next_out().is_none());
    let done = drain(&mut host);
    assert_eq!(done.len(), 4);
    assert!(done.iter().all(|c| c.result == Err(TransferError::Gone)));
}

#[test]
fn a_delay_ends_by_the_clock_and_keeps_the_order() {
    let delay = Fault::Delay(Duration::from_millis(5));
    let (mut host, mut device, clock) = broken(1, &[rule(None, 0, When::Nth(1), delay)]);
    for token in 0..3 {
        host.submit(out(&[1; 4], token)).expect("accepted");
    }
    serve(&mut device);
    assert!(drain(&mut host).is_empty());
    assert_eq!(host.next_due(), Some(Instant::from_nanos(5_000_000)));
    clock.advance(Duration::from_millis(4));
    assert!(drain(&mut host).is_empty());
    clock.advance(Duration::from_millis(1));
    assert_eq!(drain(&mut host).iter().map(|c| c.transfer.token).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn a_delay_wakes_a_sleeping_reactor() {
    for kind in [ReactorKind::detect().kind, ReactorKind::Epoll] {
        let (host, mut device) = pipe(info()).expect("eventfd");
        let clock = Arc::new(Monotonic::new());
        let delay = Duration::from_millis(10);
        let rules = [rule(None, 0, When::Nth(2), Fault::Delay(delay))];
        let mut host = FaultInjector::new(host, 1, rules, clock.clone()).expect("alarm");
        let mut reactor = Reactor::new(kind).expect("reactor");
        let on = host.wait_on().expect("descriptor");
        reactor.register(on.fd, on.interest()).expect("registered");
        let mut ready = Vec::new();
        for token in 0..4 {
            let before = clock.now();
            host.submit(out(&[1; 4], token)).expect("accepted");
            assert!(!host.arm());
            serve(&mut device);
            let completion = loop {
                if let Some(completion) = host.poll() {
                    break completion;
                }
                if !host.arm() {
                    let start = clock.now();
                    reactor.turn(Some(Duration::from_secs(10)), &mut ready).expect("turn");
                    assert!(
                        clock.now() - start < Duration::from_secs(5),
                        "nobody woke it ({kind:?}, {token})"
                    );
                }
            };
            assert_eq!(completion.transfer.token, token);
            assert!(token != 1 || clock.now() - before >= delay, "{kind:?}");
        }
    }
}

#[test]
fn the_same_seed_breaks_the_same_way() {
    let run = |seed| {
        let rules = [
            rule(Some(Direction::Out), 100, When::Chance(0.2), Fault::Corrupt),
            rule(None, 0, When::Chance(0.1), Fault::Fail(TransferError::Stalled)),
            rule(Some(Direction::In), 0, When::Every(7), Fault::Truncate(1)),
        ];
        let (mut host, mut device, _) = broken(seed, &rules);
        let mut came = Vec::new();
        for n in 0..500usize {
            host.submit(out(&vec![0; n], 0)).expect("accepted");
            host.submit(read(64, 0)).expect("accepted");
            came.extend(serve(&mut device));
            assert_eq!(drain(&mut host).len(), 2);
        }
        (host.fired().to_vec(), came)
    };
    let first = run(42);
    assert_eq!(first, run(42));
    assert_ne!(first.0, run(43).0);
    let corrupted = first.0.iter().filter(|f| f.fault == Fault::Corrupt).count();
    assert!((40..=120).contains(&corrupted), "{corrupted} of 400 at 0.2");
}
