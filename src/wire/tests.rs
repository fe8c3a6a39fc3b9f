//! Properties of every value of the wire, and the cases that a random generator would not meet.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

const JUMP: [u8; 8] = [0xa4, 0, 0, 0xd0, 0x80, 0, 0, 0];
const CALL: [u8; 5] = [0xba, 0xd0, 0xe9, 0x00, 0x70];

fn name() -> impl Strategy<Value = StreamName> {
    "[ -~]{0,63}".prop_map(|s| StreamName::new(&s).expect("printable and short"))
}

fn header() -> impl Strategy<Value = Header> {
    let side = select(vec![Side::Request, Side::Response]);
    (any::<i32>(), select(EventKind::ALL.to_vec()), side, name(), any::<u32>(), any::<u32>(), any::<u32>())
        .prop_map(|(id, kind, side, name, stream, size, flags)| Header {
            id,
            kind,
            side,
            name: if kind == EventKind::CreateStream { name } else { StreamName::EMPTY },
            stream: StreamId(stream),
            size,
            flags: Flags::from_bits_retain(flags),
        })
}

fn power() -> impl Strategy<Value = PowerConfig> {
    select(vec![
        PowerConfig::Full,
        PowerConfig::Infer,
        PowerConfig::Stage,
        PowerConfig::StageShaves,
        PowerConfig::StageNces,
    ])
}

fn device_command() -> impl Strategy<Value = DeviceCommand> {
    prop_oneof![
        select(vec![
            DeviceCommand::ThermalStats,
            DeviceCommand::Capabilities,
            DeviceCommand::UsedMemory,
            DeviceCommand::DeviceId,
            DeviceCommand::WatchdogPing,
            DeviceCommand::ResetPower,
        ]),
        any::<bool>().prop_map(DeviceCommand::StdioRedirect),
        power().prop_map(DeviceCommand::SetPower),
        any::<bool>().prop_map(DeviceCommand::AsyncDma),
    ]
}

fn descriptor() -> impl Strategy<Value = TensorDescriptor> {
    any::<[u32; 5]>().prop_map(|[n, c, w, h, total_bytes]| TensorDescriptor { n, c, w, h, total_bytes })
}

fn graph_command() -> impl Strategy<Value = GraphCommand> {
    let direction = select(vec![FifoDirection::Input, FifoDirection::Output]);
    prop_oneof![
        (any::<u32>(), name()).prop_map(|(graph, stream)| GraphCommand::Verify { graph, stream }),
        (any::<u32>(), name(), any::<u32>()).prop_map(|(graph, stream, executors)| GraphCommand::Allocate {
            graph,
            stream,
            executors
        }),
        (any::<u32>(), name()).prop_map(|(graph, stream)| GraphCommand::AllocationVerify { graph, stream }),
        any::<[u32; 3]>().prop_map(|[graph, input_fifo, output_fifo]| GraphCommand::Trigger {
            graph,
            input_fifo,
            output_fifo
        }),
        any::<u32>().prop_map(|graph| GraphCommand::Deallocate { graph }),
        (any::<u32>(), name(), any::<u32>(), descriptor(), direction).prop_map(
            |(fifo, name, elements, tensor, direction)| GraphCommand::BufferAllocate {
                fifo,
                name,
                elements,
                tensor,
                direction
            }
        ),
        any::<u32>().prop_map(|fifo| GraphCommand::BufferDeallocate { fifo }),
        any::<u32>().prop_map(|graph| GraphCommand::TimingData { graph }),
        any::<u32>().prop_map(|graph| GraphCommand::DebugData { graph }),
    ]
}

fn patches() -> impl Strategy<Value = FirmwarePatches> {
    (any::<bool>(), select(DdrType::ALL.to_vec()))
        .prop_map(|(watchdog, ddr)| FirmwarePatches { watchdog, ddr })
}

/// A name field as the vendor leaves it: name, NUL, then whatever was in memory.
fn name_field() -> impl Strategy<Value = [u8; 64]> {
    (name(), any::<[u8; 64]>()).prop_map(|(name, mut field)| {
        let name = name.as_str().as_bytes();
        field[..name.len()].copy_from_slice(name);
        field[name.len()] = 0;
        field
    })
}

/// Zeroes what follows the first NUL.
fn clean_name(field: &mut [u8]) {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    field[end..].fill(0);
}

/// Like the vendor's bytes, but with every byte that carries no meaning zeroed: what `encode(parse(b))` must be.
fn masked_header(bytes: &[u8; HEADER_LEN]) -> [u8; HEADER_LEN] {
    let mut out = *bytes;
    match u32::from_le_bytes([out[4], out[5], out[6], out[7]]) {
        4 | 13 => clean_name(&mut out[8..72]),
        _ => out[8..72].fill(0),
    }
    out
}

/// See [`masked_header`].
fn masked_graph_command(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    match out[0] {
        0 => {
            clean_name(&mut out[8..72]);
            out[72..80].fill(0);
        }
        1 => out[8..84].fill(0),
        2 => {
            out[8..72].fill(0);
            out[80..84].fill(0);
        }
        3 | 4 => {
            clean_name(&mut out[8..72]);
            out[72..84].fill(0);
        }
        5 => {
            clean_name(&mut out[8..72]);
            out[98..100].fill(0);
        }
        _ => {}
    }
    out
}

/// Every parser of the room. None may panic, whatever comes.
fn parse_all(bytes: &[u8]) {
    let _ = Header::parse(bytes);
    let _ = DeviceCommand::parse(bytes);
    let _ = GraphCommand::parse(bytes);
    if let Ok(t) = ThermalStats::parse(bytes) {
        let _ = (t.temperature_c(), t.throttle_level());
    }
    if let Ok(d) = DebugData::parse(bytes) {
        let _ = d.text();
    }
    let _ = Capabilities::parse(bytes);
    let _ = UsedMemory::parse(bytes);
    let _ = Status::parse(bytes);
    let _ = TensorDescriptor::parse(bytes);
    let _ = StageCount::parse(bytes);
    let _ = TimingData::parse(bytes);
    let _ = FirmwarePatches::read(bytes);
    let _ = patch_firmware(bytes, FirmwarePatches { watchdog: true, ddr: DdrType::Auto });
}

proptest! {
    #[test]
    fn headers_round_trip(header in header()) {
        prop_assert_eq!(Header::parse(&header.encode()), Ok(header));
    }

    #[test]
    fn header_bytes_survive_up_to_garbage(
        id: i32,
        // All numbers of the table and the sentinels around it.
        kind in 0_u32..19,
        field in name_field(),
        words: [u32; 3],
    ) {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&id.to_le_bytes());
        bytes[4..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..72].copy_from_slice(&field);
        for (at, word) in words.iter().enumerate() {
            bytes[72 + 4 * at..76 + 4 * at].copy_from_slice(&word.to_le_bytes());
        }
        match Header::parse(&bytes) {
            Ok(header) => {
                prop_assert_eq!(header.encode(), masked_header(&bytes));
                prop_assert_eq!(header.event_type(), kind);
            }
            Err(error) => {
                prop_assert!(kind == 8 || kind >= 17, "{kind}: {error}");
            }
        }
    }

    #[test]
    fn device_commands_round_trip(command in device_command()) {
        prop_assert_eq!(DeviceCommand::parse(&command.encode()), Ok(command));
    }

    #[test]
    fn device_command_bytes_survive_up_to_garbage(kind in 0_u32..10, arg in prop_oneof![0_u32..6, any::<u32>()]) {
        let mut bytes = [0; DEVICE_COMMAND_LEN];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..].copy_from_slice(&arg.to_le_bytes());
        // Only these carry an argument.
        let largest = match kind { 5 | 8 => Some(1), 6 => Some(4), _ => None };
        let known = kind <= 8 && largest.is_none_or(|largest| arg <= largest);
        match DeviceCommand::parse(&bytes) {
            Ok(command) => {
                prop_assert!(known);
                if largest.is_none() {
                    bytes[4..].fill(0);
                }
                prop_assert_eq!(command.encode(), bytes);
            }
            Err(error) => {
                prop_assert!(!known, "{kind} {arg}: {error}");
            }
        }
    }

    #[test]
    fn graph_commands_round_trip(command in graph_command()) {
        prop_assert_eq!(GraphCommand::parse(&command.encode()), Ok(command));
    }

    #[test]
    fn graph_command_bytes_survive_up_to_garbage(
        kind in 0_u8..10,
        field in name_field(),
        garbage: [u8; BUFFER_ALLOCATE_LEN],
        output: bool,
    ) {
        let len = match kind { 0..=4 => GRAPH_COMMAND_LEN, 5 => BUFFER_ALLOCATE_LEN, _ => COMMON_COMMAND_LEN };
        let mut bytes = garbage;
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        bytes[8..72].copy_from_slice(&field);
        bytes[96..98].copy_from_slice(&[u8::from(output), u8::from(!output)]);
        let bytes = &bytes[..len];
        match GraphCommand::parse(bytes) {
            Ok(command) => prop_assert_eq!(&*command.encode(), masked_graph_command(bytes)),
            Err(error) => {
                prop_assert_eq!(kind, 9, "{}", error);
            }
        }
    }

    #[test]
    fn commands_that_name_nothing_bear_garbage_for_a_name(kind in select(vec![1_u8, 2]), garbage: [u8; GRAPH_COMMAND_LEN]) {
        let mut bytes = garbage;
        bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
        let command = GraphCommand::parse(&bytes).expect("the name field of TRIGGER and DEALLOCATE is garbage");
        prop_assert_eq!(&*command.encode(), masked_graph_command(&bytes));
    }

    #[test]
    fn replies_round_trip(words: [u32; 10], d in descriptor(), code: i32, raw in vec(any::<u8>(), DEBUG_DATA_LEN)) {
        let capabilities = Capabilities {
            max_graphs: words[0],
            max_fifos: words[1],
            max_memory_bytes: words[2],
            max_executors: words[3],
            fw_version: [words[4], words[5], words[6], words[7]],
            tensor_version: [words[8], words[9]],
        };
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        prop_assert_eq!(&capabilities.encode()[..], &bytes[..]);
        prop_assert_eq!(Capabilities::parse(&bytes), Ok(capabilities));
        prop_assert_eq!(TensorDescriptor::parse(&d.encode()), Ok(d));
        let status = Status::from_code(code);
        prop_assert_eq!(Status::parse(&status.encode()), Ok(status));
        prop_assert_eq!(status.code(), code);
        prop_assert_eq!(StageCount::parse(&StageCount(words[0]).encode()), Ok(StageCount(words[0])));
        prop_assert_eq!(UsedMemory::parse(&UsedMemory(words[0]).encode()), Ok(UsedMemory(words[0])));
        prop_assert_eq!(&DebugData::parse(&raw).expect("length").encode()[..], &raw[..]);
    }

    // Through bits, because NaN is not equal to itself and a broken sensor may send any.
    #[test]
    fn floats_round_trip_bit_by_bit(bytes in vec(any::<u8>(), THERMAL_LEN), words in vec(any::<[u8; 4]>(), 2..80)) {
        let thermal = ThermalStats::parse(&bytes).expect("length");
        prop_assert_eq!(&thermal.encode()[..], &bytes[..]);
        let bytes = words.concat();
        let timing = TimingData::parse(&bytes).expect("length");
        prop_assert_eq!(timing.stages_ms.len(), words.len() - 2);
        prop_assert_eq!(TimingData::packet_len(timing.stages_ms.len()), bytes.len());
        prop_assert_eq!(timing.encode(), bytes);
    }

    #[test]
    fn no_parser_panics(bytes in vec(any::<u8>(), 0..300)) {
        parse_all(&bytes);
    }

    // A random first word hardly ever names a command: give it one, at every length.
    #[test]
    fn no_parser_panics_behind_a_known_type(kind in 0_u8..18, bytes in vec(any::<u8>(), 0..140)) {
        let mut bytes = bytes;
        for at in [0, 4] {
            if let Some(word) = bytes.get_mut(at..at + 4) {
                word.copy_from_slice(&[kind, 0, 0, 0]);
            }
        }
        parse_all(&bytes);
    }

    #[test]
    fn structures_refuse_other_lengths(header in header(), device in device_command(), graph in graph_command(), len in 0_usize..120) {
        let cut_or_padded = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes.resize(len, 0);
            bytes
        };
        prop_assert_eq!(Header::parse(&cut_or_padded(&header.encode())).is_ok(), len == HEADER_LEN);
        prop_assert_eq!(DeviceCommand::parse(&cut_or_padded(&device.encode())).is_ok(), len == DEVICE_COMMAND_LEN);
        let encoded = graph.encode();
        prop_assert_eq!(GraphCommand::parse(&cut_or_padded(&encoded)).is_ok(), len == encoded.len());
    }

    #[test]
    fn names_hold_any_number(number: u32) {
        prop_assert_eq!(StreamName::fifo(number), StreamName::new(&format!("FIFO{number}")).expect("short"));
        prop_assert_eq!(
            StreamName::graph_buffer(number),
            StreamName::new(&format!("graphBuffer{number}")).expect("short")
        );
    }

    #[test]
    fn both_patches_go_in_and_can_be_read_back(
        // No bytes of the two patterns, so that neither appears by chance.
        head in vec(0_u8..0x60, 0..200),
        middle in vec(0_u8..0x60, 0..200),
        p in patches(),
    ) {
        let image = [&head[..], &CALL, &middle, &JUMP].concat();
        let expected = [
            &head[..],
            &[0x98, 0x00, 0x0c, 0x20, 0x70, p.ddr as u8],
            &CALL,
            &middle,
            &[0x98, 0x00, 0x00, 0x20, 0x80, u8::from(p.watchdog)],
            &JUMP,
        ].concat();
        let patched = patch_firmware(&image, p).expect("both places are there");
        prop_assert_eq!(&patched, &expected);
        prop_assert_eq!(FirmwarePatches::read(&patched), Some(p));
        prop_assert_eq!(FirmwarePatches::read(&image), None);
        // One after the other gives the same, in either order.
        prop_assert_eq!(&patch_ddr(&patch_watchdog(&image, p.watchdog).expect("jump"), p.ddr).expect("call"), &expected);
        prop_assert_eq!(&patch_watchdog(&patch_ddr(&image, p.ddr).expect("call"), p.watchdog).expect("jump"), &expected);
    }

    #[test]
    fn chunks_are_the_image_in_order(len in 0_usize..4000, bcd_usb: u16) {
        let image: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let limit = if bcd_usb < 0x0200 { 64 } else { 1 << 20 };
        let chunks = boot_chunks(&image, bcd_usb);
        prop_assert_eq!(chunks.len(), len.div_ceil(limit));
        let chunks: Vec<&[u8]> = chunks.collect();
        prop_assert_eq!(chunks.concat(), &image[..]);
        prop_assert!(chunks.iter().rev().skip(1).all(|c| c.len() == limit));
        prop_assert!(chunks.last().is_none_or(|c| (1..=limit).contains(&c.len())));
    }
}

#[test]
fn firmware_of_the_vendors_size_is_sent_in_three_transfers() {
    // Sizes of PROTOCOL 2.3 and 2.4: 2 298 632 bytes on disk, the call at 124 804, 2 298 644 bytes sent.
    let mut image = vec![0_u8; 2_298_632];
    image[124_804..124_809].copy_from_slice(&CALL);
    image[2_298_624..].copy_from_slice(&JUMP);
    let patched =
        patch_firmware(&image, FirmwarePatches { watchdog: true, ddr: DdrType::Micron1Gb }).expect("places");
    let lengths: Vec<usize> = boot_chunks(&patched, 0x0200).map(<[u8]>::len).collect();
    assert_eq!(lengths, [1_048_576, 1_048_576, 201_492]);
    assert_eq!(patched[124_804..124_815], [0x98, 0x00, 0x0c, 0x20, 0x70, 4, 0xba, 0xd0, 0xe9, 0x00, 0x70]);
    assert_eq!(patched[2_298_630..2_298_637], [0x98, 0x00, 0x00, 0x20, 0x80, 1, 0xa4]);
    assert_eq!(boot_chunks(&patched, 0x0110).len(), 2_298_644_usize.div_ceil(64));
}

#[test]
fn the_first_call_and_the_last_jump_are_patched() {
    let image = [&JUMP[..], &CALL, &CALL, &JUMP].concat();
    let patched =
        patch_firmware(&image, FirmwarePatches { watchdog: false, ddr: DdrType::Hynix2Gb }).expect("places");
    let expected = [
        &JUMP[..],
        &[0x98, 0x00, 0x0c, 0x20, 0x70, 3],
        &CALL,
        &CALL,
        &[0x98, 0x00, 0x00, 0x20, 0x80, 0],
        &JUMP,
    ];
    assert_eq!(patched, expected.concat());
}

#[test]
fn an_image_without_a_place_is_not_patched_at_all() {
    let p = FirmwarePatches { watchdog: true, ddr: DdrType::Auto };
    assert_eq!(patch_firmware(&JUMP, p), Err(BootError::NoCall));
    assert_eq!(patch_firmware(&CALL, p), Err(BootError::NoJump));
    assert_eq!(patch_firmware(&[], p), Err(BootError::NoJump));
    // The jump must end the file: a firmware that goes on after it is another one.
    assert_eq!(patch_firmware(&[&CALL[..], &JUMP, &[0]].concat(), p), Err(BootError::NoJump));
    // The pattern of OpenVINO 2021.4.0.
    assert_eq!(patch_ddr(&[0xba, 0x78, 0xe9, 0x00, 0x70], DdrType::Auto), Err(BootError::NoCall));
    // A caller who does as the vendor does still gets the one that has a place.
    assert!(patch_watchdog(&JUMP, true).is_ok());
    assert!(patch_ddr(&CALL, DdrType::Auto).is_ok());
}

#[test]
fn patches_that_no_host_writes_are_not_read() {
    let image = |ddr, watchdog| {
        let ddr = [0x98, 0x00, 0x0c, 0x20, 0x70, ddr];
        let watchdog = [0x98, 0x00, 0x00, 0x20, 0x80, watchdog];
        [&ddr[..], &CALL, &watchdog, &JUMP].concat()
    };
    assert_eq!(
        FirmwarePatches::read(&image(2, 1)),
        Some(FirmwarePatches { watchdog: true, ddr: DdrType::Samsung2Gb })
    );
    assert_eq!(FirmwarePatches::read(&image(5, 1)), None);
    assert_eq!(FirmwarePatches::read(&image(2, 2)), None);
    assert_eq!(FirmwarePatches::read(&image(2, 1)[1..]), None);
}

#[test]
fn ddr_codes_are_the_table() {
    for (code, ddr) in (0..).zip(DdrType::ALL) {
        assert_eq!((ddr.code(), DdrType::from_code(code)), (code, Some(ddr)));
    }
    assert_eq!(DdrType::from_code(5), None);
}

#[test]
fn event_types_are_the_table_of_variant_v1() {
    let table = [
        (EventKind::Write, 0, 9),
        (EventKind::Read, 1, 10),
        (EventKind::ReadRelease, 2, 11),
        (EventKind::ReadReleaseSpecific, 3, 12),
        (EventKind::CreateStream, 4, 13),
        (EventKind::CloseStream, 5, 14),
        (EventKind::Ping, 6, 15),
        (EventKind::Reset, 7, 16),
    ];
    for (kind, request, response) in table {
        let header = Header::request(10, kind, StreamId(0), 0);
        assert_eq!((header.event_type(), header.response(Flags::ACK).event_type()), (request, response));
    }
    assert_eq!(table.map(|(kind, ..)| kind), EventKind::ALL);
}

#[test]
fn only_a_write_request_brings_payload() {
    for kind in EventKind::ALL {
        let request = Header::request(10, kind, StreamId(0), 4);
        assert_eq!(request.has_payload(), kind == EventKind::Write);
        assert!(!request.response(Flags::ACK).has_payload());
    }
}

#[test]
fn responses_match_by_id_and_kind_alone() {
    let request = Header::request(1_073_741_829, EventKind::ReadRelease, StreamId(1), 84);
    // As in the transcripts: the answer of the vendor's host still names stream 0 and 40 bytes of an earlier one.
    let stale = Header { stream: StreamId(0), size: 40, ..request.response(Flags::ACK) };
    assert!(stale.answers(&request));
    assert_eq!(Header::parse(&stale.encode()), Ok(stale));
    assert!(!request.answers(&request));
    assert!(!stale.answers(&stale));
    assert!(!Header { id: 3, ..stale }.answers(&request));
    assert!(!Header { kind: EventKind::Write, ..stale }.answers(&request));
}

#[test]
fn a_create_response_may_hold_garbage_for_a_name_and_a_request_may_not() {
    let name = StreamName::GRAPH_MONITOR;
    let request = Header::create_stream(11, name, StreamId(1), 4096);
    let response = request.response(Flags::ACK);
    let with_garbage = |header: Header| {
        let mut bytes = header.encode();
        bytes[8..72].fill(0xee);
        Header::parse(&bytes)
    };
    assert_eq!(with_garbage(response), Ok(Header { name: StreamName::EMPTY, ..response }));
    assert_eq!(with_garbage(request), Err(WireError::Name { what: "stream name" }));
}

#[test]
fn names_end_at_the_first_nul_and_need_one() {
    let mut field = [0xff; 64];
    field[..6].copy_from_slice(b"FIFO7\0");
    let name = StreamName::from_field(&field).expect("garbage follows the NUL");
    assert_eq!(name, StreamName::fifo(7));
    assert_eq!(name.to_field()[5..], [0; 59], "the garbage is gone");
    assert!(StreamName::from_field(&[b'a'; 64]).is_err());
    assert_eq!(StreamName::from_field(&[0; 64]), Ok(StreamName::EMPTY));
    for bad in ["tab\t", "é", "new\nline", "\u{7f}"] {
        let mut field = [0; 64];
        field[..bad.len()].copy_from_slice(bad.as_bytes());
        assert!(StreamName::from_field(&field).is_err(), "{bad:?}");
    }
    assert!(StreamName::new(&"x".repeat(63)).is_ok());
    assert!(StreamName::new(&"x".repeat(64)).is_err());
}

#[test]
fn credits_are_rounded_up_to_64() {
    let credit = |bytes| Header::create_stream(11, StreamName::DEVICE_MONITOR, StreamId(0), bytes).size;
    // deviceMonitor, graphMonitor and the output FIFO of the vendor's plugin.
    assert_eq!([credit(2000), credit(4096), credit(8), credit(0)], [2048, 4096, 64, 0]);
    assert_eq!(credit(u32::MAX), u32::MAX - 63);
}

#[test]
fn thermal_nonsense_is_no_temperature() {
    let mut stats = ThermalStats { raw: [0.0; THERMAL_FLOATS] };
    stats.raw[1] = 41.0;
    assert_eq!((stats.temperature_c(), stats.throttle_level()), (Some(41.0), Some(ThrottleLevel::None)));
    for nonsense in [f32::NAN, f32::INFINITY, -56.0, 1e9] {
        stats.raw[..2].fill(nonsense);
        assert_eq!((stats.temperature_c(), stats.throttle_level()), (None, None), "{nonsense}");
    }
}

#[test]
fn timing_needs_room_for_its_two_last_numbers() {
    for len in [0, 4, 7, 9, 11] {
        assert!(TimingData::parse(&vec![0; len]).is_err(), "{len}");
    }
    assert_eq!(
        TimingData::parse(&[1.0_f32, 2.0, 3.0].map(f32::to_le_bytes).concat()),
        Ok(TimingData { stages_ms: vec![1.0], receive_ms: 2.0, total_ms: 3.0 })
    );
}

#[test]
fn debug_text_ends_at_its_nul() {
    let mut raw = [0; DEBUG_DATA_LEN];
    raw[..3].copy_from_slice(b"ok\0");
    raw[3..].fill(0xff);
    assert_eq!(DebugData { raw }.text(), "ok");
    assert_eq!(DebugData { raw: [b'x'; DEBUG_DATA_LEN] }.text().len(), DEBUG_DATA_LEN);
}
