//! `cargo xtask vendor-test`: the vendor's own client and ours, side by side on virtual sticks behind a real kernel.
//!
//! Fetched once into the user's cache folder and never committed: the wheels of OpenVINO 2021.4.2 and numpy, and a CPython 3.9
//! as Debian packages that are unpacked, not installed. What runs in the machine is in `tools/vendor`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::Stop;
use crate::machine::{self, Emulator, Machine, io_failed, keep, make, quote};
use crate::run::{cargo, root, step};

/// Most sticks of a test.
const STICKS: usize = 8;
/// The whole run, from QEMU's start.
const LIMIT: Duration = Duration::from_secs(3000);

/// The release that has a CPython 3.9, which is the newest that the wheel was made for.
const SUITE: &str = "bullseye";
/// CPython 3.9 with what it links, and the package that `ngraph` looks its version up with.
const PACKAGES: [&str; 8] = [
    "python3.9-minimal",
    "libpython3.9-minimal",
    "libpython3.9-stdlib",
    "libpython3.9",
    "libffi7",
    "libmpdec3",
    "libusb-1.0-0",
    "python3-pkg-resources",
];
const WHEELS: [&str; 2] = ["openvino==2021.4.2", "numpy==1.21.6"];

/// `[--release] [WORD…]`: all of it, or what has one of the words in its name.
pub fn run(args: &[&str]) -> Result<(), Stop> {
    let (flags, words): (Vec<&str>, Vec<&str>) = args.iter().copied().partition(|word| word.starts_with('-'));
    let release = flags == ["--release"];
    if !release && let Some(flag) = flags.first() {
        return Err(Stop::Usage(format!(
            "vendor-test: unknown option {flag}\n\nUsage: cargo xtask vendor-test [--release] [WORD…]"
        )));
    }
    if (std::env::consts::OS, std::env::consts::ARCH) != ("linux", "x86_64") {
        return Err(Stop::Missing("vendor-test: the vendor's client runs on Linux on x86-64 only".into()));
    }
    machine::programs()?;
    let vendor = Vendor::prepare()?;
    // As `vm-test` builds it: with the same features nothing is built twice.
    let mut build = cargo(&["build", "--quiet", "--workspace", "--bins", "--examples"]);
    if release {
        build.arg("--release");
    }
    step("build", build)?;
    let machine = Machine::prepare()?;
    let place = root().join("target/vm");
    // Of its own for a part of the tests, so that parts can run side by side and keep their tables.
    let part: String =
        words.iter().map(|word| format!("-{}", word.replace(|c: char| !c.is_alphanumeric(), "-"))).collect();
    let out = place.join(format!("vendor{part}"));
    let _ = fs::remove_dir_all(&out);
    make(&out)?;
    let bench = out.join("vendor-bench");
    let mut compile = Command::new("c++");
    // The wheel's libraries were built with the strings of before C++11.
    compile.args(["-std=c++14", "-O2", "-D_GLIBCXX_USE_CXX11_ABI=0"]);
    compile.arg(root().join("tools/vendor/client/bench.cpp")).arg("-o").arg(&bench).arg("-ldl");
    step("build bench.cpp", compile)?;
    // Sockets need short paths, and the workspace may lie deep.
    let sockets = std::env::temp_dir().join(format!("ncs2-vendor-{}", std::process::id()));
    make(&sockets)?;
    let program =
        root().join(if release { "target/release" } else { "target/debug" }).join("ncs2-vendor-tests");
    println!("\n=== vendor-test: simulated sticks behind usbredir");
    let start = Instant::now();
    let program = keep(&program, &out)?;
    let verdict = test(&machine, &vendor, &program, &words, &out, &sockets);
    println!(
        "=== vendor-test: took {:.1} s; traces and tables are in {}",
        start.elapsed().as_secs_f64(),
        out.display()
    );
    let _ = fs::remove_dir_all(&sockets);
    verdict
}

fn test(
    machine: &Machine,
    vendor: &Vendor,
    program: &Path,
    words: &[&str],
    out: &Path,
    sockets: &Path,
) -> Result<(), Stop> {
    let (stick, control) = (sockets.join("stick"), sockets.join("control"));
    let mut emulator = Command::new(program);
    emulator.arg("serve").arg(&stick).arg(&control).arg(out);
    let emulator = Emulator::start(emulator, &control, &out.join("emulator"))?;
    let words: Vec<String> = words.iter().map(|word| quote(word)).collect();
    let command = format!("{} guest {}\n", quote(&program.to_string_lossy()), words.join(" "));
    let environment = format!(
        "export NCS2_VM_FACE=usbredir NCS2_VM_STICKS={STICKS} NCS2_VM_CONTROL=/dev/virtio-ports/ncs2-control \
         NCS2_VENDOR_PYTHON={} NCS2_VENDOR_SITE={} NCS2_VENDOR_CLIENT={} NCS2_VENDOR_BENCH={} NCS2_MODELS={}\n",
        quote(&vendor.python.to_string_lossy()),
        quote(&vendor.site.to_string_lossy()),
        quote(&root().join("tools/vendor/client/client.py").to_string_lossy()),
        quote(&out.join("vendor-bench").to_string_lossy()),
        quote(&models().to_string_lossy()),
    );
    let mut qemu = machine.boot(2, out, &environment, &command)?;
    machine::add_usbredir(&mut qemu, STICKS, &stick, &control);
    let verdict = machine::run("vendor-test", qemu, out, LIMIT);
    drop(emulator);
    verdict
}

/// The folder with the blobs and networks: the committed ones, or those that `NCS2_MODELS` names.
fn models() -> PathBuf {
    std::env::var_os("NCS2_MODELS").map_or_else(|| root().join("tests/data"), PathBuf::from)
}

/// The vendor's client, unpacked.
struct Vendor {
    /// Root of the unpacked Debian packages.
    python: PathBuf,
    /// The unpacked wheels.
    site: PathBuf,
}

impl Vendor {
    /// Fetches what is not there yet.
    fn prepare() -> Result<Self, Stop> {
        let place = cache()?.join("ncs2/vendor-client-2021.4.2");
        let vendor = Vendor { python: place.join("python"), site: place.join("site") };
        // Written last, so that an interrupted run is not taken for a whole one.
        let whole = place.join("unpacked");
        if whole.exists() {
            return Ok(vendor);
        }
        let _ = fs::remove_dir_all(&place);
        let (debs, wheels) = (place.join("packages"), place.join("wheels"));
        for folder in [&debs, &wheels, &vendor.python, &vendor.site] {
            make(folder)?;
        }
        fetch_wheels(&wheels)?;
        fetch_packages(&place.join("apt"), &debs)?;
        for file in files(&debs)? {
            let mut unpack = Command::new("dpkg-deb");
            unpack.arg("-x").arg(&file).arg(&vendor.python);
            step("unpack", unpack)?;
        }
        for file in files(&wheels)? {
            let mut unpack = Command::new("python3");
            unpack.args(["-m", "zipfile", "-e"]).arg(&file).arg(&vendor.site);
            step("unpack", unpack)?;
        }
        fs::write(&whole, "").map_err(|e| io_failed(&whole, e))?;
        Ok(vendor)
    }
}

fn cache() -> Result<PathBuf, Stop> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache"))).ok_or_else(|| {
        Stop::Missing("vendor-test: neither XDG_CACHE_HOME nor HOME says where to keep files".into())
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Stop> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).map_err(|e| io_failed(folder, e))?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    Ok(files)
}

fn skipped(what: &str) -> impl Fn(Stop) -> Stop {
    move |_| Stop::Missing(format!("vendor-test: skipped: {what} could not be fetched (see above)"))
}

/// As pip is configured here.
fn fetch_wheels(to: &Path) -> Result<(), Stop> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]);
    pip.args(["--python-version", "3.9", "--implementation", "cp", "--abi", "cp39"]);
    for platform in ["manylinux2014_x86_64", "manylinux_2_12_x86_64", "manylinux2010_x86_64"] {
        pip.args(["--platform", platform]);
    }
    pip.arg("--dest").arg(to).args(WHEELS);
    step("fetch the wheels", pip).map_err(skipped("the wheels of OpenVINO 2021.4.2 and numpy"))
}

/// From the mirror that this machine's own apt uses, with lists of its own: nothing of the system's state is touched.
fn fetch_packages(apt: &Path, to: &Path) -> Result<(), Stop> {
    for folder in ["lists/partial", "archives/partial"] {
        make(&apt.join(folder))?;
    }
    let sources = apt.join("sources.list");
    fs::write(&sources, source_line()?).map_err(|e| io_failed(&sources, e))?;
    let status = apt.join("status");
    fs::write(&status, "").map_err(|e| io_failed(&status, e))?;
    let get = || {
        let mut get = Command::new("apt-get");
        for (key, path) in [
            ("Dir::Etc::SourceList", sources.clone()),
            ("Dir::Etc::SourceParts", PathBuf::from("/dev/null")),
            ("Dir::State::Lists", apt.join("lists")),
            ("Dir::State::Status", status.clone()),
            ("Dir::Cache", apt.to_path_buf()),
        ] {
            get.arg("-o").arg(format!("{key}={}", path.display()));
        }
        get.args(["-qq", "-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root"]);
        get.current_dir(to);
        get
    };
    let skip = skipped("CPython 3.9 of Debian 11");
    let mut update = get();
    update.arg("update");
    step("fetch the package list", update).map_err(&skip)?;
    let mut download = get();
    download.arg("download").args(PACKAGES);
    step("fetch CPython 3.9", download).map_err(&skip)
}

/// The first Debian archive among apt's sources, with another release's name.
fn source_line() -> Result<String, Stop> {
    let mut texts = vec![PathBuf::from("/etc/apt/sources.list")];
    texts.extend(files(Path::new("/etc/apt/sources.list.d")).unwrap_or_default());
    let texts: Vec<String> = texts.iter().filter_map(|path| fs::read_to_string(path).ok()).collect();
    texts
        .iter()
        .find_map(|text| archive_of(text))
        .map(|(archive, key)| {
            let signed = key.map_or(String::new(), |key| format!("[signed-by={key}] "));
            format!("deb {signed}{archive} {SUITE} main\n")
        })
        .ok_or_else(|| Stop::Missing("vendor-test: skipped: apt's sources name no Debian archive".into()))
}

/// Archive and key of the first source that is Debian's own: its path ends with `/debian`.
fn archive_of(text: &str) -> Option<(&str, Option<&str>)> {
    let is_archive = |word: &&str| word.contains("://") && word.trim_end_matches('/').ends_with("/debian");
    let mut stanzas = text.split("\n\n");
    stanzas.find_map(|stanza| {
        let field = |name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let Some(uris) = field("URIs:") {
            return Some((uris.split_whitespace().find(is_archive)?, field("Signed-By:")));
        }
        let line = stanza.lines().find(|line| line.starts_with("deb "))?;
        let key = line.split_once("signed-by=").and_then(|(_, rest)| rest.split([']', ' ']).next());
        Some((line.split_whitespace().find(is_archive)?, key))
    })
}

#[cfg(test)]
mod tests {
    use super::archive_of;

    #[test]
    fn the_archive_is_found_in_both_forms_of_sources() {
        let new = "# c\nTypes: deb\nURIs: https://mirror.test/debian\nSuites: x\nSigned-By: /usr/k.gpg\n";
        assert_eq!(archive_of(new), Some(("https://mirror.test/debian", Some("/usr/k.gpg"))));
        let old = "deb [signed-by=/k] http://mirror.test/debian/ x main\n";
        assert_eq!(archive_of(old), Some(("http://mirror.test/debian/", Some("/k"))));
        assert_eq!(archive_of("deb https://other.test/apt x main\n"), None);
        assert_eq!(archive_of("Types: deb\nURIs: https://mirror.test/debian-security\n"), None);
    }
}
