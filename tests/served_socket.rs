//! The driver on a virtual stick of another thread's server, over a socket that is nearly always full. Simulated.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ncs2::blob::Blob;
use ncs2::runtime::LoadOptions;
use ncs2::transport::{Connection, MemoryKind, Port, SocketTransport, TransportInfo};
use ncs2::wire::WireVersion;
use ncs2::{ErrorKind, Fleet, StickId};
use ncs2_device::face::{Address, Face, ServeOptions, serve};
use ncs2_device::{Engine, Timing};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_graph_is_loaded_through_a_socket_that_takes_little_at_a_time() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sticks");
    let options = ServeOptions {
        faces: vec![Face::Socket(Address::Unix(path.clone()))],
        engine: Engine::Hash,
        timing: Timing::Zero,
        ..ServeOptions::default()
    };
    let _server = serve(options).expect("a server");
    let served = path.clone();
    let connect = move |_| {
        let mut socket = UnixStream::connect(&served).expect("a server");
        // The kernel makes a few kilobytes of it: the blob goes in hundreds of steps, each of which must be waited for.
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, 1).expect("a socket");
        socket.write_all(b"connect 0\n").expect("it reads");
        let mut byte = [0];
        let mut line = String::new();
        while !line.ends_with('\n') {
            socket.read_exact(&mut byte).expect("an answer");
            line.push(char::from(byte[0]));
        }
        assert!(line.starts_with("ok 1024 "), "{line}");
        let info = TransportInfo {
            max_packet_bytes: 1024,
            speed_mbps: 5000,
            memory: MemoryKind::Copied,
            simulated: true,
        };
        let transport = SocketTransport::new(socket, info).expect("a transport");
        Ok(Connection { transport: Box::new(transport), version: WireVersion::V1 })
    };
    let port = Port::new(StickId::sim(0), connect).simulated("ncs2");
    let fleet = Fleet::builder().port(port).open().expect("open");
    let blob = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/models/squeezenet1_1_u8_s1.blob");
    let graph = fleet.load(&Blob::open(blob).expect("a blob"), LoadOptions::default()).expect("loaded");
    let output = graph.infer(&vec![0; graph.blob().graph().input_bytes]).expect("an answer");
    assert_eq!(output.stick(), &StickId::sim(0));
    let times = graph.stage_times(output.stick(), PATIENCE).expect("stage times");
    assert_eq!(times.stages_ms.len(), graph.blob().graph().stages.len());
    assert!(
        times.stages_ms.iter().all(|ms| ms.is_finite() && *ms >= 0.0) && times.total_ms > 0.0,
        "{times:?}"
    );
    let absent = graph.stage_times(&StickId::sim(7), PATIENCE).expect_err("there is no such stick");
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    fleet.close(PATIENCE).expect("closed");
}
