//! Page tables of programs on the move: what leads to a table (an entry of the table above, or the address space itself) is exchanged.
//!
//! Nobody has to wait for a table, as nothing but its address space knows it: software changes it with the address space locked, and
//! hardware only reads it and sets accessed and dirty bits, none of which are relied on. So the copy is made and hooked in at once, under
//! the lock; until the flush some CPUs go on walking the old table, which says the same: whoever takes something out of the new one
//! meanwhile flushes by himself, and a CPU that does not see what was added faults and looks again.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{Flush, FlushBatch, Frames, Mmu, SpaceId};
use crate::migrate::{BatchEnd, BusyWith, MigrateReport, RefusalReason, Route};
use crate::mm::{Locked, Mm};
use crate::page::PageFlags;
use crate::pagetable::{Hook, TablePlace};
use crate::pfn::{Order, PAGE_SHIFT, Pfn};

/// Why a table stays where it is.
enum Stays {
    Busy,
    NoMemory,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Moves tables that came up on a route; one flush for all but roots, which take one each.
    pub(super) fn move_tables(
        &self,
        cpu: &Cpu,
        route: &mut impl Route,
        tables: &[Pfn],
        report: &mut MigrateReport,
    ) {
        let (mut flush, mut left) = (FlushBatch::new(), Vec::with_capacity(tables.len()));
        for &table in tables {
            match self.move_table(cpu, route, table, &mut flush) {
                Ok(()) => left.push(table),
                Err(Stays::Busy) => {
                    self.refuse(
                        &mut report.refused,
                        (table, Order::ZERO),
                        RefusalReason::Busy(BusyWith::AddressSpace),
                    );
                }
                Err(Stays::NoMemory) => {
                    self.refuse(
                        &mut report.refused,
                        (table, Order::ZERO),
                        RefusalReason::Busy(BusyWith::NoFrame),
                    );
                    report.end = BatchEnd::NoMemory;
                }
            }
        }
        if !flush.is_empty() {
            self.mmu.flush(&flush);
        }
        for table in left {
            self.tables(cpu).free_table(table);
            route.moved(table, 1);
            report.moved_kernel += 1;
            self.phys.counts.pgmigrate_success.add(1);
            self.phys.counts.kernel_tables_moved.add(1);
        }
    }

    /// Lets whatever leads to a table lead to a copy. It may be freed after the flush.
    fn move_table(
        &self,
        cpu: &Cpu,
        route: &mut impl Route,
        from: Pfn,
        flush: &mut FlushBatch,
    ) -> Result<(), Stays> {
        let page = self.migrating_page(from);
        let space = SpaceId::from_number(page.mapping()).and_then(|id| self.spaces.find(id));
        let space = space.ok_or(Stays::Busy)?;
        let to = route.kernel_destination(self.phys, cpu).ok_or(Stays::NoMemory)?;
        let mut locked = space.lock();
        let exchanged = self.exchange_table(cpu, &mut locked, (from, to), flush);
        drop(locked);
        if exchanged {
            return Ok(());
        }
        self.phys.put_page(cpu, to);
        Err(Stays::Busy)
    }

    /// False, and nothing is changed, if nothing leads to the table any more or yet, or somebody knows an entry of the address space by its
    /// place.
    fn exchange_table(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (from, to): (Pfn, Pfn),
        flush: &mut FlushBatch,
    ) -> bool {
        let page = self.migrating_page(from);
        if space.has_ended || space.migrating > 0 || !page.flags().has(PageFlags::TABLE) {
            return false;
        }
        let place = TablePlace::from_index(page.index());
        let Some(hook) = space.table.hook_of(&self.frames, from, place) else {
            return false;
        };
        self.tables(cpu).copy_table(from, to, space.id(), place);
        let covered = |root| Flush {
            space: space.table.space,
            root,
            va: place.va(),
            nr_pages: place.bytes() >> PAGE_SHIFT,
        };
        match hook {
            Hook::Entry(slot) => {
                flush.add(covered(space.table.root));
                self.tables(cpu).exchange(slot, from, to);
            }
            Hook::Root => {
                let mut now = FlushBatch::new();
                now.add(covered(from));
                space.set_root(to);
                // With the lock: a flush by the new root would not reach those CPUs that are still in the old one.
                self.mmu.flush(&now);
            }
        }
        true
    }
}
