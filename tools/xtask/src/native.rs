//! The C libraries that the workspace links: found, or installed when we may, or named with the command that does.

use std::process::Command;

use crate::Stop;
use crate::run::{step, succeeds};

/// A package manager: its program, what refreshes its lists, what installs, and the names of our two packages.
struct Manager {
    program: &'static str,
    refresh: &'static [&'static str],
    install: &'static [&'static str],
    pkg_config: &'static str,
    hwloc: &'static str,
    compiler: &'static str,
}

const MANAGERS: [Manager; 5] = [
    Manager {
        program: "apt-get",
        refresh: &["update", "-qq"],
        install: &["install", "-y", "-qq", "--no-install-recommends"],
        pkg_config: "pkg-config",
        hwloc: "libhwloc-dev",
        compiler: "gcc",
    },
    Manager {
        program: "dnf",
        refresh: &["-q", "makecache"],
        install: &["-q", "-y", "install"],
        pkg_config: "pkgconf-pkg-config",
        hwloc: "hwloc-devel",
        compiler: "gcc",
    },
    Manager {
        program: "pacman",
        refresh: &["-Sy"],
        install: &["-S", "--noconfirm", "--needed"],
        pkg_config: "pkgconf",
        hwloc: "hwloc",
        compiler: "gcc",
    },
    Manager {
        program: "zypper",
        refresh: &["-q", "refresh"],
        install: &["-q", "-n", "install"],
        pkg_config: "pkg-config",
        hwloc: "hwloc-devel",
        compiler: "gcc",
    },
    Manager {
        program: "apk",
        refresh: &["-q", "update"],
        install: &["-q", "add"],
        pkg_config: "pkgconf",
        hwloc: "hwloc-dev",
        compiler: "build-base",
    },
];

/// Makes sure that pkg-config, hwloc and a C compiler are there (libusb is built from its vendored source).
pub fn ensure() -> Result<(), Stop> {
    let wanted = missing();
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = wanted.iter().map(|w| w.name()).collect();
    let Some(manager) = MANAGERS.iter().find(|m| succeeds(m.program, &["--version"])) else {
        return Err(Stop::Missing(format!(
            "missing: {}. No known package manager here (apt-get, dnf, pacman, zypper, apk): install them, then try again",
            names.join(", ")
        )));
    };
    let packages: Vec<&str> = wanted.iter().map(|w| w.package(manager)).collect();
    let command_line = format!("{} {} {}", manager.program, manager.install.join(" "), packages.join(" "));
    if !is_root() {
        return Err(Stop::Missing(format!(
            "missing: {}. Run this, then try again:\n\n    sudo {command_line}\n",
            names.join(", ")
        )));
    }
    println!("missing: {}; installing as root: {command_line}", names.join(", "));
    manager.install(&packages)?;
    match missing().first() {
        None => Ok(()),
        Some(still) => {
            Err(Stop::Missing(format!("{} is still not found after {command_line}", still.name())))
        }
    }
}

impl Manager {
    fn install(&self, packages: &[&str]) -> Result<(), Stop> {
        let mut refresh = Command::new(self.program);
        refresh.args(self.refresh);
        step("package lists", refresh)?;
        if packages.is_empty() {
            return Ok(());
        }
        let mut install = Command::new(self.program);
        install.args(self.install).args(packages).env("DEBIAN_FRONTEND", "noninteractive");
        step("packages", install)
    }
}

/// Installs packages of Debian where we may: as root, with apt, whose lists are refreshed first. False where we may not or
/// it did not work.
pub fn install_debian(packages: &[&str]) -> bool {
    let apt = MANAGERS.iter().find(|m| m.program == "apt-get" && succeeds(m.program, &["--version"]));
    let Some(apt) = apt.filter(|_| is_root()) else { return false };
    if !packages.is_empty() {
        println!("missing: {}; installing as root", packages.join(", "));
    }
    apt.install(packages).is_ok()
}

#[derive(Clone, Copy)]
enum Wanted {
    Compiler,
    PkgConfig,
    Hwloc,
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Wanted::Compiler => "a C compiler (cc)",
            Wanted::PkgConfig => "pkg-config",
            Wanted::Hwloc => "hwloc 2 with its headers",
        }
    }

    fn package(self, manager: &Manager) -> &'static str {
        match self {
            Wanted::Compiler => manager.compiler,
            Wanted::PkgConfig => manager.pkg_config,
            Wanted::Hwloc => manager.hwloc,
        }
    }
}

fn missing() -> Vec<Wanted> {
    let mut wanted = Vec::new();
    if !succeeds("cc", &["--version"]) {
        wanted.push(Wanted::Compiler);
    }
    if !succeeds("pkg-config", &["--version"]) {
        // Without pkg-config nobody can say whether hwloc is there; its package is harmless to ask for again.
        wanted.extend([Wanted::PkgConfig, Wanted::Hwloc]);
    } else if !succeeds("pkg-config", &["--exists", "hwloc >= 2.0"]) {
        wanted.push(Wanted::Hwloc);
    }
    wanted
}

/// Effective user id 0, read from the kernel: this package has no dependency to ask with.
fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|l| l.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1))
            .is_some_and(|effective| effective == "0")
    })
}
