//! Which block to give up first.

use alloc::vec::Vec;

use crate::blocks::{BlockIndex, Slot};
use crate::phys::PhysicalMemory;
use crate::section::Admission;
use crate::zone::ZoneKind;

/// A block that could be given up, and what that costs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BlockCost {
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
}

impl PhysicalMemory {
    /// Zone and fill of a block, or `None` unless it is online or going offline.
    pub fn block_usage(&self, block: BlockIndex) -> Option<BlockUsage> {
        let section = self.map.section(self.region.slot(block)?.section()?);
        let (free_pages, used_pages) = (section.free_pages, section.used_pages());
        Some(BlockUsage {
            zone: section.zone,
            free_pages,
            used_pages,
        })
    }

    /// Free frames on blocks that are going offline.
    pub(crate) fn isolated_pages(&self) -> u64 {
        let sections = self.map.iter().map(|(_, section)| section);
        let isolated = sections.filter(|section| section.admission == Admission::Isolated);
        isolated.map(|section| u64::from(section.free_pages)).sum()
    }

    /// Online removable blocks, the cheapest first; blocks with pinned pages are left out.
    ///
    /// Among equals the highest address comes first, so that what is unplugged in one go tends to be neighbours,
    /// which the device joins into one request, and the low end of the region stays dense.
    pub fn rank_blocks(&self) -> Vec<BlockCost> {
        let mut ranking = Vec::new();
        self.rank_blocks_into(&mut ranking);
        ranking
    }

    /// As [`PhysicalMemory::rank_blocks`], into a vector that is emptied first and can be kept.
    pub fn rank_blocks_into(&self, ranking: &mut Vec<BlockCost>) {
        ranking.clear();
        ranking.extend((0u32..).zip(&self.region.slots).filter_map(|(index, &slot)| {
            let Slot::Online(id) = slot else { return None };
            let section = self.map.section(id);
            let removable = section.zone == ZoneKind::Movable && section.pinned_chunks == 0;
            removable.then(|| BlockCost {
                used_pages: section.used_pages(),
                block: BlockIndex(index),
            })
        }));
        ranking.sort_unstable_by_key(|cost| (cost.used_pages, core::cmp::Reverse(cost.block)));
    }
}
