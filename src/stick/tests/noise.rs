//! Random schedules and random bytes. A failing case prints its seed and its smallest form.

use proptest::prelude::*;

use super::config;
use super::peer::{Rig, request};
use crate::stick::*;
use std::time::Duration;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The peer's answers come one at a time or in bursts, executions whenever it likes: each job ends once, with
    /// its own answer, in order.
    #[test]
    fn each_job_ends_exactly_once(
        pipelined: bool,
        releases: bool,
        script in proptest::collection::vec(0_u8..6, 50..400),
    ) {
        let ordering = if pipelined { Ordering::Pipelined } else { Ordering::Vendor };
        let mut rig = Rig::loaded(config(ordering));
        rig.stick.load(request(1), rig.now).unwrap();
        rig.peer.executes = false;
        rig.peer.releases_inputs = releases;
        let mut next = 0;
        let mut accepted = Vec::new();
        for step in script {
            match step {
                0 => {
                    if rig.infer(next % 2, next, Duration::from_secs(600)).is_ok() {
                        accepted.push(next);
                    }
                    next += 1;
                }
                1 => { rig.flush(); }
                2 => { rig.peer.execute(); }
                3 => { rig.peer.release_held(); }
                _ => {
                    if let Some(unit) = rig.peer.outbox.pop_front() {
                        rig.deliver_one(unit);
                    }
                }
            }
        }
        rig.peer.executes = true;
        for _ in 0..1000 {
            rig.run();
            rig.peer.execute();
            rig.peer.release_held();
        }
        prop_assert_eq!(rig.failure(), None);
        let done = rig.done();
        for graph in 0..2 {
            let of = |jobs: &[u64]| jobs.iter().copied().filter(|j| j % 2 == graph).collect::<Vec<_>>();
            prop_assert_eq!(of(&done), of(&accepted));
        }
    }

    /// Whatever comes in, nothing panics, and nothing grows.
    #[test]
    fn arbitrary_bytes_do_no_harm(
        loaded: bool,
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..40),
    ) {
        let mut rig = if loaded { Rig::loaded(config(Ordering::Pipelined)) } else { Rig::new(config(Ordering::Vendor)) };
        if loaded {
            rig.infer(0, 0, Duration::from_secs(60)).unwrap();
        }
        for piece in pieces {
            rig.stick.handle_in(&piece, rig.now);
        }
        prop_assert!(rig.stick.link.backlog() <= 5000);
    }

    /// Headers that parse, with fields that are near the truth, are the more dangerous noise.
    #[test]
    fn arbitrary_headers_do_no_harm(
        headers in proptest::collection::vec((0_u32..18, 0_i32..40, 0_u32..7, prop_oneof![0_u32..400, any::<u32>()], 0_u32..256), 0..200),
    ) {
        let mut rig = Rig::loaded(config(Ordering::Pipelined));
        rig.infer(0, 0, Duration::from_secs(60)).unwrap();
        rig.flush();
        for (kind, id, stream, size, flags) in headers {
            let mut bytes = [0; HEADER_LEN];
            for (at, word) in [(0, id as u32), (4, kind), (72, stream), (76, size), (80, flags)] {
                bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                match rig.stick.read_want() {
                    ReadWant::Tensor { missing, .. } => {
                        let take = missing.min(rest.len());
                        rig.stick.handle_tensor_in(take, rig.now);
                        rest = &rest[take..];
                    }
                    ReadWant::Header { missing } | ReadWant::Packet { missing } => {
                        prop_assert!(missing <= 4096);
                        let take = missing.min(rest.len());
                        rig.stick.handle_in(&rest[..take], rig.now);
                        rest = &rest[take..];
                    }
                }
            }
            while rig.stick.poll_event().is_some() {}
        }
        prop_assert!(rig.stick.link.backlog() <= 5000);
    }
}
