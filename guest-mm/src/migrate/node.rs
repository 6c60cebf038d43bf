//! The memory of one program moved from a node to another (Linux `migrate_pages(2)`), by *remap*, while it runs on.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::frames::{Frames, Mmu, SpaceId};
use crate::gfp::Gfp;
use crate::migrate::MigrateReport;
use crate::mm::Mm;
use crate::node::NodeId;
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level};
use crate::pfn::Pfn;

/// A move under way: which program's, from where to where, and how far it has come. No page comes up twice in it.
#[derive(Clone, Debug)]
pub struct NodeMove {
    space: SpaceId,
    from: NodeId,
    to: NodeId,
    /// The next address to look at.
    next: u64,
}

impl NodeMove {
    /// The move of a program's own memory near to one node, to the other.
    pub const fn new(space: SpaceId, from: NodeId, to: NodeId) -> Self {
        let next = 0;
        Self {
            space,
            from,
            to,
            next,
        }
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Moves the next pages, about `budget_pages` 4 KiB pages' worth; `None` at the end. Only what no other program maps is moved, as other
    /// programs may be near to other nodes (Linux `MPOL_MF_MOVE`).
    pub fn migrate_node_batch(
        &self,
        cpu: &Cpu,
        moving: &mut NodeMove,
        budget_pages: u32,
    ) -> Option<MigrateReport> {
        let mut found = Vec::new();
        moving.next = self.find_on_node(moving, budget_pages, &mut found)?;
        let gfp = Gfp::SPARE.with(Gfp::THIS_NODE);
        let to = moving.to;
        let (report, _) = self.move_found(cpu, found, |order| {
            self.phys.alloc_pages_node(cpu, to, gfp, order).ok()
        });
        Some(report)
    }

    /// Adds the next pages to move to `found`, with a reference to each, taken while their address space is locked: none of them can have
    /// become another page since. The address behind the last; `None` when there is nothing more.
    fn find_on_node(&self, moving: &NodeMove, budget_pages: u32, found: &mut Vec<InUse>) -> Option<u64> {
        let space = self.spaces.find(moving.space)?;
        let space = space.lock();
        let mut left = budget_pages.max(1);
        for vma in space.vmas.values().filter(|vma| vma.range.end() > moving.next) {
            let mut va = vma.range.start().max(moving.next);
            while va < vma.range.end() {
                let at = space.table.find(&self.frames, va);
                let next = at.end_of(va);
                let is_page = at.level <= Level::HUGE && at.entry.is_present() && !at.entry.has(Entry::FIXED);
                if is_page && let Some(page) = self.hold_on_node(at.entry.pfn(), moving.from) {
                    left = left.saturating_sub(page.order.nr_pages());
                    found.push(page);
                    if left == 0 {
                        return Some(next);
                    }
                }
                va = next;
            }
        }
        // What was found is moved first; the next look finds nothing.
        (!found.is_empty()).then_some(u64::MAX)
    }

    fn hold_on_node(&self, pfn: Pfn, node: NodeId) -> Option<InUse> {
        let page = self.mapped_page(pfn);
        let is_there = self.phys.zone_of(pfn).is_some_and(|zone| zone.node() == node);
        if !is_there || page.mapcount() != 1 || page.flags().has(PageFlags::HUGETLB) {
            return None;
        }
        Some(self.phys.hold(pfn, page.order()))
    }
}
