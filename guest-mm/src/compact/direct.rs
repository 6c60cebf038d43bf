//! Compaction for a request that has just failed, by the one who wants it.

use guest_sync::Cpu;

use crate::compact::run::Runner;
use crate::compact::{CompactResult, Defrag, Goal};
use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::mm::Mm;
use crate::node::NodeId;
use crate::pfn::Order;
use crate::phys::PhysicalMemory;
use crate::zone::Zone;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// From now on memory is compacted for huge pages at these times; at first, always.
    pub fn set_defrag(&mut self, defrag: Defrag) {
        self.defrag = defrag;
    }

    /// Compacts the zones that a request may use, one after the other, until one of them has a chunk of that order; no address space may be
    /// locked by the caller (Linux `try_to_compact_pages`). Bounded by the pages of those zones.
    pub fn compact_direct(&self, cpu: &Cpu, gfp: Gfp, order: Order) -> CompactResult {
        let node = self.phys.topology().node_of(cpu.id());
        let mut outcome = CompactResult::Skipped;
        let mut has_stalled = false;
        for zone in self.phys.candidates(node, gfp) {
            if zone.deferral.is_deferred(order) {
                outcome = outcome.max(CompactResult::Deferred);
                continue;
            }
            let Ok(mut run) = self.begin_run(zone, Goal::Chunk(order), Runner::Direct) else {
                continue;
            };
            if !has_stalled {
                has_stalled = true;
                self.phys.counts.compact_stall.add(1);
            }
            let result = loop {
                if let Some(result) = self.compaction_step(cpu, &mut run) {
                    break result;
                }
            };
            if result == CompactResult::Success {
                zone.deferral.reset(order);
                self.phys.counts.compact_success.add(1);
                return result;
            }
            zone.deferral.defer(order);
            outcome = outcome.max(result);
        }
        self.phys.counts.compact_fail.add(u64::from(has_stalled));
        outcome
    }

    /// Whether a fault that found no pageblock is to compact before it does without.
    pub(crate) fn compacts_for_fault(&self) -> bool {
        self.defrag == Defrag::Always
    }
}

impl PhysicalMemory<'_> {
    /// The zones of a node that lack a chunk of that order, or have most of their free memory in small pieces: what its daemon
    /// starts with, each with its goal. `order` is the largest that a request has wanted, if any has.
    pub fn compaction_goals(
        &self,
        node: NodeId,
        order: Option<Order>,
    ) -> impl Iterator<Item = (&Zone, Goal)> {
        let zones = self.populated_zones().filter(move |zone| zone.node() == node);
        let proactive = self.fragmentation_score(node) > FRAGMENTATION_HIGH;
        zones.filter_map(move |zone| match order {
            Some(order) if self.fragmentation_index(zone, order) >= 0 => Some((zone, Goal::Chunk(order))),
            _ => proactive.then_some((zone, Goal::Fragmentation(FRAGMENTATION_LOW))),
        })
    }

    /// A run of the daemon over a zone has ended so: what was wanted is not tried again for a while, or is from now on.
    pub fn compaction_ended(&self, zone: &Zone, goal: Goal, result: CompactResult) {
        let order = match goal {
            Goal::Chunk(order) => order,
            Goal::Fragmentation(_) | Goal::Everything => return,
        };
        match result {
            CompactResult::Success => zone.deferral.reset(order),
            CompactResult::Complete => zone.deferral.defer(order),
            CompactResult::Skipped | CompactResult::Deferred => {}
        }
    }
}

/// A node's score above which its daemon compacts by itself, and the one at which it stops: those of Linux with
/// `vm.compaction_proactiveness` at its default of 20.
const FRAGMENTATION_HIGH: u32 = 90;
const FRAGMENTATION_LOW: u32 = 80;
