//! What the host can do at best: the same amount of memory of the same kind, given back in one call, or in calls of one
//! size, with nothing around them.
#![expect(unsafe_code, reason = "mappings and madvise have no safe form")]

use std::io;
use std::os::fd::OwnedFd;
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::clock::{Sample, Stopwatch};

/// What stands behind memory.
#[allow(dead_code, reason = "each bench uses its part")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anonymous memory in transparent huge pages.
    Anonymous,
    /// A file in memory, which other processes can share.
    Memfd,
    /// Pages of 2 MiB of the host's pool.
    Huge,
}

/// Alignment of the mapping: the largest page there is a row for.
const ALIGN: usize = 2 << 20;

/// A mapping.
pub(crate) struct Ceiling {
    /// Where the kernel has put it.
    start: NonNull<u8>,
    /// What of it is used, aligned.
    used: NonNull<u8>,
    len: usize,
    file: Option<OwnedFd>,
}

impl Ceiling {
    /// `len` bytes of the kind, with all their pages.
    ///
    /// # Errors
    /// The kernel refuses, or has not the pages.
    pub(crate) fn new(kind: Kind, len: usize) -> io::Result<Ceiling> {
        let all = len + ALIGN;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let (start, file) = match kind {
            Kind::Anonymous => {
                // SAFETY: a new mapping, wherever the kernel likes.
                let start = unsafe { mmap_anonymous(ptr::null_mut(), all, protection, MapFlags::PRIVATE) }?;
                (start, None)
            }
            Kind::Memfd | Kind::Huge => {
                let flags = match kind {
                    Kind::Huge => MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
                    _ => MemfdFlags::CLOEXEC,
                };
                let file = memfd_create("ceiling", flags)?;
                ftruncate(&file, all as u64)?;
                let shared = MapFlags::SHARED | MapFlags::NORESERVE;
                // SAFETY: a new mapping, wherever the kernel likes, of a file that nobody else has.
                let start = unsafe { mmap(ptr::null_mut(), all, protection, shared, &file, 0) }?;
                (start, Some(file))
            }
        };
        let start = NonNull::new(start.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at 0"))?;
        let skip = match file {
            Some(_) => 0,
            None => start.as_ptr().align_offset(ALIGN),
        };
        // SAFETY: `skip` is below `ALIGN`, by which the mapping is longer.
        let used = unsafe { start.add(skip) };
        let ceiling = Ceiling {
            start,
            used,
            len,
            file,
        };
        if kind == Kind::Anonymous {
            // SAFETY: advice about the mapping's own pages.
            unsafe { madvise(used.as_ptr().cast(), len, Advice::LinuxHugepage) }?;
        }
        // SAFETY: the mapping's own pages; to populate them touches nothing else, and fails where there are none.
        unsafe { madvise(used.as_ptr().cast(), len, Advice::LinuxPopulateWrite) }?;
        Ok(ceiling)
    }

    /// Gives all of it back, `at_once` bytes in each call, and measures that, an operation for each `unit` bytes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn discard(&self, at_once: usize, unit: usize) -> io::Result<Sample> {
        let stopwatch = Stopwatch::start();
        for offset in (0..self.len).step_by(at_once) {
            let len = at_once.min(self.len - offset);
            match &self.file {
                Some(file) => {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(file, flags, offset as u64, len as u64)?;
                }
                None => {
                    let piece = self.used.as_ptr().wrapping_add(offset);
                    // SAFETY: inside the mapping, to which nothing refers.
                    unsafe { madvise(piece.cast(), len, Advice::LinuxDontNeed) }?;
                }
            }
        }
        Ok(stopwatch.stop((self.len / unit) as u64))
    }
}

impl Drop for Ceiling {
    fn drop(&mut self) {
        // SAFETY: the whole mapping, to which nothing refers any more.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len + ALIGN) };
        debug_assert!(unmapped.is_ok(), "it was mapped");
    }
}
