//! What flags take and what they refuse.

use super::*;

#[test]
fn definition_is_consistent() {
    definition().debug_assert();
}

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
fn depth_and_tolerance_are_read_or_refused() {
    assert_eq!("auto".parse(), Ok(Depth::Auto));
    assert_eq!("16".parse(), Ok(Depth::Fixed(16)));
    assert_eq!("1..8".parse(), Ok(Depth::Range(1, 8)));
    for bad in ["0", "17", "8..1", "a", "1..", ""] {
        assert!(bad.parse::<Depth>().is_err(), "{bad}");
    }
    assert_eq!("1%".parse(), Ok(Tolerance::Share(0.01)));
    assert_eq!("0.5".parse(), Ok(Tolerance::Absolute(0.5)));
    for bad in ["", "%", "-1", "nan%", "inf"] {
        assert!(bad.parse::<Tolerance>().is_err(), "{bad}");
    }
}

/// Every flag has a test: one of every command in any test, one of a single command in a test that runs that command.
#[test]
fn every_flag_has_a_test() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let files: Vec<String> = std::fs::read_dir(folder)
        .expect("committed")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .map(|path| std::fs::read_to_string(path).expect("UTF-8"))
        .collect();
    assert!(files.len() > 10, "{folder} holds the tests");
    // As a word of its own: `--depth` is no test of `--depth-x`, nor the other way round.
    let names = |text: &str, word: &str| {
        text.match_indices(word).any(|(at, _)| {
            let next = text[at + word.len()..].chars().next();
            next.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '-')
        })
    };
    let mut missing = Vec::new();
    let mut walk = vec![(definition(), Vec::<String>::new())];
    while let Some((command, path)) = walk.pop() {
        for sub in command.get_subcommands() {
            walk.push((sub.clone(), [&path[..], &[sub.get_name().to_owned()]].concat()));
        }
        let flags = command.get_arguments().filter(|arg| !arg.is_global_set() || path.is_empty());
        for flag in flags.filter_map(clap::Arg::get_long) {
            let of_this = |file: &&String| path.iter().all(|word| names(file, word));
            let said = files.iter().filter(of_this).any(|file| names(file, &format!("--{flag}")));
            if !said && !["help", "version"].contains(&flag) {
                missing.push(format!("{} --{flag}", path.join(" ")));
            }
        }
    }
    assert!(missing.is_empty(), "no test of {missing:#?}");
}
