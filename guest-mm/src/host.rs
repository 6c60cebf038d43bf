//! The machine made of ordinary memory: frames that exist or do not, a CPU with a translation cache that forgets only
//! what it is told to.
//!
//! For tests, examples and simulation. Both are strict where hardware is silent: an access to a frame that was not
//! plugged panics, and a stale translation stays in use until it is flushed.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_sync::{SetOnce, SpinLock};

use crate::frames::{FlushBatch, Frames, Mmu, SpaceId};
use crate::mm::Mm;
use crate::pagetable::{Access, Entry, Level, PageFault, translate_from};
use crate::pfn::{
    Order, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_NR_PAGES, PAGEBLOCK_SIZE, Pfn, PfnRange, WORDS_PER_PAGE,
};

/// Words of one frame.
type Words = Box<[AtomicU64]>;

/// Frames of one pageblock; present while it is plugged. A frame that was never written to has no words, and is zero.
type Pageblock = Box<[SetOnce<Words>]>;

/// Pageblocks of one GiB, and of the first level of the table.
const PER_GIB: usize = 512;

/// Frames as words that threads may read and write at once, without a lock: like memory, and like memory without any
/// order between two words. Plugging and unplugging needs the frames for itself.
#[derive(Debug, Default)]
pub struct HostFrames {
    /// By GiB, then by pageblock.
    gibs: Vec<Option<Box<[Option<Pageblock>]>>>,
}

impl HostFrames {
    /// No memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes frames exist, filled with zeroes; those that exist already stay as they are. The range is
    /// pageblock-aligned.
    pub fn plug(&mut self, range: PfnRange) {
        assert!(range.is_pageblock_aligned(), "{range} is not aligned to 2 MiB");
        for pageblock in pageblocks(range) {
            let (gib, index) = (pageblock / PER_GIB, pageblock % PER_GIB);
            if self.gibs.len() <= gib {
                self.gibs.resize_with(gib + 1, || None);
            }
            let none = || (0..PER_GIB).map(|_| None).collect();
            let zeroes = || (0..PAGEBLOCK_NR_PAGES).map(|_| SetOnce::new()).collect();
            self.gibs[gib].get_or_insert_with(none)[index].get_or_insert_with(zeroes);
        }
    }

    /// Takes frames away with their contents: an access from now on panics. The range is pageblock-aligned.
    pub fn unplug(&mut self, range: PfnRange) {
        assert!(range.is_pageblock_aligned(), "{range} is not aligned to 2 MiB");
        for pageblock in pageblocks(range) {
            if let Some(Some(gib)) = self.gibs.get_mut(pageblock / PER_GIB) {
                gib[pageblock % PER_GIB] = None;
            }
        }
    }

    /// The frame's words, if it was ever written to.
    #[inline]
    fn written(&self, pfn: Pfn) -> Option<&[AtomicU64]> {
        self.frame(pfn).get().map(|words| &**words)
    }

    /// The frame's words, to be written to.
    #[inline]
    fn words(&self, pfn: Pfn) -> &[AtomicU64] {
        let frame = self.frame(pfn);
        loop {
            if let Some(words) = frame.get() {
                return words;
            }
            // If another thread is just doing the same, its words are there soon.
            let _ = frame.set((0..WORDS_PER_PAGE).map(|_| AtomicU64::new(0)).collect());
        }
    }

    #[inline]
    fn frame(&self, pfn: Pfn) -> &SetOnce<Words> {
        let pageblock = (pfn.number() / PAGEBLOCK_NR_PAGES) as usize;
        let gib = self.gibs.get(pageblock / PER_GIB).and_then(Option::as_deref);
        let Some(frames) = gib.and_then(|gib| gib[pageblock % PER_GIB].as_deref()) else {
            panic!("violation: access to unplugged {pfn}");
        };
        &frames[(pfn.number() % PAGEBLOCK_NR_PAGES) as usize]
    }
}

fn pageblocks(range: PfnRange) -> impl Iterator<Item = usize> {
    let index = |pfn: Pfn| (pfn.number() / PAGEBLOCK_NR_PAGES) as usize;
    index(range.start())..index(range.end())
}

impl Frames for HostFrames {
    #[inline]
    fn read(&self, pfn: Pfn, index: usize) -> u64 {
        assert!(index < WORDS_PER_PAGE, "word {index} of a frame");
        self.written(pfn)
            .map_or(0, |words| words[index].load(Ordering::Relaxed))
    }

    #[inline]
    fn write(&self, pfn: Pfn, index: usize, value: u64) {
        self.words(pfn)[index].store(value, Ordering::Release);
    }

    #[inline]
    fn exchange(&self, pfn: Pfn, index: usize, value: u64) -> u64 {
        self.words(pfn)[index].swap(value, Ordering::AcqRel)
    }

    fn zero(&self, pfn: Pfn, order: Order) {
        for page in 0..order.nr_pages() {
            for word in self.written(pfn + page).into_iter().flatten() {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn copy(&self, from: Pfn, to: Pfn, order: Order) {
        for page in 0..order.nr_pages() {
            let Some(from) = self.written(from + page) else {
                self.zero(to + page, Order::ZERO);
                continue;
            };
            for (from, to) in from.iter().zip(self.words(to + page)) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            *byte = self.read(pfn, at / 8).to_le_bytes()[at % 8];
        }
    }

    fn write_bytes(&self, pfn: Pfn, offset: usize, bytes: &[u8]) {
        let words = self.words(pfn);
        for (at, &byte) in (offset..).zip(bytes) {
            let shift = at % 8 * 8;
            // Two threads may write to different bytes of one word.
            words[at / 8].fetch_and(!(0xff << shift), Ordering::Relaxed);
            words[at / 8].fetch_or(u64::from(byte) << shift, Ordering::Relaxed);
        }
    }
}

/// A translation cache with room for everything. Programs on several threads use it at once.
#[derive(Debug, Default)]
pub struct HostMmu {
    cache: SpinLock<Cache>,
}

#[derive(Debug, Default)]
struct Cache {
    /// Leaf and base frame by address space and page number.
    cached: BTreeMap<(u32, u64), (Entry, Pfn)>,
    /// Tables of 4 KiB pages by address space and number of the 2 MiB that they map: where walks begin (Intel SDM volume 3, 4.10.3).
    tables: BTreeMap<(u32, u64), Pfn>,
    flushes: u64,
}

impl HostMmu {
    /// Nothing cached.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls of [`Mmu::flush`] so far.
    pub fn flushes(&self) -> u64 {
        self.cache.lock().flushes
    }
}

impl Cache {
    /// Panics when another page of the same 2 MiB is still cached from a mapping of another size, which a processor
    /// leaves undefined (Intel SDM volume 3, 4.10.2.3).
    fn check_sizes(&self, (space, page): (u32, u64), entry: Entry) {
        let first = page / u64::from(PAGEBLOCK_NR_PAGES) * u64::from(PAGEBLOCK_NR_PAGES);
        let neighbours = (space, first)..(space, first + u64::from(PAGEBLOCK_NR_PAGES));
        let mixed = self
            .cached
            .range(neighbours)
            .find(|(_, (other, _))| other.has(Entry::HUGE) != entry.has(Entry::HUGE));
        assert!(
            mixed.is_none(),
            "page {page:#x} of space {space} is cached with two sizes"
        );
    }
}

impl Mmu for HostMmu {
    fn flush(&self, batch: &FlushBatch) {
        let mut cache = self.cache.lock();
        cache.flushes += 1;
        for flush in batch.iter() {
            let (space, first) = (flush.space.number(), flush.va >> PAGE_SHIFT);
            cache
                .cached
                .retain(|&(id, page), _| id != space || page < first || page - first >= flush.nr_pages);
            // Forgetting one page of an address space forgets all of its tables.
            cache.tables.retain(|&(id, _), _| id != space);
        }
    }
}

impl Mm<'_, HostFrames, HostMmu> {
    /// A program's load of the aligned 64-bit word at `va`, as a CPU does it.
    ///
    /// # Errors
    /// The page fault that the CPU would raise.
    pub fn cpu_load(&self, id: SpaceId, va: u64) -> Result<u64, PageFault> {
        // The access is over before anybody's flush returns.
        let mut cache = self.mmu.cache.lock();
        let pfn = self.cpu_translate(&mut cache, id, va, Access::Read)?;
        Ok(self.frames.read(pfn, word_of(va)))
    }

    /// A program's store to the aligned 64-bit word at `va`, as a CPU does it.
    ///
    /// # Errors
    /// The page fault that the CPU would raise.
    pub fn cpu_store(&self, id: SpaceId, va: u64, value: u64) -> Result<(), PageFault> {
        let mut cache = self.mmu.cache.lock();
        let pfn = self.cpu_translate(&mut cache, id, va, Access::Write)?;
        self.frames.write(pfn, word_of(va), value);
        Ok(())
    }

    /// From the cache if it permits the access, otherwise from the tables.
    fn cpu_translate(
        &self,
        cache: &mut Cache,
        id: SpaceId,
        va: u64,
        access: Access,
    ) -> Result<Pfn, PageFault> {
        let key = (id.number(), va >> PAGE_SHIFT);
        let enough = match access {
            Access::Read => 0,
            Access::Write => Entry::WRITABLE | Entry::DIRTY,
            Access::Execute => 0,
        };
        if let Some(&(entry, pfn)) = cache.cached.get(&key)
            && entry.has(enough)
        {
            return Ok(pfn);
        }
        let root = self.space(id).ok_or(PageFault::NotPresent)?.root();
        let of_table = (id.number(), va / PAGEBLOCK_SIZE);
        let known = cache.tables.get(&of_table).map(|&table| (table, Level::PAGE));
        let start = known.unwrap_or((root, Level::ROOT));
        // A fault forgets what led to it (4.10.4.1).
        cache.tables.remove(&of_table);
        let tables = &mut cache.tables;
        let found = translate_from(&self.frames, start, va, access, |table| {
            tables.insert(of_table, table);
        })?;
        let pfn = Pfn::containing(found.gpa).ok_or(PageFault::NotPresent)?;
        cache.check_sizes(key, found.entry);
        cache.cached.insert(key, (found.entry, pfn));
        Ok(pfn)
    }
}

fn word_of(va: u64) -> usize {
    assert!(va.is_multiple_of(8), "{va:#x} is not the address of a word");
    usize::try_from(va % PAGE_SIZE / 8).expect("below 512")
}
