#![doc = include_str!("../README.md")]
#![cfg_attr(not(any(loom, shuttle)), no_std)]

extern crate alloc;

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
extern crate std;

pub mod atomic;
mod cell;
mod cpu;
mod once;
mod per_cpu;
mod spin;
mod stack;

pub use cpu::{Cpu, CpuId, CpuSet, MAX_CPUS};
pub use once::SetOnce;
pub use per_cpu::{Local, PerCpu};
pub use spin::{SpinGuard, SpinLock};
pub use stack::{CpuStack, Full};
