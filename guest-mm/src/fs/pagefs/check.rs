//! Whether a file system is whole: what `fsck` looks for, and finds without changing anything.

use alloc::collections::BTreeMap;
use alloc::vec;
use core::fmt;

use super::{Blocks, FsError, InodeNr, Kind, Volume};

/// What a whole file system has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Which commit it is.
    pub generation: u64,
    /// Files.
    pub files: u32,
    /// Directories, the root among them.
    pub directories: u32,
    /// Blocks in use.
    pub used_blocks: u32,
    /// Blocks.
    pub nr_blocks: u32,
}

/// What is wrong with one that is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// It cannot be read.
    Unreadable(FsError),
    /// A name leads to an inode that does not exist.
    NoInode(InodeNr),
    /// An inode has so many names, but says something else.
    Links(InodeNr, u32),
    /// A directory has more than one name, or is below itself.
    Loop(InodeNr),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(error) => error.fmt(f),
            Self::NoInode(nr) => write!(f, "a name leads to inode {}, which does not exist", nr.number()),
            Self::Links(nr, found) => {
                write!(
                    f,
                    "inode {} has {found} names, and says something else",
                    nr.number()
                )
            }
            Self::Loop(nr) => write!(f, "directory {} has more than one name", nr.number()),
        }
    }
}

impl core::error::Error for Damage {}

impl From<FsError> for Damage {
    fn from(error: FsError) -> Self {
        Self::Unreadable(error)
    }
}

/// Reads all metadata and all names: every block is used once, every checksum is right, every inode has the names that it
/// says, and can be reached.
///
/// # Errors
/// The first thing that is wrong.
pub async fn check<B: Blocks>(blocks: B) -> Result<Usage, Damage> {
    let mut volume = Volume::mount(blocks).await?;
    let mut names = BTreeMap::from([(InodeNr::ROOT, 1)]);
    let mut left = vec![InodeNr::ROOT];
    let mut usage = Usage {
        generation: volume.generation(),
        files: 0,
        directories: 0,
        used_blocks: volume.nr_blocks() - volume.nr_free(),
        nr_blocks: volume.nr_blocks(),
    };
    while let Some(directory) = left.pop() {
        usage.directories += 1;
        for record in volume.list(directory).await? {
            let kind = match volume.inode(record.inode).await {
                Ok(inode) => inode.kind,
                Err(FsError::NoInode(number)) => return Err(Damage::NoInode(number)),
                Err(error) => return Err(error.into()),
            };
            let known = names.entry(record.inode).or_insert(0);
            *known += 1;
            if kind == Kind::Directory {
                if *known > 1 {
                    return Err(Damage::Loop(record.inode));
                }
                left.push(record.inode);
            } else if *known == 1 {
                usage.files += 1;
            }
        }
    }
    let numbers: alloc::vec::Vec<InodeNr> = volume.inode_numbers().collect();
    for number in numbers {
        let found = names.get(&number).copied().unwrap_or(0);
        if volume.inode(number).await?.nr_links != found {
            return Err(Damage::Links(number, found));
        }
    }
    Ok(usage)
}
