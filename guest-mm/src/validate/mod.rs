//! `validate()`: everything that must always hold, derived again from scratch.
//!
//! Slow on purpose: every descriptor is looked at. For tests, and for a debugging command.

mod section;
mod space;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::blocks::Slot;
use crate::fill::{FillLinks, FillList};
use crate::pfn::PAGEBLOCK_NR_PAGES;
use crate::phys::PhysicalMemory;
use crate::section::{Admission, FreeLinks, SectionHome, WholeLinks};
use crate::zone::ZoneKind;

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

impl PhysicalMemory {
    /// Checks every section, zone and block.
    ///
    /// # Errors
    /// The first broken invariant found.
    pub fn validate(&mut self) -> Result<(), Invalid> {
        for (id, section) in self.map.iter() {
            section.validate()?;
            for pageblock in (0..section.range.nr_pages()).step_by(PAGEBLOCK_NR_PAGES as usize) {
                let pfn = section.pfn(pageblock);
                ensure!(
                    self.map.locate(pfn) == Some((id, pageblock)),
                    "{pfn} is found in another section"
                );
            }
        }
        for kind in ZoneKind::ALL {
            self.validate_zone(kind)?;
        }
        self.validate_pins()?;
        self.validate_blocks()
    }

    fn validate_zone(&mut self, kind: ZoneKind) -> Result<(), Invalid> {
        let (mut present, mut managed, mut free) = (0, 0, 0);
        let (mut first, mut end) = (u32::MAX, 0);
        let (mut with_free, mut with_whole) = (Vec::new(), Vec::new());
        for (id, section) in self.map.iter().filter(|(_, section)| section.zone == kind) {
            present += u64::from(section.present_pages);
            managed += u64::from(section.managed_pages);
            first = first.min(section.range.start().number());
            end = end.max(section.range.end().number());
            if section.admission == Admission::Open {
                free += u64::from(section.free_pages);
                with_free.extend(section.free_bucket().map(|bucket| (bucket, id.0)));
                with_whole.extend(section.whole_bucket().map(|bucket| (bucket, id.0)));
            }
        }
        let zone = &self.zones[kind.index()];
        let name = kind.name();
        let counters = zone.counters();
        ensure!(
            counters.present_pages == present,
            "{name} present {} is {present}",
            counters.present_pages
        );
        ensure!(
            counters.managed_pages == managed,
            "{name} managed {} is {managed}",
            counters.managed_pages
        );
        ensure!(
            counters.free_pages == free,
            "{name} free {} is {free}",
            counters.free_pages
        );
        let spanned = u64::from(end.saturating_sub(first));
        ensure!(
            counters.spanned_pages == spanned,
            "{name} spanned {} is {spanned}",
            counters.spanned_pages
        );
        let listed = members(&zone.with_free, &FreeLinks(&mut self.map.sections));
        ensure!(
            same(listed, with_free),
            "{name}: list of sections with free frames is wrong"
        );
        let listed = members(&zone.with_whole, &WholeLinks(&mut self.map.sections));
        ensure!(
            same(listed, with_whole),
            "{name}: list of sections with free pageblocks is wrong"
        );
        Ok(())
    }

    fn validate_pins(&self) -> Result<(), Invalid> {
        let mut heads: Vec<_> = self.pins.held.iter().map(|&(pfn, _)| pfn).collect();
        heads.sort_unstable();
        heads.dedup();
        let counted: usize = self
            .map
            .iter()
            .map(|(_, section)| section.pinned_chunks as usize)
            .sum();
        ensure!(
            heads.len() == counted,
            "{} pinned chunks, {counted} counted",
            heads.len()
        );
        for pfn in heads {
            let pins = self.pins.held.iter().filter(|(held, _)| *held == pfn).count();
            let page = self.page(pfn);
            let expected = page.map(|page| (page.mapcount() as usize) + pins);
            ensure!(
                page.map(|page| page.count() as usize) == expected,
                "{pfn} has {page:?} with {pins} pins"
            );
        }
        Ok(())
    }

    fn validate_blocks(&self) -> Result<(), Invalid> {
        let mut blocks = 0;
        for (index, _) in self.region.iter() {
            let slot = self.region.slot(index).unwrap_or(Slot::Unplugged);
            let range = self.region.range_of(index);
            match slot.section() {
                Some(id) => {
                    let section = self.map.section(id);
                    blocks += 1;
                    ensure!(
                        section.range == range,
                        "block {} has section of {}",
                        index.0,
                        section.range
                    );
                    ensure!(
                        section.home == SectionHome::Block(index),
                        "block {} is not home",
                        index.0
                    );
                    let isolated = matches!(slot, Slot::GoingOffline(_));
                    let admission = section.admission == Admission::Isolated;
                    ensure!(
                        isolated == admission,
                        "block {} isolated in one place only",
                        index.0
                    );
                }
                None => ensure!(!self.map.is_occupied(range), "block {} has descriptors", index.0),
            }
        }
        let sections = self
            .map
            .iter()
            .filter(|(_, s)| s.home != SectionHome::Boot)
            .count();
        ensure!(
            sections == blocks,
            "{sections} block sections for {blocks} blocks"
        );
        Ok(())
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
