//! What the bus shows of a boot: when the stick leaves it, and when, at which speed, it is back; and boots that nobody waits for
//! any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};
use ncs2::clock::{Clock, Instant, Monotonic};
use ncs2::transport::Connection;
use ncs2::transport::usb::watch::{Change, Watch};
use ncs2::{Port, StickId};

use super::report::BootMoment;
use super::session::Stop;

/// How soon the watcher notices that nobody needs it any more.
const TURN: Duration = Duration::from_millis(20);

/// Runs `act` and writes down what comes and goes on the stick's port meanwhile. Empty where the kernel tells nothing.
pub fn during<T>(id: &StickId, act: impl FnOnce() -> T) -> (T, Vec<BootMoment>) {
    let clock = Monotonic::new();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut moments = Vec::new();
            let Ok(mut watch) = Watch::new() else { return moments };
            while !over.load(Ordering::Relaxed) {
                match watch.next(TURN) {
                    Ok(Some(change)) => moments.extend(moment(id, &change, clock.now())),
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
            moments
        });
        let result = act();
        over.store(true, Ordering::Relaxed);
        (result, watcher.join().unwrap_or_default())
    })
}

/// Connects; gives up soon once `stop` is true.
pub fn connect(port: &mut Port, limit: Duration, stop: Option<Stop>) -> ncs2::Result<Connection> {
    let Some(stop) = stop else { return port.connect(limit) };
    let give_up = port.give_up();
    let (over, ended) = bounded::<()>(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while ended.recv_timeout(TURN) == Err(RecvTimeoutError::Timeout) {
                if stop() {
                    return give_up.now();
                }
            }
        });
        let connected = port.connect(limit);
        drop(over);
        connected
    })
}

fn moment(id: &StickId, change: &Change, now: Instant) -> Option<BootMoment> {
    let seen = match change {
        Change::Arrived(found) | Change::Changed(found) if found.id == *id => {
            format!("{:04x} at {} Mb/s", found.product_id, found.speed_mbps)
        }
        Change::Left(left) if left == id => "off the bus".into(),
        _ => return None,
    };
    Some(BootMoment { ms: (now.as_nanos() / 1000) as f64 / 1e3, seen })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sticks_own_port_counts() {
        let (id, other) = (StickId::new("1-2"), StickId::new("1-3"));
        let at = Instant::from_nanos(1_500_000);
        let left = moment(&id, &Change::Left(id.clone()), at);
        assert_eq!(left, Some(BootMoment { ms: 1.5, seen: "off the bus".into() }));
        assert_eq!(moment(&id, &Change::Left(other), at), None);
        let (answer, _) = during(&id, || 7);
        assert_eq!(answer, 7);
    }
}
