//! Which blocks are free.

use alloc::vec::Vec;

use super::super::FormatError;
use super::FsError;

/// Most blocks that are kept for metadata; less than an eighth of a file system is not.
const MAX_RESERVE: u32 = 1024;

/// Blocks in use now, and blocks that only the last commit uses.
#[derive(Clone, Debug)]
pub(super) struct Space {
    used: Vec<u64>,
    nr_blocks: u32,
    nr_free: u32,
    /// Free as soon as the next commit is durable.
    until_commit: Vec<u32>,
}

impl Space {
    /// Only the superblocks are used. `None` if there is nothing else.
    pub(super) fn new(nr_blocks: u32) -> Option<Self> {
        if nr_blocks < 4 {
            return None;
        }
        let words = nr_blocks.div_ceil(64) as usize;
        let mut used = Vec::new();
        used.try_reserve_exact(words).ok()?;
        used.resize(words, 0);
        used[0] = 0b11;
        Some(Self {
            used,
            nr_blocks,
            nr_free: nr_blocks - 2,
            until_commit: Vec::new(),
        })
    }

    pub(super) const fn nr_free(&self) -> u32 {
        self.nr_free
    }

    /// Takes note of a block in use.
    pub(super) fn take(&mut self, block: u32) -> Result<(), FsError> {
        if block >= self.nr_blocks {
            return Err(FormatError::OutOfRange(block).into());
        }
        if self.is_used(block) {
            return Err(FsError::DoubleUse(block));
        }
        self.used[(block / 64) as usize] |= 1 << (block % 64);
        self.nr_free -= 1;
        Ok(())
    }

    /// As [`Self::allocate`], but leaves what commits need: without it nothing could be deleted from a full file system.
    pub(super) fn allocate_for_data(&mut self, near: u32) -> Option<u32> {
        let reserve = (self.nr_blocks / 8).min(MAX_RESERVE);
        if self.nr_free > reserve {
            self.allocate(near)
        } else {
            None
        }
    }

    /// A free block: `near`, or the next one behind it, from the beginning if there is none.
    pub(super) fn allocate(&mut self, near: u32) -> Option<u32> {
        let words = self.used.len();
        let first = (near / 64) as usize % words;
        let free = |index: usize, mask: u64| {
            let bits = !self.used[index] & mask;
            let block = u32::try_from(index).ok()? * 64 + bits.trailing_zeros();
            (bits != 0 && block < self.nr_blocks).then_some(block)
        };
        let found = free(first, u64::MAX << (near % 64))
            .or_else(|| (1..=words).find_map(|step| free((first + step) % words, u64::MAX)))?;
        self.used[(found / 64) as usize] |= 1 << (found % 64);
        self.nr_free -= 1;
        Some(found)
    }

    /// Gives a block back that no commit uses.
    pub(super) fn free(&mut self, block: u32) {
        debug_assert!(self.is_used(block), "freed twice");
        self.used[(block / 64) as usize] &= !(1 << (block % 64));
        self.nr_free += 1;
    }

    /// Gives a block back that the last commit uses.
    pub(super) fn free_with_commit(&mut self, block: u32) {
        self.until_commit.push(block);
    }

    /// The commit is durable.
    pub(super) fn committed(&mut self) {
        for block in core::mem::take(&mut self.until_commit) {
            self.free(block);
        }
    }

    fn is_used(&self, block: u32) -> bool {
        self.used[(block / 64) as usize] >> (block % 64) & 1 == 1
    }
}
