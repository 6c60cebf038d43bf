//! Which blocks of the hot-plug region are plugged, readable by any thread at any time.
//!
//! One bit a block. The writer is [`super::RegionBackend`]; readers are devices (through
//! [`super::CheckedMemory`]), vCPU threads that look at a faulting address, and whoever draws the map.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

const BITS: u64 = u64::BITS as u64;

/// A bit for each block of a region.
#[derive(Debug)]
pub struct PluggedMap {
    words: Box<[AtomicU64]>,
    blocks: u64,
}

impl PluggedMap {
    /// A map of `blocks` blocks, none plugged.
    #[must_use]
    pub fn new(blocks: u64) -> Self {
        Self {
            words: (0..blocks.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(),
            blocks,
        }
    }

    /// Number of blocks in the region.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Whether `block` is plugged. A block outside the region is not.
    #[must_use]
    pub fn is_plugged(&self, block: u64) -> bool {
        self.word(block)
            .is_some_and(|word| word.load(Ordering::Acquire) >> (block % BITS) & 1 == 1)
    }

    /// Whether all of `run` is plugged; an empty run is.
    #[must_use]
    pub fn all_plugged(&self, run: Range<u64>) -> bool {
        chunks(run).all(|(first, mask)| {
            self.word(first)
                .is_some_and(|word| word.load(Ordering::Acquire) & mask == mask)
        })
    }

    /// A snapshot, in block order.
    #[must_use]
    pub fn snapshot(&self) -> Vec<bool> {
        (0..self.blocks).map(|block| self.is_plugged(block)).collect()
    }

    /// The plugged blocks, as runs of neighbours, in block order.
    #[must_use]
    pub fn runs(&self) -> Vec<Range<u64>> {
        self.runs_in(0..self.blocks)
    }

    /// The plugged blocks of `part`, as runs of neighbours, in block order.
    pub(super) fn runs_in(&self, part: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in part.filter(|block| self.is_plugged(*block)) {
            match runs.last_mut() {
                Some(run) if run.end == block => run.end += 1,
                _ => runs.push(block..block + 1),
            }
        }
        runs
    }

    /// Marks the blocks of `run` that are in the region.
    pub(super) fn set(&self, run: Range<u64>, state: BlockState) {
        for (first, mask) in chunks(run.start..run.end.min(self.blocks)) {
            let Some(word) = self.word(first) else { return };
            match state {
                BlockState::Plugged => word.fetch_or(mask, Ordering::AcqRel),
                BlockState::Unplugged => word.fetch_and(!mask, Ordering::AcqRel),
            };
        }
    }

    fn word(&self, block: u64) -> Option<&AtomicU64> {
        usize::try_from(block / BITS)
            .ok()
            .and_then(|index| self.words.get(index))
    }
}

/// The two states of a block of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockState {
    /// The guest has it.
    Plugged,
    /// The host has it.
    Unplugged,
}

/// `run` cut where words end: the first block of each piece, and the piece's mask in its word.
fn chunks(run: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let mut next = run.start;
    std::iter::from_fn(move || {
        if next >= run.end {
            return None;
        }
        let first = next;
        let count = (run.end - first).min(BITS - first % BITS);
        // `first` grows by `count` towards `run.end`, so this cannot wrap.
        next = first + count;
        Some((first, (u64::MAX >> (BITS - count)) << (first % BITS)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_outside_the_region_is_plugged() {
        let map = PluggedMap::new(65);
        map.set(0..u64::MAX, BlockState::Plugged);
        assert!(map.all_plugged(0..65));
        assert!(!map.is_plugged(65));
        assert!(!map.is_plugged(u64::MAX));
        assert!(!map.all_plugged(0..66));
        assert!(!map.all_plugged(u64::MAX - 1..u64::MAX));
    }

    proptest! {
        #[test]
        fn runs_mark_and_test_exactly_their_blocks(
            steps in prop::collection::vec((0u64..200, 0u64..200, any::<bool>()), 1..40),
        ) {
            let map = PluggedMap::new(200);
            let mut model = vec![false; 200];
            for (a, b, plug) in steps {
                let run = a.min(b)..a.max(b);
                map.set(run.clone(), if plug { BlockState::Plugged } else { BlockState::Unplugged });
                for block in run.clone() {
                    model[usize::try_from(block).unwrap()] = plug;
                }
                prop_assert_eq!(map.snapshot(), model.clone());
                let mut from_runs = vec![false; 200];
                for block in map.runs().into_iter().flatten() {
                    from_runs[usize::try_from(block).unwrap()] = true;
                }
                prop_assert_eq!(from_runs, model.clone());
                prop_assert!(map.runs().windows(2).all(|pair| pair[0].end < pair[1].start));
                prop_assert!(map.all_plugged(run.clone()) == (plug || run.is_empty()));
                let around = a.min(b).saturating_sub(3)..(a.max(b) + 3).min(200);
                let expected = around.clone().all(|block| model[usize::try_from(block).unwrap()]);
                prop_assert_eq!(map.all_plugged(around), expected);
            }
        }
    }
}
