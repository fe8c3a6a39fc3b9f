//! Real sticks: found through rusb and sysfs, driven through usbfs.

pub mod boot;
pub mod bulk;
pub mod discover;
pub mod firmware;
mod gate;
mod hub;
mod lock;
mod owner;
pub mod port;
mod printable;
pub mod reset;
pub mod sys;
mod uevent;
pub mod urb;
pub mod usbfs;
mod wait;
pub mod watch;
