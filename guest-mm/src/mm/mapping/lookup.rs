//! Pages found in a mapping, and put there.

use alloc::sync::Arc;

use guest_sync::Cpu;

use super::{Content, FileError, LockedPage, Mapping, MappingId, WhyRead};
use crate::frames::{Frames, Mmu};
use crate::gfp::Gfp;
use crate::lru::LruList;
use crate::mm::{Mm, PageWait};
use crate::page::PageFlags;
use crate::pfn::{Order, Pfn};

/// What is at an index of a mapping.
#[must_use = "a page that was found is locked, and unlocked when this is dropped"]
pub enum PageLookup<'a, 'm, F: Frames, M: Mmu> {
    /// A page, locked. It may not be up to date.
    Locked(LockedPage<'a, 'm, F, M>),
    /// A page that somebody else has locked, or that comes from the swap area: try again after [`Mm::until_unlocked`].
    Wait(PageWait),
    /// No page in memory.
    Absent,
}

/// What putting a page into a tree came to.
pub(crate) enum Entered {
    /// It is there, locked, with a reference for the caller besides the tree's.
    Done,
    /// Another was first; the frame is free again.
    Occupied,
    /// There is no room for it, or the mapping is just being removed; the frame is free again.
    NoMemory,
    /// The file does not reach there, or not any more; the frame is free again.
    BeyondEnd,
}

/// How far pages may be put into a mapping's tree.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To the end of the file: whoever waited for a page may come after the file was cut off, and a page that he put there then would
    /// be found when the file has grown again, with a block that is not the file's any more.
    File,
    /// Beyond it: for a write that makes the file longer, from which truncation is kept away.
    Beyond,
}

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// The page at an index of a mapping, with its lock (Linux `find_lock_page`).
    ///
    /// # Errors
    /// When there is no such mapping.
    pub fn lock_page<'a>(
        &'a self,
        cpu: &'a Cpu,
        id: MappingId,
        index: u32,
    ) -> Result<PageLookup<'a, 'm, F, M>, FileError> {
        let mapping = self.mapping(id)?;
        Ok(self.lock_page_of(cpu, &mapping, index))
    }

    /// The same, with a new page if there is none (Linux `find_or_create_page`). A new page of a file is not up to date:
    /// [`LockedPage::read`] asks for its contents. One without a file is zeroed.
    ///
    /// # Errors
    /// When there is no such mapping or no memory, or the page cannot be read from the swap area.
    pub fn lock_or_create_page<'a>(
        &'a self,
        cpu: &'a Cpu,
        id: MappingId,
        index: u32,
    ) -> Result<PageLookup<'a, 'm, F, M>, FileError> {
        let mapping = self.mapping(id)?;
        self.lock_or_create(cpu, &mapping, index, Reach::Beyond)
    }

    /// Hangs something of the file system's on a page, if it is in memory: its block. For
    /// [`FileSystem::prepare_write`](super::FileSystem::prepare_write), which calls this while it has what keeps the block the page's; `Some` when
    /// somebody else has the page: let go of that, wait ([`Mm::until_unlocked`]), and *look the block up again*, as the file may have been cut
    /// off meanwhile and the block be another's.
    ///
    /// # Errors
    /// When there is no such mapping.
    pub fn set_private(
        &self,
        cpu: &Cpu,
        id: MappingId,
        index: u32,
        private: u32,
    ) -> Result<Option<PageWait>, FileError> {
        match self.lock_page(cpu, id, index)? {
            PageLookup::Absent => Ok(None),
            PageLookup::Wait(wait) => Ok(Some(wait)),
            PageLookup::Locked(page) => {
                page.set_private(private);
                Ok(None)
            }
        }
    }

    pub(crate) fn lock_page_of<'a>(
        &'a self,
        cpu: &'a Cpu,
        mapping: &Arc<Mapping>,
        index: u32,
    ) -> PageLookup<'a, 'm, F, M> {
        loop {
            let Some(Content::Page(pfn)) = self.find_held(mapping, index) else {
                return PageLookup::Absent;
            };
            if let Some(found) = self.lock_held(cpu, mapping, (index, pfn)) {
                return found;
            }
        }
    }

    /// See [`Mm::lock_or_create_page`]. Absent beyond what may be reached.
    pub(crate) fn lock_or_create<'a>(
        &'a self,
        cpu: &'a Cpu,
        mapping: &Arc<Mapping>,
        index: u32,
        reach: Reach,
    ) -> Result<PageLookup<'a, 'm, F, M>, FileError> {
        loop {
            match self.find_held(mapping, index) {
                Some(Content::Page(pfn)) => {
                    if let Some(found) = self.lock_held(cpu, mapping, (index, pfn)) {
                        return Ok(found);
                    }
                }
                Some(Content::Lost) => return Err(FileError::Io),
                Some(Content::Slot(slot)) => {
                    if let Some(found) = self.shmem_in(cpu, mapping, index, slot)? {
                        return Ok(found);
                    }
                }
                None => {
                    let frame = self.phys.alloc_pages(cpu, mapping.kind.gfp(), Order::ZERO);
                    let frame = frame.map_err(|_| FileError::OutOfMemory)?;
                    match self.enter_page(cpu, mapping, index, (frame, reach)) {
                        Entered::Done => return Ok(PageLookup::Locked(self.created(cpu, mapping, frame))),
                        Entered::BeyondEnd => return Ok(PageLookup::Absent),
                        Entered::NoMemory => return Err(FileError::OutOfMemory),
                        Entered::Occupied => {}
                    }
                }
            }
        }
    }

    /// A page that was just put into a mapping. One without a file has its contents: zeroes.
    fn created<'a>(&'a self, cpu: &'a Cpu, mapping: &Arc<Mapping>, frame: Pfn) -> LockedPage<'a, 'm, F, M> {
        let page = LockedPage::new(self, cpu, mapping.clone(), frame);
        if !mapping.kind.is_file() {
            self.frames.zero(frame, Order::ZERO);
            page.set_up_to_date();
        }
        page
    }

    /// Puts a frame that was just allocated into a mapping's tree, as a page that is locked and has no contents yet.
    fn enter_page(&self, cpu: &Cpu, mapping: &Mapping, index: u32, (frame, reach): (Pfn, Reach)) -> Entered {
        let page = self.mapped_page(frame);
        page.set_mapping(mapping.id.number());
        page.set_index(index);
        page.add_flags(match mapping.kind.is_ram() {
            // Reclaim has nothing to do with it.
            true => PageFlags::FILE.with(PageFlags::MLOCKED),
            false => PageFlags::FILE,
        });
        let locked = page.try_lock();
        debug_assert!(locked);
        // The allocator's reference is the caller's, this one the tree's.
        page.try_reference();
        let mut state = mapping.lock();
        let outcome = match state.tree.get(index) {
            _ if state.has_ended => Entered::NoMemory,
            _ if reach == Reach::File && !state.has_index(index) => Entered::BeyondEnd,
            Some(_) => Entered::Occupied,
            None => match state.tree.insert(index, Content::Page(frame)) {
                Ok(()) => Entered::Done,
                Err(_) => Entered::NoMemory,
            },
        };
        drop(state);
        if !matches!(outcome, Entered::Done) {
            page.clear();
            page.drop_reference();
            self.phys.put_page(cpu, frame);
            return outcome;
        }
        self.count_page(mapping, 1);
        self.phys.lru_add(frame, LruList::Inactive);
        Entered::Done
    }

    /// Begins to read pages of a file that are not in memory: up to `nr` of them from `index` on, as far as the file goes and there is memory to
    /// spare. How many it asked for.
    pub(crate) fn read_ahead_of(&self, cpu: &Cpu, mapping: &Arc<Mapping>, index: u32, nr: u32) -> u32 {
        if !mapping.kind.is_file() {
            return 0;
        }
        let mut run = alloc::vec::Vec::new();
        let (mut first, mut asked) = (index, 0);
        for at in index..index.saturating_add(nr) {
            let is_wanted = {
                let state = mapping.lock();
                state.has_index(at) && state.tree.get(at).is_none()
            };
            let frame = is_wanted.then(|| self.phys.alloc_pages(cpu, Gfp::SPARE, Order::ZERO).ok());
            let entered = match frame.flatten() {
                Some(frame) => matches!(
                    self.enter_page(cpu, mapping, at, (frame, Reach::File)),
                    Entered::Done
                )
                .then_some(frame),
                None => None,
            };
            match entered {
                Some(frame) => run.push(frame),
                None => {
                    self.submit_run(mapping, first, core::mem::take(&mut run));
                    first = at.saturating_add(1);
                }
            }
            asked += u32::from(entered.is_some());
        }
        self.submit_run(mapping, first, run);
        asked
    }

    fn submit_run(&self, mapping: &Arc<Mapping>, first: u32, run: alloc::vec::Vec<Pfn>) {
        if !run.is_empty() {
            self.submit_file_io(super::FileIo::read(mapping.clone(), first, run, WhyRead::Ahead));
        }
    }

    /// What is at an index, with a reference if it is a page: whoever frees it looks here first.
    pub(crate) fn find_held(&self, mapping: &Mapping, index: u32) -> Option<Content> {
        let state = mapping.lock();
        let content = state.tree.get(index)?;
        if let Content::Page(pfn) = content {
            let held = self.mapped_page(pfn).try_reference();
            assert!(held, "{pfn} is in a mapping without a reference");
        }
        Some(content)
    }

    /// Takes the lock of a page that was found, and whose reference the caller has. `None` if it is not the mapping's any more, and the
    /// reference is given back.
    pub(crate) fn lock_held<'a>(
        &'a self,
        cpu: &'a Cpu,
        mapping: &Arc<Mapping>,
        (index, pfn): (u32, Pfn),
    ) -> Option<PageLookup<'a, 'm, F, M>> {
        let page = self.mapped_page(pfn);
        if !page.try_lock() {
            self.phys.put_page(cpu, pfn);
            return Some(PageLookup::Wait(PageWait::lock(pfn)));
        }
        let is_same = page.flags().has(PageFlags::FILE)
            && page.mapping() == mapping.id.number()
            && page.index() == index;
        if is_same {
            let page = LockedPage::new(self, cpu, mapping.clone(), pfn);
            return Some(PageLookup::Locked(page));
        }
        self.unlock_page(pfn, page);
        self.phys.put_page(cpu, pfn);
        None
    }
}
