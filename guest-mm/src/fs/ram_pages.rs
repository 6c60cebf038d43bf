//! Pages of files that are in memory and nowhere else (Linux `fs/ramfs`, `drivers/block/brd.c`).
//!
//! Like a RAM disk, the file system knows the frame of each page that was read or written by a call, has a reference to it, and gets at it
//! without the page cache's tree and without the page lock: who has the lock of the table of frames has the contents. So nobody else can say when such a
//! page may move, or move it: this file system takes its migration over as a whole ([`Migration::Whole`]), and copies under the table's lock.
//! Pages that were only mapped move as others do.

use guest_sync::SpinLock;

use crate::frames::{Frames, Mmu};
use crate::mempool::ThisCpu;
use crate::mm::mapping::{
    AddressSpaceOps, Content, FileError, LockedPage, Migration, PageLookup, Piece, PrivatePage, page_buffer,
    piece,
};
use crate::mm::{MappingId, Mm, PageWait};
use crate::pfn::{PAGE_SIZE, Pfn};
use crate::radix_tree::RadixTree;

/// What is on a page whose frame is in the table. The place in the table is the page's index.
const KNOWN: u32 = 1;

/// The pages of one file. See the module.
#[derive(Debug, Default)]
pub(crate) struct RamPages {
    /// Where pages are, by index. Locked after a page; nothing but the heap is locked under this lock.
    frames: SpinLock<RadixTree<Pfn>>,
}

impl AddressSpaceOps for RamPages {
    fn name(&self) -> &'static str {
        "ramfs"
    }

    fn migration(&self) -> Migration {
        Migration::Whole
    }

    fn invalidatepage(&self, page: PrivatePage) {
        self.frames.lock().remove(page.index);
    }

    fn take_over(&self, page: PrivatePage, to: Pfn, copy: &mut dyn FnMut()) -> Option<u32> {
        let mut frames = self.frames.lock();
        if frames.get(page.index) != Some(page.pfn) {
            return None;
        }
        copy();
        frames.replace(page.index, to);
        Some(page.private)
    }
}

impl RamPages {
    /// Does something with the frame of a page, if it is known here: it stays where it is meanwhile.
    fn at<R>(&self, index: u32, work: impl FnOnce(Pfn) -> R) -> Option<R> {
        let frames = self.frames.lock();
        frames.get(index).map(work)
    }

    /// Remembers where a page is. Without memory for that it is looked up each time.
    fn adopt<F: Frames, M: Mmu>(&self, page: &LockedPage<'_, '_, F, M>) {
        if self.frames.lock().insert(page.index(), page.pfn()).is_ok() {
            page.set_private(KNOWN);
        }
    }

    /// Reads up to `len` bytes from `offset` on, as [`Mm::read_file`] does.
    ///
    /// # Errors
    /// What stopped it before the first byte.
    pub(crate) async fn read<F: Frames, M: Mmu>(
        &self,
        (mm, cpu): (&Mm<'_, F, M>, impl ThisCpu + Copy),
        id: MappingId,
        (offset, len): (u64, usize),
        mut to: impl FnMut(usize, &[u8]) -> Result<(), FileError>,
    ) -> Result<usize, FileError> {
        let mapping = mm.mapping(id)?;
        let mut buffer = page_buffer()?;
        let mut done = 0;
        while done < len {
            let at = offset.saturating_add(done as u64);
            let left = mapping.lock().size.saturating_sub(at);
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            let piece = match piece(at, (len - done).min(left)) {
                Some(piece) if piece.len > 0 => piece,
                _ => break,
            };
            let part = &mut buffer[..piece.len];
            let mut outcome = loop {
                match self.try_read((mm, cpu.this_cpu()), id, &piece, part) {
                    Ok(Some(wait)) => mm.until_unlocked(wait).await,
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            if outcome.is_ok() {
                outcome = mm.copied(|| to(done, part)).await;
            }
            match outcome {
                Ok(()) => done += piece.len,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Copies a piece out of its page; what to wait for first, if it cannot.
    fn try_read<F: Frames, M: Mmu>(
        &self,
        (mm, cpu): (&Mm<'_, F, M>, &guest_sync::Cpu),
        id: MappingId,
        piece: &Piece,
        bytes: &mut [u8],
    ) -> Result<Option<PageWait>, FileError> {
        let known = self.at(piece.index, |pfn| {
            mm.frames.read_bytes(pfn, piece.offset, bytes);
        });
        if known.is_some() {
            return Ok(None);
        }
        match mm.lock_page(cpu, id, piece.index)? {
            PageLookup::Wait(wait) => return Ok(Some(wait)),
            PageLookup::Locked(page) => {
                self.adopt(&page);
                mm.frames.read_bytes(page.pfn(), piece.offset, bytes);
            }
            // Its frame has failed.
            PageLookup::Absent if mm.mapping(id)?.lock().tree.get(piece.index) == Some(Content::Lost) => {
                return Err(FileError::Io);
            }
            // Nobody has written there.
            PageLookup::Absent => bytes.fill(0),
        }
        Ok(None)
    }

    /// Writes up to `len` bytes from `offset` on, as [`Mm::write_file`] does.
    ///
    /// # Errors
    /// What stopped it before the first byte.
    pub(crate) async fn write<F: Frames, M: Mmu>(
        &self,
        (mm, cpu): (&Mm<'_, F, M>, impl ThisCpu + Copy),
        id: MappingId,
        (offset, len): (u64, usize),
        mut from: impl FnMut(usize, &mut [u8]) -> Result<(), FileError>,
    ) -> Result<usize, FileError> {
        let mapping = mm.mapping(id)?;
        let mut buffer = page_buffer()?;
        let size = mapping.lock().size;
        if offset > size && len > 0 {
            mm.zero_tail(cpu, &mapping, size).await?;
        }
        let mut done = 0;
        while done < len {
            let piece = match piece(offset.saturating_add(done as u64), len - done) {
                Some(piece) => piece,
                None if done == 0 => return Err(FileError::TooLarge),
                None => break,
            };
            let part = &mut buffer[..piece.len];
            let mut outcome = mm.copied(|| from(done, part)).await;
            while outcome.is_ok() {
                match self.try_write((mm, cpu.this_cpu()), id, &piece, part) {
                    Ok(Some(wait)) => mm.until_unlocked(wait).await,
                    Ok(None) => break,
                    Err(error) => outcome = Err(error),
                }
            }
            match outcome {
                Ok(()) => done += piece.len,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            let end = u64::from(piece.index) * PAGE_SIZE + (piece.offset + piece.len) as u64;
            let mut state = mapping.lock();
            state.size = state.size.max(end);
        }
        Ok(done)
    }

    /// Copies a piece into its page, which is made if there is none; what to wait for first, if it cannot.
    fn try_write<F: Frames, M: Mmu>(
        &self,
        (mm, cpu): (&Mm<'_, F, M>, &guest_sync::Cpu),
        id: MappingId,
        piece: &Piece,
        bytes: &[u8],
    ) -> Result<Option<PageWait>, FileError> {
        let known = self.at(piece.index, |pfn| {
            mm.frames.write_bytes(pfn, piece.offset, bytes);
        });
        if known.is_some() {
            return Ok(None);
        }
        match mm.lock_or_create_page(cpu, id, piece.index)? {
            PageLookup::Absent => Err(FileError::OutOfMemory),
            PageLookup::Wait(wait) => Ok(Some(wait)),
            PageLookup::Locked(page) => {
                self.adopt(&page);
                mm.frames.write_bytes(page.pfn(), piece.offset, bytes);
                Ok(None)
            }
        }
    }
}
