//! Sticks of another process: the socket face and its client, which is what `--sim unix:PATH` opens.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ncs2::ErrorKind;
use ncs2::transport::{
    Buffer, Completion, Connection, Direction, Reactor, ReactorKind, Token, Transfer, TransferError,
    Transport,
};
use ncs2::wire::{EventKind, HEADER_LEN, Header, StreamId};
use ncs2_device::face::{Address, Command, Face, ServeOptions, Server, ports, serve};
use ncs2_device::{Engine, FaultKind, FaultPlan, PlannedFault, Timing};

const PATIENCE: Duration = Duration::from_secs(20);

fn start(path: &Path, sticks: usize, timing: Timing) -> Server {
    serve(ServeOptions {
        faces: vec![Face::Socket(Address::Unix(path.to_path_buf()))],
        sticks,
        engine: Engine::Hash,
        timing,
        ..ServeOptions::default()
    })
    .expect("a server")
}

struct Link {
    transport: Box<dyn Transport>,
    reactor: Reactor,
    token: Token,
}

impl Link {
    fn new(connection: Connection) -> Self {
        let transport = connection.transport;
        let mut reactor = Reactor::new(ReactorKind::Epoll).expect("a reactor");
        let wait = transport.wait_on().expect("a descriptor");
        let token = reactor.register(wait.fd, wait.interest()).expect("registered");
        Link { transport, reactor, token }
    }

    fn submit(&mut self, direction: Direction, bytes: &[u8]) {
        let mut buffer = Buffer::zeroed(bytes.len());
        buffer.as_mut_slice().expect("owned").copy_from_slice(bytes);
        self.transport.submit(Transfer::whole(direction, buffer, 0)).expect("accepted");
    }

    fn next(&mut self) -> Completion {
        let deadline = Instant::now() + PATIENCE;
        let mut ready = Vec::new();
        loop {
            if let Some(done) = self.transport.poll() {
                return done;
            }
            assert!(Instant::now() < deadline, "nothing came in time");
            if !self.transport.arm() {
                let interest = self.transport.wait_on().expect("a descriptor").interest();
                self.reactor.set_interest(self.token, interest).expect("watched");
                self.reactor.turn(Some(Duration::from_secs(1)), &mut ready).expect("a turn");
            }
        }
    }

    fn ping(&mut self, id: i32) {
        self.submit(Direction::In, &[0; 1024]);
        self.submit(Direction::Out, &Header::request(id, EventKind::Ping, StreamId(0), 0).encode());
        let both = [self.next(), self.next()];
        for done in both {
            assert_eq!(done.result, Ok(()));
            if done.transfer.direction == Direction::In {
                assert_eq!(done.actual, HEADER_LEN);
                assert_eq!(Header::parse(done.bytes()).expect("a header").id, id);
            }
        }
    }
}

#[test]
fn each_stick_of_a_server_is_a_port() {
    for timing in [Timing::Zero, Timing::Model] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("sticks");
        let _server = start(&path, 3, timing);
        let mut ports = ports(&path).expect("three sticks");
        assert_eq!(ports.iter().map(|p| p.id().to_string()).collect::<Vec<_>>(), ["sim0", "sim1", "sim2"]);
        assert!(ports.iter().all(|p| p.profile() == Some("ncs2")), "they say that they are simulated");
        let mut links: Vec<Link> =
            ports.iter_mut().map(|p| Link::new(p.connect(PATIENCE).expect("a stick"))).collect();
        assert!(links.iter().all(|l| l.transport.info().simulated && l.transport.info().speed_mbps == 5000));
        for id in 0..100 {
            for link in &mut links {
                link.ping(id);
            }
        }
    }
}

/// As a claimed interface is on a bus: whoever comes second is told, and who has the stick works on.
#[test]
fn a_stick_that_a_client_holds_is_not_taken_from_him() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sticks");
    let _server = start(&path, 1, Timing::Zero);
    let mut first = Link::new(ports(&path).expect("a stick").remove(0).connect(PATIENCE).expect("a stick"));
    first.ping(1);
    let mut second = ports(&path).expect("a stick").remove(0);
    for id in 2..5 {
        let error = second.connect(PATIENCE).map(drop).expect_err("the stick is held");
        assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
        assert!(error.to_string().contains("another client"), "{error}");
        first.ping(id);
    }
    drop(first);
    Link::new(second.connect(PATIENCE).expect("the stick is free")).ping(1);
}

/// A socket that nobody listens on makes room; whatever else lies in its place is somebody's.
#[test]
fn files_of_others_are_left_alone() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sticks");
    let options = || ServeOptions {
        faces: vec![Face::Socket(Address::Unix(path.clone()))],
        sticks: 1,
        ..ServeOptions::default()
    };
    std::fs::write(&path, "precious").expect("written");
    let error = serve(options()).map(drop).expect_err("a file lies there");
    assert!(error.to_string().contains("no socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
    std::fs::remove_file(&path).expect("removed");

    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket that nobody listens on"));
    let server = serve(options()).expect("served in its place");
    // Taken away and replaced while it serves.
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, "precious").expect("written");
    drop(server);
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
}

#[test]
fn a_pulled_stick_is_gone_and_comes_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sticks");
    let server = start(&path, 1, Timing::Zero);
    let mut port = ports(&path).expect("a stick").remove(0);
    for (out, back) in [(Command::Unplug, Some(Command::Plug)), (Command::Drop, None), (Command::Crash, None)]
    {
        let mut link = Link::new(port.connect(PATIENCE).expect("a stick"));
        link.ping(1);
        link.submit(Direction::In, &[0; 1024]);
        server.command(0, out).expect("accepted");
        assert_eq!(link.next().result, Err(TransferError::Gone), "{out:?}");
        if let Some(back) = back {
            // Handled in order: the status comes after the command before it.
            server.status().expect("a status");
            let error = port.connect(PATIENCE).err().expect("not in its port");
            assert!(error.to_string().contains("not in its port"), "{error}");
            server.command(0, back).expect("accepted");
        }
    }
    Link::new(port.connect(PATIENCE).expect("a stick")).ping(1);
}

#[test]
fn what_is_no_server_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nowhere = ports(&folder.path().join("nobody")).err().expect("nobody listens");
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
    let path = folder.path().join("sticks");
    let _server = start(&path, 1, Timing::Zero);
    let mut socket = UnixStream::connect(&path).expect("the server listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.write_all(b"list\nconnect 0\n").expect("it reads");
    let mut answer = vec![0; 4096];
    let mut text = String::new();
    while !text.contains("error") {
        let n = socket.read(&mut answer).expect("an answer");
        text += &String::from_utf8_lossy(&answer[..n]);
    }
    assert!(text.starts_with("ok 1\n0 socket alone unbooted") && text.contains("simulated"), "{text}");
    socket.write_all(&[b'x'; 5000]).expect("it reads");
    loop {
        // It answers nothing and closes.
        match socket.read(&mut answer) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
}

#[test]
fn a_trace_says_what_a_stick_heard_and_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (path, trace) = (folder.path().join("sticks"), folder.path().join("trace.log"));
    let server = serve(ServeOptions {
        faces: vec![Face::Socket(Address::Unix(path.clone()))],
        sticks: 2,
        timing: Timing::Zero,
        trace: Some(trace.clone()),
        ..ServeOptions::default()
    })
    .expect("a server");
    let mut port = ports(&path).expect("two sticks").pop().expect("the second");
    Link::new(port.connect(PATIENCE).expect("connected")).ping(4711);
    drop(server);
    let text = std::fs::read_to_string(&trace).expect("a trace");
    let of = |what: &str| text.lines().filter(|l| l.contains("dev=sim1") && l.contains(what)).count();
    assert_eq!(of("OUT ep=01 len=84      hdr PING_REQ(6) id=4711"), 1, "{text}");
    assert_eq!(of("IN  ep=81 len=84      hdr PING_RESP(15) id=4711"), 1, "{text}");
    assert_eq!(of("appeared booted"), 1, "{text}");
}

#[test]
fn a_plan_breaks_a_served_stick_but_no_single_transfer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sticks");
    let options = |kind, stick: &str| ServeOptions {
        faces: vec![Face::Socket(Address::Unix(path.clone()))],
        sticks: 2,
        timing: Timing::Zero,
        faults: Some(FaultPlan::of(PlannedFault::nth(kind, 1).on(stick))),
        ..ServeOptions::default()
    };
    for refused in [options(FaultKind::Hold, "sim0"), options(FaultKind::Vanish, "sim2")] {
        assert_eq!(serve(refused).err().map(|e| e.kind()), Some(ErrorKind::InvalidInput));
    }
    let _server = serve(options(FaultKind::Vanish, "sim0")).expect("a server");
    let mut sticks = ports(&path).expect("two sticks").into_iter();
    let (mut first, mut second) = (sticks.next().expect("one"), sticks.next().expect("another"));
    assert!(first.connect(Duration::from_millis(300)).is_err(), "it left for good");
    second.connect(PATIENCE).expect("the plan is not of this one");
}
