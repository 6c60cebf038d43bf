//! Inodes, and blocks of files.

use alloc::vec::Vec;

use super::super::inode::INODES_PER_BLOCK;
use super::super::{Extent, Inode, InodeNr};
use super::{Blocks, Cached, FsError, Volume};
use crate::pfn::PAGE_SIZE;

impl<B: Blocks> Volume<B> {
    /// What an inode says now.
    ///
    /// # Errors
    /// There is no such inode, the disk fails, or it is damaged.
    pub async fn inode(&mut self, number: InodeNr) -> Result<&Inode, FsError> {
        let missing = FsError::NoInode(number);
        if !self.exists[number.number() as usize] {
            return Err(missing);
        }
        if !self.inodes.contains_key(&number) {
            let inode = self.read_inode(number).await?.ok_or(missing)?;
            self.cache(number, inode);
        }
        let cached = self.inodes.get(&number).and_then(|cached| cached.inode.as_ref());
        cached.ok_or(missing)
    }

    /// A number that no inode has, of an inode block that can be read.
    pub(super) async fn free_number(&mut self) -> Result<InodeNr, FsError> {
        let (mut next, mut error) = (1, FsError::NoInodes);
        while let Some(number) = InodeNr::new(next) {
            next += 1;
            if self.exists[number.number() as usize] {
                continue;
            }
            match self.load_block(number.map_index()).await {
                Ok(()) => return Ok(number),
                Err(unreadable) => {
                    error = unreadable;
                    next = (number.number() / INODES_PER_BLOCK + 1) * INODES_PER_BLOCK;
                }
            }
        }
        Err(error)
    }

    /// The block of page `index` of a file, which is made where there is none: its contents are the caller's to write. Whether it is
    /// new is returned too. The size stays; a page beyond it is lost if the size does not follow before the inode is forgotten.
    ///
    /// # Errors
    /// As [`Self::inode`], or no block is free.
    pub async fn allocate(&mut self, number: InodeNr, index: u64) -> Result<(u32, bool), FsError> {
        self.writable()?;
        let inode = self.inode(number).await?;
        if let Some(block) = inode.block_of(index) {
            return Ok((block, false));
        }
        let before = index.checked_sub(1).and_then(|index| inode.block_of(index));
        // Metadata is looked for from the beginning: as long as there is room, data leaves an eighth to it.
        let near = before.map_or(self.superblock.nr_blocks / 8, |block| block + 1);
        let block = self.space.allocate_for_data(near).ok_or(FsError::NoSpace)?;
        self.change(number, |inode| {
            push_hole(inode, (index + 1).saturating_sub(inode.covered()));
            set_block(inode, index, block);
        });
        Ok((block, true))
    }

    /// Takes a block back that [`Self::allocate`] made and that nothing was written to, from an inode that is in memory.
    pub fn take_back(&mut self, number: InodeNr, index: u64) {
        let cached = self.inodes.get(&number).and_then(|cached| cached.inode.as_ref());
        let Some(block) = cached.and_then(|inode| inode.block_of(index)) else {
            return;
        };
        self.change(number, |inode| set_block(inode, index, 0));
        self.space.free_with_commit(block);
    }

    /// Sets the size of a file. Blocks beyond go, and are free after the next commit; a file that grows ends in a hole.
    ///
    /// # Errors
    /// As [`Self::inode`].
    pub async fn set_size(&mut self, number: InodeNr, size: u64) -> Result<(), FsError> {
        self.writable()?;
        let nr_pages = size.div_ceil(PAGE_SIZE);
        let inode = self.inode(number).await?;
        if inode.size == size && inode.covered() == nr_pages {
            return Ok(());
        }
        let mut dropped = Vec::new();
        self.change(number, |inode| {
            inode.size = size;
            dropped = fit(inode, nr_pages);
        });
        for block in dropped {
            self.space.free_with_commit(block);
        }
        Ok(())
    }

    /// The same for a file whose size follows later, if it grows ([`Self::grow`]).
    ///
    /// # Errors
    /// As [`Self::inode`].
    pub async fn cut(&mut self, number: InodeNr, size: u64) -> Result<(), FsError> {
        let known = self.inode(number).await?.size;
        self.set_size(number, size).await?;
        if size > known {
            self.change(number, |inode| inode.size = known);
        }
        Ok(())
    }

    /// Makes a file larger, if it is not already: blocks beyond its size become part of it.
    ///
    /// # Errors
    /// As [`Self::inode`].
    pub async fn grow(&mut self, number: InodeNr, size: u64) -> Result<(), FsError> {
        let inode = self.inode(number).await?;
        if inode.size >= size {
            return Ok(());
        }
        self.writable()?;
        self.change(number, |inode| {
            inode.size = size;
            push_hole(inode, size.div_ceil(PAGE_SIZE).saturating_sub(inode.covered()));
        });
        Ok(())
    }

    /// Bytes of a file, as its inode says, if that is in memory.
    pub fn known_size(&self, number: InodeNr) -> Option<u64> {
        self.inodes.get(&number)?.inode.as_ref().map(|inode| inode.size)
    }

    /// Forgets an inode that is as it is on the disk: a shrinker's work. Whether it is not in memory any more.
    pub fn forget(&mut self, number: InodeNr) -> bool {
        let is_dirty = |cached: &Cached| cached.dirty;
        let keep = self.inodes.get(&number).is_some_and(is_dirty);
        if !keep {
            self.inodes.remove(&number);
            self.let_go_of_block(number.map_index());
        }
        !keep
    }

    /// Inodes in memory, and how many of them differ from the disk.
    pub fn cached(&self) -> (usize, usize) {
        let dirty = self.inodes.values().filter(|cached| cached.dirty).count();
        (self.inodes.len(), dirty)
    }

    pub(super) fn writable(&self) -> Result<(), FsError> {
        if self.read_only {
            Err(FsError::ReadOnly)
        } else {
            Ok(())
        }
    }

    pub(super) fn cache(&mut self, number: InodeNr, inode: Inode) {
        let cached = Cached {
            on_disk: inode.overflow.clone(),
            inode: Some(inode),
            dirty: false,
        };
        self.inodes.insert(number, cached);
    }

    /// A new inode, which the disk does not have.
    pub(super) fn add_inode(&mut self, number: InodeNr, inode: Inode) {
        self.exists[number.number() as usize] = true;
        // The inode with that number before may be on the disk still.
        let cached = self.inodes.entry(number).or_default();
        cached.inode = Some(inode);
        cached.dirty = true;
    }

    /// Changes an inode that was looked at.
    pub(super) fn change(&mut self, number: InodeNr, change: impl FnOnce(&mut Inode)) {
        if let Some(cached) = self.inodes.get_mut(&number)
            && let Some(inode) = &mut cached.inode
        {
            change(inode);
            cached.dirty = true;
        }
    }

    /// Deletes an inode that was looked at, with its blocks.
    pub(super) fn delete(&mut self, number: InodeNr) {
        let Some(cached) = self.inodes.get_mut(&number) else {
            return;
        };
        cached.dirty = true;
        let inode = cached.inode.take();
        for block in inode.iter().flat_map(Inode::blocks) {
            self.space.free_with_commit(block);
        }
        self.exists[number.number() as usize] = false;
    }
}

/// Makes `block` that of page `index`, which the extents cover; 0 for none.
fn set_block(inode: &mut Inode, index: u64, block: u32) {
    let extents = core::mem::take(&mut inode.extents);
    let mut at = 0;
    for extent in extents {
        let end = at + u64::from(extent.len);
        if (at..end).contains(&index) {
            let before = u32::try_from(index - at).unwrap_or(0);
            inode.push(extent.part(0, before));
            inode.push(Extent { first: block, len: 1 });
            inode.push(extent.part(before + 1, extent.len));
        } else {
            inode.push(extent);
        }
        at = end;
    }
}

/// Makes the extents cover so many pages; returns the blocks that are left over.
fn fit(inode: &mut Inode, nr_pages: u64) -> Vec<u32> {
    let extents = core::mem::take(&mut inode.extents);
    let (mut dropped, mut left) = (Vec::new(), nr_pages);
    for extent in extents {
        let kept = u32::try_from(left).unwrap_or(u32::MAX).min(extent.len);
        inode.push(extent.part(0, kept));
        if extent.first != 0 {
            dropped.extend(extent.first + kept..extent.first + extent.len);
        }
        left -= u64::from(kept);
    }
    push_hole(inode, left);
    dropped
}

fn push_hole(inode: &mut Inode, mut nr_pages: u64) {
    while nr_pages > 0 {
        let len = u32::try_from(nr_pages).unwrap_or(u32::MAX);
        inode.push(Extent { first: 0, len });
        nr_pages -= u64::from(len);
    }
}
