//! One anonymous private mapping, owned: the host memory behind a range of guest-physical addresses.
//!
//! The guest writes to it at any time, so no reference or slice over it is ever made; access goes through
//! `vm-memory`'s volatile views, protection and discarding through this type.
#![expect(unsafe_code, reason = "mmap, mprotect, madvise and munmap have no safe form")]

use std::io;
use std::ptr::{self, NonNull};

use super::MemoryError;
use crate::machine::layout::HUGE_PAGE;

/// An anonymous mapping at a host address that is a multiple of 2 MiB; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is owned by this value and stays at its address until drop, whichever thread holds it.
unsafe impl Send for Mapping {}
// SAFETY: the methods take `&self` and leave synchronisation to the kernel; none makes a reference to the memory.
unsafe impl Sync for Mapping {}

/// What may be done with a part of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: every access faults.
    None,
    /// Reading and writing.
    ReadWrite,
}

impl Access {
    const fn prot(self) -> libc::c_int {
        match self {
            Self::None => libc::PROT_NONE,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }

    /// The other one.
    pub(super) const fn opposite(self) -> Self {
        match self {
            Self::None => Self::ReadWrite,
            Self::ReadWrite => Self::None,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::None => "inaccessible",
            Self::ReadWrite => "accessible",
        }
    }
}

impl Mapping {
    /// Maps `size` bytes, a multiple of 2 MiB. Nothing is resident yet, and nothing is charged to the host's commit
    /// limit: how much of it a guest may use is decided by what it is given.
    pub(super) fn new(size: u64, access: Access) -> Result<Self, MemoryError> {
        let len = usize::try_from(size).map_err(|_| MemoryError::AddressSpace { gpa: 0, size })?;
        let huge = usize::try_from(HUGE_PAGE).map_err(|_| MemoryError::AddressSpace { gpa: 0, size })?;
        let padded = len
            .checked_add(huge)
            .ok_or(MemoryError::AddressSpace { gpa: 0, size })?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice replaces nothing.
        let raw = unsafe { libc::mmap(ptr::null_mut(), padded, access.prot(), flags, -1, 0) };
        if raw == libc::MAP_FAILED {
            return Err(MemoryError::Map {
                size,
                source: io::Error::last_os_error(),
            });
        }
        let head = (raw as usize).next_multiple_of(huge) - raw as usize;
        // The kernel maps nothing at address 0 for an ordinary program, so only its failure value could be null.
        let start = NonNull::new(raw.cast::<u8>().wrapping_add(head)).ok_or_else(|| MemoryError::Map {
            size,
            source: io::Error::from_raw_os_error(libc::EFAULT),
        })?;
        trim(raw, head);
        trim(start.as_ptr().wrapping_add(len).cast(), huge - head);
        let mapping = Self { start, len };
        mapping.advise(0, len, libc::MADV_HUGEPAGE);
        mapping.advise(0, len, libc::MADV_DONTDUMP);
        Ok(mapping)
    }

    /// Host address of the first byte.
    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Changes what may be done with `size` bytes at `offset`, for this process and for every vCPU.
    pub(super) fn protect(&self, offset: u64, size: u64, access: Access) -> Result<(), MemoryError> {
        let (start, len) = self.part(offset, size)?;
        // SAFETY: `part` checked that the range is within this mapping, to which no reference exists.
        if unsafe { libc::mprotect(start.cast(), len, access.prot()) } == 0 {
            return Ok(());
        }
        let source = io::Error::last_os_error();
        Err(MemoryError::Protect {
            offset,
            size,
            access: access.name(),
            source,
        })
    }

    /// Gives the pages of `size` bytes at `offset` back to the host; they read as zero when next accessible.
    pub(super) fn discard(&self, offset: u64, size: u64) -> Result<(), MemoryError> {
        let (start, len) = self.part(offset, size)?;
        // SAFETY: `part` checked that the range is within this mapping, to which no reference exists.
        if unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) } == 0 {
            return Ok(());
        }
        Err(MemoryError::Discard {
            offset,
            size,
            source: io::Error::last_os_error(),
        })
    }

    fn part(&self, offset: u64, size: u64) -> Result<(*mut u8, usize), MemoryError> {
        let outside = || MemoryError::AddressSpace { gpa: offset, size };
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let len = usize::try_from(size).map_err(|_| outside())?;
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(outside());
        }
        Ok((self.start.as_ptr().wrapping_add(start), len))
    }

    /// Advice is a wish: a kernel without huge pages or core dumps serves just as well.
    fn advise(&self, offset: usize, len: usize, advice: libc::c_int) {
        let start = self.start.as_ptr().wrapping_add(offset);
        // SAFETY: the range is within this mapping, and neither advice used here changes its contents.
        unsafe { libc::madvise(start.cast(), len, advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        trim(self.start.as_ptr().cast(), self.len);
    }
}

/// Unmaps `len` bytes of a mapping that this module made.
fn trim(start: *mut libc::c_void, len: usize) {
    if len > 0 {
        // SAFETY: the callers pass parts of a mapping that they own and do not use again.
        unsafe { libc::munmap(start, len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_starts_at_a_huge_page() {
        for size in [HUGE_PAGE, 6 * HUGE_PAGE] {
            let mapping = Mapping::new(size, Access::ReadWrite).unwrap();
            assert_eq!(mapping.as_ptr() as u64 % HUGE_PAGE, 0);
            assert_eq!(mapping.len() as u64, size);
        }
    }

    #[test]
    fn a_part_outside_the_mapping_is_refused() {
        let mapping = Mapping::new(HUGE_PAGE, Access::None).unwrap();
        assert!(mapping.protect(HUGE_PAGE, 4096, Access::None).is_err());
        assert!(mapping.discard(4096, HUGE_PAGE).is_err());
        assert!(mapping.discard(u64::MAX, 2).is_err());
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(matches!(
            Mapping::new(1 << 60, Access::None),
            Err(MemoryError::Map { .. })
        ));
        assert!(matches!(
            Mapping::new(!(HUGE_PAGE - 1), Access::None),
            Err(MemoryError::AddressSpace { .. })
        ));
    }
}
