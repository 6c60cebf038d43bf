//! Rounds of real work for each mechanism of the memory manager, checked as they go: what the program `stress` asks
//! for (`guest_programs::abi::Call::Stress`).
//!
//! A [`Row`] allocates in the running manager, writes patterns to what it gets, and compares them before it gives
//! anything back; it also checks what its mechanism promises, such as the zone, the node, or who may go below a
//! watermark. Work comes in steps that are short enough for others to have their turn in between. Nothing here knows
//! the machine, so the same rows run in tests on the host.

mod areas;
mod checks;
mod high;
mod hoard;
mod objects;
mod pools;
mod pressure;
mod requests;
mod waiting;

#[cfg(test)]
mod tests;

pub use areas::{Areas, Vmalloc};
pub use checks::Checks;
pub use high::{HighMemory, Windows};
pub use objects::{Kmalloc, Slab};
pub use pools::Pool;
pub use pressure::{Atomic, Nodes};
pub use requests::{Buddy, Pcp, Zones};
pub use waiting::{Pantry, WAITING, Wait};

use guest_mm::frames::Frames;
use guest_mm::phys::PhysicalMemory;
use guest_sync::Cpu;

/// What a step works with: the CPU that it runs on, and memory.
#[derive(Clone, Copy)]
pub struct Bench<'a, F> {
    /// All frames.
    pub phys: &'a PhysicalMemory<'a>,
    /// Their contents.
    pub frames: &'a F,
    /// The CPU that this runs on until the step is done.
    pub cpu: &'a Cpu,
}

/// What a step leaves to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// The round goes on with another step.
    More,
    /// The round is done.
    Done,
}

/// A mechanism under stress. What it holds between rounds it knows itself.
pub trait Row<F: Frames>: Send {
    /// Gets ready for a round, whose choices and patterns follow from `seed`.
    fn begin(&mut self, seed: u64);

    /// Does a bounded part of the round.
    fn step(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step;

    /// Checks a bounded part of what is held and gives it back. After [`Step::Done`] nothing is held.
    fn end(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step;

    /// Whether a round takes a zone's or a node's last frames, so that only one such round can be under way.
    fn exhausts(&self) -> bool {
        false
    }
}
