//! Free frames that stop being memory to give out, and the list of them.

use alloc::vec::Vec;

use crate::areas::FreeAreas;
use crate::blocks::BlockIndex;
use crate::compact::Source;
use crate::mem_map::{Tag, Tags};
use crate::memory_failure::MemoryFailureError;
use crate::page::{Head, KernelUse, PageState};
use crate::pfn::{PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::phys::PhysicalMemory;
use crate::section::Section;

impl PhysicalMemory<'_> {
    /// The frames whose memory has failed, lowest first.
    pub fn poisoned_frames(&self) -> Vec<Pfn> {
        let mut frames = self.poisoned.lock().clone();
        frames.sort_unstable();
        frames
    }

    /// How many frames of a block have failed; 0 if there is no such block.
    pub fn poisoned_pages(&self, block: BlockIndex) -> u32 {
        let range = self.hotplug_region().block_range(block).unwrap_or_default();
        let frames = self.poisoned.lock();
        let failed = frames.iter().filter(|pfn| range.contains(**pfn)).count();
        u32::try_from(failed).expect("a block's frames are counted in 32 bits")
    }

    /// Fails unless the frame is in online memory that has not failed.
    pub(super) fn check_suspect(&self, pfn: Pfn) -> Result<Tag, MemoryFailureError> {
        let found = self.table.find(pfn);
        let (page, tag) = found.ok_or(MemoryFailureError::NoMemoryThere(pfn))?;
        match page.state() {
            PageState::Poisoned => Err(MemoryFailureError::AlreadyPoisoned(pfn)),
            PageState::Hole => Err(MemoryFailureError::NoMemoryThere(pfn)),
            PageState::Reserved => Err(MemoryFailureError::Unmovable {
                pfn,
                used_for: KernelUse::Other,
            }),
            PageState::Blank | PageState::Cached | PageState::Allocated => Ok(tag),
        }
    }

    /// Takes a frame out of use if it is free. Whether it was.
    pub(super) fn retire_free(&self, tag: Tag, pfn: Pfn) -> bool {
        let zone = self.zone_at(tag.zone());
        zone.drain(&self.table, |cached| {
            // A chunk of a pageblock at most.
            cached.align_down(crate::Order::PAGEBLOCK) == pfn.align_down(crate::Order::PAGEBLOCK)
        });
        let mut poisoned = self.poisoned.lock();
        poisoned.reserve(1);
        let mut areas = zone.areas.lock();
        if !areas.retire(&self.table.tags, tag, pfn) {
            return false;
        }
        self.table.page(pfn).set_head(Head::bare(PageState::Poisoned));
        zone.lose_one(&areas);
        poisoned.push(pfn);
        true
    }

    /// Withdraws the pageblock of a frame, so that what leaves the frame is not given out again at once.
    pub(super) fn withdraw_around(&self, tag: Tag, pfn: Pfn) -> Result<Source<'_>, MemoryFailureError> {
        let source = self.withdraw_at(self.zone_at(tag.zone()), tag, pfn);
        source.ok_or(MemoryFailureError::Busy(pfn))
    }

    /// Frames of a block that is just coming into use and that have failed before are not given out.
    pub(crate) fn retire_known(
        &self,
        areas: &mut FreeAreas,
        (tag, range): (Tag, PfnRange),
        poisoned: &[Pfn],
    ) {
        for &pfn in poisoned.iter().filter(|pfn| range.contains(**pfn)) {
            let retired = areas.retire(&self.table.tags, tag, pfn);
            debug_assert!(retired);
            self.table.page(pfn).set_head(Head::bare(PageState::Poisoned));
        }
    }
}

impl FreeAreas {
    /// Takes a frame out of its free chunk for good, if it is in one.
    fn retire(&mut self, tags: &Tags, tag: Tag, pfn: Pfn) -> bool {
        let section = self.section_mut(tag.section());
        let Some(section) = section.filter(|section| section.range.contains(pfn)) else {
            return false;
        };
        let before = section.open_pages();
        let retired = section.retire(tags, pfn - section.range.start());
        let now = section.open_pages();
        self.free_pages -= u64::from(before - now);
        self.relist(tag.section());
        retired
    }
}

impl Section {
    fn retire(&mut self, tags: &Tags, offset: u32) -> bool {
        let (pageblock, frame) = (offset / PAGEBLOCK_NR_PAGES, offset % PAGEBLOCK_NR_PAGES);
        if !self.pageblocks[pageblock as usize].is_free(frame) {
            return false;
        }
        self.break_whole(pageblock);
        self.pageblocks[pageblock as usize].take_at(frame);
        self.free_pages -= 1;
        self.managed_pages -= 1;
        self.relink(tags, pageblock);
        true
    }
}
