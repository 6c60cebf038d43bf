//! The cell behind [`SpinLock`](crate::SpinLock): the language's, or loom's, which notices two CPUs in it at a time.

#[cfg(not(loom))]
use core::cell::UnsafeCell;
#[cfg(loom)]
use loom::cell::UnsafeCell;

/// A value that can be reached through a shared reference.
#[derive(Debug)]
pub(crate) struct Cell<T>(UnsafeCell<T>);

impl<T> Cell<T> {
    #[cfg(not(loom))]
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[cfg(loom)]
    pub(crate) fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    /// The way to the value; as long as it exists, the model sees the value as being written.
    #[inline]
    pub(crate) fn access(&self) -> Access<T> {
        #[cfg(not(loom))]
        return Access(self.0.get());
        #[cfg(loom)]
        return Access(self.0.get_mut());
    }

    #[cfg(not(loom))]
    pub(crate) fn exclusive(&mut self) -> &mut T {
        self.0.get_mut()
    }

    #[cfg(not(loom))]
    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner()
    }

    #[cfg(loom)]
    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

/// See [`Cell::access`].
pub(crate) struct Access<T>(#[cfg(not(loom))] *mut T, #[cfg(loom)] loom::cell::MutPtr<T>);

impl<T> Access<T> {
    /// The value's address, good as long as the cell is where it is.
    #[inline]
    pub(crate) fn pointer(&self) -> *mut T {
        #[cfg(not(loom))]
        return self.0;
        #[cfg(loom)]
        return self.0.with(|pointer| pointer);
    }
}
