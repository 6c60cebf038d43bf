//! Disks on the host: what a guest's block device reads and writes, a file or a block device.
//!
//! [`HostDisk`] is the [`Disk`] behind a [`Block`](devices::block::Block): it turns each operation into system calls that move
//! the data between file and guest memory without a copy in between, has one of two engines carry them out, and goes on
//! where a call did only part of it. The engines:
//!
//! - `io_uring`: the kernel works while the event loop does something else, and many requests are one system call;
//! - one thread with `preadv` and `pwritev`, for kernels that refuse io_uring.
//!
//! An operation that a limit of the disk's rate does not allow yet stays in the guest's queue (`throttle`).
//!
//! Guest memory that an operation uses is pinned from its submission to its end ([`crate::memory::Pin`]), both on
//! the event loop: its blocks cannot be unplugged in between. It is named to the kernel by address only; no reference to it
//! is ever made.

mod engine;
mod error;
mod job;
mod open;
#[cfg(test)]
mod tests;
mod throttle;
mod transfer;
mod uring;
mod worker;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use devices::block::{Admission, Disk, Finished, Limits, Operation, OperationError, Tag, Unmap};
use devices::rate::RateSpec;
use vmm_sys_util::eventfd::EventFd;

pub use engine::EngineKind;
pub use error::DiskError;

use crate::memory::CheckedMemory;
use crate::spec::DiskSpec;
use engine::Engine;
use job::{Job, Step};
use open::OpenDisk;
use throttle::Throttle;
use transfer::{Direction, Transfer};

/// A file or block device that a guest uses as a disk. Nobody else uses it meanwhile: it is locked (flock(2)),
/// exclusively unless it is read only.
#[derive(Debug)]
pub struct HostDisk {
    path: String,
    limits: Limits,
    memory: CheckedMemory,
    engine: Engine,
    event: EventFd,
    throttle: Throttle,
    /// Operations that ended before an engine had them.
    ended: VecDeque<Finished>,
    /// The engine refused a job, or the timer does not work: no operation will ever end.
    broken: Option<io::Error>,
    /// A failure has been logged; the guest can cause as many as it likes.
    has_complained: bool,
}

impl HostDisk {
    /// Opens the disk that `spec` describes for a guest with this memory.
    ///
    /// # Errors
    /// The file cannot be opened or locked, is no disk, or the engine asked for is not to be had.
    pub fn open(spec: &DiskSpec, memory: CheckedMemory) -> Result<Self, DiskError> {
        Self::with_ring_of(spec, memory, uring::ENTRIES)
    }

    /// The same with a ring of so many entries, which the kernel may refuse.
    fn with_ring_of(spec: &DiskSpec, memory: CheckedMemory, entries: u32) -> Result<Self, DiskError> {
        let OpenDisk { file, limits } = OpenDisk::open(spec)?;
        let path = spec.path.display().to_string();
        let failed = |source| DiskError::Engine {
            path: path.clone(),
            source,
        };
        let event = EventFd::new(libc::EFD_NONBLOCK).map_err(failed)?;
        let throttle = Throttle::new(spec.rate).map_err(failed)?;
        let engine = Engine::start(spec.engine, file, &event, entries).map_err(failed)?;
        Ok(Self {
            path,
            limits,
            memory,
            engine,
            event,
            throttle,
            ended: VecDeque::new(),
            broken: None,
            has_complained: false,
        })
    }

    /// What the disk is like.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Which engine carries its operations out.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.engine.kind()
    }

    /// Becomes readable when operations may have finished.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn event(&self) -> io::Result<EventFd> {
        self.event.try_clone()
    }

    /// What it may do in a second.
    #[must_use]
    pub fn rate(&self) -> RateSpec {
        self.throttle.rate()
    }

    /// Changes what it may do in a second. Limits that stay the same go on as they are.
    pub fn set_rate(&mut self, rate: RateSpec) {
        self.throttle.set_rate(rate);
    }

    /// A descriptor that becomes readable when an operation that was put off may be admitted, until
    /// [`Self::time_has_come`]. The disk keeps it open.
    #[must_use]
    pub fn timer(&self) -> RawFd {
        self.throttle.timer()
    }

    /// The timer has gone off: what was put off is to be asked for again, now.
    pub fn time_has_come(&mut self) {
        if let Err(error) = self.throttle.time_has_come() {
            self.broken = Some(error);
        }
    }

    fn hand_over(&mut self, job: Job) {
        if let Err(refused) = self.engine.submit(job) {
            self.broken = Some(refused);
        }
    }

    /// The end of an operation without any engine. The event loop is told, as by an engine.
    fn end_at_once(&mut self, tag: Tag) {
        let result = Err(OperationError::Failed);
        self.ended.push_back(Finished { tag, result });
        // A full counter is a signalled one.
        let _ = self.event.write(1);
    }

    /// What became of a job: the end of its operation, or its next step.
    fn look_at(&mut self, job: Job, result: io::Result<u64>) -> Option<Finished> {
        let tag = job.tag;
        match job.after(result) {
            Ok(None) => Some(Finished { tag, result: Ok(()) }),
            Ok(Some(rest)) => {
                self.hand_over(rest);
                None
            }
            Err(error) => {
                if !std::mem::replace(&mut self.has_complained, true) {
                    tracing::warn!("disk {}: {error}; later failures are only counted", self.path);
                }
                let unsupported = error.raw_os_error() == Some(libc::EOPNOTSUPP);
                let result = Err(if unsupported {
                    OperationError::Unsupported
                } else {
                    OperationError::Failed
                });
                Some(Finished { tag, result })
            }
        }
    }
}

impl Disk for HostDisk {
    fn admit(&mut self, operation: &Operation) -> Admission {
        self.throttle.admit(operation).unwrap_or_else(|error| {
            self.broken = Some(error);
            Admission::Later
        })
    }

    fn submit(&mut self, tag: Tag, operation: Operation) {
        let step = match operation {
            Operation::Read { offset, into } => {
                Transfer::new(&self.memory, &into, offset, Direction::IntoMemory).map(Step::Read)
            }
            Operation::Write { offset, from } => {
                Transfer::new(&self.memory, &from, offset, Direction::OutOfMemory).map(Step::Write)
            }
            Operation::Flush => Some(Step::Sync),
            Operation::Discard(range) => Some(Step::Discard(range)),
            Operation::WriteZeroes(range, Unmap::Allowed) => Some(Step::Punch(range)),
            Operation::WriteZeroes(range, Unmap::Forbidden) => Some(Step::ZeroRange(range)),
        };
        match step {
            Some(step) => self.hand_over(Job { tag, step }),
            // The device looked at the memory a moment ago, on this thread: it cannot have gone.
            None => self.end_at_once(tag),
        }
    }

    fn commit(&mut self) -> io::Result<()> {
        match self.broken.take() {
            Some(error) => Err(error),
            None => self.engine.commit(),
        }
    }

    fn finished(&mut self) -> io::Result<Option<Finished>> {
        if let Some(ended) = self.ended.pop_front() {
            return Ok(Some(ended));
        }
        while let Some((job, result)) = self.engine.finished() {
            if let Some(finished) = self.look_at(job, result) {
                return Ok(Some(finished));
            }
        }
        Ok(None)
    }
}
