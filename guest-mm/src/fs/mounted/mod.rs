//! A mounted PageFS: its names and inodes in caches, its data in the page cache, its metadata behind a gate.
//!
//! *Data* is in pages of mappings ([`crate::mm`]); each page that has a block carries its number (`PG_private`), so that it is
//! written, by whoever and for whatever reason, without a look at metadata. *Metadata* is in a [`Volume`], which one task at a time
//! has. Data never waits for metadata that is being committed, nor the other way round: a block that a file was given since it
//! was last written is *unwritten*, and the file has a hole there on the disk until the data has arrived.
//!
//! Order of waits: a file's lock for writing, then the volume's gate, then pages. Nothing waits for a page with the gate taken.

mod block_cache;
mod blocks;
mod data;
mod delete;
mod direct;
mod file;
mod flags;
mod io;
mod ops;
mod path;
mod sync;

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use core::any::Any;
use core::fmt;
use core::sync::atomic::AtomicU64;

use guest_sync::{Cpu, SpinLock};

use super::gate::Gate;
use super::inodes::{InodeCache, InodeStat, Node};
use super::names::{Dentry, NameCache, NameStat};
use super::pagefs::{FsError, InodeNr, Volume};
use super::store::Store;
use crate::disk::{IoError, Request};
use crate::frames::{Frames, Mmu};
use crate::mempool::ThisCpu;
use crate::mm::{FilePlace, MappingId, Mm};
use crate::report::FileName;

pub use blocks::FrameBlocks;
pub use data::WriteAt;
pub use file::File;
pub use flags::{MountFlags, UnknownFlag};
pub use ops::{PageOps, PageOpsStat};
pub use path::{Entry, Missing};
pub use sync::{Age, Round};

/// What belongs to a request as long as the disk works on it.
pub type Keep = Option<Arc<dyn Any + Send + Sync>>;

/// What a file system runs on: memory, and a disk.
pub trait Machine<'m>: Clone + ThisCpu {
    /// Contents of memory.
    type Frames: Frames;
    /// Translation caches.
    type Mmu: Mmu;
    /// Where entries of the cache of names live.
    type Names: Store<Dentry>;
    /// Where inodes in memory live.
    type Inodes: Store<Node<Arc<File>>>;

    /// Memory.
    fn mm(&self) -> &Mm<'m, Self::Frames, Self::Mmu>;

    /// Blocks of the disk.
    fn nr_blocks(&self) -> u64;

    /// Has the disk do something. It is done even if nobody waits for it any more: `keep` is dropped when the disk is done with the frames.
    fn request(&self, request: Request, keep: Keep) -> impl Future<Output = Result<(), IoError>>;
}

/// See the module.
pub struct Mounted<'m, X: Machine<'m>> {
    machine: X,
    volume: Gate<Volume<FrameBlocks<'m, X>>>,
    names: NameCache<X::Names>,
    inodes: InodeCache<Arc<File>, X::Inodes>,
    /// Files in memory by what the page cache calls them.
    files: SpinLock<BTreeMap<MappingId, Arc<File>>>,
    /// Files without a name that nobody has open and that are mapped still.
    orphans: SpinLock<BTreeSet<InodeNr>>,
    /// Names that were taken away, ever: what was looked up without the gate before one more was is looked up again.
    removals: AtomicU64,
    ops: Arc<PageOps>,
}

impl<'m, X: Machine<'m>> Mounted<'m, X> {
    /// Mounts what is on the machine's disk, with objects of its caches out of these stores.
    ///
    /// # Errors
    /// As [`Volume::mount`], or there is no memory for it.
    pub async fn mount(
        machine: X,
        names: X::Names,
        inodes: X::Inodes,
        flags: MountFlags,
    ) -> Result<Self, FsError> {
        let blocks = FrameBlocks::new(machine.clone()).map_err(|_| FsError::NoMemory)?;
        Ok(Self {
            machine,
            volume: Gate::new(Volume::mount(blocks).await?),
            names: NameCache::new(names),
            inodes: InodeCache::new(inodes),
            files: SpinLock::new(BTreeMap::new()),
            orphans: SpinLock::new(BTreeSet::new()),
            removals: AtomicU64::new(0),
            ops: Arc::new(PageOps::new(flags.migration())),
        })
    }

    /// The cache of names, which is a shrinker.
    pub const fn names(&self) -> &NameCache<X::Names> {
        &self.names
    }

    /// The cache of inodes.
    pub const fn inodes(&self) -> &InodeCache<Arc<File>, X::Inodes> {
        &self.inodes
    }

    /// Blocks of the disk.
    pub fn nr_blocks(&self) -> u64 {
        self.machine.nr_blocks()
    }

    /// What is in the caches, and what was found there.
    pub fn cache_stat(&self) -> (NameStat, InodeStat) {
        (self.names.stat(), self.inodes.stat())
    }

    /// What became of private data on pages.
    pub fn page_ops(&self) -> PageOpsStat {
        self.ops.stat()
    }

    /// The next page that could not be written and is not tried again, of the first 64 since this was last asked: for whoever reports them
    /// (Linux `lost async page write`). [`PageOpsStat::lost`] counts all.
    pub fn take_lost_page(&self) -> Option<FilePlace> {
        self.ops.take_loss()
    }

    fn mm(&self) -> &Mm<'m, X::Frames, X::Mmu> {
        self.machine.mm()
    }

    /// The CPU on which a future is just being polled.
    const fn here(&self) -> &X {
        &self.machine
    }

    fn cpu(&self) -> &Cpu {
        self.machine.this_cpu()
    }

    /// What the file of a mapping is called, if it is one of this file system's.
    pub fn name_of(&self, mapping: MappingId) -> Option<FileName> {
        self.file_of(mapping).map(|file| file.name())
    }

    fn file_of(&self, mapping: MappingId) -> Option<Arc<File>> {
        self.files.lock().get(&mapping).cloned()
    }
}

impl<'m, X: Machine<'m>> fmt::Debug for Mounted<'m, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mounted").finish_non_exhaustive()
    }
}
