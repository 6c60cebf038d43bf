//! Pointers to metadata, and blocks of them.

use core::num::NonZeroU32;

use super::crc::crc32;
use super::{Block, FormatError, put_word, word};

/// Pointers in the inode map.
pub(super) const MAP_POINTERS: usize = 512;

/// A block of metadata, and what it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Pointer {
    block: NonZeroU32,
    crc: u32,
}

impl Pointer {
    /// To `contents`, which is or will be written to `block`. `None` for block 0.
    pub(super) fn to(block: u32, contents: &Block) -> Option<Self> {
        let crc = crc32(contents);
        NonZeroU32::new(block).map(|block| Self { block, crc })
    }

    /// Where it points.
    pub(super) const fn block(self) -> u32 {
        self.block.get()
    }

    /// Whether the block is the one that is meant.
    ///
    /// # Errors
    /// It is another.
    pub(super) fn verify(self, contents: &Block) -> Result<(), FormatError> {
        if crc32(contents) == self.crc {
            Ok(())
        } else {
            Err(FormatError::Checksum(self.block()))
        }
    }

    /// The pointer in a block at `at`, if there is one.
    pub(super) fn at(bytes: &[u8], at: usize) -> Option<Self> {
        let block = NonZeroU32::new(word(bytes, at))?;
        let crc = word(bytes, at + 4);
        Some(Self { block, crc })
    }

    pub(super) fn put(self, bytes: &mut [u8], at: usize) {
        put_word(bytes, at, self.block());
        put_word(bytes, at + 4, self.crc);
    }
}
