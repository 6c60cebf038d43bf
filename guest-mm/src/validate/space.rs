//! Address spaces: every table and every mapping agrees with the descriptors, in both directions.

use crate::frames::{Frames, Mmu};
use crate::mm::{AddressSpace, Mm, Vma};
use crate::page::{PageFlags, PageState};
use crate::pagetable::{Entry, Level};
use crate::pfn::{Order, Pfn};
use crate::validate::{Invalid, ensure};

/// What was found while walking.
#[derive(Default)]
struct Tally {
    tables: u64,
    small: u64,
    huge: u64,
    migrating: u32,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Checks physical memory and all address spaces.
    ///
    /// # Errors
    /// The first broken invariant found.
    pub fn validate(&mut self) -> Result<(), Invalid> {
        self.phys.validate()?;
        let mut all = Tally::default();
        for space in self.spaces.iter() {
            validate_areas(space)?;
            let mut tally = Tally {
                tables: 1,
                ..Tally::default()
            };
            self.validate_table(space, space.table.root, Level::ROOT, 0, &mut tally)?;
            let id = space.table.space.number();
            let rss = tally.small + tally.huge * u64::from(Order::PAGEBLOCK.nr_pages());
            ensure!(
                space.rss_pages == rss,
                "space {id}: rss {} is {rss}",
                space.rss_pages
            );
            ensure!(
                space.migrating == tally.migrating,
                "space {id}: {} migrating",
                tally.migrating
            );
            all.tables += tally.tables;
            all.small += tally.small;
            all.huge += tally.huge;
        }
        self.validate_totals(&all)
    }

    fn validate_table(
        &self,
        space: &AddressSpace,
        table: Pfn,
        level: Level,
        va: u64,
        tally: &mut Tally,
    ) -> Result<(), Invalid> {
        let mut used = 0;
        for index in 0..512 {
            let entry = Entry::from_bits(self.frames.read(table, index));
            let va = va + index as u64 * level.entry_bytes();
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
        let page = self
            .phys
            .page(table)
            .ok_or_else(|| Invalid(alloc::format!("{table}: no memory")))?;
        ensure!(
            page.flags() == PageFlags::TABLE,
            "{table} is a table with {:?}",
            page.flags()
        );
        ensure!(
            page.mapping() == space.table.space.number(),
            "{table} belongs to space {}",
            page.mapping()
        );
        ensure!(
            page.private() == used,
            "{table} counts {} of {used} entries",
            page.private()
        );
        ensure!(used > 0 || level == Level::ROOT, "{table} is an empty table");
        Ok(())
    }

    fn validate_leaf(
        &self,
        space: &AddressSpace,
        entry: Entry,
        level: Level,
        va: u64,
        tally: &mut Tally,
    ) -> Result<(), Invalid> {
        if entry.has(Entry::FIXED) {
            let known = space.fixed.iter().any(|fixed| fixed.contains(va)) || space.vma_at(va).is_some();
            ensure!(known, "{va:#x}: a fixed mapping nobody asked for");
            return Ok(());
        }
        let pfn = entry.pfn();
        let vma = space
            .vma_at(va)
            .ok_or_else(|| Invalid(alloc::format!("{va:#x}: mapped without an area")))?;
        let rights = Entry::USER | Entry::WRITABLE | Entry::NO_EXECUTE;
        ensure!(
            entry.bits() & rights == vma.prot.leaf_bits() & rights,
            "{va:#x}: {entry:?} with {:?}",
            vma.prot
        );
        let page = self
            .phys
            .page(pfn)
            .ok_or_else(|| Invalid(alloc::format!("{va:#x}: {pfn} is offline")))?;
        let order = if level == Level::HUGE {
            Order::PAGEBLOCK
        } else {
            Order::ZERO
        };
        ensure!(
            page.state() == PageState::Allocated,
            "{va:#x}: {pfn} is {:?}",
            page.state()
        );
        ensure!(
            page.order() == order && page.mapcount() == 1,
            "{va:#x}: {pfn} is {page:?}"
        );
        ensure!(
            page.anon_mapping() == Some((space.table.space, va)),
            "{va:#x}: {pfn} says {:?}",
            page.anon_mapping()
        );
        ensure!(
            page.flags().has(PageFlags::LOCKED) == entry.is_migration(),
            "{va:#x}: {pfn} is {page:?}"
        );
        tally.migrating += u32::from(entry.is_migration());
        if order == Order::ZERO {
            tally.small += 1;
        } else {
            tally.huge += 1;
        }
        Ok(())
    }

    /// Every page that claims to be mapped or to be a table was met on the walk: nothing leaked.
    fn validate_totals(&self, all: &Tally) -> Result<(), Invalid> {
        let mut found = Tally::default();
        let (mut anon, mut anon_huge) = (0, 0);
        for zone in self.phys.zones() {
            let areas = zone.areas.lock();
            let frames = areas.iter().flat_map(|(_, section)| section.range.iter());
            for page in frames.filter_map(|pfn| self.phys.page(pfn)) {
                if page.state() != PageState::Allocated {
                    continue;
                }
                found.tables += u64::from(page.flags().has(PageFlags::TABLE));
                if !page.flags().has(PageFlags::ANON) {
                    continue;
                }
                let huge = page.order() == Order::PAGEBLOCK;
                anon += u64::from(page.order().nr_pages());
                anon_huge += u64::from(huge);
                found.huge += u64::from(huge && page.mapcount() == 1);
                found.small += u64::from(!huge && page.mapcount() == 1);
            }
        }
        ensure!(
            found.tables == all.tables,
            "{} tables, {} in use",
            found.tables,
            all.tables
        );
        ensure!(
            found.small == all.small,
            "{} small pages, {} mapped",
            found.small,
            all.small
        );
        ensure!(
            found.huge == all.huge,
            "{} huge pages, {} mapped",
            found.huge,
            all.huge
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
        let counted = stats.nr_anon_transparent_hugepages;
        ensure!(
            counted == anon_huge,
            "nr_anon_transparent_hugepages {counted} is {anon_huge}"
        );
        Ok(())
    }
}

fn validate_areas(space: &AddressSpace) -> Result<(), Invalid> {
    let mut previous: Option<&Vma> = None;
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
        previous = Some(vma);
    }
    Ok(())
}
