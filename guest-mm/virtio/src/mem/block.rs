//! Blocks of a virtio-mem region, by number: the words in which driver, planner and kernel talk about them.

use core::num::NonZeroU16;

/// The number of a device block, counted from the start of the region (`addr`); the region has `nr_blocks` of
/// them, so the legal range is `0..nr_blocks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(u32);

impl BlockIndex {
    /// Block number `raw`.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number.
    pub const fn raw(self) -> u32 {
        self.0
    }

    pub(crate) const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// At least one and at most 65535 neighbouring blocks: what one virtio-mem request can name (`nb_blocks` is 16
/// bits wide, virtio 1.3 section 5.15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRun {
    first: BlockIndex,
    count: NonZeroU16,
}

impl BlockRun {
    /// `count` blocks from `first` on; `None` if the numbers of the last ones do not exist (beyond `u32::MAX`).
    pub const fn new(first: BlockIndex, count: NonZeroU16) -> Option<Self> {
        // `count as u32` widens: `From` is not const yet.
        match first.0.checked_add(count.get() as u32 - 1) {
            Some(_) => Some(Self { first, count }),
            None => None,
        }
    }

    /// The run of this one block.
    pub const fn single(block: BlockIndex) -> Self {
        Self {
            first: block,
            count: NonZeroU16::MIN,
        }
    }

    /// The lowest block.
    pub const fn first(self) -> BlockIndex {
        self.first
    }

    /// The highest block.
    pub const fn last(self) -> BlockIndex {
        BlockIndex(self.first.0 + (self.count.get() as u32 - 1))
    }

    /// How many blocks.
    pub const fn count(self) -> NonZeroU16 {
        self.count
    }

    /// Every block, lowest first.
    pub fn blocks(self) -> impl DoubleEndedIterator<Item = BlockIndex> + Clone {
        (self.first.0..=self.last().0).map(BlockIndex)
    }

    /// The run without its upper half (a run of one stays as it is).
    pub fn lower_half(self) -> Self {
        let count = NonZeroU16::new(self.count.get() / 2).unwrap_or(NonZeroU16::MIN);
        Self {
            first: self.first,
            count,
        }
    }

    /// The run one block longer, if `next` is the neighbour above and the length still fits a request.
    fn joined(self, next: BlockIndex) -> Option<Self> {
        let is_neighbour = self.last().0.checked_add(1) == Some(next.0);
        let count = self.count.checked_add(1)?;
        is_neighbour.then_some(Self {
            first: self.first,
            count,
        })
    }
}

/// Joins neighbours: turns ascending block numbers into as few runs as possible, so that one request serves
/// many blocks. Numbers that do not ascend start a run of their own.
pub fn runs(blocks: impl IntoIterator<Item = BlockIndex>) -> impl Iterator<Item = BlockRun> {
    let mut blocks = blocks.into_iter();
    let mut open: Option<BlockRun> = None;
    core::iter::from_fn(move || {
        for block in blocks.by_ref() {
            match open {
                None => open = Some(BlockRun::single(block)),
                Some(run) => match run.joined(block) {
                    Some(longer) => open = Some(longer),
                    None => return open.replace(BlockRun::single(block)),
                },
            }
        }
        open.take()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn joined(raw: &[u32]) -> Vec<(u32, u16)> {
        runs(raw.iter().map(|&block| BlockIndex::new(block)))
            .map(|run| (run.first().raw(), run.count().get()))
            .collect()
    }

    #[test]
    fn neighbours_are_joined_and_gaps_are_not() {
        assert_eq!(joined(&[]), []);
        assert_eq!(joined(&[7]), [(7, 1)]);
        assert_eq!(joined(&[1, 2, 3, 5, 6, 9]), [(1, 3), (5, 2), (9, 1)]);
        assert_eq!(joined(&[3, 2, 1]), [(3, 1), (2, 1), (1, 1)]);
        assert_eq!(joined(&[4, 4]), [(4, 1), (4, 1)]);
    }

    #[test]
    fn a_run_never_exceeds_what_a_request_can_name() {
        let all: Vec<u32> = (0..70_000).collect();
        assert_eq!(joined(&all), [(0, 65_535), (65_535, 4_465)]);
    }

    #[test]
    fn a_run_past_the_last_block_number_does_not_exist() {
        let last = BlockIndex::new(u32::MAX);
        assert!(BlockRun::new(last, NonZeroU16::MIN).is_some());
        assert!(BlockRun::new(last, NonZeroU16::new(2).unwrap()).is_none());
    }

    #[test]
    fn the_lower_half_of_one_block_is_that_block() {
        let run = BlockRun::new(BlockIndex::new(8), NonZeroU16::new(5).unwrap()).unwrap();
        assert_eq!(
            (run.lower_half().first().raw(), run.lower_half().count().get()),
            (8, 2)
        );
        assert_eq!(
            BlockRun::single(BlockIndex::new(3)).lower_half(),
            BlockRun::single(BlockIndex::new(3))
        );
    }
}
