//! `ncs2ctl setup openvino`

#[cfg(feature = "openvino")]
use std::path::Path;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

use crate::failure::{Outcome, Result};
use crate::flags::Global;
use crate::output::Output;

/// `setup`
#[derive(Args, Debug)]
pub struct SetupArgs {
    /// What to set up.
    #[command(subcommand)]
    pub command: SetupCommand,
}

/// `setup …`
#[derive(Subcommand, Debug)]
pub enum SetupCommand {
    /// Finds or fetches OpenVINO's libraries, the reference of `check`
    #[command(after_help = "\
Examples:
  ncs2ctl setup openvino                                 # what is installed, or what pip fetches (50 MB)
  ncs2ctl setup openvino openvino-2025.4.1-….whl
  ncs2ctl setup openvino /opt/intel/openvino

Looked for in OPENVINO_INSTALL_DIR, the user's data folder, INTEL_OPENVINO_DIR, LD_LIBRARY_PATH, where system packages
put them, and in Python's own packages. The missing link libopenvino_c.so is made where it is missing.")]
    Openvino {
        /// Wheel of openvino 2025.4.1, or folder of an installation
        #[arg(value_name = "WHEEL|FOLDER", value_hint = ValueHint::AnyPath)]
        from: Option<PathBuf>,
    },
}

/// Sets up what the subcommand names.
#[cfg(feature = "openvino")]
pub fn setup(_global: &Global, output: &Output, args: &SetupArgs) -> Result<Outcome> {
    use ncs2::reference::{MENDED_LINK, Mended};
    use serde::Serialize;

    use crate::reference_libraries;

    #[derive(Serialize)]
    struct Body {
        version: String,
        folder: String,
        library: String,
        unpacked: bool,
        link: &'static str,
        /// `check` looks there without being told.
        found_by_itself: bool,
    }

    let SetupCommand::Openvino { from } = &args.command;
    let spinner = output.spinner("looking for OpenVINO");
    let ready = reference_libraries::setup(from.as_deref());
    spinner.finish_and_clear();
    let ready = ready?;
    // Whole, since it is there to be copied into a variable.
    let whole = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let folder = whole(&ready.libraries.folder);
    let found_by_itself =
        reference_libraries::find().is_ok_and(|found| whole(&found.libraries.folder) == folder);
    let folder = folder.display().to_string();
    let body = Body {
        found_by_itself,
        version: ready.version,
        library: ready.libraries.c_api.display().to_string(),
        unpacked: ready.unpacked,
        link: match ready.mended {
            Some(Mended::Made) => "made",
            Some(Mended::Whole) => "there",
            None => "missing",
        },
        folder,
    };
    if output.is_json() {
        output.document(&body)?;
        return Ok(Outcome::Ok);
    }
    let how = if body.unpacked { "unpacked in" } else { "found in" };
    let mut text = format!("OpenVINO {} {how}\n  {}\n", body.version, body.folder);
    match ready.mended {
        Some(Mended::Made) => text.push_str(&format!("The link {MENDED_LINK} was missing and is made.\n")),
        Some(Mended::Whole) => {}
        None => text
            .push_str(&format!("The link {MENDED_LINK} is missing, and the folder may not be written to.\n")),
    }
    let who = if body.found_by_itself {
        "`ncs2ctl check` finds it by itself. For other programs:"
    } else {
        "`ncs2ctl check` does not look there by itself, nor do other programs. For both:"
    };
    text.push_str(&format!("{who}\n  export OPENVINO_INSTALL_DIR={}\n", body.folder));
    output.text(&text)?;
    Ok(Outcome::Ok)
}

/// Without the feature there is nothing to set up.
#[cfg(not(feature = "openvino"))]
pub fn setup(_global: &Global, _output: &Output, _args: &SetupArgs) -> Result<Outcome> {
    Err(crate::check::without_openvino("setup openvino", ""))
}
