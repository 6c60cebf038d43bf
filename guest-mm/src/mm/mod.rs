#![doc = include_str!("README.md")]

mod anon;
mod area_use;
mod brk;
mod cow;
mod create;
mod fault;
mod fault_ahead;
mod file_fault;
mod fork;
mod gather;
pub(crate) mod huge;
mod hugetlb;
mod launder;
mod map;
pub mod mapping;
mod mlock;
mod nonlinear;
mod page_out;
mod pin_longterm;
mod pin_transfer;
pub(crate) mod reclaim;
pub(crate) mod reclaim_file;
pub(crate) mod rmap;
mod space;
mod spaces;
mod swap;
mod swap_in;
mod swap_io;
mod user;
mod vma;
mod waits;
pub(crate) mod zap;

use alloc::sync::Arc;

use guest_sync::Cpu;

use crate::compact::Defrag;
use crate::frames::{Frames, Mmu, SpaceId};
use crate::page::{Page, PageFlags};
use crate::pagetable::{Entry, Tables};
use crate::pfn::{Order, PAGE_SHIFT, Pfn};
use crate::phys::PhysicalMemory;
use anon::AnonVmas;
use mapping::{Dirty, FileIoQueue, Mappings};
use spaces::Spaces;
use swap::Swap;
use waits::PageWaits;

pub use anon::{AnonPlace, AnonVmaId};
pub use area_use::AreaUse;
pub use brk::BrkError;
pub use create::{FixedMapping, SpaceError};
pub use fault::{FaultError, FaultOutcome};
pub use fork::{Fork, ForkError};
pub(crate) use launder::age_down;
pub use map::{Advice, MapRequest, MmapError, Place};
pub use mapping::{CacheUse, FilePlace, MappingId};
pub use pin_longterm::LongtermError;
pub use reclaim::Shrunk;
pub(crate) use space::Locked;
pub use space::{AddressSpace, USER_START};
pub use swap::SwapUsage;
pub use swap_io::{IoChoice, PageIo};
pub use user::CopyError;
pub use vma::{Backing, FileArea, HugeAdvice, Layout, Prot, Reserve, Residence, Sharing, Vma};
pub use waits::PageWait;

/// Physical and virtual memory of the guest, over the machine's frames `F` and translation caches `M`.
#[derive(Debug)]
pub struct Mm<'m, F, M> {
    /// Frames and blocks.
    pub phys: &'m PhysicalMemory<'m>,
    /// Contents of frames.
    pub frames: F,
    /// Translation caches.
    pub mmu: M,
    pub(crate) spaces: Spaces,
    pub(crate) anon_vmas: AnonVmas,
    pub(crate) swap: Swap,
    pub(crate) mappings: Mappings,
    file_io: FileIoQueue,
    dirty: Dirty,
    swap_out: launder::SwapOut,
    page_waits: PageWaits,
    fault_around: Order,
    pub(crate) defrag: Defrag,
    zero_page: Option<Pfn>,
}

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// No address spaces yet, over memory that may already be in use by the kernel.
    pub fn new(phys: &'m PhysicalMemory<'m>, frames: F, mmu: M) -> Self {
        Self {
            phys,
            frames,
            mmu,
            spaces: Spaces::default(),
            anon_vmas: AnonVmas::default(),
            swap: Swap::default(),
            mappings: Mappings::default(),
            file_io: FileIoQueue::default(),
            dirty: Dirty::default(),
            swap_out: launder::SwapOut::default(),
            page_waits: PageWaits::default(),
            fault_around: Order::new(4).expect("16 pages"),
            defrag: Defrag::Always,
            zero_page: None,
        }
    }

    /// How much one fault maps where no huge page is possible: the aligned 2^order pages around the address, as far
    /// as the area goes. 4 (64 KiB) at first; at most 9.
    pub fn set_fault_around(&mut self, order: Order) {
        self.fault_around = order.min(Order::PAGEBLOCK);
    }

    /// From now on a program that reads what it has not written yet gets this frame, for as long as it only reads; without
    /// one it gets a page of its own. The frame is the kernel's and stays where it is; it is filled with zeroes here.
    pub fn set_zero_page(&mut self, pfn: Pfn) {
        self.frames.zero(pfn, Order::ZERO);
        self.zero_page = Some(pfn);
    }

    /// The address space, if it exists.
    pub fn space(&self, id: SpaceId) -> Option<Arc<AddressSpace>> {
        self.spaces.find(id)
    }

    /// Numbers of all address spaces.
    pub fn space_ids(&self) -> impl Iterator<Item = SpaceId> {
        self.spaces.all().into_iter().map(|space| space.id())
    }

    /// The entry that an address of a space ends at, and the frame that belongs to the address if the entry is present. `None` if there is no
    /// such address space.
    pub fn entry_at(&self, id: SpaceId, va: u64) -> Option<(Entry, Pfn)> {
        let found = self.spaces.find(id)?.lock().table.find(&self.frames, va);
        let pages = va % found.level.entry_bytes() / crate::pfn::PAGE_SIZE;
        let offset = if found.entry.has(Entry::HUGE) { pages } else { 0 };
        Some((found.entry, found.entry.pfn() + u32::try_from(offset).ok()?))
    }

    /// Makes a frame that was just allocated a page of a program at an address.
    pub(crate) fn set_anon(&self, pfn: Pfn, place: AnonPlace) {
        let page = self.phys.page(pfn).expect("just allocated");
        page.set_mapcount(1);
        page.set_mapping(place.anon_vma.number());
        page.set_index(u32::try_from(place.va >> PAGE_SHIFT).expect("user memory has 2^32 pages"));
        page.add_flags(PageFlags::ANON);
    }

    /// The descriptor of what an entry maps.
    pub(crate) fn mapped_page(&self, pfn: Pfn) -> &'m Page {
        self.phys.page(pfn).expect("a mapped page stays online")
    }

    /// Whether the entry maps the zero page.
    pub(crate) fn is_zero_page(&self, entry: Entry) -> bool {
        entry.is_present() && entry.has(Entry::FIXED) && Some(entry.pfn()) == self.zero_page
    }

    pub(crate) fn tables<'a>(&'a self, cpu: &'a Cpu) -> Tables<'a, F> {
        Tables {
            frames: &self.frames,
            phys: self.phys,
            cpu,
        }
    }
}
