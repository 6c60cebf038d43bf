//! Blocks that device I/O still uses: they stay plugged until it has ended.
//!
//! A device whose I/O outlives the processing of its queue pins the guest memory that the kernel will read or write, when
//! it submits the I/O, and drops the pin when the I/O is complete. Both happen on the event loop, which is also where
//! blocks are unplugged; an UNPLUG that meets a pin is answered with BUSY.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Region;

/// The pins on the blocks of one region. Lock order: a leaf.
#[derive(Debug, Default)]
pub(super) struct PinTable {
    /// For each pinned block, how many pins it has; never 0. As large as there is I/O under way.
    blocks: Mutex<BTreeMap<u64, u32>>,
}

impl PinTable {
    /// A pinned block of `run`, if there is one.
    pub(super) fn first_in(&self, run: Range<u64>) -> Option<u64> {
        self.lock().range(run).next().map(|(block, _)| *block)
    }

    /// How many blocks are pinned.
    pub(super) fn len(&self) -> u64 {
        self.lock().len() as u64
    }

    fn add(&self, run: Range<u64>) {
        let mut blocks = self.lock();
        for block in run {
            *blocks.entry(block).or_insert(0) += 1;
        }
    }

    fn remove(&self, run: Range<u64>) {
        let mut blocks = self.lock();
        for block in run {
            match blocks.get_mut(&block) {
                Some(pins) if *pins > 1 => *pins -= 1,
                _ => {
                    blocks.remove(&block);
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u32>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds the blocks of some guest memory plugged until it is dropped. Boot memory needs no holding: a pin on it is empty.
#[derive(Debug, Default)]
#[must_use = "a pin that is dropped holds nothing"]
pub struct Pin {
    held: Vec<(Arc<Region>, Range<u64>)>,
}

impl Pin {
    /// Holds the blocks of `region` that `len` bytes at `gpa` touch as well. They are plugged.
    pub(super) fn hold(&mut self, region: &Arc<Region>, gpa: u64, len: u64) {
        let run = region.blocks_of(gpa, len);
        if !run.is_empty() {
            region.pins.add(run.clone());
            self.held.push((Arc::clone(region), run));
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        for (region, run) in self.held.drain(..) {
            region.pins.remove(run);
        }
    }
}
