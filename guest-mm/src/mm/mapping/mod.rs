//! Mappings: pages that are found by a file and their place in it (Linux `struct address_space`).
//!
//! A mapping has the pages of one file that are in memory, in a tree by their index, and knows the address spaces whose areas
//! map it. What the file is, it does not know: a file system fills and writes its pages when it is asked to ([`FileIo`]), and
//! a mapping of shared memory ([`MappingKind::Shmem`]) has nothing behind it but swap.
//!
//! Every page in the tree has a reference for that. Who finds a page takes another one, while the tree is locked, and then the page
//! lock, and looks whether the page is still the mapping's. Under the page lock a page gets its contents, is made dirty, is mapped,
//! leaves the tree. A page whose contents come from the disk is locked until they are there.

mod dirty;
mod errors;
mod file;
mod invalidate;
mod io;
mod lookup;
mod ops;
mod page;
mod read_ahead;
mod shmem;
mod table;
mod truncate;
mod write_back;

use alloc::collections::BTreeSet;
use alloc::sync::Arc;
use core::fmt;
use core::num::NonZeroU32;

use guest_sync::{SpinGuard, SpinLock};

use crate::frames::SpaceId;
use crate::gfp::Gfp;
use crate::mm::CopyError;
use crate::pfn::{PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::radix_tree::RadixTree;
use crate::swap::SlotNr;
use crate::wait::WaitQueue;

pub(crate) use dirty::Dirty;
pub use dirty::{DirtyLimits, DirtyRatios};
pub use errors::ErrorCursor;
pub(crate) use errors::WriteErrors;
pub(crate) use file::{Piece, page_buffer, piece};
pub use io::{FileIo, IoDirection};
pub(crate) use io::{FileIoQueue, WhyRead, WhyWrite};
pub use lookup::PageLookup;
pub(crate) use lookup::Reach;
pub use ops::{AddressSpaceOps, DefaultOps, FileSystem, MemoryOnly, Migration, PrivatePage};
pub use page::LockedPage;
pub(crate) use page::private_page;
pub use read_ahead::ReadAhead;
pub use table::CacheUse;
pub(crate) use table::{Mappings, id_of};

/// Number of a mapping. Never 0; reused after the mapping is gone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MappingId(pub(crate) NonZeroU32);

impl MappingId {
    /// The number.
    pub const fn number(self) -> u32 {
        self.0.get()
    }
}

/// What is behind the pages of a mapping.
#[derive(Clone)]
pub enum MappingKind {
    /// A file: its pages are read and written by its file system, which may keep something of its own on them.
    File(Arc<dyn AddressSpaceOps>),
    /// Memory only (Linux `shmem`, `tmpfs`): zeroes at first, and pages that memory has no room for go to the swap area.
    Shmem,
    /// Memory only, and without a place anywhere else (Linux `ramfs`, `brd`): zeroes at first, and pages that never leave memory.
    /// They move by remap alone (Takahashi, memory hotplug, 2003: "pages without secondary storage").
    Ram(Arc<dyn AddressSpaceOps>),
}

impl fmt::Debug for MappingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File(_) => "File",
            Self::Shmem => "Shmem",
            Self::Ram(_) => "Ram",
        })
    }
}

impl MappingKind {
    /// Whether pages that were written to are written to a file in the end.
    pub(crate) const fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Whether its pages have nowhere to go but to other frames.
    pub(crate) const fn is_ram(&self) -> bool {
        matches!(self, Self::Ram(_))
    }

    /// Whoever has something of his own on the pages.
    pub(crate) fn ops(&self) -> Option<&dyn AddressSpaceOps> {
        match self {
            Self::File(ops) | Self::Ram(ops) => Some(&**ops),
            Self::Shmem => None,
        }
    }

    /// What frames its pages are to be in.
    pub(crate) fn gfp(&self) -> Gfp {
        self.ops().map_or(Gfp::USER, AddressSpaceOps::gfp)
    }
}

/// What is at an index of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    /// A page. The tree has a reference to it.
    Page(Pfn),
    /// A page of shared memory that is in the swap area. The tree is a user of the slot.
    Slot(SlotNr),
    /// A page of shared memory that was lost with its frame. It cannot be read any more.
    Lost,
}

/// See the module. Locked after an address space, and before what physical memory locks; two mappings never at a time.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) id: MappingId,
    pub(crate) kind: MappingKind,
    state: SpinLock<MappingState>,
    /// Those who wait until no area maps it.
    unmapped: WaitQueue,
}

#[derive(Debug)]
pub(crate) struct MappingState {
    pub(crate) tree: RadixTree<Content>,
    /// Bytes of the file. Pages beyond it are neither mapped nor read.
    pub(crate) size: u64,
    /// Address spaces that have areas of it.
    pub(crate) members: BTreeSet<SpaceId>,
    /// Pages that could not be written.
    errors: WriteErrors,
    /// When the first of its dirty pages became dirty, by [`Mm::set_time`](crate::Mm::set_time); `None` without any.
    dirtied_at: Option<u64>,
    /// It is being removed: no page is added any more.
    has_ended: bool,
}

impl Mapping {
    fn new(id: MappingId, kind: MappingKind, size: u64) -> Self {
        Self {
            id,
            kind,
            state: SpinLock::new(MappingState {
                tree: RadixTree::new(),
                size,
                members: BTreeSet::new(),
                errors: WriteErrors::default(),
                dirtied_at: None,
                has_ended: false,
            }),
            unmapped: WaitQueue::new(),
        }
    }

    pub(crate) fn lock(&self) -> SpinGuard<'_, MappingState> {
        self.state.lock()
    }
}

impl MappingState {
    /// Pages of the file, the last of which may be used in part.
    pub(crate) const fn nr_pages(&self) -> u64 {
        self.size.div_ceil(PAGE_SIZE)
    }

    /// Since when it has dirty pages, by write-back's account.
    pub(crate) const fn dirtied_at(&self) -> Option<u64> {
        self.dirtied_at
    }

    /// Whether the page at `index` is part of the file.
    pub(crate) fn has_index(&self, index: u32) -> bool {
        u64::from(index) < self.nr_pages()
    }
}

/// The page in which byte `offset` of a file is. `None` where no file reaches: beyond 16 TiB.
pub(crate) fn index_of(offset: u64) -> Option<u32> {
    u32::try_from(offset >> PAGE_SHIFT).ok()
}

/// A page of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FilePlace {
    /// Of which mapping.
    pub mapping: MappingId,
    /// Which page of it.
    pub index: u32,
}

/// Why something with a file was not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileError {
    /// No such mapping.
    Unknown(MappingId),
    /// The mapping has pages, or areas map it.
    InUse(MappingId),
    /// No frame for a page, or no room in the tree. The same call may succeed when memory has come.
    OutOfMemory,
    /// The page could not be read, or a page was not written since this was last asked. Another try reads, or writes, again.
    Io,
    /// The file system has no block for the page.
    NoSpace,
    /// Beyond 16 TiB.
    TooLarge,
    /// The program's memory cannot be read, or not be written.
    Copy(CopyError),
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(id) => write!(f, "no mapping {}", id.number()),
            Self::InUse(id) => write!(f, "mapping {} has pages or is mapped", id.number()),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Io => f.write_str("a page of the file could not be read or written"),
            Self::NoSpace => f.write_str("no block is free for a page of the file"),
            Self::TooLarge => f.write_str("files end at 16 TiB"),
            Self::Copy(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for FileError {}

impl From<CopyError> for FileError {
    fn from(error: CopyError) -> Self {
        Self::Copy(error)
    }
}
