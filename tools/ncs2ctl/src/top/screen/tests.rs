//! The screen as text, for a reviewer to read.

use std::collections::BTreeSet;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use serde_json::json;

use super::*;
use crate::stats::Snapshot;
use crate::top::view::{Sort, View};

fn snapshot(second: u64) -> Snapshot {
    let stick = |n: u64, fps: u64, celsius: f64, level: u64, state: &str| {
        json!({
            "id": format!("1-{n}"), "simulated": false, "profile": null, "state": state,
            "failure": (state == "lost").then_some("the stick left the bus"),
            "memory_bytes": 500_000_000_u64, "used_memory_bytes": 3_402_176, "temperature_c": celsius,
            "throttle_level": level, "completed": fps * second, "failed": n - 1, "in_flight": 4,
            "busy_s": second as f64 * 0.9, "depth_s": second as f64 * 3.8, "resets": n - 1,
            "pool": { "in_use_bytes": 600_000, "idle_bytes": 100_000, "hits": 990, "misses": 10 },
            "schedule": { "resting": false, "cache": { "hits": 999, "misses": 1 } },
        })
    };
    let warming = 40.0 + second as f64;
    let document = json!({
        "simulated": false, "process": { "pid": 42, "name": "camera" }, "policy": "round-robin",
        "elapsed_s": second as f64, "completed": 270 * second, "failed": 3, "retried": 2, "queued": 5,
        "latency_ms": { "p50": 21.8, "p99": 34.2 }, "graphs": [{ "name": "squeezenet", "macs": 349_151_936 }],
        "sticks": [
            stick(1, 180, warming, 0, "ready"),
            stick(2, 90, 76.0, 1, "ready"),
            stick(3, 0, 30.0, 0, "lost"),
        ],
    });
    Snapshot::read(&document).expect("all that is needed")
}

fn view() -> View {
    let mut view = View::new(false, Sort::Id);
    (1..=10).for_each(|second| view.handle_look(vec![snapshot(second)]));
    view
}

fn shown(view: &View, width: u16, height: u16, utf8: bool) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory");
    let means = Means { utf8, color: false };
    terminal.draw(|frame| draw(frame, view, means)).expect("memory");
    terminal.backend().to_string()
}

#[test]
fn the_whole_view() {
    insta::assert_snapshot!("whole", shown(&view(), 120, 24, true));
    let ascii = shown(&view(), 120, 24, false);
    assert!(ascii.is_ascii(), "{ascii}");
}

#[test]
fn tops_of_virtual_sticks_are_those_of_a_model_that_kept_its_pace() {
    let tops = |paced: &[Option<bool>]| {
        let mut view = View::new(false, Sort::Id);
        for second in 1..=2 {
            let mut now = snapshot(second);
            now.simulated = true;
            for (stick, paced) in now.sticks.iter_mut().zip(paced) {
                (stick.simulated, stick.paced) = (true, *paced);
            }
            view.handle_look(vec![now]);
        }
        (view.totals.tops, view.totals.tops_reason.unwrap_or_default())
    };
    let (yes, no) = (Some(true), Some(false));
    let (found, why) = tops(&[yes, yes, yes]);
    assert!(found.is_some_and(|tops| (0.1..1.0).contains(&tops)) && why.is_empty(), "{found:?} {why}");
    for (paced, word) in [([yes, no, yes], "did not keep"), ([yes, yes, None], "does not tell")] {
        let (found, why) = tops(&paced);
        assert!(found.is_none() && why.contains(word), "{found:?} {why}");
    }
}

#[test]
fn every_size_can_be_drawn() {
    let view = view();
    for (width, height) in [(1, 1), (20, 3), (40, 8), (80, 10), (80, 24), (300, 100)] {
        let text = shown(&view, width, height, true);
        assert!(text.lines().count() == usize::from(height), "{width}x{height}");
    }
    // The rows that do not fit can be scrolled to.
    assert!(shown(&view, 120, 12, true).contains("1-1"));
}

/// Every word at any width is one of those that a wide screen shows.
#[test]
fn narrow_screens_break_no_word() {
    let view = view();
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| c.is_whitespace() || c == '"');
        words.filter(|word| word.contains(char::is_alphanumeric)).map(str::to_owned).collect()
    };
    let whole = words(&shown(&view, 120, 30, true));
    for width in [30, 40, 60, 80, 100] {
        let text = shown(&view, width, 30, true);
        let broken: Vec<String> = words(&text).into_iter().filter(|word| !whole.contains(&**word)).collect();
        // Without its range a plot's title ends here.
        let broken: Vec<&String> =
            broken.iter().filter(|word| !whole.contains(&format!("{word},"))).collect();
        assert!(broken.is_empty(), "{width}: {broken:?} in\n{text}");
        assert!(["1-3", "state", "q quit"].iter().all(|word| text.contains(word)), "{width}:\n{text}");
    }
    insta::assert_snapshot!("narrow", shown(&view, 80, 24, true));
}

#[test]
fn order_pause_and_remarks_are_shown() {
    let mut view = view();
    let order = |view: &View| view.rows.iter().map(|r| r.id.clone()).collect::<Vec<_>>();
    assert_eq!(order(&view), ["1-1", "1-2", "1-3"]);
    view.sort_by(Sort::Temperature, false);
    assert_eq!(order(&view), ["1-2", "1-1", "1-3"]);
    view.sort_by(Sort::Fps, true);
    assert_eq!(order(&view), ["1-3", "1-2", "1-1"]);
    view.sort_by(Sort::Errors, false);
    assert_eq!(order(&view), ["1-3", "1-2", "1-1"]);
    view.paused = true;
    let text = shown(&view, 120, 24, true);
    assert!(text.contains("paused") && text.contains("sort (errors)"), "{text}");
    view.remark = Some("no".into());
    assert!(shown(&view, 120, 24, true).contains("no"));
}

#[test]
fn speed_is_that_between_the_looks_and_its_share_of_peak() {
    let view = view();
    let totals = &view.totals;
    assert_eq!((totals.fps, totals.tops_peak), (Some(270.0), 3.0));
    // 2 x 349 151 936 x 270 / 10^12
    assert_eq!((totals.tops, totals.percent_of_peak), (Some(0.1885), Some(628.0 / 100.0)));
    assert_eq!(view.histories["1-1"].temperature_c.len(), 10);
}
