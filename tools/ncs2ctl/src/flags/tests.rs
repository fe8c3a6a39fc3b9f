//! What flags take and what they refuse.

use super::*;

#[test]
fn sim_is_read_or_refused() {
    assert_eq!("3".parse(), Ok(Sim::Rack { sticks: 3, profile: None }));
    assert_eq!("2,hot".parse(), Ok(Sim::Rack { sticks: 2, profile: Some("hot".into()) }));
    assert_eq!("unix:/x".parse(), Ok(Sim::Server("/x".into())));
    for bad in ["0", "", "-1", "x", "3,", "unix:", "257", "99999999999999999999"] {
        assert!(bad.parse::<Sim>().is_err(), "{bad}");
    }
}

#[test]
fn durations_are_read_or_refused() {
    assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
    assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
    assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
    for bad in ["", "10", "s", "1.2.3s", "-1s", "1d", "1e9h", "9999999h"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
    assert!(positive_duration("0s").is_err());
}

#[test]
fn tolerances_are_read_or_refused() {
    assert_eq!("1%".parse(), Ok(Tolerance::Share(0.01)));
    assert_eq!("0.5".parse(), Ok(Tolerance::Absolute(0.5)));
    for bad in ["", "%", "-1", "nan%", "inf"] {
        assert!(bad.parse::<Tolerance>().is_err(), "{bad}");
    }
}
