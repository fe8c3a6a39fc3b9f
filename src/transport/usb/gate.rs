//! How many sticks behind one external hub may boot at a time.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Sticks of one external hub that may boot at the same time: each draws its peak current then.
pub const BOOTS_PER_HUB: usize = 4;

/// A place among the boots of a hub, given back when dropped. Root hubs have power for all their ports and no limit.
#[derive(Debug)]
pub(super) struct HubGate(Option<String>);

#[derive(Default)]
struct Booting {
    per_hub: Mutex<HashMap<String, usize>>,
    freed: Condvar,
}

static BOOTING: LazyLock<Booting> = LazyLock::new(Booting::default);

impl HubGate {
    /// Waits for a place behind the hub of the stick in `ports` of `bus`, at most for `limit`; `None` when none came.
    pub(super) fn enter(bus: u8, ports: &[u8], limit: Duration) -> Option<Self> {
        let Some((_, hubs @ [_, ..])) = ports.split_last() else { return Some(HubGate(None)) };
        let hub = format!("{bus}-{hubs:?}");
        let mut per_hub = BOOTING.per_hub.lock();
        let full =
            |per_hub: &mut HashMap<String, usize>| per_hub.get(&hub).is_some_and(|&n| n >= BOOTS_PER_HUB);
        if BOOTING.freed.wait_while_for(&mut per_hub, full, limit).timed_out() && full(&mut per_hub) {
            return None;
        }
        *per_hub.entry(hub.clone()).or_default() += 1;
        drop(per_hub);
        Some(HubGate(Some(hub)))
    }
}

impl Drop for HubGate {
    fn drop(&mut self) {
        let Some(hub) = self.0.take() else { return };
        let mut per_hub = BOOTING.per_hub.lock();
        if let Some(n) = per_hub.get_mut(&hub) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                per_hub.remove(&hub);
            }
        }
        drop(per_hub);
        BOOTING.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_boot_behind_one_hub_waits_for_a_place() {
        let enter = |ports: &[u8], limit| HubGate::enter(201, ports, limit);
        let mut inside: Vec<_> = (1..=4).map(|n| enter(&[7, n], Duration::ZERO).expect("a place")).collect();
        assert!(enter(&[7, 5], Duration::ZERO).is_none(), "a fifth behind the same hub");
        assert!(enter(&[8, 1], Duration::ZERO).is_some(), "another hub");
        let on_the_root: Vec<_> = (1..9).map(|n| enter(&[n], Duration::ZERO).expect("no limit")).collect();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| enter(&[7, 5], Duration::from_secs(20)).is_some());
            inside.pop();
            assert!(waiting.join().expect("the thread ends"), "the place that came free");
        });
        drop((inside, on_the_root));
    }
}
