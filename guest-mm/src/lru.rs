//! Pages in the order in which they may go: for each zone a list of those in use and one of those that seem not to be
//! (Linux 2.6, `active_list` and `inactive_list`).
//!
//! A page is on a list from the moment that a program has it until it is freed, but for the time that somebody works on it, who
//! has isolated it. The links are in the descriptors; the lock of the zone's lists guards them and the flags `LRU` and
//! `ACTIVE`. Pages are taken from the far end, and put to the near one.

use alloc::vec::Vec;

use guest_sync::SpinLock;

use crate::mem_map::FrameTable;
use crate::page::{Page, PageFlags};
use crate::pfn::Pfn;
use crate::phys::PhysicalMemory;
use crate::zone::Zone;

/// Which list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LruList {
    /// Found in use when they were last looked at.
    Active,
    /// The next to go, unless they are used meanwhile. (2.4: inactive dirty.)
    Inactive,
    /// Can be freed at any moment. Empty but with [`Scheme::Launder`](crate::reclaim::Scheme::Launder).
    Clean,
    /// Locked in memory (`mlock`): reclaim does not look at them (Linux `LRU_UNEVICTABLE`).
    Unevictable,
}

impl LruList {
    /// All lists, those of pages in use first.
    pub const ALL: [Self; 4] = [Self::Active, Self::Inactive, Self::Clean, Self::Unevictable];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
            Self::Clean => "inactive_clean",
            Self::Unevictable => "unevictable",
        }
    }

    /// Whether its pages count as in use.
    pub const fn is_active(self) -> bool {
        matches!(self, Self::Active)
    }
}

/// The lists of a zone.
#[derive(Debug, Default)]
pub(crate) struct Lru {
    lists: SpinLock<Lists>,
}

#[derive(Debug, Default)]
struct Lists {
    active: List,
    inactive: List,
    clean: List,
    unevictable: List,
}

/// Frame numbers plus 1; 0 is none.
#[derive(Debug, Default)]
struct List {
    first: u32,
    last: u32,
    /// Chunks; a huge page is one.
    len: u64,
}

impl Lists {
    const fn list(&mut self, which: LruList) -> &mut List {
        match which {
            LruList::Active => &mut self.active,
            LruList::Inactive => &mut self.inactive,
            LruList::Clean => &mut self.clean,
            LruList::Unevictable => &mut self.unevictable,
        }
    }
}

impl List {
    fn push(&mut self, table: &FrameTable<'_>, pfn: Pfn, page: &Page) {
        let link = pfn.number() + 1;
        page.set_next(self.first);
        page.set_prev(0);
        match self.first {
            0 => self.last = link,
            first => page_at(table, first).set_prev(link),
        }
        self.first = link;
        self.len += 1;
    }

    fn unlink(&mut self, table: &FrameTable<'_>, page: &Page) {
        let (next, prev) = page.links();
        match prev {
            0 => self.first = next,
            prev => page_at(table, prev).set_next(next),
        }
        match next {
            0 => self.last = prev,
            next => page_at(table, next).set_prev(prev),
        }
        page.set_next(0);
        page.set_prev(0);
        self.len -= 1;
    }
}

fn page_at<'m>(table: &FrameTable<'m>, link: u32) -> &'m Page {
    table.page(Pfn::new(link - 1))
}

/// Which list a page is on, or was on when it was isolated.
pub(crate) const fn list_of(page: PageFlags) -> LruList {
    if page.has(PageFlags::MLOCKED) {
        LruList::Unevictable
    } else if page.has(PageFlags::ACTIVE) {
        LruList::Active
    } else if page.has(PageFlags::CLEAN) {
        LruList::Clean
    } else {
        LruList::Inactive
    }
}

impl Zone {
    /// Chunks on the lists that reclaim looks at.
    pub(crate) fn lru_total(&self) -> u64 {
        let lists = [LruList::Active, LruList::Inactive, LruList::Clean];
        lists.into_iter().map(|list| self.lru_len(list)).sum()
    }

    /// Chunks on a list: pages, of whatever size.
    pub fn lru_len(&self, which: LruList) -> u64 {
        self.lru.lists.lock().list(which).len
    }
}

impl PhysicalMemory<'_> {
    /// Puts a page that is on no list at the near end of one; a page that is locked in memory goes to the list of those.
    pub(crate) fn lru_add(&self, pfn: Pfn, which: LruList) {
        let (page, tag) = self.table.find(pfn).expect("a page in use stays online");
        let mut lists = self.zone_at(tag.zone()).lru.lists.lock();
        debug_assert!(!page.flags().has(PageFlags::LRU), "{pfn} is on a list");
        match which {
            LruList::Active | LruList::Unevictable => {
                page.remove_flags(PageFlags::CLEAN);
                page.add_flags(PageFlags::LRU.with(PageFlags::ACTIVE));
            }
            LruList::Inactive => {
                page.remove_flags(PageFlags::ACTIVE.with(PageFlags::CLEAN));
                page.add_flags(PageFlags::LRU);
            }
            LruList::Clean => {
                page.remove_flags(PageFlags::ACTIVE);
                page.add_flags(PageFlags::LRU.with(PageFlags::CLEAN));
            }
        }
        lists.list(list_of(page.flags())).push(&self.table, pfn, page);
    }

    /// Locks a page in memory, or lets it go as others do.
    pub(crate) fn lru_set_mlocked(&self, pfn: Pfn, is_locked: bool) {
        let (page, tag) = self.table.find(pfn).expect("a page in use stays online");
        let mut lists = self.zone_at(tag.zone()).lru.lists.lock();
        let flags = page.flags();
        let is_listed = flags.has(PageFlags::LRU);
        if flags.has(PageFlags::MLOCKED) == is_locked {
            return;
        }
        if is_listed {
            lists.list(list_of(flags)).unlink(&self.table, page);
        }
        if is_locked {
            page.remove_flags(PageFlags::CLEAN);
            page.add_flags(PageFlags::MLOCKED.with(PageFlags::ACTIVE));
        } else {
            page.remove_flags(PageFlags::MLOCKED);
        }
        // One that somebody has isolated goes to the right list when it comes back.
        if is_listed {
            lists.list(list_of(page.flags())).push(&self.table, pfn, page);
        }
    }

    /// Takes a page off its list, if it is on one; which one that was.
    pub(crate) fn lru_remove(&self, pfn: Pfn) -> Option<LruList> {
        let (page, tag) = self.table.find(pfn).expect("a page in use stays online");
        if !page.flags().has(PageFlags::LRU) {
            return None;
        }
        let mut lists = self.zone_at(tag.zone()).lru.lists.lock();
        let flags = page.flags();
        if !flags.has(PageFlags::LRU) {
            return None;
        }
        let which = list_of(flags);
        lists.list(which).unlink(&self.table, page);
        page.remove_flags(PageFlags::LRU);
        Some(which)
    }

    /// Isolates up to `nr` pages from the far end of a zone's list: they are on no list then, and the caller has a reference to
    /// each.
    pub(crate) fn lru_isolate(&self, zone: &Zone, which: LruList, nr: u32, pages: &mut Vec<Pfn>) {
        let mut lists = zone.lru.lists.lock();
        for _ in 0..nr {
            let last = lists.list(which).last;
            if last == 0 {
                break;
            }
            let page = page_at(&self.table, last);
            lists.list(which).unlink(&self.table, page);
            page.remove_flags(PageFlags::LRU);
            // One that is just being freed is left to whoever does that.
            if page.try_reference() {
                pages.push(Pfn::new(last - 1));
            }
        }
    }

    /// Shows the pages of a zone's list, near end first, while nobody can change it; what `look` returns first as an error
    /// ends it. Without a copy of the list, which may be a good part of memory that there is not.
    pub(crate) fn look_at_lru<E>(
        &self,
        zone: &Zone,
        which: LruList,
        mut look: impl FnMut(Pfn) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut lists = zone.lru.lists.lock();
        let mut link = lists.list(which).first;
        while link != 0 {
            look(Pfn::new(link - 1))?;
            link = page_at(&self.table, link).links().0;
        }
        Ok(())
    }
}
