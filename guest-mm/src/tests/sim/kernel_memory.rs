//! Memory of the kernel's own that can leave a block: areas of vmalloc, and slabs of objects that move. Programs have the kernel make, use and free
//! them; whoever empties a block has them moved once migration has refused them, as the guest does.

mod areas;
mod objects;

use core::cell::Cell;

use guest_sync::Cpu;

use super::{Sim, count};
use crate::kernel_map::FrameSource;
use crate::migrate::{BatchEnd, MigrateReport, RefusalReason};
use crate::page::KernelUse;
use crate::tests::machine::TestMm;
use crate::{Gfp, IsolatedBlock, Order, Pfn, PhysicalMemory};
use areas::Areas;
use objects::Objects;

/// See the module.
pub(super) struct KernelMemory<'m> {
    source: Source<'m>,
    areas: Areas<'m>,
    objects: Objects<'m>,
}

/// Frames for areas and their tables, as the guest's kernel takes them, but that pages come from blocks first; counted.
struct Source<'m> {
    phys: &'m PhysicalMemory<'m>,
    cpu: &'m Cpu,
    taken: Cell<u32>,
}

impl Source<'_> {
    fn alloc(&self, gfp: Gfp, order: Order) -> Option<Pfn> {
        let pfn = self.phys.alloc_pages(self.cpu, gfp, order).ok()?;
        self.taken.set(self.taken.get() + order.nr_pages());
        Some(pfn)
    }
}

impl FrameSource for Source<'_> {
    fn take(&self, order: Order) -> Option<Pfn> {
        self.alloc(Gfp::KERNEL, order)
    }

    fn take_page(&self) -> Option<Pfn> {
        let gfps = [Gfp::USER, Gfp::KERNEL_RELOCATABLE.with(Gfp::HIGHMEM), Gfp::KERNEL];
        gfps.into_iter().find_map(|gfp| self.alloc(gfp, Order::ZERO))
    }

    fn take_spare_page(&self) -> Option<Pfn> {
        let gfps = [Gfp::SPARE_KERNEL.with(Gfp::HIGHMEM), Gfp::SPARE];
        gfps.into_iter().find_map(|gfp| self.alloc(gfp, Order::ZERO))
    }

    fn note_page(&self, pfn: Pfn, page: Option<u32>) {
        let used_for = page.map_or(KernelUse::Other, |page| KernelUse::Vmalloc { page });
        self.phys.set_kernel_use(pfn, used_for);
    }

    fn give(&self, pfn: Pfn, order: Order) {
        self.phys.free_pages(self.cpu, pfn).unwrap();
        self.taken.set(self.taken.get() - order.nr_pages());
    }
}

impl<'m> KernelMemory<'m> {
    pub(super) fn new(mm: &'m TestMm<'m>, cpu: &'m Cpu) -> Self {
        let source = Source {
            phys: mm.phys,
            cpu,
            taken: Cell::new(0),
        };
        Self {
            areas: Areas::new(mm, &source),
            objects: Objects::new(mm),
            source,
        }
    }

    /// Everything is compared once more and freed; how many frames stay for what comes next.
    pub(super) fn end(&self, sim: &Sim<'_>) -> u64 {
        sim.shrink_kernel_memory();
        self.areas.check_frames(&self.source);
        self.objects.destroy(sim);
        self.source.taken.get().into()
    }
}

impl Sim<'_> {
    /// One thing that the kernel does with memory of its own.
    pub(super) async fn use_kernel_memory(&self) {
        let KernelMemory {
            source,
            areas,
            objects,
        } = &self.kernel;
        match self.one_in(2) {
            true => areas.turn(self, source),
            false => objects.turn(self).await,
        }
        self.validate_kernel_memory();
    }

    /// Everything that must hold.
    fn validate_kernel_memory(&self) {
        if self.is_validated.get() {
            self.kernel.areas.validate();
            self.kernel.objects.validate();
        }
    }

    /// The kernel has as much as it ever has, or as there is memory for.
    pub(super) fn fill_kernel_memory(&self) {
        let KernelMemory {
            source,
            areas,
            objects,
        } = &self.kernel;
        areas.fill_up(self, source);
        objects.fill_up(self);
        self.validate_kernel_memory();
    }

    /// The kernel gives up all of it that nobody uses just now.
    pub(super) fn shrink_kernel_memory(&self) {
        let KernelMemory {
            source,
            areas,
            objects,
        } = &self.kernel;
        areas.free_all(self, source);
        objects.free_all(self);
        self.validate_kernel_memory();
    }

    /// Has owners move what migration has refused because it is theirs. What remains refused is in use just now, or there was no memory, or it was
    /// not in use any more.
    pub(super) fn move_kernel_memory(&self, block: &mut IsolatedBlock, report: &mut MigrateReport) {
        let is_kernels = |reason| matches!(reason, RefusalReason::Unmovable(_));
        if !report.refused.iter().any(|refusal| is_kernels(refusal.reason)) {
            return;
        }
        let KernelMemory {
            source,
            areas,
            objects,
        } = &self.kernel;
        let of_areas = self.with_failures(|| areas.move_off(self.mm, source, &mut report.refused));
        let of_objects = self.with_failures(|| objects.move_off(self, &mut report.refused));
        for (moved, used_for, seen) in [
            (
                of_areas,
                KernelUse::Vmalloc { page: 0 },
                &self.seen.area_pages_moved,
            ),
            (of_objects, KernelUse::Slab, &self.seen.slab_pages_moved),
        ] {
            self.mm.phys.count_kernel_moved(used_for, moved.pages);
            block.add_moved(moved.pages);
            count(seen, moved.pages);
            report.moved_kernel += moved.pages;
            if moved.lacks_memory {
                report.end = BatchEnd::NoMemory;
            }
        }
        let lacks_memory = of_areas.lacks_memory || of_objects.lacks_memory;
        for refusal in &report.refused {
            let is_known = match refusal.reason {
                RefusalReason::Unmovable(KernelUse::Vmalloc { .. }) => {
                    of_areas.lacks_memory || areas.frame_was_given_back(self.mm, refusal.pfn)
                }
                RefusalReason::Unmovable(KernelUse::Slab) => lacks_memory || objects.is_in_use(),
                RefusalReason::Unmovable(_) => false,
                RefusalReason::Pinned { .. } | RefusalReason::UnderIo { .. } | RefusalReason::Busy(_) => true,
            };
            assert!(is_known, "{refusal}");
        }
        self.validate_kernel_memory();
    }
}
