//! The machine made of ordinary memory: frames that exist or do not, a CPU with a translation cache that forgets only
//! what it is told to.
//!
//! For tests, examples and simulation. Both are strict where hardware is silent: an access to a frame that was not
//! plugged panics, and a stale translation stays in use until it is flushed.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};

use crate::frames::{FlushBatch, Frames, Mmu, SpaceId};
use crate::mm::Mm;
use crate::pagetable::{Access, Entry, PageFault, translate};
use crate::pfn::{Order, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_NR_PAGES, Pfn, PfnRange, WORDS_PER_PAGE};

type Words = [u64; WORDS_PER_PAGE];

/// Frames in a map; one that was never written reads as zeroes.
#[derive(Debug, Default)]
pub struct HostFrames {
    plugged: BTreeSet<u32>,
    written: BTreeMap<Pfn, Box<Words>>,
}

impl HostFrames {
    /// No memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes frames exist, filled with zeroes. The range is pageblock-aligned.
    pub fn plug(&mut self, range: PfnRange) {
        assert!(range.is_pageblock_aligned(), "{range} is not aligned to 2 MiB");
        self.plugged.extend(pageblocks(range));
    }

    /// Takes frames away with their contents: an access from now on panics. The range is pageblock-aligned.
    pub fn unplug(&mut self, range: PfnRange) {
        assert!(range.is_pageblock_aligned(), "{range} is not aligned to 2 MiB");
        for pageblock in pageblocks(range) {
            self.plugged.remove(&pageblock);
        }
        self.written.retain(|&pfn, _| !range.contains(pfn));
    }

    fn check(&self, pfn: Pfn) {
        let plugged = self.plugged.contains(&(pfn.number() / PAGEBLOCK_NR_PAGES));
        assert!(plugged, "violation: access to unplugged {pfn}");
    }

    fn words(&mut self, pfn: Pfn) -> &mut Words {
        self.check(pfn);
        self.written
            .entry(pfn)
            .or_insert_with(|| Box::new([0; WORDS_PER_PAGE]))
    }
}

fn pageblocks(range: PfnRange) -> impl Iterator<Item = u32> {
    range.start().number() / PAGEBLOCK_NR_PAGES..range.end().number() / PAGEBLOCK_NR_PAGES
}

impl Frames for HostFrames {
    fn read(&self, pfn: Pfn, index: usize) -> u64 {
        self.check(pfn);
        self.written.get(&pfn).map_or(0, |words| words[index])
    }

    fn write(&mut self, pfn: Pfn, index: usize, value: u64) {
        self.words(pfn)[index] = value;
    }

    fn exchange(&mut self, pfn: Pfn, index: usize, value: u64) -> u64 {
        core::mem::replace(&mut self.words(pfn)[index], value)
    }

    fn zero(&mut self, pfn: Pfn, order: Order) {
        for page in 0..order.nr_pages() {
            self.check(pfn + page);
            self.written.remove(&(pfn + page));
        }
    }

    fn copy(&mut self, from: Pfn, to: Pfn, order: Order) {
        for page in 0..order.nr_pages() {
            self.check(from + page);
            self.check(to + page);
            match self.written.get(&(from + page)).cloned() {
                Some(words) => self.written.insert(to + page, words),
                None => self.written.remove(&(to + page)),
            };
        }
    }

    fn read_bytes(&self, pfn: Pfn, offset: usize, bytes: &mut [u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            *byte = self.read(pfn, at / 8).to_le_bytes()[at % 8];
        }
    }

    fn write_bytes(&mut self, pfn: Pfn, offset: usize, bytes: &[u8]) {
        for (at, &byte) in (offset..).zip(bytes) {
            let word = &mut self.words(pfn)[at / 8];
            let mut changed = word.to_le_bytes();
            changed[at % 8] = byte;
            *word = u64::from_le_bytes(changed);
        }
    }
}

/// A translation cache with room for everything.
#[derive(Debug, Default)]
pub struct HostMmu {
    /// Leaf and base frame by address space and page number.
    cached: BTreeMap<(u32, u64), (Entry, Pfn)>,
    flushes: u64,
}

impl HostMmu {
    /// Nothing cached.
    pub fn new() -> Self {
        Self::default()
    }

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

    /// Calls of [`Mmu::flush`] so far.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }
}

impl Mmu for HostMmu {
    fn flush(&mut self, batch: &FlushBatch) {
        self.flushes += 1;
        for flush in batch.iter() {
            let (space, first) = (flush.space.number(), flush.va >> PAGE_SHIFT);
            self.cached
                .retain(|&(id, page), _| id != space || page < first || page - first >= flush.nr_pages);
        }
    }
}

impl Mm<HostFrames, HostMmu> {
    /// A program's load of the aligned 64-bit word at `va`, as a CPU does it.
    ///
    /// # Errors
    /// The page fault that the CPU would raise.
    pub fn cpu_load(&mut self, id: SpaceId, va: u64) -> Result<u64, PageFault> {
        let pfn = self.cpu_translate(id, va, Access::Read)?;
        Ok(self.frames.read(pfn, word_of(va)))
    }

    /// A program's store to the aligned 64-bit word at `va`, as a CPU does it.
    ///
    /// # Errors
    /// The page fault that the CPU would raise.
    pub fn cpu_store(&mut self, id: SpaceId, va: u64, value: u64) -> Result<(), PageFault> {
        let pfn = self.cpu_translate(id, va, Access::Write)?;
        self.frames.write(pfn, word_of(va), value);
        Ok(())
    }

    /// From the cache if it permits the access, otherwise from the tables.
    fn cpu_translate(&mut self, id: SpaceId, va: u64, access: Access) -> Result<Pfn, PageFault> {
        let key = (id.number(), va >> PAGE_SHIFT);
        let enough = match access {
            Access::Read => 0,
            Access::Write => Entry::WRITABLE | Entry::DIRTY,
            Access::Execute => 0,
        };
        if let Some(&(entry, pfn)) = self.mmu.cached.get(&key)
            && entry.has(enough)
        {
            return Ok(pfn);
        }
        let root = self.space(id).ok_or(PageFault::NotPresent)?.root();
        let found = translate(&mut self.frames, root, va, access)?;
        let pfn = Pfn::containing(found.gpa).ok_or(PageFault::NotPresent)?;
        self.mmu.check_sizes(key, found.entry);
        self.mmu.cached.insert(key, (found.entry, pfn));
        Ok(pfn)
    }
}

fn word_of(va: u64) -> usize {
    assert!(va.is_multiple_of(8), "{va:#x} is not the address of a word");
    usize::try_from(va % PAGE_SIZE / 8).expect("below 512")
}
