//! All memory of one guest: the mappings, and the views that loaders and devices have of them.
#![expect(unsafe_code, reason = "a volatile view of a mapping is made from its address")]

use std::ops::Range;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error as GuestMemoryError, Result as GuestMemoryResult};
use vm_memory::region::GuestMemoryRegionBytes;
use vm_memory::{
    GuestAddress, GuestMemoryRegion, GuestRegionCollection, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::mapping::{Access, Mapping};
use super::pins::PinTable;
use super::plugged::PluggedMap;
use super::{CheckedMemory, MemoryError, RegionBackend};
use crate::machine::layout::RamRange;

/// Bytes of the smallest page of the host.
const SMALL_PAGE: u64 = 4096;

/// A range of guest memory as `vm-memory` sees it; keeps the mapping alive.
#[derive(Debug, Clone)]
pub struct RamRegion {
    gpa: u64,
    mapping: Arc<Mapping>,
}

impl RamRegion {
    /// Size in bytes of the pages that the host takes back: none is split.
    pub(super) fn host_page(&self) -> u64 {
        SMALL_PAGE
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.mapping.len() as GuestUsize
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.gpa)
    }

    fn bitmap(&self) -> BS<'_, ()> {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> GuestMemoryResult<VolatileSlice<'_, BS<'_, ()>>> {
        let invalid = GuestMemoryError::InvalidBackendAddress;
        let start = usize::try_from(offset.0).map_err(|_| GuestMemoryError::InvalidBackendAddress)?;
        if start
            .checked_add(count)
            .is_none_or(|end| end > self.mapping.len())
        {
            return Err(invalid);
        }
        let host = self.mapping.as_ptr().wrapping_add(start);
        // SAFETY: the range is inside the mapping, which lives as long as `self`; all users of guest memory in this
        // process go through volatile slices.
        Ok(unsafe { VolatileSlice::new(host, count) })
    }
}

/// Boot RAM and the hot-plug region.
#[derive(Debug)]
pub struct GuestRam {
    region: Option<Arc<Region>>,
    boot_view: GuestRegionCollection<RamRegion>,
    device_view: CheckedMemory,
    slots: Vec<MemorySlot>,
}

/// Where the hot-plug region is. Sizes are bytes; all three are multiples of `block_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionLayout {
    /// Guest-physical address of the first block.
    pub start: u64,
    /// Size of the region.
    pub size: u64,
    /// Size of a block: a power of two, at least 2 MiB.
    pub block_size: u64,
}

/// A range of guest-physical addresses and the host memory behind it, as KVM wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySlot {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
    /// Host address.
    pub hva: u64,
}

/// The hot-plug region.
#[derive(Debug)]
pub struct Region {
    layout: RegionLayout,
    pub(super) mapping: Arc<Mapping>,
    pub(super) plugged: PluggedMap,
    pub(super) pins: PinTable,
}

impl Region {
    fn new(layout: RegionLayout) -> Result<Self, MemoryError> {
        let mapping = Arc::new(Mapping::new(layout.size, Access::None)?);
        Ok(Self {
            layout,
            mapping,
            plugged: PluggedMap::new(layout.size / layout.block_size),
            pins: PinTable::default(),
        })
    }

    /// Where the region is.
    #[must_use]
    pub fn layout(&self) -> RegionLayout {
        self.layout
    }

    /// Which of its blocks are plugged.
    #[must_use]
    pub fn plugged(&self) -> &PluggedMap {
        &self.plugged
    }

    /// The index of the block at `gpa`, if that is in the region.
    #[must_use]
    pub fn block_at(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.checked_sub(self.layout.start)?;
        (offset < self.layout.size).then(|| offset / self.layout.block_size)
    }

    /// Whether `len` bytes at `gpa` touch no unplugged block.
    pub(super) fn allows(&self, gpa: u64, len: u64) -> bool {
        self.plugged.all_plugged(self.blocks_of(gpa, len))
    }

    /// The blocks that `len` bytes at `gpa` touch; empty if none.
    pub(super) fn blocks_of(&self, gpa: u64, len: u64) -> Range<u64> {
        let region_end = self.layout.start + self.layout.size;
        let start = gpa.max(self.layout.start);
        let end = gpa.saturating_add(len).min(region_end);
        if start >= end {
            return 0..0;
        }
        let first = (start - self.layout.start) / self.layout.block_size;
        let past = (end - self.layout.start).div_ceil(self.layout.block_size);
        first..past
    }
}

impl GuestRam {
    /// Maps boot RAM at `ranges` and, if there is one, the hot-plug region, all of it unplugged.
    ///
    /// # Errors
    /// The host has no address space for it, or the guest has none.
    pub fn new(ranges: &[RamRange], region: Option<RegionLayout>) -> Result<Self, MemoryError> {
        let mut regions = Vec::new();
        for range in ranges {
            let mapping = Arc::new(Mapping::new(range.size, Access::ReadWrite)?);
            regions.push(RamRegion {
                gpa: range.gpa,
                mapping,
            });
        }
        let boot_view = collection(regions.clone())?;
        let region = region.map(Region::new).transpose()?.map(Arc::new);
        regions.extend(region.iter().map(|region| RamRegion {
            gpa: region.layout.start,
            mapping: region.mapping.clone(),
        }));
        let slots = regions.iter().map(MemorySlot::from).collect();
        let device_view = CheckedMemory::new(collection(regions)?, region.clone());
        Ok(Self {
            region,
            boot_view,
            device_view,
            slots,
        })
    }

    /// Boot RAM alone, for loading the guest.
    #[must_use]
    pub fn boot_view(&self) -> &GuestRegionCollection<RamRegion> {
        &self.boot_view
    }

    /// What devices may touch.
    #[must_use]
    pub fn device_view(&self) -> &CheckedMemory {
        &self.device_view
    }

    /// The hot-plug region.
    #[must_use]
    pub fn region(&self) -> Option<&Arc<Region>> {
        self.region.as_ref()
    }

    /// What plugs and unplugs the region's blocks.
    #[must_use]
    pub fn backend(&self) -> Option<RegionBackend> {
        self.region.clone().map(RegionBackend::new)
    }

    /// Everything KVM must know, in address order.
    #[must_use]
    pub fn slots(&self) -> &[MemorySlot] {
        &self.slots
    }

    /// The last of [`Self::slots`], if that is the hot-plug region.
    #[must_use]
    pub fn region_slot(&self) -> Option<MemorySlot> {
        self.slots.last().copied().filter(|_| self.region.is_some())
    }

    /// Gives the host the pages of `size` bytes at `gpa` that the guest has and says it does not need. What is given reads as
    /// zero until the guest writes to it. For the event loop only. Returns the bytes given back.
    ///
    /// # Errors
    /// The host refuses.
    pub fn discard(&self, gpa: u64, size: u64) -> Result<u64, MemoryError> {
        let mut given = 0;
        for range in self.device_view.ranges() {
            let start = gpa.max(range.gpa);
            let end = gpa.saturating_add(size).min(range.gpa + range.len());
            if start < end {
                range.mapping.discard(start - range.gpa, end - start)?;
                given += end - start;
            }
        }
        Ok(given)
    }

    /// The parts of the region that are plugged now, neighbouring blocks joined, in address order.
    #[must_use]
    pub fn plugged_slots(&self) -> Vec<MemorySlot> {
        let (Some(region), Some(all)) = (&self.region, self.region_slot()) else {
            return Vec::new();
        };
        let block = region.layout.block_size;
        let part = |run: Range<u64>| MemorySlot {
            gpa: all.gpa + run.start * block,
            size: (run.end - run.start) * block,
            hva: all.hva + run.start * block,
        };
        region.plugged.runs().into_iter().map(part).collect()
    }
}

impl From<&RamRegion> for MemorySlot {
    fn from(region: &RamRegion) -> Self {
        Self {
            gpa: region.gpa,
            size: region.len(),
            hva: region.mapping.as_ptr() as u64,
        }
    }
}

fn collection(regions: Vec<RamRegion>) -> Result<GuestRegionCollection<RamRegion>, MemoryError> {
    let (gpa, size) = regions.last().map_or((0, 0), |last| (last.gpa, last.len()));
    // What can be wrong with the collection is that a region overlaps the one before or wraps: it has no place.
    GuestRegionCollection::from_regions(regions).map_err(|_| MemoryError::AddressSpace { gpa, size })
}
