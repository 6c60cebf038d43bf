//! Which block to give up first.

use alloc::vec::Vec;

use crate::blocks::{BlockIndex, Slot};
use crate::phys::PhysicalMemory;
use crate::section::Admission;
use crate::zone::ZoneKind;

/// A block that could be given up, and what that costs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BlockCost {
    /// Pages that transfers have pinned: their end must be awaited.
    pub pinned_chunks: u32,
    /// Frames that must be moved or freed first.
    pub used_pages: u32,
    /// The block.
    pub block: BlockIndex,
}

/// What a block with descriptors is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockUsage {
    /// The zone that it belongs to.
    pub zone: ZoneKind,
    /// Free frames, whether they can be had or not.
    pub free_pages: u32,
    /// Frames in use.
    pub used_pages: u32,
    /// Frames that hold the block's own descriptors; 0 if those are in boot memory.
    pub memmap_pages: u32,
}

impl PhysicalMemory<'_> {
    /// Zone and fill of a block, or `None` unless it is online or going offline. What CPUs keep at hand is free.
    pub fn block_usage(&self, block: BlockIndex) -> Option<BlockUsage> {
        let region = self.region.lock();
        let tag = region.slot(block)?.section()?;
        let range = region.range_of(block);
        let zone = self.zone_at(tag.zone());
        let areas = zone.areas.lock();
        let section = areas.section(tag.section())?;
        let mut cached_pages = 0;
        for (_, lists) in zone.lists().iter() {
            lists.look(|pfn, order| cached_pages += u32::from(range.contains(pfn)) * order.nr_pages());
        }
        Some(BlockUsage {
            zone: zone.kind(),
            free_pages: section.free_pages + cached_pages,
            used_pages: section.used_pages().saturating_sub(cached_pages),
            memmap_pages: section.memmap_pages,
        })
    }

    /// Free frames on blocks that are going offline.
    pub(crate) fn isolated_pages(&self) -> u64 {
        let isolated_in = |zone: &crate::Zone| {
            let areas = zone.areas.lock();
            let sections = areas.iter().map(|(_, section)| section);
            let isolated = sections.filter(|section| section.admission == Admission::Isolated);
            isolated.map(|section| u64::from(section.free_pages)).sum::<u64>()
        };
        self.zones().map(isolated_in).sum()
    }

    /// Online removable blocks, the cheapest first; those last where a transfer must end first, and without those that have pages which are pinned
    /// for long.
    ///
    /// Among equals the highest address comes first, so that what is unplugged in one go tends to be neighbours,
    /// which the device joins into one request, and the low end of the region stays dense.
    pub fn rank_blocks(&self) -> Vec<BlockCost> {
        let mut ranking = Vec::new();
        self.rank_blocks_into(&mut ranking);
        ranking
    }

    /// The block to empty next, so that what is in use gathers in as few blocks as it can: the emptiest of those that have pages, if the
    /// others that have some have room for them. Blocks in `tried` are left out; `None` when there is nothing to gain.
    pub fn next_to_pack(&self, tried: &[BlockIndex]) -> Option<BlockCost> {
        let mut used = self.rank_blocks();
        used.retain(|cost| cost.used_pages > 0);
        let next = *used.iter().find(|cost| !tried.contains(&cost.block))?;
        let others = used.iter().filter(|cost| cost.block != next.block);
        let room = others.filter_map(|cost| self.block_usage(cost.block));
        let room: u64 = room.map(|usage| u64::from(usage.free_pages)).sum();
        (room >= u64::from(next.used_pages)).then_some(next)
    }

    /// Online blocks of the kernel's zone, the cheapest first. They can go if whatever the kernel has there can be moved, which shows when it is
    /// tried.
    pub fn rank_kernel_blocks(&self) -> Vec<BlockCost> {
        let mut ranking = Vec::new();
        self.rank_into(ZoneKind::Normal, &mut ranking);
        ranking
    }

    /// As [`PhysicalMemory::rank_blocks`], into a vector that is emptied first and can be kept.
    pub fn rank_blocks_into(&self, ranking: &mut Vec<BlockCost>) {
        self.rank_into(ZoneKind::Movable, ranking);
    }

    fn rank_into(&self, kind: ZoneKind, ranking: &mut Vec<BlockCost>) {
        ranking.clear();
        // What CPUs keep at hand would count as in use.
        for zone in self.zones().filter(|zone| zone.kind() == kind) {
            zone.drain(&self.table, |_| true);
        }
        let region = self.region.lock();
        ranking.extend(region.iter().filter_map(|(block, slot)| {
            let Slot::Online(tag) = slot else { return None };
            let zone = self.zone_at(tag.zone());
            let areas = zone.areas.lock();
            let section = areas.section(tag.section())?;
            let removable = zone.kind() == kind && section.longterm_chunks == 0;
            let used_pages = section.used_pages();
            let pinned_chunks = section.pinned_chunks;
            removable.then_some(BlockCost {
                pinned_chunks,
                used_pages,
                block,
            })
        }));
        drop(region);
        ranking.sort_unstable_by_key(|cost| {
            let must_wait = cost.pinned_chunks > 0;
            (must_wait, cost.used_pages, core::cmp::Reverse(cost.block))
        });
    }
}
