//! A value that is set once and from then on read by everybody without a lock.

#![cfg_attr(
    not(any(loom, shuttle)),
    expect(unsafe_code, reason = "hands out references to what is written once")
)]

#[cfg(not(any(loom, shuttle)))]
use core::cell::UnsafeCell;
#[cfg(not(any(loom, shuttle)))]
use core::sync::atomic::{AtomicU8, Ordering};

/// Nothing yet; being written; there for ever.
#[cfg(not(any(loom, shuttle)))]
const EMPTY: u8 = 0;
#[cfg(not(any(loom, shuttle)))]
const BEING_SET: u8 = 1;
#[cfg(not(any(loom, shuttle)))]
const SET: u8 = 2;

/// A value that is set at most once.
#[derive(Debug)]
#[cfg(not(any(loom, shuttle)))]
pub struct SetOnce<T> {
    state: AtomicU8,
    value: UnsafeCell<Option<T>>,
}

// SAFETY: the value comes from one thread (`Send`) and is then read by all (`Sync`).
#[cfg(not(any(loom, shuttle)))]
unsafe impl<T: Send + Sync> Sync for SetOnce<T> {}

#[cfg(not(any(loom, shuttle)))]
impl<T> SetOnce<T> {
    /// Without a value.
    pub const fn new() -> Self {
        Self {
            state: AtomicU8::new(EMPTY),
            value: UnsafeCell::new(None),
        }
    }

    /// Sets the value.
    ///
    /// # Errors
    /// The value, if there is one already, or another CPU is just setting one.
    pub fn set(&self, value: T) -> Result<(), T> {
        let first = self
            .state
            .compare_exchange(EMPTY, BEING_SET, Ordering::Relaxed, Ordering::Relaxed);
        if first.is_err() {
            return Err(value);
        }
        // SAFETY: the exchange succeeds once, so nobody else writes, and nobody reads before `SET`.
        unsafe { *self.value.get() = Some(value) };
        // Release: whoever sees it set sees the value.
        self.state.store(SET, Ordering::Release);
        Ok(())
    }

    /// The value, if there is one.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        if self.state.load(Ordering::Acquire) != SET {
            return None;
        }
        // SAFETY: nobody writes to it any more.
        unsafe { &*self.value.get() }.as_ref()
    }
}

#[cfg(not(any(loom, shuttle)))]
impl<T> Default for SetOnce<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// A value that is set at most once: in a model, the standard library's.
#[derive(Debug)]
#[cfg(any(loom, shuttle))]
pub struct SetOnce<T>(std::sync::OnceLock<T>);

#[cfg(any(loom, shuttle))]
impl<T> SetOnce<T> {
    /// Without a value.
    pub const fn new() -> Self {
        Self(std::sync::OnceLock::new())
    }

    /// Sets the value.
    ///
    /// # Errors
    /// The value, if there is one already.
    pub fn set(&self, value: T) -> Result<(), T> {
        self.0.set(value)
    }

    /// The value, if there is one.
    pub fn get(&self) -> Option<&T> {
        self.0.get()
    }
}

#[cfg(any(loom, shuttle))]
impl<T> Default for SetOnce<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use std::boxed::Box;
    use std::thread;

    #[test]
    fn of_several_who_set_it_one_succeeds_and_all_read_what_that_one_set() {
        for _ in 0..500 {
            let once = SetOnce::new();
            assert_eq!(once.get(), None);
            let winners: u32 = thread::scope(|scope| {
                let threads = [1, 2].map(|number| {
                    let once = &once;
                    scope.spawn(move || {
                        let won = once.set(Box::new(number)).is_ok();
                        if won {
                            assert_eq!(once.get().map(|value| **value), Some(number));
                        }
                        u32::from(won)
                    })
                });
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(winners, 1);
            let kept = **once.get().unwrap();
            assert_eq!(once.set(Box::new(3)), Err(Box::new(3)));
            assert_eq!(**once.get().unwrap(), kept);
        }
    }
}
