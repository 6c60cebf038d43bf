//! The two blocks that name the root, in turn.

use super::crc::crc32;
use super::{Block, FormatError, Pointer, long, put_long, put_word, word};
use crate::pfn::PAGE_BYTES;

const MAGIC: [u8; 8] = *b"PAGEFS\0\0";
const VERSION: u32 = 1;
const CRC_AT: usize = PAGE_BYTES - 4;
/// Two superblocks, an inode map and a block of inodes; the root directory may be empty.
const MIN_BLOCKS: u32 = 4;

/// One state of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Superblock {
    /// Blocks of the file system.
    pub(super) nr_blocks: u32,
    /// Which commit this is, from 1.
    pub(super) generation: u64,
    /// The inode map.
    pub(super) map: Pointer,
}

impl Superblock {
    /// Where it is written: block 0 or 1.
    pub(super) const fn block_nr(&self) -> u32 {
        (self.generation & 1) as u32
    }

    /// As a block.
    pub(super) fn to_block(self) -> Block {
        let mut block = [0; PAGE_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        put_word(&mut block, 8, VERSION);
        put_word(&mut block, 12, self.nr_blocks);
        put_long(&mut block, 16, self.generation);
        self.map.put(&mut block, 24);
        let crc = crc32(&block[..CRC_AT]);
        put_word(&mut block, CRC_AT, crc);
        block
    }

    /// Reads one. `None` if it is not valid: not written whole, or never.
    fn from_block(block: &Block) -> Option<(u32, Self)> {
        let valid = block[..8] == MAGIC && word(block, CRC_AT) == crc32(&block[..CRC_AT]);
        let superblock = Self {
            nr_blocks: word(block, 12),
            generation: long(block, 16),
            map: Pointer::at(block, 24)?,
        };
        valid.then_some((word(block, 8), superblock))
    }
}

/// The superblock that counts, of the two first blocks of a disk with `disk_blocks` blocks.
///
/// # Errors
/// There is none, or it is of no file system that fits there.
pub(super) fn newest(blocks: [&Block; 2], disk_blocks: u64) -> Result<Superblock, FormatError> {
    let valid = (0..).zip(blocks).filter_map(|(number, block)| {
        // One that was written to the wrong place is none.
        Superblock::from_block(block).filter(|(_, superblock)| superblock.block_nr() == number)
    });
    let newest = valid.max_by_key(|(_, superblock)| superblock.generation);
    let (version, superblock) = newest.ok_or(FormatError::NotPageFs)?;
    if version != VERSION {
        return Err(FormatError::Version(version));
    }
    let nr_blocks = superblock.nr_blocks;
    if nr_blocks < MIN_BLOCKS || u64::from(nr_blocks) > disk_blocks {
        return Err(FormatError::Size(nr_blocks));
    }
    Ok(superblock)
}
