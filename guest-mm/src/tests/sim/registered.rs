//! Buffers that programs register for transfers: pages that are pinned for as long as the program likes. None of them is ever on a block that can be
//! taken away, and whatever is emptied around them, each stays where it is as long as the program has it there.

use std::vec::Vec;

use super::program::Program;
use super::{Sim, count};
use crate::mm::{CopyError, FaultError, LongtermError};
use crate::pagetable::{VaRange, translate};
use crate::phys::Pin;
use crate::{Access, Frames, PAGE_SIZE, ZoneKind};

/// Who has the pins.
pub(super) const HOLDER: &str = "registered buffer";
/// Most buffers of a program, and most pages of each.
const MOST: usize = 3;
const MOST_PAGES: u64 = 8;
/// Which word of a page transfers write to.
const WORD: usize = 1;

/// A page of a buffer.
struct Registered {
    pin: Pin,
    page: u64,
    /// The program still has it there.
    is_kept: bool,
}

/// All of a program.
#[derive(Default)]
pub(super) struct Buffers(Vec<Vec<Registered>>);

impl Buffers {
    /// Pages are not the program's any more: whoever has registered them keeps them.
    pub(super) fn forget(&mut self, is_gone: impl Fn(u64) -> bool) {
        let all = self.0.iter_mut().flatten();
        all.filter(|registered| is_gone(registered.page))
            .for_each(|registered| registered.is_kept = false);
    }

    /// Nothing is registered any more.
    pub(super) fn release(&mut self, sim: &Sim<'_>) {
        for registered in self.0.drain(..).flatten() {
            sim.mm.phys.unpin(sim.cpu, registered.pin);
        }
    }
}

impl Program {
    /// One call that has to do with buffers.
    pub(super) fn use_buffers(&mut self, sim: &Sim<'_>) {
        match sim.below(6) {
            0..2 if self.buffers.0.len() < MOST => self.register(sim),
            0..2 => self.unregister(sim),
            _ => self.transfer(sim),
        }
    }

    fn register(&mut self, sim: &Sim<'_>) {
        let Some(first) = self.some_page(sim) else { return };
        let last = first + 1 + sim.below(MOST_PAGES);
        let is_mine = |page: &u64| self.pages.contains_key(page);
        let pages: Vec<u64> = (first..last).take_while(is_mine).collect();
        let Some(range) = VaRange::new(first * PAGE_SIZE, pages.len() as u64 * PAGE_SIZE) else {
            return;
        };
        let space = self.process.space;
        let pin = || sim.mm.pin_user_longterm(sim.cpu, space, range, HOLDER);
        match sim.with_failures(pin) {
            Ok(pins) => {
                assert_eq!(pins.len(), pages.len());
                let registered = |(pin, page)| Registered {
                    pin,
                    page,
                    is_kept: true,
                };
                let buffer = pins.into_iter().zip(pages).map(registered).collect();
                self.buffers.0.push(buffer);
                self.check_buffers(sim);
                count(&sim.seen.registered, 1);
            }
            Err(error) => {
                count(&sim.seen.register_refusals, 1);
                self.check_refused(sim, (range, &pages), error);
            }
        }
    }

    /// Whether there was a reason for a refusal.
    fn check_refused(&self, sim: &Sim<'_>, (range, pages): (VaRange, &[u64]), error: LongtermError) {
        match error {
            LongtermError::Busy(_)
            | LongtermError::NoOtherMemory
            | LongtermError::Copy(
                CopyError::Locked { .. }
                | CopyError::Fault {
                    error: FaultError::OutOfMemory(_),
                    ..
                },
            ) => {}
            LongtermError::Copy(CopyError::Fault {
                error: error @ FaultError::Protection { access, .. },
                ..
            }) => {
                let is_permitted = |page: &u64| self.pages[page].permits(access);
                assert!(!pages.iter().all(is_permitted), "{error}");
            }
            LongtermError::Copy(CopyError::Fault { error, .. }) => {
                self.check_refusal(sim, range.start(), error);
            }
            LongtermError::Copy(error @ CopyError::NeedsBlock { .. }) => panic!("{error}"),
        }
    }

    /// Each page is the one that was pinned, and on no block that can be taken away.
    pub(super) fn check_buffers(&self, sim: &Sim<'_>) {
        let root = sim.mm.space(self.process.space).unwrap().root();
        for Registered { pin, page, is_kept } in self.buffers.0.iter().flatten() {
            let zone = sim.mm.phys.zone_of(pin.pfn()).unwrap();
            assert_ne!(zone.kind(), ZoneKind::Movable, "{} is registered", pin.pfn());
            if *is_kept && self.pages[page].permits(Access::Read) {
                let found = translate(&sim.mm.frames, root, page * PAGE_SIZE, Access::Read);
                let found = found.map(|found| found.gpa);
                assert_eq!(found, Ok(pin.pfn().gpa()), "registered page {page:#x}");
            }
        }
    }

    /// A device writes to a buffer, which the program sees where it still has it.
    fn transfer(&mut self, sim: &Sim<'_>) {
        self.check_buffers(sim);
        for registered in self.buffers.0.iter().flatten() {
            self.stamp += 1;
            sim.mm.frames.write(registered.pin.pfn(), WORD, self.stamp);
            if registered.is_kept {
                let va = registered.page * PAGE_SIZE + WORD as u64 * 8;
                self.words.insert(va, self.stamp);
            }
        }
    }

    fn unregister(&mut self, sim: &Sim<'_>) {
        self.check_buffers(sim);
        let at = usize::try_from(sim.below(self.buffers.0.len().max(1) as u64)).unwrap();
        if at >= self.buffers.0.len() {
            return;
        }
        for registered in self.buffers.0.swap_remove(at) {
            sim.mm.phys.unpin(sim.cpu, registered.pin);
        }
    }
}
