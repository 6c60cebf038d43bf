//! Zones: frames with the same permitted use, their counters and watermarks (Linux `include/linux/mmzone.h`).

use crate::fill::FillList;
use crate::pfn::{Pfn, PfnRange};

/// Which use a zone's frames are kept for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ZoneKind {
    /// Below 16 MiB, for devices that reach no further.
    Dma,
    /// Below 4 GiB, for devices with 32-bit addresses.
    Dma32,
    /// Anything, the kernel's own unmovable data too.
    Normal,
    /// Only what can be moved away: the zone whose blocks can be taken out at run time.
    Movable,
}

/// Number of kinds of zones.
pub const NR_ZONES: usize = 4;

impl ZoneKind {
    /// All kinds, in the order of their addresses on a PC.
    pub const ALL: [Self; NR_ZONES] = [Self::Dma, Self::Dma32, Self::Normal, Self::Movable];

    pub(crate) const fn index(self) -> usize {
        match self {
            Self::Dma => 0,
            Self::Dma32 => 1,
            Self::Normal => 2,
            Self::Movable => 3,
        }
    }

    /// The name that Linux prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dma => "DMA",
            Self::Dma32 => "DMA32",
            Self::Normal => "Normal",
            Self::Movable => "Movable",
        }
    }
}

/// How far requests may empty a zone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Watermark {
    /// Half of `Min`: what atomic requests leave behind.
    Critical,
    /// Ordinary requests leave this many frames.
    Min,
    /// Migration leaves this many; reclaim starts below.
    Low,
    /// Reclaim stops above.
    High,
}

/// Counters of one zone, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ZoneCounters {
    /// From the zone's first frame to its last, holes included.
    pub spanned_pages: u64,
    /// Frames that exist: spanned without the holes.
    pub present_pages: u64,
    /// Frames given to the buddy allocator: present without what was reserved at boot.
    pub managed_pages: u64,
    /// Frames that a request could get. Free frames of isolated blocks do not count.
    pub free_pages: u64,
}

/// One zone: its counters, and the sections with free frames ordered by how full they are.
#[derive(Debug)]
pub struct Zone {
    kind: ZoneKind,
    pub(crate) span: PfnRange,
    pub(crate) present_pages: u64,
    pub(crate) managed_pages: u64,
    pub(crate) free_pages: u64,
    watermarks: [u64; 4],
    reserve_for_kernel: u64,
    /// Online sections with at least one free frame.
    pub(crate) with_free: FillList,
    /// Online sections with at least one free chunk of a pageblock or more.
    pub(crate) with_whole: FillList,
}

impl Zone {
    pub(crate) const fn new(kind: ZoneKind) -> Self {
        Self {
            kind,
            span: match PfnRange::new(Pfn::new(0), 0) {
                Some(empty) => empty,
                None => unreachable!(),
            },
            present_pages: 0,
            managed_pages: 0,
            free_pages: 0,
            watermarks: [0; 4],
            reserve_for_kernel: 0,
            with_free: FillList::new(),
            with_whole: FillList::new(),
        }
    }

    /// Which zone this is.
    pub const fn kind(&self) -> ZoneKind {
        self.kind
    }

    /// The zone's counters.
    pub const fn counters(&self) -> ZoneCounters {
        ZoneCounters {
            spanned_pages: self.span.nr_pages() as u64,
            present_pages: self.present_pages,
            managed_pages: self.managed_pages,
            free_pages: self.free_pages,
        }
    }

    /// First frame of the span, and its length. Empty when the zone has no memory.
    pub const fn span(&self) -> PfnRange {
        self.span
    }

    /// Frames that requests bound by the mark leave behind.
    pub const fn watermark(&self, mark: Watermark) -> u64 {
        self.watermarks[mark as usize]
    }

    /// Frames that movable requests leave to the kernel here, besides the watermark: page tables and descriptors of
    /// hot-added blocks have nowhere else to go (Linux' `lowmem_reserve`, simplified to one ratio).
    pub const fn reserve_for_kernel(&self) -> u64 {
        self.reserve_for_kernel
    }

    /// Derives the watermarks from the managed size, by the kernel's formulas
    /// (`mm/page_alloc.c`, `calculate_min_free_kbytes` and `__setup_per_zone_wmarks`).
    pub(crate) fn set_watermarks(&mut self) {
        let min = match self.kind {
            // Nothing unmovable lives here: a token reserve that lets migration and reclaim make progress.
            ZoneKind::Movable => (self.managed_pages / 1024).clamp(32, 128),
            // min_free_kbytes = sqrt(16 * managed kB); a quarter of it in frames.
            _ => (self.managed_pages * 4 * 16).isqrt() / 4,
        }
        .min(self.managed_pages / 16);
        self.watermarks = [min / 2, min, min + min / 4, min + min / 2];
        self.reserve_for_kernel = match self.kind {
            ZoneKind::Movable => 0,
            _ => self.managed_pages / 16,
        };
    }

    /// Whether `nr_pages` can be taken and `keep` left.
    pub(crate) const fn can_give(&self, nr_pages: u32, keep: u64) -> bool {
        self.free_pages >= nr_pages as u64 + keep
    }
}
