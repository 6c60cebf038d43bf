//! A lock that is kept over waits: whoever finds it taken is a future until it is his turn.
//!
//! A file system's metadata is read and changed by one at a time, and the one who does waits for the disk meanwhile. A spin
//! lock is not for that. Those who wait are served in the order in which they came; one who is dropped while he waits
//! leaves the queue, and one who is dropped with the value lets go of it.

use core::fmt;
use core::ops::{Deref, DerefMut};

use guest_sync::SpinLock;

use crate::wait::WaitQueue;

/// A value that one task at a time has.
pub struct Gate<T> {
    /// `None` while somebody has it.
    value: SpinLock<Option<T>>,
    waiting: WaitQueue,
}

impl<T> Gate<T> {
    /// A value that nobody has.
    pub fn new(value: T) -> Self {
        Self {
            value: SpinLock::new(Some(value)),
            waiting: WaitQueue::new(),
        }
    }

    /// The value, when it is the caller's turn. Asking for it while having it waits for ever.
    pub async fn lock(&self) -> GateGuard<'_, T> {
        self.waiting.until(|| self.try_lock()).await
    }

    /// The value, if nobody has it.
    pub fn try_lock(&self) -> Option<GateGuard<'_, T>> {
        let value = self.value.lock().take()?;
        Some(GateGuard {
            gate: self,
            value: Some(value),
        })
    }

    /// The value; the gate is gone. `None` if somebody forgot to give it back.
    pub fn into_inner(self) -> Option<T> {
        self.value.into_inner()
    }
}

impl<T: fmt::Debug> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.value).finish()
    }
}

/// The value of a [`Gate`]; dropping it lets the next one in.
#[must_use = "the gate is open again as soon as the guard is dropped"]
#[derive(Debug)]
pub struct GateGuard<'a, T> {
    gate: &'a Gate<T>,
    /// There until the guard is dropped.
    value: Option<T>,
}

impl<T> Deref for GateGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is given back by `drop` alone")
    }
}

impl<T> DerefMut for GateGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is given back by `drop` alone")
    }
}

impl<T> Drop for GateGuard<'_, T> {
    fn drop(&mut self) {
        *self.gate.value.lock() = self.value.take();
        self.gate.waiting.wake_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    type Wait<'a> = Pin<Box<dyn Future<Output = GateGuard<'a, u32>> + 'a>>;

    fn poll<'a>(wait: &mut Wait<'a>) -> Option<GateGuard<'a, u32>> {
        match wait.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(guard) => Some(guard),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_at_a_time_has_the_value_in_the_order_of_asking() {
        let gate = Gate::new(0);
        let mut first: Wait = Box::pin(gate.lock());
        let mut second: Wait = Box::pin(gate.lock());
        let mut third: Wait = Box::pin(gate.lock());
        let mut held = poll(&mut first).unwrap();
        assert!(poll(&mut second).is_none() && poll(&mut third).is_none());
        assert!(gate.try_lock().is_none());
        *held += 1;
        drop(held);
        assert_eq!(*poll(&mut second).unwrap(), 1);
    }

    #[test]
    fn one_who_is_dropped_while_he_waits_does_not_keep_the_next_from_it() {
        let gate = Gate::new(7);
        let held = gate.try_lock().unwrap();
        let mut second: Wait = Box::pin(gate.lock());
        let mut third: Wait = Box::pin(gate.lock());
        assert!(poll(&mut second).is_none() && poll(&mut third).is_none());
        drop(held);
        drop(second);
        assert_eq!(poll(&mut third).as_deref(), Some(&7));
        drop(third);
        assert_eq!(gate.into_inner(), Some(7));
    }
}
