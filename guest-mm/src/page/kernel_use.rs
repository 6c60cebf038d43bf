//! What the kernel's own pages are used for, as far as their descriptors say (Linux `page_type`, and `movable_operations` for pages that
//! their owners can move).

use core::fmt;

use crate::blocks::InUse;
use crate::page::{Page, PageFlags, PageState};
use crate::pfn::Pfn;
use crate::phys::PhysicalMemory;

/// What a page of the kernel's own is used for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum KernelUse {
    /// A page table of a program.
    PageTable,
    /// A slab: objects of some cache.
    Slab,
    /// A page of an area of virtual addresses; which one, counted from the start of all areas.
    Vmalloc {
        /// Its number.
        page: u32,
    },
    /// Memory that a driver shares with its device.
    Dma {
        /// The driver's number.
        driver: u32,
    },
    /// Anything else.
    Other,
}

/// `mapping` of a page without flags: who has it. No number of an `anon_vma` or of a mapping, which is there a moment before the flags of a page
/// that is just being mapped.
const VMALLOC: u32 = u32::MAX;
const DMA: u32 = u32::MAX - 1;

impl Page {
    /// What the kernel uses it for; `None` unless it is allocated, and for pages of programs and of files.
    pub fn kernel_use(&self) -> Option<KernelUse> {
        let head = self.head();
        if head.state() != PageState::Allocated {
            return None;
        }
        let (flags, number) = (head.flags(), self.index());
        if flags.has(PageFlags::TABLE) {
            return Some(KernelUse::PageTable);
        }
        if flags.has(PageFlags::SLAB) {
            return Some(KernelUse::Slab);
        }
        if flags != PageFlags::NONE {
            return None;
        }
        Some(match self.mapping() {
            VMALLOC => KernelUse::Vmalloc { page: number },
            DMA => KernelUse::Dma { driver: number },
            _ => KernelUse::Other,
        })
    }

    /// Says what a page that was just allocated is used for. It must be [`KernelUse::Other`] again before it is freed.
    pub(crate) fn set_kernel_use(&self, used_for: KernelUse) {
        let (owner, number) = match used_for {
            KernelUse::Vmalloc { page } => (VMALLOC, page),
            KernelUse::Dma { driver } => (DMA, driver),
            KernelUse::PageTable | KernelUse::Slab | KernelUse::Other => (0, 0),
        };
        // Whoever sees the owner sees the number.
        self.set_mapping(0);
        self.set_index(number);
        self.set_mapping(owner);
    }

    /// Whether `mapping` and `index` are what an owner of the kernel's pages has written there.
    pub(crate) fn has_owner(&self) -> bool {
        self.flags() == PageFlags::NONE && matches!(self.mapping(), VMALLOC | DMA)
    }
}

impl PhysicalMemory<'_> {
    /// Says what a chunk of the kernel's own is used for, by its first frame: so that its owner can be asked to have it moved. It is to be
    /// [`KernelUse::Other`] again before it is freed.
    ///
    /// # Panics
    /// If the frame is not online.
    pub fn set_kernel_use(&self, pfn: Pfn, used_for: KernelUse) {
        let page = self.page(pfn).expect("an allocated frame stays online");
        page.set_kernel_use(used_for);
    }

    /// What the kernel uses a page for that was found in use; `None` for one that can move, and one that is not in use any more.
    pub(crate) fn kernel_use(&self, page: &InUse) -> Option<KernelUse> {
        if page.is_held {
            return None;
        }
        self.page(page.pfn)?.kernel_use()
    }
}

impl fmt::Display for KernelUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PageTable => "a page table",
            Self::Slab => "a slab of kernel objects",
            Self::Vmalloc { .. } => "a page of a vmalloc area",
            Self::Dma { .. } => "memory of a device driver",
            Self::Other => "the kernel's own",
        })
    }
}
