//! A machine of plain memory: what the library costs by itself, over frames as fast as they are behind the kernel's direct map.

#![allow(dead_code, reason = "each bench uses its part")]
#![expect(
    unsafe_code,
    reason = "frames are plain memory here, as they are behind the kernel's direct map"
)]

use std::ptr::copy_nonoverlapping;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_mm::{
    BlockIndex, BootRegion, FlushBatch, Frames, MemMap, Mmu, NodeId, Order, Page, Pfn, PfnRange,
    PhysicalMemory, Topology, ZoneKind,
};

use crate::memory::{give_back, leaked};

const PAGE: usize = 4096;

/// Frames one after the other. Their memory is given back with the value: machines of some hundred MiB come and go.
#[derive(Debug)]
pub(crate) struct Flat {
    start: *mut u8,
    bytes: usize,
}

impl Drop for Flat {
    fn drop(&mut self) {
        // SAFETY: from `leaked`, of that size, and only reached through this value.
        unsafe { give_back(self.start, self.bytes) };
    }
}

// SAFETY: like the frames of a machine: whoever has the memory manager's leave to touch one is alone with it, words of page tables are
// atomic, and the memory stays as long as the value.
unsafe impl Sync for Flat {}

impl Flat {
    /// So many, all of which are there before anything is measured.
    pub(crate) fn new(nr_frames: u32) -> Self {
        let bytes = nr_frames as usize * PAGE;
        let memory = leaked(bytes);
        // Every page is there before anything is measured.
        memory.fill(1);
        memory.fill(0);
        let start = memory.as_mut_ptr();
        Self { start, bytes }
    }

    /// Copies a page to a frame of other memory: what a disk made of memory does.
    pub(crate) fn copy_to(&self, from: Pfn, other: &Self, to: Pfn) {
        // SAFETY: a page in each of two memories.
        unsafe { copy_nonoverlapping(self.at(from), other.at(to), PAGE) };
    }

    fn at(&self, pfn: Pfn) -> *mut u8 {
        // SAFETY: the frames that guest-mm knows are inside the memory.
        unsafe { self.start.add(pfn.number() as usize * PAGE) }
    }

    fn inside(&self, pfn: Pfn, offset: usize) -> *mut u8 {
        // SAFETY: below the size of a frame.
        unsafe { self.at(pfn).add(offset) }
    }

    fn word(&self, pfn: Pfn, index: usize) -> &AtomicU64 {
        // SAFETY: inside the frame, and aligned.
        let word = unsafe { self.at(pfn).cast::<u64>().add(index) };
        // SAFETY: words of page tables are only reached this way, and the memory stays as long as this value.
        unsafe { AtomicU64::from_ptr(word) }
    }
}

impl Frames for Flat {
    fn read(&self, pfn: Pfn, index: usize) -> u64 {
        self.word(pfn, index).load(Ordering::Relaxed)
    }

    fn write(&self, pfn: Pfn, index: usize, value: u64) {
        self.word(pfn, index).store(value, Ordering::Relaxed);
    }

    fn exchange(&self, pfn: Pfn, index: usize, value: u64) -> u64 {
        self.word(pfn, index).swap(value, Ordering::AcqRel)
    }

    fn zero(&self, pfn: Pfn, order: Order) {
        // SAFETY: a chunk inside the memory, which the caller has for itself.
        unsafe { self.at(pfn).write_bytes(0, PAGE << order.number()) };
    }

    fn copy(&self, from: Pfn, to: Pfn, order: Order) {
        // SAFETY: two chunks inside the memory, which the caller has for itself and which do not overlap.
        unsafe { copy_nonoverlapping(self.at(from), self.at(to), PAGE << order.number()) };
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        let from = self.inside(pfn, offset);
        // SAFETY: inside the frame, and no slice refers to frames.
        unsafe { copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
    }

    fn write_bytes(&self, pfn: Pfn, offset: usize, bytes: &[u8]) {
        let to = self.inside(pfn, offset);
        // SAFETY: inside the frame, and no slice refers to frames.
        unsafe { copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
    }
}

/// No processor uses the translations here, so a flush costs nothing: the figure is the library's work and the copying. Flushes are counted.
#[derive(Default, Debug)]
pub(crate) struct NoMmu {
    flushes: AtomicU64,
}

impl NoMmu {
    /// Flushes so far.
    pub(crate) fn flushes(&self) -> u64 {
        self.flushes.load(Ordering::Relaxed)
    }
}

impl Mmu for NoMmu {
    fn flush(&self, _: &FlushBatch) {
        self.flushes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Boot memory of `boot` frames from 0 on, and so many blocks of `block` frames behind it, online in the removable zone. It is never
/// taken apart.
pub(crate) fn memory(boot: u32, block: u32, nr_blocks: u32) -> &'static PhysicalMemory<'static> {
    let nr_frames = boot + nr_blocks * block;
    let range = |start, nr_pages| PfnRange::new(Pfn::new(start), nr_pages).expect("below 16 TiB");
    let pages: Vec<Page> = (0..nr_frames).map(|_| Page::default()).collect();
    let map = MemMap::new(Pfn::new(0), pages.leak()).expect("whole pageblocks");
    let memory = PhysicalMemory::new(map, range(0, nr_frames), Topology::one_node(1));
    let region = BootRegion {
        node: NodeId::ZERO,
        span: range(0, boot),
        usable: &[range(0, boot)],
        reserved: &[],
    };
    memory.add_boot_region(region).expect("the first region");
    memory
        .set_hotplug_region(NodeId::ZERO, range(boot, nr_blocks * block), block)
        .expect("whole blocks");
    for block in (0..nr_blocks).map(BlockIndex) {
        memory.begin_plug(block).expect("it is unplugged");
        memory.plugged(block).expect("it is being plugged");
        memory.online(block, ZoneKind::Movable).expect("it is offline");
    }
    Box::leak(Box::new(memory))
}
