//! Pins for the time of a transfer: direct I/O.
//!
//! Who empties a block waits for the end of those on its pages. That would never come if one transfer after the other pinned the same page, so none is pinned
//! on a block that is about to leave: such a page moves first, and where it cannot, because transfers that began before are at it, the next
//! one waits for them too. Nobody waits with a page pinned: all pages of a transfer are pinned in one go, or none is.

use alloc::vec::Vec;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::gfp::Gfp;
use crate::migrate::BatchEnd;
use crate::mm::{CopyError, FaultError, Mm, PageWait};
use crate::phys::{OnLeaving, Pin, PinError, PinRequest, PinTerm, PinnedBy};

/// How often pages are moved, and found on a block that is about to leave again, before they are pinned there: huge pages that are split on
/// their way come up a second time, and who empties the block may be at them too.
const MOST_ROUNDS: u32 = 8;

/// What came of an attempt to pin.
enum Attempt {
    Pinned(Vec<Pin>),
    /// Nothing is pinned: a page is on a block that is about to leave.
    Leaving,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Pins the page at an address for a transfer: see [`Mm::pin_user_pages`].
    ///
    /// # Errors
    /// As there.
    pub fn pin_user(&self, cpu: &Cpu, id: SpaceId, va: u64, holder: &'static str) -> Result<Pin, CopyError> {
        let pins = self.pin_user_pages(cpu, id, &[va], holder)?;
        let [pin] = pins.try_into().expect("one for each address");
        Ok(pin)
    }

    /// Pins the pages at some addresses for a transfer, in that order; `holder` is what error messages name. Each becomes the program's own
    /// first: what its holder puts there the program sees, whatever forks come. Pages of blocks that are about to leave move first, as far as they can.
    ///
    /// Who waits for a page ([`CopyError::Locked`]) must not have pinned any: it may be these that it waits for.
    ///
    /// # Errors
    /// Where the program's own store would fail, or a page is just being moved, or is awaited by a block that is about to leave. Nothing is pinned then.
    pub fn pin_user_pages(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        addresses: &[u64],
        holder: &'static str,
    ) -> Result<Vec<Pin>, CopyError> {
        let mut request = PinRequest {
            by: PinnedBy {
                holder,
                term: PinTerm::Transfer,
            },
            whose: Some(id),
            on_leaving: OnLeaving::MoveFirst,
        };
        let mut rounds = 0;
        loop {
            if let Attempt::Pinned(pins) = self.try_pin_pages(cpu, id, addresses, &request)? {
                return Ok(pins);
            }
            let is_leaving = |head| self.phys.is_leaving(head);
            let found = self.find_misplaced(cpu, id, addresses.iter().copied(), is_leaving)?;
            let (report, moved_pages) = self.move_found(cpu, found, |order| {
                self.phys.alloc_pages(cpu, Gfp::SPARE, order).ok()
            });
            self.phys.counts.transfer_moved.add(moved_pages.into());
            rounds += 1;
            if report.end == BatchEnd::NoMemory || rounds >= MOST_ROUNDS {
                request.on_leaving = OnLeaving::Pin;
            }
        }
    }

    fn try_pin_pages(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        addresses: &[u64],
        request: &PinRequest,
    ) -> Result<Attempt, CopyError> {
        let mut pins: Vec<Pin> = Vec::with_capacity(addresses.len());
        let mut outcome = Ok(());
        for &va in addresses {
            let looked = self.with_own_page(cpu, id, va, |pfn| {
                outcome = match self.phys.pin_for(pfn, request) {
                    Ok(pin) => {
                        pins.push(pin);
                        Ok(())
                    }
                    Err(error) => Err((va, error)),
                };
            });
            if looked.is_err() || outcome.is_err() {
                pins.into_iter().for_each(|pin| self.phys.unpin(cpu, pin));
                looked?;
                pins = Vec::new();
                break;
            }
        }
        match outcome {
            Ok(()) => Ok(Attempt::Pinned(pins)),
            Err((_, PinError::Leaving(_))) => Ok(Attempt::Leaving),
            Err((va, error)) => Err(self.not_pinned(va, error)),
        }
    }

    /// Why the page at an address was not pinned, as a copy there would say it.
    pub(super) fn not_pinned(&self, va: u64, error: PinError) -> CopyError {
        match error {
            PinError::Migrating(pfn) => {
                let head = self.phys.table.head_of(pfn).unwrap_or(pfn);
                let page = PageWait::lock(head);
                CopyError::Locked { va, page }
            }
            PinError::Leaving(head) | PinError::Awaited(head) => {
                let page = PageWait::pins(head);
                CopyError::Locked { va, page }
            }
            PinError::NotAnonymous(_) => {
                let error = FaultError::NoArea { va };
                CopyError::Fault { va, error }
            }
        }
    }
}
