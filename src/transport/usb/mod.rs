//! Real sticks: found through rusb and sysfs.

pub mod discover;
