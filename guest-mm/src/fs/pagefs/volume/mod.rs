//! A mounted file system: its metadata as it is now, and as it was at the last commit.
//!
//! Everything here is about metadata. Data of files is read and written by the caller, at the blocks that [`Volume::inode`] shows and
//! [`Volume::allocate`] adds, and is to be on the disk before the commit that makes it part of a file.
//!
//! The same code runs in the guest, where [`Blocks`] waits for a disk, and on the host, where it never does ([`super::run`]).

mod commit;
mod data;
mod inodes;
mod names;
mod space;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use super::inode::{BLOCK_EXTENTS, INODES_PER_BLOCK, RawInode, extents};
use super::pointers::{MAP_POINTERS, Pointer};
use super::superblock::{Superblock, newest};
use super::{Block, FormatError, Inode, InodeNr, Kind, NameError};
use crate::disk::IoError;
use crate::pfn::PAGE_BYTES;
use space::Space;

/// The blocks under a file system.
pub trait Blocks {
    /// How many there are.
    fn nr_blocks(&self) -> u64;
    /// Reads one.
    fn read(&self, block: u32) -> impl Future<Output = Result<Box<Block>, IoError>>;
    /// Writes one.
    fn write(&self, block: u32, contents: &Block) -> impl Future<Output = Result<(), IoError>>;
    /// Makes all writes that are done durable.
    fn flush(&self) -> impl Future<Output = Result<(), IoError>>;
}

/// Why something was not done. Nothing has changed then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsError {
    /// The disk failed.
    Io,
    /// The file system is damaged.
    Format(FormatError),
    /// A block is used twice, or a block that is in use was thought to be free.
    DoubleUse(u32),
    /// No block is free.
    NoSpace,
    /// No inode is free.
    NoInodes,
    /// There is no memory for an inode.
    NoMemory,
    /// There is no such inode.
    NoInode(InodeNr),
    /// Not a directory.
    NotADirectory(InodeNr),
    /// There is such a name already.
    Exists(InodeNr),
    /// There is no such name.
    NotFound,
    /// The directory has names in it.
    NotEmpty(InodeNr),
    /// It is a directory.
    IsADirectory(InodeNr),
    /// Not a name.
    Name(NameError),
    /// A superblock could not be written: which of two states the disk has is not known, so nothing is changed any more.
    ReadOnly,
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io => f.write_str("the disk reported an error"),
            Self::Format(error) => error.fmt(f),
            Self::DoubleUse(block) => write!(f, "block {block} is used twice"),
            Self::NoSpace => f.write_str("no block is free"),
            Self::NoInodes => f.write_str("no inode is free"),
            Self::NoMemory => f.write_str("no memory for an inode"),
            Self::NoInode(nr) => write!(f, "there is no inode {}", nr.number()),
            Self::NotADirectory(nr) => write!(f, "inode {} is not a directory", nr.number()),
            Self::Exists(nr) => write!(f, "there is such a name, of inode {}", nr.number()),
            Self::NotFound => f.write_str("there is no such name"),
            Self::NotEmpty(nr) => write!(f, "directory {} is not empty", nr.number()),
            Self::IsADirectory(nr) => write!(f, "inode {} is a directory", nr.number()),
            Self::Name(error) => error.fmt(f),
            Self::ReadOnly => {
                f.write_str("a superblock could not be written; the file system is read-only now")
            }
        }
    }
}

impl core::error::Error for FsError {}

impl From<IoError> for FsError {
    fn from(_: IoError) -> Self {
        Self::Io
    }
}

impl From<FormatError> for FsError {
    fn from(error: FormatError) -> Self {
        Self::Format(error)
    }
}

impl From<NameError> for FsError {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct Volume<B> {
    blocks: B,
    pub(super) superblock: Superblock,
    pub(super) map: Vec<Option<Pointer>>,
    /// Inodes that were looked at, and all that differ from what is on the disk.
    inodes: BTreeMap<InodeNr, Cached>,
    /// The inode blocks of all those, as they are on the disk, by pointer of the map: a commit reads nothing, so that what cannot be read any
    /// more fails nobody who has what he needs.
    inode_blocks: BTreeMap<usize, Box<Block>>,
    /// Which inodes exist, those that are not looked at too.
    exists: Vec<bool>,
    space: Space,
    read_only: bool,
}

/// An inode in memory.
#[derive(Clone, Debug, Default)]
struct Cached {
    /// `None`: it is being deleted.
    inode: Option<Inode>,
    /// Extent blocks that it has on the disk.
    on_disk: Vec<u32>,
    dirty: bool,
}

impl<B: Blocks> Volume<B> {
    /// Makes a new file system with an empty root directory of all the blocks, up to 2^32 - 1. What was there is gone.
    ///
    /// # Errors
    /// The disk fails, or is too small.
    pub async fn format(blocks: B) -> Result<Self, FsError> {
        let nr_blocks = u32::try_from(blocks.nr_blocks()).unwrap_or(u32::MAX);
        let mut space = Space::new(nr_blocks).ok_or(FormatError::Size(nr_blocks))?;
        let map_block = space.allocate(2).ok_or(FormatError::Size(nr_blocks))?;
        let nothing: Box<Block> = Box::new([0; PAGE_BYTES]);
        let map = Pointer::to(map_block, &nothing).expect("blocks 0 and 1 are in use");
        // Generation 0 is never written; no superblock is valid until the first commit.
        for block in [0, 1] {
            blocks.write(block, &nothing).await?;
        }
        let mut volume = Self {
            blocks,
            superblock: Superblock {
                nr_blocks,
                generation: 0,
                map,
            },
            map: vec![None; MAP_POINTERS],
            inodes: BTreeMap::new(),
            inode_blocks: BTreeMap::new(),
            exists: vec![false; InodeNr::END as usize],
            space,
            read_only: false,
        };
        volume.add_inode(InodeNr::ROOT, Inode::empty(Kind::Directory));
        volume.commit().await?;
        Ok(volume)
    }

    /// Mounts what is there: reads all metadata once to learn which blocks are free. Inodes that had no name left when the power
    /// went are deleted with the next commit.
    ///
    /// # Errors
    /// The disk fails, or what is there is not a file system without damage.
    pub async fn mount(blocks: B) -> Result<Self, FsError> {
        let superblocks = [blocks.read(0).await?, blocks.read(1).await?];
        let superblock = newest([&superblocks[0], &superblocks[1]], blocks.nr_blocks())?;
        let nr_blocks = superblock.nr_blocks;
        let space = Space::new(nr_blocks).ok_or(FormatError::Size(nr_blocks))?;
        let mut volume = Self {
            blocks,
            superblock,
            map: Vec::new(),
            inodes: BTreeMap::new(),
            inode_blocks: BTreeMap::new(),
            exists: vec![false; InodeNr::END as usize],
            space,
            read_only: false,
        };
        let map = volume.read_pointer(superblock.map).await?;
        volume.space.take(superblock.map.block())?;
        volume.map = (0..MAP_POINTERS)
            .map(|index| Pointer::at(&*map, 8 * index))
            .collect();
        for index in 0..MAP_POINTERS {
            volume.survey(index).await?;
        }
        Ok(volume)
    }

    /// Blocks that can be given to files and metadata now.
    pub fn nr_free(&self) -> u32 {
        self.space.nr_free()
    }

    /// Blocks of the file system.
    pub const fn nr_blocks(&self) -> u32 {
        self.superblock.nr_blocks
    }

    /// Which commit the disk has.
    pub const fn generation(&self) -> u64 {
        self.superblock.generation
    }

    /// The blocks underneath, for data.
    pub const fn blocks(&self) -> &B {
        &self.blocks
    }

    /// All inodes that exist.
    pub fn inode_numbers(&self) -> impl Iterator<Item = InodeNr> {
        let numbers = (0..).zip(&self.exists).filter(|(_, exists)| **exists);
        numbers.filter_map(|(number, _)| InodeNr::new(number))
    }

    /// The same state over other blocks, which hold the same.
    #[cfg(test)]
    pub(super) fn with_blocks<C>(&self, blocks: C) -> Volume<C> {
        Volume {
            blocks,
            superblock: self.superblock,
            map: self.map.clone(),
            inodes: self.inodes.clone(),
            inode_blocks: self.inode_blocks.clone(),
            exists: self.exists.clone(),
            space: self.space.clone(),
            read_only: self.read_only,
        }
    }

    /// Takes note of all that is used below one pointer of the map.
    async fn survey(&mut self, index: usize) -> Result<(), FsError> {
        let Some(pointer) = self.map[index] else {
            return Ok(());
        };
        self.space.take(pointer.block())?;
        let first = u32::try_from(index).expect("below 512") * INODES_PER_BLOCK;
        for number in (first..first + INODES_PER_BLOCK).filter_map(InodeNr::new) {
            let Some(inode) = self.read_inode(number).await? else {
                continue;
            };
            self.exists[number.number() as usize] = true;
            for block in inode.overflow.iter().copied().chain(inode.blocks()) {
                self.space.take(block)?;
            }
            if inode.nr_links == 0 {
                self.cache(number, inode);
                self.delete(number);
            }
        }
        self.let_go_of_block(index);
        Ok(())
    }

    /// Has the inode block of a pointer of the map in memory, if there is one.
    async fn load_block(&mut self, index: usize) -> Result<(), FsError> {
        if let Some(pointer) = self.map[index]
            && !self.inode_blocks.contains_key(&index)
        {
            let block = self.read_pointer(pointer).await?;
            self.inode_blocks.insert(index, block);
        }
        Ok(())
    }

    /// Forgets an inode block none of whose inodes is in memory.
    fn let_go_of_block(&mut self, index: usize) {
        if !self.inodes.keys().any(|number| number.map_index() == index) {
            self.inode_blocks.remove(&index);
        }
    }

    /// Reads an inode from the disk. `None` for one that does not exist there.
    async fn read_inode(&mut self, number: InodeNr) -> Result<Option<Inode>, FsError> {
        self.load_block(number.map_index()).await?;
        let Some(block) = self.inode_blocks.get(&number.map_index()) else {
            return Ok(None);
        };
        let Some(mut raw) = RawInode::at(&block[number.offset()..], number)? else {
            return Ok(None);
        };
        let (mut overflow, mut more) = (Vec::new(), raw.more);
        while let Some(pointer) = more {
            let block = self.read_pointer(pointer).await?;
            let left = (raw.nr_extents as usize).saturating_sub(raw.extents.len());
            // A chain that is longer than its inode says has no end.
            if left == 0 {
                return Err(FormatError::Inode(number.number()).into());
            }
            raw.extents.extend(extents(&block[8..], left.min(BLOCK_EXTENTS)));
            overflow.push(pointer.block());
            more = Pointer::at(&*block, 0);
        }
        Ok(Some(raw.complete(number, overflow, self.superblock.nr_blocks)?))
    }

    async fn read_pointer(&self, pointer: Pointer) -> Result<Box<Block>, FsError> {
        let block = pointer.block();
        if block < 2 || block >= self.superblock.nr_blocks {
            return Err(FormatError::OutOfRange(block).into());
        }
        let contents = self.blocks.read(block).await?;
        pointer.verify(&contents)?;
        Ok(contents)
    }
}
