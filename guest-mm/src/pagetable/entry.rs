//! Page-table entries of x86-64 (Intel SDM volume 3, 4.5.5, tables 4-15 to 4-20), and what this crate keeps in the
//! bits that are left to software.

use core::fmt;

use crate::pfn::{Order, PAGE_SHIFT, Pfn};
use crate::swap::SlotNr;

/// One entry of a table of any level. All zero means: nothing here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Entry(u64);

impl Entry {
    /// Nothing here.
    pub const EMPTY: Self = Self(0);
    /// P: the entry translates.
    pub const PRESENT: u64 = 1 << 0;
    /// R/W: writes are allowed.
    pub const WRITABLE: u64 = 1 << 1;
    /// U/S: ring 3 may use it.
    pub const USER: u64 = 1 << 2;
    /// PWT.
    pub const WRITE_THROUGH: u64 = 1 << 3;
    /// PCD.
    pub const CACHE_DISABLE: u64 = 1 << 4;
    /// A: set by hardware at the first access.
    pub const ACCESSED: u64 = 1 << 5;
    /// D: set by hardware at the first write, in leaves.
    pub const DIRTY: u64 = 1 << 6;
    /// PS: a leaf of level 2, which maps 2 MiB.
    pub const HUGE: u64 = 1 << 7;
    /// G: survives a change of CR3.
    pub const GLOBAL: u64 = 1 << 8;
    /// XD: no instructions from here.
    pub const NO_EXECUTE: u64 = 1 << 63;
    /// Software: what is mapped does not belong to the address space: it is never counted, moved or freed.
    pub const FIXED: u64 = 1 << 9;
    /// Software, in entries without P: the page is being migrated. All other bits are those that the mapping had,
    /// so that taking the entry back is setting P again.
    pub const MIGRATION: u64 = 1 << 10;
    /// Software, in present entries of the kernel's upper tables: the table behind also belongs to other entries, and
    /// is copied before anything in it changes.
    pub const SHARED: u64 = 1 << 11;

    /// Software, in entries without P: the page is in the swap area, in the slot that the address bits name.
    pub const SWAP: u64 = 1 << 8;

    /// Software, in entries without P: the page of a mapping that belongs here is the one that the address bits name
    /// (Linux `_PAGE_FILE`).
    pub const FILE: u64 = 1 << 6;

    /// What is left of a mapping whose page was lost with its frame: [`Self::FIXED`] without P, so that nobody looks for a page behind it.
    pub const fn poisoned(order: Order) -> Self {
        match order.number() {
            0 => Self(Self::FIXED),
            _ => Self(Self::FIXED | Self::HUGE),
        }
    }

    /// Whether its page was lost with its frame.
    pub const fn is_poisoned(self) -> bool {
        !self.is_present() && self.has(Self::FIXED) && !self.has(Self::MIGRATION)
    }

    const ADDRESS: u64 = 0xffff_ffff << PAGE_SHIFT;

    /// An entry that points at a frame, with the given bits.
    pub const fn new(pfn: Pfn, bits: u64) -> Self {
        Self(pfn.gpa() | bits)
    }

    /// The entry with these 64 bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// All 64 bits.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether all of `bits` are set.
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits == bits
    }

    /// Whether nothing is here.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether hardware uses it.
    pub const fn is_present(self) -> bool {
        self.has(Self::PRESENT)
    }

    /// Whether it stands for a page on the move.
    pub const fn is_migration(self) -> bool {
        !self.is_present() && self.has(Self::MIGRATION)
    }

    /// The entry for a page in a slot of the swap area.
    pub const fn swap(slot: SlotNr) -> Self {
        Self((slot.number() as u64) << PAGE_SHIFT | Self::SWAP)
    }

    /// The slot, if it stands for a page in the swap area.
    pub const fn swap_slot(self) -> Option<SlotNr> {
        if self.is_present() || !self.has(Self::SWAP) || self.has(Self::MIGRATION) {
            return None;
        }
        SlotNr::new(self.pfn().number())
    }

    /// The entry for a page of a mapping that is not mapped just now.
    pub const fn file(index: u32) -> Self {
        Self((index as u64) << PAGE_SHIFT | Self::FILE)
    }

    /// The page of a mapping that it stands for without mapping it.
    pub const fn file_index(self) -> Option<u32> {
        let others = Self::PRESENT | Self::MIGRATION | Self::SWAP;
        if self.0 & others != 0 || !self.has(Self::FILE) {
            return None;
        }
        Some(self.pfn().number())
    }

    /// Frame that it points at.
    pub const fn pfn(self) -> Pfn {
        Pfn::new(((self.0 & Self::ADDRESS) >> PAGE_SHIFT) as u32)
    }

    /// The same with another frame.
    #[must_use]
    pub const fn with_pfn(self, pfn: Pfn) -> Self {
        Self(self.0 & !Self::ADDRESS | pfn.gpa())
    }

    /// The same with `bits` set.
    #[must_use]
    pub const fn with(self, bits: u64) -> Self {
        Self(self.0 | bits)
    }

    /// The same with `bits` clear.
    #[must_use]
    pub const fn without(self, bits: u64) -> Self {
        Self(self.0 & !bits)
    }

    /// The entry that stands for this present one while its page is moved.
    #[must_use]
    pub const fn to_migration(self) -> Self {
        self.without(Self::PRESENT).with(Self::MIGRATION)
    }

    /// The mapping that a migration entry stands for.
    #[must_use]
    pub const fn from_migration(self) -> Self {
        self.without(Self::MIGRATION).with(Self::PRESENT)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bits_are_where_the_manual_has_them() {
        let entry = Entry::new(
            Pfn::new(0x0012_3456),
            Entry::PRESENT | Entry::USER | Entry::NO_EXECUTE,
        );
        assert_eq!(entry.bits(), 0x8000_0001_2345_6005);
        assert_eq!(
            Entry::WRITABLE | Entry::HUGE | Entry::DIRTY | Entry::ACCESSED,
            0xe2
        );
        assert_eq!(entry.pfn(), Pfn::new(0x0012_3456));
        assert_eq!(
            Entry::new(Pfn::new(u32::MAX - 1), 0).pfn(),
            Pfn::new(u32::MAX - 1)
        );
    }

    #[test]
    fn a_migration_entry_is_not_present_and_keeps_everything_else() {
        let entry = Entry::new(
            Pfn::new(512),
            Entry::PRESENT | Entry::WRITABLE | Entry::HUGE | Entry::DIRTY,
        );
        let moving = entry.to_migration();
        assert!(moving.is_migration() && !moving.is_present() && !moving.is_empty());
        assert_eq!(moving.from_migration(), entry);
    }
}
