//! A program and its model: what it has mapped, and the last word it stored at each address.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::vec::Vec;

use super::executor::pause;
use super::maps::Maps;
use super::memory::{Doomed, Process};
use super::registered::Buffers;
use super::reserved::HugeAreas;
use super::words::View;
use super::{MOST_PROGRAMS, Sim, count};
use crate::mm::{Advice, BrkError, CopyError, FaultError, FaultOutcome, ForkError, MmapError, SpaceError};
use crate::phys::Pin;
use crate::tests::machine::{RW, anonymous};
use crate::{Access, Backing, Frames, Gfp, HugeAdvice, MapRequest, PAGE_SIZE, Place, Prot, SpaceId};

/// Words of a page that are used: few, so that a page that was not zeroed shows.
pub(super) const WORDS: u64 = 4;
/// Where heaps and stacks are.
const HEAP: u64 = 0x1000_0000;
const STACK_TOP: u64 = 0x8000_0000;
const STACK_PAGES: u64 = 64;
/// Most pages of the heap.
const HEAP_PAGES: u64 = 80;

/// See the module.
pub(super) struct Program {
    pub(super) process: Rc<Process>,
    /// Rights of every page that is mapped or that the stack may grow to, by number.
    pub(super) pages: BTreeMap<u64, Prot>,
    /// What was stored, by address; everything else is zero.
    pub(super) words: BTreeMap<u64, u64>,
    /// Pages that stay in memory.
    pub(super) locked: BTreeSet<u64>,
    pins: Vec<(Pin, u64)>,
    maps: Maps,
    huge: HugeAreas,
    /// Words that all programs share.
    view: View,
    pub(super) buffers: Buffers,
    pub(super) stamp: u64,
}

impl Program {
    /// A new one; `None` if there is no memory for it.
    pub(super) fn new(sim: &Sim<'_>) -> Option<Self> {
        let space = sim.mm.create_space(sim.cpu, &[]).ok()?;
        let stack = MapRequest {
            len: PAGE_SIZE,
            place: Place::Fixed(STACK_TOP - PAGE_SIZE),
            prot: RW,
            backing: Backing::Stack {
                most_bytes: STACK_PAGES * PAGE_SIZE,
            },
        };
        sim.mm.mmap(space, &stack).unwrap();
        sim.mm.set_heap(space, HEAP);
        let top = STACK_TOP / PAGE_SIZE;
        let process = sim.begin_process(space);
        Some(Self {
            view: View::new(sim, &process),
            process,
            pages: (top - STACK_PAGES..top).map(|page| (page, RW)).collect(),
            words: BTreeMap::new(),
            locked: BTreeSet::new(),
            pins: Vec::new(),
            maps: Maps::default(),
            huge: HugeAreas::default(),
            buffers: Buffers::default(),
            stamp: 0,
        })
    }

    pub(super) async fn live(mut self, sim: &Sim<'_>) {
        while !sim.is_ending.get() && !self.process.is_doomed() && !sim.one_in(150) {
            pause().await;
            if sim.parking.is_asked_for() {
                self.stop(sim).await;
                continue;
            }
            match sim.below(60) {
                0 | 1 => self.map(sim),
                2 => self.unmap(sim).await,
                3 => self.protect(sim).await,
                4 => self.forget(sim).await,
                5 => self.move_heap(sim).await,
                6 => self.fork(sim).await,
                7 => self.pin(sim),
                8 => self.unpin(sim),
                12 => self.lock(sim).await,
                13 => self.unlock(sim).await,
                9..12 => self.check(sim, 20).await,
                24..30 => self.maps.turn(sim, &self.process).await,
                36..39 => self.direct(sim).await,
                39..42 => sim.use_names().await,
                42..46 => self.view.turn(sim, &self.process).await,
                46..52 => self.turn_of_huge(sim).await,
                52..55 => self.use_buffers(sim),
                55.. => sim.use_kernel_memory().await,
                30.. => sim.use_file(&self.process).await,
                _ => self.store(sim).await,
            }
        }
        self.check(sim, usize::MAX).await;
        self.maps.check(sim, &self.process).await;
        self.huge.check(sim, &self.process).await;
        self.check_buffers(sim);
        self.end(sim).await;
    }

    /// Waits with nothing pinned until all may go on, or it is to end.
    async fn stop(&mut self, sim: &Sim<'_>) {
        while !self.pins.is_empty() {
            self.unpin(sim);
        }
        let _ = self.process.interruptible(sim.parking.stop()).await;
    }

    async fn turn_of_huge(&mut self, sim: &Sim<'_>) {
        self.stamp += 1;
        self.huge.turn(sim, &self.process, self.stamp).await;
    }

    fn map(&mut self, sim: &Sim<'_>) {
        let (pages, advice) = match sim.below(3) {
            0 => (512 + sim.below(600), HugeAdvice::Huge),
            _ => (1 + sim.below(60), HugeAdvice::NoHuge),
        };
        let request = anonymous(pages * PAGE_SIZE, advice);
        let va = sim.mm.mmap(self.process.space, &request).unwrap();
        for page in va / PAGE_SIZE..va / PAGE_SIZE + pages {
            assert_eq!(self.pages.insert(page, RW), None, "{page:#x} was in use");
        }
    }

    /// Some range, most of it mapped; not of the stack, whose pages that are not there yet cannot be told apart.
    pub(super) fn some_range(&self, sim: &Sim<'_>) -> Option<(u64, u64)> {
        let stack = (STACK_TOP - STACK_PAGES * PAGE_SIZE) / PAGE_SIZE..STACK_TOP / PAGE_SIZE;
        let page = self.some_page(sim).filter(|page| !stack.contains(page))?;
        let pages = match sim.below(3) {
            0 => 1 + sim.below(700),
            _ => 1 + sim.below(20),
        };
        Some((page, pages.min(stack.start.saturating_sub(page)).max(1)))
    }

    pub(super) fn some_page(&self, sim: &Sim<'_>) -> Option<u64> {
        let nr_pages = self.pages.len().max(1) as u64;
        let at = usize::try_from(sim.below(nr_pages)).unwrap();
        self.pages.keys().nth(at).copied()
    }

    async fn unmap(&mut self, sim: &Sim<'_>) {
        let Some((page, pages)) = self.some_range(sim) else {
            return;
        };
        // What the model takes for the heap must stay the heap's.
        let (va, len) = (page * PAGE_SIZE, pages * PAGE_SIZE);
        if va < HEAP + HEAP_PAGES * PAGE_SIZE {
            return;
        }
        let unmap = || sim.with_failures(|| sim.mm.munmap(sim.cpu, self.process.space, va, len));
        if !settled(sim, self.process.space, unmap).await {
            return;
        }
        let gone = page..page + pages;
        self.buffers.forget(|page| gone.contains(&page));
        self.locked.retain(|page| !gone.contains(page));
        self.pages.retain(|page, _| !gone.contains(page));
        self.words.retain(|va, _| !gone.contains(&(va / PAGE_SIZE)));
    }

    async fn protect(&mut self, sim: &Sim<'_>) {
        let Some((page, pages)) = self.some_range(sim) else {
            return;
        };
        let prot = [Prot::READ, RW, RW, Prot::NONE][usize::try_from(sim.below(4)).unwrap()];
        let (va, len) = (page * PAGE_SIZE, pages * PAGE_SIZE);
        let protect = || sim.with_failures(|| sim.mm.mprotect(sim.cpu, self.process.space, va, len, prot));
        if !settled(sim, self.process.space, protect).await {
            return;
        }
        for (_, rights) in self.pages.range_mut(page..page + pages) {
            *rights = prot;
        }
    }

    async fn forget(&mut self, sim: &Sim<'_>) {
        let Some((page, pages)) = self.some_range(sim) else {
            return;
        };
        let (va, len) = (page * PAGE_SIZE, pages * PAGE_SIZE);
        let forget = || {
            let forget = || {
                sim.mm
                    .madvise(sim.cpu, self.process.space, va, len, Advice::DontNeed)
            };
            sim.with_failures(forget)
        };
        if settled(sim, self.process.space, forget).await {
            let gone = page..page + pages;
            self.buffers.forget(|page| gone.contains(&page));
            self.locked.retain(|page| !gone.contains(page));
            self.words.retain(|va, _| !gone.contains(&(va / PAGE_SIZE)));
        }
    }

    async fn move_heap(&mut self, sim: &Sim<'_>) {
        let end = HEAP + sim.below(HEAP_PAGES * PAGE_SIZE);
        loop {
            match sim.with_failures(|| sim.mm.brk(sim.cpu, self.process.space, end)) {
                Ok(_) => break,
                Err(BrkError::Unmap(MmapError::Migrating(id))) => sim.mm.until_settled(id).await,
                Err(BrkError::Unmap(MmapError::Pinned { .. } | MmapError::NoMemory)) => return,
                Err(error) => panic!("{error}"),
            }
        }
        let heap = HEAP / PAGE_SIZE..HEAP / PAGE_SIZE + HEAP_PAGES;
        let kept = heap.start..end.div_ceil(PAGE_SIZE);
        for page in kept.clone() {
            self.pages.entry(page).or_insert(RW);
        }
        let is_gone = |page: u64| heap.contains(&page) && !kept.contains(&page);
        self.buffers.forget(is_gone);
        self.pages.retain(|&page, _| !is_gone(page));
        self.locked.retain(|&page| !is_gone(page));
        self.words.retain(|&va, _| !is_gone(va / PAGE_SIZE));
    }

    async fn fork(&mut self, sim: &Sim<'_>) {
        if sim.nr_programs() >= MOST_PROGRAMS {
            return;
        }
        let begin = || match sim.with_failures(|| sim.mm.begin_fork(sim.cpu, self.process.space)) {
            Err(ForkError::NoMemory) => Err(Gfp::KERNEL),
            outcome => Ok(outcome),
        };
        let mut fork = match sim.until_memory(&self.process, begin).await {
            Ok(begun) => begun.expect("the parent is there"),
            Err(Doomed) => return,
        };
        loop {
            let go_on = || match sim.with_failures(|| sim.mm.fork_on(sim.cpu, &mut fork)) {
                Err(ForkError::NoMemory) => Err(Gfp::KERNEL),
                outcome => Ok(outcome),
            };
            match sim.until_memory(&self.process, go_on).await {
                Ok(Ok(())) => break,
                Ok(Err(ForkError::Migrating(id))) => {
                    count(&sim.seen.waits, 1);
                    sim.mm.until_settled(id).await;
                }
                Ok(Err(error)) => panic!("{error}"),
                Err(Doomed) => return destroy(sim, fork.child()).await,
            }
        }
        let child = fork.child();
        count(&sim.seen.forks, 1);
        let process = sim.begin_process(child);
        process
            .has_met_failure
            .set(process.is_doomed() || self.process.has_met_failure.get());
        process
            .has_lost
            .set(process.has_lost.get() || self.process.has_lost.get());
        let child = Self {
            process,
            pages: self.pages.clone(),
            words: self.words.clone(),
            locked: BTreeSet::new(),
            pins: Vec::new(),
            maps: self.maps.clone(),
            huge: self.huge.fork(),
            view: self.view.clone(),
            buffers: Buffers::default(),
            stamp: self.stamp << 8,
        };
        sim.newborn.borrow_mut().push(child);
    }

    /// A device gets the page, and writes to it later.
    fn pin(&mut self, sim: &Sim<'_>) {
        let Some(page) = self.some_page(sim) else {
            return;
        };
        let va = page * PAGE_SIZE;
        match sim.with_failures(|| sim.mm.pin_user(sim.cpu, self.process.space, va, "device")) {
            Ok(pin) => self.pins.push((pin, va)),
            Err(
                CopyError::Locked { .. }
                | CopyError::Fault {
                    error: FaultError::OutOfMemory(_),
                    ..
                },
            ) => {}
            Err(CopyError::Fault { error, .. }) => self.check_refusal(sim, va, error),
            Err(error @ CopyError::NeedsBlock { .. }) => panic!("{error}"),
        }
    }

    fn unpin(&mut self, sim: &Sim<'_>) {
        let Some((pin, va)) = self.pins.pop() else {
            return;
        };
        let root = sim.mm.space(self.process.space).unwrap().root();
        let found = crate::pagetable::translate(&sim.mm.frames, root, va, Access::Read);
        // As long as the program has not given the page up, it sees what the device writes.
        if found.is_ok_and(|found| found.gpa == pin.pfn().gpa()) {
            self.stamp += 1;
            sim.mm.frames.write(pin.pfn(), 0, self.stamp);
            self.words.insert(va, self.stamp);
        }
        sim.mm.phys.unpin(sim.cpu, pin);
    }

    async fn store(&mut self, sim: &Sim<'_>) {
        let Some(page) = self.some_page(sim) else {
            return;
        };
        for page in page..page + 1 + sim.below(12) {
            if !self.pages.contains_key(&page) {
                continue;
            }
            self.stamp += 1;
            let va = page * PAGE_SIZE + sim.below(WORDS) * 8;
            match touch(sim, &self.process, va, Access::Write, || {
                sim.mm.cpu_store(self.process.space, va, self.stamp)
            })
            .await
            {
                Ok(()) => {
                    assert!(
                        self.pages[&page].permits(Access::Write),
                        "{va:#x} can be written to"
                    );
                    self.words.insert(va, self.stamp);
                }
                Err(error) => self.check_refusal(sim, va, error),
            }
        }
    }

    pub(super) fn check_refusal(&self, sim: &Sim<'_>, va: u64, error: FaultError) {
        match error {
            FaultError::OutOfMemory(_) => {
                assert!(self.process.is_doomed(), "a program that waits gets memory");
            }
            FaultError::NoHugePage { .. } => count(&sim.seen.no_memory, 1),
            FaultError::Io { .. } => sim.io_error(sim.swap_failed.get()),
            FaultError::Protection { access, .. } => {
                assert!(!self.pages[&(va / PAGE_SIZE)].permits(access), "{error}");
            }
            FaultError::Poisoned { .. } => sim.touches_lost(&self.process),
            FaultError::NoArea { .. } | FaultError::BeyondEnd { .. } | FaultError::UnknownSpace(_) => {
                panic!("{error}")
            }
        }
    }

    /// Reads some of the pages that it has written to and may read, and a few others, and compares.
    async fn check(&mut self, sim: &Sim<'_>, pages: usize) {
        self.check_locked(sim);
        let written = self.words.keys().map(|va| va / PAGE_SIZE);
        let others = (0..4).filter_map(|_| self.some_page(sim));
        let mut readable: Vec<u64> = written.chain(others).collect();
        readable.retain(|page| self.pages[page].permits(Access::Read));
        readable.sort_unstable();
        readable.dedup();
        while readable.len() > pages {
            let at = usize::try_from(sim.below(readable.len() as u64)).unwrap();
            readable.swap_remove(at);
        }
        for page in readable {
            for word in 0..WORDS {
                let va = page * PAGE_SIZE + word * 8;
                let expected = self.words.get(&va).copied().unwrap_or(0);
                let found = loop {
                    match touch(sim, &self.process, va, Access::Read, || {
                        sim.mm.cpu_load(self.process.space, va)
                    })
                    .await
                    {
                        // The next try reads again, and this time the disk works.
                        Err(FaultError::Io { .. }) => {
                            sim.io_error(sim.swap_failed.get());
                            sim.disk.mend();
                        }
                        outcome => break outcome,
                    }
                };
                match found {
                    Ok(found) => assert_eq!(
                        found,
                        expected,
                        "{va:#x} of space {}",
                        self.process.space.number()
                    ),
                    Err(FaultError::OutOfMemory(_)) if self.process.is_doomed() => return,
                    Err(FaultError::Poisoned { .. }) => sim.touches_lost(&self.process),
                    Err(error) => panic!("{error}"),
                }
                count(&sim.seen.words_checked, 1);
            }
        }
    }

    async fn end(mut self, sim: &Sim<'_>) {
        destroy(sim, self.process.space).await;
        for (pin, _) in self.pins.drain(..) {
            sim.mm.phys.unpin(sim.cpu, pin);
        }
        self.buffers.release(sim);
        sim.end_process(&self.process);
    }
}

/// Takes an address space down, once no page of it is on the move.
async fn destroy(sim: &Sim<'_>, space: SpaceId) {
    while let Err(error) = sim.mm.destroy_space(sim.cpu, space) {
        assert_eq!(error, SpaceError::Migrating(space));
        sim.mm.until_settled(space).await;
    }
    sim.unborn_losers.borrow_mut().retain(|loser| *loser != space);
}

/// Repeats an access, with the faults it takes. It finds no memory only if the program is to end.
pub(super) async fn touch<T, E>(
    sim: &Sim<'_>,
    process: &Process,
    va: u64,
    access: Access,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, FaultError> {
    let fault = || match sim.with_failures(|| sim.mm.fault(sim.cpu, process.space, va, access)) {
        Err(FaultError::OutOfMemory(gfp)) => Err(gfp),
        outcome => Ok(outcome),
    };
    let doomed = |Doomed| FaultError::OutOfMemory(Gfp::USER);
    loop {
        if let Ok(value) = attempt() {
            return Ok(value);
        }
        match sim.until_memory(process, fault).await.map_err(doomed)?? {
            FaultOutcome::Locked(page) => {
                count(&sim.seen.waits, 1);
                let wait = sim.mm.until_unlocked(page);
                process.interruptible(wait).await.map_err(doomed)?;
            }
            FaultOutcome::NeedsBlock(place) => {
                let found = sim.find_block(process, place).await.map_err(doomed)?;
                found.map_err(|_| FaultError::Io { va })?;
            }
            _ if access == Access::Write && sim.mm.is_too_dirty() => {
                let wait = sim.mm.until_may_dirty();
                process.interruptible(wait).await.map_err(doomed)?;
            }
            _ if sim.one_in(8) => pause().await,
            _ => {}
        }
    }
}

/// Repeats a change of areas until no page of the address space is on the move; whether it was made.
pub(super) async fn settled(
    sim: &Sim<'_>,
    space: SpaceId,
    mut change: impl FnMut() -> Result<(), MmapError>,
) -> bool {
    loop {
        match change() {
            Ok(()) => return true,
            Err(MmapError::Migrating(_)) => {
                count(&sim.seen.waits, 1);
                sim.mm.until_settled(space).await;
            }
            Err(MmapError::NoMemory | MmapError::Pinned { .. } | MmapError::LockLimit { .. }) => {
                return false;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
