use proptest::prelude::*;

use super::*;
use crate::blob::BlobHash;

const MB: u64 = 1 << 20;

fn key(n: u8) -> CacheKey {
    CacheKey { hash: BlobHash([n; 32]), options: LoadKey { executors: 1, elements: 1, instances: 1 } }
}

fn needs(file_bytes: u64) -> GraphNeeds {
    GraphNeeds {
        version: (6, 0),
        file_bytes,
        bss_bytes: 0,
        input_bytes: 0,
        output_bytes: 0,
        elements: 1,
        instances: 1,
        executors: 1,
        shaves: 4,
        cmx_slices: 4,
    }
}

fn stick(memory: u64, graphs: u32) -> StickCache {
    StickCache::new(StickLimits::myriad_x(memory, graphs, 100, 3))
}

fn put(cache: &mut StickCache, n: u8, bytes: u64) -> Vec<CacheKey> {
    let evicted = cache.begin_load(key(n), needs(bytes)).expect("fits");
    assert!(cache.loaded(&key(n), Duration::from_millis(10)));
    evicted
}

#[test]
fn memory_counts_scratch_per_executor_and_both_fifos() {
    let needs = GraphNeeds {
        bss_bytes: 100,
        instances: 1,
        executors: 2,
        input_bytes: 65,
        output_bytes: 1,
        elements: 4,
        ..needs(1000)
    };
    assert_eq!(needs.stick_bytes(), 1000 + 200 + 4 * (128 + 64));
}

#[test]
fn least_recently_used_goes_first_and_pins_stay() {
    let mut cache = stick(10 * MB, 10);
    put(&mut cache, 1, 4 * MB);
    put(&mut cache, 2, 4 * MB);
    assert!(cache.touch(&key(1)));
    assert_eq!(put(&mut cache, 3, 4 * MB), [key(2)]);
    cache.pin(&key(1));
    assert_eq!(put(&mut cache, 4, 4 * MB), [key(3)]);
    cache.pin(&key(4));
    let Plan::Refused(refusal) = cache.plan(&key(5), &needs(4 * MB)) else { panic!("must be refused") };
    assert_eq!(
        refusal,
        Refusal::Busy { asked_bytes: 4 * MB, free_bytes: 2 * MB, must_go: vec![key(1), key(4)] }
    );
    assert!(refusal.to_string().contains("010101010101"), "{refusal}");
    cache.unpin(&key(1));
    assert!(matches!(cache.plan(&key(5), &needs(4 * MB)), Plan::Load { evict, .. } if evict == [key(1)]));
}

#[test]
fn a_small_victim_is_spared_when_a_large_one_suffices() {
    let mut cache = stick(10 * MB, 10);
    put(&mut cache, 1, MB);
    put(&mut cache, 2, 8 * MB);
    assert_eq!(put(&mut cache, 3, 8 * MB), [key(2)]);
    assert!(cache.holds(&key(1)));
}

#[test]
fn the_chip_refuses_before_the_ledger() {
    let cache = stick(10 * MB, 2);
    let cases = [
        GraphNeeds { version: (5, 0), ..needs(1) },
        GraphNeeds { shaves: 17, ..needs(1) },
        GraphNeeds { cmx_slices: 20, ..needs(1) },
        GraphNeeds { executors: 4, ..needs(1) },
        needs(11 * MB),
    ];
    let said: Vec<String> = cases
        .iter()
        .map(|n| match cache.plan(&key(1), n) {
            Plan::Refused(refusal) => refusal.to_string(),
            other => panic!("{n:?}: {other:?}"),
        })
        .collect();
    for (text, word) in said.iter().zip(["version 5.0", "17 SHAVEs", "20 CMX", "4 executors", "empty stick"])
    {
        assert!(text.contains(word), "{text}");
    }
}

#[test]
fn max_graphs_evicts_although_memory_is_free() {
    let mut cache = stick(100 * MB, 2);
    put(&mut cache, 1, MB);
    put(&mut cache, 2, MB);
    assert_eq!(put(&mut cache, 3, MB), [key(1)]);
    assert_eq!(cache.stats().evictions, 1);
}

#[test]
fn the_sticks_own_figure_is_believed_when_larger() {
    let mut cache = stick(10 * MB, 10);
    put(&mut cache, 1, 2 * MB);
    cache.reported_used(5 * MB);
    assert_eq!(cache.free_bytes(), 5 * MB);
    cache.reported_used(MB);
    assert_eq!(cache.free_bytes(), 8 * MB);
}

#[test]
fn cost_follows_the_measured_rate() {
    let mut cache = stick(500 * MB, 10);
    let prior = cache.load_cost(&needs(35 * MB));
    cache.begin_load(key(1), needs(35 * MB)).expect("fits");
    cache.loaded(&key(1), Duration::from_millis(1005));
    assert!(cache.load_cost(&needs(35 * MB)) > prior * 3);
    assert!((cache.load_cost(&needs(70 * MB)).as_secs_f64() - 2.005).abs() < 0.01);
}

#[test]
fn host_keys_hit_only_the_unchanged_file() {
    let mut keys = HostKeys::new(2);
    let file = FileIdentity { device: 1, inode: 2, size: 3, mtime_ns: 4 };
    assert_eq!(keys.lookup(&file), None);
    keys.learn(file, BlobHash([7; 32]));
    assert_eq!(keys.lookup(&file), Some(BlobHash([7; 32])));
    for changed in [
        FileIdentity { size: 4, ..file },
        FileIdentity { mtime_ns: 5, ..file },
        FileIdentity { inode: 3, ..file },
        FileIdentity { device: 3, ..file },
    ] {
        assert_eq!(keys.lookup(&changed), None);
    }
    keys.learn(FileIdentity { mtime_ns: 9, ..file }, BlobHash([8; 32]));
    assert_eq!(keys.lookup(&file), None, "an older state is forgotten");
    assert_eq!(keys.counts(), (1, 6));
}

proptest! {
    /// Whatever is asked: the ledger never exceeds the stick, a pinned graph never goes, a plan is carried out as said.
    #[test]
    fn the_ledger_holds(steps in prop::collection::vec((0u8..12, 0u64..6, 0u8..4), 1..200)) {
        let mut cache = stick(12 * MB, 5);
        let mut pins = std::collections::HashMap::<u8, u32>::new();
        for (n, size, what) in steps {
            let before = cache.keys();
            match what {
                0 | 1 => {
                    let planned = cache.plan(&key(n), &needs(size * MB));
                    match cache.begin_load(key(n), needs(size * MB)) {
                        Ok(evicted) => {
                            for gone in &evicted {
                                prop_assert_eq!(pins.get(&gone.hash.0[0]).copied().unwrap_or(0), 0);
                                prop_assert!(before.contains(gone) && !cache.holds(gone));
                            }
                            if let Plan::Load { evict, .. } = planned {
                                prop_assert_eq!(evict, evicted);
                                cache.loaded(&key(n), Duration::from_millis(3));
                            }
                        }
                        Err(refusal) => {
                            prop_assert_eq!(Plan::Refused(refusal), planned);
                            prop_assert_eq!(before, cache.keys());
                        }
                    }
                }
                2 => if cache.pin(&key(n)) { *pins.entry(n).or_default() += 1; },
                _ => { cache.unpin(&key(n)); if let Some(p) = pins.get_mut(&n) { *p = p.saturating_sub(1); } }
            }
            prop_assert!(cache.used_bytes() <= 12 * MB && cache.stats().graphs <= 5);
        }
    }
}
