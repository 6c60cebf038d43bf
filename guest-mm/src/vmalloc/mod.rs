//! Areas of the kernel that are contiguous in virtual addresses only (Linux `mm/vmalloc.c`).
//!
//! `vmalloc` takes its frames one by one, so it succeeds where no two free frames are neighbours. What it maps them
//! with are real page-table entries, and those are also the only record of which frames an area has: there is no list
//! beside them.
//!
//! **From address to hole and back.** Areas stand in order of address, each with an unmapped guard page behind it, and a
//! new one gets the lowest hole that is large enough. `vfree` makes the entries non-present and leaves frame and address
//! where they are: translation caches may still know them. [`Vmalloc::purge`] flushes once for all areas freed since,
//! and only then gives frames and addresses back. So nothing is ever reachable through a stale translation but what
//! nobody has got since. [`Vmalloc::vunmap`] flushes before it returns, as the frames are the caller's.
//!
//! **No recursion.** Nothing here calls the heap: nodes of the tree of areas and page tables are frames from the
//! [`FrameSource`], so large allocations of a heap may come from here, under any of the heap's locks. Nothing here
//! flushes but `purge` and `vunmap`, with no lock taken, and `move_off`, with the one of this module: see [`KernelTlb::exchange`].
//!
//! **Moving.** Frames tell which page of the window they are ([`FrameSource::note_page`]); one that lies on memory which is to leave is
//! exchanged for another ([`Vmalloc::move_off`]).
//!
//! **Lock order.** One lock, inside the `Mm` lock and outside those of zones; held for a search of the tree and while
//! page tables are added or pages moved, never while frames for contents are taken, mapped or given back.

mod info;
mod moves;
#[cfg(test)]
mod tests;
mod tree;

use core::fmt;

use guest_sync::SpinLock;

use crate::frames::Frames;
use crate::kernel_map::{FrameSource, KernelRange, KernelTables, KernelTlb, OutOfFrames};
use crate::pagetable::Entry;
use crate::pfn::{Order, PAGE_SHIFT, PAGE_SIZE, Pfn};
pub use info::WrongArea;
pub use moves::KernelMoved;
use tree::{Field, Link, Tree};

/// Unmapped pages behind every area.
const GUARD_PAGES: u64 = 1;
/// Rights of every page.
const LEAF: u64 = Entry::PRESENT | Entry::WRITABLE | Entry::USER | Entry::NO_EXECUTE;

/// Who asked for an area: up to eight letters, as they appear in [`Vmalloc::info`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tag(u64);

impl Tag {
    /// The first eight bytes of a name in ASCII.
    pub const fn new(name: &str) -> Self {
        let mut bytes = [0; 8];
        let mut at = 0;
        while at < name.len() && at < bytes.len() {
            bytes[at] = name.as_bytes()[at];
            at += 1;
        }
        Self(u64::from_le_bytes(bytes))
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_le_bytes();
        bytes
            .iter()
            .take_while(|&&byte| byte != 0)
            .try_for_each(|&byte| fmt::Write::write_char(f, char::from(byte)))
    }
}

/// Whose frames an area has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Its own.
    Vmalloc = 0,
    /// Those of whoever mapped them.
    Vmap = 1,
}

/// Where an area is in its life. Each belongs to the caller who brought it there, but for `Used` and `Lazy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Being mapped. Entries that are not empty may be non-present.
    Building = 0,
    /// All entries are present.
    Used = 1,
    /// Being unmapped, or flushed.
    Leaving = 2,
    /// Freed, not flushed since: non-present entries name the frames, `Note` links to the next one.
    Lazy = 3,
}

/// Why there is no area; nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VmallocError {
    /// Nothing was asked for.
    Empty,
    /// No hole of the window holds so many bytes. There may be after a [`Vmalloc::purge`].
    NoRoom {
        /// What was asked for.
        bytes: u64,
    },
    /// Not enough free frames. There may be after a [`Vmalloc::purge`].
    NoFrames,
}

impl fmt::Display for VmallocError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("an area of no bytes"),
            Self::NoRoom { bytes } => write!(f, "no hole of {bytes} bytes for an area"),
            Self::NoFrames => f.write_str("no free frames for an area"),
        }
    }
}

impl core::error::Error for VmallocError {}

impl From<OutOfFrames> for VmallocError {
    fn from(_: OutOfFrames) -> Self {
        Self::NoFrames
    }
}

/// A free of something that is not there: no area in use of that kind starts at this address. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotAnArea {
    /// The address.
    pub va: u64,
}

impl fmt::Display for NotAnArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no such area in use starts at {:#x}", self.va)
    }
}

impl core::error::Error for NotAnArea {}

/// What there is, and what was done since boot.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct VmallocStats {
    /// Areas, those not purged yet among them.
    pub nr_areas: u32,
    /// Pages of areas in use that have frames of their own (Linux `nr_vmalloc`, `VmallocUsed`).
    pub nr_pages: u64,
    /// Pages freed and not purged yet.
    pub nr_lazy_pages: u64,
    /// Frames that hold nodes of the tree.
    pub nr_node_frames: u32,
    /// Flushes: purges that found something, and `vunmap`s.
    pub flushes: u64,
    /// Pages whose frames purges gave back.
    pub purged_pages: u64,
}

/// What a purge gave back.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Purged {
    /// Areas.
    pub areas: u32,
    /// Frames.
    pub pages: u64,
}

/// All areas of a window.
#[derive(Debug)]
pub struct Vmalloc {
    tables: KernelTables,
    window: KernelRange,
    areas: SpinLock<Areas>,
}

#[derive(Debug)]
struct Areas {
    tree: Tree,
    /// The area freed last and not purged yet.
    lazy: Link,
    stats: VmallocStats,
}

impl Vmalloc {
    /// No areas in `window` of the tables, where nothing is mapped and nobody else maps anything. Takes no frame.
    pub fn new(tables: KernelTables, window: KernelRange) -> Self {
        Self {
            tables,
            window,
            areas: SpinLock::new(Areas {
                tree: Tree::new(window.start(), window.end()),
                lazy: Link::NONE,
                stats: VmallocStats {
                    nr_areas: 0,
                    nr_pages: 0,
                    nr_lazy_pages: 0,
                    nr_node_frames: 0,
                    flushes: 0,
                    purged_pages: 0,
                },
            }),
        }
    }

    /// Where areas are.
    pub const fn window(&self) -> KernelRange {
        self.window
    }

    /// A new area of at least `bytes`, in whole pages, contents unknown.
    ///
    /// # Errors
    /// When there is no room or there are not enough frames; whatever was taken has been given back then, except frames
    /// for page tables and nodes, which stay for the next area.
    pub fn vmalloc(
        &self,
        frames: &impl Frames,
        source: &impl FrameSource,
        bytes: u64,
        tag: Tag,
    ) -> Result<KernelRange, VmallocError> {
        let (node, range) = self.claim(frames, source, bytes, (Kind::Vmalloc, tag))?;
        // Not present until there are enough: no translation cache ever sees the frames of a failure.
        let mut is_short = false;
        self.tables.change_pages(frames, range, |va, _| {
            let pfn = if is_short { None } else { source.take_page() };
            is_short = pfn.is_none();
            if let Some(pfn) = pfn {
                source.note_page(pfn, self.page_at(va));
            }
            pfn.map(|pfn| Entry::new(pfn, LEAF).without(Entry::PRESENT))
        });
        if is_short {
            self.give_back(frames, source, range);
            self.remove(frames, node);
            return Err(VmallocError::NoFrames);
        }
        self.tables
            .change_pages(frames, range, |_, entry| Some(entry.with(Entry::PRESENT)));
        let mut areas = self.areas.lock();
        areas.stats.nr_pages += range.nr_pages();
        set_state(frames, node, State::Used);
        Ok(range)
    }

    /// Frees the area that starts at `va`. Its pages are not accessible any more once every CPU has been flushed, and
    /// are given back by the next [`purge`](Self::purge).
    ///
    /// # Errors
    /// If `vmalloc` gave out no such area, or it was freed already.
    pub fn vfree(&self, frames: &impl Frames, va: u64) -> Result<(), NotAnArea> {
        let (node, range) = self.withdraw(frames, va, Kind::Vmalloc)?;
        self.tables
            .change_pages(frames, range, |_, entry| Some(entry.without(Entry::PRESENT)));
        let mut areas = self.areas.lock();
        areas.stats.nr_pages -= range.nr_pages();
        areas.stats.nr_lazy_pages += range.nr_pages();
        node.set(frames, Field::Note, areas.lazy.raw());
        set_state(frames, node, State::Lazy);
        areas.lazy = node;
        Ok(())
    }

    /// Maps frames of the caller's one after the other. They must stay until they are unmapped.
    ///
    /// # Errors
    /// As for [`vmalloc`](Self::vmalloc).
    pub fn vmap(
        &self,
        frames: &impl Frames,
        source: &impl FrameSource,
        pages: &[Pfn],
        tag: Tag,
    ) -> Result<KernelRange, VmallocError> {
        let bytes = (pages.len() as u64) << PAGE_SHIFT;
        let (node, range) = self.claim(frames, source, bytes, (Kind::Vmap, tag))?;
        let mut pages = pages.iter();
        self.tables.change_pages(frames, range, |_, _| {
            pages.next().map(|&pfn| Entry::new(pfn, LEAF))
        });
        let _areas = self.areas.lock();
        set_state(frames, node, State::Used);
        Ok(range)
    }

    /// Unmaps what [`vmap`](Self::vmap) mapped at `va`. When it returns, no CPU reaches the frames through it.
    ///
    /// # Errors
    /// If nothing was mapped there, or it was unmapped already.
    pub fn vunmap(&self, frames: &impl Frames, tlb: &impl KernelTlb, va: u64) -> Result<(), NotAnArea> {
        let (node, range) = self.withdraw(frames, va, Kind::Vmap)?;
        self.tables.change_pages(frames, range, |_, _| Some(Entry::EMPTY));
        tlb.flush(range);
        self.areas.lock().stats.flushes += 1;
        self.remove(frames, node);
        Ok(())
    }

    /// Flushes all CPUs once for every area freed so far, and gives frames and addresses back.
    pub fn purge(&self, frames: &impl Frames, source: &impl FrameSource, tlb: &impl KernelTlb) -> Purged {
        let mut areas = self.areas.lock();
        let first = core::mem::replace(&mut areas.lazy, Link::NONE);
        let mut purged = Purged::default();
        let (mut lowest, mut highest) = (u64::MAX, 0);
        for node in chain(frames, first) {
            let range = range_of(frames, node);
            set_state(frames, node, State::Leaving);
            (lowest, highest) = (lowest.min(range.start()), highest.max(range.end()));
            purged.areas += 1;
            purged.pages += range.nr_pages();
        }
        let Some(range) = KernelRange::new(lowest, highest.saturating_sub(lowest)) else {
            return purged;
        };
        areas.stats.nr_lazy_pages -= purged.pages;
        areas.stats.purged_pages += purged.pages;
        areas.stats.flushes += 1;
        drop(areas);
        tlb.flush(range);
        let mut node = first;
        while node != Link::NONE {
            let next = Link::from_raw(node.get(frames, Field::Note));
            self.give_back(frames, source, range_of(frames, node));
            self.remove(frames, node);
            node = next;
        }
        purged
    }

    /// Number of the page at an address of the window.
    fn page_at(&self, va: u64) -> Option<u32> {
        u32::try_from((va - self.window.start()) >> PAGE_SHIFT).ok()
    }

    /// The frame that is mapped at an address; `None` where nothing is.
    pub fn frame_at(&self, frames: &impl Frames, va: u64) -> Option<Pfn> {
        let (entry, _) = self.tables.lookup(frames, va);
        entry.is_present().then(|| entry.pfn())
    }

    /// What there is, and what was done.
    pub fn stats(&self) -> VmallocStats {
        let areas = self.areas.lock();
        VmallocStats {
            nr_areas: areas.tree.nr_areas,
            nr_node_frames: areas.tree.nr_frames,
            ..areas.stats
        }
    }

    /// A place for an area, with a node and page tables.
    fn claim(
        &self,
        frames: &impl Frames,
        source: &impl FrameSource,
        bytes: u64,
        (kind, tag): (Kind, Tag),
    ) -> Result<(Link, KernelRange), VmallocError> {
        let nr_pages = bytes.div_ceil(PAGE_SIZE);
        if nr_pages == 0 {
            return Err(VmallocError::Empty);
        }
        let mut areas = self.areas.lock();
        areas.tree.reserve(frames, source)?;
        let node = areas.tree.insert(frames, nr_pages + GUARD_PAGES);
        let node = node.ok_or(VmallocError::NoRoom { bytes })?;
        node.set(frames, Field::Kind, kind as u64);
        node.set(frames, Field::Note, tag.0);
        set_state(frames, node, State::Building);
        let range = range_of(frames, node);
        if let Err(error) = self.tables.prepare(frames, source, range) {
            areas.tree.remove(frames, node);
            return Err(error.into());
        }
        Ok((node, range))
    }

    /// Takes an area out of use: it is the caller's from now on.
    fn withdraw(&self, frames: &impl Frames, va: u64, kind: Kind) -> Result<(Link, KernelRange), NotAnArea> {
        let areas = self.areas.lock();
        let node = areas.tree.find(frames, va).ok_or(NotAnArea { va })?;
        if (kind_of(frames, node), state_of(frames, node)) != (kind, State::Used) {
            return Err(NotAnArea { va });
        }
        set_state(frames, node, State::Leaving);
        Ok((node, range_of(frames, node)))
    }

    /// Empties the entries of a range and gives the frames that they name back. No CPU knows them.
    fn give_back(&self, frames: &impl Frames, source: &impl FrameSource, range: KernelRange) {
        self.tables.change_pages(frames, range, |_, entry| {
            if !entry.is_empty() {
                source.note_page(entry.pfn(), None);
                source.give(entry.pfn(), Order::ZERO);
            }
            Some(Entry::EMPTY)
        });
    }

    fn remove(&self, frames: &impl Frames, node: Link) {
        self.areas.lock().tree.remove(frames, node);
    }
}

/// The pages of an area, without its guard.
fn range_of(frames: &impl Frames, node: Link) -> KernelRange {
    let nr_pages = node.get(frames, Field::Pages) - GUARD_PAGES;
    let range = KernelRange::new(node.get(frames, Field::Start), nr_pages << PAGE_SHIFT);
    range.expect("areas are cut out of a range of the kernel's and have at least a page")
}

/// The areas that are linked by their notes.
fn chain<F: Frames>(frames: &F, first: Link) -> impl Iterator<Item = Link> {
    let some = |link| (link != Link::NONE).then_some(link);
    core::iter::successors(some(first), move |node| {
        some(Link::from_raw(node.get(frames, Field::Note)))
    })
}

fn kind_of(frames: &impl Frames, node: Link) -> Kind {
    match node.get(frames, Field::Kind) & 0xff {
        0 => Kind::Vmalloc,
        _ => Kind::Vmap,
    }
}

fn state_of(frames: &impl Frames, node: Link) -> State {
    match node.get(frames, Field::Kind) >> 8 {
        0 => State::Building,
        1 => State::Used,
        2 => State::Leaving,
        _ => State::Lazy,
    }
}

fn set_state(frames: &impl Frames, node: Link, state: State) {
    let kind = node.get(frames, Field::Kind) & 0xff;
    node.set(frames, Field::Kind, kind | (state as u64) << 8);
}
