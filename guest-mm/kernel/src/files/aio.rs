//! Reads that go on while the program does, and say in its event ring how they ended (`guest_programs::aio`).
//!
//! Each read is a task of its own on the program's CPU. A program that ends waits for those that it has begun: they write to its memory.

use super::call;
use super::descriptors::{OpenFile, OpenShm, close};
use super::registered::register;
use super::ring::Ring;
use super::shm;
use super::{RootFs, steps};
use crate::kernel::Kernel;
use crate::process::{Doomed, Program, ProgramRef};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_kernel::sync::Signal;
use guest_mm::{Pfn, SpaceId};
use guest_programs::abi::Error;
use guest_programs::aio::{AioCall, Event, MOST_EVENTS};
use guest_sync::SpinLock;

use crate::machine::nucleus::Context;

/// Reads that were begun, since boot.
static BEGUN: AtomicU64 = AtomicU64::new(0);
/// Events that were put into rings.
static POSTED: AtomicU64 = AtomicU64::new(0);

/// What a program has of this.
#[derive(Default)]
pub(crate) struct Aio {
    /// Only frames of the ring are written to under this lock.
    state: SpinLock<State>,
    /// An event came.
    came: Signal,
}

#[derive(Default)]
struct State {
    ring: Option<Ring>,
    /// Reads that were begun.
    begun: u64,
    /// Events that came.
    posted: u64,
}

/// What is read from.
enum Source {
    Disk(&'static RootFs, Arc<OpenFile>),
    Shm(Arc<OpenShm>),
}

impl Aio {
    /// Whether a frame is one of the program's ring.
    pub(crate) fn has(&self, pfn: Pfn) -> bool {
        let state = self.state.lock();
        state.ring.as_ref().is_some_and(|ring| ring.has(pfn))
    }

    /// One more read, if there will be room for its event; its number.
    fn begin(&self, kernel: &Kernel) -> Result<u64, Error> {
        let mut state = self.state.lock();
        let ring = state.ring.as_ref().ok_or(Error::Invalid)?;
        if state.begun - ring.taken(kernel, state.posted) >= ring.room() {
            return Err(Error::Again);
        }
        state.begun += 1;
        BEGUN.fetch_add(1, Relaxed);
        Ok(state.begun - 1)
    }

    /// A read has ended. This waits for nothing and takes no fault: the ring is there.
    fn end(&self, kernel: &Kernel, event: Event) {
        {
            let mut state = self.state.lock();
            let nth = state.posted;
            state.posted += 1;
            if let Some(ring) = &state.ring {
                ring.post(kernel, nth, event);
            }
        }
        POSTED.fetch_add(1, Relaxed);
        self.came.raise();
    }

    /// Sleeps until so many events have come.
    async fn until(&self, events: u64) {
        loop {
            let seen = self.came.count();
            if self.state.lock().posted >= events {
                return;
            }
            self.came.after(seen).await;
        }
    }

    fn is_busy(&self) -> bool {
        let state = self.state.lock();
        state.begun > state.posted
    }

    /// Sleeps until nothing is under way.
    async fn until_idle(&self) {
        let begun = self.state.lock().begun;
        self.until(begun).await;
    }
}

/// Carries out a call.
///
/// # Errors
/// Why it was not.
pub(super) async fn serve(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (call, context): (AioCall, &Context),
) -> Result<u64, Error> {
    let (first, second, third, fourth) = (context.rdi, context.rsi, context.rdx, context.r10);
    match call {
        AioCall::SetUp => set_up(kernel, program, space, first).await,
        AioCall::Read => read(kernel, program, space, (first, (second, third), fourth)),
        AioCall::Wait => {
            let begun = program.aio.state.lock().begun;
            let waited = program.interruptible(program.aio.until(first.min(begun))).await;
            waited.map(|()| 0).map_err(|Doomed| Error::Interrupted)
        }
        AioCall::RegisterBuffer => register(kernel, program, space, (first, second)).await,
        AioCall::UnregisterBuffers => {
            program.wait_for(program.aio.until_idle()).await;
            program.registered.release(kernel);
            Ok(0)
        }
    }
}

async fn set_up(kernel: &'static Kernel, program: &Program, space: SpaceId, room: u64) -> Result<u64, Error> {
    if !room.is_power_of_two() || room > MOST_EVENTS || program.aio.state.lock().ring.is_some() {
        return Err(Error::Invalid);
    }
    let (ring, address) = Ring::map(kernel, program, (space, room)).await?;
    program.aio.state.lock().ring = Some(ring);
    Ok(address)
}

/// Begins to read; the number of the read.
fn read(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (descriptor, memory, offset): (u64, (u64, u64), u64),
) -> Result<u64, Error> {
    let source = match program.files.find_shm(descriptor) {
        Some(open) => Source::Shm(open),
        None => {
            let open = program.files.find(descriptor)?;
            Source::Disk(kernel.files.root().ok_or(Error::NotFound)?, open)
        }
    };
    let this = kernel.programs.find(program.pid).ok_or(Error::Invalid)?;
    let number = program.aio.begin(kernel)?;
    let begun = Begun {
        kernel,
        program: this,
        number,
        result: Err(Error::NoMemory),
    };
    let task = carry_out(begun, (space, source), (memory, offset));
    kernel.start_task(program.cpu, steps(task));
    Ok(number)
}

/// A read that was begun: its event comes when this goes, whatever happens.
struct Begun {
    kernel: &'static Kernel,
    program: ProgramRef,
    number: u64,
    result: Result<u64, Error>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let event = Event {
            number: self.number,
            result: self.result.unwrap_or_else(Error::to_result),
        };
        self.program.aio.end(self.kernel, event);
    }
}

async fn carry_out(
    mut begun: Begun,
    (space, source): (SpaceId, Source),
    (memory, offset): ((u64, u64), u64),
) {
    let (kernel, program) = (begun.kernel, &begun.program);
    let result = match source {
        Source::Shm(open) => {
            let caller = shm::Caller {
                kernel,
                program,
                space,
            };
            caller.read(&open, memory, offset).await
        }
        Source::Disk(root, open) => {
            let read = call::read_for(kernel, root, (program, space), &open, (memory, offset)).await;
            close(root, open).await;
            read
        }
    };
    begun.result = result;
}

/// A program has ended: what it has begun ends first, and then its memory is nobody's but its own.
pub(crate) async fn end(kernel: &'static Kernel, program: &Program) {
    if program.aio.is_busy() {
        // Whatever can be given up is.
        program.doom();
        program.aio.until_idle().await;
    }
    program.registered.release(kernel);
    let ring = program.aio.state.lock().ring.take();
    drop(ring);
}

/// The counters, as lines of `/proc/vmstat`.
pub(crate) fn vmstat(out: &mut alloc::string::String) -> fmt::Result {
    writeln!(out, "aio_reads {}", BEGUN.load(Relaxed))?;
    writeln!(out, "aio_events {}", POSTED.load(Relaxed))
}

/// The programs whose ring a frame is of.
pub(crate) fn owners(kernel: &Kernel, pfn: Pfn) -> Vec<u32> {
    let programs = kernel.programs.lock();
    let owners = programs.iter().filter(|program| program.aio.has(pfn));
    owners.map(|program| program.pid).collect()
}
