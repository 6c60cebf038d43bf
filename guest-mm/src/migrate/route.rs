//! Where migration finds its pages, and where it puts them: off a block, together in one place, near to a node.

use alloc::vec::{self, Vec};

use guest_sync::Cpu;

use crate::blocks::{InUse, IsolatedBlock};
use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::migrate::{BusyPages, MigrateReport, TwoStage};
use crate::mm::Mm;
use crate::pfn::{Order, Pfn};
use crate::phys::PhysicalMemory;

/// Which pages a batch takes, one after the other, and where they go.
pub(crate) trait Route {
    /// The next page in use. None comes up twice.
    fn next_in_use(&mut self, phys: &PhysicalMemory<'_>) -> Option<InUse>;

    /// The last page that came up did not get under way, and comes up again.
    fn step_back(&mut self, order: Order);

    /// A frame of that size for the next page; `None` when there is none to be had.
    fn destination(&mut self, phys: &PhysicalMemory<'_>, cpu: &Cpu, order: Order) -> Option<Pfn>;

    /// A frame for something of the kernel's own: outside removable memory as long as there is room.
    fn kernel_destination(&mut self, phys: &PhysicalMemory<'_>, cpu: &Cpu) -> Option<Pfn> {
        let own = phys.alloc_pages(cpu, Gfp::SPARE_KERNEL, Order::ZERO).ok();
        own.or_else(|| self.destination(phys, cpu, Order::ZERO))
    }

    /// So many frames have moved, from there on.
    fn moved(&mut self, from: Pfn, nr_pages: u32);

    /// How huge pages go for which there is no place; without, they go in pieces.
    fn two_stage(&mut self) -> Option<&mut TwoStage> {
        None
    }

    /// What becomes of pages that somebody is just using.
    fn busy_pages(&self) -> BusyPages {
        BusyPages::PutOff
    }

    /// All pages have come up.
    fn pass_done(&mut self) {}
}

impl Route for IsolatedBlock {
    fn next_in_use(&mut self, phys: &PhysicalMemory<'_>) -> Option<InUse> {
        phys.next_in_use(self)
    }

    fn step_back(&mut self, order: Order) {
        self.cursor -= order.nr_pages();
    }

    fn destination(&mut self, phys: &PhysicalMemory<'_>, cpu: &Cpu, order: Order) -> Option<Pfn> {
        phys.alloc_pages(cpu, Gfp::SPARE, order).ok()
    }

    fn moved(&mut self, _: Pfn, nr_pages: u32) {
        self.moved_pages += nr_pages;
    }

    fn two_stage(&mut self) -> Option<&mut TwoStage> {
        Some(&mut self.two_stage)
    }

    fn busy_pages(&self) -> BusyPages {
        self.busy_pages
    }

    fn pass_done(&mut self) {
        // The end is come to again where pages that were refused lacked memory only.
        self.passes += u32::from(!core::mem::replace(&mut self.is_counted, true));
    }
}

/// Pages that somebody has looked up, each with a reference, and where they go.
struct Found<D> {
    pages: vec::IntoIter<InUse>,
    destination: D,
    moved_pages: u32,
}

impl<D: FnMut(Order) -> Option<Pfn>> Route for Found<D> {
    fn next_in_use(&mut self, _: &PhysicalMemory<'_>) -> Option<InUse> {
        self.pages.next()
    }

    // A page that was split, or found no frame, stays: who looked it up may look again.
    fn step_back(&mut self, _: Order) {}

    fn destination(&mut self, _: &PhysicalMemory<'_>, _: &Cpu, order: Order) -> Option<Pfn> {
        (self.destination)(order)
    }

    fn moved(&mut self, _: Pfn, nr_pages: u32) {
        self.moved_pages += nr_pages;
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Moves pages that the caller holds to frames from `destination`, by *remap*, and lets go of them; also says how many 4 KiB pages moved.
    pub(crate) fn move_found(
        &self,
        cpu: &Cpu,
        pages: Vec<InUse>,
        destination: impl FnMut(Order) -> Option<Pfn>,
    ) -> (MigrateReport, u32) {
        let mut route = Found {
            pages: pages.into_iter(),
            destination,
            moved_pages: 0,
        };
        let batch = self.begin_moves(cpu, &mut route, u32::MAX);
        let report = self.finish_moves(cpu, &mut route, batch);
        route.pages.for_each(|page| self.phys.release(cpu, page));
        (report, route.moved_pages)
    }
}
