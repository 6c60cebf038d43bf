//! Pages that could not be written, and who was told of them (Linux `errseq_t`, `filemap_check_wb_err`).
//!
//! A mapping counts its errors. Everybody who has the file open remembers how far that had come when he was last told, so that each is told once of what
//! has failed since, whoever else asks. Who opens the file later is told too, if nobody was.
//!
//! One who stored through a mapping is told by `msync` or `fsync`, as in Linux, and by nothing else: a page that could not be written twice is clean
//! from then on, and when it leaves memory what the disk has is read again.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::{FileError, MappingId};
use crate::frames::{Frames, Mmu};
use crate::mm::Mm;

/// Errors of a mapping.
#[derive(Debug, Default)]
pub(crate) struct WriteErrors {
    /// Since the mapping was made.
    count: u64,
    /// Somebody was told of the last one.
    is_told: bool,
    /// How far those were told who remember nothing themselves ([`Mm::sync`]).
    told: u64,
}

impl WriteErrors {
    pub(crate) const fn note(&mut self) {
        self.count += 1;
        self.is_told = false;
    }

    /// For one who was told of `since`: whether there were any since then. He is told now.
    const fn tell(&mut self, since: u64) -> bool {
        self.is_told |= self.count != since;
        self.count != since
    }

    /// The same for those who remember nothing.
    pub(crate) const fn tell_once(&mut self) -> bool {
        let since = core::mem::replace(&mut self.told, self.count);
        self.tell(since)
    }
}

/// How far somebody was told of a mapping's errors. All who share an open file share this.
#[derive(Debug, Default)]
pub struct ErrorCursor(AtomicU64);

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// For one who opens the file: he is told of what fails from now on, and of the last error if nobody was told of that.
    pub fn error_cursor(&self, id: MappingId) -> ErrorCursor {
        let seen = self.mappings.find(id).map_or(0, |mapping| {
            let errors = &mapping.lock().errors;
            if errors.is_told { errors.count } else { 0 }
        });
        ErrorCursor(AtomicU64::new(seen))
    }

    /// Tells, once, of pages that could not be written since this was last asked with the same cursor.
    ///
    /// # Errors
    /// [`FileError::Io`] if there were any.
    pub fn tell_errors(&self, id: MappingId, cursor: &ErrorCursor) -> Result<(), FileError> {
        let mapping = self.mapping(id)?;
        let mut state = mapping.lock();
        let since = cursor.0.swap(state.errors.count, Relaxed);
        match state.errors.tell(since) {
            true => Err(FileError::Io),
            false => Ok(()),
        }
    }

    /// How often a page of the mapping could not be written, ever.
    pub fn nr_write_errors(&self, id: MappingId) -> u64 {
        let mapping = self.mappings.find(id);
        mapping.map_or(0, |mapping| mapping.lock().errors.count)
    }
}
