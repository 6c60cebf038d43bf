//! The files that a program has open, by number.

use super::shm::Directory;
use super::{RootFs, steps};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_mm::fs::TmpFile;
use guest_mm::fs::mounted::File;
use guest_mm::mm::MappingId;
use guest_mm::mm::mapping::{ErrorCursor, ReadAhead};
use guest_programs::abi::Error;
use guest_programs::files::{AT_POSITION, FIRST_DESCRIPTOR};
use guest_sync::SpinLock;

/// Most files that a program has open at a time.
const MOST: usize = 64;

/// A file that was opened: all who have it through a fork have one position.
pub(crate) struct OpenFile {
    pub(crate) file: Arc<File>,
    pub(crate) appends: bool,
    /// Past the page cache.
    pub(crate) is_direct: bool,
    pub(crate) position: AtomicU64,
    pub(crate) ahead: SpinLock<ReadAhead>,
    /// What it was told of.
    pub(super) errors: ErrorCursor,
}

/// The same of a file without a disk.
pub(crate) struct OpenShm {
    /// Where it is.
    pub(super) directory: Directory,
    pub(super) file: Arc<TmpFile>,
    pub(super) appends: bool,
    pub(super) position: AtomicU64,
}

/// What a number stands for.
#[derive(Clone)]
enum Open {
    Disk(Arc<OpenFile>),
    Shm(Arc<OpenShm>),
}

/// See the module.
#[derive(Default)]
pub(crate) struct Descriptors {
    /// Nothing but the heap is locked under this lock.
    open: SpinLock<Vec<Option<Open>>>,
}

impl Descriptors {
    /// The lowest number that is free is the file's from now on.
    pub(super) fn add(&self, file: Arc<OpenFile>) -> Result<u64, Arc<OpenFile>> {
        self.place(Open::Disk(file.clone())).ok_or(file)
    }

    /// The same for a file without a disk, which needs nobody to close it.
    pub(super) fn add_shm(&self, file: OpenShm) -> Option<u64> {
        self.place(Open::Shm(Arc::new(file)))
    }

    fn place(&self, file: Open) -> Option<u64> {
        let mut open = self.open.lock();
        let vacant = open.iter().position(Option::is_none).unwrap_or(open.len());
        if vacant >= MOST {
            return None;
        }
        match open.get_mut(vacant) {
            Some(place) => *place = Some(file),
            None => open.push(Some(file)),
        }
        Some(FIRST_DESCRIPTOR + vacant as u64)
    }

    fn open(&self, descriptor: u64) -> Option<Open> {
        let open = self.open.lock();
        index(descriptor).and_then(|index| open.get(index))?.clone()
    }

    /// The file with a number.
    pub(super) fn find(&self, descriptor: u64) -> Result<Arc<OpenFile>, Error> {
        match self.open(descriptor) {
            Some(Open::Disk(open)) => Ok(open),
            Some(Open::Shm(_)) | None => Err(Error::BadDescriptor),
        }
    }

    /// The file without a disk with a number.
    pub(super) fn find_shm(&self, descriptor: u64) -> Option<Arc<OpenShm>> {
        match self.open(descriptor)? {
            Open::Shm(open) => Some(open),
            Open::Disk(_) => None,
        }
    }

    /// One through which the file of a mapping was opened.
    pub(super) fn of_mapping(&self, mapping: MappingId) -> Option<Arc<OpenFile>> {
        let open = self.open.lock();
        let found = open.iter().flatten().find_map(|open| match open {
            Open::Disk(open) if open.file.mapping() == mapping => Some(open),
            Open::Disk(_) | Open::Shm(_) => None,
        });
        found.cloned()
    }

    pub(super) fn remove(&self, descriptor: u64) -> Result<Arc<OpenFile>, Error> {
        match self.take(descriptor) {
            Some(Open::Disk(open)) => Ok(open),
            Some(Open::Shm(_)) | None => Err(Error::BadDescriptor),
        }
    }

    /// Gives up the file without a disk with a number.
    pub(super) fn remove_shm(&self, descriptor: u64) {
        drop(self.take(descriptor));
    }

    fn take(&self, descriptor: u64) -> Option<Open> {
        let mut open = self.open.lock();
        let place = index(descriptor).and_then(|index| open.get_mut(index));
        place.and_then(Option::take)
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
            if let (Open::Disk(open), Some(root)) = (open, root) {
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

impl OpenShm {
    pub(super) fn new((directory, file): (Directory, Arc<TmpFile>), appends: bool) -> Self {
        Self {
            directory,
            file,
            appends,
            position: AtomicU64::new(0),
        }
    }

    /// Where a call with this offset begins.
    pub(super) fn start(&self, offset: u64) -> u64 {
        match offset {
            AT_POSITION => self.position.load(Relaxed),
            offset => offset,
        }
    }

    /// A call with this offset came as far as `end`.
    pub(super) fn has_moved(&self, offset: u64, end: u64) {
        if offset == AT_POSITION {
            self.position.store(end, Relaxed);
        }
    }
}

impl OpenFile {
    pub(super) fn new(root: &RootFs, file: Arc<File>, appends: bool, is_direct: bool) -> Arc<Self> {
        Arc::new(Self {
            errors: root.error_cursor(&file),
            file,
            appends,
            is_direct,
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
