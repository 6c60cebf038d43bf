//! Pages of the kernel's own on a block that is emptied, or in a frame that is about to fail: whoever has them moves them, once a batch of migration
//! has refused them.

use super::Worker;
use crate::drivers;
use crate::files;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::machine::quiet;
use alloc::vec::Vec;
use core::mem::discriminant;
use guest_kernel::sync::{Winner, race};
use guest_mm::migrate::{BatchEnd, BusyWith, MigrateReport, Refusal, RefusalReason};
use guest_mm::slab::MoveObjects;
use guest_mm::{IsolatedBlock, KernelUse};

/// How long a block waits for a driver: a disk may have much to do before nothing is under way.
const DRIVER_PATIENCE_NS: u64 = 2_000_000_000;

/// What its owner could move if there were memory leaves later.
fn put_off(refused: &mut [Refusal], used_for: KernelUse) {
    for refusal in refused {
        if let RefusalReason::Unmovable(of) = refusal.reason
            && discriminant(&of) == discriminant(&used_for)
        {
            refusal.reason = RefusalReason::Busy(BusyWith::NoFrame);
        }
    }
}

/// Drivers whose memory was found on a block.
#[derive(Debug, Default)]
pub(super) struct Drivers {
    /// Those that are to be asked to move, with how many frames they have there.
    found: Vec<(u32, u32)>,
    /// Those that were asked since the block was begun with.
    asked: Vec<u32>,
}

impl Drivers {
    fn add(&mut self, driver: u32, nr_pages: u32) {
        if self.asked.contains(&driver) {
            return;
        }
        match self.found.iter_mut().find(|(known, _)| *known == driver) {
            Some((_, known)) => *known += nr_pages,
            None => self.found.push((driver, nr_pages)),
        }
    }
}

/// Has the owners of pages that were refused move them. What remains refused nobody can move now, but for drivers ([`move_driver`]). How many frames were
/// left.
pub(crate) fn have_owners_move(kernel: &Kernel, report: &mut MigrateReport) -> u32 {
    let areas = kernel.areas.move_off(kernel.frames, &mut report.refused);
    let slabs = {
        let _visit = quiet::visit(this_cpu());
        let movers: [&dyn MoveObjects; 2] = [&files::NAMES, &files::INODES];
        kernel.slabs.move_off(this_cpu(), &movers, &mut report.refused)
    };
    for (moved, used_for) in [(areas, KernelUse::Vmalloc { page: 0 }), (slabs, KernelUse::Slab)] {
        kernel.phys.count_kernel_moved(used_for, moved.pages);
        report.moved_kernel += moved.pages;
        if moved.lacks_memory {
            report.end = BatchEnd::NoMemory;
            put_off(&mut report.refused, used_for);
        }
    }
    areas.pages + slabs.pages
}

/// Has a driver move the memory that it shares with its device: it stops, and starts again with other memory. Whether it did; `nr_pages` are the
/// frames that had been refused.
pub(crate) async fn move_driver(kernel: &'static Kernel, driver: u32, nr_pages: u32) -> bool {
    let moved = drivers::relocate(kernel, driver);
    let patience = kernel.timers().sleep(DRIVER_PATIENCE_NS);
    let has_moved = matches!(race(moved, patience).await, Winner::First(Ok(())));
    if has_moved {
        kernel
            .phys
            .count_kernel_moved(KernelUse::Dma { driver }, nr_pages);
    }
    has_moved
}

impl Worker {
    /// Has the owners of pages that were refused move them off the block.
    pub(super) fn move_kernel_pages(&mut self, block: &mut IsolatedBlock, report: &mut MigrateReport) {
        block.add_moved(have_owners_move(self.kernel, report));
        self.find_drivers(&report.refused);
    }

    /// Remembers the drivers among those whose pages were refused.
    pub(super) fn find_drivers(&mut self, refused: &[Refusal]) {
        for refusal in refused {
            if let RefusalReason::Unmovable(KernelUse::Dma { driver }) = refusal.reason {
                self.drivers.add(driver, refusal.order.nr_pages());
            }
        }
    }

    /// Another block is begun with.
    pub(super) fn forget_drivers(&mut self) {
        self.drivers = Drivers::default();
    }

    /// Has the drivers move that have memory on the block, each once. Whether one did.
    pub(super) async fn move_drivers(&mut self, block: &mut IsolatedBlock) -> bool {
        let mut has_moved = false;
        for (driver, nr_pages) in core::mem::take(&mut self.drivers.found) {
            self.drivers.asked.push(driver);
            if move_driver(self.kernel, driver, nr_pages).await {
                block.add_moved(nr_pages);
                has_moved = true;
            }
        }
        has_moved
    }
}
