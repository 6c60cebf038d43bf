//! The tasks that wait for one condition of a driver.
//!
//! Drivers live on one CPU's executor and share their state through a `RefCell`, so this is a plain list. A waker
//! is always called after the borrow of the state ended: an executor may poll the task from inside `wake`.

use alloc::vec::Vec;
use core::task::Waker;

/// The wakers of those who wait; each is called at most once for each time it was added.
#[derive(Debug, Default)]
pub(crate) struct WakerSet {
    wakers: Vec<Waker>,
}

impl WakerSet {
    /// An empty set.
    pub(crate) const fn new() -> Self {
        Self { wakers: Vec::new() }
    }

    /// Adds `waker` unless one that wakes the same task is there already.
    pub(crate) fn add(&mut self, waker: &Waker) {
        if !self.wakers.iter().any(|known| known.will_wake(waker)) {
            self.wakers.push(waker.clone());
        }
    }

    /// Empties the set; the caller wakes what it got once it holds no borrow.
    pub(crate) fn take(&mut self) -> Self {
        core::mem::take(self)
    }

    /// Joins the wakers of `other` to these.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.wakers.append(&mut other.wakers);
    }

    /// Wakes everybody.
    pub(crate) fn wake(self) {
        for waker in self.wakers {
            waker.wake();
        }
    }
}
