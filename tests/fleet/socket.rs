//! Sticks of a server: the same fleet over a socket that takes less than a blob at a time.

use ncs2::Fleet;
use ncs2::runtime::LoadOptions;
use ncs2_device::face::{Address, Face, ServeOptions, ports, serve};
use ncs2_device::{Engine, Timing};

use super::common::{LONG, blob, hash_of, unique_input};

#[test]
fn a_blob_larger_than_the_sockets_buffer_reaches_the_stick() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("sticks.sock");
    let options = ServeOptions {
        faces: vec![Face::Socket(Address::Unix(path.clone()))],
        sticks: 2,
        engine: Engine::Hash,
        timing: Timing::Zero,
        ..ServeOptions::default()
    };
    let server = serve(options).expect("serves");
    let fleet = ports(&path).expect("its sticks").into_iter().fold(Fleet::builder(), |b, port| b.port(port));
    let fleet = fleet.open().expect("the fleet opens");
    let blob = blob("squeezenet1_1_u8_s1");
    let graph = fleet.load(&blob, LoadOptions::default()).expect("2.5 MB are loaded");
    for number in 0..8 {
        let input = unique_input(&blob, number);
        assert!(graph.infer(&input).expect("an answer").bytes() == hash_of(&blob, &input), "input {number}");
    }
    fleet.close(LONG).expect("closes");
    drop(server);
}
