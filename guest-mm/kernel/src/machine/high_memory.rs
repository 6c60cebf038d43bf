//! Frames outside the direct map: their addresses are lent to them by the windows of `kmap` and `kmap_atomic`.
//!
//! [`AllFrames`] is how the memory manager reaches the contents of frames: those of the direct map at their own
//! addresses, the others through a temporary mapping of this CPU. It never waits, as the manager runs with interrupts off
//! and such a mapping ends before the call returns.

#![expect(unsafe_code, reason = "reads and writes page frames where they are mapped")]

use super::activity::AllCpus;
use super::cpu::this_cpu;
use super::frames::{DirectFrames, check};
use alloc::vec::Vec;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_kernel::layout::{KMAP, VMALLOC, atomic_windows};
use guest_kernel::physical::to_usize;
use guest_kernel::stress;
use guest_mm::frames::Frames;
use guest_mm::kernel_map::{FrameSource, KernelRange, KernelTables, OutOfFrames};
use guest_mm::kmap::{AtomicMaps, AtomicStats, Kmap, PermanentMaps};
use guest_mm::pfn::{Order, PAGE_BYTES, PAGE_SIZE, Pfn, PfnRange, WORDS_PER_PAGE};
use guest_sync::SetOnce;

/// What is not in the direct map, and the windows for it.
pub(crate) struct HighMemory {
    /// The lowest frame of all; the largest number there is if there are none.
    first: Pfn,
    ranges: Vec<PfnRange>,
    /// Temporary mappings of single frames.
    pages: AtomicMaps,
    /// Temporary mappings of whole pageblocks.
    blocks: AtomicMaps,
    /// Mappings that are kept across waits.
    permanent: PermanentMaps,
}

static HIGH: SetOnce<HighMemory> = SetOnce::new();

/// From now on there are windows for this memory.
///
/// # Panics
/// If there were some before.
pub(crate) fn start(memory: HighMemory) -> &'static HighMemory {
    assert!(HIGH.set(memory).is_ok(), "windows for high memory are made once");
    get().expect("just set")
}

/// What there is, once there can be any.
pub(crate) fn get() -> Option<&'static HighMemory> {
    HIGH.get()
}

impl HighMemory {
    /// The windows for `ranges`, by address, for so many CPUs. `nr_kmaps` permanent mappings are possible at a time.
    ///
    /// # Errors
    /// If there is no frame for a page table.
    pub(crate) fn new(
        tables: KernelTables,
        source: &impl FrameSource,
        ranges: Vec<PfnRange>,
        (nr_cpus, nr_kmaps): (u8, u16),
    ) -> Result<Self, OutOfFrames> {
        let (pages, blocks) = atomic_windows(nr_cpus);
        let kmap = KernelRange::new(KMAP.start(), u64::from(nr_kmaps) * PAGE_SIZE).unwrap_or(KMAP);
        Ok(Self {
            first: ranges.first().map_or(Pfn::new(u32::MAX), |range| range.start()),
            ranges,
            pages: AtomicMaps::new(tables, &DirectFrames, source, (pages, Order::ZERO, nr_cpus))?,
            blocks: AtomicMaps::new(tables, &DirectFrames, source, (blocks, Order::PAGEBLOCK, nr_cpus))?,
            permanent: PermanentMaps::new(tables, &DirectFrames, source, kmap)?,
        })
    }

    /// Whether the frame is not in the direct map.
    #[inline]
    pub(crate) fn contains(&self, pfn: Pfn) -> bool {
        pfn >= self.first && self.ranges.iter().any(|range| range.contains(pfn))
    }

    /// Reads the first byte outside the direct map at its physical address, which faults; without such memory nothing.
    pub(crate) fn touch_without_mapping(&self) {
        if let Some(range) = self.ranges.first() {
            let address = with_exposed_provenance_mut::<u8>(to_usize(range.start().gpa()));
            // SAFETY: nothing is mapped there, so this does not read anything: it faults.
            unsafe { address.read_volatile() };
        }
    }

    /// Permanent mappings.
    pub(crate) fn permanent(&self) -> &PermanentMaps {
        &self.permanent
    }

    /// Temporary mappings made since boot, of frames and pageblocks.
    pub(crate) fn atomic_stats(&self) -> AtomicStats {
        let (pages, blocks) = (self.pages.stats(), self.blocks.stats());
        AtomicStats {
            maps: pages.maps + blocks.maps,
            hits: pages.hits + blocks.hits,
            flushes: pages.flushes + blocks.flushes,
        }
    }

    /// Maps a frame for as long as the value is kept, which may be across waits; waits while there is no slot.
    pub(crate) async fn kmap(&self, pfn: Pfn) -> Kmap<'_> {
        self.permanent.kmap(&DirectFrames, &AllCpus, pfn).await
    }

    /// Calls `access` with the address of a frame or, with order 9, a pageblock.
    #[inline]
    fn reach<R>(&self, pfn: Pfn, order: Order, access: impl FnOnce(*mut u8) -> R) -> R {
        if !self.contains(pfn) {
            return access(with_exposed_provenance_mut(to_usize(pfn.gpa())));
        }
        let maps = if order == Order::ZERO {
            &self.pages
        } else {
            &self.blocks
        };
        let mapped = maps.kmap_atomic(this_cpu(), &DirectFrames, &AllCpus, pfn);
        access(with_exposed_provenance_mut(to_usize(mapped.va())))
    }
}

/// All frames there are.
#[derive(Clone, Copy)]
pub(crate) struct AllFrames(pub(crate) &'static HighMemory);

/// A chunk as pieces that are mapped one by one: pageblocks, or frames.
fn pieces(order: Order) -> (Order, impl Iterator<Item = u32>) {
    let piece = if order < Order::PAGEBLOCK {
        Order::ZERO
    } else {
        Order::PAGEBLOCK
    };
    (piece, (0..order.nr_pages()).step_by(piece.nr_pages() as usize))
}

impl AllFrames {
    fn word<R>(self, pfn: Pfn, index: usize, access: impl FnOnce(&AtomicU64) -> R) -> R {
        assert!(index < WORDS_PER_PAGE, "word {index} of a frame");
        self.0.reach(pfn, Order::ZERO, |frame| {
            let word = frame.cast::<AtomicU64>().wrapping_add(index);
            // SAFETY: an aligned word inside a frame that is mapped until `access` returns, or a fault that ends the
            // guest; page tables are only ever accessed by words, so atomics never meet other accesses.
            access(unsafe { &*word })
        })
    }
}

impl Frames for AllFrames {
    #[inline]
    fn read(&self, pfn: Pfn, index: usize) -> u64 {
        self.word(pfn, index, |word| word.load(Ordering::Relaxed))
    }

    #[inline]
    fn write(&self, pfn: Pfn, index: usize, value: u64) {
        self.word(pfn, index, |word| word.store(value, Ordering::Release));
    }

    #[inline]
    fn exchange(&self, pfn: Pfn, index: usize, value: u64) -> u64 {
        self.word(pfn, index, |word| word.swap(value, Ordering::AcqRel))
    }

    fn zero(&self, pfn: Pfn, order: Order) {
        let (piece, pieces) = pieces(order);
        for page in pieces {
            self.0.reach(pfn + page, piece, |chunk| {
                // SAFETY: the chunk is mapped until this returns, and its owner is calling.
                unsafe { chunk.write_bytes(0, to_usize(piece.bytes())) };
            });
        }
    }

    fn copy(&self, from: Pfn, to: Pfn, order: Order) {
        let (piece, pieces) = pieces(order);
        for page in pieces {
            self.0.reach(from + page, piece, |source| {
                self.0.reach(to + page, piece, |target| {
                    // SAFETY: both chunks are mapped until this returns, do not overlap, and nobody writes to them:
                    // processes were kept from the one before (its mapping is gone and was flushed), and do not know the
                    // other yet.
                    unsafe { source.copy_to_nonoverlapping(target, to_usize(piece.bytes())) };
                });
            });
        }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        check(offset, bytes.len());
        self.0.reach(pfn, Order::ZERO, |frame| {
            let start = frame.wrapping_add(offset);
            // SAFETY: inside one mapped frame, by `check`; `bytes` is memory of the manager and never that frame.
            unsafe { start.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
        });
    }

    fn write_bytes(&self, pfn: Pfn, offset: usize, bytes: &[u8]) {
        check(offset, bytes.len());
        self.0.reach(pfn, Order::ZERO, |frame| {
            let start = frame.wrapping_add(offset);
            // SAFETY: as for `read_bytes`.
            unsafe { start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        });
    }
}

/// What programs that stress the manager do with the windows (`guest_kernel::stress`).
impl stress::Windows for HighMemory {
    type Tlb = AllCpus;

    fn permanent(&self) -> &PermanentMaps {
        &self.permanent
    }

    fn momentary_maps(&self) -> u64 {
        self.atomic_stats().maps
    }

    fn tlb(&self) -> &AllCpus {
        &AllCpus
    }

    fn read(&self, va: u64) -> u64 {
        read_mapped(va)
    }

    fn write(&self, va: u64, word: u64) {
        write_mapped(va, word);
    }
}

/// The word at `va`, in an area or a mapping of the caller's own.
pub(super) fn read_mapped(va: u64) -> u64 {
    // SAFETY: see `mapped_word`.
    unsafe { mapped_word(va).read_volatile() }
}

/// Writes the word at `va`, in an area or a mapping of the caller's own.
pub(super) fn write_mapped(va: u64, word: u64) {
    // SAFETY: see `mapped_word`.
    unsafe { mapped_word(va).write_volatile(word) };
}

/// An aligned word in one of the windows, where nobody but whoever asked for the area or mapping has anything; where
/// nothing is mapped an access faults, and ends the guest.
fn mapped_word(va: u64) -> *mut u64 {
    let is_inside = VMALLOC.contains(va) || KMAP.contains(va);
    assert!(is_inside && va.is_multiple_of(8), "a word at {va:#x}");
    with_exposed_provenance_mut(to_usize(va))
}

/// What a mapping of a frame is filled with and compared with, word by word.
pub(crate) struct MappedFrame(*mut u64);

impl MappedFrame {
    /// The frame mapped at `va`.
    ///
    /// # Safety
    /// A frame must be mapped there as long as the value is used, and nobody else may write to it.
    pub(crate) unsafe fn at(va: u64) -> Self {
        Self(with_exposed_provenance_mut(to_usize(va)))
    }

    /// Fills every word with a number made of `seed` and its place.
    pub(crate) fn fill(&self, seed: u64) {
        for index in 0..PAGE_BYTES / 8 {
            // SAFETY: inside the frame, by the condition of `at`.
            unsafe { self.0.wrapping_add(index).write_volatile(pattern(seed, index)) };
        }
    }

    /// The frame's last word.
    pub(crate) fn last_word(&self) -> u64 {
        // SAFETY: inside the frame, by the condition of `at`.
        unsafe { self.0.wrapping_add(PAGE_BYTES / 8 - 1).read_volatile() }
    }

    /// Whether every word is what [`fill`](Self::fill) made it.
    pub(crate) fn holds(&self, seed: u64) -> bool {
        // SAFETY: inside the frame, by the condition of `at`.
        (0..PAGE_BYTES / 8)
            .all(|index| unsafe { self.0.wrapping_add(index).read_volatile() } == pattern(seed, index))
    }
}

/// What the word at `index` is in a frame filled with `seed`.
pub(crate) fn pattern(seed: u64, index: usize) -> u64 {
    (seed ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
