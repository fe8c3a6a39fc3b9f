//! (thin path first)
use crate::guest::Test;
pub(crate) const TESTS: &[(&str, Test)] = &[];
