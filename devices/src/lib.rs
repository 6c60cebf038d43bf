#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod balloon;
pub mod block;
pub mod console;
mod device;
mod fault;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod power;
pub mod pvpanic;
pub mod queue;
pub mod rate;
pub mod rng;
#[cfg(test)]
mod testing;
pub mod vsock;

pub use device::{Outcome, Served, VirtioDevice};
pub use fault::{DeviceError, GuestFault, RingPart};
