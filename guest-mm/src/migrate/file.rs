//! Pages of mappings on the move: what is known of them goes along, and what the file system has on them as it chooses ([`Migration`]).

use guest_sync::Cpu;

use crate::frames::{FlushBatch, Frames, Mmu};
use crate::migrate::batch::{Home, Move};
use crate::migrate::{BusyWith, RefusalReason};
use crate::mm::Mm;
use crate::mm::mapping::{Content, LockedPage, Migration, private_page};
use crate::mm::reclaim_file::Writes;
use crate::mm::rmap::Walk;
use crate::page::{Page, PageFlags};
use crate::pfn::{Order, Pfn};

/// The page stays where it is, just now.
pub(super) struct Stays;

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Whether nobody objects to the move of a page whose lock the caller has.
    pub(super) fn may_move(&self, pfn: Pfn, page: &Page) -> Result<(), RefusalReason> {
        let Some(mapping) = self.mappings.of_page(page) else {
            return Ok(());
        };
        let Some(ops) = mapping.kind.ops() else {
            return Ok(());
        };
        if let Some(holder) = ops.kept_by() {
            return Err(RefusalReason::Pinned { holder });
        }
        match private_page(mapping.id, pfn, page) {
            Some(private) if !ops.is_movable(private) => Err(RefusalReason::Busy(BusyWith::FileSystem)),
            _ => Ok(()),
        }
    }

    /// Has a page, whose lock and a reference the caller has, ready to move, in its file system's way. One that has to be written first is on
    /// its way then, as soon as the caller has flushed and made the request.
    pub(super) fn prepare_to_move(
        &self,
        cpu: &Cpu,
        (pfn, page): (Pfn, &Page),
        walk: &mut Walk,
        flush: &mut FlushBatch,
        writes: &mut Writes,
    ) -> Result<Migration, Stays> {
        let Some(mapping) = self.mappings.of_page(page) else {
            return Ok(Migration::Default);
        };
        let (Some(ops), Some(private)) = (mapping.kind.ops(), private_page(mapping.id, pfn, page)) else {
            return Ok(Migration::Default);
        };
        if ops.migration() != Migration::Default {
            return Ok(ops.migration());
        }
        if page.flags().has(PageFlags::DIRTY) {
            // Lock and reference of its own: the caller keeps his.
            let held = page.try_reference();
            debug_assert!(held);
            let locked = LockedPage::new(self, cpu, mapping.clone(), pfn);
            if self.begin_write(&locked, walk, flush) {
                self.phys.counts.migrate_written_first.add(1);
                writes.push((mapping.clone(), page.index(), pfn));
            }
            locked.leave_locked();
            return Err(Stays);
        }
        if !ops.releasepage(private) {
            return Err(Stays);
        }
        page.remove_flags(PageFlags::PRIVATE);
        page.set_private(0);
        // That of the private data; the caller has another one.
        page.drop_reference();
        Ok(Migration::Default)
    }

    /// Moves what the file system has on a page that is under way, and all of a page that it takes over: what is to be on the new one.
    pub(super) fn move_private(&self, moving: &Move) -> Result<Option<u32>, Stays> {
        let (pfn, to) = (moving.page.pfn, moving.to);
        let page = self.migrating_page(pfn);
        let Some(mapping) = self.mappings.of_page(page) else {
            return Ok(None);
        };
        let (Some(ops), Some(private)) = (mapping.kind.ops(), private_page(mapping.id, pfn, page)) else {
            return Ok(None);
        };
        if moving.home != Home::TakenOver {
            return Ok(Some(ops.migrate_page(private, to)));
        }
        let mut copy = || self.frames.copy(pfn, to, Order::ZERO);
        let taken = ops.take_over(private, to, &mut copy).ok_or(Stays)?;
        self.phys.counts.migrate_taken_over.add(1);
        Ok(Some(taken))
    }

    /// The new page takes the old one's place in its mapping. Both are locked; who finds the new one waits until all is done.
    pub(super) fn arrive_in_mapping(
        &self,
        (from_pfn, from): (Pfn, &Page),
        (to_pfn, to): (Pfn, &Page),
        private: Option<u32>,
    ) {
        let mapping = self.mappings.of_page(from);
        let mapping =
            mapping.expect("a mapping with pages is not removed, and the page lock keeps this one in it");
        to.set_mapping(from.mapping());
        to.set_index(from.index());
        to.set_age(from.age());
        let mut flags = PageFlags::FILE;
        for flag in [
            PageFlags::DIRTY,
            PageFlags::UPTODATE,
            PageFlags::ERROR,
            PageFlags::REFERENCED,
            PageFlags::MLOCKED,
        ] {
            if from.flags().has(flag) {
                flags = flags.with(flag);
            }
        }
        if let Some(private) = private {
            to.set_private(private);
            flags = flags.with(PageFlags::PRIVATE);
        }
        to.add_flags(flags);
        let mut state = mapping.lock();
        let replaced = state.tree.replace(from.index(), Content::Page(to_pfn));
        debug_assert_eq!(replaced, Some(Content::Page(from_pfn)));
    }
}
