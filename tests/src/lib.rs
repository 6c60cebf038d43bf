#![doc = include_str!("../README.md")]

pub mod ballast;
pub mod control;
pub mod cpio;
pub mod debian;
pub mod host_box;
pub mod huge_pages;
pub mod linux;
pub mod qmp;
pub mod running;
pub mod transcript;
pub mod views;
pub mod wait;

pub use ballast::{Home, Outcome, finish};
pub use debian::Release;
pub use host_box::{Parts, needs_hardware_kvm, needs_hardware_kvm_and};
pub use huge_pages::HugePages;
pub use linux::{LinuxGuest, LinuxImage};
pub use running::{Running, Stats};
pub use wait::{DEADLINE, eventually};
