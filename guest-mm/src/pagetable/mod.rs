//! Page tables of x86-64, four levels, over [`Frames`](crate::Frames): the same entries that hardware walks.
//!
//! The descriptor of a table counts its used entries (`private`), so that the last entry taken out frees the table without a look at
//! the other 511, and says where it belongs (`index`), so that it can be exchanged for a copy.

mod edit;
mod entry;
mod place;
mod walk;

use core::fmt;

use crate::frames::SpaceId;
use crate::pfn::{PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_SIZE, Pfn};

pub use edit::MapError;
pub(crate) use edit::Tables;
pub use entry::Entry;
pub(crate) use place::{Hook, TablePlace};
pub(crate) use walk::translate_from;
pub use walk::{Access, PageFault, Translation, translate};

/// First address that user memory may not use: 16 TiB, so that a page number fits the 32 bits of a descriptor's
/// `index`. In the low half of the address space, as everything of ours.
pub const USER_END: u64 = 1 << 44;

/// Virtual addresses `start .. end`, both multiples of 4096, not wrapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct VaRange {
    start: u64,
    end: u64,
}

impl VaRange {
    /// `len` bytes from `va`, the length rounded up to whole pages. `None` when `va` is unaligned, the range is
    /// empty or leaves user memory ([`USER_END`]).
    pub const fn new(va: u64, len: u64) -> Option<Self> {
        if !va.is_multiple_of(PAGE_SIZE) || len == 0 || len > USER_END || va > USER_END {
            return None;
        }
        let end = va + len.next_multiple_of(PAGE_SIZE);
        if end <= USER_END {
            Some(Self { start: va, end })
        } else {
            None
        }
    }

    /// First address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// First address after it.
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Number of 4 KiB pages.
    pub const fn nr_pages(self) -> u64 {
        self.bytes() >> PAGE_SHIFT
    }

    /// Whether the address lies inside.
    pub const fn contains(self, va: u64) -> bool {
        self.start <= va && va < self.end
    }

    /// Whether all of `other` lies inside.
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// What the two have in common.
    pub fn intersection(self, other: Self) -> Option<Self> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(Self { start, end })
    }

    /// The pages of both borders' making: `start .. end` from aligned addresses.
    pub(crate) const fn between(start: u64, end: u64) -> Self {
        Self { start, end }
    }
}

impl fmt::Display for VaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

/// Level of a table: 1 holds entries of 4 KiB pages, 4 is the root.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Level(pub(crate) u32);

impl Level {
    pub(crate) const PAGE: Self = Self(1);
    pub(crate) const HUGE: Self = Self(2);
    pub(crate) const ROOT: Self = Self(4);

    /// Bytes that one entry of this level covers.
    pub(crate) const fn entry_bytes(self) -> u64 {
        PAGE_SIZE << (9 * (self.0 - 1))
    }

    /// Index in a table of this level of the entry that covers the address.
    pub(crate) const fn index(self, va: u64) -> usize {
        ((va >> (PAGE_SHIFT + 9 * (self.0 - 1))) & 511) as usize
    }

    pub(crate) const fn below(self) -> Self {
        Self(self.0 - 1)
    }

    pub(crate) const fn above(self) -> Self {
        Self(self.0 + 1)
    }
}

const _: () = assert!(Level::HUGE.entry_bytes() == PAGEBLOCK_SIZE);

/// Place of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot {
    pub(crate) table: Pfn,
    pub(crate) index: usize,
}

/// Where the walk to an address ended: at a leaf, at a migration entry, or where nothing is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) slot: Slot,
    pub(crate) level: Level,
    pub(crate) entry: Entry,
}

/// The tables of one address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageTable {
    pub(crate) root: Pfn,
    pub(crate) space: SpaceId,
}
