//! Blobs by path, pinned threads, and memory that the kernel treats specially.

use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use ncs2::ErrorKind;
use ncs2::Fleet;
use ncs2::pool::HostMemory;
use ncs2::runtime::{FleetConfig, LoadOptions};
use ncs2::topology::{PinPolicy, allowed_cpus};
use ncs2_device::Engine;

use super::common::{fleet, fleet_with, hash_of, path, rack};

#[test]
fn an_unchanged_file_is_not_read_again_and_a_changed_one_is() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("net.blob");
    let bytes = fs::read(path("tiny_u8_s1.blob")).expect("a committed blob");
    let write = |bytes: &[u8], changed: SystemTime| {
        fs::write(&file, bytes).expect("written");
        File::options().write(true).open(&file).and_then(|f| f.set_modified(changed)).expect("dated");
    };
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    write(&bytes, long_ago);
    let first = fleet.load_file(&file, LoadOptions::default()).expect("loads");
    // Other bytes behind the same identity: only a load that reads nothing can still succeed.
    write(&vec![0; bytes.len()], long_ago);
    let again = fleet.load_file(&file, LoadOptions::default()).expect("is known");
    assert_eq!(again.blob().hash(), first.blob().hash());
    // Also when nobody holds it: it lies on the stick.
    drop((first, again));
    let kept = fleet.load_file(&file, LoadOptions::default()).expect("lies on the stick");
    let input = vec![3; kept.blob().graph().input_bytes];
    assert!(kept.infer(&input).expect("answers").bytes() == hash_of(kept.blob(), &input));
    // A new time of change is a new file, and this one is damaged.
    write(&vec![0; bytes.len()], long_ago + Duration::from_secs(1));
    let refused = fleet.load_file(&file, LoadOptions::default()).expect_err("zeros are no blob");
    assert_eq!(refused.kind(), ErrorKind::InvalidBlob);
    let missing = fleet.load_file(&folder.path().join("none"), LoadOptions::default()).expect_err("no file");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}

#[test]
fn a_file_that_has_just_changed_is_read_each_time() {
    let rack = rack(1, Engine::Hash);
    let fleet = fleet(&rack);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("net.blob");
    let bytes = fs::read(path("tiny_u8_s1.blob")).expect("a committed blob");
    // In the future of every clock: it can never have settled.
    let soon = SystemTime::now() + Duration::from_secs(3600);
    let write = |bytes: &[u8]| {
        fs::write(&file, bytes).expect("written");
        File::options().write(true).open(&file).and_then(|f| f.set_modified(soon)).expect("dated");
    };
    write(&bytes);
    let graph = fleet.load_file(&file, LoadOptions::default()).expect("loads");
    write(&vec![0; bytes.len()]);
    assert!(fleet.load_file(&file, LoadOptions::default()).is_err(), "the same identity, read all the same");
    drop(graph);
}

#[test]
fn threads_run_where_they_are_told_to() {
    let rack = rack(1, Engine::Hash);
    let last = *allowed_cpus().last().expect("a CPU");
    let fleet = fleet_with(&rack, FleetConfig { pin: PinPolicy::Cpus(vec![last]), ..FleetConfig::default() });
    assert_eq!(fleet.reactor_cpus(), [last]);
    let thread = fs::read_dir("/proc/self/task")
        .expect("Linux")
        .filter_map(|task| task.ok().map(|t| t.path()))
        .find(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "ncs2-sim0"))
        .expect("the stick's thread");
    let status = fs::read_to_string(thread.join("status")).expect("its status");
    let allowed = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).expect("its CPUs");
    assert_eq!(allowed.trim(), last.to_string());
    let builder = rack.ports().into_iter().fold(Fleet::builder(), |b, port| b.port(port));
    let config = FleetConfig { pin: PinPolicy::Cpus(vec![100_000]), ..FleetConfig::default() };
    let refused = builder.config(config).open().expect_err("there is no such CPU");
    assert_eq!(refused.kind(), ErrorKind::InvalidInput);
}

#[test]
fn memory_that_is_kept_out_of_swap_is_reported_or_its_refusal_is() {
    let rack = rack(1, Engine::Hash);
    let host_memory = HostMemory { lock: true, huge_pages: true };
    let fleet = fleet_with(&rack, FleetConfig { host_memory, ..FleetConfig::default() });
    let graph = fleet.load_file(&path("squeezenet1_1_u8_s1.blob"), LoadOptions::default()).expect("loads");
    let input = vec![3; graph.blob().graph().input_bytes];
    assert!(graph.infer(&input).expect("answers").bytes() == hash_of(graph.blob(), &input));
    let pool = fleet.stats().sticks[0].host_pool;
    let asked = graph.blob().graph().input_bytes;
    assert!(pool.locked_bytes >= asked || pool.memory_refusals > 0, "{pool:?}");
    assert!(pool.locked_bytes <= pool.in_use_bytes + pool.idle_bytes, "{pool:?}");
}
