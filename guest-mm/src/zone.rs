//! Zones: frames of one node with the same permitted use, their counters and watermarks (Linux
//! `include/linux/mmzone.h`).

use guest_sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use guest_sync::{PerCpu, SpinLock};

use crate::areas::FreeAreas;
use crate::compact::Deferral;
use crate::gfp::Gfp;
use crate::lru::Lru;
use crate::node::{NodeId, Topology, ZoneIndex};
use crate::pcp::{CpuLists, Limits};
use crate::pfn::{Pfn, PfnRange};
use crate::section::Section;
use crate::stats::ZoneEvents;

/// Which use a zone's frames are kept for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ZoneKind {
    /// Below 16 MiB, for devices that reach no further.
    Dma = 0,
    /// Below 4 GiB, for devices with 32-bit addresses.
    Dma32 = 1,
    /// Anything, the kernel's own unmovable data too.
    Normal = 2,
    /// What the kernel has not mapped: it reaches a frame only through a mapping made for it.
    HighMem = 3,
    /// Only what can be moved away: the zone whose blocks can be taken out at run time.
    Movable = 4,
}

/// Number of kinds of zones.
pub const NR_ZONES: usize = 5;

impl ZoneKind {
    /// All kinds, in the order of their addresses on a PC.
    pub const ALL: [Self; NR_ZONES] = [Self::Dma, Self::Dma32, Self::Normal, Self::HighMem, Self::Movable];

    /// Place in arrays with one element for each kind.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name that Linux prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dma => "DMA",
            Self::Dma32 => "DMA32",
            Self::Normal => "Normal",
            Self::HighMem => "HighMem",
            Self::Movable => "Movable",
        }
    }
}

/// How far requests may empty a zone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Watermark {
    /// No frame at all: what requests that lead to more memory leave behind.
    Nothing = 0,
    /// Half of `Min`: what atomic requests leave behind.
    Critical = 1,
    /// Ordinary requests leave this many frames.
    Min = 2,
    /// Migration leaves this many; reclaim starts below.
    Low = 3,
    /// Reclaim stops above.
    High = 4,
}

const NR_WATERMARKS: usize = 5;
/// Most frames by which `High` is above `Low` where these are not larger for the zone's size alone: 1 MiB.
const MOST_GAP: u64 = 256;

/// Counters of one zone, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZoneCounters {
    /// From the zone's first frame to its last, holes included.
    pub spanned_pages: u64,
    /// Frames that exist: spanned without the holes.
    pub present_pages: u64,
    /// Frames given to the buddy allocator: present without what was reserved at boot.
    pub managed_pages: u64,
    /// Free frames of the buddy allocator that a request could get. Free frames of isolated blocks do not count, nor do
    /// those on the lists of CPUs.
    pub free_pages: u64,
    /// Free frames on the lists of CPUs. Exact while the CPUs do nothing.
    pub cached_pages: u64,
}

/// One zone.
///
/// Counters can be read without the lock; they are written under it. Lock order: no other lock of this crate is taken
/// while a zone's is held, and nothing is allocated from or freed to the heap: the heap lives on top of this.
#[derive(Debug)]
pub struct Zone {
    kind: ZoneKind,
    node: NodeId,
    /// Some of it was there at boot, and never leaves.
    has_boot_memory: AtomicBool,
    /// Copy of [`FreeAreas::free_pages`].
    free_pages: AtomicU64,
    /// By watermark and by highest zone of the request: frames that must remain free.
    floors: [[AtomicU64; NR_ZONES]; NR_WATERMARKS],
    limits: Limits,
    lists: PerCpu<CpuLists>,
    pub(crate) areas: SpinLock<FreeAreas>,
    pub(crate) lru: Lru,
    pub(crate) deferral: Deferral,
    start: AtomicU32,
    spanned_pages: AtomicU32,
    present_pages: AtomicU64,
    managed_pages: AtomicU64,
    pub(crate) events: ZoneEvents,
}

impl Zone {
    /// A zone without memory. There are lists for CPUs only if it can ever have any.
    pub(crate) fn new(topology: &Topology, node: NodeId, kind: ZoneKind) -> Self {
        let nr_cpus = if topology.limits().may_have(kind) {
            topology.nr_cpus()
        } else {
            0
        };
        Self {
            kind,
            node,
            has_boot_memory: AtomicBool::new(false),
            free_pages: AtomicU64::new(0),
            floors: core::array::from_fn(|_| core::array::from_fn(|_| AtomicU64::new(0))),
            limits: Limits::default(),
            lists: PerCpu::new(nr_cpus, |_| CpuLists::new()),
            lru: Lru::default(),
            deferral: Deferral::default(),
            areas: SpinLock::new(FreeAreas::new(ZoneIndex::of(node, kind))),
            start: AtomicU32::new(0),
            spanned_pages: AtomicU32::new(0),
            present_pages: AtomicU64::new(0),
            managed_pages: AtomicU64::new(0),
            events: ZoneEvents::default(),
        }
    }

    /// Which kind of zone this is.
    pub const fn kind(&self) -> ZoneKind {
        self.kind
    }

    /// The node that its frames are near to.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The zone's counters.
    pub fn counters(&self) -> ZoneCounters {
        ZoneCounters {
            spanned_pages: u64::from(self.span().nr_pages()),
            present_pages: self.present_pages.load(Relaxed),
            managed_pages: self.managed_pages(),
            free_pages: self.free_pages(),
            cached_pages: self.cached_pages(),
        }
    }

    /// First frame of the span, and its length. Empty when the zone has no memory.
    pub fn span(&self) -> PfnRange {
        let start = Pfn::new(self.start.load(Relaxed));
        PfnRange::new(start, self.spanned_pages.load(Relaxed)).unwrap_or_default()
    }

    /// Whether some of its memory never leaves.
    #[inline]
    pub(crate) fn has_boot_memory(&self) -> bool {
        self.has_boot_memory.load(Relaxed)
    }

    /// Some of its memory never leaves.
    pub(crate) fn set_has_boot_memory(&self) {
        self.has_boot_memory.store(true, Relaxed);
    }

    /// Whether it has memory.
    pub fn is_populated(&self) -> bool {
        self.present_pages.load(Relaxed) > 0
    }

    /// Frames that requests bound by the mark leave behind.
    pub fn watermark(&self, mark: Watermark) -> u64 {
        self.floors[mark as usize][self.kind.index()].load(Relaxed)
    }

    /// Frames that requests which could also be served by a zone as high as `highest` leave here besides the
    /// watermark, for those that could not (Linux `lowmem_reserve`): the kernel's own data, page tables and descriptors
    /// of hot-added blocks have nowhere else to go.
    pub fn reserve(&self, highest: ZoneKind) -> u64 {
        let marks = &self.floors[Watermark::Min as usize];
        marks[highest.index()]
            .load(Relaxed)
            .saturating_sub(self.watermark(Watermark::Min))
    }

    /// Free frames of the buddy allocator.
    #[inline]
    pub(crate) fn free_pages(&self) -> u64 {
        self.free_pages.load(Relaxed)
    }

    pub(crate) fn managed_pages(&self) -> u64 {
        self.managed_pages.load(Relaxed)
    }

    /// Frames that such a request must leave behind.
    #[inline]
    pub(crate) fn floor(&self, gfp: Gfp) -> u64 {
        self.floors[gfp.watermark() as usize][gfp.reserve_zone().index()].load(Relaxed)
    }

    /// Frames that the request would leave behind if it were bound by another watermark than its own.
    pub(crate) fn floor_at(&self, mark: Watermark, gfp: Gfp) -> u64 {
        self.floors[mark as usize][gfp.reserve_zone().index()].load(Relaxed)
    }

    /// How long lists of CPUs may become.
    #[inline]
    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The lists of all CPUs.
    #[inline]
    pub(crate) const fn lists(&self) -> &PerCpu<CpuLists> {
        &self.lists
    }

    fn cached_pages(&self) -> u64 {
        self.lists.iter().map(|(_, lists)| lists.nr_pages()).sum()
    }

    /// Copies what requests look at without the lock. To be called, with the lock, after every change.
    #[inline]
    pub(crate) fn publish(&self, areas: &FreeAreas) {
        self.free_pages.store(areas.free_pages(), Relaxed);
    }

    /// Counts a section that has come; with the lock.
    pub(crate) fn grow(&self, areas: &FreeAreas, range: PfnRange, present_pages: u32, managed_pages: u32) {
        let span = match self.span() {
            span if span.is_empty() => range,
            span => span.hull(range),
        };
        self.set_span(span);
        self.present_pages.store(
            self.present_pages.load(Relaxed) + u64::from(present_pages),
            Relaxed,
        );
        self.set_managed(self.managed_pages() + u64::from(managed_pages));
        self.publish(areas);
    }

    /// Counts a section that has gone; with the lock.
    pub(crate) fn shrink(&self, areas: &FreeAreas, gone: &Section) {
        let span = self.span();
        if gone.range.start() == span.start() || gone.range.end() == span.end() {
            let left = areas
                .iter()
                .map(|(_, section)| section.range)
                .reduce(PfnRange::hull);
            self.set_span(left.unwrap_or_default());
        }
        let present_pages = self.present_pages.load(Relaxed) - u64::from(gone.present_pages);
        self.present_pages.store(present_pages, Relaxed);
        self.set_managed(self.managed_pages() - u64::from(gone.managed_pages));
        self.publish(areas);
    }

    /// Counts a free frame that has gone for good; with the lock.
    pub(crate) fn lose_one(&self, areas: &FreeAreas) {
        self.set_managed(self.managed_pages() - 1);
        self.publish(areas);
    }

    fn set_span(&self, span: PfnRange) {
        self.start.store(span.start().number(), Relaxed);
        self.spanned_pages.store(span.nr_pages(), Relaxed);
    }

    fn set_managed(&self, managed: u64) {
        self.managed_pages.store(managed, Relaxed);
        self.limits.derive(managed);
    }

    /// Derives the watermarks from the managed size, by the kernel's formulas (`mm/page_alloc.c`,
    /// `calculate_min_free_kbytes` and `__setup_per_zone_wmarks`), and what requests that could be served by higher
    /// zones leave here besides (`setup_per_zone_lowmem_reserve`). `above` has for each kind of zone the managed frames
    /// of the node's zones from the one above this up to it.
    pub(crate) fn set_floors(&self, above: &[u64; NR_ZONES]) {
        let managed = self.managed_pages();
        let min = match self.kind {
            // Nothing unmovable lives here: a token reserve that lets migration and reclaim make progress.
            ZoneKind::Movable | ZoneKind::HighMem => (managed / 1024).clamp(32, 128),
            // min_free_kbytes = sqrt(16 * managed kB); a quarter of it in frames.
            ZoneKind::Dma | ZoneKind::Dma32 | ZoneKind::Normal => (managed * 4 * 16).isqrt() / 4,
        }
        .min(managed / 16);
        // Between the two there is room for some windows that are read ahead or mapped around faults: who takes those leaves
        // `Low` behind, and the daemon brings back what is missing to `High` (Linux: `watermark_scale_factor`).
        let low = min + min / 4;
        let high = low + (min / 4).max((managed / 64).min(MOST_GAP));
        let marks = [0, min / 2, min, low, high];
        for (floors, mark) in self.floors.iter().zip(marks) {
            for (highest, floor) in ZoneKind::ALL.into_iter().zip(floors) {
                let reserve = self.reserve_of(managed, highest, above[highest.index()]);
                // Nothing holds for `Nothing`.
                floor.store(if mark == 0 { 0 } else { mark + reserve }, Relaxed);
            }
        }
    }

    fn reserve_of(&self, managed: u64, highest: ZoneKind, above: u64) -> u64 {
        // `sysctl_lowmem_reserve_ratio`: small zones give a 256th of what lies above them.
        let ratio = match self.kind {
            ZoneKind::Dma | ZoneKind::Dma32 => 256,
            ZoneKind::Normal => 32,
            ZoneKind::HighMem | ZoneKind::Movable => return 0,
        };
        match highest {
            // What need not be mapped always leaves the kernel a part of what is: page tables, and the descriptors of
            // the very blocks that are plugged when memory is short, have nowhere else to go.
            ZoneKind::HighMem | ZoneKind::Movable => (managed / 16).max(above / ratio).min(managed / 4),
            _ => (above / ratio).min(managed),
        }
    }
}
