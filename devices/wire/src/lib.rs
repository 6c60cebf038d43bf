#![doc = include_str!("../README.md")]
#![no_std]
#![forbid(unsafe_code)]

pub mod balloon;
pub mod block;
pub mod console;
pub mod device_id;
pub mod feature;
mod le;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pvpanic;
pub mod ring;
pub mod status;
pub mod vsock;
