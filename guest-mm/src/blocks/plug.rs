//! Blocks on their way in: asked for, plugged, online.

use alloc::boxed::Box;
use core::fmt;

use crate::blocks::{BlockIndex, HotplugRegion, Slot};
use crate::page::Page;
use crate::pfn::Order;
use crate::phys::{AddError, Descriptors, PhysicalMemory};
use crate::section::{Section, SectionHome};
use crate::zone::ZoneKind;

/// Why a block did not go online, with the descriptors that were meant for it.
#[derive(Debug)]
pub struct OnlineError {
    /// The reason.
    pub error: AddError,
    /// Unused.
    pub descriptors: Descriptors,
}

impl fmt::Display for OnlineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block not online: {}", self.error)
    }
}

impl core::error::Error for OnlineError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.error)
    }
}

impl PhysicalMemory {
    /// Where blocks are, and their states.
    pub fn hotplug_region(&self) -> &HotplugRegion {
        &self.region
    }

    /// The block is about to be asked for: unplugged -> plugging.
    ///
    /// # Errors
    /// When there is no such block or it is not unplugged.
    pub fn begin_plug(&mut self, block: BlockIndex) -> Result<(), AddError> {
        self.step(block, Slot::Unplugged, Slot::Plugging)
    }

    /// The device refused: plugging -> unplugged.
    ///
    /// # Errors
    /// When there is no such block or it is not being plugged.
    pub fn cancel_plug(&mut self, block: BlockIndex) -> Result<(), AddError> {
        self.step(block, Slot::Plugging, Slot::Unplugged)
    }

    /// The device has plugged the block: plugging -> offline. Its frames can be accessed from now on.
    ///
    /// # Errors
    /// When there is no such block or it is not being plugged.
    pub fn plugged(&mut self, block: BlockIndex) -> Result<(), AddError> {
        self.step(block, Slot::Plugging, Slot::Offline)
    }

    /// The device has unplugged the block: offline -> unplugged.
    ///
    /// # Errors
    /// When there is no such block or it is not offline.
    pub fn unplugged(&mut self, block: BlockIndex) -> Result<(), AddError> {
        self.step(block, Slot::Offline, Slot::Unplugged)
    }

    /// Hot add: offline -> online. The block's frames become free frames of the zone.
    ///
    /// `ZoneKind::Movable` keeps the block removable. In another zone unmovable pages may settle on it for good.
    ///
    /// # Errors
    /// When there is no such block, it is not offline, or the number of descriptors is not the block's.
    pub fn online(
        &mut self,
        block: BlockIndex,
        descriptors: Descriptors,
        zone: ZoneKind,
    ) -> Result<(), OnlineError> {
        let want = self.region.block_nr_pages();
        let error = match self.region.slot(block) {
            None => AddError::UnknownBlock(block),
            Some(Slot::Offline) if descriptors.nr_pages() == want => {
                self.make_online(block, descriptors, zone);
                return Ok(());
            }
            Some(Slot::Offline) => AddError::Descriptors {
                have: descriptors.nr_pages(),
                want,
            },
            Some(slot) => AddError::State {
                block,
                state: slot.state(),
            },
        };
        Err(OnlineError { error, descriptors })
    }

    fn make_online(&mut self, block: BlockIndex, descriptors: Descriptors, zone: ZoneKind) {
        let range = self.region.range_of(block);
        let mut section = Section::new(range, SectionHome::Block(block), zone, descriptors.into_pages());
        for pageblock in (0..range.nr_pages()).step_by(Order::PAGEBLOCK.nr_pages() as usize) {
            section.pages[pageblock as usize] = Page::allocated(Order::PAGEBLOCK);
            section.give(pageblock, Order::PAGEBLOCK);
        }
        let id = self.map.insert(Box::new(section));
        self.enter_zone(id);
        self.region.slots[block.0 as usize] = Slot::Online(id);
        self.stats.blocks_plugged += 1;
    }

    fn step(&mut self, block: BlockIndex, from: Slot, to: Slot) -> Result<(), AddError> {
        let slot = self.region.slot(block).ok_or(AddError::UnknownBlock(block))?;
        if slot != from {
            return Err(AddError::State {
                block,
                state: slot.state(),
            });
        }
        self.region.slots[block.0 as usize] = to;
        Ok(())
    }
}
