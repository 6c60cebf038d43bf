//! Getting all pages of a range at once, instead of one by one when the guest first touches them.
//!
//! A guest that was given a block which the host cannot back dies at its first touch (hugetlbfs), or the host's
//! out-of-memory killer chooses (anything else). With population the block is refused instead, and the guest goes on.
#![expect(unsafe_code, reason = "madvise has no safe form")]

mod shortage;

use std::io;

pub(super) use shortage::available_bytes;

use super::MemoryError;
use super::mapping::Mapping;
use crate::spec::Backing;

impl Mapping {
    /// Asks the host whether it has the memory for `size` bytes, where its answer to the attempt would be to kill. The pool
    /// of huge pages says no by itself.
    ///
    /// # Errors
    /// [`MemoryError::Shortage`].
    pub(super) fn check_supply(&self, size: u64) -> Result<(), MemoryError> {
        if matches!(self.backing(), Backing::Hugetlbfs(_)) {
            return Ok(());
        }
        match available_bytes() {
            Some(available) if available < size => Err(MemoryError::Shortage { size, available }),
            _ => Ok(()),
        }
    }

    /// Gives every page of `size` bytes at `offset`, which must be accessible. What pages hold stays; new ones are zeros.
    ///
    /// # Errors
    /// [`MemoryError::Populate`], with some pages present.
    pub(super) fn populate(&self, offset: u64, size: u64) -> Result<(), MemoryError> {
        let (start, len) = self.part(offset, size)?;
        // SAFETY: `part` checked that the range is within this mapping; populating changes no contents.
        if unsafe { libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE) } == 0 {
            return Ok(());
        }
        Err(MemoryError::Populate {
            offset,
            size,
            source: io::Error::last_os_error(),
        })
    }
}
