//! Where a page table belongs, as its descriptor says: so that whoever finds the frame finds the entry that leads to it.

use crate::frames::Frames;
use crate::pagetable::{Entry, Level, PageTable, Slot};
use crate::pfn::{PAGEBLOCK_SIZE, Pfn};

/// Level of a table, and the first address that it covers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TablePlace {
    va: u64,
    level: Level,
}

/// What leads to a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Hook {
    /// The address space itself: it is the root.
    Root,
    /// An entry of the table above.
    Entry(Slot),
}

impl TablePlace {
    /// The root's.
    pub(crate) const ROOT: Self = Self {
        va: 0,
        level: Level::ROOT,
    };

    /// That of the table of `level` on the way to an address.
    pub(crate) const fn of(va: u64, level: Level) -> Self {
        let covered = level.above().entry_bytes();
        Self {
            va: va / covered * covered,
            level,
        }
    }

    /// As the descriptor's `index`: bits 0 and 1 level - 1, the others the address divided by 2 MiB.
    pub(crate) fn to_index(self) -> u32 {
        let number = u32::try_from(self.va / PAGEBLOCK_SIZE).expect("addresses have 48 bits");
        number << 2 | (self.level.0 - 1)
    }

    /// What [`to_index`](Self::to_index) was made of.
    pub(crate) const fn from_index(index: u32) -> Self {
        Self {
            va: (index >> 2) as u64 * PAGEBLOCK_SIZE,
            level: Level((index & 3) + 1),
        }
    }

    /// First address that it covers.
    pub(crate) const fn va(self) -> u64 {
        self.va
    }

    /// Bytes that it covers.
    pub(crate) const fn bytes(self) -> u64 {
        self.level.above().entry_bytes()
    }
}

impl PageTable {
    /// What leads to a table at that place; `None` if nothing does, as it was unhooked or is not hooked in yet.
    pub(crate) fn hook_of(self, frames: &impl Frames, table: Pfn, place: TablePlace) -> Option<Hook> {
        if place.level == Level::ROOT {
            return (self.root == table).then_some(Hook::Root);
        }
        let mut level = Level::ROOT;
        let mut above = self.root;
        loop {
            let slot = Slot {
                table: above,
                index: level.index(place.va),
            };
            let entry = Entry::from_bits(frames.read(slot.table, slot.index));
            if !entry.is_present() || entry.has(Entry::HUGE) || entry.has(Entry::FIXED) {
                return None;
            }
            level = level.below();
            above = entry.pfn();
            if level == place.level {
                return (above == table).then_some(Hook::Entry(slot));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_kept_in_a_descriptor_and_found_again() {
        for level in [Level::PAGE, Level::HUGE, Level(3), Level::ROOT] {
            for va in [0, 0x1234_5678_9000, 0xffff_ffff_f000] {
                let place = TablePlace::of(va, level);
                assert_eq!(TablePlace::from_index(place.to_index()), place);
                assert!(place.va() <= va && va - place.va() < place.bytes());
            }
        }
        assert_eq!(TablePlace::of(0xffff_ffff_f000, Level::ROOT), TablePlace::ROOT);
    }
}
