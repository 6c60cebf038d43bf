//! Files that a program has mapped, and what it sees there.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::files::MOST_PAGES;
use super::memory::Process;
use super::model::{Place as Word, offset_of};
use super::program::{WORDS, settled, touch};
use super::{Sim, count};
use crate::mm::{FaultError, FileArea, Sharing};
use crate::tests::machine::RW;
use crate::{Access, Backing, MapRequest, PAGE_SIZE, Place, Prot};

/// One area.
#[derive(Clone)]
struct Map {
    va: u64,
    /// Which page is where.
    pages: Vec<u32>,
    file: usize,
    sharing: Sharing,
    prot: Prot,
    /// Of a private area: what the program has stored, and how often the file had been cut off before.
    own: BTreeMap<u64, (u64, usize)>,
    /// Of a private area: pages that may be copies.
    copies: BTreeSet<u64>,
}

/// All of them.
#[derive(Clone, Default)]
pub(super) struct Maps(Vec<Map>);

impl Maps {
    pub(super) async fn turn(&mut self, sim: &Sim<'_>, process: &Process) {
        match sim.below(10) {
            0 | 1 => self.map(sim, process).await,
            2 => self.unmap(sim, process).await,
            3 => self.rearrange(sim, process).await,
            4 => self.protect(sim, process).await,
            5..8 => self.store(sim, process).await,
            _ => self.load(sim, process).await,
        }
    }

    async fn map(&mut self, sim: &Sim<'_>, process: &Process) {
        if self.0.len() > 6 {
            return;
        }
        let file = sim.some_file();
        let nr = 1 + sim.below(60);
        let pages = u64::from(sim.files[file].model.borrow().nr_pages());
        let first = u32::try_from(sim.below(pages + 4)).unwrap();
        let sharing = if sim.one_in(3) {
            Sharing::Private
        } else {
            Sharing::Shared
        };
        let open = sim.open(&sim.files[file]).await;
        let request = MapRequest {
            len: nr * PAGE_SIZE,
            place: Place::Anywhere,
            prot: RW,
            backing: Backing::File(FileArea::new(open.id, first, sharing)),
        };
        let va = sim.mm.mmap(process.space, &request).unwrap();
        sim.close(open).await;
        self.0.push(Map {
            va,
            pages: (first..).take(usize::try_from(nr).unwrap()).collect(),
            file,
            sharing,
            prot: RW,
            own: BTreeMap::new(),
            copies: BTreeSet::new(),
        });
    }

    fn some_map(&mut self, sim: &Sim<'_>) -> Option<&mut Map> {
        let at = usize::try_from(sim.below(self.0.len().max(1) as u64)).unwrap();
        self.0.get_mut(at)
    }

    async fn unmap(&mut self, sim: &Sim<'_>, process: &Process) {
        let Some(map) = self.some_map(sim) else {
            return;
        };
        let (va, len) = (map.va, map.pages.len() as u64 * PAGE_SIZE);
        let unmap = || sim.with_failures(|| sim.mm.munmap(sim.cpu, process.space, va, len));
        if settled(sim, process.space, unmap).await {
            self.0.retain(|map| map.va != va);
        }
    }

    async fn protect(&mut self, sim: &Sim<'_>, process: &Process) {
        let prot = if sim.one_in(2) { RW } else { Prot::READ };
        let Some(map) = self.some_map(sim) else {
            return;
        };
        let (va, len) = (map.va, map.pages.len() as u64 * PAGE_SIZE);
        let protect = || sim.with_failures(|| sim.mm.mprotect(sim.cpu, process.space, va, len, prot));
        if settled(sim, process.space, protect).await {
            map.prot = prot;
        }
    }

    /// Shows other pages of the file in a part of a shared area.
    async fn rearrange(&mut self, sim: &Sim<'_>, process: &Process) {
        let (at, nr, first) = (sim.below(30), 1 + sim.below(4), sim.below(MOST_PAGES));
        let Some(map) = self.some_map(sim) else {
            return;
        };
        if map.sharing == Sharing::Private || at + nr > map.pages.len() as u64 || !sim.one_in(4) {
            return;
        }
        let first = u32::try_from(first).unwrap();
        let (va, len) = (map.va + at * PAGE_SIZE, nr * PAGE_SIZE);
        let remap = || {
            let remap = || sim.mm.remap_file_pages(sim.cpu, process.space, va, len, first);
            sim.with_failures(remap)
        };
        if settled(sim, process.space, remap).await {
            let range = usize::try_from(at).unwrap()..usize::try_from(at + nr).unwrap();
            for (page, index) in map.pages[range].iter_mut().zip(first..) {
                *page = index;
            }
            count(&sim.seen.rearranged, 1);
        }
    }

    async fn store(&mut self, sim: &Sim<'_>, process: &Process) {
        let Some(map) = self.some_map(sim) else {
            return;
        };
        let file = &sim.files[map.file];
        for _ in 0..1 + sim.below(16) {
            let Some((va, place)) = map.some_word(sim) else {
                continue;
            };
            let value = file.next_stamp();
            if map.sharing == Sharing::Private {
                map.copies.insert(va / PAGE_SIZE);
            }
            let nr_cuts = file.nr_cuts();
            let stored = touch(sim, process, va, Access::Write, || {
                sim.mm.cpu_store(process.space, va, value)
            });
            match stored.await {
                Ok(()) if map.sharing == Sharing::Private => {
                    map.own.insert(va, (value, nr_cuts));
                }
                Ok(()) => {
                    file.check_is_there(place.0);
                    file.model.borrow_mut().stored(place, value);
                }
                Err(error) => map.check(sim, process, (va, place), error),
            }
        }
    }

    async fn load(&mut self, sim: &Sim<'_>, process: &Process) {
        let Some(map) = self.some_map(sim) else {
            return;
        };
        for _ in 0..1 + sim.below(24) {
            let Some((va, place)) = map.some_word(sim) else {
                continue;
            };
            map.load_one(sim, process, va, place).await;
        }
    }

    /// Looks at everything that is the program's own once more.
    pub(super) async fn check(&self, sim: &Sim<'_>, process: &Process) {
        for map in &self.0 {
            for &va in map.own.keys() {
                map.load_one(sim, process, va, map.place_of(va)).await;
            }
        }
    }
}

impl Map {
    fn place_of(&self, va: u64) -> Word {
        let page = usize::try_from((va - self.va) / PAGE_SIZE).unwrap();
        (self.pages[page], va % PAGE_SIZE / 8)
    }

    /// A word, most times one that the file has.
    fn some_word(&self, sim: &Sim<'_>) -> Option<(u64, Word)> {
        let page = sim.below(self.pages.len() as u64);
        let va = self.va + page * PAGE_SIZE + sim.below(WORDS) * 8;
        let place = self.place_of(va);
        let model = sim.files[self.file].model.borrow();
        (model.has(place) || place.0 >= model.nr_pages() && sim.one_in(4)).then_some((va, place))
    }

    async fn load_one(&self, sim: &Sim<'_>, process: &Process, va: u64, place: Word) {
        let loaded = touch(sim, process, va, Access::Read, || {
            sim.mm.cpu_load(process.space, va)
        });
        let file = &sim.files[self.file];
        match (loaded.await, self.own.get(&va)) {
            // A copy of a page that was cut off went with it.
            (Ok(_), Some((_, nr_cuts))) if file.was_cut(place.0, *nr_cuts) => {}
            (Ok(value), Some((own, _))) => {
                assert_eq!(value, *own, "{va:#x} of space {}", process.space.number());
            }
            (Ok(_), None) if self.copies.contains(&(va / PAGE_SIZE)) => {}
            (Ok(value), None) => {
                file.check_is_there(place.0);
                file.model.borrow_mut().found(place, value);
            }
            (Err(error), _) => return self.check(sim, process, (va, place), error),
        }
        count(&sim.seen.mapped_words, 1);
    }

    /// Whether there was a reason for a refusal.
    fn check(&self, sim: &Sim<'_>, process: &Process, (va, place): (u64, Word), error: FaultError) {
        let file = &sim.files[self.file];
        match error {
            FaultError::OutOfMemory(_) => assert!(process.is_doomed(), "a program that waits gets memory"),
            FaultError::Poisoned { .. } => sim.touches_lost(process),
            FaultError::Io { .. } => {
                let is_private = self.sharing == Sharing::Private;
                sim.io_error(sim.has_failed(file) || is_private && sim.swap_failed.get());
                sim.mend();
            }
            FaultError::Protection { access, .. } => assert!(!self.prot.permits(access), "{error}"),
            FaultError::BeyondEnd { .. } => {
                let model = file.model.borrow();
                let is_beyond = offset_of((place.0, 0)) >= model.size;
                let own = self.own.get(&va);
                let is_whole = own.is_some_and(|(_, nr_cuts)| !file.was_cut(place.0, *nr_cuts));
                assert!(is_beyond && !is_whole, "{error}");
                count(&sim.seen.beyond_end, u32::from(!file.is_busy()));
            }
            FaultError::NoHugePage { .. } | FaultError::NoArea { .. } | FaultError::UnknownSpace(_) => {
                panic!("{error}")
            }
        }
    }
}
