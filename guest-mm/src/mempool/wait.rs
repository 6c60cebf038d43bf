//! Waiting for an element: in order, and without leaving anything behind when the wait is given up.

use core::fmt;
use core::pin::Pin;
use core::sync::atomic::Ordering::Relaxed;
use core::task::{Context, Poll, Waker};

use guest_sync::Cpu;

use super::state::{Ticket, Turn};
use super::{Mempool, PoolSource};
use crate::gfp::Gfp;

/// Tells on which CPU a future is being polled.
pub trait ThisCpu {
    /// The CPU that calls.
    fn this_cpu(&self) -> &Cpu;
}

/// Always the same: for a future that stays where it is.
impl ThisCpu for Cpu {
    fn this_cpu(&self) -> &Cpu {
        self
    }
}

/// Whatever the other says.
impl<C: ThisCpu + ?Sized> ThisCpu for &C {
    fn this_cpu(&self) -> &Cpu {
        (**self).this_cpu()
    }
}

/// Looked up each time.
impl ThisCpu for fn() -> &'static Cpu {
    fn this_cpu(&self) -> &Cpu {
        self()
    }
}

/// See [`Mempool::alloc`].
#[must_use = "nothing is taken before it is polled"]
pub struct Allocation<'a, S: PoolSource, C: ThisCpu> {
    pool: &'a Mempool<S>,
    cpu: C,
    gfp: Gfp,
    progress: Progress,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Progress {
    /// Never polled.
    New,
    /// In the queue, or already given an element.
    Queued(Ticket),
    /// The queue was full: looks again whenever it is polled.
    Polling,
    /// Served.
    Done,
}

impl<'a, S: PoolSource, C: ThisCpu> Allocation<'a, S, C> {
    pub(super) fn new(pool: &'a Mempool<S>, cpu: C, gfp: Gfp) -> Self {
        Self {
            pool,
            cpu,
            gfp,
            progress: Progress::New,
        }
    }

    /// One who has no place yet: is served at once, or queues up.
    fn begin(&mut self, waker: &Waker) -> Poll<S::Element> {
        if let Some(element) = self.pool.try_alloc(self.cpu.this_cpu(), self.gfp) {
            return Poll::Ready(element);
        }
        let mut state = self.pool.state.lock();
        // One may have been freed since.
        if let Some(element) = state.kept() {
            drop(state);
            self.pool.count_from_pool();
            return Poll::Ready(element);
        }
        let ticket = state.wait(waker);
        drop(state);
        if self.progress == Progress::New {
            self.pool.waited.fetch_add(1, Relaxed);
        }
        self.progress = ticket.map_or(Progress::Polling, Progress::Queued);
        if ticket.is_none() {
            waker.wake_by_ref();
        }
        Poll::Pending
    }

    /// One who has a place.
    fn go_on(&mut self, ticket: Ticket, waker: &Waker) -> Poll<S::Element> {
        let turn = self.pool.state.lock().turn(ticket, waker);
        if let Turn::Granted(element) = turn {
            self.pool.out.fetch_add(1, Relaxed);
            return Poll::Ready(element);
        }
        // Woken for something else: the allocator may have memory again.
        let cpu = self.cpu.this_cpu();
        let Some(element) = self.pool.source.take(cpu, self.gfp.without(Gfp::WAIT)) else {
            return Poll::Pending;
        };
        self.leave();
        self.pool.out.fetch_add(1, Relaxed);
        Poll::Ready(element)
    }

    /// Gives up the place, and passes on what was given.
    fn leave(&self) {
        if let Progress::Queued(ticket) = self.progress {
            let granted = self.pool.state.lock().leave(ticket);
            if let Some(element) = granted {
                self.pool.offer(self.cpu.this_cpu(), element);
            }
        }
    }
}

impl<S: PoolSource, C: ThisCpu + Unpin> Future for Allocation<'_, S, C> {
    type Output = S::Element;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<S::Element> {
        let served = match self.progress {
            Progress::New | Progress::Polling => self.begin(context.waker()),
            Progress::Queued(ticket) => self.go_on(ticket, context.waker()),
            Progress::Done => panic!("an allocation was polled after it was served"),
        };
        if served.is_ready() {
            self.progress = Progress::Done;
        }
        served
    }
}

impl<S: PoolSource, C: ThisCpu> Drop for Allocation<'_, S, C> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl<S: PoolSource, C: ThisCpu> fmt::Debug for Allocation<'_, S, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.progress.fmt(f)
    }
}
