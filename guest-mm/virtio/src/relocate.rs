//! Other memory for what a driver shares with its device, while both are at work.
//!
//! Queues and buffers stay where they are, since the device has their addresses; but a driver can stop its device, and start it again with
//! others. A reset makes a device forget every address (virtio 1.3 section 2.4), so this is what is done, for all drivers alike:
//!
//! 1. Nothing new is begun, and what would be lost by a reset is waited for.
//! 2. Other frames are taken, as many as there are. Without them nothing has happened.
//! 3. The device is reset. What it has answered until then is in the queues, and is taken from there.
//! 4. The frames are exchanged, with what is in them; the old ones are given back once the device is set up again with the new ones.
//! 5. What a reset ends without loss is begun again, and whoever has waited goes on.

use crate::dma::{DmaArea, DmaMemory, Gpa, OutOfDmaMemory};
use crate::fault::StartError;
use alloc::vec::Vec;

/// A driver that can have its queues and buffers elsewhere, at any time, with nothing lost and nobody the wiser.
pub trait Relocate {
    /// Where the areas begin that it shares with its device.
    fn shared_memory(&self) -> Vec<Gpa>;

    /// Has it share other memory with its device, as soon as the device has nothing that a reset would lose; what others want of it
    /// meanwhile waits. Given up early, it leaves everything as it was.
    ///
    /// # Errors
    /// There is no other memory, or the device has broken down already: nothing has changed. Or the device does not start again: that has
    /// broken it down, and its `restart` is to be tried.
    fn relocate(&self) -> impl Future<Output = Result<(), StartError>>;
}

/// Where these areas begin.
pub(crate) fn starts<M: DmaMemory>(areas: &[&DmaArea<M>]) -> Vec<Gpa> {
    areas.iter().map(|area| area.start()).collect()
}

/// Areas that no device knows.
#[derive(Debug)]
pub(crate) struct OtherMemory<M>(Vec<DmaArea<M>>);

impl<M: DmaMemory + Clone> OtherMemory<M> {
    /// For each of `areas` another one, as large.
    pub(crate) fn like(areas: &[&DmaArea<M>]) -> Result<Self, OutOfDmaMemory> {
        let mut other = Self(Vec::with_capacity(areas.len()));
        for area in areas {
            match area.another() {
                Ok(area) => other.0.push(area),
                Err(error) => {
                    other.release();
                    return Err(error);
                }
            }
        }
        Ok(other)
    }

    /// Exchanges them for `areas`, the same in the same order, with what is in those. Only after a reset: until then the device may write there.
    pub(crate) fn exchange(&mut self, areas: &mut [&mut DmaArea<M>]) {
        for (other, area) in self.0.iter_mut().zip(areas) {
            other.copy_from(area);
            core::mem::swap(other, *area);
        }
    }

    /// Gives them back: what a driver had before, after a reset; or what it was to have, of which its device was not told.
    pub(crate) fn release(self) {
        self.0.into_iter().for_each(DmaArea::release);
    }
}

/// Does something when it goes: what is to be done whether somebody is done, fails, or is given up.
pub(crate) struct Finally<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for Finally<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
