//! Answers against references: how far apart, and whether they mean the same.

mod score;

#[cfg(feature = "openvino")]
pub mod cpu;
#[cfg(feature = "openvino")]
pub mod speed;
#[cfg(feature = "openvino")]
pub mod trace;

pub use score::Score;

/// What a command says that needs OpenVINO where the tool was built without it; `instead` is another way out.
#[cfg(not(feature = "openvino"))]
pub fn without_openvino(what: &str, instead: &str) -> crate::failure::Failure {
    crate::failure::Failure::new(
        ncs2::ErrorKind::Unsupported,
        format!("{what}: this ncs2ctl was built without OpenVINO"),
        format!("{instead}build it with the feature `openvino`"),
    )
}
