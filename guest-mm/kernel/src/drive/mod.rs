//! What a disk is asked to do, from any CPU, on its way to the one CPU that has the driver.
//!
//! A [`Drive`] stands for a disk everywhere but in its own task. Whoever wants something of it hands over a [`Request`] of whole
//! pages, any number of them, and either waits ([`Drive::request`]) or is called when it is done ([`Drive::submit`]); any number may be under
//! way, and they are done in any order. The disk's task takes them as [`Job`]s, cuts them to what the driver takes at a time,
//! and is the only one who knows the driver.
//!
//! A disk that was reset has forgotten what it had under way: that is asked of it again, three times at most. Reads and writes of whole
//! blocks can be repeated; what was flushed stays flushed, and a flush that was forgotten is repeated after the writes before
//! it have been answered, as the contract of [`Request::Flush`] has it.

mod job;
#[cfg(test)]
mod tests;

pub use job::{Job, Piece};

use crate::sync::Signal;
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::fmt;
use core::future::poll_fn;
use core::task::{Poll, Waker};
use guest_mm::disk::{IoError, Request};
use guest_mm::pfn::PAGE_SIZE;
use guest_sync::SpinLock;
use guest_virtio::block::{Access, DiskInfo, SECTOR_SIZE};

/// Sectors of a block, which is a page.
pub const BLOCK_SECTORS: u64 = PAGE_SIZE / SECTOR_SIZE;

/// Called with the result of a request, on the boot CPU, by the disk's task: it must not wait.
pub type Done = Box<dyn FnOnce(Result<(), IoError>) + Send>;

/// A disk, as all CPUs have it.
#[derive(Debug)]
pub struct Drive {
    info: SpinLock<DiskInfo>,
    /// Nothing else is locked under this lock; it may use the heap.
    waiting: SpinLock<VecDeque<Job>>,
    asked: Signal,
}

impl Drive {
    /// A disk that is like this.
    pub const fn new(info: DiskInfo) -> Self {
        Self {
            info: SpinLock::new(info),
            waiting: SpinLock::new(VecDeque::new()),
            asked: Signal::new(),
        }
    }

    /// Whole blocks of the disk, in pages of 4096 bytes.
    pub fn nr_blocks(&self) -> u64 {
        self.info().capacity_sectors / BLOCK_SECTORS
    }

    /// Whether it can be read only.
    pub fn is_read_only(&self) -> bool {
        self.info().access == Access::ReadOnly
    }

    /// What the disk was like when it was last started.
    pub fn info(&self) -> DiskInfo {
        *self.info.lock()
    }

    /// Has a request carried out. Its frames are the disk's until `done` is called with the result, which happens in any case: with
    /// [`IoError`] when there are no such blocks, or the disk cannot be written, or it failed. Of a write, any part may have been done
    /// then. Requests under way are done in any order: what is to come after another is asked for when that is done.
    pub fn submit(&self, request: Request, done: Done) {
        self.waiting.lock().push_back(Job::new(request, done));
        self.asked.raise();
    }

    /// The same for one who waits. A request is carried out even if nobody waits for it any more: its frames must stay what they are
    /// as long as that takes, so a caller who may be dropped leaves them to what [`Self::submit`] calls.
    ///
    /// # Errors
    /// As for [`Self::submit`].
    pub async fn request(&self, request: Request) -> Result<(), IoError> {
        self.request_keeping(request, ()).await
    }

    /// The same for one who may be dropped: `keep`, to which the frames belong, is dropped when the disk is done with them.
    ///
    /// # Errors
    /// As for [`Self::submit`].
    pub async fn request_keeping(&self, request: Request, keep: impl Send + 'static) -> Result<(), IoError> {
        let answer = Arc::new(SpinLock::new(Answer::default()));
        let given = answer.clone();
        let done = move |result| {
            drop(keep);
            Answer::give(&given, result);
        };
        self.submit(request, Box::new(done));
        poll_fn(|context| {
            let mut answer = answer.lock();
            if let Some(result) = answer.result {
                return Poll::Ready(result);
            }
            answer.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// How often something was asked: for the disk's task, which looks at this, then for jobs, then waits for
    /// [`Self::asked_after`].
    pub fn asked(&self) -> u64 {
        self.asked.count()
    }

    /// Waits until something was asked more than `seen` times.
    pub async fn asked_after(&self, seen: u64) {
        self.asked.after(seen).await;
    }

    /// The next job for the disk's task.
    pub fn next_job(&self) -> Option<Job> {
        self.waiting.lock().pop_front()
    }

    /// A job that the driver had no room for, or that has more to be done, is the next again.
    pub fn put_back(&self, job: Job) {
        self.waiting.lock().push_front(job);
    }

    /// The disk was started again, and is like this now.
    pub fn restarted(&self, info: DiskInfo) {
        *self.info.lock() = info;
    }

    /// The disk cannot be started: what waits for it fails.
    pub fn fail_all(&self) {
        // Not the lock's holder while others are called, who may ask for more.
        let failed = core::mem::take(&mut *self.waiting.lock());
        for job in failed {
            job.fail();
        }
    }
}

/// What one who waits is waiting for.
#[derive(Default)]
struct Answer {
    result: Option<Result<(), IoError>>,
    waker: Option<Waker>,
}

impl Answer {
    fn give(this: &SpinLock<Self>, result: Result<(), IoError>) {
        let waker = {
            let mut answer = this.lock();
            answer.result = Some(result);
            answer.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Job").field(self.request()).finish()
    }
}
