//! Whole files by path, one page at a time, past any cache: for tools on the host.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::super::{Block, InodeNr, Kind, Name};
use super::{Blocks, FsError, Volume};
use crate::pfn::{PAGE_BYTES, PAGE_SIZE};

impl<B: Blocks> Volume<B> {
    /// What a path of names between slashes leads to; nothing but slashes is the root directory.
    ///
    /// # Errors
    /// There is nothing there, or as [`Self::lookup`].
    pub async fn resolve(&mut self, path: &[u8]) -> Result<InodeNr, FsError> {
        let mut number = InodeNr::ROOT;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            number = self.lookup(number, &Name::new(name)?).await?;
        }
        Ok(number)
    }

    /// All bytes of a file.
    ///
    /// # Errors
    /// It is a directory, or as [`Self::inode`].
    pub async fn read_file(&mut self, number: InodeNr) -> Result<Vec<u8>, FsError> {
        let inode = self.inode(number).await?.clone();
        if inode.kind == Kind::Directory {
            return Err(FsError::IsADirectory(number));
        }
        let mut bytes = Vec::new();
        for page in 0..inode.size.div_ceil(PAGE_SIZE) {
            let block: Box<Block> = match inode.block_of(page) {
                Some(block) => self.blocks.read(block).await?,
                None => Box::new([0; PAGE_BYTES]),
            };
            let left = usize::try_from(inode.size - page * PAGE_SIZE).unwrap_or(usize::MAX);
            bytes.extend_from_slice(&block[..left.min(PAGE_BYTES)]);
        }
        Ok(bytes)
    }

    /// Gives a file these contents. A block that it has already is overwritten in place.
    ///
    /// # Errors
    /// It is a directory, there is no room, or as [`Self::inode`]; the file then has a part of it.
    pub async fn write_file(&mut self, number: InodeNr, bytes: &[u8]) -> Result<(), FsError> {
        if self.inode(number).await?.kind == Kind::Directory {
            return Err(FsError::IsADirectory(number));
        }
        self.set_size(number, bytes.len() as u64).await?;
        for (page, part) in (0..).zip(bytes.chunks(PAGE_BYTES)) {
            let (block, _) = self.allocate(number, page).await?;
            let mut contents: Box<Block> = Box::new([0; PAGE_BYTES]);
            contents[..part.len()].copy_from_slice(part);
            self.blocks.write(block, &contents).await?;
        }
        Ok(())
    }
}
