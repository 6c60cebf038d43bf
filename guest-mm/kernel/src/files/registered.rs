//! Buffers that programs have registered: pinned for as long as they like, and therefore outside of removable memory
//! (`guest_mm::mm::LongtermError`). They are given up when the program ends.

use crate::fault;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::process::{Doomed, Program};
use crate::syscall::copy_error;
use alloc::vec::Vec;
use guest_mm::mm::{CopyError, LongtermError};
use guest_mm::phys::Pin;
use guest_mm::{Gfp, Order, PAGE_SIZE, Pfn, SpaceId, VaRange, ZoneKind};
use guest_programs::abi::Error;
use guest_sync::{Cpu, SpinLock};

/// Who is at the pages, for those who find them in the way.
pub(crate) const HOLDER: &str = "a registered buffer";

/// One program may keep this part of the memory that is not removable.
const SHARE: u64 = 4;
/// How long pages that are busy are awaited, and how often.
const PAUSE_NS: u64 = 1_000_000;
const MOST_PAUSES: u32 = 2000;
/// How often memory is reclaimed for the pages to go to.
const MOST_RECLAIMS: u32 = 8;

/// A range of a program's pages, and where they are.
struct Buffer {
    start: u64,
    pins: Vec<Pin>,
}

/// A program's buffers.
#[derive(Default)]
pub(crate) struct Registered {
    /// Nothing but the heap is locked under this lock.
    buffers: SpinLock<Vec<Buffer>>,
}

impl Registered {
    /// Where the page at an address is, if it is in a buffer.
    pub(super) fn frame_at(&self, va: u64) -> Option<Pfn> {
        let buffers = self.buffers.lock();
        buffers.iter().find_map(|buffer| {
            let page = va.checked_sub(buffer.start)? / PAGE_SIZE;
            let pin = buffer.pins.get(usize::try_from(page).ok()?)?;
            Some(pin.pfn())
        })
    }

    fn nr_pages(&self) -> u64 {
        let buffers = self.buffers.lock();
        buffers.iter().map(|buffer| buffer.pins.len() as u64).sum()
    }

    /// Gives all of them up.
    pub(super) fn release(&self, kernel: &Kernel) {
        let buffers = core::mem::take(&mut *self.buffers.lock());
        for pin in buffers.into_iter().flat_map(|buffer| buffer.pins) {
            kernel.phys.unpin(this_cpu(), pin);
        }
    }
}

/// Pages that can be pinned for long at all: those in zones from which nothing is taken away.
fn keepable_pages(kernel: &Kernel) -> u64 {
    let zones = kernel.phys.populated_zones();
    let kept = zones.filter(|zone| zone.kind() != ZoneKind::Movable);
    kept.map(|zone| zone.counters().managed_pages).sum()
}

/// Registers a range of a program's own memory.
///
/// # Errors
/// [`Error::NoMemory`] if it is too much, or there is no room outside of removable memory; [`Error::Again`] while somebody else has its pages.
pub(super) async fn register(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (start, len): (u64, u64),
) -> Result<u64, Error> {
    let range = VaRange::new(start, len).ok_or(Error::Invalid)?;
    let allowed = keepable_pages(kernel) / SHARE;
    if program.registered.nr_pages() + range.nr_pages() > allowed {
        return Err(Error::NoMemory);
    }
    let (mut pauses, mut reclaims) = (0, 0);
    loop {
        // What it is copied with: a fault on the way, or a page on the move, is waited for there.
        let pinned = fault::copy(kernel, program, |mm| {
            match mm.pin_user_longterm(this_cpu(), space, range, HOLDER) {
                Ok(pins) => Ok(Ok(pins)),
                Err(LongtermError::Copy(error)) => Err(error),
                Err(other) => Ok(Err(other)),
            }
        });
        match pinned.await.map_err(|error: CopyError| copy_error(error))? {
            Ok(pins) => {
                program.registered.buffers.lock().push(Buffer { start, pins });
                return Ok(0);
            }
            Err(LongtermError::NoOtherMemory) if reclaims < MOST_RECLAIMS => {
                reclaims += 1;
                let here = this_cpu as fn() -> &'static Cpu;
                let reclaim = kernel.reclaim.try_to_free_pages(here, Gfp::HIGHUSER, Order::ZERO);
                let reclaimed = program.interruptible(reclaim).await;
                reclaimed.map_err(|Doomed| Error::Interrupted)?;
            }
            Err(LongtermError::Busy(_)) if pauses < MOST_PAUSES => {
                pauses += 1;
                let pause = program.interruptible(kernel.timers().sleep(PAUSE_NS)).await;
                pause.map_err(|Doomed| Error::Interrupted)?;
            }
            Err(LongtermError::Busy(_)) => return Err(Error::Again),
            Err(_) => return Err(Error::NoMemory),
        }
    }
}
