//! The descriptors of all frames as one array at a fixed address, indexed by frame number (Linux' vmemmap).
//!
//! All of it can always be read: where no memory is online the array is one frame of zeroes over and over, read-only,
//! through page tables that refer to one another's only entry. Zeroes are valid descriptors (tails of nothing). Before a
//! block goes online its part is backed with memory of its own, and after it went offline that memory is given back.
//! So a reference to the whole array is sound for ever, and a store to a descriptor that is not there faults.
//!
//! That memory is the kernel's, or the first frames of the block itself: [`Vmemmap::back_on_block`].

use crate::frames::Frames;
use crate::kernel_map::{FrameSource, KernelRange, KernelTables, OutOfFrames, table_entry};
use crate::page::Page;
use crate::pagetable::{Entry, Level};
use crate::pfn::{Order, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_SIZE, Pfn, PfnRange, WORDS_PER_PAGE};

/// Bytes of one descriptor.
pub const DESCRIPTOR_BYTES: u64 = size_of::<Page>() as u64;
/// What of the array one entry of its root covers: 512 GiB, for all the frames there are.
const ARRAY_BYTES: u64 = DESCRIPTOR_BYTES << 32;

const _: () = assert!(ARRAY_BYTES <= Level::ROOT.entry_bytes());
const _: () = assert!((PAGEBLOCK_SIZE / PAGE_SIZE * DESCRIPTOR_BYTES).is_multiple_of(PAGE_SIZE));

/// Rights of memory for descriptors.
const OWN: u64 = Entry::PRESENT | Entry::WRITABLE | Entry::USER | Entry::NO_EXECUTE;
/// Rights of the zeroes.
const ZEROES: u64 = Entry::PRESENT | Entry::USER | Entry::NO_EXECUTE;

/// The array: where it is, and what stands in for what is not there.
///
/// Calls of [`back`](Self::back) and [`unback`](Self::unback) must exclude each other.
#[derive(Debug)]
pub struct Vmemmap {
    tables: KernelTables,
    base: u64,
    /// The frame of zeroes.
    zeroes: Pfn,
    /// A page table with nothing but the frame of zeroes.
    page_table: Pfn,
}

/// Frames that held descriptors. No entry leads to them any more, but translation caches may: flush `range` on all
/// CPUs, then [`release`](Self::release) them.
#[must_use = "the frames are lost unless they are released after a flush"]
#[derive(Debug)]
pub struct Unbacked {
    /// Addresses whose translations changed.
    range: KernelRange,
    /// The first frame; the first word of each holds the next one and its order.
    chain: u64,
}

impl Vmemmap {
    /// The array at `base`, a multiple of 512 GiB where nothing is mapped, without any descriptor. Takes four frames.
    ///
    /// # Errors
    /// If there are none; those that were taken are lost (this happens at boot).
    pub fn new(
        tables: KernelTables,
        frames: &impl Frames,
        source: &impl FrameSource,
        base: u64,
    ) -> Result<Self, OutOfFrames> {
        assert!(
            base.is_multiple_of(Level::ROOT.entry_bytes()),
            "{base:#x} is no root entry's"
        );
        let table_of = |entry: Entry, nr_entries: u64| {
            let table = source.take(Order::ZERO).ok_or(OutOfFrames)?;
            frames.zero(table, Order::ZERO);
            for index in (0..WORDS_PER_PAGE).take_while(|&index| (index as u64) < nr_entries) {
                frames.write(table, index, entry.bits());
            }
            Ok(table)
        };
        let all = WORDS_PER_PAGE as u64;
        let zeroes = table_of(Entry::EMPTY, 0)?;
        let page_table = table_of(Entry::new(zeroes, ZEROES), all)?;
        let shared = |table| table_entry(table).with(Entry::SHARED);
        let directory = table_of(shared(page_table), all)?;
        let top = table_of(shared(directory), ARRAY_BYTES / Level::ROOT.below().entry_bytes())?;
        frames.write(tables.root(), Level::ROOT.index(base), table_entry(top).bits());
        Ok(Self {
            tables,
            base,
            zeroes,
            page_table,
        })
    }

    /// Address of the descriptor of frame 0.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Where the descriptors of `range` are. The range is aligned to pageblocks and not empty.
    pub fn addresses(&self, range: PfnRange) -> KernelRange {
        let start = self.base + u64::from(range.start().number()) * DESCRIPTOR_BYTES;
        let addresses = KernelRange::new(start, u64::from(range.nr_pages()) * DESCRIPTOR_BYTES);
        addresses.expect("128 descriptors are a page, and the array ends far below the kernel's last address")
    }

    /// Gives the descriptors of `range`, aligned to pageblocks and without any so far, memory of their own from elsewhere, filled
    /// with zeroes: chunks of 2 MiB where they fit and can be had, single frames elsewhere. Returns the addresses that
    /// the caches of all CPUs must forget before a descriptor is written to.
    ///
    /// # Errors
    /// If there are not enough frames: those that were taken, to be released as after [`unback`](Self::unback).
    pub fn back(
        &self,
        frames: &impl Frames,
        source: &impl FrameSource,
        range: PfnRange,
    ) -> Result<KernelRange, Unbacked> {
        let addresses = self.addresses(range);
        let mut va = addresses.start();
        while va < addresses.end() {
            let wants_huge = self.takes_huge(frames, va) && addresses.end() - va >= PAGEBLOCK_SIZE;
            let chunk = wants_huge.then(|| source.take(Order::PAGEBLOCK)).flatten();
            let order = chunk.map_or(Order::ZERO, |_| Order::PAGEBLOCK);
            let Some(pfn) = chunk.or_else(|| source.take(Order::ZERO)) else {
                return Err(self.unback(frames, range));
            };
            frames.zero(pfn, order);
            if self.hook_in(frames, source, va, (pfn, order)).is_err() {
                source.give(pfn, order);
                return Err(self.unback(frames, range));
            }
            va += order.bytes();
        }
        Ok(addresses)
    }

    /// Backs `range` with the memory from `first` on, and fills that with zeroes. At boot, it is never taken out again.
    ///
    /// # Errors
    /// If there is no frame for a table.
    pub fn back_with(
        &self,
        frames: &impl Frames,
        source: &impl FrameSource,
        range: PfnRange,
        first: Pfn,
    ) -> Result<(), OutOfFrames> {
        let addresses = self.addresses(range);
        let (mut va, mut pfn) = (addresses.start(), first);
        while va < addresses.end() {
            let order = self.order_at(frames, va, (addresses, first));
            frames.zero(pfn, order);
            self.hook_in(frames, source, va, (pfn, order))?;
            va += order.bytes();
            pfn = pfn + order.nr_pages();
        }
        Ok(())
    }

    /// Makes sure that [`back_on_block`](Self::back_on_block) needs no frame for `range`, aligned to pageblocks and without descriptors so far.
    ///
    /// # Errors
    /// If there is no frame for a table; those hooked in before stay.
    pub fn prepare(
        &self,
        frames: &impl Frames,
        source: &impl FrameSource,
        range: PfnRange,
    ) -> Result<(), OutOfFrames> {
        let addresses = self.addresses(range);
        let mut va = addresses.start();
        while va < addresses.end() {
            let order = self.order_at(frames, va, (addresses, range.start()));
            self.tables.ensure(frames, source, va, level_of(order))?;
            va += order.bytes();
        }
        Ok(())
    }

    /// Gives the descriptors of `range`, aligned to pageblocks and without any so far, its own first frames, filled with zeroes: they can be
    /// accessed already (Linux `vmem_altmap`). Returns the addresses that the caches of all CPUs must forget before a
    /// descriptor is written to. [`unback`](Self::unback) takes them out again, before the frames go.
    ///
    /// # Errors
    /// If a table is missing, because it was not [prepared](Self::prepare): then the array is as it was but for descriptors that are still blank, which
    /// [`unback`](Self::unback) takes out.
    pub fn back_on_block(&self, frames: &impl Frames, range: PfnRange) -> Result<KernelRange, OutOfFrames> {
        self.back_with(frames, &NoFrames, range, range.start())?;
        Ok(self.addresses(range))
    }

    /// Whether the descriptors of `range` are in its own first frames.
    pub fn is_on_block(&self, frames: &impl Frames, range: PfnRange) -> bool {
        let (entry, _) = self.tables.lookup(frames, self.addresses(range).start());
        entry.has(Entry::WRITABLE) && range.contains(entry.pfn())
    }

    /// Takes the memory of the descriptors of `range` out again, as far as there is any; it came from
    /// [`back`](Self::back) or [`back_on_block`](Self::back_on_block). Nobody uses these descriptors any more. Frames of `range` itself are
    /// not touched, and are nobody's once they were flushed.
    pub fn unback(&self, frames: &impl Frames, range: PfnRange) -> Unbacked {
        let addresses = self.addresses(range);
        let zeroes = Entry::new(self.zeroes, ZEROES);
        let shared = table_entry(self.page_table).with(Entry::SHARED);
        let mut chain = NOTHING;
        let mut va = addresses.start();
        while va < addresses.end() {
            let (entry, size) = self.tables.lookup(frames, va);
            let is_own = entry.has(Entry::WRITABLE);
            let order = if size == PAGEBLOCK_SIZE {
                Order::PAGEBLOCK
            } else {
                Order::ZERO
            };
            if is_own {
                let replaced = match order {
                    Order::ZERO => self.tables.set_page(frames, va, zeroes),
                    _ => self.tables.set_huge(frames, va, shared),
                };
                assert_eq!(
                    replaced.map(Entry::pfn),
                    Some(entry.pfn()),
                    "the entry just looked up at {va:#x}"
                );
                if !range.contains(entry.pfn()) {
                    frames.write(entry.pfn(), 0, chain);
                    chain = entry.pfn().gpa() | u64::from(order.number());
                }
            }
            va += order.bytes();
        }
        Unbacked {
            range: addresses,
            chain,
        }
    }

    /// The size of the chunk that backs the array at `va`, when all of `addresses` is backed with the memory from `first` on.
    fn order_at(&self, frames: &impl Frames, va: u64, (addresses, first): (KernelRange, Pfn)) -> Order {
        let fits = self.takes_huge(frames, va) && addresses.end() - va >= PAGEBLOCK_SIZE;
        let gpa = first.gpa() + (va - addresses.start());
        match fits && gpa.is_multiple_of(PAGEBLOCK_SIZE) {
            true => Order::PAGEBLOCK,
            false => Order::ZERO,
        }
    }

    /// Whether a huge page can be hooked in at `va`: not where there once were single frames, whose table stays.
    fn takes_huge(&self, frames: &impl Frames, va: u64) -> bool {
        va.is_multiple_of(PAGEBLOCK_SIZE) && self.tables.page_table(frames, va).is_none()
    }

    /// Lets `va` lead to a chunk. Page tables that are all zeroes are copied first, or replaced by a huge page.
    fn hook_in(
        &self,
        frames: &impl Frames,
        source: &impl FrameSource,
        va: u64,
        (pfn, order): (Pfn, Order),
    ) -> Result<(), OutOfFrames> {
        let level = level_of(order);
        let slot = self.tables.ensure(frames, source, va, level)?;
        let huge = if level == Level::HUGE { Entry::HUGE } else { 0 };
        let old =
            Entry::from_bits(frames.exchange(slot.table, slot.index, Entry::new(pfn, OWN | huge).bits()));
        let was_vacant = old.pfn() == self.zeroes || old.pfn() == self.page_table;
        assert!(
            was_vacant,
            "the descriptors at {va:#x} are there already: {old:?}"
        );
        Ok(())
    }
}

/// The level whose entries lead to chunks of that order: single frames, or pageblocks.
fn level_of(order: Order) -> Level {
    match order {
        Order::ZERO => Level::PAGE,
        _ => Level::HUGE,
    }
}

/// For what needs no frame, as it was prepared.
struct NoFrames;

impl FrameSource for NoFrames {
    fn take(&self, _: Order) -> Option<Pfn> {
        None
    }

    /// Nothing was taken.
    fn give(&self, _: Pfn, _: Order) {}
}

/// End of a chain of frames: not a multiple of 4096 plus an order.
const NOTHING: u64 = u64::MAX;

impl Unbacked {
    /// Addresses whose translations changed.
    pub const fn range(&self) -> KernelRange {
        self.range
    }

    /// Gives the frames back. To be called after all CPUs have forgotten the translations of [`range`](Self::range).
    pub fn release(self, frames: &impl Frames, source: &impl FrameSource) {
        let mut chain = self.chain;
        while chain != NOTHING {
            let pfn = Pfn::containing(chain).expect("made from a frame number");
            let order = if chain.is_multiple_of(1 << PAGE_SHIFT) {
                Order::ZERO
            } else {
                Order::PAGEBLOCK
            };
            chain = frames.read(pfn, 0);
            source.give(pfn, order);
        }
    }
}
