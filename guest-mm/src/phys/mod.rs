//! Physical memory: all nodes, zones, sections and blocks, and requests for frames.
//!
//! Everything here is reached by shared reference and from several CPUs at a time. Taking and freeing frames never
//! touches the heap, so a heap may live on top of this. Adding memory does, while no lock of a zone is held.

mod alloc;
mod boot;
mod free;
mod huge_pool;
mod node;
mod pin;

use ::alloc::boxed::Box;
use ::alloc::vec::Vec;

use guest_sync::SpinLock;
use guest_sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use crate::blocks::{BlockIndex, Hotplug, HotplugRegion};
use crate::mem_map::{FrameTable, MemMap};
use crate::node::{NodeId, Topology, ZoneIndex, ZoneSet};
use crate::page::{Page, PageState};
use crate::pageblock::MigrateType;
use crate::pfn::{NR_PAGE_ORDERS, Order, Pfn, PfnRange};
use crate::reclaim::{Shortage, WriteBack};
use crate::section::{Admission, SectionHome};
use crate::stats::{Counts, VmStat, ZoneStat};
use crate::wait::WaitQueue;
use crate::zone::{NR_ZONES, Zone, ZoneKind};

pub use self::alloc::AllocError;
pub use boot::{AddError, BootRegion};
pub use free::FreeError;
pub use huge_pool::HugePoolStat;
pub(crate) use huge_pool::{Claim, Replaced, WithoutFrame};
pub use node::Node;
pub(crate) use pin::{OnLeaving, PinRequest};
pub use pin::{Pin, PinError, PinTerm, PinnedBy};

/// Every frame the guest has, and who has it.
///
/// Lock order: blocks, pins, failed frames, zone. Zones are locked one at a time. Those who wait for memory, or for the end of pins, are woken with none
/// of them held.
#[derive(Debug)]
pub struct PhysicalMemory<'m> {
    pub(crate) table: FrameTable<'m>,
    topology: Topology,
    /// All zones of all nodes, by [`ZoneIndex`].
    zones: Box<[Zone]>,
    /// For each node the order in which a request near to it tries zones, whether they have memory or not.
    zonelists: Box<[Box<[ZoneIndex]>]>,
    /// The zones with memory, a [`ZoneSet`]: one store changes the zonelists of all nodes.
    populated: AtomicU64,
    /// For each node and highest zone the first one of the zonelist that has memory: where requests look first.
    first_zones: Box<[[AtomicU8; NR_ZONES]]>,
    pub(crate) region: SpinLock<HotplugRegion>,
    pub(crate) pins: SpinLock<pin::Pins>,
    /// Those who wait until pages of blocks that are about to leave are not pinned any more.
    pub(crate) pins_ended: WaitQueue,
    /// Frames whose memory has failed, in no order.
    pub(crate) poisoned: SpinLock<Vec<Pfn>>,
    pub(crate) counts: Counts,
    pub(crate) shortage: Shortage,
    pub(crate) write_back: WriteBack,
    pub(crate) huge_pool: huge_pool::HugePool,
    #[cfg(test)]
    pub(crate) injected: SpinLock<crate::tests::inject::Injected>,
}

/// Where a frame is in its life. Exactly one holds for every frame number there is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameState {
    /// In a free chunk of that order that a request may get.
    Free(Order),
    /// In a free chunk of that order, withdrawn because its block is going offline.
    Isolated(Order),
    /// In a free chunk of that order that a CPU keeps at hand.
    Cached(Order),
    /// In an allocated chunk of that order.
    Allocated(Order),
    /// Exists, but was never given to the allocator.
    Reserved,
    /// Exists, but its memory has failed.
    Poisoned,
    /// No descriptor: not memory, not plugged, or offline.
    Offline,
    /// Another CPU is just taking or freeing it.
    Changing,
}

impl<'m> PhysicalMemory<'m> {
    /// A machine of that shape, without memory yet, for which there are descriptors in `map`. What is added as boot
    /// memory lies in `boot`: 4 bytes are allocated for each of its pageblocks.
    pub fn new(map: MemMap<'m>, boot: PfnRange, topology: Topology) -> Self {
        let kinds = |node| ZoneKind::ALL.into_iter().map(move |kind| (node, kind));
        let zones = topology.nodes().flat_map(kinds);
        Self {
            table: FrameTable::new(map, boot),
            zones: zones
                .map(|(node, kind)| Zone::new(&topology, node, kind))
                .collect(),
            zonelists: topology.nodes().map(|node| topology.zonelist(node)).collect(),
            populated: AtomicU64::new(0),
            first_zones: topology
                .nodes()
                .map(|node| ZoneKind::ALL.map(|kind| AtomicU8::new(ZoneIndex::of(node, kind).number())))
                .collect(),
            shortage: Shortage::new(topology.nr_nodes()),
            write_back: WriteBack::new(),
            topology,
            region: SpinLock::new(HotplugRegion::default()),
            pins: SpinLock::new(pin::Pins::default()),
            pins_ended: WaitQueue::new(),
            poisoned: SpinLock::new(Vec::new()),
            huge_pool: huge_pool::HugePool::default(),
            counts: Counts::default(),
            #[cfg(test)]
            injected: SpinLock::new(crate::tests::inject::Injected::default()),
        }
    }

    /// The descriptor of a frame, or `None` where no memory is online.
    #[inline]
    pub fn page(&self, pfn: Pfn) -> Option<&'m Page> {
        self.table.find(pfn).map(|(page, _)| page)
    }

    /// What the frame is, whichever part of a chunk it is in.
    pub fn frame_state(&self, pfn: Pfn) -> FrameState {
        let Some(tag) = self.table.tags.at(pfn) else {
            return FrameState::Offline;
        };
        let areas = self.zone_at(tag.zone()).areas.lock();
        let Some(section) = areas
            .section(tag.section())
            .filter(|section| section.range.contains(pfn))
        else {
            return FrameState::Offline;
        };
        if let Some(order) = section.free_order(pfn - section.range.start()) {
            return match section.admission {
                Admission::Open => FrameState::Free(order),
                Admission::Isolated => FrameState::Isolated(order),
            };
        }
        let Some(head) = self.table.head_of(pfn) else {
            return FrameState::Changing;
        };
        let head = self.table.page(head).head();
        match head.state() {
            PageState::Cached => FrameState::Cached(head.order()),
            PageState::Allocated => FrameState::Allocated(head.order()),
            PageState::Reserved => FrameState::Reserved,
            PageState::Poisoned => FrameState::Poisoned,
            PageState::Hole => FrameState::Offline,
            PageState::Blank => FrameState::Changing,
        }
    }

    /// First frame of the chunk in use that a frame is in; `None` for a free one, and where no memory is online.
    pub fn head_of(&self, pfn: Pfn) -> Option<Pfn> {
        self.table.head_of(pfn)
    }

    /// Mobility of the frame's pageblock, or `None` where no memory is online.
    pub fn migrate_type(&self, pfn: Pfn) -> Option<MigrateType> {
        let tag = self.table.tags.at(pfn)?;
        Some(if tag.is_isolated() {
            MigrateType::Isolate
        } else {
            tag.mobility().migrate_type()
        })
    }

    /// The shape of the machine.
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// A zone of a node that there is.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn zone(&self, node: NodeId, kind: ZoneKind) -> &Zone {
        self.zone_at(ZoneIndex::of(node, kind))
    }

    /// All zones, node by node, in the order of their addresses on a PC.
    pub fn zones(&self) -> impl Iterator<Item = &Zone> {
        self.zones.iter()
    }

    /// Zones that have memory.
    pub fn populated_zones(&self) -> impl Iterator<Item = &Zone> {
        self.zones().filter(|zone| zone.is_populated())
    }

    /// The zone that a frame is in, or `None` where no memory is online.
    pub fn zone_of(&self, pfn: Pfn) -> Option<&Zone> {
        Some(self.zone_at(self.table.tags.at(pfn)?.zone()))
    }

    /// Event counters.
    pub fn stats(&self) -> VmStat {
        self.counts.snapshot(self.zones(), &self.topology)
    }

    /// Event counters of one zone.
    pub fn zone_stat(&self, zone: &Zone) -> ZoneStat {
        zone.stat(&self.topology)
    }

    /// Free chunks of each order in a zone, as in `/proc/buddyinfo`. Looks at every pageblock.
    pub fn free_chunks(&self, node: NodeId, kind: ZoneKind) -> [u64; NR_PAGE_ORDERS] {
        self.zone(node, kind).areas.lock().count_chunks()
    }

    /// Gives all frames on the lists of CPUs back to the buddy allocator; returns how many.
    pub fn drain_all(&self) -> u64 {
        self.zones().map(|zone| zone.drain(&self.table, |_| true)).sum()
    }

    /// Where blocks are, and their states.
    pub fn hotplug_region(&self) -> Hotplug<'_> {
        Hotplug::of(&self.region)
    }

    /// The hot-plug block that a frame belongs to, or `None` for memory found at boot and for no memory.
    pub fn block_of(&self, pfn: Pfn) -> Option<BlockIndex> {
        let tag = self.table.tags.at(pfn)?;
        let areas = self.zone_at(tag.zone()).areas.lock();
        match areas.section(tag.section())?.home {
            SectionHome::Boot => None,
            SectionHome::Block(block) => Some(block),
        }
    }

    #[inline]
    pub(crate) fn zone_at(&self, zone: ZoneIndex) -> &Zone {
        &self.zones[zone.index()]
    }

    /// The zones that a request near to `node` tries, in that order: those that have memory at the moment of the call.
    pub(crate) fn zonelist(&self, node: NodeId) -> impl Iterator<Item = &Zone> {
        let populated = self.zones_with_memory();
        let list = self.zonelists[node.index()].iter();
        list.filter(move |zone| populated.has(**zone))
            .map(|&zone| self.zone_at(zone))
    }

    /// The zones with memory.
    pub(crate) fn zones_with_memory(&self) -> ZoneSet {
        ZoneSet::from_bits(self.populated.load(SeqCst))
    }

    /// The zone that a request looks at first.
    #[inline]
    pub(crate) fn first_zone(&self, node: NodeId, highest: ZoneKind) -> &Zone {
        let zone = self.first_zones[node.index()][highest.index()].load(Relaxed);
        self.zone_at(ZoneIndex::from_number(zone))
    }

    /// Derives the zonelists, and where each begins, after a zone has got its first memory or lost its last (Linux
    /// `build_all_zonelists`). Whoever goes through one meanwhile finds the zones of before.
    pub(crate) fn rebuild_zonelists(&self) {
        let zones = self.populated_zones();
        let populated: ZoneSet = zones
            .map(|zone| ZoneIndex::of(zone.node(), zone.kind()))
            .collect();
        self.populated.store(populated.bits(), SeqCst);
        for (node, firsts) in self.topology.nodes().zip(&self.first_zones) {
            for (highest, first) in ZoneKind::ALL.into_iter().zip(firsts) {
                let mut list = self.zonelist(node).filter(|zone| zone.kind() <= highest);
                if let Some(zone) = list.next() {
                    first.store(ZoneIndex::of(zone.node(), zone.kind()).number(), Relaxed);
                }
            }
        }
    }
}
