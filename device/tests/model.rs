//! The model of one stick, without threads or a real clock.

#[allow(dead_code, reason = "shared by several tests, none of which uses all of it")]
mod host;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use host::{DEVICE, GRAPH, Host, config};
use ncs2::wire::{EventKind, GraphCommand, HEADER_LEN, Header, Side, Status, StreamName, ThermalStats};
use ncs2_device::{
    BusEvent, Engine, Identity, InputRelease, RefusedInput, Timing, TriggerStatus, VirtualStick, ZeroLength,
};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path)
}

fn blob(name: &str) -> Vec<u8> {
    std::fs::read(data(&format!("data/models/{name}.blob"))).expect(name)
}

fn zero() -> ncs2_device::Config {
    config(Engine::Hash, Timing::Zero)
}

fn model() -> ncs2_device::Config {
    config(Engine::Hash, Timing::Model)
}

/// One line of a transcript.
struct Line {
    out: bool,
    len: usize,
    text: String,
    bytes: Vec<u8>,
}

fn transcript(name: &str) -> Vec<Line> {
    let text = std::fs::read_to_string(data(&format!("golden/{name}"))).expect(name);
    text.lines()
        .filter_map(|line| {
            let out = line.contains(" OUT ep=01 ");
            if !out && !line.contains(" IN  ep=81 ") {
                return None;
            }
            let len = line.split("len=").nth(1)?.split_whitespace().next()?.parse().ok()?;
            let hex = line.rsplit("| ").next()?;
            let bytes =
                (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"));
            Some(Line { out, len, text: line.to_owned(), bytes: bytes.collect() })
        })
        .filter(|line| !line.text.contains("boot image"))
        .collect()
}

type Requests = BTreeMap<u32, Vec<(EventKind, u32)>>;

/// Requests of the stick per stream, and answers by (id, kind), out of a sequence of transfers.
fn sort(transfers: &[Vec<u8>], lens: &[usize]) -> (Requests, BTreeMap<i32, EventKind>) {
    let (mut requests, mut answers) = (Requests::new(), BTreeMap::new());
    let mut payload = 0;
    for (bytes, &len) in transfers.iter().zip(lens) {
        if payload > 0 {
            payload -= len;
            continue;
        }
        assert_eq!(len, HEADER_LEN);
        let header = Header::parse(bytes).expect("header");
        match header.side {
            Side::Request => {
                requests.entry(header.stream.0).or_default().push((header.kind, header.size));
                payload = if header.has_payload() { header.size as usize } else { 0 };
            }
            Side::Response => {
                answers.insert(header.id, header.kind);
            }
        }
    }
    (requests, answers)
}

/// The vendor's own bytes, whatever the URB boundaries: the model says on each stream what the vendor's client accepted.
#[test]
fn the_vendors_conversation_gets_the_answers_that_the_vendor_accepted() {
    let log = transcript("01_single_sync.usb.log");
    let golden_blob = std::fs::read(data("golden/01.blob")).expect("blob");
    let inputs = ["golden/01.in0.npy", "golden/01.in1.npy"].map(|name| {
        let npy = std::fs::read(data(name)).expect(name);
        let header = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
        npy[header..].to_vec()
    });
    for piece in [usize::MAX, 1, 7, 512] {
        let mut host = Host::new(zero(), None);
        let cache = ncs2_device::PreparedCache::default();
        let (mut transfers, mut tensors) = (Vec::new(), inputs.iter().cycle());
        for line in log.iter().filter(|l| l.out) {
            let bytes = match line.len {
                n if n == line.bytes.len() => line.bytes.clone(),
                n if n == golden_blob.len() => golden_blob.clone(),
                n => tensors.next().expect("cycle")[..n].to_vec(),
            };
            for part in bytes.chunks(piece.min(bytes.len())) {
                assert_eq!(host.stick.handle_out(part, host.now), part.len());
            }
            while let Some(mut work) = host.stick.poll_work() {
                work.perform(&cache);
                host.stick.handle_work_done(work, host.now);
            }
            while let Some(bytes) = host.stick.poll_in(host.now) {
                transfers.push(bytes.to_vec());
                host.stick.consume_in(bytes.len());
            }
        }
        let lens: Vec<_> = transfers.iter().map(Vec::len).collect();
        let (requests, answers) = sort(&transfers, &lens);
        let accepted: Vec<_> = log.iter().filter(|l| !l.out).collect();
        let (bytes, lens): (Vec<_>, Vec<_>) = accepted.iter().map(|l| (l.bytes.clone(), l.len)).unzip();
        let (expected_requests, expected_answers) = sort(&bytes, &lens);
        assert_eq!(requests, expected_requests, "in pieces of {piece}");
        assert_eq!(answers, expected_answers, "in pieces of {piece}");
        assert_eq!(host.stick.violations(), ncs2_device::Violations::default());
        // The last event was RESET.
        host.stick.handle_timeout(host.now);
        assert_eq!(host.stick.poll_bus_event(), Some(BusEvent::Left));
        assert_eq!(host.stick.poll_bus_event(), Some(BusEvent::Appeared(Identity::Unbooted)));
    }
}

#[test]
fn device_commands_are_answered_and_others_only_acknowledged() {
    let mut host = Host::open(zero());
    let capabilities = ncs2::wire::Capabilities::parse(&host.device_reply(1)).expect("40 bytes");
    assert_eq!((capabilities.max_memory_bytes, capabilities.fw_version[1]), (522_059_056, 0x2480));
    let thermal = ThermalStats::parse(&host.device_reply(0)).expect("26 floats");
    assert!(thermal.temperature_c().is_some() && thermal.throttle_level().is_some());
    assert_eq!(host.used_memory(), 0);
    for command in [3u32, 4, 5, 6, 7, 8, 9, 1000] {
        let ack = host.write(DEVICE, &[command.to_le_bytes(), [0x55; 4]].concat());
        host.drive();
        assert!(host.answers.contains_key(&ack));
        assert_eq!(host.unreleased(DEVICE), 0, "command {command} is released");
        assert_eq!(host.take(DEVICE), None, "command {command} has no reply");
    }
    assert_eq!(host.used_memory(), 0, "and the replies are not mixed up");
}

#[test]
fn outputs_come_in_trigger_order_and_are_a_function_of_the_input() {
    for timing in [Timing::Zero, Timing::Model] {
        let mut host = Host::open(config(Engine::Hash, timing));
        let graph = host.load(0, &blob("mlp_fp16_s1"), 3, 4);
        let mut expected = Vec::new();
        for i in 0..3u8 {
            host.trigger(&graph, &vec![i; graph.input_bytes]);
            assert_eq!(host.status(), Status::Ok);
            expected.push(host.expect(graph.output));
        }
        assert!(expected[0] != expected[1] && expected[1] != expected[2]);
        for i in [2u8, 0, 1, 1] {
            host.trigger(&graph, &vec![i; graph.input_bytes]);
        }
        for i in [2, 0, 1, 1] {
            assert_eq!(host.expect(graph.output), expected[i]);
            assert_eq!(host.status(), Status::Ok);
        }
        assert_eq!(host.unreleased(graph.input), 0);
        assert_eq!(host.stick.stats().inferences, 7);
        assert!(host.stick.stats().paced);
        host.unload(&graph);
        assert_eq!(host.used_memory(), 0);
        assert_eq!(host.stick.violations(), ncs2_device::Violations::default());
    }
}

#[test]
fn the_execute_engine_computes_the_graph() {
    for name in ["tiny_u8_s1", "tiny_fp16_s2", "mlp_fp16_s1"] {
        let blob = blob(name);
        let graph = ncs2::blob::Graph::parse(&blob).expect(name);
        let program = ncs2_device::execute::Program::prepare(&blob, &graph).expect(name);
        for timing in [Timing::Zero, Timing::Model] {
            let mut host = Host::open(config(Engine::Execute, timing));
            // Workers may end in any order; outputs go out in trigger order.
            host.last_work_first = true;
            let loaded = host.load(0, &blob, 2, 4);
            let inputs: Vec<Vec<u8>> = (0..4)
                .map(|i| (0..loaded.input_bytes).map(|b| ((b * 7 + i * 31) % 50) as u8).collect())
                .collect();
            inputs.iter().for_each(|input| host.trigger(&loaded, input));
            for input in &inputs {
                let mut expected = vec![0; loaded.output_bytes];
                program.run(&mut program.arena(), input, &mut expected);
                assert_eq!(host.expect(loaded.output), expected, "{name}");
            }
        }
    }
}

#[test]
fn an_unknown_stage_is_refused_and_named() {
    let mut blob = blob("tiny_u8_s1");
    let graph = ncs2::blob::Graph::parse(&blob).expect("parses");
    let stage = graph.stages.iter().find(|s| s.nce.is_none()).expect("a software stage");
    for at in [stage.record.start + 4, stage.record.end - 8] {
        blob[at..at + 4].copy_from_slice(&9999u32.to_le_bytes());
    }
    let mut host = Host::open(config(Engine::Execute, Timing::Zero));
    assert_eq!(host.allocate(0, &blob, 1).0, Status::UnsupportedElement);
    host.write(GRAPH, &GraphCommand::DebugData { graph: 0 }.encode());
    let debug = host.expect(GRAPH);
    assert_eq!(debug.len(), 120);
    assert!(String::from_utf8_lossy(&debug).contains("type 9999"), "{}", String::from_utf8_lossy(&debug));
    assert_eq!(host.status(), Status::Ok);
    assert_eq!(host.command(GraphCommand::Deallocate { graph: 0 }), Status::Ok);
}

#[test]
fn the_hash_engine_answers_what_a_host_computes_for_its_input() {
    use sha2::Digest;
    let blob = blob("squeezenet1_1_u8_s1");
    let hash = ncs2::blob::BlobHash(sha2::Sha256::digest(&blob).into());
    let mut host = Host::open(zero());
    let loaded = host.load(0, &blob, 1, 2);
    host.piece = 1000;
    let input: Vec<u8> = (0..loaded.input_bytes).map(|i| ((i * 31) >> 3) as u8).collect();
    host.trigger(&loaded, &input);
    let mut expected = vec![0; loaded.output_bytes];
    ncs2_device::hash::output(&hash, &input, &mut expected);
    assert_eq!(host.expect(loaded.output), expected);
}

#[test]
fn timing_data_has_every_stage_in_milliseconds() {
    let mut host = Host::open(model());
    let graph = host.load(0, &blob("squeezenet1_1_u8_s1"), 1, 4);
    host.trigger(&graph, &vec![1; graph.input_bytes]);
    assert_eq!(host.status(), Status::Ok);
    host.expect(graph.output);
    host.write(GRAPH, &GraphCommand::TimingData { graph: 0 }.encode());
    let data = host.expect(GRAPH);
    assert_eq!(host.status(), Status::Ok);
    let floats: Vec<f32> = data.chunks(4).map(|c| f32::from_le_bytes(c.try_into().expect("4"))).collect();
    assert_eq!(floats.len(), graph.stages as usize + 2);
    let (stages, total) = (&floats[..graph.stages as usize], floats[floats.len() - 1]);
    assert!(stages.iter().all(|&ms| ms > 0.0));
    let sum: f32 = stages.iter().sum();
    assert!(sum <= total && total < sum + 1.0, "{sum} ms in {total} ms");
}

#[test]
fn more_depth_and_more_executors_are_never_slower() {
    for name in ["squeezenet1_1_u8_s1", "mlp_fp16_s1", "tiny_fp16_s2"] {
        let blob = blob(name);
        let mut last = 0.0;
        for (executors, depth) in [(1, 1), (1, 2), (1, 4), (2, 4), (3, 8)] {
            let mut host = Host::open(model());
            let graph = host.load(0, &blob, executors, depth as u32);
            let fps = host.throughput(&graph, depth, 60);
            assert!(fps >= last * 0.999, "{name}, {executors} executors, depth {depth}: {fps} after {last}");
            last = fps;
        }
    }
}

#[test]
fn refused_commands_say_why() {
    let name = |n: &str| StreamName::new(n).expect("short");
    let mut host = Host::open(zero());
    let big = ncs2::wire::TensorDescriptor { n: 1, c: 1, w: 1, h: 1, total_bytes: 400_000_000 };
    for (command, status) in [
        (GraphCommand::Trigger { graph: 9, input_fifo: 0, output_fifo: 1 }, Status::InvalidHandle),
        (GraphCommand::Deallocate { graph: 9 }, Status::InvalidHandle),
        (GraphCommand::BufferDeallocate { fifo: 9 }, Status::InvalidHandle),
        (GraphCommand::TimingData { graph: 9 }, Status::InvalidHandle),
        (GraphCommand::AllocationVerify { graph: 9, stream: name("graphBuffer9") }, Status::InvalidHandle),
        (GraphCommand::Verify { graph: 9, stream: name("graphBuffer9") }, Status::InvalidHandle),
    ] {
        assert_eq!(host.command(command), status, "{command:?}");
    }
    // Two FIFOs of 400 MB do not fit.
    for (fifo, status) in [(0, Status::Ok), (1, Status::OutOfMemory)] {
        let fifo_name = format!("FIFO{fifo}");
        host.create(20 + fifo, &fifo_name, 64);
        let direction = ncs2::wire::FifoDirection::Output;
        let command = GraphCommand::BufferAllocate {
            fifo,
            name: name(&fifo_name),
            elements: 1,
            tensor: big,
            direction,
        };
        assert_eq!(host.command(command), status);
    }
    assert_eq!(host.used_memory(), 400_000_000);
}

#[test]
fn a_graph_that_does_not_fit_is_told_by_allocation_verify() {
    let mut config = zero();
    config.profile.memory.dram_bytes = config.profile.memory.firmware_bytes + 2_500_000;
    let mut host = Host::open(config);
    let (tiny, large) = (blob("tiny_u8_s1"), blob("squeezenet1_1_u8_s1"));
    let graph = host.load(0, &tiny, 1, 2);
    let before = host.used_memory();
    let (status, _) = host.allocate(1, &large, 1);
    assert_eq!(status, Status::Ok);
    let stream = StreamName::new("graphBuffer1").expect("short");
    assert_eq!(host.command(GraphCommand::AllocationVerify { graph: 1, stream }), Status::OutOfMemory);
    host.write(GRAPH, &GraphCommand::DebugData { graph: 1 }.encode());
    assert!(String::from_utf8_lossy(&host.expect(GRAPH)).contains("bytes of DRAM"));
    assert_eq!(host.status(), Status::Ok);
    assert_eq!(host.command(GraphCommand::Deallocate { graph: 1 }), Status::Ok);
    assert_eq!(host.used_memory(), before);
    host.trigger(&graph, &vec![3; graph.input_bytes]);
    assert_eq!(host.expect(graph.output).len(), graph.output_bytes, "the other graph still runs");
}

#[test]
fn a_damaged_blob_is_refused_and_the_stick_stays_usable() {
    let mut host = Host::open(zero());
    let mut bad = blob("tiny_u8_s1");
    let middle = u32::from_le_bytes(bad[124..128].try_into().expect("4")) as usize;
    bad[middle] ^= 0xff;
    assert_eq!(host.allocate(0, &bad, 1).0, Status::UnsupportedElement);
    // Refused graphs take no place: the limit of 10 is for those that run.
    for n in 1..20 {
        assert_eq!(host.allocate(n, &bad, 1).0, Status::UnsupportedElement);
        host.close(2 + 3 * n);
    }
    let graph = host.load(20, &blob("tiny_u8_s1"), 1, 2);
    host.trigger(&graph, &vec![3; graph.input_bytes]);
    assert_eq!(host.expect(graph.output).len(), graph.output_bytes);
}

#[test]
fn an_eleventh_graph_finds_no_place() {
    let mut config = zero();
    config.profile.firmware.max_graphs = 2;
    let mut host = Host::open(config);
    let tiny = blob("tiny_u8_s1");
    for (n, status) in [(0, Status::Ok), (1, Status::Ok), (2, Status::OutOfResources)] {
        assert_eq!(host.allocate(n, &tiny, 1).0, status);
    }
    assert_eq!(host.command(GraphCommand::Deallocate { graph: 0 }), Status::Ok);
    assert_eq!(host.allocate(3, &tiny, 1).0, Status::Ok);
}

#[test]
fn reset_leaves_the_bus_read_or_not_and_comes_back_unbooted() {
    for (answers, read) in [(true, true), (true, false), (false, false)] {
        let mut config = model();
        config.profile.firmware.answers_reset = answers;
        let mut host = Host::open(config);
        let id = host.request(EventKind::Reset, 0, 0, "");
        if read {
            assert!(host.wait(|h| h.answers.contains_key(&id)));
        }
        let mut events = Vec::new();
        while events.len() < 2 {
            host.step();
            events.extend(std::iter::from_fn(|| host.stick.poll_bus_event()));
        }
        assert_eq!(events, [BusEvent::Left, BusEvent::Appeared(Identity::Unbooted)]);
        assert_eq!(host.answers.contains_key(&id), read && answers);
    }
}

#[test]
fn an_image_boots_it_and_arms_the_watchdog() {
    for armed in [false, true] {
        let mut config = model();
        config.profile.boot.any_firmware = true;
        let mut host = Host::new(config.clone(), None);
        host.stick = VirtualStick::new(std::sync::Arc::new(config), host.now);
        host.stick.plug();
        let tail = [0x98, 0, 0, 0x20, 0x80, u8::from(armed), 0xa4, 0, 0, 0xd0, 0x80, 0, 0, 0];
        for part in [&[0x55; 100_000][..], &tail[..5], &tail[5..]] {
            assert_eq!(host.stick.handle_out(part, host.now), part.len());
        }
        while host.stick.identity() != Some(Identity::Booted) {
            host.now = host.stick.poll_timeout(host.now).expect("boots").max(host.now);
            host.stick.handle_timeout(host.now);
        }
        let events: Vec<_> = std::iter::from_fn(|| host.stick.poll_bus_event()).collect();
        use BusEvent::{Appeared, Left};
        assert_eq!(events, [Appeared(Identity::Unbooted), Left, Appeared(Identity::Booted)]);
        host.create(DEVICE, "deviceMonitor", 2048);
        // Pings keep it alive beyond the 12 s; without them it resets itself, if it was armed.
        for _ in 0..20 {
            host.write(DEVICE, &[4, 0, 0, 0, 0, 0, 0, 0]);
            host.pass(Duration::from_secs(1));
        }
        assert_eq!(host.stick.poll_bus_event(), None);
        host.pass(Duration::from_secs(13));
        assert_eq!(host.stick.poll_bus_event(), armed.then_some(Left));
    }
}

#[test]
fn only_an_image_of_a_known_size_boots() {
    let mut stick = VirtualStick::new(std::sync::Arc::new(zero()), ncs2::clock::Instant::ZERO);
    stick.plug();
    let tail = [0xa4, 0, 0, 0xd0, 0x80, 0, 0, 0];
    let now = ncs2::clock::Instant::ZERO;
    stick.handle_out(&tail, now);
    assert_eq!(stick.identity(), Some(Identity::Unbooted));
    stick.handle_closed(now);
    stick.handle_out(&vec![0; 2_298_644 - 8], now);
    stick.handle_out(&tail, now);
    assert_eq!(stick.identity(), Some(Identity::Booted));
}

/// Not a test of right or wrong: what the hand-fitted profile makes of the models at hand.
#[test]
#[ignore = "prints the fit; NCS2_MODELS names a folder of blobs"]
fn print_throughput() {
    let folder = std::env::var("NCS2_MODELS").map_or_else(|_| data("data/models"), PathBuf::from);
    let mut blobs: Vec<_> = std::fs::read_dir(folder)
        .expect("a folder")
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.extension().is_some_and(|e| e == "blob"))
        .collect();
    blobs.sort();
    for path in blobs {
        let blob = std::fs::read(&path).expect("a blob");
        let fps = [(1, 1), (3, 2), (3, 4)].map(|(executors, depth)| {
            let mut host = Host::open(model());
            let graph = host.load(0, &blob, executors, 4);
            host.throughput(&graph, depth, 40)
        });
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        println!("{name:32} depth 1 {:8.1}  depth 2 {:8.1}  depth 4 {:8.1} fps", fps[0], fps[1], fps[2]);
    }
}

/// Every legal behaviour of the firmware, one by one: the same conversation has the same results.
#[test]
fn each_unknown_of_the_firmware_is_a_knob() {
    type Knob = fn(&mut ncs2_device::Behaviour);
    let knobs: [(&str, Knob); 9] = [
        ("input at start", |f| f.input_release = InputRelease::Start),
        ("status after", |f| f.status = TriggerStatus::After),
        ("pieces", |f| f.output_piece_bytes = 16),
        ("creates", |f| f.creates_streams = true),
        ("zlp full", |f| f.zero_length = ZeroLength::Full),
        ("zlp always", |f| f.zero_length = ZeroLength::Always),
        ("late acks", |f| f.ack_delay_us = 500.0),
        ("refused kept", |f| f.refused_input = RefusedInput::Keep),
        ("mute reset", |f| f.answers_reset = false),
    ];
    let mut results = Vec::new();
    for (name, knob) in knobs {
        for timing in [Timing::Zero, Timing::Model] {
            let mut config = config(Engine::Hash, timing);
            knob(&mut config.profile.firmware);
            let mut host = Host::open(config);
            let graph = host.load(0, &blob("tiny_u8_s1"), 1, 4);
            for i in 0..4u8 {
                host.trigger(&graph, &vec![i; graph.input_bytes]);
            }
            let outputs: Vec<_> = (0..4).map(|_| host.expect(graph.output)).collect();
            (0..4).for_each(|_| assert_eq!(host.status(), Status::Ok, "{name}"));
            host.unload(&graph);
            assert_eq!(host.used_memory(), 0, "{name}");
            results.push(outputs);
        }
    }
    assert!(results.windows(2).all(|w| w[0] == w[1]));
}

#[test]
fn the_input_of_a_refused_trigger_is_released_or_kept() {
    for kept in [false, true] {
        let mut config = zero();
        if kept {
            config.profile.firmware.refused_input = RefusedInput::Keep;
        }
        let mut host = Host::open(config);
        let graph = host.load(0, &blob("tiny_u8_s1"), 1, 2);
        host.write(graph.input, &vec![1; graph.input_bytes]);
        let refused = GraphCommand::Trigger { graph: 5, input_fifo: 0, output_fifo: 1 };
        assert_eq!(host.command(refused), Status::InvalidHandle);
        assert_eq!(host.unreleased(graph.input), usize::from(kept));
        host.unload(&graph);
    }
}

#[test]
fn heat_halves_the_speed_beyond_the_lower_guard() {
    let mut config = model();
    config.profile.heat.tau_s = 0.2;
    config.profile.heat.full_w = 10.0;
    config.profile.heat.upper_guard_c = 1000.0;
    let mut host = Host::open(config);
    let graph = host.load(0, &blob("squeezenet1_1_u8_s1"), 1, 4);
    let cold = host.throughput(&graph, 4, 4);
    host.throughput(&graph, 4, 200);
    let thermal = ThermalStats::parse(&host.device_reply(0)).expect("26 floats");
    assert_eq!(thermal.raw[0], 1.0, "{} °C", thermal.raw[1]);
    let hot = host.throughput(&graph, 4, 20);
    assert!((0.4..0.6).contains(&(hot / cold)), "{cold} fps cold, {hot} fps hot");
}

#[test]
fn a_host_that_never_reads_is_held_up() {
    let mut host = Host::open(zero());
    let ping = Header::request(5, EventKind::Ping, ncs2::wire::StreamId(0), 0).encode();
    let sent = (0..1_000_000).take_while(|_| host.stick.handle_out(&ping, host.now) == HEADER_LEN).count();
    assert!((64..10_000).contains(&sent), "{sent} events before it took no more");
    while let Some(bytes) = host.stick.poll_in(host.now) {
        let n = bytes.len();
        host.stick.consume_in(n);
    }
    assert_eq!(host.stick.handle_out(&ping, host.now), HEADER_LEN, "and goes on when its answers were read");
}
