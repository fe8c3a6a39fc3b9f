//! What a temperature means: how far it is from the next throttle level, and when it gets there.

use ncs2::sched::Guards;
use ncs2_device::{HeatLaw, Profile};

/// Why nothing can be said about a real stick.
const REAL: &str = "the guards of a real stick are not published, and it has shown no level change yet";

/// How far and how long to the next level. What is not known is `None`, with the reason beside it.
#[derive(Clone, PartialEq, Debug)]
pub struct Forecast {
    /// °C to the next guard.
    pub headroom_c: Option<f64>,
    /// Seconds until the first guard is reached when the load stays as it is; 0 where it is already.
    pub seconds_to_throttle: Option<f64>,
    /// Why one of them is `None`.
    pub reason: Option<String>,
}

/// The law of a virtual stick's profile; `None` where the profile cannot be read again.
pub fn law(profile: &str) -> Option<HeatLaw> {
    Profile::load(profile).ok().map(|p| p.heat)
}

/// What the scheduler may know of a virtual stick: a policy that rests sticks needs it.
pub fn guards(law: &HeatLaw) -> Guards {
    Guards::Known { lower_c: law.lower_guard_c, upper_c: law.upper_guard_c, hysteresis_k: law.hysteresis_k }
}

/// `law` is `None` for a real stick. `load` is the share of time that it works, 0 to 1; `None` when not known.
pub fn forecast(
    law: Option<&HeatLaw>,
    celsius: Option<f64>,
    level: Option<u8>,
    load: Option<f64>,
) -> Forecast {
    let unknown = |reason: &str| Forecast {
        headroom_c: None,
        seconds_to_throttle: None,
        reason: Some(reason.to_owned()),
    };
    let Some(celsius) = celsius else { return unknown("the stick did not tell its temperature") };
    let Some(law) = law else { return unknown(REAL) };
    let level = level.unwrap_or(0);
    let next = if level == 0 { law.lower_guard_c } else { law.upper_guard_c };
    let headroom_c = Some((next - celsius).max(0.0));
    if level > 0 {
        return Forecast { headroom_c, seconds_to_throttle: Some(0.0), reason: None };
    }
    let Some(load) = load else {
        let reason = Some("the load is not known before a second look".to_owned());
        return Forecast { headroom_c, seconds_to_throttle: None, reason };
    };
    let watts = law.idle_w + (law.full_w - law.idle_w) * load.clamp(0.0, 1.0);
    let steady = law.ambient_c + watts * law.kelvin_per_w;
    if steady <= next {
        let reason =
            Some(format!("at this load it levels off at {steady:.1} C, below the guard of {next:.1} C"));
        return Forecast { headroom_c, seconds_to_throttle: None, reason };
    }
    let seconds = law.tau_s * ((steady - celsius) / (steady - next)).ln();
    Forecast { headroom_c, seconds_to_throttle: Some(seconds.max(0.0)), reason: None }
}

/// One character for each value, from the lowest of them to the highest, never spread over less than `span`.
pub fn sparkline(values: &[f64], steps: &str, span: f64) -> String {
    let steps: Vec<char> = steps.chars().collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max).max(low + span);
    let top = steps.len().saturating_sub(1);
    values
        .iter()
        .map(|v| {
            let share = (v - low) / (high - low);
            steps.get(((share * top as f64).round() as usize).min(top)).copied().unwrap_or(' ')
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> HeatLaw {
        law("ncs2").expect("built in")
    }

    #[test]
    fn forecast_solves_the_law() {
        let law = known();
        let cold = forecast(Some(&law), Some(25.0), Some(0), Some(1.0));
        assert_eq!(cold.headroom_c, Some(law.lower_guard_c - 25.0));
        let seconds = cold.seconds_to_throttle.expect("a full load reaches the guard");
        // Put the time back into the law: the guard.
        let steady = law.ambient_c + law.full_w * law.kelvin_per_w;
        let then = steady + (25.0 - steady) * (-seconds / law.tau_s).exp();
        assert!((then - law.lower_guard_c).abs() < 1e-9, "{then}");
        let warm = forecast(Some(&law), Some(60.0), Some(0), Some(1.0));
        assert!(warm.seconds_to_throttle.expect("too") < seconds);
    }

    #[test]
    fn what_is_unknown_has_a_reason() {
        let law = known();
        let idle = forecast(Some(&law), Some(25.0), Some(0), Some(0.0));
        assert_eq!(idle.seconds_to_throttle, None);
        assert!(idle.reason.expect("said").contains("levels off"));
        assert!(forecast(Some(&law), Some(25.0), Some(0), None).reason.is_some());
        let real = forecast(None, Some(60.0), Some(0), Some(1.0));
        assert_eq!((real.headroom_c, real.seconds_to_throttle), (None, None));
        assert!(real.reason.expect("said").contains("not published"));
        assert!(forecast(Some(&law), None, None, None).reason.is_some());
        let hot = forecast(Some(&law), Some(80.0), Some(1), None);
        assert_eq!((hot.headroom_c, hot.seconds_to_throttle), (Some(law.upper_guard_c - 80.0), Some(0.0)));
    }

    #[test]
    fn sparkline_rises() {
        assert_eq!(sparkline(&[1.0, 2.0, 3.0], "abc", 1.0), "abc");
        assert_eq!(sparkline(&[1.0, 1.01], "abc", 1.0), "aa", "noise is no mountain");
        assert_eq!(sparkline(&[], "abc", 1.0), "");
    }
}
