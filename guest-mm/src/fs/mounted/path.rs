//! Paths: what they lead to, and names made and taken away.
//!
//! A path whose every name is known is walked without the gate. That nothing was renamed under it is seen from the number of names
//! that were ever taken away: a number of an inode can stand for another file only after that.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Acquire, Release};

use super::super::names::Known;
use super::super::pagefs::{FsError, InodeNr, Kind, Name, Volume};
use super::{File, FrameBlocks, Machine, Mounted};
use crate::mm::mapping::MappingKind;

/// What to do about a file that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Missing {
    /// Nothing: that is an error.
    Fail,
    /// Make an empty one.
    Create,
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The inode.
    pub number: InodeNr,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Names that lead to it.
    pub nr_links: u32,
}

type Metadata<'m, X> = Volume<FrameBlocks<'m, X>>;

/// The names of a path of names between slashes.
fn names_of(path: &[u8]) -> Result<Vec<Name>, FsError> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty());
    parts.map(|part| Name::new(part).map_err(FsError::from)).collect()
}

impl<'m, X: Machine<'m>> Mounted<'m, X> {
    /// Opens a file: it stays in memory until [`Self::close`].
    ///
    /// # Errors
    /// There is nothing there, or a directory, or the disk failed; when it is to be created, no room.
    pub async fn open(&self, path: &[u8], missing: Missing) -> Result<Arc<File>, FsError> {
        let names = names_of(path)?;
        if let Some(file) = self.open_known(&names).await {
            return Ok(file);
        }
        let mut volume = self.volume.lock().await;
        let number = match self.walk(&mut volume, &names).await {
            Err(FsError::NotFound) if missing == Missing::Create => {
                self.make(&mut volume, &names, Kind::File).await?
            }
            number => number?,
        };
        self.hold(&mut volume, number, &names).await
    }

    /// What a path leads to.
    ///
    /// # Errors
    /// There is nothing there, or the disk failed.
    pub async fn stat(&self, path: &[u8]) -> Result<Entry, FsError> {
        let names = names_of(path)?;
        let mut volume = self.volume.lock().await;
        let number = self.walk(&mut volume, &names).await?;
        self.entry(&mut volume, number).await
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// There is such a name, nothing that it could be in, no room, or the disk failed.
    pub async fn make_directory(&self, path: &[u8]) -> Result<(), FsError> {
        let names = names_of(path)?;
        let mut volume = self.volume.lock().await;
        self.make(&mut volume, &names, Kind::Directory).await?;
        Ok(())
    }

    /// Takes a name away: of a file, which stays as long as somebody uses it, or of a directory without names in it.
    ///
    /// # Errors
    /// There is no such name, the directory is not empty, or the disk failed.
    pub async fn remove(&self, path: &[u8]) -> Result<(), FsError> {
        let names = names_of(path)?;
        let (name, above) = names.split_last().ok_or(FsError::IsADirectory(InodeNr::ROOT))?;
        let mut volume = self.volume.lock().await;
        let directory = self.walk(&mut volume, above).await?;
        let number = self.look(&mut volume, directory, name).await?;
        let kind = volume.inode(number).await?.kind;
        let (_, left) = volume.unlink(directory, name).await?;
        self.removals.fetch_add(1, Release);
        self.names.enter(directory, name, Known::Missing);
        if kind == Kind::Directory {
            self.names.forget_directory(number);
            return volume.release(number).await;
        }
        if left > 0 {
            return Ok(());
        }
        let Some(file) = self.inodes.peek(number) else {
            return volume.release(number).await;
        };
        file.lose_name();
        drop(volume);
        if self.inodes.holders(number) == 0 {
            self.delete(&file).await;
        }
        Ok(())
    }

    /// Everything in a directory, in no particular order.
    ///
    /// # Errors
    /// It is none, or the disk failed.
    pub async fn list(&self, path: &[u8]) -> Result<Vec<(Name, InodeNr)>, FsError> {
        let names = names_of(path)?;
        let mut volume = self.volume.lock().await;
        let directory = self.walk(&mut volume, &names).await?;
        let records = volume.list(directory).await?;
        Ok(records
            .into_iter()
            .map(|record| (record.name, record.inode))
            .collect())
    }

    /// The file, if its inode and every name that leads to it are in memory.
    async fn open_known(&self, names: &[Name]) -> Option<Arc<File>> {
        let seen = self.removals.load(Acquire);
        let mut number = InodeNr::ROOT;
        for name in names {
            match self.names.lookup(number, name)? {
                Known::Inode(found) => number = found,
                Known::Missing => return None,
            }
        }
        let file = self.inodes.hold(number)?;
        if self.removals.load(Acquire) == seen {
            return Some(file);
        }
        self.close(&file).await;
        None
    }

    /// What names lead to, from the root directory on.
    async fn walk(&self, volume: &mut Metadata<'m, X>, names: &[Name]) -> Result<InodeNr, FsError> {
        let mut number = InodeNr::ROOT;
        for name in names {
            number = self.look(volume, number, name).await?;
        }
        Ok(number)
    }

    async fn look(
        &self,
        volume: &mut Metadata<'m, X>,
        directory: InodeNr,
        name: &Name,
    ) -> Result<InodeNr, FsError> {
        match self.names.lookup(directory, name) {
            Some(Known::Inode(number)) => return Ok(number),
            Some(Known::Missing) => return Err(FsError::NotFound),
            None => {}
        }
        let found = volume.lookup(directory, name).await;
        match found {
            Ok(number) => self.names.enter(directory, name, Known::Inode(number)),
            Err(FsError::NotFound) => self.names.enter(directory, name, Known::Missing),
            Err(_) => {}
        }
        found
    }

    async fn make(
        &self,
        volume: &mut Metadata<'m, X>,
        names: &[Name],
        kind: Kind,
    ) -> Result<InodeNr, FsError> {
        let (name, above) = names.split_last().ok_or(FsError::Exists(InodeNr::ROOT))?;
        let directory = self.walk(volume, above).await?;
        let number = volume.create(directory, name, kind).await?;
        self.names.enter(directory, name, Known::Inode(number));
        Ok(number)
    }

    /// Holds a file's inode, which comes into memory if it is not there.
    async fn hold(
        &self,
        volume: &mut Metadata<'m, X>,
        number: InodeNr,
        names: &[Name],
    ) -> Result<Arc<File>, FsError> {
        if let Some(file) = self.inodes.hold(number) {
            return Ok(file);
        }
        let entry = self.entry(volume, number).await?;
        if entry.kind == Kind::Directory {
            return Err(FsError::IsADirectory(number));
        }
        let mapping = self
            .mm()
            .create_mapping(MappingKind::File(self.ops.clone()), entry.size);
        let file = Arc::new(File::new(number, mapping, names));
        self.files.lock().insert(mapping, file.clone());
        if self.inodes.add(number, file.clone()) {
            return Ok(file);
        }
        self.files.lock().remove(&mapping);
        let _ = self.mm().remove_mapping(mapping);
        Err(FsError::NoMemory)
    }

    async fn entry(&self, volume: &mut Metadata<'m, X>, number: InodeNr) -> Result<Entry, FsError> {
        let inode = volume.inode(number).await?;
        // A file that is in memory may have grown since it was last committed.
        let grown = self.inodes.peek(number).map(|file| self.size(&file));
        Ok(Entry {
            number,
            kind: inode.kind,
            size: grown.unwrap_or(inode.size),
            nr_links: inode.nr_links,
        })
    }
}
