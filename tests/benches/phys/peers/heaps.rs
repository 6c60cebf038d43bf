//! General allocators: `talc` and `rlsf` on memory given to them, as a kernel would use them; `mimalloc` and the system's
//! `malloc` as a program does.

use std::alloc::{GlobalAlloc, Layout};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use talc::TalcCell;
use talc::base::Talc as TalcCore;
use talc::base::binning::DefaultBinning;
use talc::source::Manual;

use crate::memory::leaked;
use crate::objects::{ObjectAllocator, Objects};

/// Bytes that `talc` and `rlsf` manage.
const HEAP: usize = 64 << 20;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a small size")
}

pub(super) struct Talc;

pub(super) struct TalcHeap {
    heap: TalcCore<Manual, DefaultBinning>,
    layout: Layout,
}

impl ObjectAllocator for Talc {
    type Objects = TalcHeap;

    fn name(&self) -> String {
        "talc".into()
    }

    fn objects(&self, size: usize) -> TalcHeap {
        let mut heap = TalcCell::new(Manual).into_inner();
        let region = leaked(HEAP);
        // SAFETY: leaked memory is valid for ever and nobody else's.
        unsafe { heap.claim(region.as_mut_ptr(), region.len()) }.expect("the region is large enough");
        TalcHeap {
            heap,
            layout: layout(size),
        }
    }
}

impl Objects for TalcHeap {
    fn get(&mut self) -> Option<NonNull<u8>> {
        // SAFETY: the size is not zero.
        unsafe { self.heap.allocate(self.layout) }
    }

    fn put(&mut self, object: NonNull<u8>) {
        // SAFETY: allocated with this layout by this heap.
        unsafe { self.heap.deallocate(object.as_ptr(), self.layout) };
    }
}

pub(super) struct Rlsf;

/// Free lists for blocks up to 128 MiB, each power of two in 32 parts.
type Tlsf = rlsf::Tlsf<'static, u32, u32, 22, 32>;

pub(super) struct RlsfHeap {
    heap: Box<Tlsf>,
    layout: Layout,
}

impl ObjectAllocator for Rlsf {
    type Objects = RlsfHeap;

    fn name(&self) -> String {
        "rlsf".into()
    }

    fn objects(&self, size: usize) -> RlsfHeap {
        let region = leaked(HEAP);
        // SAFETY: initialised memory may be seen as memory that may be uninitialised; nobody else has it.
        let region = unsafe {
            std::slice::from_raw_parts_mut(region.as_mut_ptr().cast::<MaybeUninit<u8>>(), region.len())
        };
        let mut heap = Box::new(Tlsf::new());
        heap.insert_free_block(region);
        RlsfHeap {
            heap,
            layout: layout(size),
        }
    }
}

impl Objects for RlsfHeap {
    fn get(&mut self) -> Option<NonNull<u8>> {
        self.heap.allocate(self.layout)
    }

    fn put(&mut self, object: NonNull<u8>) {
        // SAFETY: allocated with this alignment by this heap.
        unsafe { self.heap.deallocate(object, self.layout.align()) };
    }
}

pub(super) struct Mimalloc;
pub(super) struct System;

/// An allocator that serves the whole program.
pub(super) struct Global<G> {
    global: G,
    layout: Layout,
}

impl ObjectAllocator for Mimalloc {
    type Objects = Global<mimalloc::MiMalloc>;

    fn name(&self) -> String {
        "mimalloc".into()
    }

    fn objects(&self, size: usize) -> Self::Objects {
        Global {
            global: mimalloc::MiMalloc,
            layout: layout(size),
        }
    }
}

impl ObjectAllocator for System {
    type Objects = Global<std::alloc::System>;

    fn name(&self) -> String {
        "system malloc".into()
    }

    fn objects(&self, size: usize) -> Self::Objects {
        Global {
            global: std::alloc::System,
            layout: layout(size),
        }
    }
}

impl<G: GlobalAlloc + 'static> Objects for Global<G> {
    fn get(&mut self) -> Option<NonNull<u8>> {
        // SAFETY: the size is not zero.
        NonNull::new(unsafe { self.global.alloc(self.layout) })
    }

    fn put(&mut self, object: NonNull<u8>) {
        // SAFETY: allocated with this layout by this allocator.
        unsafe { self.global.dealloc(object.as_ptr(), self.layout) };
    }
}
