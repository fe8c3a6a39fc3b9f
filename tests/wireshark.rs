//! A capture of ours in Wireshark's own eyes: `tshark` reads every packet of it as USB.

#[allow(dead_code, reason = "shared with the tests of the fleet")]
#[path = "fleet/common.rs"]
mod common;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::{LONG, blob, unique_input};
use ncs2::clock::Monotonic;
use ncs2::runtime::LoadOptions;
use ncs2::transport::{Connection, TraceSink, Tracer};
use ncs2::{Fleet, Port};
use ncs2_device::{Engine, Rack, RackOptions, Timing};

#[test]
fn wireshark_reads_a_capture_as_usb() {
    let tshark = Command::new("tshark").arg("--version").output();
    if !tshark.is_ok_and(|version| version.status.success()) {
        println!("skipped: tshark is not installed (apt-get install tshark)");
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("trace.pcapng");
    let sink =
        TraceSink::new(Arc::new(Monotonic::new())).pcapng(std::fs::File::create(&path).expect("a file"));
    let options =
        RackOptions { sticks: 1, engine: Engine::Hash, timing: Timing::Zero, ..RackOptions::default() };
    let rack = Rack::start(options).expect("starts");
    let mut inner = rack.ports().remove(0);
    let (id, traced) = (inner.id().clone(), sink.clone());
    let port = Port::new(id.clone(), move |timeout: Duration| {
        let Connection { transport, version } = inner.connect(timeout)?;
        let tracer = Tracer::new(transport, traced.clone(), id.clone());
        Ok(Connection { transport: Box::new(tracer), version })
    });
    let fleet = Fleet::builder().port(port).open().expect("opens");
    let blob = blob("tiny_u8_s1");
    let graph = fleet.load(&blob, LoadOptions::default()).expect("loads");
    for n in 0..5 {
        graph.infer(&unique_input(&blob, n)).expect("an answer");
    }
    fleet.close(LONG).expect("closes");
    sink.flush();
    assert_eq!(sink.failed(), None);

    let fields =
        ["frame.protocols", "usb.transfer_type", "usb.endpoint_address", "usb.urb_type", "_ws.malformed"];
    let mut command = Command::new("tshark");
    command.arg("-r").arg(&path).args(["-T", "fields", "-E", "separator=|"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let packets: Vec<Vec<&str>> = text.lines().map(|line| line.split('|').collect()).collect();
    assert!(packets.len() > 100, "{} packets", packets.len());
    let (mut submitted, mut completed, mut pipes) = (0, 0, std::collections::BTreeSet::new());
    for packet in &packets {
        let [protocols, kind, endpoint, urb, malformed] = packet[..] else { panic!("{packet:?}") };
        assert!(protocols.starts_with("usb") && malformed.is_empty(), "{packet:?}");
        assert_eq!(kind, "0x03", "bulk: {packet:?}");
        pipes.insert(endpoint.to_owned());
        match urb {
            "'S'" | "83" | "S" => submitted += 1,
            "'C'" | "67" | "C" => completed += 1,
            other => panic!("URB type {other}"),
        }
    }
    assert_eq!(pipes.into_iter().collect::<Vec<_>>(), ["0x01", "0x81"]);
    assert_eq!(submitted, completed, "every URB ends");
}
