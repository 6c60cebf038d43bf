//! An address space (Linux `mm_struct`): its areas and its page tables, behind one lock.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut, Range};

use guest_sync::atomic::{AtomicU32, Ordering};
use guest_sync::{SpinGuard, SpinLock};

use crate::frames::{Frames, SpaceId};
use crate::mm::anon::{AnonVmaId, AnonVmas};
use crate::mm::fault_ahead::FaultAhead;
use crate::mm::mapping::{MappingId, Mappings};
use crate::mm::{Backing, Vma};
use crate::pagetable::{Entry, Level, PageTable, VaRange};
use crate::pfn::{PAGE_SIZE, PAGEBLOCK_SIZE, Pfn, WORDS_PER_PAGE};
use crate::wait::WaitQueue;

/// Lowest address of user memory: the first 64 KiB stay unmapped, so that a null pointer with an offset faults.
pub const USER_START: u64 = 0x1_0000;

/// Where areas without a wish are placed first.
const MMAP_BASE: u64 = 1 << 32;

/// Areas and tables of one program.
#[derive(Debug)]
pub struct AddressSpace {
    id: SpaceId,
    /// The root table. Changes under the lock.
    root: AtomicU32,
    state: SpinLock<SpaceState>,
    /// Those who wait until there are no migration entries.
    pub(crate) settling: WaitQueue,
}

/// What the lock of an address space guards.
#[derive(Debug)]
pub(crate) struct SpaceState {
    /// Areas by their first address; they do not overlap, and neighbours that could be one are one.
    pub(crate) vmas: BTreeMap<u64, Vma>,
    /// Addresses in user memory that belong to the kernel.
    pub(crate) fixed: Vec<VaRange>,
    /// Anonymous frames mapped.
    pub(crate) rss_pages: u64,
    /// Swap entries in the tables.
    pub(crate) swap_pages: u64,
    /// Where reading them has got to.
    pub(crate) swap_ahead: FaultAhead,
    /// The same for pages of files.
    pub(crate) file_ahead: FaultAhead,
    /// Migration entries in the tables.
    pub(crate) migrating: u32,
    /// The heap that `brk` moves the end of; empty at first.
    pub(crate) heap: Range<u64>,
    /// Page-table entries that map pages of mappings.
    pub(crate) file_pages: u64,
    /// Areas with each `anon_vma`.
    pub(crate) anon_vmas: BTreeMap<AnonVmaId, u32>,
    /// Where the areas of each mapping begin. The address space is a member of each of these.
    pub(crate) mappings: BTreeMap<MappingId, BTreeSet<u64>>,
    /// Where the search for room goes on.
    next_place: u64,
    /// It is being taken down: nothing may be added.
    pub(crate) has_ended: bool,
}

/// An address space with its lock taken.
pub(crate) struct Locked<'a> {
    /// Its tables; to be changed by [`Locked::set_root`] alone.
    pub(crate) table: PageTable,
    root: &'a AtomicU32,
    pub(crate) settling: &'a WaitQueue,
    /// Who has locked it can let go of it to compact memory, and try again.
    pub(crate) may_compact: bool,
    state: SpinGuard<'a, SpaceState>,
}

impl AddressSpace {
    pub(crate) fn new(id: SpaceId, root: Pfn) -> Self {
        Self {
            id,
            root: AtomicU32::new(root.number()),
            state: SpinLock::new(SpaceState {
                vmas: BTreeMap::new(),
                fixed: Vec::new(),
                rss_pages: 0,
                swap_pages: 0,
                swap_ahead: FaultAhead::default(),
                file_ahead: FaultAhead::default(),
                migrating: 0,
                heap: 0..0,
                file_pages: 0,
                anon_vmas: BTreeMap::new(),
                mappings: BTreeMap::new(),
                next_place: MMAP_BASE,
                has_ended: false,
            }),
            settling: WaitQueue::new(),
        }
    }

    /// Its number.
    pub const fn id(&self) -> SpaceId {
        self.id
    }

    /// The frame of the root table, for CR3. It can move: who enters the address space says so to others first, as [`Mmu`](crate::Mmu)
    /// needs it, and then looks whether this is still the root.
    pub fn root(&self) -> Pfn {
        Pfn::new(self.root.load(Ordering::Acquire))
    }

    /// Anonymous frames mapped; a huge page counts 512, a shared page in each address space that maps it.
    pub fn rss_pages(&self) -> u64 {
        self.state.lock().rss_pages
    }

    /// Pages of mappings that are mapped; a page that is mapped twice counts twice.
    pub fn file_pages(&self) -> u64 {
        self.state.lock().file_pages
    }

    /// Frames of its page tables, the root among them. Counted anew each time.
    pub fn table_pages(&self, frames: &impl Frames) -> u64 {
        let _state = self.state.lock();
        tables_below(frames, self.root(), Level::ROOT)
    }

    /// Pages that are in the swap area, and not mapped here.
    pub fn swap_pages(&self) -> u64 {
        self.state.lock().swap_pages
    }

    /// The areas, lowest address first.
    pub fn vmas(&self) -> impl Iterator<Item = Vma> {
        let vmas: Vec<Vma> = self.state.lock().vmas.values().copied().collect();
        vmas.into_iter()
    }

    /// The area that contains the address.
    pub fn vma_at(&self, va: u64) -> Option<Vma> {
        self.state.lock().vma_at(va).copied()
    }

    pub(crate) fn lock(&self) -> Locked<'_> {
        let state = self.state.lock();
        Locked {
            table: PageTable {
                root: self.root(),
                space: self.id,
            },
            root: &self.root,
            settling: &self.settling,
            may_compact: false,
            state,
        }
    }
}

impl Deref for Locked<'_> {
    type Target = SpaceState;

    fn deref(&self) -> &SpaceState {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut SpaceState {
        &mut self.state
    }
}

impl Locked<'_> {
    /// Its number.
    pub(crate) const fn id(&self) -> SpaceId {
        self.table.space
    }

    /// From now on this is the root table. No CPU may be using the old one when that is freed.
    pub(crate) fn set_root(&mut self, root: Pfn) {
        self.table.root = root;
        self.root.store(root.number(), Ordering::Release);
    }

    /// One migration entry less.
    pub(crate) fn settle_one(&mut self) {
        self.migrating -= 1;
        if self.migrating == 0 {
            self.settling.wake_all();
        }
    }

    /// The `anon_vma` of the area at an address: the one it has, or that of a neighbour it could be joined with later
    /// (Linux `find_mergeable_anon_vma`), or a new one.
    pub(crate) fn anon_vma_at(&mut self, va: u64, all: &AnonVmas) -> AnonVmaId {
        let id = self.id();
        let vma = *self.vma_at(va).expect("a page is mapped inside an area");
        if let Some(anon_vma) = vma.anon_vma {
            return anon_vma;
        }
        let below = self.vmas.range(..vma.range.start()).next_back();
        let below = below.filter(|(_, below)| below.range.end() == vma.range.start());
        let above = self.vmas.get(&vma.range.end());
        let neighbours = [below.map(|(_, below)| below), above].into_iter().flatten();
        let known = neighbours.filter_map(|neighbour| neighbour.anon_vma).next();
        let anon_vma = known.unwrap_or_else(|| all.create(id));
        *self.anon_vmas.entry(anon_vma).or_insert(0) += 1;
        if let Some(vma) = self.vmas.get_mut(&vma.range.start()) {
            vma.anon_vma = Some(anon_vma);
        }
        anon_vma
    }

    /// Leaves each `anon_vma` and each mapping that no area has any more; at the end of whatever takes areas away.
    pub(crate) fn leave_unused(&mut self, all: &AnonVmas, mappings: &Mappings) {
        let id = self.id();
        self.mappings.retain(|&mapping, areas| {
            if areas.is_empty() {
                mappings.leave(mapping, id);
            }
            !areas.is_empty()
        });
        self.anon_vmas.retain(|&anon_vma, nr_areas| {
            if *nr_areas == 0 {
                all.leave(anon_vma, id);
            }
            *nr_areas > 0
        });
    }
}

impl SpaceState {
    /// The area that contains the address, or the first one after it (Linux `find_vma`).
    pub(crate) fn find_vma(&self, va: u64) -> Option<&Vma> {
        let below = self.vmas.range(..=va).next_back().map(|(_, vma)| vma);
        below
            .filter(|vma| vma.range.contains(va))
            .or_else(|| Some(self.vmas.range(va..).next()?.1))
    }

    /// The area that contains the address.
    pub(crate) fn vma_at(&self, va: u64) -> Option<&Vma> {
        self.find_vma(va).filter(|vma| vma.range.contains(va))
    }

    /// Whether an address lies inside a reserved huge page.
    pub(crate) fn cuts_hugetlb(&self, va: u64) -> bool {
        let inside = !va.is_multiple_of(PAGEBLOCK_SIZE);
        inside
            && self
                .vma_at(va)
                .is_some_and(|vma| matches!(vma.backing, Backing::HugeTlb(_)))
    }

    /// Whether nothing is in the range.
    pub(crate) fn is_free(&self, range: VaRange) -> bool {
        range.start() >= USER_START
            && self.fixed.iter().all(|fixed| fixed.intersection(range).is_none())
            && self
                .find_vma(range.start())
                .is_none_or(|vma| vma.range.start() >= range.end())
    }

    /// Lets the stack above an address grow down to it (Linux `expand_stack`). False when what is above is no stack, or
    /// it would become too large or come too near to what is below.
    pub(crate) fn expand_stack(&mut self, va: u64) -> bool {
        let Some(stack) = self.find_vma(va).copied() else {
            return false;
        };
        let Backing::Stack { most_bytes } = stack.backing else {
            return false;
        };
        let start = va / PAGE_SIZE * PAGE_SIZE;
        let Some(guard) = start.checked_sub(STACK_GUARD) else {
            return false;
        };
        let is_free = self.is_free(VaRange::between(guard, stack.range.start()));
        if !is_free || stack.range.end() - start > most_bytes {
            return false;
        }
        self.vmas.remove(&stack.range.start());
        let range = VaRange::between(start, stack.range.end());
        self.vmas.insert(start, Vma { range, ..stack });
        true
    }

    /// A free place for `bytes`, aligned to `align`: after the last one, or else from the bottom.
    pub(crate) fn find_place(&mut self, bytes: u64, align: u64) -> Option<VaRange> {
        let place = self.place_from(self.next_place, bytes, align);
        let place = place.or_else(|| self.place_from(USER_START, bytes, align))?;
        self.next_place = place.end();
        Some(place)
    }

    fn place_from(&self, mut va: u64, bytes: u64, align: u64) -> Option<VaRange> {
        loop {
            va = va.checked_next_multiple_of(align)?;
            let range = VaRange::new(va, bytes)?;
            let fixed = self
                .fixed
                .iter()
                .filter_map(|fixed| Some((fixed, fixed.intersection(range)?)));
            let vma = self.find_vma(va).filter(|vma| vma.range.start() < range.end());
            let blocked = fixed
                .map(|(fixed, _)| fixed.end())
                .chain(vma.map(|vma| vma.range.end()))
                .max();
            match blocked {
                None => return Some(range),
                Some(end) => va = end,
            }
        }
    }

    /// Adds an area where nothing is, joined with its neighbours where possible. An `anon_vma` that it has is one that
    /// the address space is a member of.
    pub(crate) fn insert(&mut self, mut vma: Vma) {
        if let Some((_, below)) = self.vmas.range(..vma.range.start()).next_back()
            && let Some(joined) = below.joined(&vma)
        {
            let below = *below;
            self.remove(&below);
            vma = joined;
        }
        if let Some(above) = self.vmas.get(&vma.range.end())
            && let Some(joined) = vma.joined(above)
        {
            let above = *above;
            self.remove(&above);
            vma = joined;
        }
        self.add(vma);
    }

    fn add(&mut self, vma: Vma) {
        self.count_area(vma.anon_vma, 1);
        if let Some(area) = vma.backing.file() {
            let starts = self.mappings.entry(area.mapping).or_default();
            starts.insert(vma.range.start());
        }
        self.vmas.insert(vma.range.start(), vma);
    }

    /// Takes everything inside the range out of the areas; returns what was there.
    pub(crate) fn cut(&mut self, range: VaRange) -> Vec<Vma> {
        let mut parts = Vec::new();
        while let Some(&vma) = self
            .find_vma(range.start())
            .filter(|vma| vma.range.start() < range.end())
        {
            self.remove(&vma);
            for rest in [
                VaRange::between(vma.range.start(), range.start()),
                VaRange::between(range.end(), vma.range.end()),
            ] {
                if rest.start() < rest.end() {
                    self.add(vma.part(rest));
                }
            }
            parts.push(vma.part(range));
        }
        parts
    }

    fn remove(&mut self, vma: &Vma) {
        self.vmas.remove(&vma.range.start());
        self.count_area(vma.anon_vma, -1);
        if let Some(area) = vma.backing.file()
            && let Some(starts) = self.mappings.get_mut(&area.mapping)
        {
            starts.remove(&vma.range.start());
        }
    }

    /// One area more or less with an `anon_vma`. At 0 the membership stays until [`Locked::leave_unused`]: an area that
    /// changes its rights is taken out and put back.
    fn count_area(&mut self, anon_vma: Option<AnonVmaId>, change: i32) {
        let Some(anon_vma) = anon_vma else {
            return;
        };
        let nr_areas = self.anon_vmas.entry(anon_vma).or_insert(0);
        *nr_areas = nr_areas.saturating_add_signed(change);
    }
}

/// Kept free below a stack that grows, so that running over its end is noticed (Linux `stack_guard_gap`, 256 pages).
const STACK_GUARD: u64 = 256 * PAGE_SIZE;

const _: () = assert!(USER_START.is_multiple_of(PAGE_SIZE));

/// A table and those that it leads to.
fn tables_below(frames: &impl Frames, table: Pfn, level: Level) -> u64 {
    if level == Level::PAGE {
        return 1;
    }
    let entries = (0..WORDS_PER_PAGE).map(|index| Entry::from_bits(frames.read(table, index)));
    let tables = entries.filter(|entry| entry.is_present() && !entry.has(Entry::HUGE));
    1 + tables
        .map(|entry| tables_below(frames, entry.pfn(), level.below()))
        .sum::<u64>()
}
