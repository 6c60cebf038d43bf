//! Which of the two engines carries jobs out.

use std::fmt;
use std::fs::File;
use std::io;

use vmm_sys_util::eventfd::EventFd;

use super::job::Job;
use super::uring::Uring;
use super::worker::Worker;
use crate::spec::EngineChoice;

/// An engine, started.
#[derive(Debug)]
pub(super) enum Engine {
    Uring(Box<Uring>),
    Worker(Worker),
}

/// Which engine carries out a disk's operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring.
    IoUring,
    /// A thread with plain system calls.
    Thread,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io-uring",
            Self::Thread => "thread",
        })
    }
}

impl Engine {
    /// Starts the engine that was chosen for `file`. It writes `event` when a job has finished.
    ///
    /// # Errors
    /// The kernel refuses it. If the choice is left to us: it refuses both.
    pub(super) fn start(choice: EngineChoice, file: File, event: &EventFd, entries: u32) -> io::Result<Self> {
        let uring = |file| Uring::start(file, event, entries).map(Box::new);
        match choice {
            EngineChoice::IoUring => uring(file).map(Self::Uring),
            EngineChoice::Thread => Worker::start(file, event).map(Self::Worker),
            EngineChoice::Auto => uring(file.try_clone()?).map(Self::Uring).or_else(|refused| {
                tracing::info!("no io_uring ({refused}): disk I/O on a thread");
                Worker::start(file, event).map(Self::Worker)
            }),
        }
    }

    pub(super) fn kind(&self) -> EngineKind {
        match self {
            Self::Uring(_) => EngineKind::IoUring,
            Self::Worker(_) => EngineKind::Thread,
        }
    }

    /// Takes a job, to begin now or with [`Self::commit`].
    ///
    /// # Errors
    /// The engine does not work any more.
    pub(super) fn submit(&mut self, job: Job) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.submit(job),
            Self::Worker(worker) => worker.submit(job),
        }
    }

    /// Begins what was taken.
    ///
    /// # Errors
    /// The engine does not work any more.
    pub(super) fn commit(&mut self) -> io::Result<()> {
        match self {
            Self::Uring(uring) => uring.commit(),
            Self::Worker(_) => Ok(()),
        }
    }

    /// A job that is finished, with what its system call answered.
    pub(super) fn finished(&mut self) -> Option<(Job, io::Result<u64>)> {
        match self {
            Self::Uring(uring) => uring.finished(),
            Self::Worker(worker) => worker.finished(),
        }
    }
}
