//! The executor: polls the tasks of one CPU that were woken, in turn. No threads, no stacks besides the caller's.
//!
//! A task stays on its CPU for ever, so it needs to be `Send` only if it was spawned by another one
//! ([`Remote::spawn`]). Tasks can be woken from any CPU. Interrupts never run code of their own (they come back as
//! values), so a task that was woken is simply marked in a bitmap, and its CPU told if it does not look by itself.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::task::Wake;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::task::{Context, Poll, Waker};
use guest_sync::SpinLock;

/// Most tasks that can exist at a time on a CPU.
pub const MAX_TASKS: usize = WORDS * 64;
const WORDS: usize = 4;

type Work = Pin<Box<dyn Future<Output = ()>>>;
type SendWork = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How a CPU hears that there is something for it to do.
pub trait Bell: Send + Sync {
    /// The CPU will look at its tasks again. What the caller wrote before is seen by it then. May be called by the
    /// CPU itself.
    fn ring(&self);
}

/// The tasks of one CPU, for that CPU.
pub struct Executor {
    tasks: RefCell<Vec<Slot>>,
    remote: Arc<Remote>,
}

/// A place for a task. It keeps its waker when the task ends: a late call of it wakes whoever moves in, and a task
/// must bear being woken for nothing anyhow.
struct Slot {
    /// `None` while it is being polled, and when the place is vacant.
    work: Option<Work>,
    waker: Waker,
    is_vacant: bool,
}

/// The tasks of one CPU, for all others: they can be woken and added to.
pub struct Remote {
    ready: ReadySet,
    /// Tasks that the CPU has not taken over yet. The heap is used under this lock.
    arrivals: SpinLock<Vec<SendWork>>,
    /// Whether there are any of those.
    has_arrivals: AtomicBool,
    nr_tasks: AtomicUsize,
    bell: Box<dyn Bell>,
}

impl Remote {
    /// An executor's outside. It becomes one with [`Executor::new`], on the CPU that `bell` calls.
    pub fn new(bell: impl Bell + 'static) -> Arc<Self> {
        Arc::new(Self {
            ready: ReadySet::default(),
            arrivals: SpinLock::new(Vec::new()),
            has_arrivals: AtomicBool::new(false),
            nr_tasks: AtomicUsize::new(0),
            bell: Box::new(bell),
        })
    }

    /// Adds a task that may come from another CPU. As it is `Send`, it holds no lock while it waits.
    ///
    /// # Errors
    /// If there are [`MAX_TASKS`] already.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> Result<(), TooManyTasks> {
        self.reserve()?;
        self.arrivals.lock().push(Box::pin(work));
        self.has_arrivals.store(true, Ordering::Release);
        self.bell.ring();
        Ok(())
    }

    /// Whether there is something to poll. What was written before a [`Bell`] rang is seen.
    pub fn has_ready(&self) -> bool {
        self.has_arrivals.load(Ordering::Acquire) || !self.ready.is_empty()
    }

    fn reserve(&self) -> Result<(), TooManyTasks> {
        let more = |tasks| (tasks < MAX_TASKS).then_some(tasks + 1);
        let reserved = self
            .nr_tasks
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        reserved.map(|_| ()).map_err(|_| TooManyTasks)
    }

    fn wake(&self, index: usize) {
        // Whoever marked it first rings.
        if self.ready.insert(index) {
            self.bell.ring();
        }
    }
}

impl Executor {
    /// An executor for this CPU, without tasks but those that others have added already.
    pub fn new(remote: Arc<Remote>) -> Self {
        Self {
            tasks: RefCell::new(Vec::new()),
            remote,
        }
    }

    /// Adds a task; it is polled for the first time by the next [`run_ready`](Self::run_ready).
    ///
    /// # Errors
    /// If there are [`MAX_TASKS`] already.
    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) -> Result<(), TooManyTasks> {
        self.remote.reserve()?;
        self.place(Box::pin(work));
        Ok(())
    }

    /// Polls every task that is ready now once, in the order of their places, and returns how many that were.
    /// Tasks that become ready meanwhile are left for the next call, so nobody is overtaken twice.
    pub fn run_ready(&self) -> usize {
        if self.remote.has_arrivals.swap(false, Ordering::Acquire) {
            let arrivals = core::mem::take(&mut *self.remote.arrivals.lock());
            arrivals.into_iter().for_each(|work| self.place(work));
        }
        let mut polled = 0;
        for index in self.remote.ready.take() {
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
                Poll::Ready(()) => {
                    slot.is_vacant = true;
                    self.remote.nr_tasks.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        polled
    }

    /// Whether a task waits to be polled.
    pub fn has_ready(&self) -> bool {
        self.remote.has_ready()
    }

    /// Gives a task, for which there is room, a place.
    fn place(&self, work: Work) {
        let mut tasks = self.tasks.borrow_mut();
        let index = tasks.iter().position(|slot| slot.is_vacant).unwrap_or_else(|| {
            let waker = Waker::from(Arc::new(TaskWaker {
                remote: self.remote.clone(),
                index: tasks.len(),
            }));
            tasks.push(Slot {
                work: None,
                waker,
                is_vacant: true,
            });
            tasks.len() - 1
        });
        tasks[index].work = Some(work);
        tasks[index].is_vacant = false;
        // This CPU looks by itself: it is about to, or in the middle of it.
        self.remote.ready.insert(index);
    }
}

/// Which tasks are to be polled: a bit for each.
#[derive(Default)]
struct ReadySet {
    words: [AtomicU64; WORDS],
}

impl ReadySet {
    /// Returns whether it was not in there.
    fn insert(&self, index: usize) -> bool {
        let bit = 1 << (index % 64);
        self.words[index / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0
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
    remote: Arc<Remote>,
    index: usize,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.remote.wake(self.index);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.remote.wake(self.index);
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

/// For tests that look after their executor themselves.
#[cfg(test)]
pub(crate) fn alone() -> Executor {
    struct Silent;
    impl Bell for Silent {
        fn ring(&self) {}
    }
    Executor::new(Remote::new(Silent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::yield_now;
    use alloc::rc::Rc;
    use core::cell::Cell;

    #[test]
    fn tasks_take_turns() {
        let executor = alone();
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
        let executor = Rc::new(alone());
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
        let executor = alone();
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
        let executor = alone();
        executor.spawn(core::future::pending()).unwrap();
        assert_eq!(executor.run_ready(), 1);
        assert!(!executor.has_ready());
        assert_eq!(executor.run_ready(), 0);
    }

    /// A CPU that sleeps until its bell rings, as the guest's do: it announces that it will, looks once more, and does.
    #[derive(Default)]
    struct Sleeper {
        sleeps: AtomicBool,
        woken: AtomicBool,
    }

    impl Sleeper {
        fn sleep_unless(&self, has_ready: impl Fn() -> bool) {
            self.sleeps.store(true, Ordering::SeqCst);
            if !has_ready() {
                while !self.woken.load(Ordering::Acquire) {
                    std::thread::yield_now();
                }
            }
            self.sleeps.store(false, Ordering::SeqCst);
            self.woken.store(false, Ordering::Release);
        }
    }

    impl Bell for Arc<Sleeper> {
        fn ring(&self) {
            core::sync::atomic::fence(Ordering::SeqCst);
            if self.sleeps.load(Ordering::SeqCst) {
                self.woken.store(true, Ordering::Release);
            }
        }
    }

    #[test]
    fn tasks_of_two_cpus_wake_each_other_and_no_wake_is_lost() {
        const ROUNDS: u64 = 20_000;
        let signals = Arc::new([crate::sync::Signal::new(), crate::sync::Signal::new()]);
        let sleepers: [Arc<Sleeper>; 2] = Default::default();
        let remotes = sleepers.clone().map(Remote::new);
        let done = Arc::new(AtomicUsize::new(0));
        for (me, remote) in remotes.iter().enumerate() {
            let (signals, done) = (signals.clone(), done.clone());
            let work = async move {
                for round in 0..ROUNDS {
                    signals[1 - me].raise();
                    signals[me].after(round).await;
                }
                done.fetch_add(1, Ordering::Release);
            };
            remote.spawn(work).unwrap();
        }
        std::thread::scope(|scope| {
            for (remote, sleeper) in remotes.iter().zip(&sleepers) {
                scope.spawn(|| {
                    let executor = Executor::new(remote.clone());
                    while remote.nr_tasks.load(Ordering::Acquire) > 0 {
                        executor.run_ready();
                        if remote.nr_tasks.load(Ordering::Acquire) > 0 {
                            sleeper.sleep_unless(|| executor.has_ready());
                        }
                    }
                });
            }
        });
        assert_eq!(done.load(Ordering::Acquire), 2);
    }

    #[test]
    fn a_task_from_another_cpu_counts_and_rings() {
        let sleeper = Arc::new(Sleeper::default());
        sleeper.sleeps.store(true, Ordering::SeqCst);
        let remote = Remote::new(sleeper.clone());
        let executor = Executor::new(remote.clone());
        for _ in 0..MAX_TASKS {
            remote.spawn(async {}).unwrap();
        }
        assert!(sleeper.woken.load(Ordering::Acquire) && executor.has_ready());
        assert_eq!(remote.spawn(async {}), Err(TooManyTasks));
        assert_eq!(executor.run_ready(), MAX_TASKS);
        assert!(!executor.has_ready());
    }
}
