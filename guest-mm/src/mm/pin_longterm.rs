//! Pins that are kept for as long as somebody likes: buffers that a program has registered for transfers (Linux `FOLL_LONGTERM`, `mm/gup.c`).
//!
//! A page that is pinned cannot leave its block. One that is pinned for the time of a transfer is awaited by who empties the block; one that is pinned for
//! good would keep it for ever. So such a page is moved out of removable memory first, by *remap*, and pinned where nothing is ever taken away; if
//! there is no such memory the pin is refused.

use alloc::vec::Vec;
use core::fmt;

use guest_sync::Cpu;

use crate::blocks::InUse;
use crate::frames::{Frames, Mmu, SpaceId};
use crate::gfp::Gfp;
use crate::migrate::BatchEnd;
use crate::mm::{CopyError, Mm};
use crate::pagetable::VaRange;
use crate::pfn::{PAGE_SIZE, Pfn};
use crate::phys::{OnLeaving, Pin, PinRequest, PinTerm, PinnedBy};
use crate::zone::ZoneKind;

/// How often pages are moved, and found on removable memory again, before that counts as a failure: huge pages that are split on their way come
/// up a second time.
const MOST_ROUNDS: u32 = 8;

/// Why memory was not pinned for long. Nothing is pinned then; pages may have moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LongtermError {
    /// As for [`Mm::pin_user`].
    Copy(CopyError),
    /// A page cannot move just now: it is under I/O, pinned by another, or being changed. Later may work.
    Busy(Pfn),
    /// Outside of removable memory no frame is free for a page.
    NoOtherMemory,
}

impl fmt::Display for LongtermError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Copy(error) => error.fmt(f),
            Self::Busy(pfn) => write!(f, "{pfn} is in removable memory and busy"),
            Self::NoOtherMemory => f.write_str("there is no memory for it but what can be taken away"),
        }
    }
}

impl core::error::Error for LongtermError {}

impl From<CopyError> for LongtermError {
    fn from(error: CopyError) -> Self {
        Self::Copy(error)
    }
}

/// The addresses of a range's pages.
fn pages_of(range: VaRange) -> impl Iterator<Item = u64> {
    (0..range.nr_pages()).map(move |page| range.start() + page * PAGE_SIZE)
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Pins all pages of a range of a program's own memory for as long as the caller likes. Each becomes the program's own first, and is outside of
    /// removable memory ([`ZoneKind::Movable`]) then.
    ///
    /// # Errors
    /// See [`LongtermError`].
    pub fn pin_user_longterm(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        range: VaRange,
        holder: &'static str,
    ) -> Result<Vec<Pin>, LongtermError> {
        let mut rounds = 0;
        loop {
            let found = self.find_misplaced(cpu, id, pages_of(range), |head| self.is_removable(head))?;
            let last = found.last().map(|page| page.pfn);
            if last.is_some() {
                self.move_out_of_removable(cpu, found)?;
            }
            if let Some(pins) = self.pin_where_kept(cpu, id, range, holder)? {
                self.phys.counts.longterm_pinned.add(pins.len() as u64);
                return Ok(pins);
            }
            rounds += 1;
            if let Some(pfn) = last.filter(|_| rounds >= MOST_ROUNDS) {
                return Err(LongtermError::Busy(pfn));
            }
        }
    }

    /// Those pages at some addresses that are `misplaced`, each the program's own and held.
    pub(super) fn find_misplaced(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        addresses: impl Iterator<Item = u64>,
        misplaced: impl Fn(Pfn) -> bool,
    ) -> Result<Vec<InUse>, CopyError> {
        let mut found: Vec<InUse> = Vec::new();
        for va in addresses {
            let looked = self.with_own_page(cpu, id, va, |pfn| {
                let head = self.phys.table.head_of(pfn).unwrap_or(pfn);
                let is_known = found.last().is_some_and(|page| page.pfn == head);
                if misplaced(head) && !is_known {
                    found.push(self.phys.hold(head, self.mapped_page(head).order()));
                }
            });
            if let Err(error) = looked {
                found.into_iter().for_each(|page| self.phys.release(cpu, page));
                return Err(error);
            }
        }
        Ok(found)
    }

    /// Moves pages to where nothing is taken away; all of them, or those that stay are the error.
    fn move_out_of_removable(&self, cpu: &Cpu, found: Vec<InUse>) -> Result<(), LongtermError> {
        let (report, moved_pages) = self.move_found(cpu, found, |order| {
            self.phys.alloc_pages(cpu, Gfp::HIGHUSER, order).ok()
        });
        self.phys.counts.longterm_moved.add(moved_pages.into());
        match (report.end, report.refused.first()) {
            (BatchEnd::NoMemory, _) => Err(LongtermError::NoOtherMemory),
            (_, Some(refusal)) => Err(LongtermError::Busy(refusal.pfn)),
            (_, None) => Ok(()),
        }
    }

    /// Pins the pages of a range; `None`, and nothing is pinned, if one is on removable memory (again).
    fn pin_where_kept(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        range: VaRange,
        holder: &'static str,
    ) -> Result<Option<Vec<Pin>>, LongtermError> {
        let request = PinRequest {
            by: PinnedBy {
                holder,
                term: PinTerm::Longterm,
            },
            whose: Some(id),
            on_leaving: OnLeaving::Pin,
        };
        let mut pins = Vec::new();
        let mut outcome = Ok(true);
        for va in pages_of(range) {
            // The address space is locked from the look to the pin: the page cannot move meanwhile.
            let looked = self.with_own_page(cpu, id, va, |pfn| {
                outcome = match self.is_removable(pfn) {
                    true => Ok(false),
                    false => match self.phys.pin_for(pfn, &request) {
                        Ok(pin) => {
                            pins.push(pin);
                            Ok(true)
                        }
                        Err(error) => Err(self.not_pinned(va, error)),
                    },
                };
            });
            outcome = looked.and(outcome);
            if outcome != Ok(true) {
                break;
            }
        }
        if outcome == Ok(true) {
            return Ok(Some(pins));
        }
        pins.into_iter().for_each(|pin| self.phys.unpin(cpu, pin));
        outcome?;
        Ok(None)
    }

    fn is_removable(&self, pfn: Pfn) -> bool {
        self.phys
            .zone_of(pfn)
            .is_some_and(|zone| zone.kind() == ZoneKind::Movable)
    }
}
