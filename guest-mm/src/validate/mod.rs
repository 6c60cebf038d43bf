//! `validate()`: everything that must always hold, derived again from scratch.
//!
//! Slow on purpose: every descriptor is looked at. For tests, and for a debugging command.

mod mappings;
#[cfg(test)]
mod rest;
mod section;
mod space;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::blocks::Slot;
use crate::fill::{FillLinks, FillList};
use crate::node::ZoneIndex;
use crate::page::{Head, PageFlags};
use crate::pfn::{Order, Pfn, PfnRange};
use crate::phys::{PhysicalMemory, PinTerm};
use crate::section::{Admission, FreeLinks, SectionHome, WholeLinks};
use crate::zone::{Zone, ZoneCounters, ZoneKind};

/// A broken invariant, in words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid(pub String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Invalid {}

/// Fails with a formatted message unless the condition holds.
macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err($crate::validate::Invalid(alloc::format!($($message)+)));
        }
    };
}
pub(crate) use ensure;

impl PhysicalMemory<'_> {
    /// Checks every section, zone, list and block. Nobody else may use the memory meanwhile.
    ///
    /// # Errors
    /// The first broken invariant found.
    pub fn validate(&self) -> Result<(), Invalid> {
        for zone in self.zones() {
            self.validate_zone(zone)?;
        }
        self.validate_first_zones()?;
        self.validate_pins()?;
        self.validate_huge_pool()?;
        self.validate_poisoned()?;
        self.validate_blocks()
    }

    /// Frames that have failed say so, each is listed once, and none of them is in a block that is unplugged.
    fn validate_poisoned(&self) -> Result<(), Invalid> {
        let listed = self.poisoned_frames();
        ensure!(
            listed.windows(2).all(|two| two[0] != two[1]),
            "failed twice: {listed:?}"
        );
        for pfn in listed {
            let state = self.page(pfn).map(crate::Page::state);
            ensure!(
                state.is_none_or(|state| state == crate::PageState::Poisoned),
                "{pfn} has failed, and is {state:?}"
            );
            let region = self.hotplug_region();
            let block = region.block_at(pfn).and_then(|block| region.state(block));
            ensure!(
                block != Some(crate::BlockState::Unplugged),
                "{pfn} has failed, and is not there"
            );
        }
        Ok(())
    }

    /// Every page that says so is of the pool, and those that nobody has are free there.
    fn validate_huge_pool(&self) -> Result<(), Invalid> {
        let (mut total, mut unused) = (0, Vec::new());
        for zone in self.zones() {
            let areas = zone.areas.lock();
            for pfn in areas.iter().flat_map(|(_, section)| section.range.iter()) {
                let flags = self.table.page(pfn).flags();
                total += u64::from(flags.has(PageFlags::HUGETLB));
                if flags == PageFlags::HUGETLB {
                    unused.push(pfn);
                }
            }
        }
        let mut free = Vec::new();
        self.look_at_free_huge(|pfn| free.push(pfn));
        let stat = self.huge_pool();
        ensure!(
            stat.total == total && stat.reserved <= stat.free && same(free.clone(), unused.clone()),
            "huge pages: {stat:?}, {total} there are, free are {free:?}, unused {unused:?}"
        );
        Ok(())
    }

    fn validate_zone(&self, zone: &Zone) -> Result<(), Invalid> {
        let name = alloc::format!("node {} zone {}", zone.node(), zone.kind().name());
        let cached = self.validate_lists(zone)?;
        let mut areas = zone.areas.lock();
        let mut sums = ZoneCounters::default();
        let mut span: Option<PfnRange> = None;
        let mut seen = 0;
        let (mut with_free, mut with_whole) = (Vec::new(), Vec::new());
        for (number, section) in areas.iter() {
            seen += section.validate(&self.table, zone, number, &cached)?;
            sums.present_pages += u64::from(section.present_pages);
            sums.managed_pages += u64::from(section.managed_pages);
            sums.free_pages += u64::from(section.open_pages());
            span = Some(span.map_or(section.range, |span| span.hull(section.range)));
            if section.admission == Admission::Open {
                with_free.extend(section.free_bucket().map(|bucket| (bucket, number)));
                with_whole.extend(section.whole_bucket().map(|bucket| (bucket, number)));
            }
        }
        ensure!(
            seen == cached.len(),
            "{name}: {} chunks on lists, {seen} say so",
            cached.len()
        );
        sums.spanned_pages = u64::from(span.unwrap_or_default().nr_pages());
        sums.cached_pages = cached.iter().map(|(_, order)| u64::from(order.nr_pages())).sum();
        ensure!(
            zone.counters() == sums,
            "{name}: {:?} is {sums:?}",
            zone.counters()
        );
        ensure!(
            zone.span() == span.unwrap_or_default() && areas.free_pages() == sums.free_pages,
            "{name}: spans {}, {} free",
            zone.span(),
            areas.free_pages()
        );
        let (free_list, whole_list, sections) = areas.links();
        ensure!(
            same(members(free_list, &FreeLinks(sections)), with_free),
            "{name}: list of sections with free frames is wrong"
        );
        ensure!(
            same(members(whole_list, &WholeLinks(sections)), with_whole),
            "{name}: list of sections with free pageblocks is wrong"
        );
        Ok(())
    }

    /// Chunks on the lists of CPUs, sorted: each once, in this zone, and its descriptor says so.
    fn validate_lists(&self, zone: &Zone) -> Result<Vec<(Pfn, Order)>, Invalid> {
        let mut cached = Vec::new();
        for (_, lists) in zone.lists().iter() {
            lists.look(|pfn, order| cached.push((pfn, order)));
        }
        cached.sort_unstable();
        for &(pfn, order) in &cached {
            let found = self.table.find(pfn);
            let (page, tag) = found.ok_or_else(|| Invalid(alloc::format!("{pfn}: offline and on a list")))?;
            ensure!(
                page.head() == Head::cached(order),
                "{pfn} is on a list, and {page:?}"
            );
            ensure!(
                self.zone_at(tag.zone()).is_same(zone),
                "{pfn} is on a list of another zone"
            );
        }
        ensure!(
            cached.windows(2).all(|two| two[0].0 != two[1].0),
            "a frame is on two lists"
        );
        Ok(cached)
    }

    fn validate_first_zones(&self) -> Result<(), Invalid> {
        for zone in self.zones() {
            let is_listed = self
                .zones_with_memory()
                .has(ZoneIndex::of(zone.node(), zone.kind()));
            ensure!(
                is_listed == zone.is_populated(),
                "node {} zone {} has {} pages, and its place in zonelists is {is_listed}",
                zone.node(),
                zone.kind().name(),
                zone.counters().present_pages
            );
        }
        for node in self.topology().nodes() {
            for highest in ZoneKind::ALL {
                let mut list = self.zonelist(node);
                let first = list.find(|zone| zone.kind() <= highest);
                let known = self.first_zone(node, highest);
                ensure!(
                    first.is_none_or(|first| first.is_same(known)),
                    "node {node}: requests up to {} look at node {} zone {} first",
                    highest.name(),
                    known.node(),
                    known.kind().name()
                );
            }
        }
        Ok(())
    }

    fn validate_pins(&self) -> Result<(), Invalid> {
        let pins = self.pins.lock();
        let mut heads: Vec<_> = pins.held.iter().map(|held| held.head).collect();
        heads.sort_unstable();
        heads.dedup();
        let is_longterm = |head: &&Pfn| pins.by(**head).is_some_and(|by| by.term == PinTerm::Longterm);
        let found = (heads.len(), heads.iter().filter(is_longterm).count());
        let mut counted = (0, 0);
        for zone in self.zones() {
            for (_, section) in zone.areas.lock().iter() {
                counted.0 += section.pinned_chunks as usize;
                counted.1 += section.longterm_chunks as usize;
            }
        }
        ensure!(
            found == counted,
            "pinned chunks, and those that are for long, are {found:?}, not {counted:?}"
        );
        for pfn in heads {
            let held = pins.held.iter().filter(|held| held.head == pfn).count();
            let page = self.page(pfn);
            let expected = page.map(|page| (page.mapcount() as usize) + held);
            ensure!(
                page.map(|page| page.count() as usize) == expected,
                "{pfn} has {page:?} with {held} pins"
            );
        }
        Ok(())
    }

    fn validate_blocks(&self) -> Result<(), Invalid> {
        let region = self.region.lock();
        let mut blocks = 0;
        for (index, slot) in region.iter() {
            let range = region.range_of(index);
            let Some(tag) = slot.section() else {
                let occupied = self.table.tags.is_occupied(range);
                ensure!(!occupied, "block {} has a section", index.0);
                continue;
            };
            blocks += 1;
            let areas = self.zone_at(tag.zone()).areas.lock();
            let section = areas.section(tag.section());
            let isolated = matches!(slot, Slot::GoingOffline(_));
            let fits = section.is_some_and(|section| {
                section.range == range
                    && section.home == SectionHome::Block(index)
                    && (section.admission == Admission::Isolated) == isolated
            });
            ensure!(fits, "block {} is {slot:?}, and {section:?}", index.0);
        }
        let away = |zone: &Zone| {
            let areas = zone.areas.lock();
            areas
                .iter()
                .filter(|(_, section)| section.home != SectionHome::Boot)
                .count()
        };
        let own = |zone: &Zone| {
            let areas = zone.areas.lock();
            let sections = areas.iter().map(|(_, section)| u64::from(section.memmap_pages));
            sections.sum::<u64>()
        };
        let memmap_pages: u64 = self.zones().map(own).sum();
        let counted = self.counts.nr_memmap_pages.value();
        ensure!(
            memmap_pages == counted,
            "{memmap_pages} frames of blocks hold descriptors, {counted} counted"
        );
        let sections: usize = self.zones().map(away).sum();
        ensure!(
            sections == blocks,
            "{sections} block sections for {blocks} blocks"
        );
        Ok(())
    }
}

impl Zone {
    /// Whether it is the same zone.
    fn is_same(&self, other: &Self) -> bool {
        core::ptr::eq(self, other)
    }
}

/// Items of a list with their buckets.
pub(crate) fn members(list: &FillList, links: &impl FillLinks) -> Vec<(u8, u32)> {
    let mut found = Vec::new();
    let mut at = list.fullest();
    while let Some(item) = at {
        found.extend(links.link(item).bucket().map(|bucket| (bucket, item)));
        at = list.next(links, item);
    }
    found
}

/// Whether two lists have the same members, each once.
pub(crate) fn same<T: Ord>(mut a: Vec<T>, mut b: Vec<T>) -> bool {
    a.sort_unstable();
    b.sort_unstable();
    a == b
}
