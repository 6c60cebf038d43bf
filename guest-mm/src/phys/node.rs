//! The node descriptor (Linux `pg_data_t`; "Understanding the Linux Kernel", 3rd ed., table 8-3).

use crate::blocks::HotplugRegion;
use crate::node::{NodeId, NodeState};
use crate::phys::PhysicalMemory;
use crate::section::{Section, SectionHome};
use crate::zone::{NR_ZONES, Zone, ZoneKind};

/// A node as it is now: its zones, its zonelist, and how much memory it has.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    memory: &'a PhysicalMemory<'a>,
    id: NodeId,
}

impl<'a> Node<'a> {
    /// `node_id`.
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// `node_zones`: all five, whether they have memory or not.
    pub fn zones(&self) -> impl Iterator<Item = &'a Zone> + use<'a> {
        let (memory, id) = (self.memory, self.id);
        ZoneKind::ALL.into_iter().map(move |kind| memory.zone(id, kind))
    }

    /// `node_zonelists`: the zones of all nodes in the order in which a request near to this one tries them.
    pub fn zonelist(&self) -> impl Iterator<Item = &'a Zone> + use<'a> {
        self.memory.zonelist(self.id)
    }

    /// `nr_zones`: zones with memory.
    pub fn nr_zones(&self) -> usize {
        self.zones().filter(|zone| zone.is_populated()).count()
    }

    /// `node_start_pfn` and `node_spanned_pages`: from the node's first frame to its last, other nodes' frames and holes
    /// included.
    pub fn span(&self) -> crate::PfnRange {
        let spans = self.zones().map(Zone::span).filter(|span| !span.is_empty());
        spans.reduce(crate::PfnRange::hull).unwrap_or_default()
    }

    /// `node_present_pages`: frames that exist.
    pub fn present_pages(&self) -> u64 {
        self.zones().map(|zone| zone.counters().present_pages).sum()
    }
}

impl<'m> PhysicalMemory<'m> {
    /// A node, if there is one of that number.
    pub fn node(&self, id: NodeId) -> Option<Node<'_>> {
        self.topology().check(id).ok()?;
        Some(Node { memory: self, id })
    }

    /// Whether a node has memory. With its first block it has, and with its last it has not any more: then it is in no
    /// zonelist, and its daemons are told to end.
    pub fn node_state(&self, id: NodeId) -> NodeState {
        self.zones_with_memory().node_state(id)
    }

    /// Frames of boot memory near to a node: they never go away.
    pub fn boot_pages(&self, id: NodeId) -> u64 {
        let zones = ZoneKind::ALL.map(|kind| self.zone(id, kind));
        let in_zone = |zone: &Zone| {
            let areas = zone.areas.lock();
            let sections = areas.iter().map(|(_, section)| section);
            let boot = sections.filter(|section| section.home == SectionHome::Boot);
            boot.map(|section: &Section| u64::from(section.present_pages))
                .sum::<u64>()
        };
        zones.into_iter().map(in_zone).sum()
    }

    /// A zone of the node has lost its last memory. If the node has no other, its tasks are to end, and everybody who follows the events
    /// hears of it.
    pub(crate) fn leave_node(&self, region: &mut HotplugRegion, id: NodeId) {
        if self.node_state(id) == NodeState::Offline {
            region.node_is(id, NodeState::Offline);
            self.shortage.dismiss(id);
        }
    }

    /// Derives what requests must leave behind in each zone of a node, after one of them has changed its size.
    pub(crate) fn derive_floors(&self, node: NodeId) {
        for zone in ZoneKind::ALL.map(|kind| self.zone(node, kind)) {
            let mut above = [0; NR_ZONES];
            let mut sum = 0;
            for higher in ZoneKind::ALL.into_iter().filter(|&higher| higher > zone.kind()) {
                sum += self.zone(node, higher).managed_pages();
                above[higher.index()] = sum;
            }
            zone.set_floors(&above);
        }
    }
}
