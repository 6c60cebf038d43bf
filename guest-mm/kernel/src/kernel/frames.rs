//! Frames for the manager's own mappings, and who is told of them.

use crate::machine::cpu::this_cpu;
use guest_mm::kernel_map::FrameSource;
use guest_mm::phys::PhysicalMemory;
use guest_mm::{Gfp, KernelUse, Order, Pfn};

/// Frames for the manager's page tables, out of those for the kernel's own data.
#[derive(Clone, Copy)]
pub(crate) struct KernelFrames(pub(crate) &'static PhysicalMemory<'static>);

impl FrameSource for KernelFrames {
    fn take(&self, order: Order) -> Option<Pfn> {
        self.0.alloc_pages(this_cpu(), Gfp::KERNEL, order).ok()
    }

    fn take_page(&self) -> Option<Pfn> {
        // What could be in high memory must leave the other zones a reserve; the kernel's own data need not.
        let high = Gfp::KERNEL_RELOCATABLE.with(Gfp::HIGHMEM);
        let take = |gfp| self.0.alloc_pages(this_cpu(), gfp, Order::ZERO).ok();
        // Nor is there any harm in removable memory: pages of areas move off it.
        take(high)
            .or_else(|| take(Gfp::KERNEL))
            .or_else(|| take(Gfp::USER))
    }

    fn take_spare_page(&self) -> Option<Pfn> {
        let take = |gfp| self.0.alloc_pages(this_cpu(), gfp, Order::ZERO).ok();
        take(Gfp::SPARE_KERNEL.with(Gfp::HIGHMEM)).or_else(|| take(Gfp::SPARE))
    }

    fn note_page(&self, pfn: Pfn, page: Option<u32>) {
        let used_for = page.map_or(KernelUse::Other, |page| KernelUse::Vmalloc { page });
        self.0.set_kernel_use(pfn, used_for);
    }

    fn give(&self, pfn: Pfn, _: Order) {
        if let Err(error) = self.0.free_pages(this_cpu(), pfn) {
            panic!("the kernel's own frames: {error}");
        }
    }
}
