//! What becomes of the block numbers on pages.

use alloc::collections::VecDeque;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest_sync::SpinLock;

use crate::mm::FilePlace;
use crate::mm::mapping::{AddressSpaceOps, Migration, PrivatePage};
use crate::pfn::Pfn;

/// The private data of a page is the number of its block: it goes with the page when that moves, without anything being written, and
/// is dropped when the page goes, for the inode knows it too. So it can be dropped when the page moves, once that is written, if the mount
/// is to have no method of its own ([`super::MountFlags`]).
#[derive(Debug)]
pub struct PageOps {
    migration: Migration,
    released: AtomicU64,
    invalidated: AtomicU64,
    migrated: AtomicU64,
    lost: AtomicU64,
    /// The latest of those, until somebody asks.
    losses: SpinLock<VecDeque<FilePlace>>,
}

/// Lost pages that are remembered by name: a disk that takes nothing any more loses all of them.
const MOST_LOSSES: usize = 64;

/// How often what was done, since the file system was mounted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PageOpsStat {
    /// Pages that left memory clean, or moved without their block number (`releasepage`).
    pub released: u64,
    /// Pages that were cut off a file (`invalidatepage`).
    pub invalidated: u64,
    /// Pages that moved to another frame with their block number (`migrate_page`).
    pub migrated: u64,
    /// Pages that could not be written, and are not tried again (`write_lost`).
    pub lost: u64,
}

impl PageOps {
    pub(super) fn new(migration: Migration) -> Self {
        Self {
            migration,
            released: AtomicU64::new(0),
            invalidated: AtomicU64::new(0),
            migrated: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            losses: SpinLock::new(VecDeque::with_capacity(MOST_LOSSES)),
        }
    }

    pub(super) fn take_loss(&self) -> Option<FilePlace> {
        self.losses.lock().pop_front()
    }

    pub(super) fn stat(&self) -> PageOpsStat {
        PageOpsStat {
            released: self.released.load(Relaxed),
            invalidated: self.invalidated.load(Relaxed),
            migrated: self.migrated.load(Relaxed),
            lost: self.lost.load(Relaxed),
        }
    }
}

impl AddressSpaceOps for PageOps {
    fn name(&self) -> &'static str {
        "pagefs"
    }

    fn migration(&self) -> Migration {
        self.migration
    }

    fn releasepage(&self, _: PrivatePage) -> bool {
        self.released.fetch_add(1, Relaxed);
        true
    }

    fn invalidatepage(&self, _: PrivatePage) {
        self.invalidated.fetch_add(1, Relaxed);
    }

    fn write_lost(&self, page: PrivatePage) {
        self.lost.fetch_add(1, Relaxed);
        let mut losses = self.losses.lock();
        // There is room, and the heap is not used.
        if losses.len() < MOST_LOSSES {
            losses.push_back(FilePlace {
                mapping: page.mapping,
                index: page.index,
            });
        }
    }

    fn migrate_page(&self, page: PrivatePage, _: Pfn) -> u32 {
        self.migrated.fetch_add(1, Relaxed);
        page.private
    }
}
