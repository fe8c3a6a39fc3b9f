//! Properties of the model of one stick: any legal conversation, and any bytes at all.

#[allow(dead_code, reason = "shared by several tests, none of which uses all of it")]
mod host;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use host::{GRAPH, Host, config};
use ncs2::wire::{EventKind, HEADER_LEN, Status};
use ncs2_device::{Engine, InputRelease, Timing, TriggerStatus};
use proptest::prelude::*;

fn blob(name: &str) -> Vec<u8> {
    let file = format!("../tests/data/models/{name}.blob");
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).expect(name)
}

/// What a legal host does by chance.
#[derive(Clone, Copy, Debug)]
enum Act {
    Load(u8),
    Unload(u8),
    Infer(u8),
    Take(u8),
    Ping,
    Pass(u16),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        1 => any::<u8>().prop_map(Act::Load),
        1 => any::<u8>().prop_map(Act::Unload),
        8 => any::<u8>().prop_map(Act::Infer),
        6 => any::<u8>().prop_map(Act::Take),
        1 => Just(Act::Ping),
        2 => any::<u16>().prop_map(Act::Pass),
    ];
    prop::collection::vec(act, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn legal_conversations_keep_their_order_and_their_memory(
        acts in acts(), release in any::<bool>(), status in any::<bool>(), zero in any::<bool>(), piece in 1usize..3000,
    ) {
        let mut config = config(Engine::Hash, if zero { Timing::Zero } else { Timing::Model });
        let f = &mut config.profile.firmware;
        f.input_release = if release { InputRelease::Start } else { InputRelease::End };
        f.status = if status { TriggerStatus::After } else { TriggerStatus::Before };
        let mut host = Host::open(config);
        host.piece = piece;
        let blobs = [blob("tiny_u8_s1"), blob("tiny_fp16_s2"), blob("lstm_fp16_s1")];
        // Graph, inputs whose outputs are awaited; and what an input's output is, by (blob, input).
        type Slot = Option<(host::Loaded, usize, std::collections::VecDeque<u8>)>;
        let mut slots: [Slot; 3] = [None, None, None];
        let mut known: BTreeMap<(usize, u8), Vec<u8>> = BTreeMap::new();
        let mut next = 0;
        for (i, act) in acts.into_iter().enumerate() {
            match act {
                Act::Load(n) => {
                    let at = usize::from(n) % 3;
                    if slots[at].is_none() && next < 9 {
                        while host.take(GRAPH).is_some() {}
                        // Statuses of runs that are still out would be taken for the load's.
                        if slots.iter().flatten().any(|s| !s.2.is_empty()) { continue; }
                        host.drive();
                        while host.take(GRAPH).is_some() { host.drive(); }
                        let which = usize::from(n / 3) % 3;
                        let loaded = host.load(next, &blobs[which], 1 + u32::from(n % 3), 3);
                        slots[at] = Some((loaded, which, Default::default()));
                        next += 1;
                    }
                }
                Act::Infer(n) => {
                    if let Some((graph, _, waiting)) = &mut slots[usize::from(n) % 3]
                        && host.room(graph.input, graph.input_bytes) && host.room(GRAPH, 84)
                    {
                        let input = (i % 5) as u8;
                        host.trigger(graph, &vec![input; graph.input_bytes]);
                        waiting.push_back(input);
                    }
                }
                Act::Take(n) => {
                    while let Some(status) = host.take(GRAPH) {
                        prop_assert_eq!(Status::parse(&status), Ok(Status::Ok));
                    }
                    if let Some((graph, which, waiting)) = &mut slots[usize::from(n) % 3]
                        && let Some(output) = host.take(graph.output)
                    {
                        let input = waiting.pop_front().expect("an output for each trigger, no more");
                        prop_assert_eq!(output.len(), graph.output_bytes);
                        prop_assert_eq!(known.entry((*which, input)).or_insert_with(|| output.clone()), &output);
                    }
                }
                Act::Unload(n) => {
                    let at = usize::from(n) % 3;
                    if slots.iter().flatten().all(|s| s.2.is_empty())
                        && let Some((graph, ..)) = slots[at].take()
                    {
                        host.drive();
                        while host.take(GRAPH).is_some() { host.drive(); }
                        host.unload(&graph);
                    }
                }
                Act::Ping => {
                    host.request(EventKind::Ping, 0, 0, "");
                }
                Act::Pass(us) => host.pass(Duration::from_micros(u64::from(us))),
            }
            host.drive();
        }
        for (graph, which, mut waiting) in slots.into_iter().flatten() {
            while let Some(input) = waiting.pop_front() {
                let output = host.expect(graph.output);
                prop_assert_eq!(known.entry((which, input)).or_insert_with(|| output.clone()), &output);
                while host.take(GRAPH).is_some() { host.drive(); }
            }
            while host.take(GRAPH).is_some() { host.drive(); }
            prop_assert_eq!(host.unreleased(graph.input), 0);
            host.unload(&graph);
        }
        prop_assert_eq!(host.used_memory(), 0);
        prop_assert_eq!(host.stick.violations(), ncs2_device::Violations::default());
    }

    /// Nothing that can be sent brings the model down, or makes it hoard.
    #[test]
    fn arbitrary_bytes_never_panic(seed in any::<u64>(), rounds in 1usize..400, reads in any::<bool>()) {
        let mut host = Host::open(config(Engine::Hash, Timing::Zero));
        let mut state = seed | 1;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let cache = ncs2_device::PreparedCache::default();
        for _ in 0..rounds {
            let r = random();
            // Mostly headers with small numbers, so that it comes to something; some plain noise.
            let bytes: Vec<u8> = if r % 8 == 0 {
                (0..r % 300).map(|_| random() as u8).collect()
            } else {
                let mut header = [0u8; HEADER_LEN];
                header[4] = (random() % 18) as u8;
                header[8..15].copy_from_slice(match random() % 4 {
                    0 => b"FIFO0\0\0",
                    1 => b"graphBu",
                    2 => b"graphMo",
                    _ => b"x\0\0\0\0\0\0",
                });
                header[72] = (random() % 5) as u8;
                header[76] = (random() % 120) as u8;
                header[77] = if random() % 50 == 0 { random() as u8 } else { 0 };
                header[80] = random() as u8;
                header.to_vec()
            };
            let taken = host.stick.handle_out(&bytes, host.now);
            prop_assert!(taken <= bytes.len());
            while let Some(mut work) = host.stick.poll_work() {
                work.perform(&cache);
                host.stick.handle_work_done(work, host.now);
            }
            if reads {
                while let Some(bytes) = host.stick.poll_in(host.now) {
                    let n = bytes.len();
                    host.stick.consume_in(n);
                }
            }
            host.stick.handle_timeout(host.now);
            while host.stick.poll_bus_event().is_some() {}
        }
    }
}
