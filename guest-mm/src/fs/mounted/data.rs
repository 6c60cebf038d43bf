//! Reading and writing open files, and their sizes.

use core::sync::atomic::Ordering::Relaxed;

use super::io::file_error;
use super::{File, Machine, Mounted};
use crate::frames::SpaceId;
use crate::mm::mapping::{FileError, ReadAhead};
use crate::pfn::PAGE_SIZE;

/// Where a write begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteAt {
    /// At this byte.
    Offset(u64),
    /// At the end of the file, whatever others write meanwhile.
    End,
}

/// A write that is under way. Dropped when it is done, or given up.
struct WriterEnd<'f>(&'f File);

impl Drop for WriterEnd<'_> {
    fn drop(&mut self) {
        self.0.writer_end.store(0, Relaxed);
    }
}

impl<'m, X: Machine<'m>> Mounted<'m, X> {
    /// Bytes of a file.
    pub fn size(&self, file: &File) -> u64 {
        self.mm().mapping_size(file.mapping()).unwrap_or(0)
    }

    /// Where a file ends, or will when the write that is under way is done.
    pub(in crate::fs) fn end_of(&self, file: &File) -> u64 {
        self.size(file).max(file.writer_end.load(Relaxed))
    }

    /// Reads `(offset, bytes)` of a file into a program's memory; how many bytes it read.
    ///
    /// # Errors
    /// What stopped it before the first byte.
    pub async fn read_to_user(
        &self,
        file: &File,
        ahead: &mut ReadAhead,
        range: (u64, usize),
        to: (SpaceId, u64),
    ) -> Result<usize, FileError> {
        let mm = self.mm();
        mm.read_file_to_user(self.here(), file.mapping(), ahead, range, to)
            .await
    }

    /// Reads `(offset, bytes)` of a file and gives them to `to`, as [`crate::Mm::read_file`] does.
    ///
    /// # Errors
    /// What stopped it before the first byte.
    pub async fn read(
        &self,
        file: &File,
        ahead: &mut ReadAhead,
        range: (u64, usize),
        to: impl FnMut(usize, &[u8]) -> Result<(), FileError>,
    ) -> Result<usize, FileError> {
        let mm = self.mm();
        mm.read_file(self.here(), file.mapping(), ahead, range, to).await
    }

    /// Writes to a file what a program has in its memory. Returns where it ends now, and how many bytes were written.
    ///
    /// # Errors
    /// What stopped it before the first byte.
    pub async fn write_from_user(
        &self,
        file: &File,
        (at, len): (WriteAt, usize),
        from: (SpaceId, u64),
    ) -> Result<(u64, usize), FileError> {
        let _writing = file.writing.lock().await;
        let (offset, _end) = self.begin_write(file, at, len);
        let (mm, range) = (self.mm(), (offset, len));
        let written = mm
            .write_file_from_user(self.here(), file.mapping(), self, range, from)
            .await;
        written.map(|written| (offset + written as u64, written))
    }

    /// Writes to a file what `from` gives, as [`crate::Mm::write_file`] does. Returns where it ends now, and how many bytes were written.
    ///
    /// # Errors
    /// What stopped it before the first byte.
    pub async fn write(
        &self,
        file: &File,
        (at, len): (WriteAt, usize),
        from: impl FnMut(usize, &mut [u8]) -> Result<(), FileError>,
    ) -> Result<(u64, usize), FileError> {
        let _writing = file.writing.lock().await;
        let (offset, _end) = self.begin_write(file, at, len);
        let (mm, range) = (self.mm(), (offset, len));
        let written = mm
            .write_file(self.here(), file.mapping(), self, range, from)
            .await;
        written.map(|written| (offset + written as u64, written))
    }

    /// Where it begins, and what ends it.
    fn begin_write<'f>(&self, file: &'f File, at: WriteAt, len: usize) -> (u64, WriterEnd<'f>) {
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => self.size(file),
        };
        file.writer_end.store(offset.saturating_add(len as u64), Relaxed);
        (offset, WriterEnd(file))
    }

    /// Makes a file so many bytes long: what is beyond is lost, what is added is zero.
    ///
    /// # Errors
    /// Its last page cannot be read, or there is no memory for it; a second call brings it to an end.
    pub async fn set_size(&self, file: &File, size: u64) -> Result<(), FileError> {
        let _writing = file.writing.lock().await;
        self.cut(file, size).await
    }

    /// The same for who has the file's lock for writing.
    pub(super) async fn cut(&self, file: &File, size: u64) -> Result<(), FileError> {
        // Pages first, with all that is on its way of them; then their blocks may be somebody else's.
        self.mm().truncate(self.here(), file.mapping(), size).await?;
        let mut volume = self.volume.lock().await;
        // If it grows, then with a commit, as by writing.
        let set = volume.cut(file.number(), size).await;
        if let Ok(first) = u32::try_from(size.div_ceil(PAGE_SIZE)) {
            file.cut(first);
        }
        set.map_err(file_error)
    }
}
