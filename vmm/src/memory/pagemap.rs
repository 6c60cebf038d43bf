//! What the kernel still holds of a range of private memory, asked with PAGEMAP_SCAN.
//!
//! The call walks page tables and skips what is empty (Linux' `Documentation/admin-guide/mm/pagemap.rst`, since 6.7): an
//! eighth of what `mincore` costs over a block of 128 MiB, for it fills in no byte for each page. It also knows two things
//! that `mincore` does not: a page in swap is still held, and the page of zeros that everybody shares is not.
#![expect(unsafe_code, reason = "an ioctl has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// This process's page map; none where the kernel has no such file.
#[derive(Debug)]
pub(super) struct PageMap {
    file: Option<File>,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    /// Written by the kernel: where it has stopped.
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of `linux/fs.h`: pages of the same categories side by side.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<ScanArgument>() == 96 && size_of::<PageRegion>() == 24);

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

/// Ranges of pages that one call tells of. Mostly there is none.
const REGIONS: usize = 16;

impl PageMap {
    /// The map as the process has it from now on.
    pub(super) fn open() -> Self {
        Self {
            file: File::open("/proc/self/pagemap").ok(),
        }
    }

    /// Bytes of pages that the kernel holds for the process between two addresses, both multiples of a page. `None` where
    /// the kernel is older than the call, or grants it to nobody.
    pub(super) fn held_bytes(&self, start: u64, end: u64) -> Option<u64> {
        let file = self.file.as_ref()?;
        let (mut at, mut held) = (start, 0);
        while at < end {
            let mut regions = [PageRegion::default(); REGIONS];
            let (found, stopped) = scan(file, at, end, &mut regions).ok()?;
            held += regions
                .iter()
                .take(found)
                .map(|region| region.end - region.start)
                .sum::<u64>();
            // A walk that does not go on says nothing.
            at = Some(stopped).filter(|stopped| *stopped > at)?;
        }
        Some(held)
    }
}

/// Fills in regions of held pages; returns how many there are and how far the walk came.
fn scan(file: &File, start: u64, end: u64, regions: &mut [PageRegion; REGIONS]) -> io::Result<(usize, u64)> {
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        start,
        end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: REGIONS as u64,
        // Not the page of zeros, and one of the two.
        category_inverted: PAGE_IS_PFNZERO,
        category_mask: PAGE_IS_PFNZERO,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        ..ScanArgument::default()
    };
    // SAFETY: the argument has the kernel's layout and names `vec_len` regions that are exclusively ours for the call; the
    // range is only looked at.
    let found = unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut argument) };
    match usize::try_from(found) {
        Ok(found) => Ok((found.min(REGIONS), argument.walk_end)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
