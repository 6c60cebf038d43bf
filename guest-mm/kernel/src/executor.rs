//! The executor: polls the tasks that were woken, in turn, on one CPU. No threads, no stacks besides the caller's.
//!
//! Interrupts never run code of their own (they come back as values), so everything here happens between two polls
//! and a task that was woken is simply marked in a bitmap.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::pin::Pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll, Waker};

/// Most tasks that can exist at a time.
pub const MAX_TASKS: usize = WORDS * 64;
const WORDS: usize = 4;

type Work = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks of one CPU.
pub struct Executor {
    tasks: RefCell<Vec<Slot>>,
    ready: Arc<ReadySet>,
}

/// A place for a task. It keeps its waker when the task ends: a late call of it wakes whoever moves in, and a task
/// must bear being woken for nothing anyhow.
struct Slot {
    /// `None` while it is being polled, and when the place is vacant.
    work: Option<Work>,
    waker: Waker,
    is_vacant: bool,
}

impl Executor {
    /// An executor without tasks.
    pub fn new() -> Self {
        Self {
            tasks: RefCell::new(Vec::new()),
            ready: Arc::new(ReadySet::default()),
        }
    }

    /// Adds a task; it is polled for the first time by the next [`run_ready`](Self::run_ready).
    ///
    /// # Errors
    /// If there are [`MAX_TASKS`] already.
    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) -> Result<(), TooManyTasks> {
        let mut tasks = self.tasks.borrow_mut();
        let index = match tasks.iter().position(|slot| slot.is_vacant) {
            Some(index) => index,
            None if tasks.len() == MAX_TASKS => return Err(TooManyTasks),
            None => {
                let waker = Waker::from(Arc::new(TaskWaker {
                    ready: self.ready.clone(),
                    index: tasks.len(),
                }));
                tasks.push(Slot {
                    work: None,
                    waker,
                    is_vacant: true,
                });
                tasks.len() - 1
            }
        };
        tasks[index].work = Some(Box::pin(work));
        tasks[index].is_vacant = false;
        self.ready.insert(index);
        Ok(())
    }

    /// Polls every task that is ready now once, in the order of their places, and returns how many that were.
    /// Tasks that become ready meanwhile are left for the next call, so nobody is overtaken twice.
    pub fn run_ready(&self) -> usize {
        let mut polled = 0;
        for index in self.ready.take() {
            let (work, waker) = {
                let mut tasks = self.tasks.borrow_mut();
                let Some(slot) = tasks.get_mut(index) else {
                    continue;
                };
                (slot.work.take(), slot.waker.clone())
            };
            let Some(mut work) = work else { continue };
            polled += 1;
            let result = work.as_mut().poll(&mut Context::from_waker(&waker));
            let slot = &mut self.tasks.borrow_mut()[index];
            match result {
                Poll::Pending => slot.work = Some(work),
                Poll::Ready(()) => slot.is_vacant = true,
            }
        }
        polled
    }

    /// Whether a task waits to be polled.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }
}

impl Default for Executor {
    fn default() -> Self {
        Self::new()
    }
}

/// Which tasks are to be polled: a bit for each.
#[derive(Default)]
struct ReadySet {
    words: [AtomicU64; WORDS],
}

impl ReadySet {
    fn insert(&self, index: usize) {
        self.words[index / 64].fetch_or(1 << (index % 64), Ordering::Release);
    }

    fn is_empty(&self) -> bool {
        self.words.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// Empties the set and returns what was in it, lowest first.
    fn take(&self) -> impl Iterator<Item = usize> + use<> {
        let taken: [u64; WORDS] = core::array::from_fn(|word| self.words[word].swap(0, Ordering::AcqRel));
        taken.into_iter().enumerate().flat_map(|(word, mut bits)| {
            core::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits.wrapping_sub(1);
                (bit < 64).then_some(word * 64 + bit)
            })
        })
    }
}

struct TaskWaker {
    ready: Arc<ReadySet>,
    index: usize,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.insert(self.index);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ready.insert(self.index);
    }
}

/// There is no place for another task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyTasks;

impl fmt::Display for TooManyTasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more than {MAX_TASKS} tasks")
    }
}

impl core::error::Error for TooManyTasks {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::yield_now;
    use alloc::rc::Rc;
    use core::cell::Cell;

    #[test]
    fn tasks_take_turns() {
        let executor = Executor::new();
        let log = Rc::new(RefCell::new(Vec::new()));
        for name in ['a', 'b'] {
            let log = log.clone();
            executor
                .spawn(async move {
                    for _ in 0..2 {
                        log.borrow_mut().push(name);
                        yield_now().await;
                    }
                })
                .unwrap();
        }
        while executor.run_ready() > 0 {}
        assert_eq!(*log.borrow(), ['a', 'b', 'a', 'b']);
    }

    #[test]
    fn a_task_may_spawn_others_while_it_runs() {
        let executor = Rc::new(Executor::new());
        let done = Rc::new(Cell::new(0));
        let (inner, count) = (executor.clone(), done.clone());
        executor
            .spawn(async move {
                for _ in 0..100 {
                    let count = count.clone();
                    inner.spawn(async move { count.set(count.get() + 1) }).unwrap();
                }
            })
            .unwrap();
        while executor.run_ready() > 0 {}
        assert_eq!(done.get(), 100);
    }

    #[test]
    fn places_are_used_again_and_limited() {
        let executor = Executor::new();
        for _ in 0..3 {
            for _ in 0..MAX_TASKS {
                executor.spawn(async {}).unwrap();
            }
            assert_eq!(executor.spawn(async {}), Err(TooManyTasks));
            assert_eq!(executor.run_ready(), MAX_TASKS);
        }
    }

    #[test]
    fn a_task_that_nobody_wakes_is_not_polled() {
        let executor = Executor::new();
        executor.spawn(core::future::pending()).unwrap();
        assert_eq!(executor.run_ready(), 1);
        assert!(!executor.has_ready());
        assert_eq!(executor.run_ready(), 0);
    }
}
