//! Physical memory: all zones, sections and blocks, and requests for frames.
//!
//! Taking and freeing frames never touches the heap, so a heap may live on top of this. Adding memory does.

mod boot;
mod pin;

use core::fmt;

use crate::blocks::HotplugRegion;
use crate::gfp::Gfp;
use crate::mem_map::MemMap;
use crate::page::{Page, PageState};
use crate::pageblock::{MigrateType, Mobility};
use crate::pfn::{Order, Pfn, PfnRange};
use crate::section::{Admission, FreeLinks, SectionHome, SectionId, WholeLinks};
use crate::stats::VmStat;
use crate::zone::{NR_ZONES, Zone, ZoneKind};

pub use boot::{AddError, BootRegion, Descriptors};
pub use pin::{Pin, PinError};

/// Every frame the guest has, and who has it.
#[derive(Debug)]
pub struct PhysicalMemory {
    pub(crate) map: MemMap,
    pub(crate) zones: [Zone; NR_ZONES],
    pub(crate) region: HotplugRegion,
    pub(crate) pins: pin::Pins,
    pub(crate) stats: VmStat,
    #[cfg(test)]
    pub(crate) injected: crate::tests::inject::Injected,
}

/// Where a frame is in its life. Exactly one holds for every frame number there is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FrameState {
    /// In a free chunk of that order that a request may get.
    Free(Order),
    /// In a free chunk of that order, withdrawn because its block is going offline.
    Isolated(Order),
    /// In an allocated chunk of that order.
    Allocated(Order),
    /// Exists, but was never given to the allocator.
    Reserved,
    /// No descriptor: not memory, not plugged, or offline.
    Offline,
}

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

/// A free that would damage something; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeError {
    /// The frame is not the head of an allocated chunk: freed twice, foreign, or reserved.
    NotAllocated {
        /// The frame.
        pfn: Pfn,
        /// What it is.
        state: FrameState,
    },
    /// The chunk has another order.
    WrongOrder {
        /// Head of the chunk.
        pfn: Pfn,
        /// Its order.
        order: Order,
    },
    /// Mapped or pinned: somebody else still refers to it.
    InUse {
        /// Head of the chunk.
        pfn: Pfn,
        /// References besides the caller's.
        others: u32,
    },
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllocated { pfn, state } => write!(f, "free of {pfn}, which is {state:?}"),
            Self::WrongOrder { pfn, order } => {
                write!(f, "free of {pfn}, a chunk of order {}", order.number())
            }
            Self::InUse { pfn, others } => write!(f, "free of {pfn}, which has {others} other references"),
        }
    }
}

impl core::error::Error for FreeError {}

impl PhysicalMemory {
    /// No memory at all.
    pub fn new() -> Self {
        Self {
            map: MemMap::default(),
            zones: ZoneKind::ALL.map(Zone::new),
            region: HotplugRegion::default(),
            pins: pin::Pins::default(),
            stats: VmStat::default(),
            #[cfg(test)]
            injected: crate::tests::inject::Injected::default(),
        }
    }

    /// Takes a chunk: 2^order frames, naturally aligned, contents unknown. Returns its first frame.
    ///
    /// # Errors
    /// When every zone of the request would fall below its watermark or has no chunk that large.
    pub fn alloc_pages(&mut self, gfp: Gfp, order: Order) -> Result<Pfn, AllocError> {
        #[cfg(test)]
        if self.injected.fails() {
            return Err(AllocError { order, gfp });
        }
        for &kind in gfp.zonelist() {
            let zone = &self.zones[kind.index()];
            let reserve = if gfp.is_movable() {
                zone.reserve_for_kernel()
            } else {
                0
            };
            let keep = zone.watermark(gfp.watermark()) + reserve;
            if zone.can_give(order.nr_pages(), keep)
                && let Some(pfn) = self.alloc_from(kind, gfp, order)
            {
                return Ok(pfn);
            }
        }
        Err(AllocError { order, gfp })
    }

    /// Gives a chunk back.
    ///
    /// # Errors
    /// When `pfn` is not the head of an allocated chunk of that order, or somebody else still uses it.
    pub fn free_pages(&mut self, pfn: Pfn, order: Order) -> Result<(), FreeError> {
        let not_allocated = |memory: &Self| FreeError::NotAllocated {
            pfn,
            state: memory.frame_state(pfn),
        };
        let Some((id, offset)) = self.map.locate(pfn) else {
            return Err(not_allocated(self));
        };
        let page = &self.map.section(id).pages[offset as usize];
        if page.state != PageState::Allocated {
            return Err(not_allocated(self));
        }
        if page.order != order.number() {
            return Err(FreeError::WrongOrder {
                pfn,
                order: page.order(),
            });
        }
        if page._count != 1 || page._mapcount != 0 {
            return Err(FreeError::InUse {
                pfn,
                others: page._count - 1 + page._mapcount,
            });
        }
        self.stats.pgfree += u64::from(order.nr_pages());
        self.change(id, |section| section.give(offset, order));
        Ok(())
    }

    /// The descriptor of a frame, or `None` where no memory is online.
    pub fn page(&self, pfn: Pfn) -> Option<&Page> {
        self.map.page(pfn)
    }

    /// What the frame is, whichever part of a chunk it is in.
    pub fn frame_state(&self, pfn: Pfn) -> FrameState {
        let Some((id, offset)) = self.map.locate(pfn) else {
            return FrameState::Offline;
        };
        let section = self.map.section(id);
        let head = &section.pages[section.head_of(offset) as usize];
        match head.state {
            PageState::Free if section.admission == Admission::Isolated => FrameState::Isolated(head.order()),
            PageState::Free => FrameState::Free(head.order()),
            PageState::Allocated => FrameState::Allocated(head.order()),
            PageState::Reserved => FrameState::Reserved,
            PageState::Hole => FrameState::Offline,
            PageState::Tail => unreachable!("head_of never answers with a tail"),
        }
    }

    /// Mobility of the frame's pageblock, or `None` where no memory is online.
    pub fn migrate_type(&self, pfn: Pfn) -> Option<MigrateType> {
        let (id, offset) = self.map.locate(pfn)?;
        let section = self.map.section(id);
        if section.admission == Admission::Isolated {
            return Some(MigrateType::Isolate);
        }
        Some(
            match section.pageblocks[(offset / crate::pfn::PAGEBLOCK_NR_PAGES) as usize].mobility {
                Mobility::Unmovable => MigrateType::Unmovable,
                Mobility::Movable => MigrateType::Movable,
            },
        )
    }

    /// A zone.
    pub fn zone(&self, kind: ZoneKind) -> &Zone {
        &self.zones[kind.index()]
    }

    /// Zones that have memory, in the order of their addresses.
    pub fn populated_zones(&self) -> impl Iterator<Item = &Zone> {
        self.zones.iter().filter(|zone| zone.present_pages > 0)
    }

    /// Event counters.
    pub fn stats(&self) -> &VmStat {
        &self.stats
    }

    /// Free chunks of each order in a zone, as in `/proc/buddyinfo`. Walks every free list.
    pub fn free_chunks(&self, kind: ZoneKind) -> [u64; crate::pfn::NR_PAGE_ORDERS] {
        let mut counts = [0; crate::pfn::NR_PAGE_ORDERS];
        for (_, section) in self.map.iter() {
            if section.zone == kind && section.admission == Admission::Open {
                section.count_chunks(&mut counts);
            }
        }
        counts
    }

    fn alloc_from(&mut self, kind: ZoneKind, gfp: Gfp, order: Order) -> Option<Pfn> {
        let mobility = if gfp.is_movable() {
            Mobility::Movable
        } else {
            Mobility::Unmovable
        };
        let whole = order >= Order::PAGEBLOCK;
        let zone = &self.zones[kind.index()];
        let mut at = if whole {
            zone.with_whole.fullest()
        } else {
            zone.with_free.fullest()
        };
        while let Some(number) = at {
            let id = SectionId(number);
            if let Some(offset) = self.change(id, |section| section.take(order, mobility)) {
                self.stats.pgalloc[kind.index()] += u64::from(order.nr_pages());
                return Some(self.map.section(id).pfn(offset));
            }
            let zone = &self.zones[kind.index()];
            at = if whole {
                zone.with_whole.next(&WholeLinks(&mut self.map.sections), number)
            } else {
                zone.with_free.next(&FreeLinks(&mut self.map.sections), number)
            };
        }
        None
    }

    /// Changes a section's free lists and brings its zone's counters and lists up to date.
    pub(crate) fn change<R>(
        &mut self,
        id: SectionId,
        change: impl FnOnce(&mut crate::section::Section) -> R,
    ) -> R {
        let section = self.map.section_mut(id);
        let visible = |section: &crate::section::Section| match section.admission {
            Admission::Open => u64::from(section.free_pages),
            Admission::Isolated => 0,
        };
        let before = visible(section);
        let result = change(section);
        let zone = &mut self.zones[section.zone.index()];
        zone.free_pages = zone.free_pages - before + visible(section);
        let (free, whole) = (section.free_bucket(), section.whole_bucket());
        let (free_moves, whole_moves) = (
            section.free_link.bucket() != free,
            section.whole_link.bucket() != whole,
        );
        if free_moves {
            zone.with_free
                .place(&mut FreeLinks(&mut self.map.sections), id.0, free);
        }
        if whole_moves {
            zone.with_whole
                .place(&mut WholeLinks(&mut self.map.sections), id.0, whole);
        }
        result
    }

    /// Adds a section to its zone and opens it for requests.
    pub(crate) fn enter_zone(&mut self, id: SectionId) {
        let section = self.map.section(id);
        let zone = &mut self.zones[section.zone.index()];
        zone.span = if zone.span.is_empty() {
            section.range
        } else {
            hull(zone.span, section.range)
        };
        zone.present_pages += u64::from(section.present_pages);
        zone.managed_pages += u64::from(section.managed_pages);
        zone.free_pages += u64::from(section.free_pages);
        zone.set_watermarks();
        self.change(id, |_| ());
    }

    /// Takes an isolated section out of its zone.
    pub(crate) fn leave_zone(&mut self, id: SectionId) {
        let section = self.map.section(id);
        let (kind, range) = (section.zone, section.range);
        let zone = &mut self.zones[kind.index()];
        zone.present_pages -= u64::from(section.present_pages);
        zone.managed_pages -= u64::from(section.managed_pages);
        zone.set_watermarks();
        if range.start() == zone.span.start() || range.end() == zone.span.end() {
            let others = self
                .map
                .iter()
                .filter(|&(other, section)| other != id && section.zone == kind);
            let span = others.map(|(_, section)| section.range).reduce(hull);
            self.zones[kind.index()].span = span.unwrap_or_default();
        }
    }

    /// The hot-plug block that a frame belongs to, or `None` for memory found at boot and for no memory.
    pub fn block_of(&self, pfn: Pfn) -> Option<crate::blocks::BlockIndex> {
        match self.map.section(self.map.locate(pfn)?.0).home {
            SectionHome::Boot => None,
            SectionHome::Block(block) => Some(block),
        }
    }
}

impl Default for PhysicalMemory {
    fn default() -> Self {
        Self::new()
    }
}

/// The smallest range that contains both.
fn hull(a: PfnRange, b: PfnRange) -> PfnRange {
    let (start, end) = (a.start().min(b.start()), a.end().max(b.end()));
    PfnRange::new(start, end - start).expect("between two ranges that exist")
}
