//! Memory that drivers share with their devices: frames for the kernel's own data, which stay where they are until their driver moves,
//! accessed volatile at their physical addresses.

#![expect(unsafe_code, reason = "reads and writes memory that devices write to")]

use super::cpu::this_cpu;
use super::frames::DirectFrames;
use crate::kernel::Kernel;
use core::num::NonZeroUsize;
use core::ptr::with_exposed_provenance_mut;
use guest_kernel::physical::to_usize;
use guest_mm::frames::Frames;
use guest_mm::{Gfp, KernelUse, Order, Pfn};
use guest_virtio::dma::{DmaMemory, Gpa, PAGE_SIZE};

/// The kernel's frames, as a driver borrows them.
#[derive(Clone, Copy)]
pub(crate) struct KernelDma {
    pub(crate) kernel: &'static Kernel,
    /// The driver's number, that of its device's interrupt; `None` for memory that stays for good.
    pub(crate) driver: Option<u32>,
}

fn pointer<T>(at: Gpa) -> *mut T {
    with_exposed_provenance_mut(to_usize(at.raw()))
}

impl DmaMemory for KernelDma {
    fn allocate(&self, nr_pages: NonZeroUsize) -> Option<Gpa> {
        let order = Order::holding((nr_pages.get() * PAGE_SIZE) as u64)?;
        let phys = self.kernel.phys;
        let take = |gfp| phys.alloc_pages(this_cpu(), gfp, order).ok();
        let pfn = match self.driver {
            None => take(Gfp::KERNEL)?,
            Some(driver) => {
                let pfn = take(Gfp::KERNEL_RELOCATABLE).or_else(|| take(Gfp::KERNEL))?;
                phys.set_kernel_use(pfn, KernelUse::Dma { driver });
                pfn
            }
        };
        DirectFrames.zero(pfn, order);
        Some(Gpa::new(pfn.gpa()))
    }

    fn release(&self, at: Gpa, _: NonZeroUsize) {
        let Some(pfn) = Pfn::containing(at.raw()) else {
            return;
        };
        self.kernel.phys.set_kernel_use(pfn, KernelUse::Other);
        if let Err(error) = self.kernel.phys.free_pages(this_cpu(), pfn) {
            panic!("memory of a driver is given back: {error}");
        }
    }

    fn read16(&self, at: Gpa) -> u16 {
        // SAFETY: inside an area that `allocate` handed out, by the trait's contract, and aligned; so for all below.
        unsafe { pointer::<u16>(at).read_volatile() }
    }

    fn write16(&self, at: Gpa, value: u16) {
        // SAFETY: as for `read16`.
        unsafe { pointer::<u16>(at).write_volatile(value) };
    }

    fn read_bytes(&self, at: Gpa, into: &mut [u8]) {
        for (offset, byte) in into.iter_mut().enumerate() {
            // SAFETY: as for `read16`; a byte may change under the read, and then has either value.
            *byte = unsafe { pointer::<u8>(at).wrapping_add(offset).read_volatile() };
        }
    }

    fn write_bytes(&self, at: Gpa, from: &[u8]) {
        for (offset, byte) in from.iter().enumerate() {
            // SAFETY: as for `read16`.
            unsafe { pointer::<u8>(at).wrapping_add(offset).write_volatile(*byte) };
        }
    }
}
