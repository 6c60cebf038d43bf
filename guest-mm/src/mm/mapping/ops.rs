//! What a file system does for the pages of its files (Linux `address_space_operations`).
//!
//! Two traits, because there are two kinds of callers. [`AddressSpaceOps`] is asked by reclaim, migration and truncation in the middle
//! of their work, with the page locked: its methods return at once. [`FileSystem`] is asked by tasks that can wait for a disk.

use crate::disk::IoError;
use crate::gfp::Gfp;
use crate::mm::mapping::{FileError, FileIo, MappingId};
use crate::pfn::Pfn;

/// A page with something of the file system's on it. It is locked, or its mapping is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrivatePage {
    /// Of which file.
    pub mapping: MappingId,
    /// Which page of it.
    pub index: u32,
    /// Where it is.
    pub pfn: Pfn,
    /// What the file system has put there: for most, the number of the page's block.
    pub private: u32,
}

/// Who does what when a page moves that has something of the file system's on it: the three choices of Takahashi's talk on memory hotplug, 2003 (there: the method
/// is not defined, it moves the data, it does all).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Migration {
    /// The file system has no method of its own: a dirty page is written back first, the file system lets go of what it has on the page
    /// ([`AddressSpaceOps::releasepage`]), and the page moves without.
    Default,
    /// The data move with the page, and nothing is written for it ([`AddressSpaceOps::migrate_page`]).
    Data,
    /// The file system moves its pages itself, contents and all ([`AddressSpaceOps::take_over`]): it reaches them by ways that the memory
    /// manager does not know.
    Whole,
}

/// What becomes of a file system's own data on a page. Nothing here may wait, ask for memory or call the memory manager. A mapping's lock
/// may be held.
pub trait AddressSpaceOps: Send + Sync {
    /// The file system's name, for those who find its pages in the way.
    fn name(&self) -> &'static str {
        "an unnamed file system"
    }

    /// What frames its pages are to be in (Linux `mapping_gfp_mask`).
    fn gfp(&self) -> Gfp {
        Gfp::USER
    }

    /// How its pages move.
    fn migration(&self) -> Migration {
        Migration::Default
    }

    /// Who keeps all pages of the mapping where they are, for as long as it is there: pages that nobody may find missing at any moment.
    fn kept_by(&self) -> Option<&'static str> {
        None
    }

    /// The page is clean and is to go: whether the file system lets go of what it has on it (Linux `releasepage`).
    fn releasepage(&self, page: PrivatePage) -> bool {
        let _ = page;
        true
    }

    /// The page's part of the file is gone, and the page goes whatever the file system says (Linux `invalidatepage`).
    fn invalidatepage(&self, page: PrivatePage) {
        let _ = page;
    }

    /// The page could not be written for the second time, and counts as clean from now on: when it leaves memory, what was written to it
    /// is lost, and readers find what its block held before (Linux logs a "lost async page write").
    fn write_lost(&self, page: PrivatePage) {
        let _ = page;
    }

    /// With [`Migration::Data`]: the page's contents are in frame `to` now, which takes its place: what is to be on that one. As it is, the
    /// data go with the page; a file system that refers to its pages from elsewhere changes that here (Linux `migrate_page`).
    fn migrate_page(&self, page: PrivatePage, to: Pfn) -> u32 {
        let _ = to;
        page.private
    }

    /// With [`Migration::Whole`]: nobody but the file system reaches the page any more, and frame `to` is to take its place. It calls `copy`
    /// once, which copies the contents, while it keeps itself from changing them, and uses `to` from then on; returns what is to be on that
    /// one. `None`, without having copied, leaves the page where it is.
    fn take_over(&self, page: PrivatePage, to: Pfn, copy: &mut dyn FnMut()) -> Option<u32> {
        let _ = (page, to, copy);
        None
    }

    /// Whether the page may be moved at all, just now.
    fn is_movable(&self, page: PrivatePage) -> bool {
        let _ = page;
        true
    }
}

/// Data that go with the page and that nobody else refers to: the number of a block.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultOps;

impl AddressSpaceOps for DefaultOps {
    fn migration(&self) -> Migration {
        Migration::Data
    }
}

/// Files whose pages are read and written. Its futures may wait for as long as a disk takes; they must not wait for
/// a page of the same request.
pub trait FileSystem {
    /// Fills the pages of a request: finds the block of each, hangs it on the page ([`Mm::set_io_private`](crate::Mm::set_io_private)) and reads it;
    /// a page without a block is zeroed and has none hung on it.
    ///
    /// # Errors
    /// When a page could not be read.
    fn readpage(&self, io: &FileIo) -> impl Future<Output = Result<(), IoError>>;

    /// Writes the pages of a request to their blocks ([`Mm::io_private`](crate::Mm::io_private)), without a look at metadata and without asking for memory.
    ///
    /// # Errors
    /// When a page could not be written.
    fn writepage(&self, io: &FileIo) -> impl Future<Output = Result<(), IoError>>;

    /// Finds or reserves a block for a page that is about to be written to, and hangs it on the page
    /// ([`Mm::set_private`](crate::Mm::set_private)), which is in memory, up to date or not, and may be gone when this returns.
    ///
    /// # Errors
    /// When there is no block, or the disk failed.
    fn prepare_write(&self, mapping: MappingId, index: u32) -> impl Future<Output = Result<(), FileError>>;
}

/// Nothing behind the pages: for what is written to shared memory, whose pages the memory manager has swapped by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryOnly;

impl FileSystem for MemoryOnly {
    async fn readpage(&self, _io: &FileIo) -> Result<(), IoError> {
        Err(IoError)
    }

    async fn writepage(&self, _io: &FileIo) -> Result<(), IoError> {
        Err(IoError)
    }

    async fn prepare_write(&self, _mapping: MappingId, _index: u32) -> Result<(), FileError> {
        Ok(())
    }
}
