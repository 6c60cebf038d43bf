//! Reserved huge pages: a pool that grows and shrinks, and areas of programs that have their pages from it.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::executor::pause;
use super::memory::Process;
use super::program::{WORDS, settled, touch};
use super::{Sim, count};
use crate::mm::{FaultError, MmapError, Reserve};
use crate::tests::machine::{MIB, RW};
use crate::{Access, Backing, MapRequest, Place};

const HUGE: u64 = 2 * MIB;

/// One area.
#[derive(Clone)]
struct Area {
    va: u64,
    nr: u64,
    /// What was stored, by address; everything else is zero.
    words: BTreeMap<u64, u64>,
    /// A fork has shared it: whoever stores to it may find no page for a copy.
    is_forked: bool,
}

/// All of them.
#[derive(Default)]
pub(super) struct HugeAreas(Vec<Area>);

impl HugeAreas {
    /// What a child has.
    pub(super) fn fork(&mut self) -> Self {
        self.0.iter_mut().for_each(|area| area.is_forked = true);
        Self(self.0.clone())
    }

    pub(super) async fn turn(&mut self, sim: &Sim<'_>, process: &Process, stamp: u64) {
        match sim.below(10) {
            _ if self.0.is_empty() => self.map(sim, process),
            0 => self.map(sim, process),
            1 => self.unmap(sim, process).await,
            2..7 => self.store(sim, process, stamp).await,
            _ => self.check(sim, process).await,
        }
    }

    /// All of its pages are reserved, or it is not mapped.
    fn map(&mut self, sim: &Sim<'_>, process: &Process) {
        let nr = 1 + sim.below(2);
        let request = MapRequest {
            len: nr * HUGE,
            place: Place::Anywhere,
            prot: RW,
            backing: Backing::HugeTlb(Reserve::Held),
        };
        let pool = sim.mm.phys.huge_pool();
        match sim.mm.mmap(process.space, &request) {
            Ok(va) => {
                assert!(pool.free - pool.reserved >= nr, "{nr} are promised of {pool:?}");
                self.0.push(Area {
                    va,
                    nr,
                    words: BTreeMap::new(),
                    is_forked: false,
                });
            }
            Err(error) => {
                assert!(
                    error == MmapError::NoHugePages { wanted: nr } && pool.free - pool.reserved < nr,
                    "{error} of {pool:?}"
                );
            }
        }
    }

    fn some(&mut self, sim: &Sim<'_>) -> Option<&mut Area> {
        let at = usize::try_from(sim.below(self.0.len().max(1) as u64)).unwrap();
        self.0.get_mut(at)
    }

    async fn unmap(&mut self, sim: &Sim<'_>, process: &Process) {
        let Some(&mut Area { va, nr, .. }) = self.some(sim) else {
            return;
        };
        let unmap = || sim.with_failures(|| sim.mm.munmap(sim.cpu, process.space, va, nr * HUGE));
        if settled(sim, process.space, unmap).await {
            self.0.retain(|area| area.va != va);
        }
    }

    async fn store(&mut self, sim: &Sim<'_>, process: &Process, stamp: u64) {
        let Some(area) = self.some(sim) else { return };
        let page = sim.below(area.nr * HUGE / 4096);
        let va = area.va + page * 4096 + sim.below(WORDS) * 8;
        let stored = touch(sim, process, va, Access::Write, || {
            sim.mm.cpu_store(process.space, va, stamp)
        });
        match stored.await {
            Ok(()) => {
                area.words.insert(va, stamp);
                count(&sim.seen.reserved_pages, 1);
            }
            Err(error) => area.check_refusal(sim, process, error),
        }
    }

    /// Reads everything that was stored, and a word that was not.
    pub(super) async fn check(&mut self, sim: &Sim<'_>, process: &Process) {
        for area in &self.0 {
            let other = area.va + sim.below(area.nr * HUGE / 8) * 8;
            let words: Vec<u64> = area.words.keys().copied().chain([other]).collect();
            for va in words {
                let loaded = touch(sim, process, va, Access::Read, || {
                    sim.mm.cpu_load(process.space, va)
                });
                match loaded.await {
                    Ok(found) => assert_eq!(
                        found,
                        area.words.get(&va).copied().unwrap_or(0),
                        "{va:#x} of space {}",
                        process.space.number()
                    ),
                    Err(error) => area.check_refusal(sim, process, error),
                }
                count(&sim.seen.words_checked, 1);
            }
        }
    }
}

impl Area {
    fn check_refusal(&self, sim: &Sim<'_>, process: &Process, error: FaultError) {
        match error {
            FaultError::OutOfMemory(_) => assert!(process.is_doomed(), "a program that waits gets memory"),
            FaultError::NoHugePage { .. } => assert!(self.is_forked, "a reserved page is missing: {error}"),
            FaultError::Poisoned { .. } => sim.touches_lost(process),
            error => panic!("{error}"),
        }
    }
}

/// Changes the size of the pool now and then.
pub(super) async fn live(sim: &Sim<'_>) {
    while !sim.is_ending.get() {
        let wanted = if sim.one_in(4) { 0 } else { 1 + sim.below(2) };
        let before = sim.mm.phys.huge_pool();
        let total = sim.with_failures(|| sim.mm.set_nr_huge_pages(sim.cpu, wanted));
        let kept = before.total - (before.free - before.reserved);
        assert!(
            total >= kept && total <= wanted.max(kept),
            "{total} of {wanted}, {before:?} before"
        );
        for _ in 0..1 + sim.below(90) {
            pause().await;
        }
    }
}
