//! `read` and `write` of files: bytes copied out of pages of a mapping and into them, which are read in and made dirty for that.
//!
//! Nothing is locked or held while the caller's memory is copied, which may wait for a page of its own, perhaps one of the same
//! file. What finds no memory returns how far it came, or [`FileError::OutOfMemory`]; the caller waits and goes on from there.

use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::Cpu;

use super::{
    Content, FileError, FileSystem, LockedPage, Mapping, MappingId, PageLookup, Reach, ReadAhead, index_of,
};
use crate::frames::{Frames, Mmu, SpaceId};
use crate::mempool::ThisCpu;
use crate::mm::{CopyError, Mm, PageWait};
use crate::page::PageFlags;
use crate::pfn::{PAGE_BYTES, PAGE_SIZE, Pfn};

/// A page to read from.
enum Readable {
    /// It has its contents, and this is a reference to it.
    Page(Pfn),
    Wait(PageWait),
    /// The file was cut off meanwhile.
    BeyondEnd,
}

/// How far the writing of a piece is.
enum Writing {
    Done,
    /// The file system has to find a block for the page first.
    NoBlock,
    Wait(PageWait),
}

/// The part of a read or write that is in one page.
pub(crate) struct Piece {
    pub(crate) index: u32,
    /// In the page.
    pub(crate) offset: usize,
    pub(crate) len: usize,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Reads up to `len` bytes of a file from `offset` on, as far as the file goes, and gives them to `to` in pieces of at most a page, with
    /// the number of bytes before them. What that finds locked ([`CopyError::Locked`]) is waited for, and it is called again. Pages that
    /// are missing are read in, and some ahead of the reader. Returns how many bytes were read.
    ///
    /// # Errors
    /// What stopped it before the first byte; later, what was read before counts.
    pub async fn read_file(
        &self,
        cpu: impl ThisCpu + Copy,
        id: MappingId,
        ahead: &mut ReadAhead,
        (offset, len): (u64, usize),
        mut to: impl FnMut(usize, &[u8]) -> Result<(), FileError>,
    ) -> Result<usize, FileError> {
        let mapping = self.mapping(id)?;
        let mut buffer = page_buffer()?;
        let mut done = 0;
        while done < len {
            let size = mapping.lock().size;
            let at = offset.saturating_add(done as u64);
            let left = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
            let piece = match piece(at, (len - done).min(left)) {
                Some(piece) if piece.len > 0 => piece,
                _ => break,
            };
            let part = &mut buffer[..piece.len];
            let outcome = match self.read_piece(cpu, &mapping, ahead, &piece, part).await {
                // The file was cut off meanwhile: how far does it go now?
                Ok(None) => continue,
                Ok(Some(())) => self.copied(|| to(done, part)).await,
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => done += piece.len,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// Writes up to `len` bytes to a file from `offset` on, which `from` puts into pieces of at most a page, given the number of
    /// bytes before them. The file grows as far as that; a gap before them is zero. Waits before each page until another
    /// page may be dirty. Returns how many bytes were written.
    ///
    /// The file system keeps others from writing to the file or truncating it meanwhile.
    ///
    /// # Errors
    /// What stopped it before the first byte; later, what was written before counts.
    pub async fn write_file(
        &self,
        cpu: impl ThisCpu + Copy,
        id: MappingId,
        fs: &impl FileSystem,
        (offset, len): (u64, usize),
        mut from: impl FnMut(usize, &mut [u8]) -> Result<(), FileError>,
    ) -> Result<usize, FileError> {
        let mapping = self.mapping(id)?;
        let mut buffer = page_buffer()?;
        let size = mapping.lock().size;
        if offset > size && len > 0 {
            self.zero_tail(cpu, &mapping, size).await?;
        }
        let mut done = 0;
        while done < len {
            let Some(piece) = piece(offset.saturating_add(done as u64), len - done) else {
                return if done == 0 {
                    Err(FileError::TooLarge)
                } else {
                    Ok(done)
                };
            };
            if mapping.kind.is_file() {
                self.until_may_dirty().await;
            }
            let part = &mut buffer[..piece.len];
            let mut outcome = self.copied(|| from(done, part)).await;
            if outcome.is_ok() {
                outcome = self.write_piece(cpu, &mapping, fs, &piece, part).await;
            }
            match outcome {
                Ok(()) => done += piece.len,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// [`Mm::read_file`] into a program's memory.
    ///
    /// # Errors
    /// As there; [`FileError::Copy`] where the program's own store would fail.
    pub async fn read_file_to_user(
        &self,
        cpu: impl ThisCpu + Copy,
        id: MappingId,
        ahead: &mut ReadAhead,
        (offset, len): (u64, usize),
        (space, va): (SpaceId, u64),
    ) -> Result<usize, FileError> {
        let to = |done: usize, bytes: &[u8]| {
            let written = self.write_user(cpu.this_cpu(), space, va.wrapping_add(done as u64), bytes);
            written.map_err(FileError::from)
        };
        self.read_file(cpu, id, ahead, (offset, len), to).await
    }

    /// [`Mm::write_file`] out of a program's memory.
    ///
    /// # Errors
    /// As there; [`FileError::Copy`] where the program's own load would fail.
    pub async fn write_file_from_user(
        &self,
        cpu: impl ThisCpu + Copy,
        id: MappingId,
        fs: &impl FileSystem,
        (offset, len): (u64, usize),
        (space, va): (SpaceId, u64),
    ) -> Result<usize, FileError> {
        let from = |done: usize, bytes: &mut [u8]| {
            let read = self.read_user(cpu.this_cpu(), space, va.wrapping_add(done as u64), bytes);
            read.map_err(FileError::from)
        };
        self.write_file(cpu, id, fs, (offset, len), from).await
    }

    /// Repeats a copy from or to the caller's memory until it needs no page that somebody else has locked.
    pub(crate) async fn copied(
        &self,
        mut copy: impl FnMut() -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        loop {
            match copy() {
                Err(FileError::Copy(CopyError::Locked { page, .. })) => self.until_unlocked(page).await,
                outcome => return outcome,
            }
        }
    }

    /// Copies a piece out of its page. `None` if the file does not reach there any more.
    async fn read_piece(
        &self,
        cpu: impl ThisCpu + Copy,
        mapping: &Arc<Mapping>,
        ahead: &mut ReadAhead,
        piece: &Piece,
        bytes: &mut [u8],
    ) -> Result<Option<()>, FileError> {
        let is_there = mapping.lock().tree.get(piece.index).is_some();
        if let Some((first, nr)) = ahead.read(piece.index, is_there) {
            self.read_ahead_of(cpu.this_cpu(), mapping, first, nr);
        }
        loop {
            match self.find_readable(cpu.this_cpu(), mapping, piece.index)? {
                Readable::Wait(wait) => self.until_unlocked(wait).await,
                Readable::BeyondEnd => return Ok(None),
                Readable::Page(pfn) => {
                    self.frames.read_bytes(pfn, piece.offset, bytes);
                    self.mark_accessed(pfn, self.mapped_page(pfn));
                    self.phys.put_page(cpu.this_cpu(), pfn);
                    return Ok(Some(()));
                }
            }
        }
    }

    /// A page with its contents, or what to wait for.
    fn find_readable(&self, cpu: &Cpu, mapping: &Arc<Mapping>, index: u32) -> Result<Readable, FileError> {
        // One that is up to date can be read without its lock: nobody else writes to the frame while there is a reference.
        if let Some(Content::Page(pfn)) = self.find_held(mapping, index) {
            if self.mapped_page(pfn).flags().has(PageFlags::UPTODATE) {
                return Ok(Readable::Page(pfn));
            }
            self.phys.put_page(cpu, pfn);
        }
        match self.lock_or_create(cpu, mapping, index, Reach::File)? {
            PageLookup::Absent => Ok(Readable::BeyondEnd),
            PageLookup::Wait(wait) => Ok(Readable::Wait(wait)),
            PageLookup::Locked(page) if page.is_up_to_date() => {
                let held = page.page.try_reference();
                debug_assert!(held);
                Ok(Readable::Page(page.pfn()))
            }
            PageLookup::Locked(page) if page.take_error() => Err(FileError::Io),
            PageLookup::Locked(page) => Ok(Readable::Wait(page.read())),
        }
    }

    async fn write_piece(
        &self,
        cpu: impl ThisCpu + Copy,
        mapping: &Arc<Mapping>,
        fs: &impl FileSystem,
        piece: &Piece,
        bytes: &[u8],
    ) -> Result<(), FileError> {
        loop {
            match self.try_write_piece(cpu.this_cpu(), mapping, piece, bytes)? {
                Writing::Done => return Ok(()),
                Writing::NoBlock => fs.prepare_write(mapping.id, piece.index).await?,
                Writing::Wait(wait) => self.until_unlocked(wait).await,
            }
        }
    }

    fn try_write_piece(
        &self,
        cpu: &Cpu,
        mapping: &Arc<Mapping>,
        piece: &Piece,
        bytes: &[u8],
    ) -> Result<Writing, FileError> {
        match self.lock_or_create(cpu, mapping, piece.index, Reach::Beyond)? {
            PageLookup::Absent => Err(FileError::OutOfMemory),
            PageLookup::Wait(wait) => Ok(Writing::Wait(wait)),
            PageLookup::Locked(page) if !page.has_backing() => Ok(Writing::NoBlock),
            PageLookup::Locked(page) if page.is_up_to_date() || is_all(mapping, piece) => {
                self.fill(&page, piece, bytes);
                Ok(Writing::Done)
            }
            PageLookup::Locked(page) if page.take_error() => Err(FileError::Io),
            PageLookup::Locked(page) => Ok(Writing::Wait(page.read())),
        }
    }

    /// Puts bytes into a page that has its block, and its contents or none that matter.
    fn fill(&self, page: &LockedPage<'_, '_, F, M>, piece: &Piece, bytes: &[u8]) {
        if !page.is_up_to_date() && piece.len < PAGE_BYTES {
            self.frames.zero(page.pfn(), crate::Order::ZERO);
        }
        self.frames.write_bytes(page.pfn(), piece.offset, bytes);
        page.set_up_to_date();
        page.set_dirty();
        page.mark_accessed();
        let end = u64::from(piece.index) * PAGE_SIZE + (piece.offset + piece.len) as u64;
        let mut state = page.mapping.lock();
        state.size = state.size.max(end);
    }
}

/// Whether a write covers all that the file has in its page, so that the page need not be read first.
fn is_all(mapping: &Mapping, piece: &Piece) -> bool {
    let start = u64::from(piece.index) * PAGE_SIZE;
    let in_file = mapping.lock().size.saturating_sub(start).min(PAGE_SIZE);
    in_file == 0 || piece.offset == 0 && piece.len as u64 >= in_file
}

/// The first part of `len` bytes at `offset` of a file. `None` beyond where files end.
pub(crate) fn piece(offset: u64, len: usize) -> Option<Piece> {
    let index = index_of(offset)?;
    let within = usize::try_from(offset % PAGE_SIZE).ok()?;
    Some(Piece {
        index,
        offset: within,
        len: len.min(PAGE_BYTES - within),
    })
}

/// Room for what is copied between a page and the caller's memory, neither of which is held while the other is touched.
pub(crate) fn page_buffer() -> Result<Vec<u8>, FileError> {
    let mut buffer = Vec::new();
    buffer
        .try_reserve_exact(PAGE_BYTES)
        .map_err(|_| FileError::OutOfMemory)?;
    buffer.resize(PAGE_BYTES, 0);
    Ok(buffer)
}
