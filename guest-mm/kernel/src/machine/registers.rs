//! Device registers in physical memory, as the virtio drivers and the I/O APIC use them.

#![expect(unsafe_code, reason = "loads from and stores to device registers")]

use core::ptr::with_exposed_provenance_mut;
use guest_kernel::physical::to_usize;
use guest_virtio::transport::Registers;

/// The registers of one device, mapped uncached at their physical address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MmioRegisters {
    base: u64,
    size: u64,
}

impl MmioRegisters {
    /// The registers at `base`.
    ///
    /// # Safety
    /// `size` bytes from there must be mapped for good, and belong to a device and not to memory.
    pub(crate) const unsafe fn at(base: u64, size: u64) -> Self {
        Self { base, size }
    }

    /// Where they are.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Where they are, and how many bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn pointer<T>(&self, offset: u64) -> *mut T {
        let size = size_of::<T>() as u64;
        assert!(
            offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.size),
            "{size} bytes at offset {offset:#x} of the registers at {:#x}",
            self.base
        );
        with_exposed_provenance_mut(to_usize(self.base + offset))
    }
}

impl Registers for MmioRegisters {
    fn read32(&self, offset: u64) -> u32 {
        // SAFETY: inside the mapped registers and aligned, by `pointer`; the device bears any read.
        unsafe { self.pointer::<u32>(offset).read_volatile() }
    }

    fn write32(&self, offset: u64, value: u32) {
        // SAFETY: as for reads. What a device does to memory because of a write is its driver's business, which
        // hands it only memory that was allocated for it.
        unsafe { self.pointer::<u32>(offset).write_volatile(value) };
    }

    fn read16(&self, offset: u64) -> u16 {
        // SAFETY: as for `read32`.
        unsafe { self.pointer::<u16>(offset).read_volatile() }
    }

    fn read8(&self, offset: u64) -> u8 {
        // SAFETY: as for `read32`.
        unsafe { self.pointer::<u8>(offset).read_volatile() }
    }
}
