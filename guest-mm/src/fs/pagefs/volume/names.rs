//! Directories.
//!
//! A directory's blocks are metadata: one that changes is written anew, and the old one stays until the commit.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::super::{Block, Inode, InodeNr, Kind, Name, Record};
use super::{Blocks, FsError, Volume};
use crate::pfn::{PAGE_BYTES, PAGE_SIZE};

/// Where a record is in its directory.
#[derive(Clone, Copy, Debug)]
struct Slot {
    page: u64,
    index: usize,
}

impl<B: Blocks> Volume<B> {
    /// What a name in a directory leads to.
    ///
    /// # Errors
    /// There is no such name or no such directory, the disk fails, or it is damaged.
    pub async fn lookup(&mut self, directory: InodeNr, name: &Name) -> Result<InodeNr, FsError> {
        let (_, record) = self.find(directory, name).await?.ok_or(FsError::NotFound)?;
        Ok(record.inode)
    }

    /// Everything in a directory, in no particular order.
    ///
    /// # Errors
    /// There is no such directory, the disk fails, or it is damaged.
    pub async fn list(&mut self, directory: InodeNr) -> Result<Vec<Record>, FsError> {
        let mut records = Vec::new();
        for page in 0..self.nr_pages(directory).await? {
            let block = self.directory_block(directory, page).await?;
            for index in 0..Record::PER_BLOCK {
                records.extend(Record::at(directory, &block, index)?);
            }
        }
        Ok(records)
    }

    /// Makes a file or a directory, without contents.
    ///
    /// # Errors
    /// The name is taken, nothing is free, or as [`Self::lookup`].
    pub async fn create(&mut self, directory: InodeNr, name: &Name, kind: Kind) -> Result<InodeNr, FsError> {
        self.writable()?;
        let number = self.free_number().await?;
        self.add_record(
            directory,
            Record {
                inode: number,
                name: *name,
            },
        )
        .await?;
        self.add_inode(number, Inode::empty(kind));
        Ok(number)
    }

    /// Gives a file one more name.
    ///
    /// # Errors
    /// It is a directory, or as [`Self::create`].
    pub async fn link(&mut self, directory: InodeNr, name: &Name, file: InodeNr) -> Result<(), FsError> {
        if self.inode(file).await?.kind == Kind::Directory {
            return Err(FsError::IsADirectory(file));
        }
        self.add_record(
            directory,
            Record {
                inode: file,
                name: *name,
            },
        )
        .await?;
        self.change(file, |inode| inode.nr_links += 1);
        Ok(())
    }

    /// Takes a name away; returns the inode that it led to, and how many names are left. One without any stays until
    /// [`Self::release`], for those who have it open; if the power goes before, it is deleted by the next mount.
    ///
    /// # Errors
    /// It is a directory with names in it, or as [`Self::lookup`].
    pub async fn unlink(&mut self, directory: InodeNr, name: &Name) -> Result<(InodeNr, u32), FsError> {
        self.writable()?;
        let (slot, record) = self.find(directory, name).await?.ok_or(FsError::NotFound)?;
        let number = record.inode;
        let inode = self.inode(number).await?;
        let left = inode.nr_links.saturating_sub(1);
        if inode.kind == Kind::Directory && !self.list(number).await?.is_empty() {
            return Err(FsError::NotEmpty(number));
        }
        self.rewrite(directory, slot, None).await?;
        self.change(number, |inode| inode.nr_links = left);
        Ok((number, left))
    }

    /// Deletes an inode that has no name and that nobody has open. One with names stays.
    ///
    /// # Errors
    /// As [`Self::inode`].
    pub async fn release(&mut self, number: InodeNr) -> Result<(), FsError> {
        self.writable()?;
        if self.inode(number).await?.nr_links == 0 {
            self.delete(number);
        }
        Ok(())
    }

    async fn nr_pages(&mut self, directory: InodeNr) -> Result<u64, FsError> {
        let inode = self.inode(directory).await?;
        if inode.kind == Kind::Directory {
            Ok(inode.size / PAGE_SIZE)
        } else {
            Err(FsError::NotADirectory(directory))
        }
    }

    async fn directory_block(&mut self, directory: InodeNr, page: u64) -> Result<Box<Block>, FsError> {
        match self.inode(directory).await?.block_of(page) {
            Some(block) => Ok(self.blocks.read(block).await?),
            None => Ok(Box::new([0; PAGE_BYTES])),
        }
    }

    async fn find(&mut self, directory: InodeNr, name: &Name) -> Result<Option<(Slot, Record)>, FsError> {
        for page in 0..self.nr_pages(directory).await? {
            let block = self.directory_block(directory, page).await?;
            for index in 0..Record::PER_BLOCK {
                match Record::at(directory, &block, index)? {
                    Some(record) if record.name == *name => return Ok(Some((Slot { page, index }, record))),
                    _ => {}
                }
            }
        }
        Ok(None)
    }

    async fn add_record(&mut self, directory: InodeNr, record: Record) -> Result<(), FsError> {
        self.writable()?;
        if let Some((_, there)) = self.find(directory, &record.name).await? {
            return Err(FsError::Exists(there.inode));
        }
        let nr_pages = self.nr_pages(directory).await?;
        for page in 0..nr_pages {
            let block = self.directory_block(directory, page).await?;
            for index in 0..Record::PER_BLOCK {
                if Record::at(directory, &block, index)?.is_none() {
                    return self.rewrite(directory, Slot { page, index }, Some(&record)).await;
                }
            }
        }
        let slot = Slot {
            page: nr_pages,
            index: 0,
        };
        self.rewrite(directory, slot, Some(&record)).await
    }

    /// Writes a directory's block with one record changed, to a new place; a block behind the last makes it longer.
    async fn rewrite(
        &mut self,
        directory: InodeNr,
        slot: Slot,
        record: Option<&Record>,
    ) -> Result<(), FsError> {
        let old = self.inode(directory).await?.block_of(slot.page);
        let mut block = self.directory_block(directory, slot.page).await?;
        Record::put(record, &mut block, slot.index);
        let new = self.space.allocate(old.unwrap_or(2)).ok_or(FsError::NoSpace)?;
        if let Err(error) = self.blocks.write(new, &block).await {
            self.space.free(new);
            return Err(error.into());
        }
        if let Some(old) = old {
            self.space.free_with_commit(old);
        }
        self.change(directory, |inode| {
            inode.size = inode.size.max((slot.page + 1) * PAGE_SIZE);
            let pages: Vec<u32> = (0..inode.size / PAGE_SIZE)
                .map(|page| {
                    if page == slot.page {
                        new
                    } else {
                        inode.block_of(page).unwrap_or(0)
                    }
                })
                .collect();
            inode.extents.clear();
            pages.into_iter().for_each(|block| inode.push_block(block));
        });
        Ok(())
    }
}
