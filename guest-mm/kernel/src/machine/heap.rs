//! The global allocator: the library's heap behind a lock.

#![expect(unsafe_code, reason = "implements the global allocator")]

use super::cpu::this_cpu;
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut};
use guest_kernel::heap::Heap;
use guest_kernel::physical::to_usize;
use guest_mm::{Gfp, Order, PhysicalMemory};
use guest_sync::SpinLock;

/// Memory that is there before the memory map is known: enough to read it.
const FIRST_BYTES: usize = 64 << 10;

#[global_allocator]
static HEAP: GuestHeap = GuestHeap {
    heap: SpinLock::new(Owned(Heap::new())),
};

#[repr(align(16))]
struct FirstMemory(UnsafeCell<[u8; FIRST_BYTES]>);

static FIRST: FirstMemory = FirstMemory(UnsafeCell::new([0; FIRST_BYTES]));

/// The lock is the last of all: nothing is called under it. Nor is it ever wanted by an interrupt, as there are none
/// in the manager.
struct GuestHeap {
    heap: SpinLock<Owned>,
}

struct Owned(Heap);

// SAFETY: the heap points to memory that is its own and that every CPU sees at the same addresses.
unsafe impl Send for Owned {}

// SAFETY: handed over to the heap once, at the start, and touched by nobody else.
unsafe impl Sync for FirstMemory {}

fn with_heap<R>(use_it: impl FnOnce(&mut Heap) -> R) -> R {
    use_it(&mut HEAP.heap.lock().0)
}

// SAFETY: the heap hands out disjoint, aligned memory and takes back what it handed out.
unsafe impl GlobalAlloc for GuestHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        with_heap(|heap| heap.allocate(layout).map_or(null_mut(), NonNull::as_ptr))
    }

    unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
        let Some(memory) = NonNull::new(memory) else {
            return;
        };
        // SAFETY: the caller got it from `alloc`.
        with_heap(|heap| unsafe { heap.release(memory) });
    }
}

/// Gives the heap its first memory.
///
/// # Safety
/// To be called once.
pub(crate) unsafe fn start() {
    let Some(start) = NonNull::new(FIRST.0.get().cast::<u8>()) else {
        return;
    };
    // SAFETY: the static is used for nothing else, and this happens once.
    with_heap(|heap| unsafe { heap.add(start, FIRST_BYTES) });
}

/// Gives the heap the physical memory `start .. start + bytes`.
///
/// # Safety
/// It must be mapped for good, and used by nobody else.
pub(crate) unsafe fn add(start: u64, bytes: u64) {
    let Some(start) = NonNull::new(core::ptr::with_exposed_provenance_mut::<u8>(to_usize(start))) else {
        return;
    };
    // SAFETY: by this function's own condition.
    with_heap(|heap| unsafe { heap.add(start, to_usize(bytes)) });
}

/// Frames allocated for the heap: proof that they are nobody else's.
pub(crate) struct KernelChunk {
    start: u64,
    bytes: u64,
}

impl KernelChunk {
    /// Takes a chunk for good; `None` if there is none.
    pub(crate) fn allocate(memory: &PhysicalMemory<'_>, order: Order) -> Option<Self> {
        let pfn = memory.alloc_pages(this_cpu(), Gfp::KERNEL, order).ok()?;
        Some(Self {
            start: pfn.gpa(),
            bytes: order.bytes(),
        })
    }

    /// Gives it to the heap.
    pub(crate) fn add(self) {
        // SAFETY: such frames are boot memory, which is mapped for good, and are allocated and never freed.
        unsafe { add(self.start, self.bytes) };
    }
}

/// Bytes of the heap, and how many of them are free.
pub(crate) fn usage() -> (usize, usize) {
    with_heap(|heap| (heap.total_bytes(), heap.free_bytes()))
}

/// Whether `bytes` could be allocated in one piece.
pub(crate) fn has_room_for(bytes: usize) -> bool {
    with_heap(|heap| heap.has_room_for(bytes))
}
