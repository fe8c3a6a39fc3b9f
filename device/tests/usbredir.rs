//! A server's sticks as a usb-redir host sees them, over a real socket: QEMU's part is played by a few lines here.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ncs2::ErrorKind;
use ncs2::wire::{EventKind, HEADER_LEN, Header, Side, StreamId};
use ncs2_device::face::{Address, Command, Face, ServeOptions, Server, serve};
use ncs2_device::{Engine, Identity, Timing};

const HELLO: u32 = 0;
const CONNECT: u32 = 1;
const DISCONNECT: u32 = 2;
const SET_CONFIGURATION: u32 = 6;
const BULK: u32 = 101;
/// Device version, packet size, 64-bit ids, 32-bit bulk length.
const CAPS: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6;

struct Host {
    socket: UnixStream,
    wide: bool,
    next_id: u64,
}

impl Host {
    fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).expect("the server listens");
        socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        let mut host = Host { socket, wide: false, next_id: 1 };
        let mut body = vec![0u8; 64];
        body.extend(CAPS.to_le_bytes());
        host.send(HELLO, 0, &body);
        assert_eq!(host.receive().0, HELLO);
        host.wide = true;
        host
    }

    fn send(&mut self, kind: u32, id: u64, body: &[u8]) {
        let mut packet = Vec::new();
        packet.extend(kind.to_le_bytes());
        packet.extend((body.len() as u32).to_le_bytes());
        packet.extend(&id.to_le_bytes()[..if self.wide { 8 } else { 4 }]);
        packet.extend(body);
        self.socket.write_all(&packet).expect("the server reads");
    }

    fn try_receive(&mut self) -> std::io::Result<(u32, u64, Vec<u8>)> {
        let mut header = [0u8; 16];
        let len = if self.wide { 16 } else { 12 };
        self.socket.read_exact(&mut header[..len])?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut body = vec![0; word(4) as usize];
        self.socket.read_exact(&mut body)?;
        Ok((word(0), u64::from(word(8)), body))
    }

    fn receive(&mut self) -> (u32, u64, Vec<u8>) {
        self.try_receive().expect("a packet")
    }

    fn receive_kind(&mut self, kind: u32) -> Vec<u8> {
        loop {
            let packet = self.receive();
            if packet.0 == kind {
                return packet.2;
            }
        }
    }

    /// Waits for the device, and configures it; its product id.
    fn device(&mut self) -> u16 {
        let connect = self.receive_kind(CONNECT);
        self.send(SET_CONFIGURATION, 0, &[1]);
        assert_eq!(self.receive().2, [0, 1]);
        u16::from_le_bytes([connect[6], connect[7]])
    }

    fn bulk(&mut self, endpoint: u8, length: usize, data: &[u8]) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut body = vec![endpoint, 0];
        body.extend((length as u16).to_le_bytes());
        body.extend([0; 4]);
        body.extend(((length >> 16) as u16).to_le_bytes());
        body.extend(data);
        self.send(BULK, id, &body);
        id
    }

    fn boot(&mut self) {
        assert_eq!(self.device(), 0x2485);
        let mut image = vec![0x55; 3000];
        image.extend([0xa4, 0x00, 0x00, 0xd0, 0x80, 0x00, 0x00, 0x00]);
        self.bulk(0x01, image.len(), &image);
        self.receive_kind(DISCONNECT);
        assert_eq!(self.device(), 0xf63b);
    }

    fn ping(&mut self, id: i32) {
        let read = self.bulk(0x81, 1024, &[]);
        let ping = Header::request(id, EventKind::Ping, StreamId(0), 0);
        let write = self.bulk(0x01, HEADER_LEN, &ping.encode());
        let mut answers = [self.receive(), self.receive()];
        answers.sort_by_key(|a| a.1);
        assert_eq!((answers[0].1, answers[1].1), (read, write));
        let header = Header::parse(&answers[0].2[10..]).expect("a header");
        assert_eq!((header.side, header.kind, header.id), (Side::Response, EventKind::Ping, id));
    }
}

fn start(folder: &Path, timing: Timing, sticks: usize) -> (Server, Vec<PathBuf>) {
    let base = folder.join("stick");
    let address = Address::Unix(base.clone());
    let server = serve(ServeOptions {
        faces: vec![Face::Usbredir(address.clone())],
        sticks,
        engine: Engine::Hash,
        timing,
        any_firmware: true,
        control: Some(Address::Unix(folder.join("control"))),
        ..ServeOptions::default()
    })
    .expect("a server");
    let paths = (0..sticks).map(|n| PathBuf::from(address.numbered(n, sticks).to_string())).collect();
    (server, paths)
}

#[test]
fn boots_and_answers_with_the_models_timing_and_without() {
    for timing in [Timing::Zero, Timing::Model] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (server, paths) = start(folder.path(), timing, 1);
        let mode = std::fs::metadata(&paths[0]).expect("a socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the socket is for its owner alone");
        let mut host = Host::connect(&paths[0]);
        host.boot();
        // Enough that a wake-up which is lost now and then is missed.
        for id in 0..500 {
            host.ping(id);
        }
        let status = server.status().expect("a status");
        assert_eq!(status[0].identity, Some(Identity::Booted));
        assert!(status[0].connected && status[0].to_string().contains("simulated"));
        drop(server);
        assert!(!paths[0].exists(), "the socket goes with the server");
    }
}

#[test]
fn a_cut_connection_is_an_unplug_and_the_next_finds_a_fresh_stick() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (server, paths) = start(folder.path(), Timing::Zero, 2);
    let mut other = Host::connect(&paths[1]);
    other.boot();
    let mut host = Host::connect(&paths[0]);
    host.boot();
    host.bulk(0x81, 1024, &[]);
    server.command(0, Command::Drop).expect("accepted");
    assert!(host.try_receive().is_err(), "the connection ends without a word");
    let mut host = Host::connect(&paths[0]);
    host.boot();
    host.ping(1);
    drop(host);
    Host::connect(&paths[0]).boot();
    other.ping(2);
    assert_eq!(server.command(2, Command::Plug).expect_err("no such stick").kind(), ErrorKind::NotFound);
}

#[test]
fn the_control_socket_moves_sticks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (_server, paths) = start(folder.path(), Timing::Zero, 1);
    let socket = UnixStream::connect(folder.path().join("control")).expect("a control socket");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut reader = BufReader::new(socket.try_clone().expect("a second handle"));
    let mut ask = move |line: &str| {
        (&socket).write_all(format!("{line}\n").as_bytes()).expect("the server reads");
        let mut answer = String::new();
        reader.read_line(&mut answer).expect("an answer");
        if line == "list" {
            assert_eq!(answer, "ok 1\n");
            answer.clear();
            reader.read_line(&mut answer).expect("one stick");
        }
        answer
    };
    let mut host = Host::connect(&paths[0]);
    assert_eq!(host.device(), 0x2485);
    assert_eq!(ask("unplug 0"), "ok\n");
    host.receive_kind(DISCONNECT);
    assert!(ask("list").starts_with("0 usbredir connected unplugged"));
    assert_eq!(ask("plug 0"), "ok\n");
    host.boot();
    assert_eq!(ask("hang 0"), "ok\n");
    host.bulk(0x01, 4, &[1, 2, 3, 4]);
    assert_eq!(ask("crash 0"), "ok\n");
    assert!(ask("plug 1").starts_with("error "));
}

#[test]
fn what_cannot_be_served_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = |faces| ServeOptions { faces, ..ServeOptions::default() };
    assert_eq!(serve(options(vec![])).err().map(|e| e.kind()), Some(ErrorKind::InvalidInput));
    let nowhere = Face::Usbredir(Address::Unix(folder.path().join("no/such/folder")));
    assert_eq!(serve(options(vec![nowhere])).err().map(|e| e.kind()), Some(ErrorKind::NotFound));
    let face = Face::Usbredir(Address::Unix(folder.path().join("stick")));
    let first = serve(options(vec![face.clone()])).expect("the first");
    assert_eq!(serve(options(vec![face.clone()])).err().map(|e| e.kind()), Some(ErrorKind::InUse));
    drop(first);
    // What a killed server leaves behind is no hindrance.
    drop(std::os::unix::net::UnixListener::bind(folder.path().join("stick")).expect("a socket"));
    serve(options(vec![face])).expect("in the place of a dead one");
}

#[test]
fn addresses_are_told_apart() {
    assert_eq!(Address::parse("4321").to_string(), "127.0.0.1:4321");
    assert_eq!(
        Address::parse("/dev/virtio-ports/stick").numbered(3, 8).to_string(),
        "/dev/virtio-ports/stick3"
    );
    assert_eq!(Address::parse("./s").numbered(3, 8), Address::Unix("./s.3".into()));
    assert_eq!(Address::parse("./s").numbered(0, 1), Address::Unix("./s".into()));
    assert_eq!(Address::parse("4321").numbered(2, 3).to_string(), "127.0.0.1:4323");
}
