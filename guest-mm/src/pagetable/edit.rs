//! Changing page tables: entries set, tables added and freed, huge leaves split.

use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Frames, SpaceId};
use crate::gfp::Gfp;
use crate::page::{Page, PageFlags};
use crate::pagetable::{Entry, Level, PageTable, Slot, TablePlace};
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, WORDS_PER_PAGE};
use crate::phys::PhysicalMemory;

/// Why an entry cannot be reached; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No frame for a table.
    NoMemory,
    /// A larger mapping, or one that does not belong to the space, stands in the way.
    Occupied {
        /// The address.
        va: u64,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory => write!(f, "no free frame for a page table"),
            Self::Occupied { va } => write!(f, "{va:#x} is covered by another mapping"),
        }
    }
}

impl core::error::Error for MapError {}

/// Up to three tables outside the tree: not hooked in yet, or emptied and unhooked. The latter are freed after the
/// next flush: until then a CPU may still walk them.
#[derive(Debug, Default)]
pub(crate) struct LooseTables([Option<Pfn>; 3]);

impl LooseTables {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Pfn> {
        self.0.iter().flatten().copied()
    }
}

/// What changing page tables needs: contents of frames, and frames for tables.
pub(crate) struct Tables<'a, F> {
    pub(crate) frames: &'a F,
    pub(crate) phys: &'a PhysicalMemory<'a>,
    pub(crate) cpu: &'a Cpu,
}

impl<'a, F: Frames> Tables<'a, F> {
    /// A table without entries, for that place.
    pub(crate) fn new_table(&mut self, space: SpaceId, place: TablePlace) -> Result<Pfn, MapError> {
        self.new_table_from(space, place, Gfp::KERNEL)
    }

    /// The same; `gfp` says how far memory of the kernel's may be emptied for it. Tables move, so that removable memory will do.
    pub(crate) fn new_table_from(
        &mut self,
        space: SpaceId,
        place: TablePlace,
        gfp: Gfp,
    ) -> Result<Pfn, MapError> {
        let pfn = self.phys.alloc_relocatable(self.cpu, gfp);
        let pfn = pfn.map_err(|_| MapError::NoMemory)?;
        self.frames.zero(pfn, Order::ZERO);
        self.make_table(pfn, space, place);
        Ok(pfn)
    }

    /// Makes a frame that was just allocated the table of that place, without entries that count.
    pub(crate) fn make_table(&mut self, pfn: Pfn, space: SpaceId, place: TablePlace) {
        let page = self.page(pfn);
        page.set_mapping(space.number());
        page.set_index(place.to_index());
        page.add_flags(PageFlags::TABLE);
        self.phys.counts.nr_page_table_pages.add(1);
    }

    /// Lets the entry that leads to a table lead to a copy of it. The table itself stays as it is until no CPU walks it any more.
    pub(crate) fn exchange(&mut self, hook: Slot, from: Pfn, to: Pfn) {
        let entry = Entry::from_bits(self.frames.read(hook.table, hook.index));
        debug_assert_eq!(entry.pfn(), from);
        self.set(hook, entry.with_pfn(to));
    }

    /// Makes a frame that was just allocated a copy of a table. Hardware may set bits in the table meanwhile, which are lost: that a
    /// page was used is asked for again, and that it was written to is not known from there.
    pub(crate) fn copy_table(&mut self, from: Pfn, to: Pfn, space: SpaceId, place: TablePlace) {
        for index in 0..WORDS_PER_PAGE {
            self.frames.write(to, index, self.frames.read(from, index));
        }
        self.make_table(to, space, place);
        self.page(to).set_private(self.page(from).private());
    }

    /// Frees a table; no CPU walks it any more.
    pub(crate) fn free_table(&mut self, pfn: Pfn) {
        self.page(pfn).clear();
        self.phys.counts.nr_page_table_pages.sub(1);
        self.phys.put_page(self.cpu, pfn);
    }

    /// Writes an entry, keeps the table's count of used ones, and returns what was there.
    pub(crate) fn set(&mut self, slot: Slot, entry: Entry) -> Entry {
        let old = Entry::from_bits(self.frames.exchange(slot.table, slot.index, entry.bits()));
        if old.is_empty() != entry.is_empty() {
            let page = self.page(slot.table);
            let used = page.private();
            page.set_private(if entry.is_empty() { used - 1 } else { used + 1 });
        }
        old
    }

    /// The place of the entry of `level` for an address; adds the tables that lead there.
    pub(crate) fn ensure(&mut self, table: PageTable, va: u64, level: Level) -> Result<Slot, MapError> {
        let found = table.find(self.frames, va);
        if found.level == level {
            return Ok(found.slot);
        }
        if found.level < level || !found.entry.is_empty() {
            return Err(MapError::Occupied { va });
        }
        // All or nothing: a table is hooked in only when there are enough of them, so that a failure frees frames
        // that no CPU has ever seen.
        let mut missing = LooseTables::default();
        let wanted = found.level.0 - level.0;
        for place in 0..wanted {
            let level = Level(found.level.0 - 1 - place);
            match self.new_table(table.space, TablePlace::of(va, level)) {
                Ok(pfn) => missing.0[place as usize] = Some(pfn),
                Err(error) => {
                    missing.iter().for_each(|pfn| self.free_table(pfn));
                    return Err(error);
                }
            }
        }
        let mut slot = found.slot;
        let mut above = found.level;
        for pfn in missing.iter() {
            self.set(slot, table_entry(pfn));
            above = above.below();
            slot = Slot {
                table: pfn,
                index: above.index(va),
            };
        }
        Ok(slot)
    }

    /// Unhooks the tables on the way to an address that have no entry left. They may be freed after a flush.
    pub(crate) fn prune(&mut self, table: PageTable, va: u64) -> LooseTables {
        let mut emptied = LooseTables::default();
        for place in &mut emptied.0 {
            let found = table.find(self.frames, va);
            let at = found.slot.table;
            if at == table.root || self.page(at).private() > 0 {
                break;
            }
            let parent = self.parent_slot(table, va, at);
            self.set(parent, Entry::EMPTY);
            *place = Some(at);
        }
        emptied
    }

    /// Replaces the migration entry for a huge leaf by a table of 512 leaves with the same rights. `table` is a frame from
    /// [`Tables::new_table`].
    pub(crate) fn split_leaf(&mut self, slot: Slot, huge: Entry, table: Pfn) {
        let leaf = huge.without(Entry::HUGE);
        for page in 0..PAGEBLOCK_NR_PAGES {
            self.frames
                .write(table, page as usize, leaf.with_pfn(huge.pfn() + page).bits());
        }
        self.page(table).set_private(PAGEBLOCK_NR_PAGES);
        let old = self.set(slot, table_entry(table));
        debug_assert!(old.is_migration());
    }

    /// The entry that leads to `child` on the way to an address.
    fn parent_slot(&self, table: PageTable, va: u64, child: Pfn) -> Slot {
        let mut slot = Slot {
            table: table.root,
            index: Level::ROOT.index(va),
        };
        let mut level = Level::ROOT;
        loop {
            let next = Entry::from_bits(self.frames.read(slot.table, slot.index)).pfn();
            if next == child || level == Level::PAGE {
                return slot;
            }
            level = level.below();
            slot = Slot {
                table: next,
                index: level.index(va),
            };
        }
    }

    fn page(&self, table: Pfn) -> &'a Page {
        self.phys.page(table).expect("a table in use stays online")
    }
}

/// Rights are decided by the leaves; the tables above permit everything.
fn table_entry(table: Pfn) -> Entry {
    Entry::new(table, Entry::PRESENT | Entry::WRITABLE | Entry::USER)
}
