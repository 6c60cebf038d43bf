//! Tasks that wait for a point in time. Times are nanoseconds since the machine started.
//!
//! Each CPU has its own: its timer is set for them, and its tasks wait for them. The lock is for the type's sake only
//! (a task that may come from another CPU must be `Send`), and is never contended.

use alloc::collections::BTreeMap;
use core::future::poll_fn;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Poll, Waker};
use guest_sync::SpinLock;

/// The deadlines that the tasks of one CPU wait for.
#[derive(Default, Debug)]
pub struct Timers {
    now: AtomicU64,
    next_id: AtomicU64,
    /// Ordered by deadline; the second part tells equal deadlines apart. The heap is used under this lock.
    waiting: SpinLock<BTreeMap<(u64, u64), Waker>>,
}

impl Timers {
    /// No deadlines; the time is 0.
    pub const fn new() -> Self {
        Self {
            now: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
            waiting: SpinLock::new(BTreeMap::new()),
        }
    }

    /// It is `now`: wakes those whose time has come.
    pub fn advance(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        if waiting
            .first_key_value()
            .is_none_or(|((deadline, _), _)| *deadline > now)
        {
            return;
        }
        let later = waiting.split_off(&(now.saturating_add(1), 0));
        let due = core::mem::replace(&mut *waiting, later);
        drop(waiting);
        for waker in due.into_values() {
            waker.wake();
        }
    }

    /// The time of the last [`advance`](Self::advance).
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// The next point in time somebody waits for.
    pub fn next_deadline(&self) -> Option<u64> {
        let waiting = self.waiting.lock();
        waiting.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Waits until `deadline` or later.
    pub async fn sleep_until(&self, deadline: u64) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let entry = Entry {
            timers: self,
            key: (deadline, id),
        };
        poll_fn(|context| {
            if self.now() >= deadline {
                return Poll::Ready(());
            }
            self.waiting.lock().insert(entry.key, context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Waits for `duration` nanoseconds from now on.
    pub async fn sleep(&self, duration: u64) {
        self.sleep_until(self.now().saturating_add(duration)).await;
    }
}

/// Takes a deadline back when the one who waited for it is dropped.
struct Entry<'a> {
    timers: &'a Timers,
    key: (u64, u64),
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.timers.waiting.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::alone;
    use crate::sync::race;
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::RefCell;

    #[test]
    fn sleepers_wake_in_the_order_of_their_deadlines() {
        let executor = alone();
        let timers = Rc::new(Timers::new());
        let log = Rc::new(RefCell::new(Vec::new()));
        for deadline in [30, 10, 20, 10] {
            let (timers, log) = (timers.clone(), log.clone());
            executor
                .spawn(async move {
                    timers.sleep_until(deadline).await;
                    log.borrow_mut().push(deadline);
                })
                .unwrap();
        }
        executor.run_ready();
        for now in [9, 10, 25, 31] {
            timers.advance(now);
            executor.run_ready();
        }
        assert_eq!(*log.borrow(), [10, 10, 20, 30]);
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn a_dropped_sleep_leaves_no_deadline_behind() {
        let executor = alone();
        let timers = Rc::new(Timers::new());
        let inner = timers.clone();
        executor
            .spawn(async move {
                race(inner.sleep(50), inner.sleep(10)).await;
            })
            .unwrap();
        executor.run_ready();
        assert_eq!(timers.next_deadline(), Some(10));
        timers.advance(10);
        executor.run_ready();
        assert_eq!(timers.next_deadline(), None);
    }
}
