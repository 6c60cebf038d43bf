//! The kernel's own page tables: the direct map, the descriptors' array, and the windows of vmalloc and kmap.
//!
//! [`KernelTables`] edits real x86-64 entries over [`Frames`]. Unlike an address space of a program it counts nothing:
//! what a window maps is known to the window's owner, tables once hooked in stay, and no walk is ever lost. What a
//! translation cache may still hold is the caller's business: a method says when an entry was present before.
//!
//! **Locking.** The methods take `&self` and are single stores to single entries. Calls for addresses under the same
//! entry of the root must exclude each other (the layout gives every window a root entry of its own); calls for
//! different ones need not.

mod vmemmap;

use core::fmt;

use crate::frames::Frames;
use crate::pagetable::{Entry, Level, Slot};
use crate::pfn::{Order, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_SIZE, Pfn};

pub use vmemmap::{DESCRIPTOR_BYTES, Unbacked, Vmemmap};

/// First address beyond what the kernel may map: the end of the lower half of the address space.
pub const KERNEL_END: u64 = 1 << 47;

/// Where the kernel's tables and its own mappings get frames from, and give them back to.
///
/// Frames that come from here are in the direct map: they hold page tables. Implementations take a lock of their own if
/// they need one, and never touch what this module's users lock.
pub trait FrameSource {
    /// A chunk that is nobody else's, contents unknown; `None` if there is none.
    fn take(&self, order: Order) -> Option<Pfn>;

    /// A frame for contents, which may lie outside the direct map.
    fn take_page(&self) -> Option<Pfn> {
        self.take(Order::ZERO)
    }

    /// A frame for contents that move there, which leaves others some: nobody is in need of it.
    fn take_spare_page(&self) -> Option<Pfn> {
        self.take_page()
    }

    /// From now on a frame that [`take_page`](Self::take_page) gave is this page of vmalloc's window, by number; or, before it is given
    /// back, of nothing. Whoever empties a block learns from that whom to ask.
    fn note_page(&self, _pfn: Pfn, _page: Option<u32>) {}

    /// Takes back a chunk of `order` that [`take`](Self::take) gave and that no translation cache holds any more.
    fn give(&self, pfn: Pfn, order: Order);
}

/// What all CPUs have cached of the kernel's page tables.
pub trait KernelTlb {
    /// Makes every CPU forget the translations of a range. When this returns, none uses one that was taken out of the
    /// tables before. Nothing of this crate calls it with a lock taken, so it may wait for other CPUs; while it waits it
    /// must itself answer those that wait for this one.
    fn flush(&self, range: KernelRange);

    /// Makes the CPU that calls it forget them.
    fn flush_local(&self, range: KernelRange);

    /// Has `change` exchange what a range is mapped to while no other CPU uses anything that the kernel has mapped, and makes every CPU forget
    /// the range before any of them goes on. `change` takes no lock. May be called with locks held, as those who wait for one stand still
    /// too.
    fn exchange(&self, range: KernelRange, change: &mut dyn FnMut());
}

/// No frame was left for a page table, or for what was to be mapped. Nothing was changed but that tables already
/// hooked in stay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfFrames;

impl fmt::Display for OutOfFrames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no free frame for the kernel's page tables or mappings")
    }
}

impl core::error::Error for OutOfFrames {}

/// Page-aligned addresses `start .. start + bytes` of the kernel, not empty, in the lower half.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KernelRange {
    start: u64,
    bytes: u64,
}

impl KernelRange {
    /// `bytes` from `start` on. `None` if either is no multiple of 4096, or the range is empty or leaves the lower half.
    pub const fn new(start: u64, bytes: u64) -> Option<Self> {
        let is_aligned = start.is_multiple_of(PAGE_SIZE) && bytes.is_multiple_of(PAGE_SIZE);
        if !is_aligned || bytes == 0 || start > KERNEL_END || bytes > KERNEL_END - start {
            return None;
        }
        Some(Self { start, bytes })
    }

    /// First address.
    pub const fn start(self) -> u64 {
        self.start
    }

    /// First address after it.
    pub const fn end(self) -> u64 {
        self.start + self.bytes
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        self.bytes
    }

    /// Number of 4 KiB pages.
    pub const fn nr_pages(self) -> u64 {
        self.bytes >> PAGE_SHIFT
    }

    /// Whether the address lies inside.
    pub const fn contains(self, va: u64) -> bool {
        self.start <= va && va - self.start < self.bytes
    }

    /// The address of each page.
    pub fn pages(self) -> impl DoubleEndedIterator<Item = u64> {
        (0..self.nr_pages()).map(move |page| self.start + (page << PAGE_SHIFT))
    }
}

impl fmt::Display for KernelRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start(), self.end())
    }
}

/// The kernel's page tables, by their root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelTables {
    root: Pfn,
}

impl KernelTables {
    /// Tables that map nothing.
    ///
    /// # Errors
    /// If there is no frame for the root.
    pub fn new(frames: &impl Frames, source: &impl FrameSource) -> Result<Self, OutOfFrames> {
        let root = source.take(Order::ZERO).ok_or(OutOfFrames)?;
        frames.zero(root, Order::ZERO);
        Ok(Self { root })
    }

    /// The root table, for CR3.
    pub const fn root(self) -> Pfn {
        self.root
    }

    /// The leaf that maps an address, and the bytes it covers; an empty entry where nothing is mapped.
    pub fn lookup(self, frames: &impl Frames, va: u64) -> (Entry, u64) {
        let end = self.walk(frames, va, Level::PAGE);
        (end.entry(frames), end.level.entry_bytes())
    }

    /// The table whose 512 entries map the 2 MiB around `va` page by page, if there is one: owners of a window that
    /// change entries often keep it, as tables stay where they are.
    pub fn page_table(self, frames: &impl Frames, va: u64) -> Option<Pfn> {
        let end = self.walk(frames, va, Level::PAGE);
        (end.level == Level::PAGE && !end.is_shared).then_some(end.slot.table)
    }

    /// Calls `seen` with every present leaf of a range, by address: its first address, the entry, and the bytes that it
    /// covers. Where nothing is mapped this takes as many steps as there are entries that say so.
    pub fn for_each_leaf(
        self,
        frames: &impl Frames,
        range: KernelRange,
        mut seen: impl FnMut(u64, Entry, u64),
    ) {
        let mut va = range.start();
        while va < range.end() {
            let found = self.walk(frames, va, Level::PAGE);
            let (entry, size) = (found.entry(frames), found.level.entry_bytes());
            if entry.is_present() {
                seen(va / size * size, entry, size);
            }
            va = (va / size + 1) * size;
        }
    }

    /// Writes the entry of the page at `va` and returns what was there. If that was present, translation caches may
    /// still hold it. `None`, and nothing is written, where no table for 4 KiB pages leads there: [`Self::prepare`] it.
    pub fn set_page(self, frames: &impl Frames, va: u64, entry: Entry) -> Option<Entry> {
        let end = self.walk(frames, va, Level::PAGE);
        let is_ours = end.level == Level::PAGE && !end.is_shared;
        is_ours.then(|| end.set(frames, entry))
    }

    /// As [`set_page`](Self::set_page), for the 2 MiB at `va`: `entry` has [`Entry::HUGE`] or is empty. What is there
    /// must not be a table.
    pub fn set_huge(self, frames: &impl Frames, va: u64, entry: Entry) -> Option<Entry> {
        let end = self.walk(frames, va, Level::HUGE);
        let found = end.entry(frames);
        let is_table = found.is_present() && !found.has(Entry::HUGE);
        let is_ours = end.level == Level::HUGE && !end.is_shared && !is_table;
        is_ours.then(|| end.set(frames, entry))
    }

    /// Shows `change` the entry of each page of `range`, lowest first, and writes the one it returns instead. Where there
    /// is no table for 4 KiB pages it sees an empty entry.
    ///
    /// # Panics
    /// If it returns an entry where there is no table.
    pub fn change_pages(
        self,
        frames: &impl Frames,
        range: KernelRange,
        mut change: impl FnMut(u64, Entry) -> Option<Entry>,
    ) {
        let mut table = None;
        for va in range.pages() {
            if va == range.start() || va.is_multiple_of(PAGEBLOCK_SIZE) {
                table = self.page_table(frames, va);
            }
            let index = Level::PAGE.index(va);
            let old = table.map_or(Entry::EMPTY, |table| Entry::from_bits(frames.read(table, index)));
            if let Some(entry) = change(va, old) {
                let table = table.expect("pages are prepared before they are mapped");
                frames.write(table, index, entry.bits());
            }
        }
    }

    /// Makes sure that every page of `range` can be mapped with [`set_page`](Self::set_page).
    ///
    /// # Errors
    /// If there is no frame for a table.
    pub fn prepare(
        self,
        frames: &impl Frames,
        source: &impl FrameSource,
        range: KernelRange,
    ) -> Result<(), OutOfFrames> {
        self.prepare_level(frames, source, range, Level::PAGE)
    }

    /// Makes sure that every 2 MiB of `range` can be mapped with [`set_huge`](Self::set_huge).
    ///
    /// # Errors
    /// If there is no frame for a table.
    pub fn prepare_huge(
        self,
        frames: &impl Frames,
        source: &impl FrameSource,
        range: KernelRange,
    ) -> Result<(), OutOfFrames> {
        self.prepare_level(frames, source, range, Level::HUGE)
    }

    /// Maps `range`, where nothing else is mapped, to the frames from `first` on, with 2 MiB pages wherever both sides
    /// allow it. `bits` are those of every leaf. What leads to its frame already stays as it is.
    ///
    /// # Errors
    /// If there is no frame for a table; what was mapped before stays mapped.
    ///
    /// # Panics
    /// If another frame is mapped there.
    pub fn map(
        self,
        frames: &impl Frames,
        source: &impl FrameSource,
        range: KernelRange,
        (first, bits): (Pfn, u64),
    ) -> Result<(), OutOfFrames> {
        let mut va = range.start();
        while va < range.end() {
            let gpa = first.gpa() + (va - range.start());
            let is_huge = (va | gpa).is_multiple_of(PAGEBLOCK_SIZE) && range.end() - va >= PAGEBLOCK_SIZE;
            let level = if is_huge { Level::HUGE } else { Level::PAGE };
            let slot = self.ensure(frames, source, va, level)?;
            let pfn = Pfn::containing(gpa).ok_or(OutOfFrames)?;
            let leaf = Entry::new(pfn, bits | if is_huge { Entry::HUGE } else { 0 });
            let old = Entry::from_bits(frames.read(slot.table, slot.index));
            assert!(
                old.is_empty() || old.pfn() == pfn,
                "{va:#x} of the kernel is mapped twice: {old:?}"
            );
            if old.is_empty() {
                frames.write(slot.table, slot.index, leaf.bits());
            }
            va += level.entry_bytes();
        }
        Ok(())
    }

    /// Unmaps `range`, which was mapped with pages of the sizes that it consists of now. Translation caches may still
    /// hold it.
    pub fn unmap(self, frames: &impl Frames, range: KernelRange) {
        let mut va = range.start();
        while va < range.end() {
            let found = self.walk(frames, va, Level::PAGE);
            let size = found.level.entry_bytes();
            let end = (va / size + 1) * size;
            if !found.entry(frames).is_empty() {
                let is_whole = va.is_multiple_of(size) && end <= range.end();
                assert!(is_whole, "{range} ends inside a larger page");
                found.set(frames, Entry::EMPTY);
            }
            va = end;
        }
    }

    fn prepare_level(
        self,
        frames: &impl Frames,
        source: &impl FrameSource,
        range: KernelRange,
        level: Level,
    ) -> Result<(), OutOfFrames> {
        let step = level.above().entry_bytes();
        let mut va = range.start();
        while va < range.end() {
            self.ensure(frames, source, va, level)?;
            va = (va / step + 1) * step;
        }
        Ok(())
    }

    /// The place of the entry of `level` for an address; adds the tables that lead there, and copies shared ones.
    fn ensure(
        self,
        frames: &impl Frames,
        source: &impl FrameSource,
        va: u64,
        level: Level,
    ) -> Result<Slot, OutOfFrames> {
        let mut slot = Slot {
            table: self.root,
            index: Level::ROOT.index(va),
        };
        let mut above = Level::ROOT;
        while above > level {
            let entry = Entry::from_bits(frames.read(slot.table, slot.index));
            assert!(
                !entry.has(Entry::HUGE),
                "{va:#x} of the kernel is inside a huge page"
            );
            let table = if entry.is_present() && !entry.has(Entry::SHARED) {
                entry.pfn()
            } else {
                let table = source.take(Order::ZERO).ok_or(OutOfFrames)?;
                if entry.is_present() {
                    frames.copy(entry.pfn(), table, Order::ZERO);
                } else {
                    frames.zero(table, Order::ZERO);
                }
                frames.write(slot.table, slot.index, table_entry(table).bits());
                table
            };
            above = above.below();
            slot = Slot {
                table,
                index: above.index(va),
            };
        }
        Ok(slot)
    }

    /// Where the walk to an address ends: at a leaf, at an empty entry, or at `level`.
    fn walk(self, frames: &impl Frames, va: u64, level: Level) -> WalkEnd {
        let mut end = WalkEnd {
            slot: Slot {
                table: self.root,
                index: Level::ROOT.index(va),
            },
            level: Level::ROOT,
            is_shared: false,
        };
        while end.level > level {
            let entry = end.entry(frames);
            if !entry.is_present() || entry.has(Entry::HUGE) {
                break;
            }
            end.is_shared |= entry.has(Entry::SHARED);
            end.level = end.level.below();
            end.slot = Slot {
                table: entry.pfn(),
                index: end.level.index(va),
            };
        }
        end
    }
}

/// Where a walk ended.
struct WalkEnd {
    slot: Slot,
    level: Level,
    /// The table belongs to other addresses too.
    is_shared: bool,
}

impl WalkEnd {
    fn entry(&self, frames: &impl Frames) -> Entry {
        Entry::from_bits(frames.read(self.slot.table, self.slot.index))
    }

    fn set(&self, frames: &impl Frames, entry: Entry) -> Entry {
        Entry::from_bits(frames.exchange(self.slot.table, self.slot.index, entry.bits()))
    }
}

/// Rights are decided by the leaves.
const fn table_entry(table: Pfn) -> Entry {
    Entry::new(table, Entry::PRESENT | Entry::WRITABLE | Entry::USER)
}
