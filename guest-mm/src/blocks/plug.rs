//! Blocks on their way in: asked for, plugged, online.

use alloc::boxed::Box;

use crate::blocks::{BlockIndex, Memmap, Slot, memmap};
use crate::node::NodeState;
use crate::phys::{AddError, PhysicalMemory};
use crate::section::{Section, SectionHome};
use crate::zone::ZoneKind;

impl PhysicalMemory<'_> {
    /// The block is about to be asked for: unplugged -> plugging.
    ///
    /// # Errors
    /// When there is no such block or it is not unplugged.
    pub fn begin_plug(&self, block: BlockIndex) -> Result<(), AddError> {
        self.step(block, Slot::Unplugged, Slot::Plugging)
    }

    /// The device refused: plugging -> unplugged.
    ///
    /// # Errors
    /// When there is no such block or it is not being plugged.
    pub fn cancel_plug(&self, block: BlockIndex) -> Result<(), AddError> {
        self.step(block, Slot::Plugging, Slot::Unplugged)
    }

    /// The device has plugged the block: plugging -> offline. Its frames can be accessed from now on.
    ///
    /// # Errors
    /// When there is no such block or it is not being plugged.
    pub fn plugged(&self, block: BlockIndex) -> Result<(), AddError> {
        self.step(block, Slot::Plugging, Slot::Offline)
    }

    /// The device has unplugged the block: offline -> unplugged. What it plugs there later is other memory, which has not failed.
    ///
    /// # Errors
    /// When there is no such block or it is not offline.
    pub fn unplugged(&self, block: BlockIndex) -> Result<(), AddError> {
        self.step(block, Slot::Offline, Slot::Unplugged)?;
        let range = self.region.lock().range_of(block);
        self.poisoned.lock().retain(|pfn| !range.contains(*pfn));
        Ok(())
    }

    /// Hot add, with descriptors that are elsewhere: see [`PhysicalMemory::online_with`].
    ///
    /// # Errors
    /// When there is no such block, it is not offline, or the zone is another one.
    pub fn online(&self, block: BlockIndex, kind: ZoneKind) -> Result<(), AddError> {
        self.online_with(block, kind, Memmap::BootMemory)
    }

    /// Hot add: offline -> online. The block's frames become free frames of the zone, on the region's node, but for those that hold its own
    /// descriptors. With its first block a node comes online.
    ///
    /// Its descriptors must be there and blank. [`ZoneKind::Movable`] keeps the block removable; in
    /// [`ZoneKind::Normal`] unmovable pages may settle on it for good.
    ///
    /// # Errors
    /// When there is no such block, it is not offline, the zone is another one, or a frame that is to hold descriptors has failed.
    pub fn online_with(&self, block: BlockIndex, kind: ZoneKind, memmap: Memmap) -> Result<(), AddError> {
        if !matches!(kind, ZoneKind::Normal | ZoneKind::Movable) {
            return Err(AddError::Zone(kind));
        }
        let mut region = self.region.lock();
        match region.slot(block).ok_or(AddError::UnknownBlock(block))? {
            Slot::Offline => {}
            slot => {
                let state = slot.state();
                return Err(AddError::State { block, state });
            }
        }
        let range = region.range_of(block);
        let own = memmap.frames_of(range);
        let mut section = Box::new(Section::new(range, SectionHome::Block(block)));
        section.memmap_pages = own.nr_pages();
        section.managed_pages -= own.nr_pages();
        let node = region.node();
        let zone = self.zone(node, kind);
        let poisoned = self.poisoned.lock();
        if let Some(&pfn) = poisoned.iter().find(|pfn| own.contains(**pfn)) {
            return Err(AddError::Poisoned(pfn));
        }
        let before = self.node_state(node);
        let tag = self.add_section(zone, section, |areas, tag| {
            memmap::fill(areas, &self.table, tag, (range, own));
            self.retire_known(areas, (tag, range), &poisoned);
        })?;
        drop(poisoned);
        region.set(block, Slot::Online(tag));
        if before == NodeState::Offline {
            region.node_is(node, NodeState::Online);
        }
        drop(region);
        self.counts.nr_memmap_pages.add(own.nr_pages().into());
        self.counts.blocks_plugged.add(1);
        self.shortage.memory_came();
        Ok(())
    }

    fn step(&self, block: BlockIndex, from: Slot, to: Slot) -> Result<(), AddError> {
        let mut region = self.region.lock();
        let slot = region.slot(block).ok_or(AddError::UnknownBlock(block))?;
        if slot != from {
            let state = slot.state();
            return Err(AddError::State { block, state });
        }
        region.set(block, to);
        Ok(())
    }
}
