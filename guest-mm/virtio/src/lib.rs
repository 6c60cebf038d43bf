#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod balloon;
pub mod block;
pub mod console;
pub mod control;
pub mod dma;
mod fault;
pub mod mem;
pub mod plan;
pub mod queue;
pub mod relocate;
#[cfg(test)]
mod testing;
pub mod transport;
mod wake;

pub use fault::{DeviceFault, StartError};
