//! The first block of a swap area.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | `BLSTSWAP` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | number of blocks of the area, this one included |
//! | 16 | 4 | number of bad blocks, at most [`AreaHeader::MAX_BAD`] |
//! | 20 | 4 each | bad blocks, ascending |
//!
//! All numbers little endian, the rest of the block zero.

use alloc::vec::Vec;
use core::fmt;

use crate::pfn::PAGE_BYTES;

const MAGIC: [u8; 8] = *b"BLSTSWAP";
const VERSION: u32 = 1;
const BAD_AT: usize = 20;

/// What block 0 of an area says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AreaHeader {
    /// Blocks of the area, block 0 included: at least 2.
    pub nr_blocks: u32,
    /// Blocks that are not to be used, ascending, from 1 to `nr_blocks - 1`.
    pub bad: Vec<u32>,
}

/// Why a block is not the header of an area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// It does not begin as one does.
    NotASwapArea,
    /// Of a version that is not known.
    Version(u32),
    /// It claims so many blocks, which is less than 2 or more than the disk has.
    Size(u32),
    /// It lists so many bad blocks, more than fit.
    TooManyBad(u32),
    /// A bad block is outside of the area, or not behind the one before.
    BadBlock(u32),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASwapArea => f.write_str("not a swap area"),
            Self::Version(version) => write!(f, "a swap area of version {version}, not {VERSION}"),
            Self::Size(blocks) => write!(
                f,
                "a swap area of {blocks} blocks: fewer than 2, or more than the disk"
            ),
            Self::TooManyBad(count) => {
                write!(
                    f,
                    "{count} bad blocks, more than the {} that fit",
                    AreaHeader::MAX_BAD
                )
            }
            Self::BadBlock(block) => write!(f, "bad block {block} is outside of the area or out of order"),
        }
    }
}

impl core::error::Error for HeaderError {}

impl AreaHeader {
    /// Bad blocks that fit into the header.
    pub const MAX_BAD: usize = (PAGE_BYTES - BAD_AT) / 4;

    /// Of an area without bad blocks.
    pub const fn new(nr_blocks: u32) -> Self {
        Self {
            nr_blocks,
            bad: Vec::new(),
        }
    }

    /// The block. Bad blocks beyond [`Self::MAX_BAD`] are left out.
    pub fn to_block(&self) -> [u8; PAGE_BYTES] {
        let mut block = [0; PAGE_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        let bad = &self.bad[..self.bad.len().min(Self::MAX_BAD)];
        let nr_bad = u32::try_from(bad.len()).expect("at most 1019");
        let words = [VERSION, self.nr_blocks, nr_bad]
            .into_iter()
            .chain(bad.iter().copied());
        for (bytes, word) in block[8..].chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        block
    }

    /// Reads block 0 of a disk with `disk_blocks` blocks.
    ///
    /// # Errors
    /// It is not the header of an area that fits there.
    pub fn from_block(block: &[u8; PAGE_BYTES], disk_blocks: u64) -> Result<Self, HeaderError> {
        let word = |at: usize| {
            let bytes = [block[at], block[at + 1], block[at + 2], block[at + 3]];
            u32::from_le_bytes(bytes)
        };
        if block[..8] != MAGIC {
            return Err(HeaderError::NotASwapArea);
        }
        let (version, nr_blocks, nr_bad) = (word(8), word(12), word(16));
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        if nr_blocks < 2 || u64::from(nr_blocks) > disk_blocks {
            return Err(HeaderError::Size(nr_blocks));
        }
        let bad_end = usize::try_from(nr_bad)
            .ok()
            .filter(|count| *count <= Self::MAX_BAD)
            .ok_or(HeaderError::TooManyBad(nr_bad))?;
        let bad: Vec<u32> = (0..bad_end).map(|index| word(BAD_AT + 4 * index)).collect();
        let mut last = 0;
        for block in &bad {
            if *block <= last || *block >= nr_blocks {
                return Err(HeaderError::BadBlock(*block));
            }
            last = *block;
        }
        Ok(Self { nr_blocks, bad })
    }
}
