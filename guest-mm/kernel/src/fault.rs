//! Page faults of programs: a fault is a future. It is done when the access can be tried again, which may take until
//! a page has moved or memory has come.

use crate::files;
use crate::kernel::{Kernel, Memory};
use crate::machine::cpu::this_cpu;
use crate::oom;
use crate::process::{Doomed, Program};
use guest_kernel::sync::{Winner, race};
use guest_mm::mm::{CopyError, FaultError, FaultOutcome};
use guest_mm::reclaim::oom::Patience;
use guest_mm::{Access, Gfp, Order, SpaceId};
use guest_sync::Cpu;

/// Page-fault error code (Intel SDM volume 3, 4.7): the access was a store, or an instruction fetch.
const ERROR_WRITE: u64 = 1 << 1;
const ERROR_FETCH: u64 = 1 << 4;

/// How long a program that has found nothing to reclaim waits for frees before it looks again.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// Serves the fault at `address`.
///
/// # Errors
/// Why the program cannot go on.
pub(crate) async fn serve(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    address: u64,
    error: u64,
) -> Result<(), FaultError> {
    let access = match error {
        error if error & ERROR_FETCH != 0 => Access::Execute,
        error if error & ERROR_WRITE != 0 => Access::Write,
        _ => Access::Read,
    };
    loop {
        let fault = || match kernel.mm().fault(this_cpu(), space, address, access) {
            Err(FaultError::OutOfMemory(gfp)) => Err(gfp),
            outcome => Ok(outcome),
        };
        match until_served(kernel, program, fault).await {
            Ok(Ok(FaultOutcome::Locked(page))) => {
                let waited = program.interruptible(kernel.until_unlocked(page)).await;
                if waited.is_err() {
                    return Err(FaultError::OutOfMemory(Gfp::USER));
                }
            }
            Ok(Ok(FaultOutcome::NeedsBlock(place))) => {
                let found = files::find_block(kernel, program, place).await;
                found.map_err(|_| FaultError::Io { va: address })?;
            }
            Ok(Ok(_)) => {
                let throttled = throttle(kernel, program, access).await;
                return throttled.map_err(|Doomed| FaultError::OutOfMemory(Gfp::USER));
            }
            Ok(Err(error)) => return Err(error),
            Err(Doomed) => return Err(FaultError::OutOfMemory(Gfp::USER)),
        }
    }
}

/// Whoever stores to pages of files waits when too many are dirty, as one who writes to files does.
///
/// # Errors
/// It is to end.
async fn throttle(kernel: &'static Kernel, program: &Program, access: Access) -> Result<(), Doomed> {
    if access == Access::Write && kernel.memory().is_too_dirty() {
        let less_dirty = files::steps(kernel.memory().until_may_dirty());
        program.interruptible(less_dirty).await?;
    }
    Ok(())
}

/// Repeats a copy to or from the program's memory until it needs neither a moving page nor memory.
///
/// # Errors
/// If the program has no such memory, or is to end.
pub(crate) async fn copy<T>(
    kernel: &'static Kernel,
    program: &Program,
    mut copy: impl FnMut(&Memory) -> Result<T, CopyError>,
) -> Result<T, CopyError> {
    loop {
        let mut unserved = None;
        let attempt = || match copy(&kernel.mm()) {
            Err(
                error @ CopyError::Fault {
                    error: FaultError::OutOfMemory(gfp),
                    ..
                },
            ) => {
                unserved = Some(error);
                Err(gfp)
            }
            outcome => Ok(outcome),
        };
        let outcome = until_served(kernel, program, attempt).await;
        match outcome.ok().or(unserved.map(Err)) {
            Some(Err(CopyError::Locked { va, page })) => {
                let waited = program.interruptible(kernel.until_unlocked(page)).await;
                if waited.is_err() {
                    let error = FaultError::OutOfMemory(Gfp::USER);
                    return Err(CopyError::Fault { va, error });
                }
            }
            Some(Err(CopyError::NeedsBlock { va, place })) => {
                let error = FaultError::Io { va };
                let found = files::find_block(kernel, program, place).await;
                found.map_err(|_| CopyError::Fault { va, error })?;
            }
            Some(outcome) => return outcome,
            // Without an outcome the last attempt found no memory, and is repeated.
            None => {}
        }
    }
}

/// Repeats `attempt`, which asks for frames with `gfp`, until it finds memory: see [`until_served`].
///
/// # Errors
/// The program itself is to end.
pub(crate) async fn until_memory_for<T>(
    kernel: &'static Kernel,
    program: &Program,
    gfp: Gfp,
    mut attempt: impl FnMut() -> Option<T>,
) -> Result<T, Doomed> {
    until_served(kernel, program, || attempt().ok_or(gfp)).await
}

/// Repeats `attempt`, which says which request has found nothing, until it finds memory: after direct reclaim where such frames can be, and then whenever
/// one was freed and it is this program's turn. When there is nothing to be reclaimed for anybody for a second, a program has to end ([`oom`]).
///
/// # Errors
/// The program itself is to end.
pub(crate) async fn until_served<T>(
    kernel: &'static Kernel,
    program: &Program,
    mut attempt: impl FnMut() -> Result<T, Gfp>,
) -> Result<T, Doomed> {
    let mut gfp = match attempt() {
        Ok(outcome) => return Ok(outcome),
        Err(gfp) => gfp,
    };
    let here = this_cpu as fn() -> &'static Cpu;
    let mut patience = Patience::default();
    loop {
        let reclaim = kernel.reclaim.try_to_free_pages(here, gfp, Order::ZERO);
        let reclaimed = program.interruptible(reclaim).await?;
        match attempt() {
            Ok(outcome) => return Ok(outcome),
            Err(now) => gfp = now,
        }
        let mut next = gfp;
        let look = || attempt().map_err(|gfp| next = gfp).ok();
        let turn = kernel.phys.until_memory(gfp, Order::ZERO, look);
        let pause = kernel.timers().sleep(LOOK_AGAIN_NS);
        if let Winner::First(outcome) = program.interruptible(race(turn, pause)).await? {
            return Ok(outcome);
        }
        gfp = next;
        if patience.is_over(reclaimed) {
            oom::out_of_memory(kernel);
        }
    }
}
