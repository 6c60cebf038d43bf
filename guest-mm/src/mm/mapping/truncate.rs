//! Files made shorter or longer: pages beyond the end go, and what is behind the end in the last page is zero.

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::Cpu;

use super::{Content, FileError, LockedPage, Mapping, MappingId, PageLookup, Reach, index_of};
use crate::frames::{FlushBatch, Frames, Mmu, SpaceId};
use crate::mempool::ThisCpu;
use crate::mm::rmap::Walk;
use crate::mm::{Mm, PageWait, Sharing, Vma};
use crate::pagetable::VaRange;
use crate::pfn::PAGE_SIZE;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Makes a mapping's file `size` bytes long (Linux `truncate_setsize`). Pages beyond go, mapped or dirty or not, and so do the copies that
    /// private areas have of them: whoever touches those is beyond the end (Linux `unmap_mapping_range` with `even_cows`). Bytes that are added are zero. The file system keeps others from writing or doing the same
    /// meanwhile.
    ///
    /// # Errors
    /// When there is no such mapping, or its last page cannot be read, for which there must be memory. The size may have changed then,
    /// and a second call brings it to an end.
    pub async fn truncate(
        &self,
        cpu: impl ThisCpu + Copy,
        id: MappingId,
        size: u64,
    ) -> Result<(), FileError> {
        let mapping = self.mapping(id)?;
        index_of(size).ok_or(FileError::TooLarge)?;
        let old = mapping.lock().size;
        if size > old {
            self.zero_tail(cpu, &mapping, old).await?;
            mapping.lock().size = size;
            return Ok(());
        }
        // From here on no page beyond is mapped or read.
        mapping.lock().size = size;
        let first = u32::try_from(size.div_ceil(PAGE_SIZE)).ok();
        if let Some(first) = first {
            self.drop_copies(cpu, &mapping, first).await;
            self.drop_pages(cpu, &mapping, first).await;
        }
        self.zero_tail(cpu, &mapping, size).await
    }

    /// Takes the clean pages of a file out of memory that nobody uses, as far as that is possible at once (Linux
    /// `invalidate_mapping_pages`). Whether none is left.
    pub fn invalidate(&self, cpu: &Cpu, id: MappingId) -> bool {
        let Ok(mapping) = self.mapping(id) else {
            return true;
        };
        let mut next = Some(0);
        while let Some(from) = next {
            let found = mapping.lock().tree.first_from(from);
            let Some((index, _)) = found else {
                return true;
            };
            if let PageLookup::Locked(page) = self.lock_page_of(cpu, &mapping, index) {
                // The tree's reference, and this one.
                self.free_clean(cpu, &mapping, (page.pfn, page.page), 2);
            }
            next = index.checked_add(1);
        }
        mapping.lock().tree.is_empty()
    }

    /// Takes what private areas have of pages from `first` on away from them. A fork that is under way makes its child a member before it
    /// lets go of its parent, so that the child is among those who come next.
    async fn drop_copies(&self, cpu: impl ThisCpu + Copy, mapping: &Arc<Mapping>, first: u32) {
        let mut seen: BTreeSet<SpaceId> = BTreeSet::new();
        loop {
            let next = mapping.lock().members.difference(&seen).next().copied();
            let Some(id) = next else {
                return;
            };
            if self.drop_copies_of(cpu.this_cpu(), (mapping.id, first), id) {
                seen.insert(id);
            } else {
                self.until_settled(id).await;
            }
        }
    }

    /// The same of one address space. False if it has migration entries, which have to go first.
    fn drop_copies_of(&self, cpu: &Cpu, (mapping, first): (MappingId, u32), id: SpaceId) -> bool {
        let Some(found) = self.spaces.find(id) else {
            return true;
        };
        let mut space = found.lock();
        if space.migrating > 0 {
            return false;
        }
        let beyond = |vma: &Vma| {
            let area = vma.backing.file()?;
            let is_private = area.mapping == mapping && area.sharing == Sharing::Private;
            let skipped = u64::from(first.saturating_sub(area.first_page)) * PAGE_SIZE;
            let len = vma.range.bytes().checked_sub(skipped)?;
            VaRange::new(vma.range.start() + skipped, len).filter(|_| is_private)
        };
        let ranges: Vec<VaRange> = space.vmas.values().filter_map(beyond).collect();
        for range in ranges {
            self.zap(cpu, &mut space, range);
        }
        true
    }

    /// Takes all pages from `first` on out of a mapping.
    async fn drop_pages(&self, cpu: impl ThisCpu + Copy, mapping: &Arc<Mapping>, first: u32) {
        let mut next = Some(first);
        while let Some(from) = next {
            let Some((index, content)) = mapping.lock().tree.first_from(from) else {
                return;
            };
            let wait = match content {
                Content::Lost => {
                    mapping.lock().tree.remove(index);
                    None
                }
                Content::Slot(_) => {
                    self.drop_slot(cpu.this_cpu(), mapping, index);
                    None
                }
                Content::Page(_) => self.try_drop(cpu.this_cpu(), mapping, index),
            };
            match wait {
                Some(wait) => self.until_unlocked(wait).await,
                None => next = index.checked_add(1),
            }
        }
    }

    /// Takes the page at `index`, if there is one, out of its mapping; or says what to wait for first.
    pub(super) fn try_drop(&self, cpu: &Cpu, mapping: &Arc<Mapping>, index: u32) -> Option<PageWait> {
        match self.lock_page_of(cpu, mapping, index) {
            PageLookup::Absent => None,
            PageLookup::Wait(wait) => Some(wait),
            PageLookup::Locked(page) => page.writeback().or_else(|| {
                self.drop_page(cpu, &page);
                None
            }),
        }
    }

    /// Takes a page out of its mapping, and out of all page tables first.
    pub(crate) fn drop_page(&self, cpu: &Cpu, page: &LockedPage<'_, '_, F, M>) {
        let mut walk = Walk::default();
        // A fork that is under way may add an entry that this walk does not meet.
        while page.page.mapcount() > 0 {
            let mut flush = FlushBatch::new();
            self.unmap_file_page(cpu, (page.pfn, page.page), &mut walk, &mut flush);
            if !flush.is_empty() {
                self.mmu.flush(&flush);
            }
        }
        if let (Some(ops), Some(private)) = (page.mapping.kind.ops(), page.private_page()) {
            ops.invalidatepage(private);
        }
        page.remove();
    }

    /// Gives up the slot of a page of shared memory, if it is still in one.
    fn drop_slot(&self, cpu: &Cpu, mapping: &Mapping, index: u32) {
        let mut state = mapping.lock();
        if let Some(Content::Slot(slot)) = state.tree.get(index) {
            state.tree.remove(index);
            drop(state);
            self.drop_swap_entry(cpu, slot);
        }
    }

    /// Zeroes what is behind the end of a file of `size` bytes in its last page, in memory and later on the disk: it
    /// becomes part of the file when that grows.
    pub(crate) async fn zero_tail(
        &self,
        cpu: impl ThisCpu + Copy,
        mapping: &Arc<Mapping>,
        size: u64,
    ) -> Result<(), FileError> {
        let Some(index) = index_of(size).filter(|_| !size.is_multiple_of(PAGE_SIZE)) else {
            return Ok(());
        };
        loop {
            if !mapping.kind.is_file() && mapping.lock().tree.get(index).is_none() {
                return Ok(());
            }
            let wait = match self.lock_or_create(cpu.this_cpu(), mapping, index, Reach::File)? {
                PageLookup::Absent => return Ok(()),
                PageLookup::Wait(wait) => wait,
                PageLookup::Locked(page) if page.is_up_to_date() => {
                    self.zero_beyond(page.pfn(), index, size);
                    // What has no block is zero on the disk as well.
                    if page.has_backing() {
                        page.set_dirty();
                    }
                    return Ok(());
                }
                PageLookup::Locked(page) if page.take_error() => return Err(FileError::Io),
                PageLookup::Locked(page) => page.read(),
            };
            self.until_unlocked(wait).await;
        }
    }
}
