//! What tasks wait for: each other ([`Signal`]), their turn ([`yield_now`]), or the first of two things ([`race`]).

use alloc::vec::Vec;
use core::future::poll_fn;
use core::pin::pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Poll, Waker};
use guest_sync::SpinLock;

/// Lets all other ready tasks run once.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Something that happens again and again, on any CPU. Waiters name what they have seen already, so nothing is missed
/// between looking and waiting.
#[derive(Default, Debug)]
pub struct Signal {
    count: AtomicU64,
    /// Nothing else is locked, allocated or woken under this lock.
    wakers: SpinLock<Vec<Waker>>,
}

impl Signal {
    /// A signal that was never raised.
    pub const fn new() -> Self {
        Self {
            count: AtomicU64::new(0),
            wakers: SpinLock::new(Vec::new()),
        }
    }

    /// How often it was raised: take this before looking at what it stands for.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// It happened (again): wakes everybody who waits. What was done before is seen by them.
    pub fn raise(&self) {
        self.count.fetch_add(1, Ordering::Release);
        // Whoever is not among these took the lock later, and so sees the new count.
        let wakers = core::mem::take(&mut *self.wakers.lock());
        for waker in wakers {
            waker.wake();
        }
    }

    /// Waits until it was raised more than `seen` times.
    pub async fn after(&self, seen: u64) {
        poll_fn(|context| {
            if self.count() > seen {
                return Poll::Ready(());
            }
            self.wait(context.waker(), seen)
        })
        .await;
    }

    /// Adds a waker unless it is too late for that.
    fn wait(&self, waker: &Waker, seen: u64) -> Poll<()> {
        let mut waker = Some(waker.clone());
        let mut spare = Vec::new();
        loop {
            let mut wakers = self.wakers.lock();
            if self.count() > seen {
                return Poll::Ready(());
            }
            if spare.capacity() > wakers.len() {
                spare.append(&mut wakers);
                core::mem::swap(&mut spare, &mut wakers);
            }
            let is_known = |waker: &Waker| wakers.iter().any(|known| known.will_wake(waker));
            if waker.as_ref().is_none_or(is_known) {
                return Poll::Pending;
            }
            let needed = wakers.len() + 1;
            if needed <= wakers.capacity() {
                wakers.extend(waker.take());
                return Poll::Pending;
            }
            drop(wakers);
            spare = Vec::with_capacity(needed.next_power_of_two());
        }
    }
}

/// Which of two futures was done first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Winner<A, B> {
    /// The first one, with its result; it wins a draw.
    First(A),
    /// The second one, with its result.
    Second(B),
}

/// Waits for the first of two futures and drops the other.
pub async fn race<A, B>(first: impl Future<Output = A>, second: impl Future<Output = B>) -> Winner<A, B> {
    let mut first = pin!(first);
    let mut second = pin!(second);
    poll_fn(|context| match first.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Winner::First(result)),
        Poll::Pending => second.as_mut().poll(context).map(Winner::Second),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::alone;
    use alloc::rc::Rc;
    use core::cell::Cell;

    #[test]
    fn a_signal_raised_before_the_wait_is_not_missed() {
        let executor = alone();
        let signal = Rc::new(Signal::new());
        let done = Rc::new(Cell::new(false));
        let (waited, flag) = (signal.clone(), done.clone());
        let seen = signal.count();
        signal.raise();
        executor
            .spawn(async move {
                waited.after(seen).await;
                flag.set(true);
            })
            .unwrap();
        executor.run_ready();
        assert!(done.get());
    }

    #[test]
    fn a_signal_wakes_everybody_who_waits() {
        let executor = alone();
        let signal = Rc::new(Signal::new());
        let woken = Rc::new(Cell::new(0));
        for _ in 0..3 {
            let (signal, woken) = (signal.clone(), woken.clone());
            executor
                .spawn(async move {
                    signal.after(signal.count()).await;
                    woken.set(woken.get() + 1);
                })
                .unwrap();
        }
        executor.run_ready();
        assert_eq!((woken.get(), executor.has_ready()), (0, false));
        signal.raise();
        executor.run_ready();
        assert_eq!(woken.get(), 3);
    }

    #[test]
    fn the_first_future_wins_a_draw() {
        let executor = alone();
        let winner = Rc::new(Cell::new(None));
        let result = winner.clone();
        executor
            .spawn(async move { result.set(Some(race(async { 1 }, async { 2 }).await)) })
            .unwrap();
        executor.run_ready();
        assert_eq!(winner.get(), Some(Winner::First(1)));
    }
}
