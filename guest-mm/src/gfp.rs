//! What a request for frames may do and where it may go: Linux' `gfp_t` (`include/linux/gfp_types.h`), the part
//! that has a meaning here.

use crate::zone::{Watermark, ZoneKind};

/// Kind of a request. It decides the zones that are tried, the pageblocks that are preferred, and how far a zone
/// may be emptied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Gfp {
    /// `GFP_KERNEL`: the kernel's own data. Cannot be moved, so it never enters [`ZoneKind::Movable`]. Leaves the
    /// zone at its `Min` watermark.
    Kernel,
    /// `GFP_ATOMIC`: as `Kernel`, for a caller that cannot wait; may use half of what lies below `Min`.
    Atomic,
    /// `GFP_HIGHUSER_MOVABLE`: a page of a process, found again through its descriptor and therefore movable.
    /// [`ZoneKind::Movable`] first; falls back to `Normal` as long as that keeps its reserve for the kernel.
    User,
    /// A page of a process that could be done without just now: a migration's destination, a huge page where small
    /// ones would do, a page mapped ahead of its use. As `User`, but leaves `Low` behind in every zone, so that
    /// emptying a block cannot take the last frames from the programs that run meanwhile.
    Spare,
}

impl Gfp {
    /// Zones to try, in order.
    pub(crate) const fn zonelist(self) -> &'static [ZoneKind] {
        match self {
            Self::Kernel | Self::Atomic => &[ZoneKind::Normal, ZoneKind::Dma32, ZoneKind::Dma],
            Self::User | Self::Spare => &[
                ZoneKind::Movable,
                ZoneKind::Normal,
                ZoneKind::Dma32,
                ZoneKind::Dma,
            ],
        }
    }

    /// Whether the frames can be moved later.
    pub const fn is_movable(self) -> bool {
        matches!(self, Self::User | Self::Spare)
    }

    /// The level that a zone must keep after the request.
    pub(crate) const fn watermark(self) -> Watermark {
        match self {
            Self::Atomic => Watermark::Critical,
            Self::Kernel | Self::User => Watermark::Min,
            Self::Spare => Watermark::Low,
        }
    }
}
