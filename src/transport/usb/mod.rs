//! Real sticks: found through rusb and sysfs, driven through usbfs.

pub mod boot;
pub mod bulk;
pub mod discover;
pub mod firmware;
pub mod port;
pub mod sys;
pub mod urb;
pub mod usbfs;
