//! Puts the compiler together: libraries out of the wheel, our glue built beside them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ncs2::ErrorKind;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::run;
use crate::failure::{Failure, Result};
use crate::folders::{self, Scratch};
use crate::wheel::{self, Requirement, Wheel, machine};

/// The last release whose compiler is known to work without a stick; its blobs run on all firmware that followed.
pub const REQUIREMENT: Requirement = Requirement {
    name: "openvino",
    version: "2021.4.2",
    python: "3.9",
    platform: "manylinux2014_x86_64",
    machine: machine::X86_64,
};
const WHEEL_FOLDER: &str = "openvino/libs";
/// What the compiler consists of (BLOB_FORMAT 8.1), and the reader of `.xml` models.
const LIBRARIES: [&str; 13] = [
    "libinference_engine.so",
    "libinference_engine_ir_reader.so",
    "libinference_engine_legacy.so",
    "libinference_engine_onnx_reader.so",
    "libinference_engine_transformations.so",
    "libmyriadPlugin.so",
    "libngraph.so",
    "libonnx_importer.so",
    "libonnx_proto.so",
    "libprotobuf.so.3.7.1.0",
    "libtbb.so.2",
    "libtbbmalloc.so.2",
    "plugins.xml",
];
/// Our own part: source, result, arguments of the C++ compiler.
const GLUE: [(&str, &str, &str, &[&str]); 2] = [
    (
        "compile.cpp",
        include_str!("../../shim/compile.cpp"),
        run::PROGRAM,
        &["-std=c++14", "-O1", "-D_GLIBCXX_USE_CXX11_ABI=0", "-rdynamic"],
    ),
    (
        "libusb.cpp",
        include_str!("../../shim/libusb.cpp"),
        "libusb-1.0.so.0",
        &["-shared", "-fPIC", "-O1", "-Wl,-soname,libusb-1.0.so.0"],
    ),
];
const NOTE: &str = "setup.json";
const COMMAND: &str = "ncs2ctl compile --setup";

/// The compiler, set up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compiler {
    /// Where it lies.
    pub folder: PathBuf,
    /// What its libraries say of themselves: `2021.4.2-3976-…`.
    pub build: String,
    /// Hash over libraries and glue: another compiler, another blob.
    pub id: String,
    /// Size of all files.
    pub bytes: u64,
}

/// Written last: a folder without it is no compiler.
#[derive(Serialize, Deserialize)]
struct Note {
    build: String,
    id: String,
    /// Hash of our own sources: a newer tool builds its own glue.
    glue: String,
    files: BTreeMap<String, u64>,
}

fn folder() -> Result<PathBuf> {
    Ok(folders::data()?.join("compiler").join(REQUIREMENT.version))
}

impl Compiler {
    /// The compiler that was set up before. Our glue is built anew when it is another tool's.
    pub fn find() -> Result<Self> {
        let folder = folder()?;
        let hint = format!("run `{COMMAND}`: pip then fetches the wheel (29 MB), or name one");
        let damaged = |what: String| {
            let message = format!("{}: the vendor's compiler is damaged: {what}", folder.display());
            Failure::new(ErrorKind::NotFound, message, hint.clone())
        };
        let Ok(text) = fs::read_to_string(folder.join(NOTE)) else {
            let message = format!("{}: expected the vendor's compiler, found none", folder.display());
            return Err(Failure::new(ErrorKind::NotFound, message, hint));
        };
        let mut note: Note = serde_json::from_str(&text).map_err(|e| damaged(format!("{NOTE}: {e}")))?;
        for (name, &bytes) in &note.files {
            match fs::metadata(folder.join(name)) {
                Ok(meta) if meta.len() == bytes => {}
                Ok(meta) => {
                    return Err(damaged(format!("{name}: expected {bytes} bytes, found {}", meta.len())));
                }
                Err(_) => return Err(damaged(format!("{name} is missing"))),
            }
        }
        if note.glue != glue_hash() {
            build_glue(&folder, &mut note.files)?;
            note.glue = glue_hash();
            write_note(&folder, &note)?;
        }
        let bytes = note.files.values().sum();
        Ok(Compiler { folder, build: note.build, id: note.id, bytes })
    }
}

/// Sets the compiler up from `wheel`, or from the wheel that pip fetches. What was there before stays until all is done.
pub fn setup(wheel: Option<&Path>) -> Result<Compiler> {
    refuse_machine(std::env::consts::OS, std::env::consts::ARCH)?;
    let folder = folder()?;
    let scratch = Scratch::beside(&folder)?;
    let fetched;
    let wheel = match wheel {
        Some(path) => path,
        None => {
            let to = scratch.path().join("wheel");
            folders::make(&to)?;
            fetched = wheel::fetch(&REQUIREMENT, &to, &format!("{COMMAND} WHEEL"))?;
            &fetched
        }
    };
    let mut archive = Wheel::open(wheel, &REQUIREMENT)?;
    let mut files = BTreeMap::new();
    let mut hash = Sha256::new();
    for name in LIBRARIES {
        let bytes = archive.unpack(WHEEL_FOLDER, name, scratch.path())?;
        files.insert(name.to_owned(), bytes);
        let path = scratch.path().join(name);
        let content = fs::read(&path).map_err(|e| Failure::file(&path, "read", &e))?;
        hash.update(name);
        hash.update(Sha256::digest(&content));
    }
    build_glue(scratch.path(), &mut files)?;
    let build = run::version(scratch.path())?;
    if !build.starts_with(REQUIREMENT.version) {
        return Err(Failure::new(
            ErrorKind::InvalidInput,
            format!("{}: expected libraries of {}, found {build}", wheel.display(), REQUIREMENT.version),
            "fetch the wheel again",
        ));
    }
    let fetched = scratch.path().join("wheel");
    if fetched.exists() {
        fs::remove_dir_all(&fetched).map_err(|e| Failure::file(&fetched, "remove", &e))?;
    }
    let id = hash.finalize().iter().map(|b| format!("{b:02x}")).collect::<String>();
    let bytes = files.values().sum();
    write_note(scratch.path(), &Note { build: build.clone(), id: id.clone(), glue: glue_hash(), files })?;
    scratch.become_folder(&folder)?;
    Ok(Compiler { folder, build, id, bytes })
}

fn write_note(folder: &Path, note: &Note) -> Result {
    let text = serde_json::to_string_pretty(note).expect("a note has string keys only");
    crate::aside::write(&folder.join(NOTE), text.as_bytes())
}

/// The vendor built its compiler for Linux on x86-64 and nothing else.
fn refuse_machine(os: &str, arch: &str) -> Result {
    if (os, arch) == ("linux", "x86_64") {
        return Ok(());
    }
    Err(Failure::new(
        ErrorKind::Unsupported,
        format!("the vendor's compiler runs on Linux on x86-64 only, this machine is {os} on {arch}"),
        "compile on such a machine and copy the .blob: blobs run from every machine",
    ))
}

fn glue_hash() -> String {
    let mut hash = Sha256::new();
    for (_, source, _, arguments) in GLUE {
        hash.update(source);
        hash.update(arguments.join(" "));
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// Builds our part beside the libraries with the C++ compiler that the user has.
fn build_glue(folder: &Path, files: &mut BTreeMap<String, u64>) -> Result {
    let named = std::env::var_os("CXX").filter(|v| !v.is_empty());
    let candidates = match &named {
        Some(cxx) => vec![cxx.clone()],
        None => ["g++", "c++", "clang++"].map(Into::into).to_vec(),
    };
    let works = |program: &std::ffi::OsString| {
        Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
    };
    let Some(cxx) = candidates.iter().find(|c| works(c)) else {
        let tried: Vec<_> = candidates.iter().map(|c| c.to_string_lossy()).collect();
        return Err(Failure::new(
            ErrorKind::NotFound,
            format!(
                "expected a C++ compiler to build the glue to the vendor's libraries, found none of {}",
                tried.join(", ")
            ),
            "install g++, or name one in CXX",
        ));
    };
    for (source, text, result, arguments) in GLUE {
        let path = folder.join(source);
        fs::write(&path, text).map_err(|e| Failure::file(&path, "write", &e))?;
        let part = folder.join(format!(".{result}.part"));
        let mut command = Command::new(cxx);
        command.args(arguments).arg(&path).arg("-o").arg(&part);
        if source == "compile.cpp" {
            command.arg("-ldl");
        }
        let output = command.output().map_err(|e| Failure::file(Path::new(cxx), "run", &e))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let line = said.lines().find(|l| l.contains("error")).or_else(|| said.lines().last());
            return Err(Failure::new(
                ErrorKind::Unsupported,
                format!(
                    "{}: could not build {source}: {}",
                    cxx.to_string_lossy(),
                    line.unwrap_or("no reason given")
                ),
                "install g++ with its headers, or name another compiler in CXX",
            ));
        }
        let target = folder.join(result);
        fs::rename(&part, &target).map_err(|e| Failure::file(&target, "write", &e))?;
        let bytes = fs::metadata(&target).map_err(|e| Failure::file(&target, "read", &e))?.len();
        files.insert(result.to_owned(), bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_are_refused_with_a_way_out() {
        assert!(refuse_machine("linux", "x86_64").is_ok());
        for (os, arch) in [("linux", "aarch64"), ("macos", "x86_64"), ("linux", "arm")] {
            let Err(Failure::Report(report)) = refuse_machine(os, arch) else { panic!("{os} {arch}") };
            assert!(report.message.contains(arch) && report.hint.contains("copy the .blob"), "{report:?}");
        }
    }
}
