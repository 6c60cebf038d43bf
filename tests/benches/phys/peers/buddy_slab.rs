//! `buddy-slab-allocator`: a buddy system over page descriptors, and slabs above it; both used without their locks.

use std::alloc::Layout;
use std::ptr::NonNull;

use buddy_slab_allocator::{BuddyAllocator, SlabAllocResult, SlabAllocator, SlabDeallocResult};

use crate::frames::{FrameAllocator, Hand};
use crate::memory::leaked;
use crate::objects::{ObjectAllocator, Objects};

const PAGE: usize = 4096;
const ALIGNMENT: usize = 4 << 20;

pub(super) struct BuddySlab;
pub(super) struct Slab;

/// Frames are addresses here.
pub(super) struct Buddy(BuddyAllocator<PAGE>);

pub(super) struct Slabs {
    slabs: Box<SlabAllocator<PAGE>>,
    buddy: Buddy,
    layout: Layout,
}

/// A buddy system with that many frames. Its descriptors come out of the memory in front of them; the memory is cut so
/// that the frames behind begin at a multiple of the largest chunk, since it counts buddies from there.
fn buddy(nr_frames: usize) -> Buddy {
    let size = nr_frames * PAGE;
    let length = size + BuddyAllocator::<PAGE>::required_meta_size(size) + ALIGNMENT;
    let region = leaked(length + ALIGNMENT);
    let shift = ALIGNMENT - start_of(&over(&mut region[..length])) % ALIGNMENT;
    let buddy = over(&mut region[shift..shift + length]);
    assert_eq!(
        start_of(&buddy) % ALIGNMENT,
        0,
        "frames begin at a multiple of 4 MiB"
    );
    Buddy(buddy)
}

fn over(region: &mut [u8]) -> BuddyAllocator<PAGE> {
    let mut buddy = BuddyAllocator::new();
    // SAFETY: leaked memory is valid for ever, and of two buddy systems over it only the second is used.
    unsafe { buddy.init(region) }.expect("the region is large enough");
    buddy
}

fn start_of(buddy: &BuddyAllocator<PAGE>) -> usize {
    buddy.section(0).expect("one region was added").start
}

impl FrameAllocator for BuddySlab {
    type Hand = Buddy;

    fn name(&self) -> String {
        "buddy-slab-allocator".into()
    }

    fn hands(&self, nr_frames: usize, nr_hands: usize) -> Vec<Buddy> {
        assert_eq!(nr_hands, 1, "it knows no threads");
        vec![buddy(nr_frames)]
    }
}

impl Hand for Buddy {
    fn get(&mut self, order: u32) -> Option<usize> {
        self.0.alloc_pages(1 << order, PAGE << order).ok()
    }

    fn put(&mut self, frame: usize, order: u32) {
        self.0.dealloc_pages(frame, 1 << order);
    }
}

impl ObjectAllocator for Slab {
    type Objects = Slabs;

    fn name(&self) -> String {
        "buddy-slab-allocator".into()
    }

    fn objects(&self, size: usize) -> Slabs {
        Slabs {
            slabs: Box::new(SlabAllocator::new()),
            buddy: buddy(1 << 14),
            layout: Layout::from_size_align(size, 8).expect("a small size"),
        }
    }
}

impl Objects for Slabs {
    fn get(&mut self) -> Option<NonNull<u8>> {
        loop {
            match self.slabs.alloc(self.layout).ok()? {
                SlabAllocResult::Allocated(object) => return Some(object),
                SlabAllocResult::NeedsSlab { size_class, pages } => {
                    let bytes = pages * PAGE;
                    let slab = self.buddy.0.alloc_pages(pages, bytes).ok()?;
                    self.slabs.add_slab(size_class, slab, bytes, 0);
                }
            }
        }
    }

    fn put(&mut self, object: NonNull<u8>) {
        if let SlabDeallocResult::FreeSlab { base, pages } = self.slabs.dealloc(object, self.layout) {
            self.buddy.0.dealloc_pages(base, pages);
        }
    }
}
