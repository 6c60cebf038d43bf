#![doc = include_str!("../README.md")]

pub mod ballast;
pub mod cpio;
pub mod debian;
pub mod host_box;
pub mod linux;
pub mod running;
pub mod transcript;
pub mod views;
pub mod wait;

pub use ballast::{Home, Outcome};
pub use host_box::needs_hardware_kvm;
pub use linux::LinuxGuest;
pub use running::Running;
pub use wait::{DEADLINE, eventually};
