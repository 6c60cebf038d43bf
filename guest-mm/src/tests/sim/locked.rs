//! Pages that a program has locked in memory: they are there, whatever becomes of the others.

use super::memory::Doomed;
use super::program::{Program, settled};
use super::{Sim, count};
use crate::PAGE_SIZE;
use crate::mm::{CopyError, FaultError};
use crate::pagetable::VaRange;

impl Program {
    /// Has some pages stay in memory, as the system call does.
    pub(super) async fn lock(&mut self, sim: &Sim<'_>) {
        let Some((page, pages)) = self.some_range(sim) else {
            return;
        };
        let (space, range) = (self.process.space, (page * PAGE_SIZE, pages * PAGE_SIZE));
        let limit = sim.mm.phys.memory_stats().total_pages / 16;
        let is_whole = (page..page + pages).all(|page| self.pages.contains_key(&page));
        if !is_whole || pages + self.locked.len() as u64 > limit {
            return;
        }
        let lock = || sim.with_failures(|| sim.mm.mlock(sim.cpu, space, range, limit));
        if !settled(sim, space, lock).await {
            return;
        }
        self.locked.extend(page..page + pages);
        if !self.bring_in(sim, VaRange::new(range.0, range.1).unwrap()).await {
            let unlock = || sim.mm.munlock(sim.cpu, space, range.0, range.1);
            settled(sim, space, unlock).await;
            self.locked.retain(|at| !(page..page + pages).contains(at));
            return;
        }
        sim.mm.mark_locked(space, VaRange::new(range.0, range.1).unwrap());
        count(&sim.seen.locked, u32::try_from(pages).unwrap());
    }

    /// Whether all pages of a range are in memory now.
    async fn bring_in(&self, sim: &Sim<'_>, range: VaRange) -> bool {
        let populate = || match sim.with_failures(|| sim.mm.populate(sim.cpu, self.process.space, range)) {
            Err(CopyError::Fault {
                error: FaultError::OutOfMemory(gfp),
                ..
            }) => Err(gfp),
            outcome => Ok(outcome),
        };
        loop {
            match sim.until_memory(&self.process, populate).await {
                Ok(Ok(())) => return true,
                Ok(Err(CopyError::Locked { page, .. })) => {
                    let wait = sim.mm.until_unlocked(page);
                    if self.process.interruptible(wait).await.is_err() {
                        return false;
                    }
                }
                Ok(Err(CopyError::Fault {
                    error: FaultError::Io { .. },
                    ..
                }))
                | Err(Doomed) => return false,
                Ok(Err(CopyError::Fault {
                    error: FaultError::Poisoned { .. },
                    ..
                })) => {
                    sim.touches_lost(&self.process);
                    return false;
                }
                Ok(Err(error)) => panic!("{error}"),
            }
        }
    }

    pub(super) async fn unlock(&mut self, sim: &Sim<'_>) {
        let Some((page, pages)) = self.some_range(sim) else {
            return;
        };
        let (va, len) = (page * PAGE_SIZE, pages * PAGE_SIZE);
        let unlock = || sim.with_failures(|| sim.mm.munlock(sim.cpu, self.process.space, va, len));
        if settled(sim, self.process.space, unlock).await {
            self.locked.retain(|at| !(page..page + pages).contains(at));
        }
    }

    /// What was locked is in memory: mapped, or just on the move.
    pub(super) fn check_locked(&self, sim: &Sim<'_>) {
        // What was locked in a frame that has failed is on the disk only, or lost.
        if self.process.has_met_failure.get() {
            return;
        }
        let space = sim.mm.space(self.process.space).unwrap();
        let space = space.lock();
        for page in &self.locked {
            let entry = space.table.find(&sim.mm.frames, page * PAGE_SIZE).entry;
            let is_there = !entry.is_empty() && entry.swap_slot().is_none();
            assert!(is_there, "locked page {page:#x} is {entry:?}");
        }
    }
}
