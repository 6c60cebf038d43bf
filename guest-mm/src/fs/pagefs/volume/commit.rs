//! Making the state of now that of the disk, all at once.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::super::inode::{BLOCK_EXTENTS, INLINE_EXTENTS, INODE_BYTES, extent_block};
use super::super::pointers::{MAP_POINTERS, Pointer};
use super::super::superblock::Superblock;
use super::super::{Block, Inode, InodeNr};
use super::{Blocks, FsError, Volume};
use crate::pfn::PAGE_BYTES;

/// A commit that is being written: what will be there if it is done.
#[derive(Default)]
struct Draft {
    /// All blocks that are new.
    fresh: Vec<u32>,
    /// Blocks that only the last commit uses.
    stale: Vec<u32>,
    /// New pointers of the map, and what they point to.
    map: BTreeMap<usize, Option<(Pointer, Box<Block>)>>,
    /// What was written of inodes.
    inodes: Vec<Written>,
}

/// An inode in a commit.
struct Written {
    number: InodeNr,
    /// Its extent blocks.
    overflow: Vec<u32>,
    /// Not all of it is there: it has hidden pages.
    is_more: bool,
}

impl<B: Blocks> Volume<B> {
    /// Commits everything that was changed. Data of new blocks of files has to be written already; that it is durable too when
    /// this is done is seen to here. Without changes it is a flush.
    ///
    /// # Errors
    /// As [`Self::commit_hiding`].
    pub async fn commit(&mut self) -> Result<(), FsError> {
        self.commit_hiding(|_| Vec::new()).await
    }

    /// The same while data of new blocks is still to be written: `hidden` says which pages of a file those are, in order. The file has
    /// holes there on the disk, until a later commit; so what was on a block before is never seen as part of the file.
    ///
    /// # Errors
    /// The disk fails, or has no room for the new metadata. Nothing is lost: the changes stay, the last commit counts. If it is the superblock that
    /// cannot be written, the file system is read-only from then on.
    pub async fn commit_hiding(&mut self, hidden: impl Fn(InodeNr) -> Vec<u64>) -> Result<(), FsError> {
        self.writable()?;
        if !self.inodes.values().any(|cached| cached.dirty) {
            return Ok(self.blocks.flush().await?);
        }
        let mut draft = Draft::default();
        let superblock = match self.write_draft(&mut draft, &hidden).await {
            Ok(superblock) => superblock,
            Err(error) => {
                draft.fresh.into_iter().for_each(|block| self.space.free(block));
                return Err(error);
            }
        };
        if let Err(error) = self.write_superblock(&superblock).await {
            self.read_only = true;
            return Err(error);
        }
        self.take_over(draft, superblock);
        Ok(())
    }

    async fn write_draft(
        &mut self,
        draft: &mut Draft,
        hidden: &impl Fn(InodeNr) -> Vec<u64>,
    ) -> Result<Superblock, FsError> {
        let dirty = self.inodes.iter().filter(|(_, cached)| cached.dirty);
        let indices: Vec<usize> = dirty.map(|(number, _)| number.map_index()).collect();
        for index in indices {
            if !draft.map.contains_key(&index) {
                let pointer = self.write_inodes(index, draft, hidden).await?;
                draft.map.insert(index, pointer);
            }
        }
        let mut map: Box<Block> = Box::new([0; PAGE_BYTES]);
        for index in 0..MAP_POINTERS {
            let new = draft
                .map
                .get(&index)
                .map(|new| new.as_ref().map(|(pointer, _)| *pointer));
            let pointer = new.unwrap_or(self.map[index]);
            if let Some(pointer) = pointer {
                pointer.put(&mut *map, 8 * index);
            }
        }
        let pointer = self.write_fresh(&map, draft).await?;
        if self.superblock.generation > 0 {
            draft.stale.push(self.superblock.map.block());
        }
        self.blocks.flush().await?;
        Ok(Superblock {
            map: pointer,
            generation: self.superblock.generation + 1,
            ..self.superblock
        })
    }

    /// Writes the inode block of one pointer of the map anew; the pointer is none if no inode is left in it.
    async fn write_inodes(
        &mut self,
        index: usize,
        draft: &mut Draft,
        hidden: &impl Fn(InodeNr) -> Vec<u64>,
    ) -> Result<Option<(Pointer, Box<Block>)>, FsError> {
        draft.stale.extend(self.map[index].map(Pointer::block));
        // In memory already, with the inode that has changed.
        self.load_block(index).await?;
        let old = self.inode_blocks.get(&index).cloned();
        let mut block = old.unwrap_or_else(|| Box::new([0; PAGE_BYTES]));
        let here = self
            .inodes
            .iter()
            .filter(|(number, cached)| cached.dirty && number.map_index() == index);
        let dirty: Vec<(InodeNr, Option<Inode>, bool)> = here
            .map(|(number, cached)| {
                let hidden = hidden(*number);
                let inode = cached.inode.as_ref().map(|inode| inode.on_disk(&hidden));
                (*number, inode, !hidden.is_empty())
            })
            .collect();
        for (number, inode, is_more) in dirty {
            let bytes = &mut block[number.offset()..][..INODE_BYTES];
            let mut overflow = Vec::new();
            match inode {
                Some(inode) => {
                    let more = self.write_overflow(&inode, &mut overflow, draft).await?;
                    inode.put(more, bytes);
                }
                None => bytes.fill(0),
            }
            draft.inodes.push(Written {
                number,
                overflow,
                is_more,
            });
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let pointer = self.write_fresh(&block, draft).await?;
        Ok(Some((pointer, block)))
    }

    /// Writes the extents that do not fit into the inode; the last ones first, for each block points to the next.
    async fn write_overflow(
        &mut self,
        inode: &Inode,
        overflow: &mut Vec<u32>,
        draft: &mut Draft,
    ) -> Result<Option<Pointer>, FsError> {
        let mut next = None;
        let rest = inode.extents.get(INLINE_EXTENTS..).unwrap_or(&[]);
        for extents in rest.chunks(BLOCK_EXTENTS).rev() {
            let block = Box::new(extent_block(extents, next));
            let pointer = self.write_fresh(&block, draft).await?;
            overflow.insert(0, pointer.block());
            next = Some(pointer);
        }
        Ok(next)
    }

    async fn write_fresh(&mut self, contents: &Block, draft: &mut Draft) -> Result<Pointer, FsError> {
        let block = self.space.allocate(2).ok_or(FsError::NoSpace)?;
        draft.fresh.push(block);
        self.blocks.write(block, contents).await?;
        Ok(Pointer::to(block, contents).expect("blocks 0 and 1 are never free"))
    }

    async fn write_superblock(&self, superblock: &Superblock) -> Result<(), FsError> {
        let block = Box::new(superblock.to_block());
        self.blocks.write(superblock.block_nr(), &block).await?;
        Ok(self.blocks.flush().await?)
    }

    /// The disk has it: what only the commit before used is free.
    fn take_over(&mut self, draft: Draft, superblock: Superblock) {
        let indices: Vec<usize> = draft.map.keys().copied().collect();
        for (index, new) in draft.map {
            self.map[index] = new.as_ref().map(|(pointer, _)| *pointer);
            match new {
                Some((_, block)) => self.inode_blocks.insert(index, block),
                None => self.inode_blocks.remove(&index),
            };
        }
        for written in draft.inodes {
            let Some(cached) = self.inodes.get_mut(&written.number) else {
                continue;
            };
            let old = core::mem::replace(&mut cached.on_disk, written.overflow);
            old.into_iter()
                .for_each(|block| self.space.free_with_commit(block));
            cached.dirty = written.is_more;
        }
        self.inodes.retain(|_, cached| cached.inode.is_some());
        indices.into_iter().for_each(|index| self.let_go_of_block(index));
        draft
            .stale
            .into_iter()
            .for_each(|block| self.space.free_with_commit(block));
        if superblock.generation == 1 {
            // The block that `format` kept for a map that was never written.
            self.space.free_with_commit(self.superblock.map.block());
        }
        self.superblock = superblock;
        self.space.committed();
    }
}
