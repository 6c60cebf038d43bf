//! `kmap`: mappings for every CPU, kept as long as somebody uses them, in a window of a fixed number of slots.
//!
//! A slot is *free* (empty, and no translation cache knows it), *used* by somebody, *idle* (nobody uses it, but it still
//! leads to its frame) or being *flushed*. The search for a free slot goes on where the last one ended; when it comes
//! to the window's end, all idle slots are emptied, and become free with one flush of all CPUs.
//!
//! **Lock order.** One lock for the slots; it is not held during the flush, and nothing is taken under it. Those who wait
//! stand in a [`WaitQueue`], called after the lock is free again.

use alloc::boxed::Box;
use core::fmt;

use guest_sync::SpinLock;

use super::LEAF;
use crate::frames::Frames;
use crate::kernel_map::{FrameSource, KernelRange, KernelTables, KernelTlb, OutOfFrames};
use crate::pagetable::Entry;
use crate::pfn::{PAGE_SHIFT, Pfn};
use crate::wait::WaitQueue;

/// What a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    /// Empty, and no translation cache knows it.
    Free,
    /// Leads to a frame that nobody uses.
    Idle(Pfn),
    /// Leads to a frame, for so many users, at least 1.
    Used(Pfn, u32),
    /// Empty; translation caches are being flushed.
    Flushing,
}

/// No slot.
const NONE: u16 = u16::MAX;

/// The window and its slots.
#[derive(Debug)]
pub struct PermanentMaps {
    tables: KernelTables,
    window: KernelRange,
    slots: SpinLock<Slots>,
    waiting: WaitQueue,
}

/// What there is, and what was done since boot.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct KmapStats {
    /// Slots in use.
    pub nr_used: u32,
    /// Mappings asked for and had, those of frames mapped already among them.
    pub maps: u64,
    /// Of these, frames whose mapping was there already.
    pub hits: u64,
    /// Times that the search came to the window's end.
    pub wraps: u64,
    /// Flushes of all CPUs.
    pub flushes: u64,
    /// Mappings that had to wait.
    pub waits: u64,
}

#[derive(Debug)]
struct Slots {
    slots: Box<[Slot]>,
    /// First slot of each bucket of frames, and the next one of each slot's bucket.
    buckets: Box<[u16]>,
    next: Box<[u16]>,
    /// Where the search goes on.
    cursor: u16,
    stats: KmapStats,
}

/// A frame's address in the kernel, valid as long as this value is there.
#[must_use = "the mapping ends with this value"]
pub struct Kmap<'a> {
    maps: &'a PermanentMaps,
    slot: u16,
    pfn: Pfn,
}

/// What a search found.
enum Search {
    Mapped(u16),
    /// Slots `0 ..= .0` are to be flushed before the search goes on.
    Flush(u16),
    /// Every slot is used, or another CPU is flushing.
    Full,
}

impl PermanentMaps {
    /// No mappings in `window`, where nothing is mapped and which has a slot for each of its pages, at most 65535.
    ///
    /// # Errors
    /// If there is no frame for a page table.
    pub fn new(
        tables: KernelTables,
        frames: &impl Frames,
        source: &impl FrameSource,
        window: KernelRange,
    ) -> Result<Self, OutOfFrames> {
        tables.prepare(frames, source, window)?;
        let nr_slots = u16::try_from(window.nr_pages())
            .ok()
            .filter(|&slots| slots < NONE);
        let nr_slots = usize::from(nr_slots.expect("windows of kmap are small"));
        Ok(Self {
            tables,
            window,
            slots: SpinLock::new(Slots {
                slots: core::iter::repeat_n(Slot::Free, nr_slots).collect(),
                buckets: core::iter::repeat_n(NONE, nr_slots).collect(),
                next: core::iter::repeat_n(NONE, nr_slots).collect(),
                cursor: 0,
                stats: KmapStats::default(),
            }),
            waiting: WaitQueue::new(),
        })
    }

    /// Where mappings are.
    pub const fn window(&self) -> KernelRange {
        self.window
    }

    /// Maps a frame, or uses the mapping it has. Waits while every slot is used. No lock may be held when the future is
    /// polled.
    pub async fn kmap(&self, frames: &impl Frames, tlb: &impl KernelTlb, pfn: Pfn) -> Kmap<'_> {
        if let Some(kmap) = self.try_kmap(frames, tlb, pfn) {
            return kmap;
        }
        self.slots.lock().stats.waits += 1;
        let kmap = self.waiting.until(|| self.try_kmap(frames, tlb, pfn)).await;
        if kmap.shares_slot() {
            // Whoever called meant the slot that this mapping did not need.
            self.waiting.wake_one();
        }
        kmap
    }

    /// As [`kmap`](Self::kmap), without waiting: `None` when there is no slot now.
    pub fn try_kmap(&self, frames: &impl Frames, tlb: &impl KernelTlb, pfn: Pfn) -> Option<Kmap<'_>> {
        loop {
            let mut slots = self.slots.lock();
            match slots.search(pfn) {
                Search::Mapped(slot) => {
                    if slots.slots[usize::from(slot)] == Slot::Used(pfn, 1) {
                        // The first user, of a new mapping or an idle one.
                        let entry = Entry::new(pfn, LEAF);
                        let old = self.tables.set_page(frames, self.va(slot), entry);
                        assert!(old.is_some(), "the window was prepared");
                    }
                    return Some(Kmap {
                        maps: self,
                        slot,
                        pfn,
                    });
                }
                Search::Flush(last) => {
                    slots.empty_idle(|slot| {
                        self.tables.set_page(frames, self.va(slot), Entry::EMPTY);
                    });
                    drop(slots);
                    let bytes = (u64::from(last) + 1) << PAGE_SHIFT;
                    let range = KernelRange::new(self.window.start(), bytes);
                    tlb.flush(range.expect("a part of the window"));
                    let freed = self.slots.lock().flushed();
                    // Others may have found slots being flushed, and none free. One slot is for this caller.
                    (1..freed).take_while(|_| self.waiting.wake_one()).for_each(drop);
                }
                Search::Full => return None,
            }
        }
    }

    /// Counts of what there is and what was done.
    pub fn stats(&self) -> KmapStats {
        self.slots.lock().stats
    }

    /// How many wait for a slot.
    pub fn nr_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Checks that every slot's entry is what the slot says, and that frames are found by their buckets. Nobody else may
    /// be using the window meanwhile.
    ///
    /// # Errors
    /// The number of a slot for which this does not hold.
    pub fn validate(&self, frames: &impl Frames) -> Result<(), u16> {
        let slots = self.slots.lock();
        let mut nr_used = 0;
        for (slot, state) in (0..).zip(&slots.slots) {
            let (entry, _) = self.tables.lookup(frames, self.va(slot));
            let is_right = match *state {
                Slot::Free => entry.is_empty(),
                Slot::Idle(pfn) => entry.is_present() && entry.pfn() == pfn && slots.find(pfn) == Some(slot),
                Slot::Used(pfn, users) => {
                    nr_used += 1;
                    users > 0 && entry.is_present() && entry.pfn() == pfn && slots.find(pfn) == Some(slot)
                }
                Slot::Flushing => false,
            };
            if !is_right {
                return Err(slot);
            }
        }
        if nr_used == slots.stats.nr_used {
            Ok(())
        } else {
            Err(NONE)
        }
    }

    fn va(&self, slot: u16) -> u64 {
        self.window.start() + (u64::from(slot) << PAGE_SHIFT)
    }
}

impl Slots {
    /// A slot for a frame, with one more user.
    fn search(&mut self, pfn: Pfn) -> Search {
        if let Some(slot) = self.find(pfn) {
            let users = match self.slots[usize::from(slot)] {
                Slot::Used(_, users) => users,
                _ => 0,
            };
            self.stats.hits += 1;
            self.use_slot(slot, pfn, users + 1);
            return Search::Mapped(slot);
        }
        let from = usize::from(self.cursor);
        if let Some(offset) = self.slots[from..].iter().position(|slot| *slot == Slot::Free) {
            let slot = index(from + offset);
            self.cursor = slot + 1;
            let bucket = self.bucket(pfn);
            self.next[usize::from(slot)] = core::mem::replace(&mut self.buckets[bucket], slot);
            self.use_slot(slot, pfn, 1);
            return Search::Mapped(slot);
        }
        if self.slots.contains(&Slot::Flushing) {
            // Whoever flushes has moved the cursor back.
            return Search::Full;
        }
        match self.slots.iter().rposition(|slot| matches!(slot, Slot::Idle(_))) {
            Some(last) => Search::Flush(index(last)),
            None if self.slots[..from].contains(&Slot::Free) => {
                self.cursor = 0;
                self.search(pfn)
            }
            None => Search::Full,
        }
    }

    fn use_slot(&mut self, slot: u16, pfn: Pfn, users: u32) {
        self.stats.nr_used += u32::from(users == 1);
        self.stats.maps += 1;
        self.slots[usize::from(slot)] = Slot::Used(pfn, users);
    }

    /// Takes every idle slot out of its bucket and calls `empty` with it.
    fn empty_idle(&mut self, mut empty: impl FnMut(u16)) {
        self.cursor = 0;
        self.stats.wraps += 1;
        self.stats.flushes += 1;
        for slot in 0..index(self.slots.len()) {
            if let Slot::Idle(pfn) = self.slots[usize::from(slot)] {
                self.unlink(slot, pfn);
                self.slots[usize::from(slot)] = Slot::Flushing;
                empty(slot);
            }
        }
    }

    /// Slots that were being flushed are free; returns how many.
    fn flushed(&mut self) -> usize {
        let flushing = self.slots.iter_mut().filter(|slot| **slot == Slot::Flushing);
        flushing.map(|slot| *slot = Slot::Free).count()
    }

    /// The slot that leads to a frame.
    fn find(&self, pfn: Pfn) -> Option<u16> {
        let mut slot = self.buckets[self.bucket(pfn)];
        while slot != NONE {
            match self.slots[usize::from(slot)] {
                Slot::Used(found, _) | Slot::Idle(found) if found == pfn => return Some(slot),
                _ => slot = self.next[usize::from(slot)],
            }
        }
        None
    }

    fn unlink(&mut self, slot: u16, pfn: Pfn) {
        let bucket = self.bucket(pfn);
        let after = self.next[usize::from(slot)];
        if self.buckets[bucket] == slot {
            self.buckets[bucket] = after;
            return;
        }
        let mut at = usize::from(self.buckets[bucket]);
        while self.next[at] != slot {
            at = usize::from(self.next[at]);
        }
        self.next[at] = after;
    }

    /// Neighbouring frames have different buckets.
    fn bucket(&self, pfn: Pfn) -> usize {
        pfn.number() as usize % self.buckets.len()
    }
}

fn index(slot: usize) -> u16 {
    u16::try_from(slot).expect("a window has fewer than 65535 slots")
}

impl Kmap<'_> {
    /// Where the frame's first byte is.
    pub fn va(&self) -> u64 {
        self.maps.va(self.slot)
    }

    fn shares_slot(&self) -> bool {
        let slots = self.maps.slots.lock();
        matches!(slots.slots[usize::from(self.slot)], Slot::Used(_, users) if users > 1)
    }

    /// The frame.
    pub const fn pfn(&self) -> Pfn {
        self.pfn
    }
}

impl Drop for Kmap<'_> {
    /// `kunmap`. The slot leads to its frame until the next flush.
    fn drop(&mut self) {
        let mut slots = self.maps.slots.lock();
        let slot = &mut slots.slots[usize::from(self.slot)];
        let Slot::Used(pfn, users) = *slot else {
            panic!("slot {} of kmap is used by this value and {slot:?}", self.slot);
        };
        if users > 1 {
            *slot = Slot::Used(pfn, users - 1);
            return;
        }
        *slot = Slot::Idle(pfn);
        slots.stats.nr_used -= 1;
        drop(slots);
        self.maps.waiting.wake_one();
    }
}

impl fmt::Debug for Kmap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}", self.pfn, self.va())
    }
}
