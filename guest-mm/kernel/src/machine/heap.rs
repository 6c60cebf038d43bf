//! The global allocator: objects of the general caches, areas of single frames for what is larger than those (or chunks of
//! frames, while there are no areas), and, before there is any of it, a heap of boot memory.
//!
//! Whatever the manager allocates thereby shows in `slabinfo`. Nothing below it uses it: slabs and zones keep their
//! books in page descriptors and on the slabs themselves.

#![expect(unsafe_code, reason = "implements the global allocator")]

use super::areas::{self, Areas};
use super::cpu::this_cpu;
use super::frames::DirectFrames;
use super::image;
use super::quiet::{self, Entry};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr::{NonNull, null_mut, with_exposed_provenance_mut};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_kernel::heap::Heap;
use guest_kernel::physical::to_usize;
use guest_mm::pfn::{PAGE_BYTES, Pfn};
use guest_mm::slab::{CACHE_LINE, Debugging, KMALLOC_MAX, Misuse, ObjAddr, SlabAllocator};
use guest_mm::vmalloc::Tag;
use guest_mm::{Gfp, Order, PageState, PfnRange, PhysicalMemory};
use guest_sync::{SetOnce, SpinLock};

/// The caches of this machine.
pub(crate) type Slabs = SlabAllocator<DirectFrames, &'static PhysicalMemory<'static>>;

/// Memory that is there before the memory map is known: enough to read it.
const FIRST_BYTES: usize = 64 << 10;
/// From this size on, objects of the general caches are aligned to their size, a power of two (up to a page).
const ALIGNED_FROM: usize = 512;

#[global_allocator]
static HEAP: GuestHeap = GuestHeap;

static SLABS: SetOnce<Slabs> = SetOnce::new();

/// The lock is the last of all: nothing is called under it. Nor is it ever wanted by an interrupt, as there are none
/// in the manager.
static BOOT_HEAP: SpinLock<Owned> = SpinLock::new(Owned(Heap::new()));

/// All memory of the boot heap lies from the nucleus to this address, and no memory of the page allocator does: what that
/// has below is lower than the nucleus.
static BOOT_END: AtomicU64 = AtomicU64::new(u64::MAX);

struct GuestHeap;

struct Owned(Heap);

// SAFETY: the heap points to memory that is its own and that every CPU sees at the same addresses.
unsafe impl Send for Owned {}

#[repr(align(16))]
struct FirstMemory(UnsafeCell<[u8; FIRST_BYTES]>);

static FIRST: FirstMemory = FirstMemory(UnsafeCell::new([0; FIRST_BYTES]));

// SAFETY: handed over to the heap once, at the start, and touched by nobody else.
unsafe impl Sync for FirstMemory {}

/// Where memory of some layout comes from. It depends on nothing but the layout, so it is found again when the memory
/// is freed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `kmalloc`, with this many bytes.
    Object(usize),
    /// An area, or a chunk of frames, which the address tells apart.
    Chunk(Order),
    /// An area: no chunk is that large.
    Area,
}

impl Place {
    fn of(layout: Layout) -> Self {
        let (size, align) = (layout.size(), layout.align());
        let size = match align {
            ..=32 => size,
            _ if align <= CACHE_LINE as usize => size.max(align).next_power_of_two(),
            _ => size.max(align).max(ALIGNED_FROM).next_power_of_two(),
        };
        if size <= KMALLOC_MAX && align <= PAGE_BYTES {
            return Self::Object(size);
        }
        Order::holding(size as u64).map_or(Self::Area, Self::Chunk)
    }
}

fn with_boot_heap<R>(use_it: impl FnOnce(&mut Heap) -> R) -> R {
    use_it(&mut BOOT_HEAP.lock().0)
}

fn allocate_at_boot(layout: Layout) -> *mut u8 {
    with_boot_heap(|heap| heap.allocate(layout).map_or(null_mut(), NonNull::as_ptr))
}

/// Asks first for what is above the watermarks, then for any frame there is: without its heap the manager cannot go on,
/// and what it allocates is little.
fn persistently<T>(request: impl Fn(Gfp) -> Option<T>) -> Option<T> {
    request(Gfp::NONE).or_else(|| request(Gfp::MEMALLOC))
}

// SAFETY: slabs and page allocator hand out disjoint memory, mapped for good at its physical address (they are never
// asked for high memory), aligned as `Place::of` relies on; so does the boot heap. Areas are mapped until they are freed,
// begin with a page, and nobody else has their addresses or their frames.
unsafe impl GlobalAlloc for GuestHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(slabs) = SLABS.get() else {
            return allocate_at_boot(layout);
        };
        let cpu = this_cpu();
        let Entry::Open(_visit) = quiet::enter(cpu) else {
            return allocate_at_boot(layout);
        };
        if let Some(area) = large(layout) {
            return area;
        }
        let gpa = match Place::of(layout) {
            Place::Object(size) => persistently(|gfp| slabs.kmalloc(cpu, size, gfp).ok()).map(ObjAddr::gpa),
            Place::Chunk(order) => {
                persistently(|gfp| slabs.source().alloc_pages(cpu, gfp, order).ok()).map(Pfn::gpa)
            }
            Place::Area => None,
        };
        // What is left of boot memory is better than nothing.
        gpa.map_or_else(
            || allocate_at_boot(layout),
            |gpa| with_exposed_provenance_mut(to_usize(gpa)),
        )
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        let gpa = memory.expose_provenance() as u64;
        let Some(slabs) = SLABS.get().filter(|_| !is_boot(memory)) else {
            if let Some(memory) = NonNull::new(memory) {
                // SAFETY: the caller got it from `alloc`, and that got it from the boot heap.
                with_boot_heap(|heap| unsafe { heap.release(memory) });
            }
            return;
        };
        let cpu = this_cpu();
        let Entry::Open(_visit) = quiet::enter(cpu) else {
            panic!("memory of slabs is freed while nobody may use them");
        };
        if let Some(areas) = area_of(memory) {
            areas.free(gpa).expect("the caller got it from `alloc`");
            return;
        }
        match Place::of(layout) {
            Place::Object(_) => match slabs.kfree(cpu, ObjAddr::new(gpa)) {
                // Damage is in the journal, and the object is freed.
                Ok(()) | Err(Misuse::Damaged(_)) => {}
                Err(misuse) => panic!("heap: {misuse}"),
            },
            Place::Chunk(_) => {
                let freed = Pfn::containing(gpa).map(|pfn| slabs.source().free_pages(cpu, pfn));
                if let Some(Err(error)) = freed {
                    panic!("heap: {error}");
                }
            }
            Place::Area => {}
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let Ok(new) = Layout::from_size_align(new_size, layout.align()) else {
            return null_mut();
        };
        let has_room = match area_of(memory) {
            Some(_) => nr_pages(layout) == nr_pages(new),
            None => SLABS.get().is_some_and(|slabs| has_room(slabs, layout, new)) && !is_boot(memory),
        };
        if has_room {
            return memory;
        }
        // SAFETY: the new layout is not empty, by the contract of this function.
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both are valid for the smaller of the two sizes, and one of them is new.
            unsafe { moved.copy_from_nonoverlapping(memory, layout.size().min(new_size)) };
            // SAFETY: by the contract of this function.
            unsafe { self.dealloc(memory, layout) };
        }
        moved
    }
}

fn is_boot(memory: *mut u8) -> bool {
    (image::nucleus()..BOOT_END.load(Ordering::Relaxed)).contains(&(memory.addr() as u64))
}

/// Whether memory of the one layout serves as memory of the other.
fn has_room(slabs: &Slabs, old: Layout, new: Layout) -> bool {
    let general = |size| slabs.general(size, Gfp::NONE).map(core::ptr::from_ref);
    match (Place::of(old), Place::of(new)) {
        (Place::Object(old), Place::Object(new)) => general(old) == general(new),
        (Place::Chunk(old), Place::Chunk(new)) => old == new,
        _ => false,
    }
}

/// The manager's areas, if the memory is one.
fn area_of(memory: *mut u8) -> Option<&'static Areas> {
    areas::get().filter(|areas| areas.contains(memory.addr() as u64))
}

fn nr_pages(layout: Layout) -> usize {
    layout.size().div_ceil(PAGE_BYTES)
}

/// An area for what is too large for the general caches; `None` for anything else, and when there is no memory for one.
fn large(layout: Layout) -> Option<*mut u8> {
    if matches!(Place::of(layout), Place::Object(_)) || layout.align() > PAGE_BYTES {
        return None;
    }
    let area = areas::get()?
        .allocate(layout.size() as u64, Tag::new("heap"))
        .ok()?;
    Some(with_exposed_provenance_mut(to_usize(area.start())))
}

/// Whether a machine can keep its heap quiet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Watched {
    No,
    Yes,
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
    with_boot_heap(|heap| unsafe { heap.add(start, FIRST_BYTES) });
}

/// Gives the boot heap the physical memory `start .. start + bytes`.
///
/// # Safety
/// It must be mapped for good, and used by nobody else.
pub(crate) unsafe fn add(start: u64, bytes: u64) {
    let Some(start) = NonNull::new(with_exposed_provenance_mut::<u8>(to_usize(start))) else {
        return;
    };
    // SAFETY: by this function's own condition.
    with_boot_heap(|heap| unsafe { heap.add(start, to_usize(bytes)) });
}

/// Makes the caches, of which everything is allocated from now on. `boot_end` is where boot memory that is nobody's but
/// the manager's ends. If the heap is `watched`, it can be kept quiet (machine/quiet.rs).
///
/// # Safety
/// All of the boot heap must lie between the nucleus and `boot_end`, and no frame of `memory` does; those that are no high
/// memory are mapped for good.
pub(crate) unsafe fn start_slabs(
    memory: &'static PhysicalMemory<'static>,
    boot_end: u64,
    debug: Debugging,
    watched: Watched,
) -> &'static Slabs {
    BOOT_END.store(boot_end, Ordering::Relaxed);
    // What is freed goes by its address to where it came from.
    let is_ours = |pfn| {
        memory
            .page(pfn)
            .is_none_or(|page| page.state() == PageState::Reserved)
    };
    let ours = PfnRange::inside(image::nucleus(), boot_end - image::nucleus());
    assert!(
        ours.is_some_and(|ours| ours.iter().all(is_ours)),
        "the page allocator has frames among {:#x} to {boot_end:#x}, which are the manager's",
        image::nucleus()
    );
    if watched == Watched::Yes {
        quiet::watch();
    }
    let _ = SLABS.set(SlabAllocator::new(DirectFrames, memory, debug));
    SLABS.get().expect("set on the line above at the latest")
}

/// The caches, once there are any.
pub(crate) fn slabs() -> Option<&'static Slabs> {
    SLABS.get()
}

/// Bytes of the boot heap, and how many of them are free.
pub(crate) fn boot_usage() -> (usize, usize) {
    with_boot_heap(|heap| (heap.total_bytes(), heap.free_bytes()))
}
