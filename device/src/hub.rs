//! What sticks behind one hub share: bandwidth, and the warmth of their neighbours. Assumed.

use std::time::Duration;

use ncs2::clock::Instant;
use parking_lot::Mutex;

use crate::profile::Profile;

/// A hub with its sticks. One lock, held for a few additions.
#[derive(Debug)]
pub struct Hub {
    ns_per_byte: f64,
    coupling: f64,
    ambient_c: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When each direction is free again: to the sticks, to the host.
    free: [Instant; 2],
    celsius: Vec<f64>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    Out,
    In,
}

impl Hub {
    /// A hub for so many sticks of a profile, with the profile's `[hub]`; `None` where its sticks share nothing.
    pub fn new(profile: &Profile, sticks: usize) -> Option<Hub> {
        let hub = &profile.hub;
        (sticks > 1 && (hub.bytes_per_s > 0.0 || hub.coupling > 0.0)).then(|| Hub {
            ns_per_byte: if hub.bytes_per_s > 0.0 { 1e9 / hub.bytes_per_s } else { 0.0 },
            coupling: hub.coupling,
            ambient_c: profile.heat.ambient_c,
            state: Mutex::new(State {
                free: [Instant::ZERO; 2],
                celsius: vec![profile.heat.ambient_c; sticks],
            }),
        })
    }

    /// When `bytes` that start now have crossed the hub, behind what others have sent.
    pub(crate) fn pass(&self, way: Way, bytes: usize, now: Instant) -> Instant {
        if self.ns_per_byte == 0.0 {
            return now;
        }
        let mut state = self.state.lock();
        let free = &mut state.free[way as usize];
        *free = now.max(*free) + Duration::from_nanos((self.ns_per_byte * bytes as f64) as u64);
        *free
    }

    /// Notes stick `n`'s temperature; says how much warmer than the room its air is.
    pub(crate) fn warmth(&self, n: usize, celsius: f64) -> f64 {
        let mut state = self.state.lock();
        if let Some(mine) = state.celsius.get_mut(n) {
            *mine = celsius;
        }
        let others = state.celsius.iter().enumerate().filter(|(i, _)| *i != n);
        self.coupling * others.map(|(_, c)| (c - self.ambient_c).max(0.0)).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(text: &str) -> Profile {
        Profile::parse("test", &format!("base = \"ncs2\"\n[hub]\n{text}")).expect("good")
    }

    #[test]
    fn two_sticks_halve_the_bandwidth_of_each_direction() {
        let hub = Hub::new(&profile("bytes_per_s = 1e6"), 2).expect("shares");
        let at = |us: u64| Instant::ZERO + Duration::from_micros(us);
        assert_eq!(hub.pass(Way::Out, 1000, at(0)), at(1000));
        assert_eq!(hub.pass(Way::Out, 1000, at(0)), at(2000), "behind the first");
        assert_eq!(hub.pass(Way::In, 1000, at(0)), at(1000), "the other way is free");
        assert_eq!(hub.pass(Way::Out, 500, at(5000)), at(5500));
        assert!(Hub::new(&profile("bytes_per_s = 1e6"), 1).is_none());
        assert!(Hub::new(&Profile::load("ncs2").expect("built in"), 3).is_none());
    }

    #[test]
    fn a_hot_neighbour_warms_the_air() {
        let hub = Hub::new(&profile("coupling = 0.1"), 3).expect("shares");
        assert_eq!(hub.warmth(0, 75.0), 0.0);
        assert!((hub.warmth(1, 25.0) - 5.0).abs() < 1e-9);
        hub.warmth(2, 45.0);
        assert!((hub.warmth(1, 25.0) - 7.0).abs() < 1e-9);
    }
}
