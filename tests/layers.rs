//! The rules of ARCHITECTURE that a compiler does not keep: who may import whom, where `unsafe` and the real clock may
//! stand, how long a file may be. Works on tokens, so comments and strings do not count; test modules do.

use std::fs;
use std::path::{Path, PathBuf};

/// Room → rooms that it may import (ARCHITECTURE 3). `id` may be imported by all; `lib` and `runtime` import any.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("id", &[]),
    ("error", &[]),
    ("clock", &[]),
    ("stats", &[]),
    ("wire", &["error"]),
    ("blob", &["error"]),
    // wire: boot patches and the wire version of a port.
    ("transport", &["error", "clock", "stats", "wire"]),
    ("xlink", &["wire", "error", "clock"]),
    ("stick", &["xlink", "wire", "blob", "error", "clock"]),
    ("cache", &["error", "stats", "blob"]),
    ("convert", &["error", "stats", "blob"]),
    ("pool", &["error", "stats", "transport"]),
    ("sched", &["error", "clock", "stats", "cache"]),
    // Of transport the value types alone (below); of wire what travels in events.
    ("pipeline", &["stick", "cache", "pool", "convert", "error", "stats", "clock", "wire", "transport"]),
    ("topology", &["error"]),
    // The same network on the CPU: knows models and their tensors, nothing of sticks.
    ("reference", &["error"]),
];
/// What the package `ncs2-device` may import of `ncs2`.
const DEVICE_MAY_IMPORT: &[&str] = &["wire", "blob", "clock", "transport", "error", "id"];
/// Rooms that are handed `now`: they may use the clock's types, but not the real clock.
const NO_REAL_CLOCK: &[&str] = &["xlink", "stick", "sched", "pipeline"];
/// ARCHITECTURE 9. A name stands for the file and for the folder of the same name.
const UNSAFE: &[&str] = &[
    "src/transport/usb/sys",
    "src/transport/usb/urb",
    // Lends URBs to the kernel: the port is the noun, its ioctls the verbs.
    "src/transport/usb/usbfs",
    // The io_uring half of the reactor serves sockets and pipes too, so it stands beside the reactor.
    "src/transport/ring",
    "src/transport/usb/boot",
    "src/transport/buffer",
    "src/pool/lock",
    "src/blob/store",
    "src/convert",
    "device/src/gemm",
    // A counting allocator.
    "device/tests/hot_path",
    "tests/allocations",
];
const MAX_LINES: usize = 900;

/// Identifiers and the punctuation that paths are made of; all else is one token each.
fn tokens(source: &str) -> Vec<String> {
    let s: Vec<char> = source.chars().collect();
    let at = |i: usize| s.get(i).copied().unwrap_or('\0');
    let mut out = Vec::new();
    let mut i = 0;
    while i < s.len() {
        let c = s[i];
        if c == '/' && at(i + 1) == '/' {
            while i < s.len() && s[i] != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            loop {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 || i >= s.len() {
                    break;
                }
            }
        } else if c == '"' {
            i += 1;
            while i < s.len() && s[i] != '"' {
                i += if s[i] == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if c == '\'' {
            // A character, or a lifetime, which has no closing quote.
            if at(i + 1) == '\\' {
                i += 3;
                while i < s.len() && s[i] != '\'' {
                    i += 1;
                }
                i += 1;
            } else if at(i + 2) == '\'' {
                i += 3;
            } else {
                i += 1;
            }
        } else if c.is_alphabetic() || c == '_' {
            let start = i;
            while at(i).is_alphanumeric() || at(i) == '_' {
                i += 1;
            }
            let word: String = s[start..i].iter().collect();
            let mut hashes = 0;
            while at(i + hashes) == '#' {
                hashes += 1;
            }
            if matches!(word.as_str(), "r" | "br" | "cr") && at(i + hashes) == '"' {
                i += hashes + 1;
                while i < s.len() && !(s[i] == '"' && (1..=hashes).all(|h| at(i + h) == '#')) {
                    i += 1;
                }
                i += 1 + hashes;
            } else if word != "r" || hashes != 1 {
                out.push(word);
            }
        } else if c == ':' && at(i + 1) == ':' {
            out.push("::".into());
            i += 2;
        } else {
            if !c.is_whitespace() {
                out.push(c.into());
            }
            i += 1;
        }
    }
    out
}

/// The names that stand directly behind `path::`, with all behind them: `a::b` and `c` of `{a::b, c as d}`.
fn heads(t: &[String]) -> Vec<Vec<String>> {
    let path =
        |t: &[String]| t.iter().take_while(|w| !matches!(w.as_str(), "," | "}" | ";")).cloned().collect();
    if t.first().is_none_or(|w| w != "{") {
        return vec![path(t)];
    }
    let (mut out, mut depth) = (Vec::new(), 0);
    for (i, word) in t.iter().enumerate() {
        match word.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        let begins = depth == 1 && matches!(word.as_str(), "{" | ",");
        if begins && t.get(i + 1).is_some_and(|next| next != "}") {
            out.push(path(&t[i + 1..]));
        }
        if depth == 0 {
            break;
        }
    }
    out
}

/// Names that lib.rs re-exports at the root → the room that they come from.
fn reexports(lib: &str) -> Vec<(String, String)> {
    let t = tokens(lib);
    let mut out = Vec::new();
    for (i, _) in t.iter().enumerate().filter(|(i, w)| *w == "use" && *i > 0 && t[i - 1] == "pub") {
        let Some(room) = t.get(i + 1) else { continue };
        for head in heads(&t[(i + 3).min(t.len())..]) {
            if let Some(name) = head.last() {
                out.push((name.clone(), room.clone()));
            }
        }
    }
    out
}

/// Everything that a file takes from the crate's root: the path behind `crate::`, `ncs2::` or enough `super::`s.
/// `module` is the module of the file, empty for lib.rs.
fn root_paths(t: &[String], module: usize) -> Vec<Vec<String>> {
    let (mut out, mut braces, mut inline) = (Vec::new(), 0_usize, Vec::new());
    let mut i = 0;
    while i < t.len() {
        let is = |k: usize, w: &str| t.get(k).is_some_and(|x| x == w);
        match t[i].as_str() {
            "mod" if is(i + 2, "{") => inline.push(braces),
            "{" => braces += 1,
            "}" => {
                braces = braces.saturating_sub(1);
                if inline.last() == Some(&braces) {
                    inline.pop();
                }
            }
            "crate" | "ncs2" if is(i + 1, "::") => out.extend(heads(&t[i + 2..])),
            "crate" | "ncs2" if is(i + 1, "as") => out.push(vec!["*".into()]),
            "super" => {
                let mut ups = 1;
                while is(i + 1, "::") && is(i + 2, "super") {
                    (ups, i) = (ups + 1, i + 2);
                }
                if is(i + 1, "::") && ups >= module + inline.len() {
                    out.extend(heads(&t[i + 2..]));
                }
            }
            _ => {}
        }
        i += 1;
    }
    out
}

/// What is wrong with one file; `path` is relative to the workspace, with `/`.
fn violations(path: &str, source: &str, exports: &[(String, String)]) -> Vec<String> {
    let t = tokens(source);
    let mut out = Vec::new();
    let mut say = |what: String| out.push(format!("{path}: {what}"));
    let has = |words: &[&str]| t.windows(words.len()).any(|w| w.iter().zip(words).all(|(a, b)| a == b));

    let stem = path.strip_suffix(".rs").unwrap_or(path);
    if source.lines().count() > MAX_LINES {
        say(format!("more than {MAX_LINES} lines"));
    }
    let may = |name: &str| stem == name || stem.starts_with(&format!("{name}/"));
    if has(&["unsafe"]) && !UNSAFE.iter().any(|name| may(name)) {
        say("unsafe".into());
    }

    let in_src = path.starts_with("src/");
    let parts: Vec<&str> = stem.split('/').skip(1).filter(|part| *part != "mod").collect();
    let room = parts.first().copied().unwrap_or_default();
    if in_src {
        for word in ["clap", "anyhow"] {
            if has(&[word]) {
                say(word.into());
            }
        }
        for word in ["println", "eprintln", "print", "eprint"] {
            if has(&[word, "!"]) {
                say(format!("{word}!"));
            }
        }
        if NO_REAL_CLOCK.contains(&room) && has(&["Monotonic"]) {
            say("the real clock".into());
        }
    }
    if (in_src || path.starts_with("device/src/")) && !(in_src && matches!(room, "clock" | "runtime")) {
        // Also under another name: `use std::time::Instant as StdInstant`.
        let mut names = vec!["Instant".to_owned(), "SystemTime".to_owned()];
        for w in t.windows(3).filter(|w| matches!(w[0].as_str(), "Instant" | "SystemTime") && w[1] == "as") {
            names.push(w[2].clone());
        }
        if names.iter().any(|name| has(&[name, "::", "now"])) {
            say("reads the real clock".into());
        }
    }

    let allowed = if path.starts_with("device/") {
        Some(DEVICE_MAY_IMPORT)
    } else if !in_src || matches!(room, "lib" | "runtime") {
        None
    } else {
        let rule = MAY_IMPORT.iter().find(|(name, _)| *name == room);
        if rule.is_none() {
            say(format!("the table has no room {room}"));
        }
        rule.map(|(_, allowed)| *allowed)
    };
    let Some(allowed) = allowed else { return out };
    let t: Vec<String> = if in_src {
        t
    } else {
        // In another package, `crate` and `super` are that package's own.
        t.into_iter().filter(|word| word != "crate" && word != "super").collect()
    };
    for used in root_paths(&t, parts.len()) {
        let head = used.first().map(String::as_str).unwrap_or_default();
        let from = exports.iter().find(|(name, _)| name == head).map_or(head, |(_, room)| room);
        // A root name that is neither a room nor a re-export of one is refused too: nothing slips by unjudged.
        if from != room && from != "id" && !allowed.contains(&from) || !in_src && !allowed.contains(&from) {
            say(format!("imports {head} (room {from})"));
        } else if room == "pool" && from == "transport" {
            let behind = used.get(2).map(String::as_str);
            // Buffers and what is asked of their memory.
            const VALUES: [&str; 3] = ["Buffer", "HostMemory", "HostMemoryTally"];
            if !VALUES.contains(&head) && !behind.is_some_and(|name| VALUES.contains(&name)) {
                say(format!("of transport, pool may import {VALUES:?} alone, not {used:?}"));
            }
        } else if room == "pipeline" && from == "transport" {
            const VALUES: [&str; 7] = [
                "Buffer",
                "Transfer",
                "Completion",
                "Direction",
                "TransferError",
                "TransportInfo",
                "Rejected",
            ];
            let is_value = |name: Option<&str>| name.is_some_and(|name| VALUES.contains(&name));
            if !(is_value(Some(head)) || is_value(used.get(2).map(String::as_str))) {
                say("of transport, pipeline may import value types alone".into());
            }
        }
    }
    out
}

fn rust_files(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry").path()) {
        if entry.is_dir() {
            if entry.file_name().is_some_and(|name| name != "target") {
                rust_files(&entry, out);
            }
        } else if entry.extension().is_some_and(|e| e == "rs") {
            out.push(entry);
        }
    }
}

#[test]
fn rooms_keep_their_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let exports = reexports(&fs::read_to_string(root.join("src/lib.rs")).expect("lib.rs"));
    assert!(
        exports.contains(&("StickId".into(), "id".into()))
            && exports.contains(&("Error".into(), "error".into()))
    );
    let mut found = Vec::new();
    for top in ["src", "device", "tools"] {
        let mut files = Vec::new();
        rust_files(&root.join(top), &mut files);
        assert!(!files.is_empty(), "{top} has files");
        for file in files {
            let path = file.strip_prefix(root).expect("inside").to_string_lossy().replace('\\', "/");
            found.extend(violations(&path, &fs::read_to_string(&file).expect("text"), &exports));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn the_scanner_sees_what_is_forbidden_and_nothing_else() {
    let exports =
        reexports("pub use error::{Error, Result};\npub use id::StickId; pub use runtime::{Fleet, Graph};");
    let bad = |path: &str, source: &str| !violations(path, source, &exports).is_empty();
    let long = "\n".repeat(MAX_LINES + 1);
    for (path, source) in [
        ("src/wire/header.rs", "use crate::blob::Blob;"),
        ("src/wire/header.rs", "fn f() { crate::sched::run() }"),
        ("src/wire/header.rs", "use super::super::xlink::Link;"),
        ("src/wire/mod.rs", "use super::clock::Instant;"),
        ("src/wire/mod.rs", "mod tests { use super::super::clock::Instant; }"),
        ("src/wire/mod.rs", "use crate::{error::Error, id::StickId, stick::{Stick, X}};"),
        ("src/wire/mod.rs", "use crate::*;"),
        ("src/wire/mod.rs", "use crate as all;"),
        ("src/wire/mod.rs", "use crate::Fleet;"),
        ("src/wire/mod.rs", "use crate::no_such_thing;"),
        ("src/transport/usb/ring.rs", "use crate::xlink::Link;"),
        ("src/sched/mod.rs", "use crate::transport::Buffer;"),
        ("src/pool.rs", "use crate::transport::Transport;"),
        ("src/error.rs", "use crate::clock::Instant;"),
        ("src/newroom.rs", ""),
        ("src/stick/mod.rs", "use crate::clock::Monotonic;"),
        ("src/stick/mod.rs", "fn f() { let t = std::time::Instant::now(); }"),
        ("src/transport/mod.rs", "use std::time::{Instant as I}; fn f() { I::now(); }"),
        ("src/cache.rs", "fn f() { SystemTime::now(); }"),
        ("src/wire/mod.rs", "fn f() { println!(\"x\"); }"),
        ("src/runtime/mod.rs", "fn f() { eprintln!(); }"),
        ("src/runtime/mod.rs", "use anyhow::Result;"),
        ("src/runtime/mod.rs", "#[derive(clap::Parser)] struct X;"),
        ("src/wire/mod.rs", "fn f() { unsafe { g() } }"),
        ("tools/xtask/src/main.rs", "unsafe fn f() {}"),
        ("device/src/lib.rs", "use ncs2::{wire::Header, stick::Stick};"),
        ("device/src/lib.rs", "use ncs2::Fleet;"),
        ("device/tests/a.rs", "use ncs2::runtime::Fleet;"),
        ("src/wire/mod.rs", long.as_str()),
    ] {
        assert!(bad(path, source), "not noticed: {path}: {source}");
    }
    for (path, source) in [
        (
            "src/wire/header.rs",
            "use super::WireError; use super::super::wire::X; use crate::{Error, StickId};",
        ),
        ("src/wire/mod.rs", "// use crate::stick::X;\n/* unsafe /* crate::blob */ println!() */"),
        (
            "src/wire/mod.rs",
            "const A: &str = \"crate::stick unsafe\"; const B: &str = r#\"\" unsafe\"#; fn f<'a>(c: char) { c == '\"'; }",
        ),
        ("src/wire/mod.rs", "mod tests { use super::clock_like; }"),
        ("src/transport/usb/sys.rs", "fn f() { unsafe { g() } }"),
        ("src/pool/mod.rs", "use crate::transport::Buffer;"),
        ("src/clock.rs", "fn f() { Instant::now(); }"),
        ("src/runtime/mod.rs", "use crate::stick::X; fn f() { Instant::now(); }"),
        ("tools/ncs2ctl/src/main.rs", "use clap::Parser; use ncs2::Fleet; fn f() { println!(); }"),
        (
            "device/src/lib.rs",
            "use crate::fault::X; use super::stick::Y; use ncs2::{StickId, Result, wire::Header};",
        ),
    ] {
        assert_eq!(violations(path, source, &exports), Vec::<String>::new(), "{source}");
    }
}
