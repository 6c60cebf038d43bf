//! What names a slot: one number, in page-table entries, in page descriptors and in the swap cache (Linux `swp_entry_t`).

use core::fmt;
use core::num::NonZeroU32;

/// Bits of a slot's number that are its block: areas of up to 2 TiB.
const BLOCK_BITS: u32 = 29;
/// Blocks that an area can have.
pub const MAX_AREA_BLOCKS: u32 = 1 << BLOCK_BITS;
/// Areas that there can be at a time.
pub const MAX_AREAS: usize = 1 << (32 - BLOCK_BITS);

/// Number of a swap area, below [`MAX_AREAS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct AreaNr(u8);

impl AreaNr {
    /// The area that was added first.
    pub const FIRST: Self = Self(0);

    /// The area of that number; `None` if there can be none.
    pub const fn new(number: u8) -> Option<Self> {
        if (number as usize) < MAX_AREAS {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The same, for a table.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for AreaNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "swap area {}", self.0)
    }
}

/// Number of a slot: that of its area above that of its block, which is never 0. Slots that follow each other in an area have numbers that do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotNr(NonZeroU32);

impl SlotNr {
    /// The slot of a number; 0 is none, as is what stands for the block 0 of an area.
    pub const fn new(number: u32) -> Option<Self> {
        match NonZeroU32::new(number) {
            Some(number) if number.get() % MAX_AREA_BLOCKS != 0 => Some(Self(number)),
            _ => None,
        }
    }

    /// The slot at a block of an area; `None` for block 0 and for blocks that no area has.
    pub const fn at(area: AreaNr, block: u32) -> Option<Self> {
        if block >= MAX_AREA_BLOCKS {
            return None;
        }
        Self::new((area.0 as u32) << BLOCK_BITS | block)
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }

    /// The area that it is in.
    pub const fn area(self) -> AreaNr {
        let area = (self.0.get() >> BLOCK_BITS) as u8;
        AreaNr(area)
    }

    /// Its block in the area, from 1 to [`MAX_AREA_BLOCKS`] - 1.
    pub const fn block(self) -> u32 {
        self.0.get() % MAX_AREA_BLOCKS
    }

    /// Its place in the tables of its area.
    pub(super) const fn index(self) -> usize {
        self.block() as usize
    }
}
