//! The two things the library needs from the machine: the contents of frames, and the TLB.
//!
//! The kernel implements them with its direct map and the nucleus; [`crate::host`] implements them with ordinary
//! memory. Everything else in this crate is computation.

use alloc::vec::Vec;

use crate::pfn::{Order, PAGE_SHIFT, Pfn};

/// Contents of page frames.
///
/// Every frame named here is online and, for a chunk, naturally aligned: implementations may fault or panic on any
/// other. Page-table entries are read by hardware meanwhile, so words are read and written whole.
pub trait Frames {
    /// The word `index` (0..512) of the frame.
    fn read(&self, pfn: Pfn, index: usize) -> u64;
    /// Writes the word `index` (0..512) of the frame.
    fn write(&self, pfn: Pfn, index: usize, value: u64);
    /// Writes a word and returns what it was, in one step: hardware sets accessed and dirty bits at any time.
    fn exchange(&self, pfn: Pfn, index: usize, value: u64) -> u64;
    /// Fills a chunk with zeroes.
    fn zero(&self, pfn: Pfn, order: Order);
    /// Copies a chunk; the two do not overlap.
    fn copy(&self, from: Pfn, to: Pfn, order: Order);
    /// Copies bytes out of one frame; `offset + bytes.len() <= 4096`.
    fn read_bytes(&self, pfn: Pfn, offset: usize, bytes: &mut [u8]);
    /// Copies bytes into one frame; `offset + bytes.len() <= 4096`.
    fn write_bytes(&self, pfn: Pfn, offset: usize, bytes: &[u8]);
}

/// The translation caches of all CPUs.
pub trait Mmu {
    /// Forgets every translation named in the batch. When it returns no CPU uses one of them any more.
    fn flush(&self, batch: &FlushBatch);
}

/// Number of an address space. Never 0; reused after the space is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SpaceId(pub(crate) core::num::NonZeroU32);

impl SpaceId {
    /// The number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// The one with that number.
    pub(crate) const fn from_number(number: u32) -> Option<Self> {
        match core::num::NonZeroU32::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// One for a model that has no address space.
    #[cfg(loom)]
    #[doc(hidden)]
    pub const fn of_model() -> Self {
        Self(core::num::NonZeroU32::MIN)
    }
}

/// Pages of one address space whose translations are to be forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flush {
    /// The address space.
    pub space: SpaceId,
    /// Root table of the space, as in CR3.
    pub root: Pfn,
    /// First virtual address, a multiple of 4096.
    pub va: u64,
    /// Number of 4 KiB pages. A 2 MiB mapping is flushed by any address in it, and counts 512 here.
    pub nr_pages: u64,
}

/// Translations to forget, collected so that one flush serves many page-table changes.
#[derive(Default, Debug)]
pub struct FlushBatch {
    flushes: Vec<Flush>,
}

impl FlushBatch {
    /// An empty batch.
    pub const fn new() -> Self {
        Self { flushes: Vec::new() }
    }

    /// Adds pages; a range that continues the last one is joined with it.
    pub fn add(&mut self, flush: Flush) {
        if let Some(last) = self.flushes.last_mut()
            && last.space == flush.space
            && last.va + (last.nr_pages << PAGE_SHIFT) == flush.va
        {
            last.nr_pages += flush.nr_pages;
            return;
        }
        self.flushes.push(flush);
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.flushes.is_empty()
    }

    /// The ranges, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Flush> {
        self.flushes.iter()
    }
}
