#![doc = include_str!("../README.md")]
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod acpi;
pub mod activity;
pub mod cmdline;
pub mod control_tree;
pub mod disk_pattern;
pub mod drive;
pub mod elf;
pub mod executor;
pub mod heap;
pub mod layout;
pub mod physical;
pub mod plant;
pub mod pvh;
pub mod relocation;
pub mod stress;
pub mod sync;
pub mod timers;
