//! Reading page tables: for the memory manager, and as hardware does it.

use crate::frames::Frames;
use crate::pagetable::{Entry, Found, Level, PageTable, Slot};
use crate::pfn::{PAGE_SIZE, Pfn};

/// Kind of an access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// Where an address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: u64,
    /// The leaf.
    pub entry: Entry,
    /// Bytes that the leaf maps: 4 KiB or 2 MiB.
    pub page_size: u64,
}

/// Why hardware would raise #PF for a ring-3 access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageFault {
    /// P is clear on the way.
    NotPresent,
    /// The rights on the way do not permit it.
    Protection,
}

/// Walks the tables below `root` as hardware does for a ring-3 access: rights of all levels count, accessed bits
/// are set on the way and the dirty bit in the leaf.
///
/// # Errors
/// What hardware would report as a page fault.
pub fn translate(frames: &impl Frames, root: Pfn, va: u64, access: Access) -> Result<Translation, PageFault> {
    translate_from(frames, (root, Level::ROOT), va, access, |_| {})
}

/// As [`translate`], from a table of some level on. `last` is called with the table of the lowest level, if the walk comes to one.
pub(crate) fn translate_from(
    frames: &impl Frames,
    (mut table, mut level): (Pfn, Level),
    va: u64,
    access: Access,
    last: impl FnOnce(Pfn),
) -> Result<Translation, PageFault> {
    loop {
        let index = level.index(va);
        let entry = Entry::from_bits(frames.read(table, index));
        if !entry.is_present() {
            return Err(PageFault::NotPresent);
        }
        let permitted = match access {
            Access::Read => entry.has(Entry::USER),
            Access::Write => entry.has(Entry::USER | Entry::WRITABLE),
            Access::Execute => entry.has(Entry::USER) && !entry.has(Entry::NO_EXECUTE),
        };
        if !permitted {
            return Err(PageFault::Protection);
        }
        let leaf = level == Level::PAGE || entry.has(Entry::HUGE);
        let dirty = if leaf && access == Access::Write {
            Entry::DIRTY
        } else {
            0
        };
        let used = entry.with(Entry::ACCESSED | dirty);
        if used != entry {
            frames.write(table, index, used.bits());
        }
        if leaf {
            if level == Level::PAGE {
                last(table);
            }
            let page_size = level.entry_bytes();
            let gpa = used.pfn().gpa() + va % page_size;
            return Ok(Translation {
                gpa,
                entry: used,
                page_size,
            });
        }
        table = entry.pfn();
        level = level.below();
    }
}

impl PageTable {
    /// Walks to the entry for an address: the leaf, or the place where the tables end.
    pub(crate) fn find(self, frames: &impl Frames, va: u64) -> Found {
        let mut table = self.root;
        let mut level = Level::ROOT;
        loop {
            let slot = Slot {
                table,
                index: level.index(va),
            };
            let entry = Entry::from_bits(frames.read(slot.table, slot.index));
            let is_table = level > Level::PAGE && entry.is_present() && !entry.has(Entry::HUGE);
            // A fixed entry of the root leads to tables that are not this space's to change.
            if !is_table || entry.has(Entry::FIXED) {
                return Found { slot, level, entry };
            }
            table = entry.pfn();
            level = level.below();
        }
    }
}

impl Found {
    /// Whether the walk ended at a mapping of the space's own or a migration entry for one.
    pub(crate) fn is_owned_leaf(&self) -> bool {
        !self.entry.is_empty() && !self.entry.has(Entry::FIXED)
    }

    /// First address after what the entry covers.
    pub(crate) fn end_of(&self, va: u64) -> u64 {
        (va / self.level.entry_bytes() + 1) * self.level.entry_bytes()
    }

    /// First address that the entry covers.
    pub(crate) fn start_of(&self, va: u64) -> u64 {
        va / self.level.entry_bytes() * self.level.entry_bytes()
    }
}

const _: () = assert!(PAGE_SIZE == Level::PAGE.entry_bytes());
