//! Page faults of programs: a fault is a future. It is done when the access can be tried again, which may take until
//! a page has moved or memory has come.

use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::process::Program;
use guest_kernel::sync::race;
use guest_mm::mm::{CopyError, FaultError, FaultOutcome};
use guest_mm::{Access, SpaceId};

/// Page-fault error code (Intel SDM volume 3, 4.7): the access was a store, or an instruction fetch.
const ERROR_WRITE: u64 = 1 << 1;
const ERROR_FETCH: u64 = 1 << 4;

/// How long a program waits for memory before it is given up.
const PATIENCE_NS: u64 = 10_000_000_000;
/// How often it looks again even if nobody tells it about memory.
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
    let mut waiting = Waiting::default();
    loop {
        let seen = Seen::now(kernel);
        let outcome = kernel.mm.lock().fault(this_cpu(), space, address, access);
        match outcome {
            Ok(FaultOutcome::Migrating) => waiting.for_page(kernel, program, seen).await,
            Ok(_) => return Ok(()),
            Err(FaultError::OutOfMemory) if waiting.has_patience(kernel) => {
                waiting.for_memory(kernel, program, seen).await;
            }
            Err(error) => return Err(error),
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
    mut copy: impl FnMut(&mut crate::kernel::Memory) -> Result<T, CopyError>,
) -> Result<T, CopyError> {
    let mut waiting = Waiting::default();
    loop {
        let seen = Seen::now(kernel);
        let outcome = copy(&mut kernel.mm.lock());
        match outcome {
            Err(CopyError::Migrating { .. }) => waiting.for_page(kernel, program, seen).await,
            Err(CopyError::Fault {
                error: FaultError::OutOfMemory,
                ..
            }) if waiting.has_patience(kernel) => {
                waiting.for_memory(kernel, program, seen).await;
            }
            outcome => return outcome,
        }
    }
}

/// The signals as they were before the attempt, so that nothing is missed between attempt and wait.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    memory: u64,
    migrated: u64,
}

impl Seen {
    /// As they are now.
    pub(crate) fn now(kernel: &Kernel) -> Self {
        Self {
            memory: kernel.memory_came.count(),
            migrated: kernel.migrated.count(),
        }
    }
}

/// How long somebody has waited for memory.
#[derive(Default)]
pub(crate) struct Waiting {
    since: Option<u64>,
}

impl Waiting {
    /// Waits until a page has moved.
    pub(crate) async fn for_page(&self, kernel: &'static Kernel, program: &Program, seen: Seen) {
        program.wait_for(kernel.migrated.after(seen.migrated)).await;
    }

    async fn for_memory(&self, kernel: &'static Kernel, program: &Program, seen: Seen) {
        let again = kernel.timers().sleep(LOOK_AGAIN_NS);
        program
            .wait_for(race(kernel.memory_came.after(seen.memory), again))
            .await;
    }

    fn has_patience(&mut self, kernel: &Kernel) -> bool {
        let now = kernel.clock.now();
        now - *self.since.get_or_insert(now) < PATIENCE_NS
    }
}
