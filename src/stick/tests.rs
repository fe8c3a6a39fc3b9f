//! The engine against a small behaving peer, on virtual time.

mod noise;
pub(crate) mod peer;

use std::collections::HashSet;
use std::time::Duration;

use self::peer::{Rig, Unit, Which, request};
use super::*;
use crate::wire::{GraphCommand, Header, Side, Status, StreamName};

const ORDERINGS: [Ordering; 2] = [Ordering::Vendor, Ordering::Pipelined];

fn config(ordering: Ordering) -> StickConfig {
    StickConfig { ordering, ..StickConfig::default() }
}

fn secs(s: u64) -> Instant {
    Instant::ZERO + Duration::from_secs(s)
}

#[test]
fn opens_loads_infers_tells_unloads_and_closes() {
    for ordering in ORDERINGS {
        let mut rig = Rig::loaded(config(ordering));
        for job in 0..4 {
            rig.infer(0, job, Duration::from_secs(60)).unwrap();
        }
        assert!(!rig.stick.can_infer(GraphKey(0)));
        assert_eq!(rig.infer(0, 4, Duration::from_secs(60)), Err(StickError::Full));
        rig.run();
        assert_eq!(rig.done(), [0, 1, 2, 3]);
        rig.stick.request_thermal(rig.now);
        rig.stick.request_used_memory(rig.now);
        rig.stick.request_timing(GraphKey(0), rig.now).unwrap();
        rig.stick.request_debug(GraphKey(0), rig.now).unwrap();
        rig.events.clear();
        rig.run();
        assert_eq!(rig.events.len(), 4, "{:?}", rig.events);
        assert!(rig.events.contains(&StickEvent::UsedMemory(77)));
        assert!(rig.events.contains(&StickEvent::Debug(GraphKey(0), "ok".into())));
        assert!(rig.events.iter().any(|e| matches!(e, StickEvent::Timing(_, ms) if ms[10] == 10.0)));
        rig.stick.unload(GraphKey(0), rig.now).unwrap();
        rig.events.clear();
        rig.run();
        assert_eq!(rig.events, [StickEvent::Unloaded(GraphKey(0))]);
        assert_eq!((rig.peer.graphs, rig.peer.streams.len()), (0, 2));
        rig.stick.close(rig.now);
        rig.run();
        assert_eq!(rig.events.last(), Some(&StickEvent::Closed));
        assert!(rig.peer.reset && rig.peer.streams.is_empty());
        assert_eq!(rig.stick.poll_timeout(), None);
    }
}

#[test]
fn round_trips_of_one_inference() {
    for (ordering, most) in [(Ordering::Vendor, 6), (Ordering::Pipelined, 2)] {
        let mut rig = Rig::loaded(config(ordering));
        rig.infer(0, 0, Duration::from_secs(60)).unwrap();
        let mut turns = 0;
        while rig.done().is_empty() {
            let before = rig.sent.len();
            assert!(rig.turn());
            turns += 1;
            let requests = rig.sent[before..].iter().filter(|h| h.side == Side::Request).count();
            assert_eq!(
                requests,
                if ordering == Ordering::Vendor { 1 } else { 2 },
                "each step waits, or none"
            );
        }
        assert!(turns <= most, "{ordering:?} takes {turns}");
        if ordering == Ordering::Vendor {
            // Input, TRIGGER with status and output at once, release of the status, release of the output.
            assert_eq!(turns, 4);
        } else {
            assert_eq!(turns, 1);
        }
    }
}

/// Each answer in a turn of its own: the vendor's six dependent round trips are there, and are no more than six.
#[test]
fn vendor_order_never_has_two_graph_commands_in_flight() {
    let mut rig = Rig::loaded(config(Ordering::Vendor));
    rig.stick.load(request(1), rig.now).unwrap();
    rig.run();
    for job in 0..4 {
        rig.infer(job % 2, job, Duration::from_secs(60)).unwrap();
    }
    let mut in_flight = 0;
    let mut inputs = [0; 2];
    let mut released = 0;
    let fifo = rig.peer.named("FIFO0");
    for _ in 0..200 {
        let before = rig.sent.len();
        rig.flush();
        for header in &rig.sent[before..] {
            let is_command = header.has_payload() && header.stream == StreamId(1);
            let is_status_release = header.kind == EventKind::ReadRelease
                && header.side == Side::Request
                && header.stream == StreamId(1);
            in_flight += i32::from(is_command) - i32::from(is_status_release);
            assert!((0..=1).contains(&in_flight));
            // Per graph, the next input waits until the status of the TRIGGER before is released.
            if header.has_payload() && header.stream.0 >= 2 {
                inputs[usize::from(header.stream != fifo)] += 1;
            }
            assert!(inputs.iter().sum::<i32>() <= released + 2, "{inputs:?} inputs, {released} statuses");
            released += i32::from(is_status_release);
        }
        if let Some(unit) = rig.peer.outbox.pop_front() {
            rig.deliver_one(unit);
        }
    }
    rig.run();
    let mut done = rig.done();
    done.sort_unstable();
    assert_eq!(done, [0, 1, 2, 3]);
}

/// After the first inferences no queue grows any more: nothing is allocated per inference.
#[test]
fn queues_keep_their_size_in_steady_state() {
    for ordering in ORDERINGS {
        let mut rig = Rig::loaded(config(ordering));
        let capacity = |rig: &Rig| {
            let jobs = rig.stick.graphs[0].jobs.capacity();
            [rig.stick.link.capacity(), rig.stick.events.capacity(), rig.stick.commands.capacity(), jobs]
        };
        let mut at_first = None;
        for job in 0..2000 {
            while !rig.stick.can_infer(GraphKey(0)) {
                assert!(rig.turn());
            }
            rig.infer(0, job, Duration::from_secs(60)).unwrap();
            if job == 20 {
                at_first = Some(capacity(&rig));
            }
        }
        rig.run();
        assert_eq!(rig.done().len(), 2000);
        assert_eq!(at_first, Some(capacity(&rig)), "{ordering:?}");
    }
}

/// Transcript 05: more requests than the input FIFO has elements.
#[test]
fn sixteen_requests_through_four_elements() {
    for ordering in ORDERINGS {
        let mut rig = Rig::loaded(config(ordering));
        rig.peer.executes = false;
        let mut next = 0;
        while rig.done().len() < 16 {
            while next < 16 && rig.stick.can_infer(GraphKey(0)) {
                rig.infer(0, next, Duration::from_secs(60)).unwrap();
                next += 1;
            }
            rig.run();
            assert!(rig.peer.execute(), "nothing is triggered");
            rig.run();
        }
        assert_eq!(rig.done(), (0..16).collect::<Vec<_>>());
        let fifo = rig.peer.named("FIFO0");
        assert!(rig.peer.most_unreleased[&fifo.0] <= 4 * peer::INPUT_BYTES);
    }
}

#[test]
fn an_input_is_parked_until_the_stick_releases_and_others_go_on() {
    for ordering in ORDERINGS {
        let mut rig = Rig::loaded(config(ordering));
        rig.peer.releases_inputs = false;
        for job in 0..4 {
            rig.infer(0, job, Duration::from_secs(60)).unwrap();
        }
        rig.run();
        assert_eq!(rig.done(), [0, 1, 2, 3]);
        rig.infer(0, 4, Duration::from_secs(60)).unwrap();
        let before = rig.sent.len();
        rig.run();
        assert_eq!(rig.sent.len(), before, "a parked write sends nothing, its TRIGGER neither");
        rig.stick.request_thermal(rig.now);
        rig.run();
        assert!(rig.events.iter().any(|e| matches!(e, StickEvent::Thermal(_))));
        rig.peer.release_held();
        rig.run();
        assert_eq!(rig.done(), [0, 1, 2, 3, 4]);
        assert!(!rig.events.iter().any(|e| matches!(e, StickEvent::InputReleased(_))), "jobs had ended");
    }
}

#[test]
fn a_parked_input_has_its_jobs_deadline() {
    let mut rig = Rig::loaded(config(Ordering::Vendor));
    rig.peer.releases_inputs = false;
    for job in 0..4 {
        rig.infer(0, job, Duration::from_secs(60)).unwrap();
    }
    rig.run();
    rig.infer(0, 4, Duration::from_secs(7)).unwrap();
    rig.pass_until(secs(6));
    assert_eq!(rig.failure(), None);
    rig.pass_until(secs(8));
    assert!(matches!(rig.failure(), Some(StickError::Timeout { .. })), "{:?}", rig.failure());
}

/// Loses each single unit that the peer sends, one run per unit. Nothing hangs, nothing is made up, and what was not
/// answered is named.
#[test]
fn every_lost_answer_ends_in_a_timeout_that_names_its_step() {
    for ordering in ORDERINGS {
        let mut steps = HashSet::new();
        let mut lost = 0;
        loop {
            let mut rig = Rig::new(config(ordering));
            rig.lose = Some(lost);
            rig.stick.open(rig.now);
            rig.pass_until(secs(20));
            let mut accepted = rig.failure().is_none() && rig.stick.load(request(0), rig.now).is_ok();
            rig.pass_until(secs(40));
            accepted &= rig.failure().is_none() && rig.infer(0, 0, Duration::from_secs(9)).is_ok();
            rig.pass_until(secs(60));
            if accepted && rig.failure().is_none() {
                rig.stick.close(rig.now);
                rig.pass_until(secs(90));
            }
            let whole = rig.delivered <= lost;
            match rig.failure() {
                Some(StickError::Timeout { step, after }) => {
                    assert!(*after > Duration::ZERO);
                    steps.insert(*step);
                }
                // Nothing was lost, or an answer that nobody waits for (the last pong; pipelined, that of a release)
                // just before a close that did not take its two seconds.
                None => {
                    let harmless = |u: &Unit| match (u.header.kind, ordering) {
                        (EventKind::Write, _) => u.header.stream == StreamId(0),
                        (EventKind::ReadRelease, Ordering::Pipelined) => true,
                        _ => false,
                    };
                    let lost = rig.lost.as_ref().filter(|u| u.header.side == Side::Response);
                    assert!(whole || lost.is_some_and(harmless), "{:?}", rig.lost);
                    assert_eq!(rig.done(), [0]);
                    assert_eq!(rig.events.last(), Some(&StickEvent::Closed));
                }
                // A stick that does not say that it reset, or a reply in the wrong place.
                Some(StickError::Protocol { .. }) => {}
                other => panic!("{:?} lost: {other:?}, {:?}", rig.lost, rig.events),
            }
            let ended = rig.events.iter().filter(|e| matches!(e, StickEvent::Failed(_) | StickEvent::Closed));
            assert_eq!(ended.count(), 1, "unit {lost}: {:?}", rig.events);
            if whole {
                break;
            }
            lost += 1;
        }
        for step in [
            "PING",
            "create deviceMonitor",
            "GET_CAPABILITIES",
            "watchdog ping",
            "create graphMonitor",
            "SET_POWER_CONFIG",
            "ENABLE_ASYNC_DMA",
            "create graphBuffer",
            "VERIFY",
            "blob header",
            "status of VERIFY",
            "blob",
            "descriptors and status of ALLOCATE",
            "create the input FIFO",
            "input tensor",
            "TRIGGER",
            "status of TRIGGER",
            "output",
            "release of an output",
            "goodbye to the input FIFO",
            "close the input FIFO",
            "close graphMonitor",
            "RESET",
        ] {
            // A lost reply of ALLOCATE or of the status shows as a packet in the wrong place where another follows.
            assert!(steps.contains(step), "{ordering:?}: nobody waited for {step:?}: {steps:?}");
        }
    }
}

#[test]
fn the_link_lives_while_a_job_is_late_and_dies_while_a_job_has_time() {
    let mut rig = Rig::loaded(config(Ordering::Vendor));
    rig.peer.executes = false;
    rig.infer(0, 0, Duration::from_secs(30)).unwrap();
    rig.pass_until(secs(29));
    assert_eq!(rig.failure(), None);
    assert!((29..=31).contains(&rig.peer.pings), "{} pings", rig.peer.pings);
    rig.pass_until(secs(31));
    let after = Duration::from_secs(30);
    assert_eq!(rig.failure(), Some(&StickError::Timeout { step: "output", after }));

    let mut rig = Rig::loaded(config(Ordering::Vendor));
    rig.peer.executes = false;
    rig.infer(0, 0, Duration::from_secs(300)).unwrap();
    rig.run();
    rig.lose = Some(rig.delivered); // the answer to the next ping
    rig.pass_until(secs(5));
    assert!(matches!(rig.failure(), Some(StickError::Timeout { step: "watchdog ping", .. })));
    assert!(rig.infer(0, 1, Duration::from_secs(300)).is_err());
}

#[test]
fn a_refused_load_gives_everything_back_and_the_stick_goes_on() {
    let cases: [(Which, Status, StickError); 5] = [
        (
            |c| matches!(c, GraphCommand::Verify { .. }),
            Status::Internal,
            StickError::Status { step: "VERIFY", status: Status::Internal },
        ),
        (
            |c| matches!(c, GraphCommand::Allocate { .. }),
            Status::Unknown(77),
            StickError::Status { step: "ALLOCATE", status: Status::Unknown(77) },
        ),
        (
            |c| matches!(c, GraphCommand::AllocationVerify { .. }),
            Status::OutOfMemory,
            StickError::OutOfMemory { step: "ALLOCATION_VERIFY" },
        ),
        (
            |c| matches!(c, GraphCommand::BufferAllocate { fifo: 0, .. }),
            Status::Internal,
            StickError::Status { step: "BUFFER_ALLOCATE of the input FIFO", status: Status::Internal },
        ),
        (
            |c| matches!(c, GraphCommand::BufferAllocate { fifo: 1, .. }),
            Status::OutOfResources,
            StickError::Status { step: "BUFFER_ALLOCATE of the output FIFO", status: Status::OutOfResources },
        ),
    ];
    for ordering in ORDERINGS {
        for (which, status, error) in &cases {
            let mut rig = Rig::opened(config(ordering));
            rig.peer.refuse = Some((*which, *status));
            rig.stick.load(request(0), rig.now).unwrap();
            rig.run();
            assert_eq!(rig.events[1..], [StickEvent::LoadFailed(GraphKey(0), error.clone())]);
            assert_eq!((rig.peer.graphs, rig.peer.streams.len()), (0, 2), "{error}");
            rig.peer.refuse = None;
            rig.stick.load(request(0), rig.now).unwrap();
            rig.run();
            assert_eq!(rig.events.last(), Some(&StickEvent::Loaded(GraphKey(0))));
        }
    }
}

#[test]
fn refused_streams_and_wrong_descriptors_fail_the_load_alone() {
    let mut rig = Rig::opened(config(Ordering::Vendor));
    rig.peer.create_flags.insert("graphBuffer0", Flags::SIZE_TOO_BIG);
    rig.peer.create_flags.insert("FIFO0", Flags::NACK);
    for key in 0..2 {
        rig.stick.load(request(key), rig.now).unwrap();
    }
    rig.run();
    let out_of_memory = StickError::OutOfMemory { step: "create graphBuffer" };
    assert_eq!(rig.events[1], StickEvent::LoadFailed(GraphKey(0), out_of_memory));
    assert!(matches!(&rig.events[2], StickEvent::LoadFailed(GraphKey(1), StickError::Protocol { step, .. })
        if *step == "create the input FIFO"));
    for bytes in [(peer::INPUT_BYTES - 1, peer::OUTPUT_BYTES), (peer::INPUT_BYTES, peer::OUTPUT_BYTES + 4)] {
        rig.peer.descriptor_bytes = bytes;
        rig.stick.load(request(2), rig.now).unwrap();
        rig.run();
        assert!(matches!(
            rig.events.last(),
            Some(StickEvent::LoadFailed(GraphKey(2), StickError::Protocol { step: "ALLOCATE", .. }))
        ));
    }
    assert_eq!((rig.peer.graphs, rig.peer.streams.len()), (0, 2));
    assert_eq!(rig.failure(), None);
}

#[test]
fn capabilities_are_judged() {
    let too_many = LoadRequest { executors: 5, ..request(0) };
    let too_big = LoadRequest { blob_bytes: 513 << 20, ..request(0) };
    let mut rig = Rig::opened(config(Ordering::Vendor));
    let sent = rig.sent.len();
    assert!(matches!(rig.stick.load(too_many, rig.now), Err(StickError::Invalid(_))));
    assert!(matches!(rig.stick.load(too_big, rig.now), Err(StickError::OutOfMemory { .. })));
    for key in 0..10 {
        rig.stick.load(request(key), rig.now).unwrap();
    }
    assert!(matches!(rig.stick.load(request(10), rig.now), Err(StickError::OutOfMemory { .. })));
    assert_eq!(rig.sent.len(), sent);
    rig.run();
    assert_eq!(rig.events.len(), 11, "ten graphs on 32 streams: {:?}", rig.events);

    for (at, value, hint) in [(21, 0x24, "unknown chip"), (20, 0x50, "Myriad 2")] {
        let mut rig = Rig::new(config(Ordering::Vendor));
        rig.peer.capabilities[at] = value;
        if at == 21 {
            rig.peer.capabilities[20] = 0x11;
        }
        rig.stick.open(rig.now);
        rig.run();
        let error = rig.failure().expect("a failure").to_string();
        assert!(error.contains(hint), "{error}");
    }
    let mut rig = Rig::new(config(Ordering::Vendor));
    rig.peer.capabilities.truncate(36);
    rig.stick.open(rig.now);
    rig.run();
    assert!(rig.failure().expect("a failure").to_string().contains("36 bytes, expected 40"));
}

#[test]
fn doubt_about_an_output_ends_the_epoch() {
    type Fault = fn(&mut Rig);
    let faults: [(&str, Fault); 8] = [
        ("output of a job whose TRIGGER was not sent", |rig| {
            while rig.sent.last().is_none_or(|h| h.stream != StreamId(3)) {
                if let Some(transmit) = rig.stick.poll_transmit(rig.now) {
                    rig.sent.push(Header::parse(&transmit.header).unwrap());
                }
            }
            let output = rig.peer.named("FIFO1");
            rig.peer.write(output, &[0; peer::OUTPUT_BYTES as usize]);
            let unit = rig.peer.outbox.pop_front().unwrap();
            rig.deliver(&unit);
            rig.peer.executes = true;
        }),
        ("refused trigger", |rig| {
            rig.peer.refuse = Some((|c| matches!(c, GraphCommand::Trigger { .. }), Status::Internal));
        }),
        ("surplus output", |rig| {
            let output = rig.peer.named("FIFO1");
            rig.peer.write(output, &[0; peer::OUTPUT_BYTES as usize]);
        }),
        ("short output", |rig| {
            rig.peer.executes = false;
            rig.run();
            let output = rig.peer.named("FIFO1");
            rig.peer.write(output, &[0; peer::OUTPUT_BYTES as usize - 4]);
        }),
        ("long output", |rig| {
            rig.peer.executes = false;
            rig.run();
            let header = rig.peer.request(EventKind::Write, StreamId(4), u32::MAX);
            rig.peer.outbox.push_back(Unit { header, payload: Vec::new() });
        }),
        ("surplus status", |rig| {
            rig.run();
            rig.peer.write(StreamId(1), &[0; 4]);
        }),
        ("unasked telemetry", |rig| rig.peer.write(StreamId(0), &[0; 104])),
        ("a write on the input FIFO", |rig| {
            let input = rig.peer.named("FIFO0");
            rig.peer.write(input, &[0; 4]);
        }),
    ];
    for ordering in ORDERINGS {
        for (name, fault) in &faults {
            let mut rig = Rig::loaded(config(ordering));
            rig.peer.executes = false;
            if *name == "surplus output" {
                fault(&mut rig);
                rig.turn();
            } else {
                rig.infer(0, 0, Duration::from_secs(60)).unwrap();
                fault(&mut rig);
            }
            rig.run();
            assert!(rig.failure().is_some(), "{ordering:?}, {name}: {:?}", rig.events);
            rig.peer.execute();
            rig.run();
            assert!(rig.done().is_empty(), "{name}");
            assert!(matches!(rig.events.last(), Some(StickEvent::Failed(_))));
        }
    }
}

#[test]
fn any_chunking_is_the_same() {
    for ordering in ORDERINGS {
        for piece in [1, 7, 83, 85, 1000] {
            let mut rig = Rig::new(config(ordering));
            rig.piece = piece;
            rig.stick.open(rig.now);
            rig.run();
            rig.stick.load(request(0), rig.now).unwrap();
            rig.run();
            for job in 0..4 {
                rig.infer(0, job, Duration::from_secs(60)).unwrap();
            }
            rig.stick.close(rig.now);
            rig.run();
            // Closing refuses what was not sent.
            let refused = rig.events.iter().filter(|e| matches!(e, StickEvent::Refused(..))).count();
            assert_eq!(rig.done().len() + refused, 4);
            assert_eq!(rig.events.last(), Some(&StickEvent::Closed), "{ordering:?} {piece}");
        }
    }
}

#[test]
fn streams_that_the_stick_opens_are_accepted() {
    let mut rig = Rig::loaded(config(Ordering::Vendor));
    for (name, expected) in [("graphMonitor", 1), ("console", 5)] {
        let mut header = rig.peer.request(EventKind::CreateStream, StreamId::INVALID, 4096);
        header.name = StreamName::new(name).unwrap();
        rig.deliver(&Unit { header, payload: Vec::new() });
        let response = Header::parse(&rig.stick.poll_transmit(rig.now).unwrap().header).unwrap();
        assert_eq!((response.kind, response.side), (EventKind::CreateStream, Side::Response));
        assert_eq!((response.id, response.stream.0, response.name), (header.id, expected, header.name));
        assert_eq!(response.flags, Flags::ACK);
    }
    rig.peer.write(StreamId(5), b"hello from the console");
    rig.infer(0, 0, Duration::from_secs(60)).unwrap();
    rig.run();
    assert_eq!(rig.done(), [0]);
    let close = rig.peer.request(EventKind::CloseStream, StreamId(5), 0);
    rig.deliver(&Unit { header: close, payload: Vec::new() });
    rig.run();
    assert_eq!(rig.failure(), None);
}

#[test]
fn leaving_the_bus_fails_before_reset_and_closes_after_it() {
    let mut rig = Rig::loaded(config(Ordering::Vendor));
    rig.stick.handle_link_down(rig.now);
    rig.flush();
    assert_eq!(rig.events, [StickEvent::Failed(StickError::Gone)]);

    let mut rig = Rig::loaded(config(Ordering::Vendor));
    rig.stick.close(rig.now);
    while !rig.peer.reset {
        rig.turn();
        rig.flush();
    }
    rig.stick.handle_link_down(rig.now);
    rig.flush();
    assert_eq!(rig.events.last(), Some(&StickEvent::Closed));
}

/// Pipelined, while a graph is being loaded, jobs of another one go on; under vendor order they share one command.
#[test]
fn loads_overlap_inferences() {
    for ordering in ORDERINGS {
        let mut rig = Rig::loaded(config(ordering));
        rig.stick.load(LoadRequest { blob_bytes: 20 << 20, ..request(1) }, rig.now).unwrap();
        for job in 0..4 {
            rig.infer(0, job, Duration::from_secs(60)).unwrap();
            rig.turn();
        }
        rig.run();
        assert_eq!(rig.done(), [0, 1, 2, 3]);
        assert!(rig.events.contains(&StickEvent::Loaded(GraphKey(1))));
        rig.infer(1, 9, Duration::from_secs(60)).unwrap();
        rig.run();
        assert_eq!(rig.done(), [0, 1, 2, 3, 9]);
    }
}
