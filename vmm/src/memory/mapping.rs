//! One mapping, owned: the host memory behind a range of guest-physical addresses.
//!
//! The guest writes to it at any time, so no reference or slice over it is ever made; access goes through
//! `vm-memory`'s volatile views, protection through this type; `discard` and `populate` give its pages back and get them.
#![expect(unsafe_code, reason = "mmap, mprotect, madvise and munmap have no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use rustix::fs::MemfdFlags;

use super::MemoryError;
use super::pagemap::PageMap;
use crate::machine::layout::HUGE_PAGE;
use crate::spec::{Backing, HugePage};

/// A mapping at a host address that is a multiple of 2 MiB, and of its own pages; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    backing: Backing,
    /// What is mapped, from its first byte to its last; `None` for anonymous memory.
    file: Option<File>,
    page_map: OnceLock<PageMap>,
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
    /// Reading; what is not there reads as zero.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// Whether the host promises pages when it maps. Without reserved huge pages it never does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reserve {
    /// All of it: huge pages that are missing are missed now.
    All,
    /// Nothing: pages are got when they are needed, or not.
    Nothing,
}

impl Access {
    const fn prot(self) -> libc::c_int {
        match self {
            Self::None => libc::PROT_NONE,
            Self::ReadOnly => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::None => "inaccessible",
            Self::ReadOnly => "read-only",
            Self::ReadWrite => "accessible",
        }
    }
}

impl Mapping {
    /// Maps `size` bytes, a multiple of 2 MiB and of the backing's pages. Nothing is resident yet, and nothing is charged
    /// to the host's commit limit: how much of it a guest may use is decided by what it is given.
    ///
    /// # Errors
    /// The kernel has no address space, no such file, or not the huge pages that it is to reserve.
    pub(super) fn new(
        size: u64,
        backing: Backing,
        access: Access,
        reserve: Reserve,
    ) -> Result<Self, MemoryError> {
        let outside = || MemoryError::AddressSpace { gpa: 0, size };
        let len = usize::try_from(size).map_err(|_| outside())?;
        let alignment = usize::try_from(backing.page_size().max(HUGE_PAGE)).map_err(|_| outside())?;
        let file = open_file(backing, size)?;
        let start = reserve_addresses(len, alignment, access)?;
        let mapping = Self {
            start,
            len,
            backing,
            file,
            page_map: OnceLock::new(),
        };
        mapping.map_file(access, reserve)?;
        mapping.advise(libc::MADV_HUGEPAGE);
        mapping.advise(libc::MADV_DONTDUMP);
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

    /// What it is made of.
    pub(super) fn backing(&self) -> Backing {
        self.backing
    }

    /// The file that is mapped, if it is one.
    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref()
    }

    /// What the kernel knows of this process's pages, opened when it is first asked for.
    pub(super) fn page_map(&self) -> &PageMap {
        self.page_map.get_or_init(PageMap::open)
    }

    /// Bytes that the host holds for the mapped file, by the file's own account; `None` for anonymous memory.
    pub(super) fn file_bytes(&self) -> Option<io::Result<u64>> {
        let metadata = self.file.as_ref()?.metadata();
        // stat(2): blocks are 512 bytes, whatever the file system.
        Some(metadata.map(|metadata| metadata.blocks() * 512))
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

    /// Address and length of a part of the mapping.
    pub(super) fn part(&self, offset: u64, size: u64) -> Result<(*mut u8, usize), MemoryError> {
        let outside = || MemoryError::AddressSpace { gpa: offset, size };
        let start = usize::try_from(offset).map_err(|_| outside())?;
        let len = usize::try_from(size).map_err(|_| outside())?;
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(outside());
        }
        Ok((self.start.as_ptr().wrapping_add(start), len))
    }

    /// Puts the file, if there is one, where so far only addresses are reserved.
    fn map_file(&self, access: Access, reserve: Reserve) -> Result<(), MemoryError> {
        let Some(file) = &self.file else { return Ok(()) };
        let commit = match reserve {
            Reserve::All => 0,
            Reserve::Nothing => libc::MAP_NORESERVE,
        };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | commit;
        let (start, fd) = (self.start.as_ptr().cast(), file.as_raw_fd());
        // SAFETY: the range is this value's own, to which no reference exists; what it held before was nothing.
        let mapped = unsafe { libc::mmap(start, self.len, access.prot(), flags, fd, 0) };
        if mapped != libc::MAP_FAILED {
            return Ok(());
        }
        let (size, source) = (self.len as u64, io::Error::last_os_error());
        Err(match self.backing {
            Backing::Hugetlbfs(page) if source.raw_os_error() == Some(libc::ENOMEM) => {
                MemoryError::HugePages {
                    pages: size / page.bytes(),
                    page_mib: page.bytes() >> 20,
                }
            }
            _ => MemoryError::Map { size, source },
        })
    }

    /// Advice is a wish: a kernel without huge pages or core dumps serves just as well.
    fn advise(&self, advice: libc::c_int) {
        // SAFETY: the range is this mapping, and neither advice used here changes its contents.
        unsafe { libc::madvise(self.start.as_ptr().cast(), self.len, advice) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        trim(self.start.as_ptr().cast(), self.len);
    }
}

/// The file behind a mapping: it has no name and goes with its last user.
fn open_file(backing: Backing, size: u64) -> Result<Option<File>, MemoryError> {
    let kind = match backing {
        Backing::Anonymous => return Ok(None),
        Backing::Memfd => MemfdFlags::empty(),
        Backing::Hugetlbfs(HugePage::Mib2) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        Backing::Hugetlbfs(HugePage::Gib1) => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    };
    let failed = |source: io::Error| MemoryError::File { backing, source };
    let fd = rustix::fs::memfd_create("guest-memory", kind | MemfdFlags::CLOEXEC)
        .map_err(|errno| failed(errno.into()))?;
    let file = File::from(fd);
    file.set_len(size).map_err(failed)?;
    Ok(Some(file))
}

/// Maps `len` bytes of anonymous memory at a multiple of `alignment`, a power of two.
fn reserve_addresses(len: usize, alignment: usize, access: Access) -> Result<NonNull<u8>, MemoryError> {
    let size = len as u64;
    let padded = len
        .checked_add(alignment)
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
    let head = (raw as usize).next_multiple_of(alignment) - raw as usize;
    // The kernel maps nothing at address 0 for an ordinary program, so only its failure value could be null.
    let start = NonNull::new(raw.cast::<u8>().wrapping_add(head)).ok_or_else(|| MemoryError::Map {
        size,
        source: io::Error::from_raw_os_error(libc::EFAULT),
    })?;
    trim(raw, head);
    trim(start.as_ptr().wrapping_add(len).cast(), alignment - head);
    Ok(start)
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

    fn region(size: u64, backing: Backing) -> Result<Mapping, MemoryError> {
        Mapping::new(size, backing, Access::None, Reserve::Nothing)
    }

    #[test]
    fn a_mapping_starts_at_a_huge_page() {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            for size in [HUGE_PAGE, 6 * HUGE_PAGE] {
                let mapping = region(size, backing).unwrap();
                assert_eq!(mapping.as_ptr() as u64 % HUGE_PAGE, 0);
                assert_eq!(mapping.len() as u64, size);
            }
        }
    }

    #[test]
    fn a_part_outside_the_mapping_is_refused() {
        let mapping = region(HUGE_PAGE, Backing::Anonymous).unwrap();
        assert!(mapping.protect(HUGE_PAGE, 4096, Access::None).is_err());
        assert!(mapping.discard(4096, HUGE_PAGE).is_err());
        assert!(mapping.discard(u64::MAX, 2).is_err());
    }

    #[test]
    fn more_than_the_address_space_is_an_error() {
        assert!(matches!(
            region(1 << 60, Backing::Anonymous),
            Err(MemoryError::Map { .. })
        ));
        assert!(matches!(
            region(!(HUGE_PAGE - 1), Backing::Anonymous),
            Err(MemoryError::AddressSpace { .. })
        ));
    }

    #[test]
    fn huge_pages_that_the_host_does_not_have_are_missed_when_they_are_to_be_reserved() {
        // More than any host's pool: 64 TiB.
        let pages = 1 << 25;
        let backing = Backing::Hugetlbfs(HugePage::Mib2);
        let error = Mapping::new(pages * HUGE_PAGE, backing, Access::ReadWrite, Reserve::All).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the host has no 33554432 free huge pages of 2 MiB (see vm.nr_hugepages)"
        );
        assert!(region(pages * HUGE_PAGE, backing).is_ok());
    }
}
