//! The other side, for tests: a guest memory that can lose blocks, and a driver that can misbehave.

mod driver;
mod memory;

pub(crate) use driver::{Buffer, Driver, readable, writable};
pub(crate) use memory::{PatchyMemory, Refusals};
