//! A lock for sections of some hundred instructions that never wait: whoever finds it taken spins.
//!
//! In the guest the manager runs with interrupts off, so a holder is never interrupted by one who wants the same
//! lock on the same CPU. A guard cannot be sent to another thread, and must not be kept across an `await`.

#![expect(unsafe_code, reason = "hands out references to what the lock guards")]

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use crate::atomic::{AtomicBool, Ordering, relax};
use crate::cell::{Access, Cell};

/// A value that one CPU at a time can reach.
pub struct SpinLock<T> {
    taken: AtomicBool,
    value: Cell<T>,
}

// SAFETY: the lock hands the value from thread to thread, one at a time, which is what `Send` allows.
unsafe impl<T: Send> Sync for SpinLock<T> {}
// SAFETY: moving the lock moves the value.
unsafe impl<T: Send> Send for SpinLock<T> {}

impl<T> SpinLock<T> {
    /// A free lock.
    #[cfg(not(loom))]
    pub const fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: Cell::new(value),
        }
    }

    /// A free lock.
    #[cfg(loom)]
    pub fn new(value: T) -> Self {
        Self {
            taken: AtomicBool::new(false),
            value: Cell::new(value),
        }
    }

    /// Takes the lock, spinning until its holder lets go. Taking it twice on one CPU never returns.
    #[inline]
    pub fn lock(&self) -> SpinGuard<'_, T> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            // Only reads while it is taken, so that the holder keeps its cache line.
            while self.taken.load(Ordering::Relaxed) {
                relax();
            }
        }
    }

    /// Takes the lock if nobody has it.
    #[inline]
    pub fn try_lock(&self) -> Option<SpinGuard<'_, T>> {
        // Acquire: what the last holder wrote is seen. An exchange that fails must not write: loom would allow the
        // holder's release to come before it in the lock's history, and nobody would ever get in.
        let free = self
            .taken
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        free.is_ok().then(|| SpinGuard {
            taken: &self.taken,
            value: self.value.access(),
            lock: PhantomData,
        })
    }

    /// The value, for whoever has the lock for himself.
    #[cfg(not(loom))]
    pub fn get_mut(&mut self) -> &mut T {
        self.value.exclusive()
    }

    /// The value; the lock is gone.
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T: Default> Default for SpinLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: fmt::Debug> fmt::Debug for SpinLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.try_lock() {
            Some(value) => f.debug_tuple("SpinLock").field(&*value).finish(),
            None => f.write_str("SpinLock(taken)"),
        }
    }
}

/// The lock, taken; letting go of it frees the lock. The pointer in it keeps it on its thread.
#[must_use = "the lock is free again as soon as the guard is dropped"]
pub struct SpinGuard<'a, T> {
    taken: &'a AtomicBool,
    value: Access<T>,
    lock: PhantomData<&'a mut T>,
}

impl<T> Deref for SpinGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is taken by this guard and outlives it, so nobody else has a reference to the value.
        unsafe { &*self.value.pointer() }
    }
}

impl<T> DerefMut for SpinGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and the guard itself is borrowed mutably.
        unsafe { &mut *self.value.pointer() }
    }
}

impl<T> Drop for SpinGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Release: the next holder sees what this one wrote.
        self.taken.store(false, Ordering::Release);
    }
}

impl<T: fmt::Debug> fmt::Debug for SpinGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn what_two_threads_add_under_the_lock_is_all_there() {
        let sum = SpinLock::new(0_u64);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..50_000).for_each(|_| *sum.lock() += 1));
            }
        });
        assert_eq!(sum.into_inner(), 100_000);
    }

    #[test]
    fn a_taken_lock_cannot_be_taken_until_its_guard_is_gone() {
        let lock = SpinLock::new(());
        let guard = lock.lock();
        assert!(lock.try_lock().is_none());
        drop(guard);
        assert!(lock.try_lock().is_some());
    }
}
