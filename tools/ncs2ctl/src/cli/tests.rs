//! The definition as a whole.

use super::*;

#[test]
fn definition_is_consistent() {
    definition().debug_assert();
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
