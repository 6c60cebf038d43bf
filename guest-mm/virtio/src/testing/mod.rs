//! What the unit tests drive the drivers against: guest memory in a `Vec`, a device whose every register and ring
//! entry the test decides, and a task that is polled by hand.

mod device;
mod memory;
mod task;

pub(crate) use device::{Access, FakeDevice};
pub(crate) use memory::TestMemory;
pub(crate) use task::Task;
