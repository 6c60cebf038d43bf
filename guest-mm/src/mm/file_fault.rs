//! Faults on areas of files and of shared memory: pages of mappings, mapped as they are or copied.

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::mm::fault::{Step, Want};
use crate::mm::fault_ahead::FaultAhead;
use crate::mm::mapping::{Content, FileError, LockedPage, Mapping, PageLookup, Reach};
use crate::mm::{
    AnonPlace, FaultError, FaultOutcome, FileArea, FilePlace, Layout, Locked, Mm, PageWait, Sharing, Vma,
};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Found, Level, Slot};
use crate::pfn::{Order, Pfn};

/// An area of a mapping, and the page of it that is wanted.
struct Wanted<'v> {
    vma: &'v Vma,
    area: FileArea,
    mapping: Arc<Mapping>,
    va: u64,
    index: u32,
}

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// Maps a page of a mapping where no page is mapped, or begins to read it.
    pub(crate) fn fault_file(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (va, found): (u64, &Found),
        (vma, area): (&Vma, FileArea),
        want: Want,
    ) -> Result<Step, FaultError> {
        let index = found
            .entry
            .file_index()
            .unwrap_or(area.first_page + vma.page_offset(va));
        let mapping = self
            .mappings
            .find(area.mapping)
            .ok_or(FaultError::NoArea { va })?;
        let wanted = Wanted {
            vma,
            area,
            mapping,
            va,
            index,
        };
        // What the page needs is there before the page is: one who reads it in and then has no table for it, or no frame for its copy, has it
        // reclaimed on his own behalf and reads it again, for ever, and memory never counts as out (Linux has both at hand before, too:
        // `prealloc_pte`, `do_cow_fault`).
        let slot = match found.level {
            Level::PAGE => Ok(found.slot),
            _ => self.tables(cpu).ensure(space.table, va, Level::PAGE),
        };
        let slot = slot.map_err(|_| FaultError::OutOfMemory(Gfp::KERNEL))?;
        if want == Want::Own && area.sharing == Sharing::Private {
            return self.fault_copy(cpu, space, slot, &wanted);
        }
        let page = match self.page_for_fault(cpu, &mut space.file_ahead, &wanted)? {
            Ok(page) => page,
            Err(wait) => return Ok(Step::Done(FaultOutcome::Locked(wait))),
        };
        let mut bits = vma.prot.leaf_bits();
        if want == Want::Own && wanted.mapping.kind.is_file() {
            if !page.has_backing() {
                return Ok(Step::Done(FaultOutcome::NeedsBlock(wanted.place())));
            }
            page.set_dirty();
        } else if area.sharing == Sharing::Private || wanted.mapping.kind.is_file() {
            // The first store asks for more.
            bits &= !(Entry::WRITABLE | Entry::DIRTY);
        }
        self.map_file_page(cpu, space, slot, (page.pfn(), bits));
        drop(page);
        let around = match (want, area.layout) {
            (Want::Look, Layout::Linear) => self.map_cached_around(cpu, space, slot, &wanted, bits),
            _ => 0,
        };
        Ok(Step::Done(FaultOutcome::Mapped { nr_pages: 1 + around }))
    }

    /// A store to a page of a mapping that is mapped, through an area of shared memory: it becomes dirty, which its file system
    /// may have to be asked for first.
    pub(crate) fn share_for_writing(
        &self,
        cpu: &Cpu,
        (vma, area): (&Vma, FileArea),
        found: &Found,
    ) -> Option<FaultOutcome> {
        let pfn = found.entry.pfn();
        let page = self.mapped_page(pfn);
        let mapping = self.mappings.find(area.mapping)?;
        if mapping.kind.is_file() {
            // The entry has one, and stays while its address space is locked.
            page.try_reference();
            let page = match self.lock_held(cpu, &mapping, (page.index(), pfn))? {
                PageLookup::Locked(page) => page,
                PageLookup::Wait(wait) => return Some(FaultOutcome::Locked(wait)),
                PageLookup::Absent => return None,
            };
            if !page.has_backing() {
                let (mapping, index) = (mapping.id, page.index());
                return Some(FaultOutcome::NeedsBlock(FilePlace { mapping, index }));
            }
            page.set_dirty();
            self.tables(cpu)
                .set(found.slot, found.entry.with(vma.prot.leaf_bits()));
            return Some(FaultOutcome::Reused);
        }
        self.tables(cpu)
            .set(found.slot, found.entry.with(vma.prot.leaf_bits()));
        Some(FaultOutcome::Reused)
    }

    /// The page, locked, with its contents, and part of the file; or what to wait for.
    fn page_for_fault<'a>(
        &'a self,
        cpu: &'a Cpu,
        ahead: &mut FaultAhead,
        wanted: &Wanted<'_>,
    ) -> Result<Result<LockedPage<'a, 'm, F, M>, PageWait>, FaultError> {
        let (mapping, index, va) = (&wanted.mapping, wanted.index, wanted.va);
        let content = {
            let state = mapping.lock();
            if !state.has_index(index) {
                return Err(FaultError::BeyondEnd { va });
            }
            state.tree.get(index)
        };
        if content.is_none() && mapping.kind.is_file() {
            let window = ahead.read(va);
            self.read_ahead_of(cpu, mapping, index / window * window, window);
        }
        if content.is_none() && mapping.kind.is_file() || matches!(content, Some(Content::Slot(_))) {
            self.phys.counts.pgmajfault.add(1);
        }
        let found = self.lock_or_create(cpu, mapping, index, Reach::File);
        match found.map_err(|error| fault_error(error, va, mapping.kind.gfp()))? {
            PageLookup::Absent => Err(FaultError::BeyondEnd { va }),
            PageLookup::Wait(wait) => Ok(Err(wait)),
            PageLookup::Locked(page) if !page.is_up_to_date() => {
                if page.take_error() {
                    return Err(FaultError::Io { va });
                }
                Ok(Err(page.read()))
            }
            // Whoever makes the file shorter takes its pages' locks after that.
            PageLookup::Locked(_) if !mapping.lock().has_index(index) => Err(FaultError::BeyondEnd { va }),
            PageLookup::Locked(page) => Ok(Ok(page)),
        }
    }

    /// Maps a copy of the page that is the program's own.
    fn fault_copy(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        slot: Slot,
        wanted: &Wanted<'_>,
    ) -> Result<Step, FaultError> {
        let (va, vma) = (wanted.va, wanted.vma);
        let copy = self.phys.alloc_pages(cpu, Gfp::USER, Order::ZERO);
        let copy = copy.map_err(|error| FaultError::OutOfMemory(error.gfp))?;
        let page = match self.page_for_fault(cpu, &mut space.file_ahead, wanted) {
            Ok(Ok(page)) => page,
            Ok(Err(wait)) => {
                self.phys.put_page(cpu, copy);
                return Ok(Step::Done(FaultOutcome::Locked(wait)));
            }
            Err(error) => {
                self.phys.put_page(cpu, copy);
                return Err(error);
            }
        };
        self.frames.copy(page.pfn(), copy, Order::ZERO);
        drop(page);
        let anon_vma = space.anon_vma_at(va, &self.anon_vmas);
        self.set_anon(copy, AnonPlace { anon_vma, va });
        self.adopt(copy, Order::ZERO);
        space.rss_pages += 1;
        self.tables(cpu).set(slot, Entry::new(copy, vma.prot.leaf_bits()));
        self.phys.counts.pgcow.add(1);
        Ok(Step::Done(FaultOutcome::Copied))
    }

    /// Maps a page of a mapping, whose lock the caller has, in an empty entry.
    fn map_file_page(&self, cpu: &Cpu, space: &mut Locked<'_>, slot: Slot, (pfn, bits): (Pfn, u64)) {
        let page = self.mapped_page(pfn);
        let held = page.try_reference();
        debug_assert!(held && page.flags().has(PageFlags::FILE.with(PageFlags::UPTODATE)));
        page.add_mapping();
        space.file_pages += 1;
        self.phys.counts.nr_mapped.add(1);
        self.tables(cpu).set(slot, Entry::new(pfn, bits));
    }

    /// Maps what of the neighbourhood is in memory and nobody is working on (Linux `filemap_map_pages`); how many pages.
    fn map_cached_around(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        slot: Slot,
        wanted: &Wanted<'_>,
        bits: u64,
    ) -> u32 {
        let (vma, area) = (wanted.vma, wanted.area);
        let missing: Vec<(Slot, u32)> = self
            .missing_around(slot, wanted.va, vma)
            .map(|(slot, va)| (slot, area.first_page + vma.page_offset(va)))
            .collect();
        let mut held: Vec<(Slot, u32, Pfn)> = Vec::with_capacity(missing.len());
        {
            let state = wanted.mapping.lock();
            for (slot, index) in missing.into_iter().filter(|(_, index)| state.has_index(*index)) {
                let Some(Content::Page(pfn)) = state.tree.get(index) else {
                    continue;
                };
                let page = self.mapped_page(pfn);
                let is_ready = page.flags().has(PageFlags::UPTODATE) && !page.flags().has(PageFlags::LOCKED);
                if is_ready && page.try_reference() {
                    held.push((slot, index, pfn));
                }
            }
        }
        let mut mapped = 0;
        for (slot, index, pfn) in held {
            let found = self.lock_held(cpu, &wanted.mapping, (index, pfn));
            if let Some(PageLookup::Locked(page)) = found
                && page.is_up_to_date()
                && wanted.mapping.lock().has_index(index)
            {
                self.map_file_page(cpu, space, slot, (pfn, bits));
                mapped += 1;
            }
        }
        mapped
    }
}

impl Wanted<'_> {
    fn place(&self) -> FilePlace {
        FilePlace {
            mapping: self.mapping.id,
            index: self.index,
        }
    }
}

fn fault_error(error: FileError, va: u64, gfp: Gfp) -> FaultError {
    match error {
        FileError::Io => FaultError::Io { va },
        FileError::Unknown(_) => FaultError::NoArea { va },
        _ => FaultError::OutOfMemory(gfp),
    }
}
