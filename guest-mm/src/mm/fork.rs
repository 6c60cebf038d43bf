//! Fork: a second address space with the same contents, which costs page tables now and a copy for each page that
//! one of the two writes to later.

use alloc::sync::Arc;
use core::fmt;

use guest_sync::Cpu;

use crate::frames::{FlushBatch, Frames, Mmu, SpaceId};
use crate::gfp::Gfp;
use crate::mm::gather::Gather;
use crate::mm::zap::{flush_of, order_of};
use crate::mm::{AddressSpace, AnonPlace, Layout, Locked, Mm, Vma};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level, Slot};
use crate::pfn::{Order, PAGE_SIZE, PAGEBLOCK_SIZE, Pfn};
use crate::phys::Claim;

/// Why an address space cannot be doubled; [`Mm::fork`] has changed nothing then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ForkError {
    /// No address space has that number.
    UnknownSpace(SpaceId),
    /// No frame for a page table, or for the copy of a pinned page.
    NoMemory,
    /// Pages of it are being migrated: try again after [`Mm::until_settled`].
    Migrating(SpaceId),
}

impl fmt::Display for ForkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSpace(id) => write!(f, "no address space {}", id.number()),
            Self::NoMemory => write!(f, "no frame for a page table"),
            Self::Migrating(id) => write!(f, "pages of address space {} are being migrated", id.number()),
        }
    }
}

impl core::error::Error for ForkError {}

/// A fork that is under way: the child has what the parent has up to an address. Its number is taken, and it goes with
/// [`Mm::destroy_space`] like any other, whether the fork comes to its end or not.
#[must_use = "the child exists, and is not whole yet"]
#[derive(PartialEq, Eq, Debug)]
pub struct Fork {
    parent: SpaceId,
    child: SpaceId,
    /// What the parent has below is the child's too.
    at: u64,
}

impl Fork {
    /// The address space that it makes.
    pub const fn child(&self) -> SpaceId {
        self.child
    }
}

/// Parent and child, both locked.
struct Pair<'a> {
    parent: Locked<'a>,
    child: Locked<'a>,
    flush: FlushBatch,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// A new address space with the areas and contents of another one. What both have is write-protected in both until one
    /// of them writes to it; a pinned page is copied for the child at once, so that its holder goes on with the parent's.
    ///
    /// # Errors
    /// When there is no such space, no memory for the child's tables, or a migration is under way. For who can wait for those there is
    /// [`Mm::begin_fork`].
    pub fn fork(&self, cpu: &Cpu, id: SpaceId) -> Result<SpaceId, ForkError> {
        let parent = self.spaces.find(id).ok_or(ForkError::UnknownSpace(id))?;
        let parent = parent.lock();
        if parent.migrating > 0 {
            return Err(ForkError::Migrating(id));
        }
        let child = self.new_child(cpu)?;
        let mut pair = Pair {
            parent,
            child: child.lock(),
            flush: FlushBatch::new(),
        };
        self.spaces.insert(child.clone());
        let begun = self.double_fixed(cpu, &mut pair);
        let outcome = begun.and_then(|()| self.double(cpu, &mut pair, &mut 0));
        if !pair.flush.is_empty() {
            self.mmu.flush(&pair.flush);
        }
        match outcome {
            Ok(()) => Ok(child.id()),
            Err(error) => {
                self.discard_space(cpu, &mut pair.child);
                Err(error)
            }
        }
    }

    /// Begins what [`Mm::fork`] does at once. Until it is done ([`Mm::fork_on`]) the parent does not run, and nobody changes its areas;
    /// its pages may go and move as ever. So who finds no memory for a table keeps those that it has got, waits, and goes on: a fork of any
    /// size comes to its end where memory comes in small portions (Linux waits inside of `dup_mmap`, under the lock of the parent's areas).
    ///
    /// # Errors
    /// [`ForkError::UnknownSpace`], and [`ForkError::NoMemory`] for the first tables; nothing was changed then.
    pub fn begin_fork(&self, cpu: &Cpu, id: SpaceId) -> Result<Fork, ForkError> {
        let parent = self.spaces.find(id).ok_or(ForkError::UnknownSpace(id))?;
        let child = self.new_child(cpu)?;
        let mut pair = Pair {
            parent: parent.lock(),
            child: child.lock(),
            flush: FlushBatch::new(),
        };
        self.spaces.insert(child.clone());
        if let Err(error) = self.double_fixed(cpu, &mut pair) {
            self.discard_space(cpu, &mut pair.child);
            return Err(error);
        }
        Ok(Fork {
            parent: id,
            child: child.id(),
            at: 0,
        })
    }

    /// Goes on with a fork, to its end.
    ///
    /// # Errors
    /// [`ForkError::NoMemory`] and [`ForkError::Migrating`]: what was done stays, and the next call goes on from there.
    /// [`ForkError::UnknownSpace`] if one of the two is gone.
    pub fn fork_on(&self, cpu: &Cpu, fork: &mut Fork) -> Result<(), ForkError> {
        let find = |id| self.spaces.find(id).ok_or(ForkError::UnknownSpace(id));
        let (parent, child) = (find(fork.parent)?, find(fork.child)?);
        let parent = parent.lock();
        if parent.migrating > 0 {
            return Err(ForkError::Migrating(fork.parent));
        }
        let mut pair = Pair {
            parent,
            child: child.lock(),
            flush: FlushBatch::new(),
        };
        let outcome = self.double(cpu, &mut pair, &mut fork.at);
        if !pair.flush.is_empty() {
            self.mmu.flush(&pair.flush);
        }
        outcome
    }

    /// An empty address space, which is found by walks once it is in the table of all: they wait for its lock then.
    fn new_child(&self, cpu: &Cpu) -> Result<Arc<AddressSpace>, ForkError> {
        let child = self.empty_space(cpu).map_err(|_| ForkError::NoMemory)?;
        Ok(Arc::new(child))
    }

    /// What is no page of the parent's.
    fn double_fixed(&self, cpu: &Cpu, pair: &mut Pair<'_>) -> Result<(), ForkError> {
        pair.child.heap = pair.parent.heap.clone();
        let fixed = self.copy_fixed(cpu, &pair.parent, &mut pair.child);
        fixed.map_err(|_| ForkError::NoMemory)
    }

    /// Gives the child the areas from an address on, and what is in them. An error leaves in `at` where to go on.
    fn double(&self, cpu: &Cpu, pair: &mut Pair<'_>, at: &mut u64) -> Result<(), ForkError> {
        while let Some(&vma) = pair.parent.find_vma(*at) {
            *at = (*at).max(vma.range.start());
            if pair.child.vma_at(*at).is_none() {
                self.double_area(pair, &vma);
            }
            // What is only a file's, the child finds there by itself (Linux `copy_page_range`).
            let is_own = vma.backing.is_anonymous() || vma.anon_vma.is_some();
            let is_nonlinear = vma
                .backing
                .file()
                .is_some_and(|area| area.layout == Layout::NonLinear);
            if is_own || is_nonlinear {
                self.share_range(cpu, pair, vma.range.end(), at)?;
            }
            *at = vma.range.end();
        }
        Ok(())
    }

    fn double_area(&self, pair: &mut Pair<'_>, vma: &Vma) {
        let id = pair.child.id();
        if let Some(anon_vma) = vma.anon_vma
            && !pair.child.anon_vmas.contains_key(&anon_vma)
        {
            self.anon_vmas.join(anon_vma, id);
        }
        if let Some(area) = vma.backing.file()
            && !pair.child.mappings.contains_key(&area.mapping)
        {
            let joined = self.mappings.join(area.mapping, id);
            debug_assert!(joined, "the parent is a member");
        }
        pair.child.insert(vma.for_child());
    }

    /// Lets the child have what the parent has from `at` to `end`.
    fn share_range(&self, cpu: &Cpu, pair: &mut Pair<'_>, end: u64, at: &mut u64) -> Result<(), ForkError> {
        while *at < end {
            let found = pair.parent.table.find(&self.frames, *at);
            if found.level > Level::HUGE || found.entry.is_empty() && found.level == Level::HUGE {
                *at = found.end_of(*at);
            } else if found.level == Level::HUGE {
                let slot = self.tables(cpu).ensure(pair.child.table, *at, Level::HUGE);
                let slot = slot.map_err(|_| ForkError::NoMemory)?;
                self.share_leaf(cpu, pair, *at, found.slot, slot)?;
                *at = found.end_of(*at);
            } else {
                let end = ((*at / PAGEBLOCK_SIZE + 1) * PAGEBLOCK_SIZE).min(end);
                self.share_table(cpu, pair, (end, found.slot), at)?;
            }
        }
        Ok(())
    }

    /// The same up to `end` within one page table, of which `slot` is an entry.
    fn share_table(
        &self,
        cpu: &Cpu,
        pair: &mut Pair<'_>,
        (end, slot): (u64, Slot),
        at: &mut u64,
    ) -> Result<(), ForkError> {
        let mut table = None;
        while *at < end {
            let index = Level::PAGE.index(*at);
            let from = Slot { index, ..slot };
            if self.frames.read(from.table, index) != 0 {
                let to = match table {
                    Some(table) => Slot { table, index },
                    None => self
                        .tables(cpu)
                        .ensure(pair.child.table, *at, Level::PAGE)
                        .map_err(|_| ForkError::NoMemory)?,
                };
                table = Some(to.table);
                self.share_leaf(cpu, pair, *at, from, to)?;
            }
            *at += PAGE_SIZE;
        }
        Ok(())
    }

    /// Lets the child have an entry. An error leaves no table behind that has none.
    fn share_leaf(
        &self,
        cpu: &Cpu,
        pair: &mut Pair<'_>,
        va: u64,
        from: Slot,
        to: Slot,
    ) -> Result<(), ForkError> {
        let shared = self.share_entry(cpu, pair, va, (from, to));
        if shared.is_err() {
            let mut gather = Gather::default();
            self.prune_later(cpu, pair.child.table, va, &mut gather);
            gather.finish(self.tables(cpu), &self.mmu);
        }
        shared
    }

    fn share_entry(
        &self,
        cpu: &Cpu,
        pair: &mut Pair<'_>,
        va: u64,
        (from, to): (Slot, Slot),
    ) -> Result<(), ForkError> {
        let entry = Entry::from_bits(self.frames.read(from.table, from.index));
        if let Some(slot) = entry.swap_slot() {
            if !self.swap.add_user(slot) {
                return Err(ForkError::NoMemory);
            }
            self.tables(cpu).set(to, entry);
            pair.child.swap_pages += 1;
            return Ok(());
        }
        let shared = entry.without(Entry::WRITABLE | Entry::DIRTY);
        if entry.has(Entry::FIXED) || entry.file_index().is_some() {
            let copied = if entry.is_present() { shared } else { entry };
            self.tables(cpu).set(to, copied);
            return Ok(());
        }
        if self.mapped_page(entry.pfn()).flags().has(PageFlags::FILE) {
            self.share_file_page(cpu, pair, to, shared);
            return Ok(());
        }
        let (order, page) = (order_of(entry), self.mapped_page(entry.pfn()));
        if page.flags().has(PageFlags::PINNED) {
            let copy = self.copy_for_child(cpu, pair, va, entry.pfn(), order)?;
            self.tables(cpu).set(to, entry.with_pfn(copy));
        } else {
            if entry.has(Entry::WRITABLE) {
                self.tables(cpu).set(from, shared);
                pair.flush.add(flush_of(pair.parent.table, va, order));
            }
            let held = page.try_reference();
            assert!(held, "{} is mapped without a reference", entry.pfn());
            page.add_mapping();
            self.tables(cpu).set(to, shared);
        }
        pair.child.rss_pages += u64::from(order.nr_pages());
        Ok(())
    }

    /// Maps a page of a mapping for the child, which asks by a fault of its own before it stores to it: write-back may be at
    /// work on the page without having met the child.
    fn share_file_page(&self, cpu: &Cpu, pair: &mut Pair<'_>, to: Slot, entry: Entry) {
        let page = self.mapped_page(entry.pfn());
        let held = page.try_reference();
        assert!(held, "{} is mapped without a reference", entry.pfn());
        page.add_mapping();
        self.tables(cpu).set(to, entry);
        pair.child.file_pages += 1;
        self.phys.counts.nr_mapped.add(1);
    }

    fn copy_for_child(
        &self,
        cpu: &Cpu,
        pair: &mut Pair<'_>,
        va: u64,
        from: Pfn,
        order: Order,
    ) -> Result<Pfn, ForkError> {
        let is_hugetlb = self.mapped_page(from).flags().has(PageFlags::HUGETLB);
        let copy = match is_hugetlb {
            true => self.phys.take_huge(cpu, Claim::None),
            false => self.phys.alloc_pages(cpu, Gfp::USER, order).ok(),
        };
        let copy = copy.ok_or(ForkError::NoMemory)?;
        self.frames.copy(from, copy, order);
        let anon_vma = pair.child.anon_vma_at(va, &self.anon_vmas);
        self.set_anon(copy, AnonPlace { anon_vma, va });
        if !is_hugetlb {
            self.adopt(copy, order);
        }
        Ok(copy)
    }
}
