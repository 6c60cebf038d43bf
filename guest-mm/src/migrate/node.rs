//! The memory of one program moved from a node to another (Linux `migrate_pages(2)`), by *remap*, while it runs on.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::frames::{Frames, Mmu, SpaceId};
use crate::gfp::Gfp;
use crate::migrate::{BatchEnd, MigrateReport};
use crate::mm::Mm;
use crate::node::NodeId;
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level};
use crate::pfn::{PAGEBLOCK_NR_PAGES, Pfn};

/// A move under way: which program's, from where to where, and how far it has come. No page comes up twice in it.
#[derive(Clone, Debug)]
pub struct NodeMove {
    space: SpaceId,
    from: NodeId,
    to: NodeId,
    /// The next address to look at.
    next: u64,
    stays: Stays,
}

/// Pages of the program on the node that were passed over, in 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stays {
    /// Those that are mapped more than once: others may be near to other nodes.
    pub shared: u32,
    /// How often the one of them is mapped that is mapped most.
    pub most_mappings: u32,
    /// Reserved huge pages for which there is no free 2 MiB frame on the other node.
    pub no_huge_frame: u32,
}

impl NodeMove {
    /// The move of a program's own memory near to one node, to the other.
    pub const fn new(space: SpaceId, from: NodeId, to: NodeId) -> Self {
        Self {
            space,
            from,
            to,
            next: 0,
            stays: Stays {
                shared: 0,
                most_mappings: 0,
                no_huge_frame: 0,
            },
        }
    }

    /// What was passed over so far.
    pub const fn stays(&self) -> Stays {
        self.stays
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Moves the next pages, about `budget_pages` 4 KiB pages' worth; `None` at the end. Only what no other program maps is moved, as other
    /// programs may be near to other nodes (Linux `MPOL_MF_MOVE`). Reserved huge pages move whole, each in a batch of its own. What was passed over is
    /// counted ([`NodeMove::stays`]).
    pub fn migrate_node_batch(
        &self,
        cpu: &Cpu,
        moving: &mut NodeMove,
        budget_pages: u32,
    ) -> Option<MigrateReport> {
        let mut found = Vec::new();
        moving.next = self.find_on_node(moving, budget_pages, &mut found)?;
        let reserved = match &found[..] {
            [page] if self.mapped_page(page.pfn).flags().has(PageFlags::HUGETLB) => Some(page.order),
            _ => None,
        };
        let gfp = Gfp::SPARE.with(Gfp::THIS_NODE);
        let to = moving.to;
        let (mut report, _) = self.move_found(cpu, found, |order| {
            self.phys.alloc_pages_node(cpu, to, gfp, order).ok()
        });
        if let Some(order) = reserved
            && report.end == BatchEnd::NoMemory
        {
            // Smaller pages may still have room.
            moving.stays.no_huge_frame += order.nr_pages();
            report.end = BatchEnd::Budget;
        }
        Some(report)
    }

    /// Adds the next pages to move to `found`, with a reference to each, taken while their address space is locked: none of them can have
    /// become another page since. The address behind the last; `None` when there is nothing more.
    fn find_on_node(&self, moving: &mut NodeMove, budget_pages: u32, found: &mut Vec<InUse>) -> Option<u64> {
        let space = self.spaces.find(moving.space)?;
        let space = space.lock();
        let mut left = budget_pages.max(1);
        let begin = moving.next;
        for vma in space.vmas.values().filter(|vma| vma.range.end() > begin) {
            let mut va = vma.range.start().max(begin);
            while va < vma.range.end() {
                let at = space.table.find(&self.frames, va);
                let next = at.end_of(va);
                let is_page = at.level <= Level::HUGE && at.entry.is_present() && !at.entry.has(Entry::FIXED);
                let nr_pages = if at.level == Level::HUGE {
                    PAGEBLOCK_NR_PAGES
                } else {
                    1
                };
                if is_page && self.may_leave(at.entry.pfn(), nr_pages, moving) {
                    let pfn = at.entry.pfn();
                    // One that has to go whole goes alone.
                    let is_reserved = self.mapped_page(pfn).flags().has(PageFlags::HUGETLB);
                    if is_reserved && !found.is_empty() {
                        return Some(va);
                    }
                    let page = self.phys.hold(pfn, self.mapped_page(pfn).order());
                    left = left.saturating_sub(page.order.nr_pages());
                    found.push(page);
                    if left == 0 || is_reserved {
                        return Some(next);
                    }
                }
                va = next;
            }
        }
        // What was found is moved first; the next look finds nothing.
        (!found.is_empty()).then_some(u64::MAX)
    }

    /// Whether a page is on the node that pages leave, and nobody else's. Counted if it is another's, too.
    fn may_leave(&self, pfn: Pfn, nr_pages: u32, moving: &mut NodeMove) -> bool {
        let is_there = self.phys.zone_of(pfn);
        if is_there.is_none_or(|zone| zone.node() != moving.from) {
            return false;
        }
        let mappings = self.mapped_page(pfn).mapcount();
        if mappings > 1 {
            moving.stays.shared += nr_pages;
            moving.stays.most_mappings = moving.stays.most_mappings.max(mappings);
        }
        mappings == 1
    }
}
