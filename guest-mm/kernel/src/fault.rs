//! Page faults of programs: a fault is a future. It is done when the access can be tried again, which may take until
//! a page has moved or memory has come.

use crate::kernel::{Kernel, Memory};
use crate::machine::cpu::this_cpu;
use crate::process::Program;
use guest_kernel::sync::{Winner, race};
use guest_mm::mm::{CopyError, FaultError, FaultOutcome};
use guest_mm::{Access, Gfp, Order, SpaceId};

/// Page-fault error code (Intel SDM volume 3, 4.7): the access was a store, or an instruction fetch.
const ERROR_WRITE: u64 = 1 << 1;
const ERROR_FETCH: u64 = 1 << 4;

/// How long a program waits for memory before it is given up.
const PATIENCE_NS: u64 = 10_000_000_000;

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
            Err(FaultError::OutOfMemory) => None,
            outcome => Some(outcome),
        };
        match until_memory(kernel, program, fault).await {
            Some(Ok(FaultOutcome::Locked(page))) => program.wait_for(kernel.until_unlocked(page)).await,
            Some(outcome) => return outcome.map(|_| ()),
            None => return Err(FaultError::OutOfMemory),
        }
    }
}

/// Repeats a copy to or from the program's memory until it needs neither a moving page nor memory.
///
/// # Errors
/// If the program has no such memory.
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
                    error: FaultError::OutOfMemory,
                    ..
                },
            ) => {
                unserved = Some(error);
                None
            }
            outcome => Some(outcome),
        };
        let outcome = until_memory(kernel, program, attempt).await;
        match outcome.or(unserved.map(Err)) {
            Some(Err(CopyError::Locked { page, .. })) => program.wait_for(kernel.until_unlocked(page)).await,
            Some(outcome) => return outcome,
            // Without an outcome the last attempt found no memory, and is repeated.
            None => {}
        }
    }
}

/// Repeats `attempt` until it finds memory: after direct reclaim, and then whenever memory was freed and it is this
/// program's turn. `None` when its patience has ended.
async fn until_memory<T>(
    kernel: &'static Kernel,
    program: &Program,
    mut attempt: impl FnMut() -> Option<T>,
) -> Option<T> {
    if let Some(outcome) = attempt() {
        return Some(outcome);
    }
    let reclaiming = || {
        kernel.reclaim_now();
        attempt()
    };
    let memory = kernel.phys.until_memory(Gfp::USER, Order::ZERO, reclaiming);
    match program
        .wait_for(race(memory, kernel.timers().sleep(PATIENCE_NS)))
        .await
    {
        Winner::First(outcome) => Some(outcome),
        Winner::Second(()) => None,
    }
}
