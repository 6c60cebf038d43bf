//! An executor that polls one ready task after the other, in an order that random numbers decide; and work that is given up where it waits.

use core::future::poll_fn;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use std::boxed::Box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Wake;
use std::vec::Vec;

use super::random::Random;

type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// See the module.
#[derive(Default)]
pub(super) struct Executor<'a> {
    tasks: Vec<Task<'a>>,
}

struct Task<'a> {
    work: Work<'a>,
    woken: Arc<Woken>,
    /// It never ends by itself.
    is_daemon: bool,
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Executor<'a> {
    pub(super) fn spawn(&mut self, work: impl Future<Output = ()> + 'a) {
        self.add(Box::pin(work), false);
    }

    /// A task that nobody waits for.
    pub(super) fn spawn_daemon(&mut self, work: impl Future<Output = ()> + 'a) {
        self.add(Box::pin(work), true);
    }

    fn add(&mut self, work: Work<'a>, is_daemon: bool) {
        self.tasks.push(Task {
            work,
            woken: Arc::new(Woken(AtomicBool::new(true))),
            is_daemon,
        });
    }

    /// Whether there are tasks that are going to end.
    pub(super) fn has_tasks(&self) -> bool {
        self.tasks.iter().any(|task| !task.is_daemon)
    }

    pub(super) fn nr_tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Whose turn it is; `None` when nobody is ready.
    pub(super) fn turn(&self, random: &mut Random) -> Option<usize> {
        let is_ready = |task: &Task<'_>| task.woken.0.load(Ordering::Relaxed);
        let ready: Vec<usize> = (0..self.tasks.len())
            .filter(|&at| is_ready(&self.tasks[at]))
            .collect();
        let place = random.below(ready.len().max(1) as u64);
        ready.get(usize::try_from(place).unwrap()).copied()
    }

    pub(super) fn poll(&mut self, at: usize) {
        let task = &mut self.tasks[at];
        task.woken.0.store(false, Ordering::Relaxed);
        let waker = task.woken.clone().into();
        if let Poll::Ready(()) = task.work.as_mut().poll(&mut Context::from_waker(&waker)) {
            drop(self.tasks.swap_remove(at));
        }
    }
}

/// Lets others have their turn.
pub(super) async fn pause() {
    let mut paused = false;
    core::future::poll_fn(|context| {
        if paused {
            return Poll::Ready(());
        }
        paused = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// When work is given up that has waited often enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum GivenUp {
    /// Where it begins to wait.
    AtOnce,
    /// After others had their turn.
    Later,
}

/// Does something until it waits for the so many-th time, counted from 1, and drops it there. `None` if it came to that.
pub(super) async fn give_up_after<T>(
    (waits, when): (u64, GivenUp),
    work: impl Future<Output = T>,
) -> Option<T> {
    let (mut work, mut left) = (pin!(work), waits);
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        left -= 1;
        match when {
            GivenUp::AtOnce if left == 0 => return Poll::Ready(None),
            GivenUp::Later if left == 0 => context.waker().wake_by_ref(),
            GivenUp::AtOnce | GivenUp::Later => {}
        }
        Poll::Pending
    })
    .await
}
