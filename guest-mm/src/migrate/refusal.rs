//! Pages that cannot move now: which, of what kind, and why.

use core::fmt;

use crate::frames::{Frames, Mmu};
use crate::mm::Mm;
use crate::mm::mapping::MappingKind;
use crate::page::{KernelUse, Page, PageFlags};
use crate::pfn::{Order, Pfn};
use crate::phys::{PinTerm, PinnedBy};
use crate::swap::{AreaNr, SlotNr};

/// A page that cannot move now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// First frame of the page.
    pub pfn: Pfn,
    /// Its size.
    pub order: Order,
    /// What it was when it was refused.
    pub kind: PageKind,
    /// Why not.
    pub reason: RefusalReason,
}

/// What a page is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageKind {
    /// Memory of programs.
    Anonymous,
    /// Memory of programs, or shared memory, that has a place in a swap area.
    SwapCache {
        /// Which, unless it was just given up.
        area: Option<AreaNr>,
    },
    /// Of a file that is on a disk.
    File {
        /// Of which file system.
        system: &'static str,
    },
    /// Of a file that is in memory only.
    Ram {
        /// Of which file system.
        system: &'static str,
    },
    /// Shared memory (Linux `shmem`, `tmpfs`).
    Shmem,
    /// Of the pool of reserved huge pages.
    Hugetlb,
    /// The kernel's own.
    Kernel(KernelUse),
    /// In no use any more.
    Free,
}

/// Why a page cannot move now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalReason {
    /// Somebody holds its physical address for as long as he likes.
    Pinned {
        /// Who.
        holder: &'static str,
    },
    /// Somebody holds its physical address until a transfer has ended.
    UnderIo {
        /// Who.
        holder: &'static str,
    },
    /// The kernel's own, which nobody here can move: not all references to it are known, or its owner has to.
    Unmovable(KernelUse),
    /// Somebody is just using it.
    Busy(BusyWith),
}

/// What somebody is just doing with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BusyWith {
    /// Somebody has the page lock: it is being mapped, moved, or given up.
    Locked,
    /// A disk reads into it.
    Reading,
    /// It is on its way to a disk.
    Writeback,
    /// Somebody has looked it up and still has it.
    LookUp,
    /// It was just taken or found and is not mapped yet, or unmapped and not freed yet.
    Settling,
    /// Its file system keeps it for now.
    FileSystem,
    /// It is a page table of an address space of which other pages are on the move, or that is ending.
    AddressSpace,
    /// Its owner lacks a frame that it could move to.
    NoFrame,
}

impl RefusalReason {
    /// That somebody has pinned the page.
    pub(crate) const fn of_pin(by: PinnedBy) -> Self {
        let PinnedBy { holder, term } = by;
        match term {
            PinTerm::Longterm => Self::Pinned { holder },
            PinTerm::Transfer => Self::UnderIo { holder },
        }
    }

    /// Whether it passes by itself, and soon.
    pub const fn passes(self) -> bool {
        matches!(self, Self::Busy(_) | Self::UnderIo { .. })
    }

    /// Whether somebody is just using it, without its address.
    pub const fn is_busy(self) -> bool {
        matches!(self, Self::Busy(_))
    }

    /// One word, stable: the value of `resize_refusal_reason` in `vmstat`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pinned { .. } => "pinned",
            Self::UnderIo { .. } => "under-io",
            Self::Unmovable(_) => "unmovable",
            Self::Busy(BusyWith::Locked) => "locked",
            Self::Busy(BusyWith::Reading) => "reading",
            Self::Busy(BusyWith::Writeback) => "writeback",
            Self::Busy(BusyWith::LookUp) => "look-up",
            Self::Busy(BusyWith::Settling) => "settling",
            Self::Busy(BusyWith::FileSystem) => "file-system",
            Self::Busy(BusyWith::AddressSpace) => "address-space",
            Self::Busy(BusyWith::NoFrame) => "no-frame",
        }
    }
}

impl PageKind {
    /// One word, stable: the value of `resize_refusal_kind` in `vmstat`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::SwapCache { .. } => "swap-cache",
            Self::File { .. } => "file",
            Self::Ram { .. } => "ram-file",
            Self::Shmem => "shmem",
            Self::Hugetlb => "hugetlb",
            Self::Kernel(KernelUse::PageTable) => "page-table",
            Self::Kernel(KernelUse::Slab) => "slab",
            Self::Kernel(KernelUse::Vmalloc { .. }) => "vmalloc",
            Self::Kernel(KernelUse::Dma { .. }) => "driver",
            Self::Kernel(KernelUse::Other) => "kernel",
            Self::Free => "free",
        }
    }

    /// The file system of a file's page.
    pub const fn file_system(self) -> Option<&'static str> {
        match self {
            Self::File { system } | Self::Ram { system } => Some(system),
            _ => None,
        }
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// A page that cannot move for that reason, with what it is used for at this moment.
    pub fn refusal(&self, (pfn, order): (Pfn, Order), reason: RefusalReason) -> Refusal {
        let kind = match reason {
            RefusalReason::Unmovable(used_for) => PageKind::Kernel(used_for),
            _ => self
                .phys
                .page(pfn)
                .map_or(PageKind::Free, |page| self.kind_of(page)),
        };
        Refusal {
            pfn,
            order,
            kind,
            reason,
        }
    }

    fn kind_of(&self, page: &Page) -> PageKind {
        let flags = page.flags();
        if flags.has(PageFlags::HUGETLB) {
            return PageKind::Hugetlb;
        }
        if flags.has(PageFlags::SWAPCACHE) {
            let area = SlotNr::new(page.private()).map(SlotNr::area);
            return PageKind::SwapCache { area };
        }
        if flags.has(PageFlags::ANON) {
            return PageKind::Anonymous;
        }
        if let Some(mapping) = self.mappings.of_page(page) {
            return match &mapping.kind {
                MappingKind::File(ops) => PageKind::File { system: ops.name() },
                MappingKind::Ram(ops) => PageKind::Ram { system: ops.name() },
                MappingKind::Shmem => PageKind::Shmem,
            };
        }
        page.kernel_use().map_or(PageKind::Free, PageKind::Kernel)
    }

    /// What somebody is doing with a page whose lock he has.
    pub(super) fn why_locked(&self, page: &Page) -> BusyWith {
        let flags = page.flags();
        let has_disk = || {
            matches!(
                self.kind_of(page),
                PageKind::File { .. } | PageKind::SwapCache { .. }
            )
        };
        if flags.has(PageFlags::WRITEBACK) {
            BusyWith::Writeback
        } else if !flags.has(PageFlags::UPTODATE) && has_disk() {
            BusyWith::Reading
        } else {
            BusyWith::Locked
        }
    }

    /// A page that is waited for until it is idle.
    pub fn awaited(&self, pfn: Pfn) -> Refusal {
        let page = self.phys.page(pfn);
        let order = page.map_or(Order::ZERO, Page::order);
        let by = self.phys.pins.lock().by(pfn);
        let with = match self.is_idle(pfn) {
            true => BusyWith::LookUp,
            false => page.map_or(BusyWith::Settling, |page| self.why_locked(page)),
        };
        let reason = by.map_or(RefusalReason::Busy(with), RefusalReason::of_pin);
        self.refusal((pfn, order), reason)
    }

    /// The first page among some frames that is on its way to a disk.
    pub fn first_written(&self, frames: impl Iterator<Item = Pfn>) -> Option<Refusal> {
        let mut frames = frames.filter(|&pfn| {
            let flags = self.phys.page(pfn).map(Page::flags);
            flags.is_some_and(|flags| flags.has(PageFlags::WRITEBACK))
        });
        let busy = RefusalReason::Busy(BusyWith::Writeback);
        frames.next().map(|pfn| self.refusal((pfn, Order::ZERO), busy))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pfn,
            order,
            kind,
            reason,
        } = self;
        write!(f, "{pfn} (order {}", order.number())?;
        match reason {
            RefusalReason::Unmovable(_) => write!(f, ") {reason}"),
            _ => write!(f, ", {kind}) {reason}"),
        }
    }
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pinned { holder } | Self::UnderIo { holder } => return write!(f, "is pinned by {holder}"),
            Self::Unmovable(used_for) => return write!(f, "is {used_for}, which cannot move"),
            Self::Busy(BusyWith::Locked) => "is locked: somebody maps it, moves it or gives it up",
            Self::Busy(BusyWith::Reading) => "is being read from a disk",
            Self::Busy(BusyWith::Writeback) => "is being written to a disk",
            Self::Busy(BusyWith::LookUp) => "was looked up by somebody who still has it",
            Self::Busy(BusyWith::Settling) => "is about to be mapped or freed",
            Self::Busy(BusyWith::FileSystem) => "is kept by its file system for now",
            Self::Busy(BusyWith::AddressSpace) => "leads to pages that are on the move",
            Self::Busy(BusyWith::NoFrame) => "has no frame to move to",
        })
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::SwapCache { .. } => "in the swap cache",
            Self::File { system } | Self::Ram { system } => return write!(f, "of a file of {system}"),
            Self::Shmem => "shared memory",
            Self::Hugetlb => "reserved huge",
            Self::Kernel(used_for) => return used_for.fmt(f),
            Self::Free => "in no use any more",
        })
    }
}
