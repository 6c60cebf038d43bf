//! Fork and wait. A fork is a future: what it finds no memory for is reclaimed, and it goes on from there.

use super::{CONTEXT_CACHE, Doomed, Program, ProgramRef, State, begin};
use crate::fault;
use crate::kernel::{Kernel, Memory};
use crate::machine::cpu::this_cpu;
use crate::machine::nucleus::Context;
use core::sync::atomic::Ordering;
use guest_mm::mm::{ForkError, SpaceError};
use guest_mm::{Gfp, SpaceId};
use guest_programs::abi::{Error, KILLED};

/// Doubles a program: its child goes on from `context` with a result of 0. Returns the child's number.
///
/// # Errors
/// [`Error::Again`] when there can be no more programs, and [`Error::Interrupted`] when the parent is to end: memory is awaited, and the out-of-memory killer decides who
/// goes when there is none to be had.
pub(crate) async fn fork(
    kernel: &'static Kernel,
    parent: &Program,
    space: SpaceId,
    context: &Context,
) -> Result<u32, Error> {
    let child_space = fork_space(kernel, parent, space).await?;
    match start_child(kernel, parent, child_space, context).await {
        Ok(pid) => Ok(pid),
        Err(error) => {
            destroy(kernel, child_space).await;
            Err(error)
        }
    }
}

/// The child's address space.
async fn fork_space(kernel: &'static Kernel, parent: &Program, space: SpaceId) -> Result<SpaceId, Error> {
    let mut fork = step(kernel, parent, |mm| mm.begin_fork(this_cpu(), space)).await?;
    let whole = step(kernel, parent, |mm| mm.fork_on(this_cpu(), &mut fork)).await;
    if let Err(error) = whole {
        destroy(kernel, fork.child()).await;
        return Err(error);
    }
    Ok(fork.child())
}

/// Repeats a step of a fork until it finds memory, and no page of the parent is on the move.
async fn step<T>(
    kernel: &'static Kernel,
    parent: &Program,
    mut step: impl FnMut(&Memory) -> Result<T, ForkError>,
) -> Result<T, Error> {
    loop {
        let attempt = || match step(&kernel.mm()) {
            Err(ForkError::NoMemory) => None,
            outcome => Some(outcome),
        };
        // What it wants are page tables, and those are the kernel's.
        let outcome = fault::until_memory_for(kernel, parent, Gfp::KERNEL, attempt).await;
        match outcome.map_err(|Doomed| Error::Interrupted)? {
            Ok(done) => return Ok(done),
            Err(ForkError::Migrating(id)) => {
                let settled = parent.interruptible(kernel.until_settled(id)).await;
                settled.map_err(|Doomed| Error::Interrupted)?;
            }
            Err(ForkError::NoMemory | ForkError::UnknownSpace(_)) => return Err(Error::NoMemory),
        }
    }
}

/// The child itself, running. Its address space is the caller's still if that fails.
async fn start_child(
    kernel: &'static Kernel,
    parent: &Program,
    space: SpaceId,
    context: &Context,
) -> Result<u32, Error> {
    let root = kernel.mm().space(space).map_or(0, |space| space.root().gpa());
    let attempt = || {
        let context = CONTEXT_CACHE.store(context.for_child(root)).ok()?;
        let child = kernel
            .programs
            .register(kernel, parent.words.clone(), Some(parent));
        Some((child.ok()?, context))
    };
    let registered = fault::until_memory_for(kernel, parent, Gfp::KERNEL, attempt).await;
    let (child, context) = registered.map_err(|Doomed| Error::Interrupted)?;
    child.files.copy_from(&parent.files);
    if begin(kernel, &child, space, context) {
        return Ok(child.pid);
    }
    child.files.close_all(kernel.files.root()).await;
    kernel.programs.forget(&child);
    Err(Error::Again)
}

/// Takes down an address space in which nobody has run, once no page of it is on the move.
async fn destroy(kernel: &'static Kernel, space: SpaceId) {
    while let Err(SpaceError::Migrating(_)) = kernel.mm().destroy_space(this_cpu(), space) {
        kernel.until_settled(space).await;
    }
}

/// Waits until a child of a program has ended, and forgets it: its number is nobody's then.
///
/// # Errors
/// When the program has no such child, or is to end itself.
pub(crate) async fn wait(kernel: &'static Kernel, parent: &Program, pid: u64) -> Result<u64, Error> {
    let child: ProgramRef = kernel.programs.child(parent, pid).ok_or(Error::NoChild)?;
    loop {
        let seen = kernel.program_ended.count();
        let status = *child.status.lock();
        if status.has_ended() {
            kernel.programs.forget(&child);
            take_over(parent, &child);
            return Ok(match status.state {
                State::Exited(status) => status & u64::from(u32::MAX),
                _ => KILLED,
            });
        }
        let ended = parent.interruptible(kernel.program_ended.after(seen)).await;
        ended.map_err(|Doomed| Error::Interrupted)?;
    }
}

/// What a child did counts as its parent's (Linux `RUSAGE_CHILDREN`).
fn take_over(parent: &Program, child: &Program) {
    for (sum, count) in [
        (&parent.checks_ok, &child.checks_ok),
        (&parent.checks_failed, &child.checks_failed),
        (&parent.faults, &child.faults),
    ] {
        sum.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}
