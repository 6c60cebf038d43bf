//! Reverse mapping: from a page to the entries that map it (Linux `rmap_walk`), and those entries taken away for a while.

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{FlushBatch, Frames, Mmu, SpaceId};
use crate::mm::mapping::id_of;
use crate::mm::zap::{flush_of, order_of};
use crate::mm::{AddressSpace, Layout, Locked, MappingId, Mm};
use crate::page::Page;
use crate::pagetable::{Entry, Level, PageTable, Slot, VaRange};
use crate::pfn::Pfn;

/// What a walk needs; kept over the pages of a batch, most of which belong to the same address space.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    members: Vec<SpaceId>,
    last: Option<Arc<AddressSpace>>,
    /// Entries of one address space.
    hits: Vec<(Slot, u64, Entry)>,
}

/// An entry replaced by a migration entry.
#[derive(Debug)]
pub(crate) struct Unmapped {
    pub(crate) space: Arc<AddressSpace>,
    /// Stays where it is: tables with an entry are not freed, and areas of a space do not change while it has
    /// migration entries.
    pub(crate) slot: Slot,
    /// The mapping as hardware left it.
    pub(crate) entry: Entry,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Replaces every entry of a page by a migration entry, adds what was replaced to `unmapped`, and returns how many that
    /// were. The caller has the page lock and a reference, and flushes. When not all of the entries are found, which the page counts,
    /// because a fork is just adding one, nothing is replaced, and it returns 0.
    pub(crate) fn unmap_page(
        &self,
        cpu: &Cpu,
        (pfn, page): (Pfn, &Page),
        walk: &mut Walk,
        flush: &mut FlushBatch,
        unmapped: &mut Vec<Unmapped>,
    ) -> usize {
        let first = unmapped.len();
        self.for_each_entry(pfn, page, walk, |space, locked, (slot, va, entry)| {
            // Looked at again: hardware sets bits at any time.
            let entry = self.tables(cpu).set(slot, entry.to_migration());
            locked.migrating += 1;
            flush.add(flush_of(locked.table, va, order_of(entry)));
            unmapped.push(Unmapped {
                space: space.clone(),
                slot,
                entry,
            });
        });
        let replaced = unmapped.len() - first;
        if replaced == page.mapcount() as usize {
            return replaced;
        }
        for entry in unmapped.drain(first..) {
            self.map_again(cpu, &entry, entry.entry);
        }
        0
    }

    /// Takes every entry of a page of a mapping away that can be found; it is in the mapping's tree. The caller has the page lock and
    /// a reference, and flushes.
    pub(crate) fn unmap_file_page(
        &self,
        cpu: &Cpu,
        (pfn, page): (Pfn, &Page),
        walk: &mut Walk,
        flush: &mut FlushBatch,
    ) {
        self.for_each_entry(pfn, page, walk, |_, locked, (slot, va, entry)| {
            self.tables(cpu).set(slot, entry_left(locked, va, page.index()));
            flush.add(flush_of(locked.table, va, order_of(entry)));
            locked.file_pages -= 1;
            self.phys.counts.nr_mapped.sub(1);
            page.drop_mapping();
            // The caller has another one.
            page.drop_reference();
        });
    }

    /// Puts a mapping in the place of a migration entry.
    pub(crate) fn map_again(&self, cpu: &Cpu, unmapped: &Unmapped, entry: Entry) {
        let mut space = unmapped.space.lock();
        let old = self.tables(cpu).set(unmapped.slot, entry);
        debug_assert!(old.is_migration());
        space.settle_one();
    }

    /// Calls `visit` for every entry that maps the page, with its address space locked.
    pub(crate) fn for_each_entry(
        &self,
        pfn: Pfn,
        page: &Page,
        walk: &mut Walk,
        mut visit: impl FnMut(&Arc<AddressSpace>, &mut Locked<'_>, (Slot, u64, Entry)),
    ) {
        if let Some(id) = id_of(page) {
            return self.for_each_file_entry((pfn, page), id, walk, visit);
        }
        let Some(place) = page.anon_place() else {
            return;
        };
        self.anon_vmas.members_into(place.anon_vma, &mut walk.members);
        for at in 0..walk.members.len() {
            let Some(space) = self.member(walk, at) else {
                continue;
            };
            let mut locked = space.lock();
            if locked.has_ended {
                continue;
            }
            let found = locked.table.find(&self.frames, place.va);
            let maps = found.entry.is_present() && !found.entry.has(Entry::FIXED);
            if maps && found.entry.pfn() == pfn {
                visit(&space, &mut locked, (found.slot, place.va, found.entry));
            }
        }
    }

    /// The same for a page of a mapping: in every address space that has areas of it, and there in each of them that shows the
    /// page.
    fn for_each_file_entry(
        &self,
        (pfn, page): (Pfn, &Page),
        id: MappingId,
        walk: &mut Walk,
        mut visit: impl FnMut(&Arc<AddressSpace>, &mut Locked<'_>, (Slot, u64, Entry)),
    ) {
        if page.mapcount() == 0 {
            return;
        }
        self.mappings.members_into(id, &mut walk.members);
        for at in 0..walk.members.len() {
            let Some(space) = self.member(walk, at) else {
                continue;
            };
            let mut locked = space.lock();
            if locked.has_ended {
                continue;
            }
            walk.hits.clear();
            for start in locked.mappings.get(&id).into_iter().flatten() {
                let vma = &locked.vmas[start];
                match vma.backing.file() {
                    Some(area) if area.layout == Layout::Linear => {
                        let place = vma.va_of_page(area, page.index());
                        let found = place.map(|va| (va, locked.table.find(&self.frames, va)));
                        walk.hits
                            .extend(found.map(|(va, found)| (found.slot, va, found.entry)));
                    }
                    _ => self.entries_in(locked.table, vma.range, &mut walk.hits),
                }
            }
            for &hit in &walk.hits {
                let entry = hit.2;
                let maps = entry.is_present() && !entry.has(Entry::FIXED) && entry.pfn() == pfn;
                if maps {
                    visit(&space, &mut locked, hit);
                }
            }
        }
    }

    /// All leaves in a range: where a page is in a non-linear area only they know.
    fn entries_in(&self, table: PageTable, range: VaRange, hits: &mut Vec<(Slot, u64, Entry)>) {
        let mut va = range.start();
        while va < range.end() {
            let found = table.find(&self.frames, va);
            if found.level == Level::PAGE {
                hits.push((found.slot, va, found.entry));
            }
            va = found.end_of(va);
        }
    }

    fn member(&self, walk: &mut Walk, at: usize) -> Option<Arc<AddressSpace>> {
        let id = walk.members[at];
        // One that has ended and whose number is another's is looked up again by its owner's walk: this one's has no such page.
        if let Some(last) = walk.last.as_ref().filter(|last| last.id() == id)
            && !last.lock().has_ended
        {
            return Some(last.clone());
        }
        walk.last = self.spaces.find(id);
        walk.last.clone()
    }
}

/// What is left of an entry whose page of a mapping stays in its mapping: nothing, or the page's index where the address alone does not
/// tell it.
fn entry_left(space: &Locked<'_>, va: u64, index: u32) -> Entry {
    let linear = space.vma_at(va).and_then(|vma| {
        let area = vma.backing.file()?;
        Some(area.first_page + vma.page_offset(va))
    });
    if linear == Some(index) {
        Entry::EMPTY
    } else {
        Entry::file(index)
    }
}
