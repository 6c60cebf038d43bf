//! The first phase: inactive dirty pages become inactive clean ones; and what is clean is freed (Linux 2.4, `page_launder`,
//! `reclaim_page`).

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu};
use crate::lru::LruList;
use crate::mm::launder::{FLUSHED_PAGES, age_up};
use crate::mm::rmap::Walk;
use crate::mm::{Mm, Shrunk};
use crate::page::{Page, PageFlags};
use crate::pfn::{Order, Pfn};
use crate::zone::Zone;

/// What a round does with dirty pages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Passes them by.
    CleanOnly,
    /// Writes them.
    Write,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Looks at `nr` inactive dirty pages, and writes dirty ones only if too few were clean.
    pub(crate) fn page_launder(&self, cpu: &Cpu, zone: &Zone, nr: u32, shrunk: &mut Shrunk) {
        self.launder_round(cpu, zone, (nr, Round::CleanOnly), shrunk);
        if zone.lru_len(LruList::Clean) < u64::from(nr) {
            self.write_back(cpu, FLUSHED_PAGES);
            self.launder_round(cpu, zone, (nr, Round::Write), shrunk);
        }
    }

    fn launder_round(&self, cpu: &Cpu, zone: &Zone, (nr, round): (u32, Round), shrunk: &mut Shrunk) {
        let mut pages = Vec::new();
        self.phys.lru_isolate(zone, LruList::Inactive, nr, &mut pages);
        shrunk.scanned += u32::try_from(pages.len()).unwrap_or(u32::MAX);
        let mut walk = Walk::default();
        let mut dirty = Vec::new();
        for pfn in pages {
            let page = self.mapped_page(pfn);
            match self.wash(cpu, (pfn, page), &mut walk) {
                Some(LruList::Inactive) if round == Round::Write => dirty.push(pfn),
                Some(list) => {
                    shrunk.activated += u32::from(list == LruList::Active);
                    self.put_back(cpu, pfn, list);
                }
                None => self.phys.put_page(cpu, pfn),
            }
        }
        self.free_or_write(cpu, dirty, shrunk);
    }

    /// Where an isolated inactive page belongs; `None` for one that is nobody's any more.
    fn wash(&self, cpu: &Cpu, (pfn, page): (Pfn, &Page), walk: &mut Walk) -> Option<LruList> {
        let flags = page.flags();
        if !flags.has(PageFlags::ANON) && !flags.has(PageFlags::FILE) {
            return None;
        }
        let was_used = self.take_referenced(page) | self.was_used(cpu, pfn, page, walk);
        if was_used || page.mapcount() > 0 || page.order() != Order::ZERO {
            if was_used {
                age_up(page);
            }
            return Some(LruList::Active);
        }
        let busy = flags.has(PageFlags::LOCKED) || flags.has(PageFlags::WRITEBACK);
        let is_clean =
            !busy && !flags.has(PageFlags::DIRTY) && flags.has(PageFlags::UPTODATE) && !self.is_shmem(page);
        Some(if is_clean {
            LruList::Clean
        } else {
            LruList::Inactive
        })
    }

    pub(crate) fn is_shmem(&self, page: &Page) -> bool {
        let mapping = self
            .mappings
            .of_page(page)
            .filter(|_| page.flags().has(PageFlags::FILE));
        mapping.is_some_and(|mapping| !mapping.kind.is_file())
    }

    /// Frees up to `nr` clean pages of a zone.
    pub(crate) fn reclaim_clean(&self, cpu: &Cpu, zone: &Zone, nr: u32, shrunk: &mut Shrunk) {
        let mut pages = Vec::new();
        self.phys.lru_isolate(zone, LruList::Clean, nr, &mut pages);
        self.free_or_write(cpu, pages, shrunk);
    }
}
