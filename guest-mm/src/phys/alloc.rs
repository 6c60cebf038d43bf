//! Requests for frames: the zoned allocator, the buddy system's front end.
//!
//! The fast path looks at the first zone of the requester's node, its watermark and the CPU's own list. Everything else
//! goes through the zonelist: near nodes first, and on each the highest zone that will do, so that the small zones
//! below are spared.

use core::fmt;

use guest_sync::Cpu;

use crate::gfp::Gfp;
use crate::node::NodeId;
use crate::page::Head;
use crate::pcp::{OwnCount, OwnList};
use crate::pfn::{Order, Pfn};
use crate::phys::PhysicalMemory;
use crate::zone::{Watermark, Zone};

/// No zone that the request may use has a chunk of that order above its watermark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllocError {
    /// Order asked for.
    pub order: Order,
    /// Kind of request.
    pub gfp: Gfp,
}

impl fmt::Display for AllocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no free chunk of order {} for a {:?} request",
            self.order.number(),
            self.gfp
        )
    }
}

impl core::error::Error for AllocError {}

impl PhysicalMemory<'_> {
    /// Takes a chunk: 2^order frames, naturally aligned, contents unknown, near to the CPU if possible. Returns its
    /// first frame.
    ///
    /// # Errors
    /// When every zone of the request would fall below its watermark or has no chunk that large.
    #[inline]
    pub fn alloc_pages(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> Result<Pfn, AllocError> {
        self.alloc_pages_node(cpu, self.topology().node_of(cpu.id()), gfp, order)
    }

    /// As [`PhysicalMemory::alloc_pages`], near to a node that there is.
    ///
    /// # Errors
    /// As [`PhysicalMemory::alloc_pages`].
    ///
    /// # Panics
    /// If there is no such node.
    #[inline]
    pub fn alloc_pages_node(
        &self,
        cpu: &Cpu,
        node: NodeId,
        gfp: Gfp,
        order: Order,
    ) -> Result<Pfn, AllocError> {
        #[cfg(test)]
        if self.injected.lock().fails() {
            return Err(AllocError { order, gfp });
        }
        self.alloc_near(cpu, node, gfp, order)
    }

    /// Takes a frame for something of the kernel's own that can be moved: first what the kernel can spare, then removable memory, and at last
    /// as much of the kernel's as `gfp` permits.
    ///
    /// # Errors
    /// As [`PhysicalMemory::alloc_pages`].
    pub(crate) fn alloc_relocatable(&self, cpu: &Cpu, gfp: Gfp) -> Result<Pfn, AllocError> {
        let order = Order::ZERO;
        #[cfg(test)]
        if self.injected.lock().fails() {
            return Err(AllocError { order, gfp });
        }
        let node = self.topology().node_of(cpu.id());
        let take = |gfp| self.alloc_near(cpu, node, gfp, order);
        take(Gfp::KERNEL_RELOCATABLE)
            .or_else(|_| take(Gfp::USER))
            .or_else(|_| take(gfp))
    }

    #[inline]
    fn alloc_near(&self, cpu: &Cpu, node: NodeId, gfp: Gfp, order: Order) -> Result<Pfn, AllocError> {
        if order == Order::ZERO || order == Order::PAGEBLOCK {
            let zone = self.first_zone(node, gfp.highest_zone());
            // The first zone is another node's where this one has no zone that would do.
            let is_near = !gfp.has(Gfp::THIS_NODE) || zone.node() == node;
            let is_allowed = is_near && (!gfp.is_fixed() || zone.has_boot_memory());
            if is_allowed
                && zone.free_pages() >= zone.floor(gfp) + u64::from(order.nr_pages())
                && let Some(pfn) = self.pop(zone, cpu, gfp, order)
            {
                return Ok(pfn);
            }
        }
        self.alloc_slowly(cpu, node, gfp, order)
    }

    /// Takes up to `frames.len()` single frames, and returns how many there were: those are in the first places.
    pub fn alloc_bulk(&self, cpu: &Cpu, gfp: Gfp, frames: &mut [Pfn]) -> usize {
        for (taken, frame) in frames.iter_mut().enumerate() {
            match self.alloc_pages(cpu, gfp, Order::ZERO) {
                Ok(pfn) => *frame = pfn,
                Err(_) => return taken,
            }
        }
        frames.len()
    }

    /// Takes a chunk from the CPU's own list of a zone.
    #[inline]
    fn pop(&self, zone: &Zone, cpu: &Cpu, gfp: Gfp, order: Order) -> Option<Pfn> {
        let lists = zone.lists().this(cpu);
        let list = OwnList::of(lists, order, gfp.mobility())?;
        loop {
            let pfn = if gfp.has(Gfp::COLD) {
                list.pop_cold()?
            } else {
                list.pop()?
            };
            let (page, tag) = self.table.find(pfn).expect("a frame on a list is online");
            if tag.is_isolated() {
                self.give_back(zone, pfn, order);
                continue;
            }
            if order == Order::PAGEBLOCK && tag.mobility() != gfp.mobility() {
                let _areas = zone.areas.lock();
                self.table.tags.set_mobility(pfn, gfp.mobility());
            }
            page.set_head(Head::allocated(order));
            OwnCount::add(lists.map(|lists| lists.events.hits_of(order)), 1);
            return Some(pfn);
        }
    }

    /// Everything that the fast path is not: empty lists, other zones and nodes, other orders, and no memory.
    #[cold]
    #[inline(never)]
    fn alloc_slowly(&self, cpu: &Cpu, node: NodeId, gfp: Gfp, order: Order) -> Result<Pfn, AllocError> {
        self.wake_daemons(node, gfp, order);
        if let Some(pfn) = self.alloc_from_list(cpu, node, gfp, order) {
            return Ok(pfn);
        }
        self.counts.allocstall.add(1);
        // What other CPUs keep at hand may be just what is missing.
        let drained: u64 = self
            .candidates(node, gfp)
            .map(|zone| zone.drain(&self.table, |_| true))
            .sum();
        if drained > 0
            && let Some(pfn) = self.alloc_from_list(cpu, node, gfp, order)
        {
            return Ok(pfn);
        }
        if order > Order::ZERO {
            self.candidates(node, gfp)
                .for_each(|zone| self.shortage.wake_compactor(zone.node(), order));
        }
        Err(AllocError { order, gfp })
    }

    /// Wakes the daemons of all nodes that the request may use when no zone would be left above its `Low` watermark.
    fn wake_daemons(&self, node: NodeId, gfp: Gfp, order: Order) {
        let has_enough = |zone: &Zone| {
            zone.free_pages() >= zone.floor_at(Watermark::Low, gfp) + u64::from(order.nr_pages())
        };
        if !self.candidates(node, gfp).any(has_enough) {
            self.candidates(node, gfp)
                .for_each(|zone| self.shortage.wake_daemon(zone.node(), order));
        }
    }

    /// Whether a zone has enough for the request, in whatever pieces, and leaves its watermark.
    pub(crate) fn could_serve(&self, gfp: Gfp, order: Order) -> bool {
        let has_enough = |zone: &Zone| zone.free_pages() >= zone.floor(gfp) + u64::from(order.nr_pages());
        let mut zones = self.populated_zones();
        zones.any(|zone| zone.kind() <= gfp.highest_zone() && has_enough(zone))
    }

    /// Frames that such requests can still have, whatever their node, before daemons have to bring memory back: what is free above `Low`.
    pub fn spare_pages(&self, gfp: Gfp) -> u64 {
        let zones = self.populated_zones();
        let allowed = zones.filter(|zone| zone.kind() <= gfp.highest_zone());
        let spare = allowed.map(|zone| {
            zone.free_pages()
                .saturating_sub(zone.floor_at(Watermark::Low, gfp))
        });
        spare.sum()
    }

    /// The zones that the request may use, in the order in which they are tried: what never moves goes to those first that have memory which
    /// never leaves, so that blocks which the kernel uses can leave too. Near is not as good as that: such a request for one node alone gets
    /// none of its blocks, so that it is made again for all nodes.
    pub(crate) fn candidates(&self, node: NodeId, gfp: Gfp) -> impl Iterator<Item = &Zone> {
        let (this_node, fixed) = (gfp.has(Gfp::THIS_NODE), gfp.is_fixed());
        let allowed =
            move |zone: &&Zone| zone.kind() <= gfp.highest_zone() && (!this_node || zone.node() == node);
        let stays = move |zone: &&Zone| !fixed || zone.has_boot_memory();
        let first = self.zonelist(node).filter(allowed).filter(stays);
        let leaves = move |zone: &&Zone| fixed && !this_node && !zone.has_boot_memory();
        first.chain(self.zonelist(node).filter(allowed).filter(leaves))
    }

    fn alloc_from_list(&self, cpu: &Cpu, node: NodeId, gfp: Gfp, order: Order) -> Option<Pfn> {
        let mut preferred = None;
        for zone in self.candidates(node, gfp) {
            let preferred = *preferred.get_or_insert(zone);
            let floor = zone.floor(gfp);
            if zone.free_pages() < floor + u64::from(order.nr_pages()) {
                continue;
            }
            let found = match order {
                Order::ZERO => self.pop_or_refill(zone, cpu, gfp, floor),
                _ => self.take(zone, gfp, order, floor),
            };
            if let Some((pfn, slow)) = found {
                self.count(zone, preferred, cpu, order, slow);
                return Some(pfn);
            }
        }
        None
    }

    fn pop_or_refill(&self, zone: &Zone, cpu: &Cpu, gfp: Gfp, floor: u64) -> Option<(Pfn, Slow)> {
        if let Some(pfn) = self.pop(zone, cpu, gfp, Order::ZERO) {
            return Some((pfn, Slow::No));
        }
        let pfn = zone.refill(&self.table, cpu, gfp.mobility(), floor)?;
        self.table.page(pfn).set_head(Head::allocated(Order::ZERO));
        Some((pfn, Slow::Yes))
    }

    fn take(&self, zone: &Zone, gfp: Gfp, order: Order, floor: u64) -> Option<(Pfn, Slow)> {
        let mut areas = zone.areas.lock();
        if areas.free_pages() < floor + u64::from(order.nr_pages()) {
            return None;
        }
        let pfn = areas.take(&self.table.tags, order, gfp.mobility())?;
        self.table.page(pfn).set_head(Head::allocated(order));
        zone.publish(&areas);
        Some((pfn, Slow::Yes))
    }

    /// Counts a chunk (`mm/page_alloc.c`, `zone_statistics`).
    fn count(&self, zone: &Zone, preferred: &Zone, cpu: &Cpu, order: Order, slow: Slow) {
        let events = &zone.events;
        let near = zone.node() == preferred.node();
        if !near {
            events.numa_miss.add(1);
            preferred.events.numa_foreign.add(1);
        }
        match slow {
            Slow::No if near => {}
            // The list took it for a hit.
            Slow::No => events.list_misses.add(1),
            Slow::Yes => {
                events.slow_alloc_pages.add(u64::from(order.nr_pages()));
                events.numa_hit.add(u64::from(near));
                if zone.node() == self.topology().node_of(cpu.id()) {
                    events.numa_local.add(1);
                } else {
                    events.numa_other.add(1);
                }
            }
        }
    }
}

/// Whether a chunk came the slow way, so that no list has counted it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Slow {
    No,
    Yes,
}
