//! Pageblocks: 2 MiB of frames grouped by whether what is in them can be moved, with a bit for each free frame.
//!
//! The bitmap is the buddy system below 2 MiB: a chunk of order k is 2^k free frames, naturally aligned, that are not
//! part of a larger such chunk. So chunks split and merge by clearing and setting bits, and freeing a frame never looks
//! at its neighbours.

use crate::fill::{FillLink, FillLinks, NR_BUCKETS};
use crate::pfn::{NR_PAGE_ORDERS, Order, PAGEBLOCK_NR_PAGES};

/// Mobility of what a pageblock holds (Linux `enum migratetype`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MigrateType {
    /// The kernel's own: stays where it is.
    Unmovable,
    /// The kernel's own, but goes away when a shrinker is asked.
    Reclaimable,
    /// Found again through its descriptor: can be moved.
    Movable,
    /// Nothing may be allocated here: the block is on its way out.
    Isolate,
}

impl MigrateType {
    /// All types, in the order of `/proc/pagetypeinfo`.
    pub const ALL: [Self; 4] = [Self::Unmovable, Self::Movable, Self::Reclaimable, Self::Isolate];

    /// The name that Linux prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unmovable => "Unmovable",
            Self::Reclaimable => "Reclaimable",
            Self::Movable => "Movable",
            Self::Isolate => "Isolate",
        }
    }
}

/// Mobility that a pageblock keeps while its section is open: every [`MigrateType`] but `Isolate`, which is a
/// property of the whole section.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mobility {
    Unmovable = 0,
    Reclaimable = 1,
    Movable = 2,
}

/// Number of mobilities.
pub(crate) const NR_MOBILITIES: usize = 3;

impl Mobility {
    pub(crate) const fn from_bits(bits: u32) -> Self {
        match bits {
            0 => Self::Unmovable,
            1 => Self::Reclaimable,
            _ => Self::Movable,
        }
    }

    /// Whose pageblocks are taken from when there are none of one's own (`mm/page_alloc.c`, `fallbacks`).
    pub(crate) const fn fallbacks(self) -> [Self; 2] {
        match self {
            Self::Unmovable => [Self::Reclaimable, Self::Movable],
            Self::Reclaimable => [Self::Unmovable, Self::Movable],
            Self::Movable => [Self::Reclaimable, Self::Unmovable],
        }
    }

    pub(crate) const fn migrate_type(self) -> MigrateType {
        match self {
            Self::Unmovable => MigrateType::Unmovable,
            Self::Reclaimable => MigrateType::Reclaimable,
            Self::Movable => MigrateType::Movable,
        }
    }
}

/// Words of the bitmap.
const WORDS: usize = PAGEBLOCK_NR_PAGES as usize / 64;
/// Order of a whole word.
const WORD_ORDER: u8 = 6;

const _: () = assert!(1 << (Order::PAGEBLOCK.number() - WORD_ORDER) == WORDS);

/// Part of a larger free chunk, or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Whole {
    /// Partly or wholly in use.
    No,
    /// A free chunk of order 9.
    Single,
    /// First half of a free chunk of order 10.
    PairHead,
    /// Second half of a free chunk of order 10.
    PairTail,
}

/// Free frames of one pageblock.
#[derive(Clone, Debug)]
pub(crate) struct Pageblock {
    /// Bit k of word w is set when frame 64 w + k is free.
    free: [u64; WORDS],
    /// Set bits of `free`, 0..=512.
    pub(crate) free_pages: u16,
    /// Not `No` exactly when all frames are free.
    pub(crate) whole: Whole,
    /// Being emptied by compaction: on no list, so that nothing new comes to it.
    pub(crate) withdrawn: bool,
    /// Compaction could not empty it lately (Linux `PB_compact_skip`).
    pub(crate) skip: bool,
    /// Place in one of the section's lists: of partly used pageblocks, or of free chunks of order 9 and 10.
    link: FillLink,
}

const _: () = assert!(PAGEBLOCK_NR_PAGES >> BUCKET_SHIFT == NR_BUCKETS as u32);
const BUCKET_SHIFT: u32 = 5;

impl Pageblock {
    /// Without a free frame.
    pub(crate) fn new() -> Self {
        Self {
            free: [0; WORDS],
            free_pages: 0,
            whole: Whole::No,
            withdrawn: false,
            skip: false,
            link: FillLink::UNLINKED,
        }
    }

    /// The bucket in the section's list of partly used pageblocks, if it belongs there.
    #[inline]
    pub(crate) fn bucket(&self) -> Option<u8> {
        let free = u32::from(self.free_pages);
        (free > 0 && free < PAGEBLOCK_NR_PAGES && !self.withdrawn)
            .then(|| (self.free_pages >> BUCKET_SHIFT).to_le_bytes()[0])
    }

    #[inline]
    pub(crate) fn listed_bucket(&self) -> Option<u8> {
        self.link.bucket()
    }

    /// Whether the frame, 0..512, is free.
    #[inline]
    pub(crate) fn is_free(&self, frame: u32) -> bool {
        self.free[(frame / 64) as usize] >> (frame % 64) & 1 == 1
    }

    /// Order of the free chunk that the frame is in; the frame is free. 9 for a free pageblock.
    pub(crate) fn free_order(&self, frame: u32) -> Order {
        let mut found = Order::ZERO;
        for order in Order::all().take_while(|&order| order <= Order::PAGEBLOCK) {
            let head = frame & !(order.nr_pages() - 1);
            if !(head..head + order.nr_pages()).all(|frame| self.is_free(frame)) {
                break;
            }
            found = order;
        }
        found
    }

    /// Marks a chunk below order 9 that is in use as free.
    #[inline]
    pub(crate) fn put(&mut self, frame: u32, order: Order) {
        self.free_pages += nr_pages(order);
        let word = (frame / 64) as usize;
        if order.number() >= WORD_ORDER {
            self.free[word..word + (1 << (order.number() - WORD_ORDER))].fill(u64::MAX);
        } else {
            self.free[word] |= run(order.number()) << (frame % 64);
        }
    }

    /// Marks all frames as free, or as in use.
    pub(crate) fn set_all(&mut self, free: bool) {
        self.free = [if free { u64::MAX } else { 0 }; WORDS];
        self.free_pages = if free { nr_pages(Order::PAGEBLOCK) } else { 0 };
    }

    /// Whether there is a free chunk of `order`, below 9, or a larger one.
    #[inline]
    pub(crate) fn has(&self, order: Order) -> bool {
        if order == Order::ZERO {
            return self.free_pages > 0;
        }
        if order.number() >= WORD_ORDER {
            return aligned_runs(self.full_words(), order.number() - WORD_ORDER) != 0;
        }
        self.free
            .iter()
            .any(|&word| aligned_runs(word, order.number()) != 0)
    }

    /// Takes a chunk of `order`, below 9, out of the smallest free chunk that holds one; returns its first frame.
    pub(crate) fn take(&mut self, order: Order) -> Option<u32> {
        let (frame, from) = self.smallest(order.number())?;
        debug_assert!(from >= order.number());
        self.free_pages -= nr_pages(order);
        let word = (frame / 64) as usize;
        if order.number() >= WORD_ORDER {
            self.free[word..word + (1 << (order.number() - WORD_ORDER))].fill(0);
        } else {
            self.free[word] &= !(run(order.number()) << (frame % 64));
        }
        Some(frame)
    }

    /// Takes a frame that is free.
    pub(crate) fn take_at(&mut self, frame: u32) {
        debug_assert!(self.is_free(frame));
        self.free[(frame / 64) as usize] &= !(1 << (frame % 64));
        self.free_pages -= 1;
    }

    /// Takes up to `wanted` single frames, those of the smallest free chunks first, and calls `taken` with each.
    pub(crate) fn take_many(&mut self, wanted: u32, mut taken: impl FnMut(u32)) {
        let mut left = wanted.min(u32::from(self.free_pages));
        self.free_pages -= u16::try_from(left).expect("not more than there are");
        for (base, word) in (0u32..).step_by(64).zip(&mut self.free) {
            if *word != u64::MAX && left > 0 {
                left -= take_from_word(word, left, |bit| taken(base + bit));
            }
        }
        while left > 0 {
            let full = self.full_words();
            let Some((word, _)) = smallest_run(full, 0, 3) else {
                return;
            };
            let base = word * 64;
            left -= take_from_word(&mut self.free[word as usize], left, |bit| taken(base + bit));
        }
    }

    /// Adds the free chunks below order 9 to `counts`, by order.
    pub(crate) fn count_chunks(&self, counts: &mut [u64; NR_PAGE_ORDERS]) {
        if self.whole != Whole::No {
            return;
        }
        let mut count = |bits: u64, orders: u8, base: u8| {
            for order in 0..=orders {
                let exact = exact_runs(bits, order, orders);
                counts[usize::from(base + order)] += u64::from(exact.count_ones());
            }
        };
        for &word in &self.free {
            if word != u64::MAX {
                count(word, WORD_ORDER - 1, 0);
            }
        }
        count(self.full_words(), 3, WORD_ORDER);
    }

    /// Set bits of the bitmap.
    pub(crate) fn count_free(&self) -> u32 {
        self.free.iter().map(|word| word.count_ones()).sum()
    }

    /// First frame and order of the smallest free chunk of at least `order`.
    fn smallest(&self, order: u8) -> Option<(u32, u8)> {
        for wanted in order..WORD_ORDER {
            for (base, &word) in (0u32..).step_by(64).zip(&self.free) {
                let exact = exact_runs(word, wanted, WORD_ORDER);
                if exact != 0 {
                    return Some((base + exact.trailing_zeros(), wanted));
                }
            }
        }
        let (word, found) = smallest_run(self.full_words(), order.saturating_sub(WORD_ORDER), 3)?;
        Some((word * 64, found + WORD_ORDER))
    }

    /// Bit w is set when all frames of word w are free.
    #[inline]
    fn full_words(&self) -> u64 {
        let words = self.free.iter().enumerate();
        words.fold(0, |full, (index, &word)| {
            full | u64::from(word == u64::MAX) << index
        })
    }
}

/// Takes up to `left` of a word's free frames, those of the smallest chunks first; returns how many.
#[inline]
fn take_from_word(word: &mut u64, left: u32, mut taken: impl FnMut(u32)) -> u32 {
    let mut each = |mut bits: u64| {
        while bits != 0 {
            taken(bits.trailing_zeros());
            bits &= bits - 1;
        }
    };
    if word.count_ones() <= left {
        let all = core::mem::take(word);
        each(all);
        return all.count_ones();
    }
    let mut need = left;
    while need > 0 {
        let Some((at, order)) = smallest_run(*word, 0, WORD_ORDER) else {
            break;
        };
        let nr_pages = need.min(1 << order);
        let bits = (u64::MAX >> (64 - nr_pages)) << at;
        *word &= !bits;
        each(bits);
        need -= nr_pages;
    }
    left - need
}

/// The lowest of the smallest aligned runs of at least 2^`from` set bits, and its order.
#[inline]
fn smallest_run(bits: u64, from: u8, top: u8) -> Option<(u32, u8)> {
    (from..=top).find_map(|order| {
        let exact = exact_runs(bits, order, top);
        (exact != 0).then(|| (exact.trailing_zeros(), order))
    })
}

/// Starts of the aligned runs of 2^`order` set bits that are not part of a larger one, up to 2^`top`.
#[inline]
fn exact_runs(bits: u64, order: u8, top: u8) -> u64 {
    let runs = aligned_runs(bits, order);
    if order == top {
        return runs;
    }
    let larger = widen(runs, order);
    runs & !(larger | larger << (1 << order))
}

/// Starts of all aligned runs of 2^`order` set bits.
#[inline]
fn aligned_runs(bits: u64, order: u8) -> u64 {
    (0..order).fold(bits, widen)
}

/// From the starts of runs of 2^`order` to those of the next order.
#[inline]
fn widen(runs: u64, order: u8) -> u64 {
    /// Multiples of 2, 4, ... 64.
    const ALIGNED: [u64; 6] = [
        0x5555_5555_5555_5555,
        0x1111_1111_1111_1111,
        0x0101_0101_0101_0101,
        0x0001_0001_0001_0001,
        0x0000_0001_0000_0001,
        1,
    ];
    runs & (runs >> (1 << order)) & ALIGNED[usize::from(order)]
}

/// 2^`order` set bits; below [`WORD_ORDER`].
#[inline]
const fn run(order: u8) -> u64 {
    (1 << (1 << order)) - 1
}

/// Frames of a chunk inside a pageblock.
#[inline]
fn nr_pages(order: Order) -> u16 {
    debug_assert!(order <= Order::PAGEBLOCK);
    1 << order.number()
}

/// The pageblocks' links in their section's lists.
pub(crate) struct PageblockLinks<'a>(pub(crate) &'a mut [Pageblock]);

impl FillLinks for PageblockLinks<'_> {
    #[inline]
    fn link(&self, item: u32) -> FillLink {
        self.0[item as usize].link
    }
    #[inline]
    fn link_mut(&mut self, item: u32) -> &mut FillLink {
        &mut self.0[item as usize].link
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// Chunks by the definition: a binary tree whose free nodes are as large as possible.
    fn chunks(free: &[bool], order: u8, counts: &mut [u64; NR_PAGE_ORDERS]) {
        if free.iter().all(|&free| free) {
            counts[usize::from(order)] += 1;
        } else if order > 0 {
            let (low, high) = free.split_at(free.len() / 2);
            chunks(low, order - 1, counts);
            chunks(high, order - 1, counts);
        }
    }

    fn expected(model: &[bool]) -> [u64; NR_PAGE_ORDERS] {
        let mut counts = [0; NR_PAGE_ORDERS];
        chunks(model, 9, &mut counts);
        counts
    }

    proptest! {
        #[test]
        fn the_bitmap_is_a_buddy_system_that_splits_the_smallest_chunk(
            steps in prop::collection::vec((any::<bool>(), 0u8..9, 0u32..512, 1u32..70), 1..150)
        ) {
            let mut block = Pageblock::new();
            block.set_all(true);
            let mut model = [true; 512];
            let mut held: Vec<(u32, Order)> = Vec::new();
            for (takes, order, pick, many) in steps {
                let order = Order::new(order).unwrap();
                let before = expected(&model);
                if takes && many % 4 == 0 {
                    let wanted = many.min(u32::from(block.free_pages));
                    let mut taken = Vec::new();
                    block.take_many(many, |frame| taken.push(frame));
                    prop_assert_eq!(taken.len(), wanted as usize);
                    for frame in taken {
                        prop_assert!(core::mem::take(&mut model[frame as usize]), "twice");
                        held.push((frame, Order::ZERO));
                    }
                } else if takes {
                    let fits = before[order.index()..].iter().any(|&count| count > 0);
                    prop_assert_eq!(block.has(order), fits);
                    let Some(frame) = block.take(order) else {
                        prop_assert!(!fits);
                        continue;
                    };
                    let chunk = frame as usize..frame as usize + order.nr_pages() as usize;
                    prop_assert!(model[chunk.clone()].iter().all(|&free| free));
                    model[chunk].fill(false);
                    held.push((frame, order));
                    let smallest = (order.index()..).find(|&order| before[order] > 0).unwrap();
                    let now = expected(&model);
                    prop_assert!(now[smallest] < before[smallest] && now[smallest + 1..] == before[smallest + 1..]);
                } else if !held.is_empty() {
                    let (frame, order) = held.swap_remove(pick as usize % held.len());
                    block.put(frame, order);
                    model[frame as usize..frame as usize + order.nr_pages() as usize].fill(true);
                }
                let mut counts = [0; NR_PAGE_ORDERS];
                block.count_chunks(&mut counts);
                prop_assert_eq!(counts, expected(&model));
                prop_assert_eq!(u32::from(block.free_pages), block.count_free());
            }
        }
    }
}
