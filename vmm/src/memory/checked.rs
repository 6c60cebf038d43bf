//! The view of guest memory that devices get: everything the guest owns, and nothing else.

use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryBackend, GuestRegionCollection, Permissions};

use super::{Pin, RamRegion, Region};

/// Guest memory without its unplugged blocks.
///
/// A range that touches one is refused as if no memory were there, before any access. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CheckedMemory {
    all: GuestRegionCollection<RamRegion>,
    regions: Arc<[Arc<Region>]>,
}

impl CheckedMemory {
    pub(super) fn new(all: GuestRegionCollection<RamRegion>, regions: Arc<[Arc<Region>]>) -> Self {
        Self { all, regions }
    }

    /// Holds `len` bytes at `gpa` for I/O that goes on after the device has returned to the event loop: none of their
    /// blocks can be unplugged until the pin is dropped, which is for the event loop too. `None` if the guest does not
    /// own all of them now.
    #[must_use]
    pub fn pin(&self, gpa: GuestAddress, len: usize) -> Option<Pin> {
        let mut pin = Pin::default();
        self.pin_also(&mut pin, gpa, len).then_some(pin)
    }

    /// Extends a pin, for I/O on several buffers. Returns whether the guest owns these as well; if not, nothing changes.
    #[must_use]
    pub fn pin_also(&self, pin: &mut Pin, gpa: GuestAddress, len: usize) -> bool {
        let owned = self.check_range(gpa, len, Permissions::ReadWrite);
        if owned {
            for region in self.regions.iter() {
                pin.hold(region, gpa.0, len as u64);
            }
        }
        owned
    }

    /// Every range of memory, boot RAM first.
    pub(super) fn ranges(&self) -> impl Iterator<Item = &RamRegion> {
        self.all.iter()
    }

    /// Whether every byte of the range that lies in a hot-plug region lies in a plugged block.
    fn owned_by_guest(&self, gpa: GuestAddress, len: usize) -> bool {
        self.regions.iter().all(|region| region.allows(gpa.0, len as u64))
    }
}

// No `physical_memory()`: it would be a way around the check.
impl GuestMemory for CheckedMemory {
    type PhysicalMemory = GuestRegionCollection<RamRegion>;
    type Bitmap = ();

    fn check_range(&self, gpa: GuestAddress, len: usize, access: Permissions) -> bool {
        self.owned_by_guest(gpa, len) && GuestMemory::check_range(&self.all, gpa, len, access)
    }

    fn get_slices<'a>(
        &'a self,
        gpa: GuestAddress,
        len: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        if !self.owned_by_guest(gpa, len) {
            return Err(Error::InvalidGuestAddress(gpa));
        }
        GuestMemory::get_slices(&self.all, gpa, len, access)
    }
}
