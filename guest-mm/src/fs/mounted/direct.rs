//! Direct I/O: whole pages between a program's own memory and a file's blocks, past the page cache (Linux `O_DIRECT`, `mm/filemap.c`).
//!
//! The frames are the caller's, pinned, so that they stay where they are while the disk is at them. The page cache and the disk agree
//! before and after: what is dirty is written before either of them, and a write takes the pages that it replaces out of memory, before it begins
//! and, for whoever has read one in meanwhile, when it has ended. A store through a mapping at the same time as a write is in a race with it, as in Linux.
//!
//! A block that a file is given for this is *unwritten* until the data is there, as with any other write.

use alloc::vec::Vec;

use super::io::{Place, file_error};
use super::{File, Machine, Mounted};
use crate::frames::Frames;
use crate::mm::mapping::{FileError, IoDirection};
use crate::pfn::{Order, PAGE_SIZE, Pfn};

impl<'m, X: Machine<'m>> Mounted<'m, X> {
    /// Reads pages of a file from page `index` on into frames, as far as the file goes; how many bytes of them are the file's. The rest of its last
    /// page is zero. Frames must not be let go before this has ended.
    ///
    /// # Errors
    /// The disk failed.
    pub async fn read_direct(&self, file: &File, index: u32, frames: &[Pfn]) -> Result<u64, FileError> {
        // Nobody gives the file's blocks away meanwhile.
        let _writing = file.writing.lock().await;
        let start = u64::from(index) * PAGE_SIZE;
        let left = self.size(file).saturating_sub(start);
        let nr = frames
            .len()
            .min(usize::try_from(left.div_ceil(PAGE_SIZE)).unwrap_or(usize::MAX));
        let frames = &frames[..nr];
        self.write_now(file).await?;
        let places = self.places_of(file, (index, nr)).await;
        let places = places.map_err(|_| FileError::Io)?;
        for (place, pfn) in places.iter().zip(frames) {
            if !matches!(place, Place::Block(_)) {
                self.mm().frames.zero(*pfn, Order::ZERO);
            }
        }
        let read = self.transfer(IoDirection::Read, frames, &places).await;
        read.map_err(|_| FileError::Io)?;
        Ok(left.min(nr as u64 * PAGE_SIZE))
    }

    /// Writes frames to pages of a file from page `index` on, and makes it longer if they reach beyond its end. They are on the disk when this
    /// returns; what leads to new blocks is with the next [`Self::commit`]. Frames must not be let go before this has ended.
    ///
    /// # Errors
    /// The disk failed, or is full; any part may have been written then.
    pub async fn write_direct(&self, file: &File, index: u32, frames: &[Pfn]) -> Result<(), FileError> {
        let nr = u32::try_from(frames.len()).map_err(|_| FileError::TooLarge)?;
        let last = index.checked_add(nr).ok_or(FileError::TooLarge)?;
        let (end, range) = (u64::from(last) * PAGE_SIZE, (index, nr));
        let _writing = file.writing.lock().await;
        let size = self.size(file);
        if end > size {
            // Before there is anything in the last page that is not to be zeroed.
            self.mm().truncate(self.here(), file.mapping(), end).await?;
        }
        let written = self.replace(file, range, frames).await;
        if written.is_err() && end > size {
            let _ = self.cut(file, size).await;
        }
        written
    }

    /// Exchanges pages that are part of the file.
    async fn replace(&self, file: &File, (index, nr): (u32, u32), frames: &[Pfn]) -> Result<(), FileError> {
        let (mm, mapping) = (self.mm(), file.mapping());
        self.write_now(file).await?;
        let mut places = Vec::with_capacity(frames.len());
        {
            let mut volume = self.volume.lock().await;
            for index in (index..).take(frames.len()) {
                let allocated = volume.allocate(file.number(), index.into()).await;
                let (block, is_new) = allocated.map_err(file_error)?;
                if is_new {
                    file.add_unwritten(index);
                }
                places.push(Place::Block(block));
            }
        }
        mm.invalidate_range(self.here(), mapping, (index, nr)).await?;
        let transferred = self.transfer(IoDirection::Write, frames, &places).await;
        transferred.map_err(|_| FileError::Io)?;
        (index..).take(frames.len()).for_each(|index| file.written(index));
        mm.invalidate_range(self.here(), mapping, (index, nr)).await
    }
}
