//! `kmap_atomic`: mappings of one CPU, released in the reverse order of their making.
//!
//! Every CPU has a ring of slots of its own. A mapping takes the next slot of the ring, and releasing it empties the
//! slot's entry; the CPU's translation cache is flushed when the ring is full, and then every slot that is not in use
//! can be taken again (one that is may be cached once more after the flush, and has to wait for the next). So one flush of one CPU serves a whole ring, and no other CPU is concerned at all: nobody else
//! ever uses these addresses. What a stale translation leads to may be somebody else's by then, but no address of a
//! released slot is used before the flush.
//!
//! The slot released last stays as it is until another frame is mapped: looking at one frame again and again takes one
//! mapping.
//!
//! Slots are 4 KiB, or 2 MiB for whole pageblocks.

use core::fmt;
use core::marker::PhantomData;

use guest_sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use guest_sync::{Cpu, Local, PerCpu};

use super::LEAF;
use crate::frames::Frames;
use crate::kernel_map::{FrameSource, KernelRange, KernelTables, KernelTlb, OutOfFrames};
use crate::pagetable::Entry;
use crate::pfn::{Order, Pfn};

/// Most mappings that one CPU can have at a time (Linux 2.6: `KM_TYPE_NR`, about as many).
pub const MAX_NESTED: usize = 16;

/// The windows of all CPUs.
#[derive(Debug)]
pub struct AtomicMaps {
    tables: KernelTables,
    window: KernelRange,
    /// What a slot maps: order 0, or a pageblock.
    order: Order,
    slots_per_cpu: u16,
    rings: PerCpu<Ring>,
}

/// The slots of a CPU. Only the CPU itself looks at them and changes them, so nothing here is ordered.
#[derive(Debug)]
struct Ring {
    /// The slot to take next.
    cursor: AtomicU16,
    /// Mappings there are, and their slots, oldest first.
    depth: AtomicU16,
    used: [AtomicU16; MAX_NESTED],
    /// What `depth` and `used` were at the last flush: these slots have not been free of the cache since.
    kept_depth: AtomicU16,
    kept: [AtomicU16; MAX_NESTED],
    /// The slot released last, which still leads to its frame, or [`NONE`]; and that frame.
    warm: AtomicU16,
    warm_pfn: AtomicU32,
    maps: AtomicU64,
    hits: AtomicU64,
    flushes: AtomicU64,
}

/// No slot.
const NONE: u16 = u16::MAX;

/// What all CPUs have done since boot.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AtomicStats {
    /// Mappings had.
    pub maps: u64,
    /// Of these, mappings of the frame that the CPU had looked at last.
    pub hits: u64,
    /// Flushes of single CPUs.
    pub flushes: u64,
}

/// A chunk's address, for the CPU that mapped it, as long as this value is there. It stays on its CPU.
#[must_use = "the mapping ends with this value"]
pub struct AtomicMap<'a, F: Frames> {
    maps: &'a AtomicMaps,
    ring: Local<'a, Ring>,
    frames: &'a F,
    slot: u16,
    pfn: Pfn,
    va: u64,
    /// Not `Send`, not `Sync`.
    one_cpu: PhantomData<*const ()>,
}

impl AtomicMaps {
    /// No mappings in `window`, where nothing is mapped: for each CPU as many slots of `order` (0 or a pageblock) as go
    /// into its share.
    ///
    /// # Errors
    /// If there is no frame for a page table.
    ///
    /// # Panics
    /// If a CPU's share has not more slots than mappings nest, unless they are huge, or not a whole number of them.
    pub fn new(
        tables: KernelTables,
        frames: &impl Frames,
        source: &impl FrameSource,
        (window, order, nr_cpus): (KernelRange, Order, u8),
    ) -> Result<Self, OutOfFrames> {
        let share = window.bytes() / u64::from(nr_cpus);
        let slots_per_cpu = u16::try_from(share / order.bytes()).unwrap_or(u16::MAX);
        assert!(
            slots_per_cpu > 1 && (order == Order::ZERO || order == Order::PAGEBLOCK),
            "a window of {window} for {nr_cpus} CPUs"
        );
        match order {
            Order::ZERO => tables.prepare(frames, source, window)?,
            _ => tables.prepare_huge(frames, source, window)?,
        }
        Ok(Self {
            tables,
            window,
            order,
            slots_per_cpu,
            rings: PerCpu::new(nr_cpus, |_| Ring {
                cursor: AtomicU16::new(0),
                depth: AtomicU16::new(0),
                used: core::array::from_fn(|_| AtomicU16::new(0)),
                kept_depth: AtomicU16::new(0),
                kept: core::array::from_fn(|_| AtomicU16::new(0)),
                warm: AtomicU16::new(NONE),
                warm_pfn: AtomicU32::new(0),
                maps: AtomicU64::new(0),
                hits: AtomicU64::new(0),
                flushes: AtomicU64::new(0),
            }),
        })
    }

    /// Maps a chunk of this window's order for the CPU. It must be released before any mapping that is there already.
    ///
    /// # Panics
    /// If the CPU has [`MAX_NESTED`] mappings, or one for each slot.
    pub fn kmap_atomic<'a, F: Frames>(
        &'a self,
        cpu: &'a Cpu,
        frames: &'a F,
        tlb: &impl KernelTlb,
        pfn: Pfn,
    ) -> AtomicMap<'a, F> {
        let ring = self.rings.this(cpu);
        let first = u64::from(cpu.id().number()) * u64::from(self.slots_per_cpu);
        let depth = ring.depth();
        assert!(
            depth < MAX_NESTED.min(usize::from(self.slots_per_cpu)),
            "CPU {} has {depth} mappings of high memory at a time",
            cpu.id()
        );
        if let Some(slot) = ring.take_warm(pfn) {
            ring.push(slot);
            return AtomicMap {
                maps: self,
                ring,
                frames,
                slot,
                pfn,
                va: self.va(first, slot),
                one_cpu: PhantomData,
            };
        }
        let slot = ring.next_slot(self.slots_per_cpu).unwrap_or_else(|| {
            self.cool(frames, ring, first);
            let bytes = u64::from(self.slots_per_cpu) * self.order.bytes();
            let share = KernelRange::new(self.window.start() + first * self.order.bytes(), bytes);
            tlb.flush_local(share.expect("a CPU's share is part of the window"));
            ring.restart();
            ring.next_slot(self.slots_per_cpu)
                .expect("there are more slots than mappings")
        });
        let va = self.va(first, slot);
        self.set(frames, va, Entry::new(pfn, LEAF));
        ring.push(slot);
        AtomicMap {
            maps: self,
            ring,
            frames,
            slot,
            pfn,
            va,
            one_cpu: PhantomData,
        }
    }

    /// What all CPUs have done since boot.
    pub fn stats(&self) -> AtomicStats {
        let mut stats = AtomicStats::default();
        for (_, ring) in self.rings.iter() {
            stats.maps += ring.maps.load(Ordering::Relaxed);
            stats.hits += ring.hits.load(Ordering::Relaxed);
            stats.flushes += ring.flushes.load(Ordering::Relaxed);
        }
        stats
    }

    /// Empties the slot released last.
    fn cool(&self, frames: &impl Frames, ring: Local<'_, Ring>, first: u64) {
        let slot = ring.warm.load(Ordering::Relaxed);
        if slot != NONE {
            ring.warm.store(NONE, Ordering::Relaxed);
            self.set(frames, self.va(first, slot), Entry::EMPTY);
        }
    }

    /// Address of a slot of the CPU whose slots begin with number `first`.
    fn va(&self, first: u64, slot: u16) -> u64 {
        self.window.start() + (first + u64::from(slot)) * self.order.bytes()
    }

    fn set(&self, frames: &impl Frames, va: u64, entry: Entry) {
        let old = match self.order {
            Order::ZERO => self.tables.set_page(frames, va, entry),
            _ if entry.is_empty() => self.tables.set_huge(frames, va, entry),
            _ => self.tables.set_huge(frames, va, entry.with(Entry::HUGE)),
        };
        let old = old.expect("the window was prepared");
        assert!(
            entry.is_empty() != old.is_empty(),
            "{va:#x} is mapped or released twice"
        );
    }
}

impl Ring {
    fn depth(&self) -> usize {
        usize::from(self.depth.load(Ordering::Relaxed))
    }

    /// The next slot that the cache does not know; `None` at the ring's end.
    fn next_slot(&self, slots_per_cpu: u16) -> Option<u16> {
        let from = self.cursor.load(Ordering::Relaxed);
        let kept_depth = usize::from(self.kept_depth.load(Ordering::Relaxed));
        let kept = &self.kept[..kept_depth];
        // What is in use now was taken since the flush, below the cursor, or is kept.
        let is_kept = |slot| kept.iter().any(|kept| kept.load(Ordering::Relaxed) == slot);
        let slot = (from..slots_per_cpu).find(|&slot| !is_kept(slot))?;
        self.cursor.store(slot + 1, Ordering::Relaxed);
        Some(slot)
    }

    /// The cache was flushed.
    fn restart(&self) {
        self.cursor.store(0, Ordering::Relaxed);
        self.kept_depth
            .store(self.depth.load(Ordering::Relaxed), Ordering::Relaxed);
        for (kept, used) in self.kept.iter().zip(&self.used) {
            kept.store(used.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.flushes
            .store(self.flushes.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The slot released last, if it leads to the frame: it is in use again.
    fn take_warm(&self, pfn: Pfn) -> Option<u16> {
        let slot = self.warm.load(Ordering::Relaxed);
        if slot == NONE || self.warm_pfn.load(Ordering::Relaxed) != pfn.number() {
            return None;
        }
        self.warm.store(NONE, Ordering::Relaxed);
        self.hits
            .store(self.hits.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        Some(slot)
    }

    fn push(&self, slot: u16) {
        let depth = self.depth.load(Ordering::Relaxed);
        self.used[usize::from(depth)].store(slot, Ordering::Relaxed);
        self.depth.store(depth + 1, Ordering::Relaxed);
        self.maps
            .store(self.maps.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// The slot of the newest mapping.
    fn newest(&self) -> Option<u16> {
        let place = self.depth().checked_sub(1)?;
        Some(self.used[place].load(Ordering::Relaxed))
    }

    fn pop(&self) {
        let depth = self.depth.load(Ordering::Relaxed);
        self.depth.store(depth - 1, Ordering::Relaxed);
    }
}

impl<F: Frames> AtomicMap<'_, F> {
    /// Where the chunk's first byte is.
    pub const fn va(&self) -> u64 {
        self.va
    }
}

impl<F: Frames> Drop for AtomicMap<'_, F> {
    /// `kunmap_atomic`.
    fn drop(&mut self) {
        assert_eq!(
            self.ring.newest(),
            Some(self.slot),
            "mappings of high memory are released newest first"
        );
        self.ring.pop();
        let first = (self.va - self.maps.window.start()) / self.maps.order.bytes() - u64::from(self.slot);
        self.maps.cool(self.frames, self.ring, first);
        self.ring.warm.store(self.slot, Ordering::Relaxed);
        self.ring.warm_pfn.store(self.pfn.number(), Ordering::Relaxed);
    }
}

impl<F: Frames> fmt::Debug for AtomicMap<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AtomicMap at {:#x}", self.va)
    }
}
