//! A file in memory.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::String;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use guest_sync::SpinLock;

use super::super::gate::Gate;
use super::super::pagefs::{InodeNr, Name};
use crate::mm::MappingId;
use crate::report::FileName;

/// A file, as long as its inode is in memory.
#[derive(Debug)]
pub struct File {
    number: InodeNr,
    mapping: MappingId,
    /// What it was called when it came into memory; there are no links.
    path: Box<[Name]>,
    /// Whoever writes, or changes the size, has this.
    pub(super) writing: Gate<()>,
    /// Where the write that is under way ends; 0 without one. Bytes.
    pub(super) writer_end: AtomicU64,
    /// Pages that were given blocks to which nothing was written yet. Nothing else is locked under this lock.
    unwritten: SpinLock<BTreeSet<u32>>,
    /// A name leads to it.
    has_name: AtomicBool,
    /// Its mapping is gone, or about to be: whoever sets this removes it.
    is_ending: AtomicBool,
}

impl File {
    pub(super) fn new(number: InodeNr, mapping: MappingId, path: &[Name]) -> Self {
        Self {
            number,
            mapping,
            path: path.into(),
            writing: Gate::new(()),
            writer_end: AtomicU64::new(0),
            unwritten: SpinLock::new(BTreeSet::new()),
            has_name: AtomicBool::new(true),
            is_ending: AtomicBool::new(false),
        }
    }

    /// Number of its inode.
    pub const fn number(&self) -> InodeNr {
        self.number
    }

    /// Its pages.
    pub const fn mapping(&self) -> MappingId {
        self.mapping
    }

    /// What it is called, for those who look.
    pub fn name(&self) -> FileName {
        let mut path = String::new();
        for name in &self.path {
            // A string takes all there is.
            let _ = write!(path, "/{name}");
        }
        if !self.has_name() {
            path.push_str(" (deleted)");
        }
        FileName {
            inode: self.number.number(),
            path,
        }
    }

    /// Whether a name leads to it. Without one it is deleted when nobody uses it any more.
    pub fn has_name(&self) -> bool {
        self.has_name.load(Relaxed)
    }

    pub(super) fn lose_name(&self) {
        self.has_name.store(false, Relaxed);
    }

    /// True for the first who asks.
    pub(super) fn begin_end(&self) -> bool {
        !self.is_ending.swap(true, Relaxed)
    }

    /// It goes on, after all.
    pub(super) fn end_not(&self) {
        self.is_ending.store(false, Relaxed);
    }

    /// The page has a block from now on, to which nothing was written.
    pub(super) fn add_unwritten(&self, index: u32) {
        self.unwritten.lock().insert(index);
    }

    /// What the page's block holds is the page's. Frees memory and takes none.
    pub(super) fn written(&self, index: u32) {
        self.unwritten.lock().remove(&index);
    }

    /// Whether nothing was written to the page's block yet.
    pub(super) fn is_unwritten(&self, index: u32) -> bool {
        self.unwritten.lock().contains(&index)
    }

    /// Pages from `first` on are no part of it any more.
    pub(super) fn cut(&self, first: u32) {
        let gone = self.unwritten.lock().split_off(&first);
        drop(gone);
    }

    /// Pages to whose blocks nothing was written, in order.
    pub(super) fn unwritten(&self) -> alloc::vec::Vec<u64> {
        self.unwritten
            .lock()
            .iter()
            .map(|index| u64::from(*index))
            .collect()
    }
}
