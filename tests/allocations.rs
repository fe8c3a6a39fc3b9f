//! In steady state an inference allocates nothing: not in the driver, not in the runtime, not in the virtual stick.
//!
//! One test in a process of its own, since it counts what all threads allocate.
#![allow(unsafe_code, reason = "a counting allocator")]

#[path = "fleet/common.rs"]
#[allow(dead_code, reason = "shared with the tests of the fleet")]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{LONG, blob, fleet_with, rack};
use ncs2::runtime::{FleetConfig, LoadOptions, SubmitOptions};
use ncs2_device::Engine;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Windows of a thousand inferences in one of which nothing may be allocated.
const WINDOWS: usize = 5;
/// Allocations of a window that growing queues explain.
const MOST_GROWTH: u64 = 20;

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged, which owns the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised us.
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promised us.
        unsafe { System.realloc(memory, layout, size) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised us.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn in_steady_state_nothing_is_allocated() {
    for ordering in [ncs2::stick::Ordering::Vendor, ncs2::stick::Ordering::Pipelined] {
        for (name, depth) in [("mlp_fp16_s1", 1), ("squeezenet1_1_u8_s1", 4), ("mlp_fp16_s1", 8)] {
            let rack = rack(1, Engine::Hash);
            let fleet = fleet_with(&rack, FleetConfig { ordering, ..FleetConfig::default() });
            let options = LoadOptions { depth, ..LoadOptions::default() };
            let graph = fleet.load(&blob(name), options).expect("loads");
            let window = if depth == 1 { 1 } else { 2 * depth as usize };
            let mut flying = VecDeque::with_capacity(window + 1);
            let mut run = |count: u32| {
                for n in 0..count {
                    let mut lease = graph.input().expect("memory");
                    lease.overwrite()[0] = n as u8;
                    flying.push_back(graph.submit(lease, SubmitOptions::default()).expect("room"));
                    while flying.len() >= window {
                        let ticket: ncs2::runtime::Ticket = flying.pop_front().expect("not empty");
                        drop(ticket.wait().expect("an answer"));
                    }
                }
            };
            run(1000);
            // A queue grows when the scheduler lets more pile up than ever before, which may be late on a busy machine.
            // Growth ends; an allocation per inference, or per hundred, does not.
            let mut windows = Vec::with_capacity(WINDOWS);
            while windows.len() < WINDOWS && windows.last() != Some(&0) {
                let before = ALLOCATIONS.load(Ordering::Relaxed);
                run(1000);
                windows.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
            }
            let what = format!("{name}, {ordering:?}, depth {depth}: {windows:?} in 1000 inferences each");
            assert_eq!(windows.last(), Some(&0), "never steady: {what}");
            assert!(windows.iter().all(|&n| n < MOST_GROWTH), "more than growth: {what}");
            flying.clear();
            drop(graph);
            fleet.close(LONG).expect("closes");
        }
    }
}
