//! Write-back: dirty pages of mappings on their way to the disk, by age, by pressure, or all of one file.

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::Cpu;

use super::{Content, FileError, FileIo, LockedPage, Mapping, MappingId, PageLookup, WhyWrite};
use crate::frames::{FlushBatch, Frames, Mmu};
use crate::mempool::ThisCpu;
use crate::mm::rmap::Walk;
use crate::mm::zap::flush_of;
use crate::mm::{Mm, PageWait};
use crate::page::{Page, PageFlags};
use crate::pagetable::Entry;
use crate::pfn::{Order, Pfn};
use crate::radix_tree::Tag;

/// Most pages of one request: 128 KiB.
const MOST_PAGES: usize = 32;

/// What to do about a page that somebody else has locked, or that is on its way already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Busy {
    /// It comes up again some other time.
    PassOver,
    /// All is to be written that was dirty: stop there.
    Stop,
}

impl Busy {
    /// Which pages are to be written.
    const fn tag(self) -> Tag {
        match self {
            Self::PassOver => Tag::Dirty,
            Self::Stop => Tag::ToWrite,
        }
    }
}

/// What a look at some dirty pages came to.
struct Step {
    /// Pages that are on their way now.
    begun: u32,
    /// Where to go on. `None` when there is nothing more.
    next: Option<u32>,
    /// What to wait for first.
    wait: Option<PageWait>,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Writes all pages of a mapping that are dirty now, waits until they are on the disk, and tells, once, of pages that could not be written
    /// since this was last asked (the part of `fsync` that is not the file system's). Pages that become dirty meanwhile do
    /// not keep it from ending (the tag [`Tag::ToWrite`]).
    ///
    /// # Errors
    /// [`FileError::Io`] when a page could not be written. The next call tries once more; what fails then too is given up.
    pub async fn sync(&self, cpu: impl ThisCpu + Copy, id: MappingId) -> Result<(), FileError> {
        self.write_and_wait(cpu, id).await?;
        let has_failed = self.mapping(id)?.lock().errors.tell_once();
        if has_failed { Err(FileError::Io) } else { Ok(()) }
    }

    /// The same without a word of errors (Linux `filemap_write_and_wait`): [`Mm::tell_errors`] has those.
    ///
    /// # Errors
    /// There is no such mapping.
    pub async fn write_and_wait(&self, cpu: impl ThisCpu + Copy, id: MappingId) -> Result<(), FileError> {
        let mapping = self.mapping(id)?;
        if mapping.kind.is_file() {
            self.write_all(cpu, &mapping).await;
            self.until_written(&mapping).await;
        }
        Ok(())
    }

    /// Begins to write up to `nr` dirty pages, those of the mapping first that has had one for longest. How many it began with: 0
    /// when nothing is dirty, or all that is is busy.
    pub fn write_back(&self, cpu: &Cpu, nr: u32) -> u32 {
        self.write_back_of(cpu, nr, |_| true)
    }

    /// The same for mappings that have had a dirty page since `oldest` or before ([`Mm::set_time`]); all of their dirty
    /// pages (Linux `dirty_expire_interval`).
    pub fn write_back_old(&self, cpu: &Cpu, oldest: u64, nr: u32) -> u32 {
        self.write_back_of(cpu, nr, |dirtied_at| dirtied_at <= oldest)
    }

    /// Whether any page of the mapping is dirty or on its way.
    pub fn is_dirty(&self, id: MappingId) -> bool {
        let is_any = |mapping: Arc<Mapping>| {
            let state = mapping.lock();
            state.tree.any_tagged(Tag::Dirty) || state.tree.any_tagged(Tag::Writeback)
        };
        self.mappings.find(id).is_some_and(is_any)
    }

    /// Whether the page at `index` is dirty or on its way.
    pub fn is_page_dirty(&self, id: MappingId, index: u32) -> bool {
        let Some(mapping) = self.mappings.find(id) else {
            return false;
        };
        let state = mapping.lock();
        let Some(Content::Page(pfn)) = state.tree.get(index) else {
            return false;
        };
        let flags = self.mapped_page(pfn).flags();
        flags.has(PageFlags::DIRTY) || flags.has(PageFlags::WRITEBACK)
    }

    /// When the first of a mapping's dirty pages became dirty. `None` without any.
    pub fn dirtied_at(&self, id: MappingId) -> Option<u64> {
        self.mappings.find(id)?.lock().dirtied_at
    }

    fn write_back_of(&self, cpu: &Cpu, nr: u32, is_due: impl Fn(u64) -> bool) -> u32 {
        let mut due: Vec<(u64, Arc<Mapping>)> =
            self.mappings.all().into_iter().filter_map(dirty_since).collect();
        due.retain(|(since, _)| is_due(*since));
        due.sort_by_key(|(since, mapping)| (*since, mapping.id));
        let mut begun = 0;
        for (_, mapping) in due {
            let mut next = Some(0);
            while let Some(from) = next.filter(|_| begun < nr) {
                let step = self.write_tagged(cpu, &mapping, (from, nr - begun), Busy::PassOver);
                begun += step.begun;
                next = step.next;
            }
            mapping.lock().forget_age();
        }
        begun
    }

    /// Begins to write all that is dirty now.
    async fn write_all(&self, cpu: impl ThisCpu + Copy, mapping: &Arc<Mapping>) {
        mapping.lock().tag_for_writing();
        let mut next = Some(0);
        while let Some(from) = next {
            let step = self.write_tagged(cpu.this_cpu(), mapping, (from, u32::MAX), Busy::Stop);
            next = step.next;
            if let Some(wait) = step.wait {
                self.until_unlocked(wait).await;
            }
        }
        mapping.lock().forget_age();
    }

    /// Waits for each page that is on its way when its turn comes, in one pass.
    async fn until_written(&self, mapping: &Mapping) {
        let mut next = Some(0);
        while let Some(from) = next {
            let on_its_way = mapping.lock().tree.first_tagged_from(from, Tag::Writeback);
            let Some((index, content)) = on_its_way else {
                return;
            };
            if let Content::Page(pfn) = content {
                self.until_unlocked(PageWait::writeback(pfn)).await;
            }
            next = index.checked_add(1);
        }
    }

    /// Begins to write pages that are to be written, from an index on; neighbours go in one request. One flush in all, before the
    /// first request is made.
    fn write_tagged(&self, cpu: &Cpu, mapping: &Arc<Mapping>, (from, nr): (u32, u32), busy: Busy) -> Step {
        let tag = busy.tag();
        let (mut walk, mut flush) = (Walk::default(), FlushBatch::new());
        let mut pages: Vec<(u32, Pfn)> = Vec::new();
        let mut step = Step {
            begun: 0,
            next: Some(from),
            wait: None,
        };
        let most = nr.min(u32::try_from(8 * MOST_PAGES).unwrap_or(u32::MAX));
        while let Some(at) = step.next.filter(|_| step.begun < most) {
            let Some((index, _)) = mapping.lock().tree.first_tagged_from(at, tag) else {
                step.next = None;
                break;
            };
            let wait = match self.lock_page_of(cpu, mapping, index) {
                PageLookup::Absent => None,
                PageLookup::Wait(wait) => Some(wait),
                PageLookup::Locked(page) => match page.writeback() {
                    Some(wait) => Some(wait),
                    None => {
                        if self.begin_write(&page, &mut walk, &mut flush) {
                            pages.push((index, page.pfn()));
                            step.begun += 1;
                        }
                        None
                    }
                },
            };
            if wait.is_some() && busy == Busy::Stop {
                (step.next, step.wait) = (Some(index), wait);
                break;
            }
            step.next = index.checked_add(1);
        }
        if !flush.is_empty() {
            self.mmu.flush(&flush);
        }
        self.submit_writes(mapping, &pages, WhyWrite::Sync);
        step
    }

    /// Makes a page one that is on its way: clean, and no entry permits storing to it. The caller flushes, and makes the
    /// request, for which there is a reference now. False if it is not dirty. It is not on its way already.
    pub(crate) fn begin_write(
        &self,
        page: &LockedPage<'_, '_, F, M>,
        walk: &mut Walk,
        flush: &mut FlushBatch,
    ) -> bool {
        let size = {
            let mut state = page.mapping.lock();
            if !page.is_dirty() {
                state.tree.clear_tag(page.index(), Tag::ToWrite);
                return false;
            }
            let held = page.page.try_reference();
            debug_assert!(held && page.writeback().is_none());
            // Clean before its entries are: who stores later faults, finds the page clean, and makes it dirty again.
            page.page.remove_flags(PageFlags::DIRTY);
            page.page.add_flags(PageFlags::WRITEBACK);
            for tag in [Tag::Dirty, Tag::ToWrite] {
                state.tree.clear_tag(page.index(), tag);
            }
            state.tree.set_tag(page.index(), Tag::Writeback);
            state.forget_age();
            state.size
        };
        self.phys.counts.nr_dirty.sub(1);
        self.phys.counts.nr_writeback.add(1);
        self.phys.write_begins();
        self.protect_entries(page.cpu, (page.pfn, page.page), walk, flush);
        // What programs have stored there is no part of the file.
        self.zero_beyond(page.pfn, page.index(), size);
        true
    }

    /// Takes the right to store from every entry of a page (Linux `page_mkclean`).
    fn protect_entries(&self, cpu: &Cpu, (pfn, page): (Pfn, &Page), walk: &mut Walk, flush: &mut FlushBatch) {
        if page.mapcount() == 0 {
            return;
        }
        self.for_each_entry(pfn, page, walk, |_, locked, (slot, va, entry)| {
            if entry.has(Entry::WRITABLE) {
                self.tables(cpu)
                    .set(slot, entry.without(Entry::WRITABLE | Entry::DIRTY));
                flush.add(flush_of(locked.table, va, Order::ZERO));
            }
        });
    }

    /// Makes requests of pages that are on their way, neighbours together. They are in the order of their indices.
    pub(crate) fn submit_writes(&self, mapping: &Arc<Mapping>, pages: &[(u32, Pfn)], why: WhyWrite) {
        let mut rest = pages;
        while let Some(&(first, _)) = rest.first() {
            let follows = (first..).zip(rest).take(MOST_PAGES);
            let run: Vec<Pfn> = follows
                .take_while(|(expected, (index, _))| expected == index)
                .map(|(_, (_, pfn))| *pfn)
                .collect();
            rest = &rest[run.len()..];
            self.submit_file_io(FileIo::write(mapping.clone(), first, run, why));
        }
    }

    /// Takes a clean page out of its mapping that nobody needs in memory: no entry maps it, the file system lets go of it, and the only
    /// `known` references are the tree's and those of the caller, who has its lock, besides that for its private data. Whether
    /// it did: the caller's references are the last then.
    pub(crate) fn free_clean(
        &self,
        cpu: &Cpu,
        mapping: &Arc<Mapping>,
        (pfn, page): (Pfn, &Page),
        known: u32,
    ) -> bool {
        let mut state = mapping.lock();
        let flags = page.flags();
        let is_its = flags.has(PageFlags::FILE) && page.mapping() == mapping.id.number();
        let is_newer = flags.has(PageFlags::DIRTY) || flags.has(PageFlags::WRITEBACK);
        let references = known + u32::from(flags.has(PageFlags::PRIVATE));
        if !is_its || is_newer || page.mapcount() > 0 || page.count() != references {
            return false;
        }
        // References come from the tree, which is locked, and from entries, of which there are none.
        let super::MappingKind::File(ops) = &mapping.kind else {
            return false;
        };
        let private = super::private_page(mapping.id, pfn, page);
        if private.is_some_and(|private| !ops.releasepage(private)) {
            return false;
        }
        state.tree.remove(page.index());
        drop(state);
        self.forget_page(cpu, mapping, (pfn, page));
        true
    }
}

/// Since when a mapping has dirty pages, if it has.
fn dirty_since(mapping: Arc<Mapping>) -> Option<(u64, Arc<Mapping>)> {
    let since = mapping.lock().dirtied_at?;
    Some((since, mapping))
}

impl super::MappingState {
    /// Everything that is dirty is to be written.
    fn tag_for_writing(&mut self) {
        let mut next = Some(0);
        while let Some((index, _)) = next.and_then(|from| self.tree.first_tagged_from(from, Tag::Dirty)) {
            self.tree.set_tag(index, Tag::ToWrite);
            next = index.checked_add(1);
        }
    }

    /// Forgets since when there are dirty pages when there are none.
    fn forget_age(&mut self) {
        if !self.tree.any_tagged(Tag::Dirty) {
            self.dirtied_at = None;
        }
    }
}
