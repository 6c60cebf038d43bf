//! The manager's vmalloc: one window, the frames of the machine, the translation caches of all CPUs.
//!
//! It is a static, as the global allocator takes its large pieces from here.

use super::activity::AllCpus;
use super::frames::DirectFrames;
use super::high_memory::{AllFrames, read_mapped, write_mapped};
use crate::kernel::KernelFrames;
use alloc::vec::Vec;
use core::fmt;
use guest_kernel::layout::VMALLOC;
use guest_kernel::stress;
use guest_mm::Shrinker;
use guest_mm::kernel_map::{KernelRange, KernelTables};
use guest_mm::migrate::Refusal;
use guest_mm::pfn::Pfn;
use guest_mm::phys::PhysicalMemory;
use guest_mm::vmalloc::{KernelMoved, NotAnArea, Purged, Tag, Vmalloc, VmallocError, VmallocStats};
use guest_sync::{Cpu, SetOnce};

/// So many freed pages are given back even while the CPUs have other things to do: 4 MiB.
const MOST_LAZY_PAGES: u64 = 1024;

static AREAS: SetOnce<Areas> = SetOnce::new();

/// All areas.
pub(crate) struct Areas {
    vmalloc: Vmalloc,
    frames: KernelFrames,
}

/// From now on there are areas, in these tables and made of this memory.
///
/// # Panics
/// If there were some before.
pub(crate) fn start(tables: KernelTables, memory: &'static PhysicalMemory<'static>) -> &'static Areas {
    let areas = Areas {
        vmalloc: Vmalloc::new(tables, VMALLOC),
        frames: KernelFrames(memory),
    };
    assert!(AREAS.set(areas).is_ok(), "vmalloc is started once");
    get().expect("just set")
}

/// All areas, once there can be any.
pub(crate) fn get() -> Option<&'static Areas> {
    AREAS.get()
}

impl Areas {
    /// A new area of at least `bytes`, contents unknown. Its frames may be outside the direct map.
    ///
    /// # Errors
    /// When there is no room, or not enough memory.
    pub(crate) fn allocate(&self, bytes: u64, tag: Tag) -> Result<KernelRange, VmallocError> {
        self.vmalloc.vmalloc(&DirectFrames, &self.frames, bytes, tag)
    }

    /// Frees the area at `va`, lazily: its frames come back with the next [`purge`](Self::purge).
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn free(&self, va: u64) -> Result<(), NotAnArea> {
        self.vmalloc.vfree(&DirectFrames, va)
    }

    /// Maps frames one after the other.
    ///
    /// # Errors
    /// When there is no room, or no memory for page tables.
    pub(crate) fn map(&self, pages: &[Pfn], tag: Tag) -> Result<KernelRange, VmallocError> {
        self.vmalloc.vmap(&DirectFrames, &self.frames, pages, tag)
    }

    /// Unmaps what [`map`](Self::map) mapped at `va`.
    ///
    /// # Errors
    /// If there is nothing.
    pub(crate) fn unmap(&self, va: u64) -> Result<(), NotAnArea> {
        self.vmalloc.vunmap(&DirectFrames, &AllCpus, va)
    }

    /// Flushes all CPUs and gives back what was freed, if anything was.
    pub(crate) fn purge(&self) -> Purged {
        self.vmalloc.purge(&DirectFrames, &self.frames, &AllCpus)
    }

    /// As [`purge`](Self::purge), if it is worth a flush while there is other work.
    pub(crate) fn purge_if_many(&self) {
        if self.stats().nr_lazy_pages > MOST_LAZY_PAGES {
            self.purge();
        }
    }

    /// Moves those pages of areas off an isolated block that a batch of migration has refused, and takes them out of the list.
    pub(crate) fn move_off(&self, contents: AllFrames, refused: &mut Vec<Refusal>) -> KernelMoved {
        let frames = (&DirectFrames, &contents);
        self.vmalloc.move_off(frames, &self.frames, &AllCpus, refused)
    }

    /// What there is, and what was done.
    pub(crate) fn stats(&self) -> VmallocStats {
        self.vmalloc.stats()
    }

    /// Bytes of addresses that areas can have.
    pub(crate) fn window_bytes(&self) -> u64 {
        self.vmalloc.window().bytes()
    }

    /// Whether an address lies in the window.
    pub(crate) fn contains(&self, va: u64) -> bool {
        self.vmalloc.window().contains(va)
    }

    /// A line for each area; `node_of` says on which node a frame is.
    ///
    /// # Errors
    /// Those of `out`.
    pub(crate) fn info(&self, out: &mut impl fmt::Write, node_of: impl Fn(Pfn) -> usize) -> fmt::Result {
        self.vmalloc.info(out, &DirectFrames, node_of)
    }
}

/// Frames of freed areas: one flush, and they are back.
impl Shrinker for Areas {
    fn name(&self) -> &'static str {
        "vmalloc"
    }

    fn freeable_pages(&self) -> u64 {
        self.stats().nr_lazy_pages
    }

    fn shrink(&self, _: &Cpu, _: u64) -> u64 {
        self.purge().pages
    }
}

/// What programs that stress the manager do with areas (`guest_kernel::stress`).
impl stress::Areas for Areas {
    fn vmalloc(&self, bytes: u64) -> Result<KernelRange, VmallocError> {
        self.allocate(bytes, Tag::new("stress"))
    }

    fn vfree(&self, va: u64) -> Result<(), NotAnArea> {
        self.free(va)
    }

    fn purge(&self) {
        self.purge();
    }

    fn frame_at(&self, va: u64) -> Option<Pfn> {
        self.vmalloc.frame_at(&DirectFrames, va)
    }

    fn read(&self, va: u64) -> u64 {
        read_mapped(va)
    }

    fn write(&self, va: u64, word: u64) {
        write_mapped(va, word);
    }
}
