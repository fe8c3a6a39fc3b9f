//! What happened between two snapshots of the same fleet.

use super::Snapshot;

/// Rates of one fleet.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Window {
    /// Its length; 0 where there was no snapshot before.
    pub seconds: f64,
    /// Answers of sticks a second.
    pub fps: Option<f64>,
    /// 10¹² operations a second, a multiply-accumulate being two.
    pub tops: Option<f64>,
    /// Why there are no TOPS.
    pub tops_reason: Option<&'static str>,
    /// In the order of the snapshot's sticks.
    pub sticks: Vec<StickWindow>,
}

/// Rates of one stick.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct StickWindow {
    /// Answers a second.
    pub fps: Option<f64>,
    /// Share of the time that it worked, 0 to 1.
    pub busy: Option<f64>,
    /// Mean of the inferences in flight.
    pub depth: Option<f64>,
    /// Of the busy time of all sticks; `None` when there was none.
    pub load_share: Option<f64>,
}

impl Window {
    /// From `before` to `now`; without `before`, or where the fleet is another, nothing is known.
    pub fn between(before: Option<&Snapshot>, now: &Snapshot) -> Window {
        let before = before.filter(|b| b.process == now.process && b.elapsed_s < now.elapsed_s);
        let Some(before) = before else {
            let sticks = vec![StickWindow::default(); now.sticks.len()];
            return Window { sticks, tops_reason: Some("no look before this one"), ..Window::default() };
        };
        let seconds = now.elapsed_s - before.elapsed_s;
        let rate = |then: u64, now: u64| now.saturating_sub(then) as f64 / seconds;
        let earlier = |id: &str| before.sticks.iter().find(|s| s.id == id);
        let worked = |s: &super::Stick| earlier(&s.id).map(|b| (s.busy_s - b.busy_s).max(0.0));
        let all: f64 = now.sticks.iter().filter_map(worked).sum();
        let sticks = now
            .sticks
            .iter()
            .map(|s| {
                let Some(b) = earlier(&s.id) else { return StickWindow::default() };
                let busy = (s.busy_s - b.busy_s).max(0.0);
                StickWindow {
                    fps: Some(rate(b.completed, s.completed)),
                    busy: Some((busy / seconds).min(1.0)),
                    depth: Some((s.depth_s - b.depth_s).max(0.0) / seconds),
                    load_share: (all > 0.0).then(|| busy / all),
                }
            })
            .collect();
        // What the fallback answered is no stick's speed, and no stick's operations.
        let of_sticks = |s: &Snapshot| s.completed.saturating_sub(s.fallback);
        let fps = rate(of_sticks(before), of_sticks(now));
        let (tops, tops_reason) = match &*now.graphs {
            [] => (None, Some("no network is loaded")),
            [one] => (Some(2.0 * one.macs as f64 * fps / 1e12), None),
            _ => (None, Some("several networks are loaded")),
        };
        Window { seconds, fps: Some(fps), tops, tops_reason, sticks }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn snapshot(elapsed_s: f64, completed: u64, busy: [f64; 2]) -> Snapshot {
        let stick = |n: usize| {
            json!({
                "id": format!("sim{n}"), "simulated": true, "profile": "ncs2\u{1b}[2J", "state": "ready", "failure": null,
                "memory_bytes": 500, "used_memory_bytes": 100, "temperature_c": 40.0, "throttle_level": 0,
                "completed": completed / 2, "failed": 0, "in_flight": 4, "busy_s": busy[n], "depth_s": 4.0 * busy[n],
                "resets": 0, "pool": { "in_use_bytes": 1, "idle_bytes": 2, "hits": 3, "misses": 4 },
            })
        };
        let document = json!({
            "simulated": true, "process": { "pid": 7, "name": "x" }, "policy": "round-robin", "elapsed_s": elapsed_s,
            "completed": completed, "failed": 0, "retried": 0, "queued": 0, "latency_ms": { "p50": 1.0, "p99": 2.0 },
            "graphs": [{ "name": "net", "macs": 5_000_000_000_u64 }], "sticks": [stick(0), stick(1)],
        });
        Snapshot::read(&document).expect("all that is needed")
    }

    #[test]
    fn rates_are_those_between_the_looks() {
        let (then, now) = (snapshot(10.0, 1000, [5.0, 5.0]), snapshot(12.0, 1200, [7.0, 5.5]));
        let window = Window::between(Some(&then), &now);
        assert_eq!((window.fps, window.tops, window.seconds), (Some(100.0), Some(1.0), 2.0));
        let [a, b] = &*window.sticks else { panic!("two sticks") };
        assert_eq!((a.fps, a.busy, a.depth, a.load_share), (Some(50.0), Some(1.0), Some(4.0), Some(0.8)));
        assert_eq!((b.busy, b.load_share), (Some(0.25), Some(0.2)));
    }

    #[test]
    fn what_the_fallback_answered_is_no_speed_of_sticks() {
        let (then, mut now) = (snapshot(10.0, 1000, [5.0, 5.0]), snapshot(12.0, 1200, [7.0, 5.5]));
        now.fallback = 150;
        let window = Window::between(Some(&then), &now);
        assert_eq!((window.fps, window.tops), (Some(25.0), Some(0.25)));
    }

    #[test]
    fn without_a_look_before_or_of_another_fleet_nothing_is_claimed() {
        let now = snapshot(1.0, 100, [1.0, 1.0]);
        let mut other = snapshot(0.5, 0, [0.0, 0.0]);
        other.process.pid = 8;
        // A fleet that was opened again counts from 0.
        for before in [None, Some(&snapshot(5.0, 500, [1.0, 1.0])), Some(&other)] {
            let window = Window::between(before, &now);
            assert_eq!((window.fps, window.tops, window.sticks.len()), (None, None, 2));
            assert!(window.tops_reason.is_some());
        }
    }

    #[test]
    fn what_another_process_says_cannot_write_to_the_terminal() {
        let now = snapshot(1.0, 0, [0.0, 0.0]);
        assert_eq!(now.sticks[0].profile.as_deref(), Some("ncs2 [2J"));
    }
}
