//! Address spaces: every table and every mapping agrees with the descriptors, in both directions.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::lru::LruList;
use crate::mm::{AnonVmaId, Backing, Layout, Locked, MappingId, Mm, Reserve, Vma};
use crate::page::{Page, PageFlags, PageState};
use crate::pagetable::{Entry, Level, TablePlace};
use crate::pfn::{Order, Pfn};
use crate::swap::SlotNr;
use crate::validate::{Invalid, ensure};

/// What was found while walking.
#[derive(Default)]
pub(super) struct Tally {
    tables: u64,
    rss: u64,
    pub(super) migrating: u32,
    swap: u64,
    /// Entries that map pages of mappings.
    pub(super) mapped: u64,
    /// Entries that name each slot of the swap area, in page tables and in mappings.
    pub(super) slots: BTreeMap<SlotNr, u16>,
    /// Entries that map each page, over all address spaces.
    pub(super) entries: BTreeMap<Pfn, u32>,
    /// Pages of mappings.
    pub(super) files: u64,
    /// Huge pages that areas have reserved and not touched.
    reserved: u64,
    /// Address spaces with areas of each mapping.
    pub(super) members: Vec<(MappingId, SpaceId)>,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Checks physical memory and all address spaces. Nobody else may use them meanwhile.
    ///
    /// # Errors
    /// The first broken invariant found.
    pub fn validate(&self) -> Result<(), Invalid> {
        self.phys.validate()?;
        let mut all = Tally::default();
        let mut members = Vec::new();
        for space in self.spaces.all() {
            let space = space.lock();
            validate_areas(&space)?;
            all.members
                .extend(space.mappings.keys().map(|&mapping| (mapping, space.id())));
            members.extend(space.anon_vmas.keys().map(|&anon_vma| (anon_vma, space.id())));
            for vma in space.vmas.values() {
                if vma.backing == Backing::HugeTlb(Reserve::Held) {
                    all.reserved += self.unused_reservations(&space, vma.range);
                }
            }
            let (rss, migrating, swap, mapped) = (all.rss, all.migrating, all.swap, all.mapped);
            all.tables += 1;
            self.validate_table(&space, space.table.root, Level::ROOT, 0, &mut all)?;
            let id = space.id().number();
            ensure!(
                space.rss_pages == all.rss - rss,
                "space {id}: rss {} is {}",
                space.rss_pages,
                all.rss - rss
            );
            ensure!(
                space.file_pages == all.mapped - mapped,
                "space {id}: {} pages of mappings are mapped, {} are",
                space.file_pages,
                all.mapped - mapped
            );
            ensure!(
                space.swap_pages == all.swap - swap,
                "space {id}: {} swap entries, {} are there",
                space.swap_pages,
                all.swap - swap
            );
            ensure!(
                space.migrating == all.migrating - migrating,
                "space {id}: {} migrating",
                all.migrating - migrating
            );
        }
        self.validate_members(members)?;
        self.validate_mappings(&mut all)?;
        self.validate_slots(&all)?;
        let reserved = self.phys.huge_pool().reserved;
        ensure!(
            reserved == all.reserved,
            "{reserved} huge pages are reserved, areas have {}",
            all.reserved
        );
        self.validate_totals(&all)
    }

    /// The table of `anon_vma`s lists exactly the address spaces whose areas have them.
    fn validate_members(&self, mut members: Vec<(AnonVmaId, SpaceId)>) -> Result<(), Invalid> {
        let mut listed = self.anon_vmas.pairs();
        members.sort_unstable();
        listed.sort_unstable();
        ensure!(
            listed == members,
            "anon_vmas: {listed:?} are listed, {members:?} are there"
        );
        Ok(())
    }

    /// Each slot has exactly the users that name it, and the cache's page says so.
    fn validate_slots(&self, all: &Tally) -> Result<(), Invalid> {
        let in_use = self.swap.in_use();
        for &(slot, users, cached) in &in_use {
            let named = all.slots.get(&slot).copied().unwrap_or(0);
            ensure!(
                users == named + u16::from(cached.is_some()),
                "{slot:?} has {users} users, {named} entries and {cached:?}"
            );
            let Some(pfn) = cached else { continue };
            let page = self.online_page(pfn, 0)?;
            ensure!(
                page.flags().has(PageFlags::SWAPCACHE) && page.private() == slot.number(),
                "{slot:?} is in {pfn}, and that is {page:?}"
            );
        }
        let known = |slot: &SlotNr| in_use.iter().any(|(known, ..)| known == slot);
        ensure!(all.slots.keys().all(known), "an entry names a free slot");
        let cached = in_use.iter().filter(|(.., cached)| cached.is_some()).count();
        ensure!(
            cached as u64 == u64::from(self.swap_usage().cached),
            "{cached} pages are in the swap cache"
        );
        Ok(())
    }

    /// The lists of every zone hold exactly the pages that say so.
    fn validate_lists_of_pages(&self, listed: u64) -> Result<(), Invalid> {
        let mut found = 0;
        for zone in self.phys.zones() {
            for list in LruList::ALL {
                let (len, mut here) = (zone.lru_len(list), 0);
                self.phys.look_at_lru(zone, list, |pfn| {
                    here += 1;
                    let page = self.online_page(pfn, 0)?;
                    let flags = page.flags();
                    ensure!(
                        flags.has(PageFlags::LRU) && crate::lru::list_of(flags) == list,
                        "{pfn} is on {list:?} and {page:?}"
                    );
                    Ok(())
                })?;
                ensure!(len == here, "{list:?} has {here} pages, and counts {len}");
                found += here;
            }
        }
        ensure!(found == listed, "{found} pages are on lists, {listed} say so");
        Ok(())
    }

    fn validate_table(
        &self,
        space: &Locked<'_>,
        table: Pfn,
        level: Level,
        va: u64,
        tally: &mut Tally,
    ) -> Result<(), Invalid> {
        let (mut used, start) = (0, va);
        for index in 0..512 {
            let entry = Entry::from_bits(self.frames.read(table, index));
            let va = start + index as u64 * level.entry_bytes();
            if entry.is_empty() {
                continue;
            }
            used += 1;
            if level == Level::PAGE || entry.has(Entry::HUGE) || entry.has(Entry::FIXED) {
                self.validate_leaf(space, entry, level, va, tally)?;
            } else {
                ensure!(entry.is_present(), "{va:#x}: {entry:?} in a table of {level:?}");
                tally.tables += 1;
                self.validate_table(space, entry.pfn(), Level(level.0 - 1), va, tally)?;
            }
        }
        let page = self.online_page(table, va)?;
        ensure!(
            page.flags() == PageFlags::TABLE,
            "{table} is a table with {:?}",
            page.flags()
        );
        ensure!(
            page.mapping() == space.id().number(),
            "{table} belongs to space {}",
            page.mapping()
        );
        ensure!(
            page.index() == TablePlace::of(start, level).to_index(),
            "{table} of {level:?} at {start:#x} says that it is elsewhere"
        );
        ensure!(
            page.private() == used,
            "{table} counts {} of {used} entries",
            page.private()
        );
        // Pages of mappings are unmapped without a look at the rest of their table.
        let may_be_empty = level == Level::ROOT || level == Level::PAGE;
        ensure!(used > 0 || may_be_empty, "{table} is an empty table");
        Ok(())
    }

    fn validate_leaf(
        &self,
        space: &Locked<'_>,
        entry: Entry,
        level: Level,
        va: u64,
        tally: &mut Tally,
    ) -> Result<(), Invalid> {
        if entry.has(Entry::FIXED) {
            let known = space.fixed.iter().any(|fixed| fixed.contains(va)) || space.vma_at(va).is_some();
            ensure!(known, "{va:#x}: a fixed mapping nobody asked for");
            let writable = self.is_zero_page(entry) && entry.has(Entry::WRITABLE);
            ensure!(!writable, "{va:#x}: the zero page can be written to");
            return Ok(());
        }
        let vma = space
            .vma_at(va)
            .ok_or_else(|| Invalid(alloc::format!("{va:#x}: mapped without an area")))?;
        if let Some(slot) = entry.swap_slot() {
            tally.swap += 1;
            *tally.slots.entry(slot).or_insert(0) += 1;
            return Ok(());
        }
        if entry.file_index().is_some() {
            let is_there = vma
                .backing
                .file()
                .is_some_and(|area| area.layout == Layout::NonLinear);
            ensure!(is_there, "{va:#x}: {entry:?} in {vma:?}");
            return Ok(());
        }
        let pfn = entry.pfn();
        let page = self.online_page(pfn, va)?;
        if page.flags().has(PageFlags::FILE) {
            return self.validate_file_leaf(vma, entry, (va, pfn, page), tally);
        }
        validate_rights(entry, vma, page, va)?;
        let order = if level == Level::HUGE {
            Order::PAGEBLOCK
        } else {
            Order::ZERO
        };
        ensure!(
            page.state() == PageState::Allocated && page.order() == order,
            "{va:#x}: {pfn} is {page:?}"
        );
        let found = page.anon_place().map(|place| (Some(place.anon_vma), place.va));
        ensure!(
            found == Some((vma.anon_vma, va)),
            "{va:#x} of {vma:?}: {pfn} says {found:?}"
        );
        ensure!(
            page.flags().has(PageFlags::LOCKED) == entry.is_migration(),
            "{va:#x}: {pfn} is {page:?}"
        );
        tally.migrating += u32::from(entry.is_migration());
        tally.rss += u64::from(order.nr_pages());
        *tally.entries.entry(pfn).or_insert(0) += 1;
        Ok(())
    }

    pub(super) fn online_page(&self, pfn: Pfn, va: u64) -> Result<&Page, Invalid> {
        let page = self.phys.page(pfn);
        page.ok_or_else(|| Invalid(alloc::format!("{va:#x}: {pfn} is offline")))
    }

    /// Every page that claims to be mapped or to be a table was met on the walk, as often as it counts: nothing leaked.
    fn validate_totals(&self, all: &Tally) -> Result<(), Invalid> {
        let (mut tables, mut mapped) = (0, 0);
        let (mut anon, mut anon_huge, mut listed, mut files) = (0, 0, 0, 0);
        for zone in self.phys.zones() {
            let areas = zone.areas.lock();
            for pfn in areas.iter().flat_map(|(_, section)| section.range.iter()) {
                let Some(page) = self
                    .phys
                    .page(pfn)
                    .filter(|page| page.state() == PageState::Allocated)
                else {
                    continue;
                };
                tables += u64::from(page.flags().has(PageFlags::TABLE));
                if page.flags().has(PageFlags::HUGETLB) {
                    mapped += usize::from(page.mapcount() > 0);
                    validate_huge(pfn, page, all)?;
                    continue;
                }
                if page.flags().has(PageFlags::FILE) {
                    files += 1;
                } else if !page.flags().has(PageFlags::ANON) {
                    continue;
                }
                ensure!(page.flags().has(PageFlags::LRU), "{pfn} is on no list: {page:?}");
                listed += 1;
                if page.flags().has(PageFlags::ANON) {
                    anon += u64::from(page.order().nr_pages());
                    anon_huge += u64::from(page.order() == Order::PAGEBLOCK);
                }
                mapped += usize::from(page.mapcount() > 0);
                let entries = all.entries.get(&pfn).copied().unwrap_or(0);
                validate_references(pfn, page, entries)?;
            }
        }
        self.validate_lists_of_pages(listed)?;
        ensure!(
            files == all.files,
            "{files} pages say that they are of mappings, {} are",
            all.files
        );
        ensure!(tables == all.tables, "{tables} tables, {} in use", all.tables);
        ensure!(
            mapped == all.entries.len(),
            "{mapped} pages say they are mapped, {} are",
            all.entries.len()
        );
        let stats = self.phys.stats();
        ensure!(
            stats.nr_page_table_pages == all.tables,
            "nr_page_table_pages {}",
            stats.nr_page_table_pages
        );
        ensure!(
            stats.nr_anon_pages == anon,
            "nr_anon_pages {} is {anon}",
            stats.nr_anon_pages
        );
        ensure!(
            stats.nr_mapped == all.mapped,
            "nr_mapped {} is {}",
            stats.nr_mapped,
            all.mapped
        );
        let counted = stats.nr_anon_transparent_hugepages;
        ensure!(
            counted == anon_huge,
            "nr_anon_transparent_hugepages {counted} is {anon_huge}"
        );
        Ok(())
    }
}

/// A page of the pool, checked with the pool unless a program has it.
fn validate_huge(pfn: Pfn, page: &Page, all: &Tally) -> Result<(), Invalid> {
    if !page.flags().has(PageFlags::ANON) {
        return Ok(());
    }
    validate_references(pfn, page, all.entries.get(&pfn).copied().unwrap_or(0))
}

/// An entry never permits more than its area, and permits writing only where it is the page's only entry.
fn validate_rights(entry: Entry, vma: &Vma, page: &Page, va: u64) -> Result<(), Invalid> {
    let rights = Entry::USER | Entry::NO_EXECUTE;
    let asked = vma.prot.leaf_bits();
    ensure!(
        entry.bits() & rights == asked & rights
            && (!entry.has(Entry::WRITABLE) || asked & Entry::WRITABLE != 0),
        "{va:#x}: {entry:?} with {:?}",
        vma.prot
    );
    ensure!(
        !entry.has(Entry::WRITABLE) || page.mapcount() == 1 && !page.flags().has(PageFlags::SWAPCACHE),
        "{va:#x}: {entry:?} is writable and {page:?} is shared"
    );
    Ok(())
}

/// A page has a reference for each entry, one for the swap cache, one for who has its lock or writes it, and those of its pins, which are checked with the pins.
fn validate_references(pfn: Pfn, page: &Page, entries: u32) -> Result<(), Invalid> {
    let flags = page.flags();
    let one = |flag| u32::from(flags.has(flag));
    // The tree of the swap cache or of the mapping, and what else there may be.
    let cached = one(PageFlags::SWAPCACHE)
        + one(PageFlags::WRITEBACK)
        + one(PageFlags::FILE)
        + one(PageFlags::PRIVATE);
    let known = entries + one(PageFlags::LOCKED) + cached;
    ensure!(
        page.mapcount() == entries && (page.count() == known || flags.has(PageFlags::PINNED)),
        "{pfn} with {entries} entries is {page:?}"
    );
    Ok(())
}

fn validate_areas(space: &Locked<'_>) -> Result<(), Invalid> {
    let mut previous: Option<&Vma> = None;
    let (mut anon_vmas, mut mappings) = (BTreeMap::new(), BTreeMap::new());
    for (&start, vma) in &space.vmas {
        ensure!(
            start == vma.range.start() && vma.range.bytes() > 0,
            "area {} filed at {start:#x}",
            vma.range
        );
        let clear = previous.is_none_or(|previous| previous.range.end() <= start);
        ensure!(clear, "area {} overlaps the one before", vma.range);
        let kernel = space
            .fixed
            .iter()
            .any(|fixed| fixed.intersection(vma.range).is_some());
        ensure!(!kernel, "area {} overlaps the kernel's", vma.range);
        if let Some(anon_vma) = vma.anon_vma {
            *anon_vmas.entry(anon_vma).or_insert(0) += 1;
        }
        if let Some(area) = vma.backing.file() {
            let starts: &mut BTreeSet<u64> = mappings.entry(area.mapping).or_default();
            starts.insert(start);
        }
        previous = Some(vma);
    }
    ensure!(
        mappings == space.mappings,
        "space {}: lists areas of mappings {:?}, has {mappings:?}",
        space.id().number(),
        space.mappings
    );
    ensure!(
        anon_vmas == space.anon_vmas,
        "space {}: counts {:?} areas with anon_vmas, has {anon_vmas:?}",
        space.id().number(),
        space.anon_vmas
    );
    Ok(())
}
