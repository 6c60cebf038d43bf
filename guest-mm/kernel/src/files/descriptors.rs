//! The files that a program has open, by number.

use super::{RootFs, steps};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_mm::fs::mounted::File;
use guest_mm::mm::mapping::ReadAhead;
use guest_programs::abi::Error;
use guest_programs::files::FIRST_DESCRIPTOR;
use guest_sync::SpinLock;

/// Most files that a program has open at a time.
const MOST: usize = 64;

/// A file that was opened: all who have it through a fork have one position.
pub(crate) struct OpenFile {
    pub(crate) file: Arc<File>,
    pub(crate) appends: bool,
    pub(crate) position: AtomicU64,
    pub(crate) ahead: SpinLock<ReadAhead>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Descriptors {
    /// Nothing but the heap is locked under this lock.
    open: SpinLock<Vec<Option<Arc<OpenFile>>>>,
}

impl Descriptors {
    /// The lowest number that is free is the file's from now on.
    pub(super) fn add(&self, file: Arc<OpenFile>) -> Result<u64, Arc<OpenFile>> {
        let mut open = self.open.lock();
        let vacant = open.iter().position(Option::is_none).unwrap_or(open.len());
        if vacant >= MOST {
            return Err(file);
        }
        match open.get_mut(vacant) {
            Some(place) => *place = Some(file),
            None => open.push(Some(file)),
        }
        Ok(FIRST_DESCRIPTOR + vacant as u64)
    }

    /// The file with a number.
    pub(super) fn find(&self, descriptor: u64) -> Result<Arc<OpenFile>, Error> {
        let open = self.open.lock();
        let place = index(descriptor).and_then(|index| open.get(index));
        place.cloned().flatten().ok_or(Error::BadDescriptor)
    }

    pub(super) fn remove(&self, descriptor: u64) -> Result<Arc<OpenFile>, Error> {
        let mut open = self.open.lock();
        let place = index(descriptor).and_then(|index| open.get_mut(index));
        place.and_then(Option::take).ok_or(Error::BadDescriptor)
    }

    /// All that another has.
    pub(crate) fn copy_from(&self, other: &Self) {
        let theirs = other.open.lock().clone();
        *self.open.lock() = theirs;
    }

    /// Gives up all of them.
    pub(crate) async fn close_all(&self, root: Option<&'static RootFs>) {
        let all = core::mem::take(&mut *self.open.lock());
        for open in all.into_iter().flatten() {
            if let Some(root) = root {
                close(root, open).await;
            }
        }
    }
}

fn index(descriptor: u64) -> Option<usize> {
    usize::try_from(descriptor.checked_sub(FIRST_DESCRIPTOR)?).ok()
}

/// One who has the file open less; the last closes it.
pub(super) async fn close(root: &'static RootFs, open: Arc<OpenFile>) {
    if let Some(open) = Arc::into_inner(open) {
        steps(root.close(&open.file)).await;
    }
}

impl OpenFile {
    pub(super) fn new(file: Arc<File>, appends: bool) -> Arc<Self> {
        Arc::new(Self {
            file,
            appends,
            position: AtomicU64::new(0),
            ahead: SpinLock::default(),
        })
    }

    /// How far reading has come: a copy, so that one who waits keeps nobody else from it.
    pub(super) fn read_ahead(&self) -> ReadAhead {
        *self.ahead.lock()
    }

    pub(super) fn has_read(&self, ahead: ReadAhead, position: Option<u64>) {
        *self.ahead.lock() = ahead;
        if let Some(position) = position {
            self.position.store(position, Relaxed);
        }
    }
}
