//! The live view: [`view`] is what it knows, [`screen`] how that looks, [`report`] the same without a screen.

pub mod report;
pub mod screen;
pub mod view;
