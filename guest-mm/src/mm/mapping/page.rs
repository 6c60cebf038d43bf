//! A page of a mapping with its lock taken: what may be done with it by whoever has it.

use alloc::sync::Arc;

use guest_sync::Cpu;

use super::{Content, FileIo, Mapping, MappingId, MappingKind, PrivatePage, WhyRead};
use crate::frames::{Frames, Mmu};
use crate::lru::LruList;
use crate::mm::{Mm, PageWait};
use crate::page::{Page, PageFlags};
use crate::pfn::Pfn;
use crate::radix_tree::Tag;

/// A page of a mapping, and its lock. Dropping this lets go of both.
///
/// It is kept for a bounded piece of work and never while anything is waited for.
#[must_use = "the page is unlocked at once"]
pub struct LockedPage<'a, 'm, F: Frames, M: Mmu> {
    pub(crate) mm: &'a Mm<'m, F, M>,
    pub(crate) cpu: &'a Cpu,
    pub(crate) mapping: Arc<Mapping>,
    pub(crate) pfn: Pfn,
    pub(crate) page: &'m Page,
    /// Lock and reference are a request's now.
    is_handed_over: bool,
}

impl<F: Frames, M: Mmu> Drop for LockedPage<'_, '_, F, M> {
    fn drop(&mut self) {
        if !self.is_handed_over {
            self.mm.unlock_page(self.pfn, self.page);
            self.mm.phys.put_page(self.cpu, self.pfn);
        }
    }
}

impl<'a, 'm, F: Frames, M: Mmu> LockedPage<'a, 'm, F, M> {
    /// For who has taken the lock of a page in a mapping's tree, and a reference.
    pub(crate) fn new(mm: &'a Mm<'m, F, M>, cpu: &'a Cpu, mapping: Arc<Mapping>, pfn: Pfn) -> Self {
        let page = mm.mapped_page(pfn);
        debug_assert!(page.flags().has(PageFlags::LOCKED.with(PageFlags::FILE)));
        Self {
            mm,
            cpu,
            mapping,
            pfn,
            page,
            is_handed_over: false,
        }
    }

    /// Its frame. The contents are the holder's to change.
    pub const fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// Which page of the file it is.
    pub fn index(&self) -> u32 {
        self.page.index()
    }

    /// Of which file.
    pub fn mapping(&self) -> MappingId {
        self.mapping.id
    }

    /// Whether it has its contents.
    pub fn is_up_to_date(&self) -> bool {
        self.page.flags().has(PageFlags::UPTODATE)
    }

    /// Whether it is newer than what is on the disk.
    pub fn is_dirty(&self) -> bool {
        self.page.flags().has(PageFlags::DIRTY)
    }

    /// What to wait for if it is on its way to the disk.
    pub fn writeback(&self) -> Option<PageWait> {
        let flags = self.page.flags();
        flags
            .has(PageFlags::WRITEBACK)
            .then(|| PageWait::writeback(self.pfn))
    }

    /// What the file system has on it.
    pub fn private(&self) -> Option<u32> {
        let flags = self.page.flags();
        flags.has(PageFlags::PRIVATE).then(|| self.page.private())
    }

    /// Hangs something of the file system's on it, in the place of what is there.
    pub fn set_private(&self, private: u32) {
        self.mm.set_page_private(self.page, private);
    }

    /// Whether it can be written to without a word to the file system: it has its block, or needs none.
    pub fn has_backing(&self) -> bool {
        self.page.flags().has(PageFlags::PRIVATE) || !self.mapping.kind.is_file()
    }

    /// It has its contents now: somebody has filled all of it.
    pub fn set_up_to_date(&self) {
        self.page.add_flags(PageFlags::UPTODATE);
        self.page.remove_flags(PageFlags::ERROR);
    }

    /// That it could not be read, once: whoever asks next reads again.
    pub(crate) fn take_error(&self) -> bool {
        let has_failed = self.page.flags().has(PageFlags::ERROR) && !self.is_up_to_date();
        if has_failed {
            self.page.remove_flags(PageFlags::ERROR);
        }
        has_failed
    }

    /// It is newer than what is on the disk. It has its contents, and its block.
    pub fn set_dirty(&self) {
        debug_assert!(self.is_up_to_date() && self.has_backing());
        self.mm.dirty_locked(&self.mapping, self.page);
    }

    /// Somebody has used it (Linux `mark_page_accessed`): the second time it becomes an active page.
    pub fn mark_accessed(&self) {
        self.mm.mark_accessed(self.pfn, self.page);
    }

    /// Asks for its contents; the lock goes with the request. What to wait for.
    pub fn read(self) -> PageWait {
        self.read_because(WhyRead::Wanted)
    }

    pub(crate) fn read_because(self, why: WhyRead) -> PageWait {
        let wait = PageWait::lock(self.pfn);
        let (mm, mapping, index) = (self.mm, self.mapping.clone(), self.index());
        mm.submit_file_io(FileIo::read(mapping, index, alloc::vec![self.hand_over()], why));
        wait
    }

    /// Leaves lock and reference to a request.
    pub(crate) fn hand_over(mut self) -> Pfn {
        self.is_handed_over = true;
        self.pfn
    }

    /// Gives the reference back and leaves the lock to one who had it before, and has a reference too.
    pub(crate) fn leave_locked(mut self) {
        self.is_handed_over = true;
        self.mm.phys.put_page(self.cpu, self.pfn);
    }

    /// Takes it out of its mapping: nobody maps it, and it is not on its way to the disk.
    pub(crate) fn remove(&self) {
        debug_assert!(self.page.mapcount() == 0 && self.writeback().is_none());
        let removed = self.mapping.lock().tree.remove(self.index());
        debug_assert_eq!(removed, Some(Content::Page(self.pfn)));
        self.mm
            .forget_page(self.cpu, &self.mapping, (self.pfn, self.page));
    }

    /// Takes it out of its mapping because its contents are gone: who waits for it to be written is told, and one of shared memory cannot be
    /// read any more. Nobody maps it, and it is not on its way to the disk.
    pub(crate) fn lose(&self) {
        debug_assert!(self.page.mapcount() == 0 && self.writeback().is_none());
        let mut state = self.mapping.lock();
        match self.mapping.kind {
            MappingKind::File(_) => {
                state.tree.remove(self.index());
                state.errors.note();
            }
            MappingKind::Shmem | MappingKind::Ram(_) => {
                state.tree.replace(self.index(), Content::Lost);
            }
        }
        drop(state);
        self.mm
            .forget_page(self.cpu, &self.mapping, (self.pfn, self.page));
    }

    /// As the file system knows it, if it has something on it.
    pub(crate) fn private_page(&self) -> Option<PrivatePage> {
        private_page(self.mapping.id, self.pfn, self.page)
    }
}

/// As the file system knows a locked page, if it has something on it.
pub(crate) fn private_page(mapping: MappingId, pfn: Pfn, page: &Page) -> Option<PrivatePage> {
    page.flags().has(PageFlags::PRIVATE).then(|| PrivatePage {
        mapping,
        index: page.index(),
        pfn,
        private: page.private(),
    })
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Makes a page dirty whose lock the caller has.
    pub(crate) fn dirty_locked(&self, mapping: &Mapping, page: &Page) {
        if !mapping.kind.is_file() {
            return;
        }
        let mut state = mapping.lock();
        if page.flags().has(PageFlags::DIRTY) {
            return;
        }
        page.add_flags(PageFlags::DIRTY);
        // What is written now is something else than what could not be.
        page.remove_flags(PageFlags::ERROR);
        state.tree.set_tag(page.index(), Tag::Dirty);
        let now = self.dirty.now();
        state.dirtied_at.get_or_insert(now);
        self.phys.counts.nr_dirty.add(1);
        drop(state);
        self.dirty.wake_if_many(self);
    }

    /// A use of a page, the second of which makes it an active one.
    pub(crate) fn mark_accessed(&self, pfn: Pfn, page: &Page) {
        let flags = page.flags();
        if !flags.has(PageFlags::REFERENCED) {
            page.add_flags(PageFlags::REFERENCED);
        } else if flags.has(PageFlags::LRU) && !flags.has(PageFlags::ACTIVE) {
            // One that somebody has just isolated is not moved.
            if self.phys.lru_remove(pfn).is_some() {
                page.remove_flags(PageFlags::REFERENCED);
                self.phys.lru_add(pfn, LruList::Active);
                self.phys.counts.pgactivate.add(1);
            }
        }
    }

    pub(crate) fn set_page_private(&self, page: &Page, private: u32) {
        page.set_private(private);
        if !page.flags().has(PageFlags::PRIVATE) {
            let held = page.try_reference();
            debug_assert!(held);
            page.add_flags(PageFlags::PRIVATE);
        }
    }

    /// Takes what makes it a page of a mapping from a page that is not in the tree any more: its private data with their reference,
    /// what it was counted as, its place on a list, and the tree's reference. The caller has its lock and a reference.
    pub(crate) fn forget_page(&self, cpu: &Cpu, mapping: &Mapping, (pfn, page): (Pfn, &Page)) {
        self.phys.lru_remove(pfn);
        let flags = page.flags();
        if flags.has(PageFlags::DIRTY) {
            self.phys.counts.nr_dirty.sub(1);
        }
        self.count_page(mapping, -1);
        let gone = PageFlags::FILE
            .with(PageFlags::PRIVATE)
            .with(PageFlags::DIRTY)
            .with(PageFlags::UPTODATE)
            .with(PageFlags::ERROR)
            .with(PageFlags::REFERENCED)
            .with(PageFlags::MLOCKED)
            .with(PageFlags::ACTIVE);
        page.remove_flags(gone);
        page.set_age(0);
        page.set_mapping(0);
        page.set_index(0);
        if flags.has(PageFlags::PRIVATE) {
            page.set_private(0);
            self.phys.put_page(cpu, pfn);
        }
        self.phys.put_page(cpu, pfn);
        self.dirty.wake_throttled();
    }

    /// One page of a mapping more or less.
    pub(crate) fn count_page(&self, mapping: &Mapping, change: i64) {
        let counts = &self.phys.counts;
        let kinds = match mapping.kind {
            MappingKind::File(_) => [Some(&counts.nr_file_pages), None],
            MappingKind::Shmem | MappingKind::Ram(_) => [Some(&counts.nr_file_pages), Some(&counts.nr_shmem)],
        };
        for count in kinds.into_iter().flatten() {
            if change > 0 {
                count.add(change.unsigned_abs());
            } else {
                count.sub(change.unsigned_abs());
            }
        }
    }
}
