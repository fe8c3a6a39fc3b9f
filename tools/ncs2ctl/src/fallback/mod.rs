//! `--fallback`: this computer's CPU for requests that no stick can take. Answers say so, and never count as a stick's.
//!
//! ```text
//! FallbackArgs::open() ─► Cpu ─► add(path, blob) for each network ─► fleet() for the fleet's settings
//! ```

mod execute;
#[cfg(feature = "openvino")]
mod openvino;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum, ValueHint};
use ncs2::blob::Blob;
use ncs2::runtime::Fallback;

use crate::failure::{Failure, Result};
use execute::Execute;
#[cfg(feature = "openvino")]
use openvino::OpenVino;

/// `--fallback`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum FallbackArg {
    /// Nothing: such a request fails
    None,
    /// The compiled graph, executed as a virtual stick does
    Execute,
    /// The model that it was compiled from, through OpenVINO
    Openvino,
}

/// The flags of commands that have one.
#[derive(Args, Clone, Debug)]
pub struct FallbackArgs {
    /// What computes on this computer's CPU what no stick can take, because none is left or all fail: nothing, the
    /// graph itself (execute), or its model through OpenVINO. There must be a stick to begin with
    #[arg(
        long,
        value_enum,
        default_value = "none",
        hide_possible_values = true,
        value_name = "none|execute|openvino",
        help_heading = "Fallback"
    )]
    pub fallback: FallbackArg,
    /// The model for --fallback openvino, taking what the graph takes; BLOB with .onnx or .xml by default
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::FilePath, help_heading = "Fallback")]
    pub fallback_model: Option<PathBuf>,
}

/// What was chosen.
#[derive(Clone)]
pub enum Cpu {
    /// Nobody.
    None,
    /// The engine of virtual sticks.
    Execute(Arc<Execute>),
    /// OpenVINO.
    #[cfg(feature = "openvino")]
    OpenVino(Arc<OpenVino>),
}

impl FallbackArgs {
    /// Finds what the choice needs.
    pub fn open(&self) -> Result<Cpu> {
        if let Some(model) = self.fallback_model.as_ref().filter(|_| self.fallback != FallbackArg::Openvino) {
            return Err(Failure::usage(
                format!(
                    "--fallback-model: expected --fallback openvino beside it, found {}",
                    model.display()
                ),
                "add --fallback openvino, or leave the model out",
            ));
        }
        match self.fallback {
            FallbackArg::None => Ok(Cpu::None),
            FallbackArg::Execute => Ok(Cpu::Execute(Arc::default())),
            #[cfg(feature = "openvino")]
            FallbackArg::Openvino => {
                Ok(Cpu::OpenVino(Arc::new(OpenVino::find(self.fallback_model.clone())?)))
            }
            #[cfg(not(feature = "openvino"))]
            FallbackArg::Openvino => {
                Err(crate::check::without_openvino("--fallback openvino", "take --fallback execute, or "))
            }
        }
    }
}

impl Cpu {
    /// Makes ready for a network. Call it before the sticks are opened: what is missing is told at once.
    #[cfg_attr(
        not(feature = "openvino"),
        allow(unused_variables, clippy::unnecessary_wraps, reason = "only models are looked for")
    )]
    pub fn add(&self, path: &Path, blob: &Blob) -> Result {
        match self {
            // Prepared when it is first needed, which is hardly ever.
            Cpu::None | Cpu::Execute(_) => Ok(()),
            #[cfg(feature = "openvino")]
            Cpu::OpenVino(openvino) => openvino.add(path, blob),
        }
    }

    /// For [`ncs2::runtime::FleetConfig::fallback`].
    pub fn fleet(&self) -> Option<Arc<dyn Fallback>> {
        match self {
            Cpu::None => None,
            Cpu::Execute(execute) => Some(execute.clone()),
            #[cfg(feature = "openvino")]
            Cpu::OpenVino(openvino) => Some(openvino.clone()),
        }
    }
}
