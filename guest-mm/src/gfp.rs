//! What a request for frames may do and where it may go: Linux' `gfp_t` (`include/linux/gfp_types.h`), the part
//! that has a meaning here.

use core::fmt;

use crate::pageblock::Mobility;
use crate::zone::{Watermark, ZoneKind};

/// Flags of a request. They decide the zones that are tried, the pageblocks that are preferred, how far a zone may be
/// emptied, and what may be done to get memory.
///
/// Legal combinations: at most one of `DMA`, `DMA32` and `HIGHMEM`; at most one of `MOVABLE` and `RECLAIMABLE`; the
/// rest in any combination. Of flags that exclude each other the first in this list wins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Gfp(u16);

impl Gfp {
    /// `GFP_NOWAIT`: the kernel's own data, for a caller that cannot wait and has no claim on the reserve.
    pub const NONE: Self = Self(0);
    /// `__GFP_DMA`: only [`ZoneKind::Dma`].
    pub const DMA: Self = Self(1 << 0);
    /// `__GFP_DMA32`: [`ZoneKind::Dma32`] and below.
    pub const DMA32: Self = Self(1 << 1);
    /// `__GFP_HIGHMEM`: memory that the kernel has not mapped will do.
    pub const HIGHMEM: Self = Self(1 << 2);
    /// `__GFP_MOVABLE`: found again through its descriptor, so it can be moved. With `HIGHMEM` it may go to
    /// [`ZoneKind::Movable`].
    pub const MOVABLE: Self = Self(1 << 3);
    /// `__GFP_RECLAIMABLE`: goes away when a shrinker is asked.
    pub const RECLAIMABLE: Self = Self(1 << 4);
    /// `__GFP_HIGH`: high priority, may use half of what lies below `Min`.
    pub const HIGH: Self = Self(1 << 5);
    /// `__GFP_DIRECT_RECLAIM`: may wait, and may have memory reclaimed for it.
    pub const WAIT: Self = Self(1 << 6);
    /// `__GFP_MEMALLOC`: frees more than it takes: no watermark holds for it.
    pub const MEMALLOC: Self = Self(1 << 7);
    /// `__GFP_COLD`: will not be touched by this CPU soon: from the cold end of its list.
    pub const COLD: Self = Self(1 << 8);
    /// `__GFP_THISNODE`: this node or none. For what never moves, this node's memory that never leaves.
    pub const THIS_NODE: Self = Self(1 << 9);
    /// Could be done without just now: leaves `Low` behind in every zone.
    const LEAVE_LOW: Self = Self(1 << 10);
    /// The kernel's own, whose owner can have it moved: not kept away from blocks that can go, and leaves in every zone what is kept there
    /// for those who have nowhere else to go.
    const RELOCATABLE: Self = Self(1 << 11);

    /// `GFP_KERNEL`: the kernel's own data. Cannot be moved, so it never enters [`ZoneKind::Movable`]. Leaves the
    /// zone at its `Min` watermark.
    pub const KERNEL: Self = Self::WAIT;
    /// As `KERNEL`, for what can be moved by its owner: page tables, slabs of movable objects. Where there is none of that left,
    /// [`USER`](Self::USER) is next, and `KERNEL` comes last.
    pub const KERNEL_RELOCATABLE: Self = Self(Self::WAIT.0 | Self::RELOCATABLE.0);
    /// `GFP_ATOMIC`: as `KERNEL`, for a caller that cannot wait; may use half of what lies below `Min`.
    pub const ATOMIC: Self = Self::HIGH;
    /// `GFP_HIGHUSER_MOVABLE`: a page of a process, found again through its descriptor and therefore movable.
    /// [`ZoneKind::Movable`] first; falls back to lower zones as long as those keep their reserve for the kernel.
    pub const USER: Self = Self(Self::WAIT.0 | Self::HIGHMEM.0 | Self::MOVABLE.0);
    /// `GFP_HIGHUSER`: a page of a process that stays where it is, so that it never enters [`ZoneKind::Movable`].
    pub const HIGHUSER: Self = Self(Self::WAIT.0 | Self::HIGHMEM.0);
    /// A page of a process that could be done without just now: a migration's destination, a huge page where small
    /// ones would do, a page mapped ahead of its use. As `USER`, but leaves `Low` behind in every zone, so that
    /// emptying a block cannot take the last frames from the programs that run meanwhile.
    pub const SPARE: Self = Self(Self::HIGHMEM.0 | Self::MOVABLE.0 | Self::LEAVE_LOW.0);

    /// As [`SPARE`](Self::SPARE), for what is the kernel's own: where something of it moves to.
    pub const SPARE_KERNEL: Self = Self(Self::LEAVE_LOW.0 | Self::RELOCATABLE.0);

    const NAMES: [(Self, &'static str); 12] = [
        (Self::DMA, "dma"),
        (Self::DMA32, "dma32"),
        (Self::HIGHMEM, "highmem"),
        (Self::MOVABLE, "movable"),
        (Self::RECLAIMABLE, "reclaimable"),
        (Self::HIGH, "high"),
        (Self::WAIT, "wait"),
        (Self::MEMALLOC, "memalloc"),
        (Self::COLD, "cold"),
        (Self::THIS_NODE, "this node"),
        (Self::LEAVE_LOW, "spare"),
        (Self::RELOCATABLE, "relocatable"),
    ];

    /// Whether all of `flags` are set.
    #[inline]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those of `flags`.
    #[inline]
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// These without those of `flags`.
    #[inline]
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// Whether the frames can be moved later.
    #[inline]
    pub const fn is_movable(self) -> bool {
        self.has(Self::MOVABLE)
    }

    /// The highest zone that the request may use; those below it come after (Linux `gfp_zone`).
    #[inline]
    pub const fn highest_zone(self) -> ZoneKind {
        if self.has(Self::DMA) {
            ZoneKind::Dma
        } else if self.has(Self::DMA32) {
            ZoneKind::Dma32
        } else if !self.has(Self::HIGHMEM) {
            ZoneKind::Normal
        } else if self.has(Self::MOVABLE) {
            ZoneKind::Movable
        } else {
            ZoneKind::HighMem
        }
    }

    /// The highest zone that the frames could have come from for all that their owner cares: what has a choice leaves lower zones a part.
    #[inline]
    pub(crate) const fn reserve_zone(self) -> ZoneKind {
        if self.has(Self::RELOCATABLE) && !self.has(Self::HIGHMEM) {
            ZoneKind::HighMem
        } else {
            self.highest_zone()
        }
    }

    /// Whether they stay where they are for as long as they are in use: they are better off where memory never leaves.
    #[inline]
    pub(crate) const fn is_fixed(self) -> bool {
        let moves = Self::MOVABLE.0 | Self::RELOCATABLE.0;
        self.0 & moves == 0
    }

    /// The kind of pageblock that the frames belong in.
    #[inline]
    pub(crate) const fn mobility(self) -> Mobility {
        if self.has(Self::MOVABLE) {
            Mobility::Movable
        } else if self.has(Self::RECLAIMABLE) {
            Mobility::Reclaimable
        } else {
            Mobility::Unmovable
        }
    }

    /// The level that a zone must keep after the request.
    #[inline]
    pub(crate) const fn watermark(self) -> Watermark {
        if self.has(Self::MEMALLOC) {
            Watermark::Nothing
        } else if self.has(Self::HIGH) {
            Watermark::Critical
        } else if self.has(Self::LEAVE_LOW) {
            Watermark::Low
        } else {
            Watermark::Min
        }
    }
}

impl fmt::Debug for Gfp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "Gfp(";
        for (flag, name) in Self::NAMES {
            if self.has(flag) {
                write!(f, "{separator}{name}")?;
                separator = "|";
            }
        }
        f.write_str(if separator == "|" { ")" } else { "Gfp()" })
    }
}
