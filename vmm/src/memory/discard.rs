//! Giving pages back to the host, and looking whether it has them.
//!
//! Each backing has its own way, and a wrong one fails in silence: `MADV_DONTNEED` on shared memory unmaps pages and frees
//! none. So every discard is followed by a look at what the host itself shows of the range, by the cheapest account that
//! cannot be fooled by it:
//!
//! | backing | discard | account |
//! |---|---|---|
//! | anonymous | `madvise(MADV_DONTNEED)` | the page map, every page: page tables are the only place where such memory is; `mincore` where the kernel is too old |
//! | memfd | `fallocate(PUNCH_HOLE)` | `lseek(SEEK_DATA)`: pages in the file, mapped or not |
//! | hugetlbfs | `fallocate(PUNCH_HOLE)` | `st_blocks` of the file before and after; `mincore` sees page tables only |
//!
//! Against the discard itself of 128 MiB they cost half a per cent (`mincore`: 5), nothing and a per cent.
#![expect(unsafe_code, reason = "madvise and mincore have no safe form")]

use std::io;

use rustix::fs::{FallocateFlags, SeekFrom};

use super::MemoryError;
use super::mapping::Mapping;
use crate::spec::Backing;

/// What a discard came to, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "a discard that freed nothing shows here and nowhere else"]
pub struct Discarded {
    /// What was asked for and not refused: claimed to be free.
    pub claimed: u64,
    /// As much of it as the host, asked right after, shows free. Less than `claimed` where pages are left, or where
    /// somebody has touched the range meanwhile.
    pub shown: u64,
}

impl Discarded {
    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            claimed: self.claimed + other.claimed,
            shown: self.shown + other.shown,
        }
    }
}

/// Bytes of the smallest page.
const PAGE: usize = 4096;
/// Pages looked at in one call: 64 MiB.
const PAGES_AT_ONCE: usize = 16 << 10;

impl Mapping {
    /// Gives the pages of `size` bytes at `offset`, both multiples of the backing's page size, back to the host, and asks
    /// the host whether it has them. They read as zero when next accessible.
    ///
    /// # Errors
    /// The range is outside the mapping, or the host refuses. Not if it says yes and does nothing: that is in the result.
    pub(super) fn discard(&self, offset: u64, size: u64) -> Result<Discarded, MemoryError> {
        let before = Account::open(self);
        self.give_back(offset, size)?;
        let left = before.left(self, offset, size);
        Ok(Discarded {
            claimed: size,
            // An account that cannot be read shows nothing.
            shown: left.map_or(0, |left| size.saturating_sub(left)),
        })
    }

    fn give_back(&self, offset: u64, size: u64) -> Result<(), MemoryError> {
        let (start, len) = self.part(offset, size)?;
        let result = match self.file() {
            // SAFETY: `part` checked that the range is within this mapping, to which no reference exists.
            None => match unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
            // A hole of no length is an error to the kernel.
            Some(_) if len == 0 => Ok(()),
            Some(file) => {
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(file, hole, offset, size).map_err(io::Error::from)
            }
        };
        result.map_err(|source| MemoryError::Discard { offset, size, source })
    }

    /// Bytes of pages that the host holds for a part of an anonymous mapping.
    fn held_bytes(&self, offset: u64, size: u64) -> io::Result<u64> {
        let (start, len) = self.part(offset, size).map_err(io::Error::other)?;
        let start = start as u64;
        match self.page_map().held_bytes(start, start + len as u64) {
            Some(held) => Ok(held),
            None => self.mapped_bytes(offset, size),
        }
    }

    /// Bytes of a part of the mapping that this process has mapped to pages.
    fn mapped_bytes(&self, offset: u64, size: u64) -> io::Result<u64> {
        let (start, len) = self.part(offset, size).map_err(io::Error::other)?;
        let mut pages = [0_u8; PAGES_AT_ONCE];
        let mut mapped = 0;
        for done in (0..len).step_by(PAGES_AT_ONCE * PAGE) {
            let piece = (len - done).min(PAGES_AT_ONCE * PAGE);
            let states = &mut pages[..piece.div_ceil(PAGE)];
            let from = start.wrapping_add(done);
            // SAFETY: the range is within this mapping, and there is a byte for each of its pages.
            if unsafe { libc::mincore(from.cast(), piece, states.as_mut_ptr()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            // The other bits are reserved (mincore(2)).
            mapped += states.iter().map(|state| u64::from(state & 1)).sum::<u64>();
        }
        Ok(mapped * PAGE as u64)
    }

    /// Bytes of a part of the file that are no hole.
    fn data_bytes(&self, offset: u64, size: u64) -> io::Result<u64> {
        let Some(file) = self.file() else { return Ok(0) };
        let (mut at, end, mut data) = (offset, offset + size, 0);
        while at < end {
            let first = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(first) if first < end => first,
                // ENXIO: nothing but a hole up to the end of the file (lseek(2)).
                Ok(_) | Err(rustix::io::Errno::NXIO) => break,
                Err(errno) => return Err(errno.into()),
            };
            at = rustix::fs::seek(file, SeekFrom::Hole(first))?.min(end);
            data += at - first;
        }
        Ok(data)
    }
}

/// The host's account of a mapping, opened before a discard.
struct Account {
    /// Bytes of the whole file, where ranges of it cannot be looked at.
    file_bytes: u64,
}

impl Account {
    fn open(mapping: &Mapping) -> Self {
        let file_bytes = match mapping.backing() {
            Backing::Hugetlbfs(_) => mapping.file_bytes().and_then(Result::ok).unwrap_or(0),
            Backing::Anonymous | Backing::Memfd => 0,
        };
        Self { file_bytes }
    }

    /// Bytes of a discarded range that are still there.
    fn left(&self, mapping: &Mapping, offset: u64, size: u64) -> io::Result<u64> {
        match mapping.backing() {
            Backing::Anonymous => mapping.held_bytes(offset, size),
            Backing::Memfd => mapping.data_bytes(offset, size),
            Backing::Hugetlbfs(_) => self.left_of_huge_pages(mapping, size),
        }
    }

    /// Mostly all pages were there, and the file is smaller by as many. Else some were not (or the guest has got others
    /// meanwhile), and what is left shows as pages of the file that nobody maps: a discard unmaps them first.
    fn left_of_huge_pages(&self, mapping: &Mapping, size: u64) -> io::Result<u64> {
        let now = mapping.file_bytes().unwrap_or(Ok(0))?;
        let freed = self.file_bytes.saturating_sub(now);
        if freed >= size {
            return Ok(0);
        }
        let mapped = mapping.mapped_bytes(0, mapping.len() as u64)?;
        Ok(now.saturating_sub(mapped).min(size - freed))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{BLOCK, BOOT, START, fill, is_zero, on_every_backing, plan, ram, region};
    use super::super::{GuestRam, MemoryError};
    use super::*;

    /// Looks at what is left of `size` bytes of the region after `discard`, which may be a wrong one.
    fn left_after(ram: &GuestRam, size: u64, discard: impl FnOnce(&Mapping)) -> u64 {
        let mapping = &region(ram).mapping;
        let account = Account::open(mapping);
        discard(mapping);
        account.left(mapping, 0, size).unwrap()
    }

    /// The discard that is right for private memory only.
    fn unmap(mapping: &Mapping, size: u64) {
        let (start, len) = mapping.part(0, size).unwrap();
        // SAFETY: the range is within the mapping, to which no reference exists.
        let result = unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
        assert_eq!(result, 0);
    }

    #[test]
    fn a_discard_that_frees_nothing_is_caught_on_every_backing() {
        on_every_backing(8 * BLOCK, |backing| {
            let ram = ram(Backing::Anonymous, &[plan(backing, 8)]);
            ram.backend(0).unwrap().plug_blocks(0, 8).unwrap();
            fill(&ram, START, 8 * BLOCK);
            if backing == Backing::Anonymous {
                assert_eq!(left_after(&ram, 4 * BLOCK, |_| ()), 4 * BLOCK);
                assert_eq!(
                    left_after(&ram, 4 * BLOCK, |mapping| unmap(mapping, 3 * BLOCK)),
                    BLOCK
                );
            } else {
                // Nothing is freed, and the process's own page tables say that all is.
                let unmapped = left_after(&ram, 4 * BLOCK, |mapping| unmap(mapping, 4 * BLOCK));
                assert_eq!(unmapped, 4 * BLOCK, "{backing}");
            }
            let left = left_after(&ram, 4 * BLOCK, |mapping| {
                mapping.give_back(0, 4 * BLOCK).unwrap();
            });
            assert_eq!(left, 0, "{backing}");
        });
    }

    #[test]
    fn the_page_map_and_mincore_see_the_same_pages() {
        let ram = ram(Backing::Anonymous, &[plan(Backing::Anonymous, 64)]);
        ram.backend(0).unwrap().plug_blocks(0, 64).unwrap();
        let mapping = &region(&ram).mapping;
        // A huge page, and more single pages than one call tells of.
        fill(&ram, START, BLOCK);
        for block in 1..64 {
            fill(&ram, START + block * BLOCK, 4096);
        }
        // Those that became huge are made small again.
        for block in 1..64 {
            mapping.give_back(block * BLOCK + 4096, BLOCK - 4096).unwrap();
        }
        let by_mincore = mapping.mapped_bytes(0, 64 * BLOCK).unwrap();
        assert_eq!(by_mincore, BLOCK + 63 * 4096);
        assert_eq!(mapping.held_bytes(0, 64 * BLOCK).unwrap(), by_mincore);
        assert_eq!(mapping.held_bytes(63 * BLOCK + 4096, 4096).unwrap(), 0);
    }

    #[test]
    fn reading_takes_no_page_that_counts_as_held() {
        let ram = ram(Backing::Anonymous, &[plan(Backing::Anonymous, 2)]);
        ram.backend(0).unwrap().plug_blocks(0, 2).unwrap();
        assert!(is_zero(&ram, START, 2 * BLOCK));
        let mapping = &region(&ram).mapping;
        let start = mapping.as_ptr() as u64;
        // Only the page map knows the page of zeros.
        let held = mapping.page_map().held_bytes(start, start + 2 * BLOCK);
        assert!(matches!(held, Some(0) | None), "{held:?}");
    }

    #[test]
    fn discarding_what_is_not_there_shows_it_free() {
        on_every_backing(8 * BLOCK, |backing| {
            let ram = ram(Backing::Anonymous, &[plan(backing, 8)]);
            let discarded = region(&ram).mapping.discard(2 * BLOCK, 4 * BLOCK).unwrap();
            assert_eq!(
                (discarded.claimed, discarded.shown),
                (4 * BLOCK, 4 * BLOCK),
                "{backing}"
            );
        });
    }

    #[test]
    fn the_guest_gives_pages_of_its_boot_memory_and_of_plugged_blocks_in_whole_pages() {
        on_every_backing(BOOT + 8 * BLOCK, |backing| {
            let ram = ram(backing, &[plan(backing, 8)]);
            let page = backing.page_size();
            fill(&ram, 0, BOOT);
            // One page more at each end than it may take.
            let given = ram.discard(4 * BLOCK - 1, 2 * BLOCK + 2).unwrap();
            assert_eq!((given.claimed, given.shown), (2 * BLOCK, 2 * BLOCK), "{backing}");
            assert!(is_zero(&ram, 4 * BLOCK, 2 * BLOCK), "{backing}");
            assert!(!is_zero(&ram, 4 * BLOCK - page, page), "{backing}");
            assert!(!is_zero(&ram, 6 * BLOCK, page), "{backing}");
            assert_eq!(
                ram.discard(8 * BLOCK + 1, page - 1).unwrap(),
                Discarded::default()
            );
        });
    }

    #[test]
    fn of_unplugged_blocks_there_is_nothing_to_give() {
        on_every_backing(BOOT + 8 * BLOCK, |backing| {
            let ram = ram(backing, &[plan(backing, 8)]);
            let mut backend = ram.backend(0).unwrap();
            backend.plug_blocks(1, 2).unwrap();
            backend.plug_blocks(5, 1).unwrap();
            let given = ram.discard(START, 8 * BLOCK).unwrap();
            assert_eq!((given.claimed, given.shown), (3 * BLOCK, 3 * BLOCK), "{backing}");
            assert_eq!(ram.discard(u64::MAX - 4096, 4096).unwrap(), Discarded::default());
            assert_eq!(ram.discard(BOOT, BLOCK).unwrap(), Discarded::default());
        });
    }

    #[test]
    fn a_part_outside_the_mapping_is_not_discarded() {
        let ram = ram(Backing::Anonymous, &[plan(Backing::Memfd, 1)]);
        let outside = region(&ram).mapping.discard(BLOCK, BLOCK);
        assert!(matches!(outside, Err(MemoryError::AddressSpace { .. })));
    }
}
