//! Files to tensors and back.
//!
//! A file becomes [`Array`]: values and a shape in the order that users write it (N, C, H, W). [`layout`] places them
//! where the blob wants them and takes outputs from where it puts them.

pub mod compare;
pub mod image;
pub mod input;
pub mod npy;
pub mod output;
pub mod stream;
pub mod values;

pub use ncs2::convert::layout;
pub use values::Values;

/// Values with a shape, major dimension first, in C order.
#[derive(Clone, PartialEq, Debug)]
pub struct Array {
    /// Dimensions, major first.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub values: Values,
}

/// `1x3x224x224`; `scalar` without dimensions.
pub fn shape_text(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "scalar".into();
    }
    shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("x")
}
