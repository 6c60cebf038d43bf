//! The engine without io_uring: one thread that makes the system calls, one after the other.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use vmm_sys_util::eventfd::EventFd;

use super::job::Job;

const STACK: usize = 128 << 10;

/// The engine.
#[derive(Debug)]
pub(super) struct Worker {
    /// `None` while it is being dropped.
    jobs: Option<Sender<Job>>,
    /// Jobs come back to be dropped on the event loop, with the pins they hold.
    finished: Receiver<(Job, io::Result<u64>)>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// There are no more threads, or no descriptors.
    pub(super) fn start(file: File, event: &EventFd) -> io::Result<Self> {
        let event = event.try_clone()?;
        let (jobs, to_do) = channel::<Job>();
        let (done, finished) = channel();
        let thread = Builder::new().name("disk".into()).stack_size(STACK);
        let thread = thread.spawn(move || {
            for job in to_do {
                let result = job.run(&file);
                if done.send((job, result)).is_err() {
                    return;
                }
                // A full counter is a signalled one.
                let _ = event.write(1);
            }
        })?;
        Ok(Self {
            jobs: Some(jobs),
            finished,
            thread: Some(thread),
        })
    }

    pub(super) fn submit(&mut self, job: Job) -> io::Result<()> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())
    }

    pub(super) fn finished(&mut self) -> Option<(Job, io::Result<u64>)> {
        self.finished.try_recv().ok()
    }
}

impl Drop for Worker {
    /// Lets the thread finish what it has, and waits for it: guest memory may be unmapped next.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic; if it did, it has said so.
            let _ = thread.join();
        }
    }
}
