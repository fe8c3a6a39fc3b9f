//! Virtual sticks behind their ports: pipes, threads, real time (but no sleeping).

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ncs2::error::ErrorKind;
use ncs2::transport::{Buffer, Completion, Connection, Direction, Transfer, TransferError, Transport};
use ncs2::wire::{EventKind, HEADER_LEN, Header, Side, StreamId};
use ncs2_device::{Engine, Identity, Rack, RackOptions, Timing};

const LONG: Duration = Duration::from_secs(20);

fn rack(sticks: usize, timing: Timing) -> Rack {
    Rack::start(RackOptions { sticks, engine: Engine::Hash, timing, ..RackOptions::default() })
        .expect("starts")
}

fn wait(transport: &mut dyn Transport) -> Completion {
    let begin = Instant::now();
    loop {
        if let Some(completion) = transport.poll() {
            return completion;
        }
        assert!(begin.elapsed() < LONG, "nothing came");
        if !transport.arm() {
            let wait = transport.wait_on().expect("a descriptor");
            let mut fds =
                [rustix::event::PollFd::from_borrowed_fd(wait.fd.as_fd(), rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&limit)).expect("poll");
        }
    }
}

fn send(transport: &mut dyn Transport, bytes: &[u8]) {
    let mut buffer = Buffer::zeroed(bytes.len());
    buffer.as_mut_slice().expect("owned").copy_from_slice(bytes);
    let transfer = Transfer { direction: Direction::Out, range: 0..bytes.len(), buffer, token: 1 };
    assert!(transport.submit(transfer).is_ok());
}

fn post(transport: &mut dyn Transport) {
    let transfer =
        Transfer { direction: Direction::In, buffer: Buffer::zeroed(1024), range: 0..1024, token: 2 };
    assert!(transport.submit(transfer).is_ok());
}

fn ping(connection: &mut Connection, id: i32) -> Duration {
    let transport = &mut *connection.transport;
    let begin = Instant::now();
    post(transport);
    send(transport, &Header::request(id, EventKind::Ping, StreamId(0), 0).encode());
    let mut answer = None;
    for _ in 0..2 {
        let done = wait(transport);
        assert_eq!(done.result, Ok(()));
        if done.transfer.direction == Direction::In {
            assert_eq!(done.actual, HEADER_LEN);
            answer = Header::parse(&done.transfer.buffer.as_slice()[..HEADER_LEN]).ok();
        }
    }
    let answer = answer.expect("an IN transfer");
    assert_eq!((answer.id, answer.kind, answer.side), (id, EventKind::Ping, Side::Response));
    begin.elapsed()
}

#[test]
fn every_port_leads_to_a_booted_stick() {
    let rack = rack(3, Timing::Zero);
    let mut ports = rack.ports();
    assert_eq!(ports.iter().map(|p| p.id().to_string()).collect::<Vec<_>>(), ["sim0", "sim1", "sim2"]);
    for port in &mut ports {
        assert_eq!(port.profile(), Some("ncs2"));
        let mut connection = port.connect(LONG).expect("connects");
        assert!(connection.transport.info().simulated);
        for id in 1..100 {
            ping(&mut connection, id);
        }
    }
}

#[test]
fn reset_ends_the_connection_and_the_next_one_is_fresh() {
    let rack = rack(1, Timing::Zero);
    let mut port = rack.ports().remove(0);
    for _ in 0..5 {
        let mut connection = port.connect(LONG).expect("connects");
        ping(&mut connection, 1);
        let transport = &mut *connection.transport;
        send(transport, &Header::request(2, EventKind::Reset, StreamId(0), 0).encode());
        post(transport);
        post(transport);
        let ends: Vec<_> = (0..3).map(|_| wait(transport)).collect();
        assert!(
            ends.iter().any(|c| c.result == Err(TransferError::Gone)),
            "the unused IN transfer comes back"
        );
        assert_eq!(rack.stick(0).expect("exists").inspect(|s| s.identity()), Some(Identity::Unbooted));
    }
}

#[test]
fn an_unplugged_stick_is_gone_until_it_is_replugged() {
    let rack = rack(2, Timing::Zero);
    let mut ports = rack.ports();
    let mut connection = ports[0].connect(LONG).expect("connects");
    let stick = rack.stick(0).expect("exists");
    post(&mut *connection.transport);
    stick.unplug();
    assert_eq!(wait(&mut *connection.transport).result, Err(TransferError::Gone));
    assert_eq!(ports[0].connect(LONG).err().map(|e| e.kind()), Some(ErrorKind::Unplugged));
    ping(&mut ports[1].connect(LONG).expect("the other one is there"), 7);
    stick.replug();
    ping(&mut ports[0].connect(LONG).expect("back"), 8);
    assert!(rack.stick(2).is_none());
}

#[test]
fn a_hung_stick_gives_cancelled_transfers_back() {
    let rack = rack(1, Timing::Zero);
    let mut connection = rack.ports()[0].connect(LONG).expect("connects");
    rack.stick(0).expect("exists").hang();
    let transport = &mut *connection.transport;
    post(transport);
    send(transport, &Header::request(2, EventKind::Ping, StreamId(0), 0).encode());
    assert!(transport.poll().is_none());
    transport.cancel_all();
    for _ in 0..2 {
        assert_eq!(wait(transport).result, Err(TransferError::Cancelled));
    }
    rack.stick(0).expect("exists").resume();
    ping(&mut connection, 9);
}

#[test]
fn booting_takes_the_profiles_time_and_no_longer_than_allowed() {
    let rack = rack(1, Timing::Model);
    let mut port = rack.ports().remove(0);
    assert_eq!(port.connect(Duration::from_millis(50)).err().map(|e| e.kind()), Some(ErrorKind::Timeout));
    let begin = Instant::now();
    let mut connection = port.connect(LONG).expect("connects");
    assert!(begin.elapsed() >= Duration::from_millis(990), "{:?}", begin.elapsed());
    // Two transfers of 20 µs at least; often enough to meet every race between a deadline and the server's sleep.
    (1..500).for_each(|id| assert!(ping(&mut connection, id) >= Duration::from_micros(40)));
}

#[test]
fn ports_outlive_the_rack_without_harm() {
    let rack = rack(1, Timing::Zero);
    let mut port = rack.ports().remove(0);
    let mut connection = port.connect(LONG).expect("connects");
    post(&mut *connection.transport);
    drop(rack);
    assert_eq!(wait(&mut *connection.transport).result, Err(TransferError::Gone));
    assert_eq!(port.connect(LONG).err().map(|e| e.kind()), Some(ErrorKind::Closed));
}

#[test]
fn bad_options_are_refused() {
    let start = |options| Rack::start(options).err().map(|e| e.kind());
    assert_eq!(start(RackOptions { sticks: 0, ..RackOptions::default() }), Some(ErrorKind::InvalidInput));
    assert_eq!(
        start(RackOptions { profile: "none".into(), ..RackOptions::default() }),
        Some(ErrorKind::NotFound)
    );
}

/// Not a test of right or wrong: how late pacing is on this machine.
#[test]
#[ignore = "prints the latency of a ping"]
fn print_ping_latency() {
    for timing in [Timing::Zero, Timing::Model] {
        let rack = rack(1, timing);
        let mut connection = rack.ports()[0].connect(LONG).expect("connects");
        let mut times: Vec<_> = (1..2000).map(|id| ping(&mut connection, id)).collect();
        times.sort();
        let at = |q: usize| times[times.len() * q / 1000];
        println!("{timing:?}: p10 {:?}, p50 {:?}, p90 {:?}, p99.9 {:?}", at(100), at(500), at(900), at(999));
    }
}
