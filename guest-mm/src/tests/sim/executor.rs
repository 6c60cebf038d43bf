//! An executor that polls one ready task after the other, in an order that random numbers decide.

use core::pin::Pin;
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
