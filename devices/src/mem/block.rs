//! Blocks of the device's region: indices, runs, and the map of what is plugged.

use std::num::NonZeroU64;
use std::ops::Range;

use virtio_wire::mem::BlockState;

/// Index of a block, counted from the start of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(
    /// The number.
    pub u64,
);

/// Neighbouring blocks: at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The first block.
    pub first: BlockIndex,
    /// How many.
    pub count: NonZeroU64,
}

impl BlockRun {
    /// The run of `count` blocks from `first` on; `None` if that is none or too many to count.
    pub fn new(first: u64, count: u64) -> Option<BlockRun> {
        first.checked_add(count)?;
        Some(BlockRun {
            first: BlockIndex(first),
            count: NonZeroU64::new(count)?,
        })
    }

    /// The index behind the last block.
    pub fn end(self) -> u64 {
        self.first.0 + self.count.get()
    }

    /// The indices of the blocks.
    pub fn indices(self) -> Range<u64> {
        self.first.0..self.end()
    }

    /// Where the blocks lie, as byte offsets from the start of the region.
    ///
    /// # Panics
    /// If the run is not inside a region of such blocks and the offsets overflow.
    pub fn bytes(self, block_size: u64) -> Range<u64> {
        self.first.0 * block_size..self.end() * block_size
    }
}

/// Which blocks are plugged: one bit a block, and their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockMap {
    /// Bit `i % 64` of word `i / 64` is set if block `i` is plugged. Bits behind the last block are zero.
    words: Vec<u64>,
    nr_blocks: u64,
    /// Number of bits set.
    plugged: u64,
}

const WORD_BITS: u64 = u64::BITS as u64;

impl BlockMap {
    /// A map of `nr_blocks` blocks, all unplugged. Takes one bit of memory a block.
    ///
    /// # Panics
    /// If there is not enough address space for the map.
    pub fn new(nr_blocks: u64) -> BlockMap {
        let nr_words =
            usize::try_from(nr_blocks.div_ceil(WORD_BITS)).expect("a map fits into the address space");
        BlockMap {
            words: vec![0; nr_words],
            nr_blocks,
            plugged: 0,
        }
    }

    /// Number of blocks, plugged or not.
    pub fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    /// Number of plugged blocks.
    pub fn nr_plugged(&self) -> u64 {
        self.plugged
    }

    /// Whether a block is plugged; one that does not exist is not.
    pub fn is_plugged(&self, index: BlockIndex) -> bool {
        self.word(index.0 / WORD_BITS) >> (index.0 % WORD_BITS) & 1 != 0
    }

    /// State of a run, as a STATE request asks for it. Blocks that do not exist count as unplugged.
    pub fn state(&self, run: BlockRun) -> BlockState {
        let end = run.end();
        match (
            self.next_plugged(run.first.0) < end,
            self.next_unplugged(run.first.0) < end,
        ) {
            (true, true) => BlockState::Mixed,
            (true, false) => BlockState::Plugged,
            (false, _) => BlockState::Unplugged,
        }
    }

    /// Marks the blocks of a run plugged. Those that do not exist are left out.
    pub fn plug(&mut self, run: BlockRun) {
        self.change(run, |word, mask| word | mask);
    }

    /// Marks the blocks of a run unplugged.
    pub fn unplug(&mut self, run: BlockRun) {
        self.change(run, |word, mask| word & !mask);
    }

    /// The plugged blocks, joined into the fewest runs, from the lowest up.
    pub fn plugged_runs(&self) -> impl Iterator<Item = BlockRun> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.next_plugged(from);
            from = self.next_unplugged(first).min(self.nr_blocks);
            BlockRun::new(first, from.checked_sub(first)?)
        })
    }

    /// Every block from the lowest up: true if it is plugged.
    pub fn iter(&self) -> impl Iterator<Item = bool> + '_ {
        (0..self.nr_blocks).map(|index| self.is_plugged(BlockIndex(index)))
    }

    /// Checks the map against its own rules.
    ///
    /// # Panics
    /// If one is broken.
    pub fn validate(&self) {
        let set: u64 = self.words.iter().map(|word| u64::from(word.count_ones())).sum();
        assert_eq!(
            set, self.plugged,
            "the number of plugged blocks is the number of bits set"
        );
        assert!(
            self.next_plugged(self.nr_blocks) == u64::MAX,
            "no block behind the last one is plugged"
        );
    }

    fn word(&self, at: u64) -> u64 {
        usize::try_from(at)
            .ok()
            .and_then(|at| self.words.get(at))
            .copied()
            .unwrap_or(0)
    }

    fn change(&mut self, run: BlockRun, combine: impl Fn(u64, u64) -> u64) {
        let mut from = run.first.0;
        let end = run.end().min(self.nr_blocks);
        while from < end {
            let in_word = from % WORD_BITS;
            let count = (WORD_BITS - in_word).min(end - from);
            let mask = (u64::MAX >> (WORD_BITS - count)) << in_word;
            if let Some(word) = usize::try_from(from / WORD_BITS)
                .ok()
                .and_then(|at| self.words.get_mut(at))
            {
                let before = word.count_ones();
                *word = combine(*word, mask);
                self.plugged = self.plugged + u64::from(word.count_ones()) - u64::from(before);
            }
            from += count;
        }
    }

    /// The first plugged block from `from` on; `u64::MAX` if there is none.
    fn next_plugged(&self, from: u64) -> u64 {
        self.next_bit(from, |word| word)
    }

    /// The first unplugged block from `from` on, which may be behind the last block.
    fn next_unplugged(&self, from: u64) -> u64 {
        self.next_bit(from, |word| !word).min(self.nr_blocks.max(from))
    }

    fn next_bit(&self, from: u64, view: impl Fn(u64) -> u64) -> u64 {
        let first_word = from / WORD_BITS;
        let mut mask = u64::MAX << (from % WORD_BITS);
        for at in first_word..self.words.len() as u64 {
            let found = view(self.word(at)) & mask;
            if found != 0 {
                return at * WORD_BITS + u64::from(found.trailing_zeros());
            }
            mask = u64::MAX;
        }
        u64::MAX
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(first: u64, count: u64) -> BlockRun {
        BlockRun::new(first, count).unwrap()
    }

    #[test]
    fn an_empty_or_overflowing_run_does_not_exist() {
        assert_eq!(BlockRun::new(3, 0), None);
        assert_eq!(BlockRun::new(u64::MAX, 1), None);
    }

    #[test]
    fn the_bytes_of_a_run_start_at_its_first_block() {
        assert_eq!(run(2, 3).bytes(0x20_0000), 0x40_0000..0xa0_0000);
    }

    #[test]
    fn plugging_twice_counts_once() {
        let mut map = BlockMap::new(100);
        map.plug(run(60, 10));
        map.plug(run(62, 10));
        assert_eq!(map.nr_plugged(), 12);
        map.validate();
    }

    #[test]
    fn a_map_without_blocks_has_no_runs() {
        assert_eq!(BlockMap::new(0).plugged_runs().count(), 0);
    }

    #[test]
    fn a_full_map_is_one_run() {
        for nr_blocks in [1, 63, 64, 65, 128, 1000] {
            let mut map = BlockMap::new(nr_blocks);
            map.plug(run(0, nr_blocks));
            assert_eq!(map.plugged_runs().collect::<Vec<_>>(), [run(0, nr_blocks)]);
        }
    }

    /// The same map, naively.
    fn model_state(model: &[bool], range: Range<u64>) -> BlockState {
        let mut plugged =
            range.map(|index| usize::try_from(index).is_ok_and(|index| model.get(index) == Some(&true)));
        match (
            plugged.clone().all(|plugged| plugged),
            plugged.any(|plugged| plugged),
        ) {
            (true, _) => BlockState::Plugged,
            (false, false) => BlockState::Unplugged,
            (false, true) => BlockState::Mixed,
        }
    }

    proptest! {
        #[test]
        fn the_map_is_a_vector_of_flags(
            nr_blocks in 0u64..300,
            steps in prop::collection::vec((any::<bool>(), 0u64..320, 1u64..200), 0..40),
            asked in prop::collection::vec((0u64..320, 1u64..200), 1..20),
        ) {
            let mut map = BlockMap::new(nr_blocks);
            let mut model = vec![false; usize::try_from(nr_blocks).unwrap()];
            for (plug, first, count) in steps {
                let change = run(first, count);
                if plug { map.plug(change) } else { map.unplug(change) }
                for index in change.indices() {
                    if let Some(flag) = usize::try_from(index).ok().and_then(|index| model.get_mut(index)) {
                        *flag = plug;
                    }
                }
                map.validate();
                prop_assert_eq!(map.iter().collect::<Vec<_>>(), model.clone());
                prop_assert_eq!(map.nr_plugged(), model.iter().filter(|plugged| **plugged).count() as u64);
            }
            for (first, count) in asked {
                prop_assert_eq!(map.state(run(first, count)), model_state(&model, first..first + count));
            }
        }

        #[test]
        fn runs_cover_the_plugged_blocks_and_touch_no_neighbour(
            flags in prop::collection::vec(any::<bool>(), 0..400),
        ) {
            let mut map = BlockMap::new(flags.len() as u64);
            for (index, _) in flags.iter().enumerate().filter(|(_, plugged)| **plugged) {
                map.plug(run(index as u64, 1));
            }
            let mut covered = vec![false; flags.len()];
            let mut last_end = None;
            for run in map.plugged_runs() {
                prop_assert!(last_end.is_none_or(|end| run.first.0 > end), "neighbouring runs are joined");
                last_end = Some(run.end());
                for index in run.indices() {
                    covered[usize::try_from(index).unwrap()] = true;
                }
            }
            prop_assert_eq!(covered, flags);
        }
    }
}
