//! All memory of one guest: the mappings, and the views that loaders and devices have of them.
#![expect(unsafe_code, reason = "a volatile view of a mapping is made from its address")]

use std::ops::Range;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error as GuestMemoryError, Result as GuestMemoryResult};
use vm_memory::region::GuestMemoryRegionBytes;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionCollection, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

use super::mapping::{Access, Mapping, Reserve};
use super::{CheckedMemory, Discarded, MemoryError, Region, RegionBackend, RegionPlan};
use crate::machine::layout::{HUGE_PAGE, RamRange};
use crate::spec::Backing;

/// A range of guest memory as `vm-memory` sees it; keeps the mapping alive.
#[derive(Debug, Clone)]
pub struct RamRegion {
    pub(super) gpa: u64,
    pub(super) mapping: Arc<Mapping>,
}

impl RamRegion {
    /// Size in bytes of the pages that the host takes back: none is split.
    pub(super) fn host_page(&self) -> u64 {
        self.mapping.backing().page_size()
    }

    /// Size in bytes of what is best given back at once: a huge page of anonymous memory is split by anything smaller.
    pub(super) fn discards_at_once(&self) -> u64 {
        match self.mapping.backing() {
            Backing::Anonymous => HUGE_PAGE,
            Backing::Memfd | Backing::Hugetlbfs(_) => self.host_page(),
        }
    }

    /// Gives the host the whole pages of a range of guest-physical addresses in here.
    fn discard(&self, part: Range<u64>) -> Result<Discarded, MemoryError> {
        let page = self.host_page();
        let first = (part.start - self.gpa).next_multiple_of(page);
        let past = (part.end - self.gpa) / page * page;
        if first < past {
            self.mapping.discard(first, past - first)
        } else {
            Ok(Discarded::default())
        }
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

/// Boot RAM and the hot-plug regions.
#[derive(Debug)]
pub struct GuestRam {
    regions: Arc<[Arc<Region>]>,
    boot_view: GuestRegionCollection<RamRegion>,
    device_view: CheckedMemory,
    slots: Vec<MemorySlot>,
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

impl GuestRam {
    /// Maps boot RAM at `ranges`, made of `backing`, and the hot-plug regions, all of them unplugged, in address order.
    ///
    /// # Errors
    /// The host has no address space or no huge pages for it, or the guest has no address space.
    pub fn new(ranges: &[RamRange], backing: Backing, plans: &[RegionPlan]) -> Result<Self, MemoryError> {
        let mut all = Vec::new();
        for range in ranges {
            let mapping = Mapping::new(range.size, backing, Access::ReadWrite, Reserve::All)?;
            all.push(RamRegion {
                gpa: range.gpa,
                mapping: Arc::new(mapping),
            });
        }
        let boot_view = collection(all.clone())?;
        let mut regions = Vec::new();
        for plan in plans {
            let region = Arc::new(Region::new(plan)?);
            all.push(RamRegion {
                gpa: plan.layout.start,
                mapping: region.mapping.clone(),
            });
            regions.push(region);
        }
        let slots = all.iter().map(MemorySlot::from).collect();
        let regions: Arc<[Arc<Region>]> = regions.into();
        let device_view = CheckedMemory::new(collection(all)?, Arc::clone(&regions));
        Ok(Self {
            regions,
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

    /// Gives boot RAM back to the host: it reads as zeros. No vCPU and no device may be using it.
    ///
    /// # Errors
    /// The host does not take it.
    pub fn discard_boot_memory(&self) -> Result<(), MemoryError> {
        GuestMemoryBackend::iter(&self.boot_view)
            .try_for_each(|region| region.mapping.discard(0, region.len()).map(drop))
    }

    /// What devices may touch.
    #[must_use]
    pub fn device_view(&self) -> &CheckedMemory {
        &self.device_view
    }

    /// The hot-plug regions, in address order.
    #[must_use]
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// What plugs and unplugs the blocks of region `index`; one for each region, used by the device that owns it.
    #[must_use]
    pub fn backend(&self, index: usize) -> Option<RegionBackend> {
        self.regions.get(index).cloned().map(RegionBackend::new)
    }

    /// Everything KVM must know, in address order: boot RAM, then the regions.
    #[must_use]
    pub fn slots(&self) -> &[MemorySlot] {
        &self.slots
    }

    /// The hot-plug regions among [`Self::slots`]: the last ones.
    #[must_use]
    pub fn region_slots(&self) -> &[MemorySlot] {
        &self.slots[self.slots.len() - self.regions.len()..]
    }

    /// The parts of the regions that are plugged now, neighbouring blocks joined, in address order.
    #[must_use]
    pub fn plugged_slots(&self) -> Vec<MemorySlot> {
        self.regions
            .iter()
            .flat_map(|region| region.plugged_slots())
            .collect()
    }

    /// Gives the host the pages of `size` bytes at `gpa` that the guest has and says it does not need: boot RAM and plugged
    /// blocks, in whole pages of what stands behind them. The rest of the range is left alone; of unplugged blocks there is
    /// nothing to give. What is given reads as zero until the guest writes to it. For the event loop only.
    ///
    /// # Errors
    /// The host refuses.
    pub fn discard(&self, gpa: u64, size: u64) -> Result<Discarded, MemoryError> {
        let mut sum = Discarded::default();
        for ram in self.device_view.ranges() {
            let start = gpa.max(ram.gpa);
            let end = gpa.saturating_add(size).min(ram.gpa + ram.len());
            if start >= end {
                continue;
            }
            let mut regions = self.regions.iter();
            let Some(region) = regions.find(|region| region.layout().start == ram.gpa) else {
                sum = sum.and(ram.discard(start..end)?);
                continue;
            };
            for part in region.plugged_parts(start..end) {
                sum = sum.and(ram.discard(part)?);
            }
        }
        Ok(sum)
    }

    /// The mappings, for the account of what is resident.
    pub(super) fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.device_view.ranges().map(|ram| ram.mapping.as_ref())
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
