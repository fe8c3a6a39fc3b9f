//! ncs2ctl
fn main() {}
