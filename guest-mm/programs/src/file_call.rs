//! System calls for files, and a buffer to read and write with.

#![expect(unsafe_code, reason = "touches memory by address")]

use crate::call::enter;
use core::ptr::with_exposed_provenance;
use guest_programs::abi::Error;
use guest_programs::files::{AT_POSITION, FileCall, MAX_NAME, STAT_WORDS, Stat};
use guest_programs::pattern::Page;

fn call(number: FileCall, first: u64, second: u64, third: u64, fourth: u64) -> Result<u64, Error> {
    Error::check(enter(number as u64, [first, second, third, fourth]))
}

fn with_path(number: FileCall, path: &str, third: u64, fourth: u64) -> Result<u64, Error> {
    call(
        number,
        path.as_ptr().addr() as u64,
        path.len() as u64,
        third,
        fourth,
    )
}

/// A file that is open until this is closed.
#[derive(Clone, Copy)]
pub(crate) struct File(u64);

impl File {
    /// Opens a file, as `guest_programs::files::open` says.
    pub(crate) fn open(path: &str, flags: u64) -> Result<Self, Error> {
        with_path(FileCall::Open, path, flags, 0).map(Self)
    }

    /// Its descriptor.
    pub(crate) const fn descriptor(self) -> u64 {
        self.0
    }

    pub(crate) fn close(self) -> Result<(), Error> {
        call(FileCall::Close, self.0, 0, 0, 0).map(|_| ())
    }

    /// Reads pages from page `first` of the file on; how many bytes it read.
    pub(crate) fn read_pages(self, pages: &mut [Page], first: u64) -> Result<u64, Error> {
        let bytes = size_of_val(pages) as u64;
        let address = pages.as_mut_ptr().addr() as u64;
        call(FileCall::Read, self.0, address, bytes, first * 4096)
    }

    /// Writes pages from page `first` of the file on; how many bytes it wrote.
    pub(crate) fn write_pages(self, pages: &[Page], first: u64) -> Result<u64, Error> {
        let (address, bytes) = (pages.as_ptr().addr() as u64, size_of_val(pages) as u64);
        call(FileCall::Write, self.0, address, bytes, first * 4096)
    }

    /// Reads into `(address, bytes)`, which is memory or not, from byte `offset` of the file on; how many bytes it read.
    pub(crate) fn read_bytes_at(self, (address, bytes): (u64, u64), offset: u64) -> Result<u64, Error> {
        call(FileCall::Read, self.0, address, bytes, offset)
    }

    /// Writes `(address, bytes)` to the file from byte `offset` on; how many bytes it wrote.
    pub(crate) fn write_bytes_at(self, (address, bytes): (u64, u64), offset: u64) -> Result<u64, Error> {
        call(FileCall::Write, self.0, address, bytes, offset)
    }

    /// Reads where the last read or write ended.
    pub(crate) fn read(self, bytes: &mut [u8]) -> Result<u64, Error> {
        let address = bytes.as_mut_ptr().addr() as u64;
        call(FileCall::Read, self.0, address, bytes.len() as u64, AT_POSITION)
    }

    /// Writes where the last read or write ended.
    pub(crate) fn write(self, bytes: &[u8]) -> Result<u64, Error> {
        let address = bytes.as_ptr().addr() as u64;
        call(FileCall::Write, self.0, address, bytes.len() as u64, AT_POSITION)
    }

    pub(crate) fn seek(self, position: u64) -> Result<u64, Error> {
        call(FileCall::Seek, self.0, position, 0, 0)
    }

    pub(crate) fn sync(self) -> Result<(), Error> {
        call(FileCall::Sync, self.0, 0, 0, 0).map(|_| ())
    }

    pub(crate) fn set_size(self, bytes: u64) -> Result<(), Error> {
        call(FileCall::SetSize, self.0, bytes, 0, 0).map(|_| ())
    }

    /// Maps pages of the file from its beginning, as `guest_programs::files::map` says.
    pub(crate) fn map(self, nr_pages: u64, flags: u64) -> Result<Mapping, Error> {
        let address = call(FileCall::Map, self.0, 0, nr_pages * 4096, flags)?;
        Ok(Mapping { address, nr_pages })
    }
}

/// Pages in the program's memory: of a file, or of its own.
pub(crate) struct Mapping {
    address: u64,
    nr_pages: u64,
}

impl Mapping {
    /// Pages that are no file's, with the given `guest_programs::abi::map_flags`.
    pub(crate) fn of_memory(nr_pages: u64, flags: u64) -> Result<Self, Error> {
        let address = crate::call::map(nr_pages * 4096, flags)?;
        Ok(Self { address, nr_pages })
    }

    /// Where a page is.
    pub(crate) fn address_of(&self, index: u64) -> u64 {
        assert!(index < self.nr_pages);
        self.address + index * 4096
    }

    /// A page, below the number that was asked for.
    pub(crate) fn page(&self, index: u64) -> &Page {
        assert!(index < self.nr_pages);
        let address = usize::try_from(self.address + index * 4096).unwrap_or(0);
        // SAFETY: mapped memory of that size as long as this exists, which nobody writes to but through it; any bytes make a page.
        unsafe { &*with_exposed_provenance::<Page>(address) }
    }

    /// A page to be written to, in a mapping that was made for that.
    pub(crate) fn page_mut(&mut self, index: u64) -> &mut Page {
        assert!(index < self.nr_pages);
        let address = usize::try_from(self.address + index * 4096).unwrap_or(0);
        // SAFETY: as for `page`.
        unsafe { &mut *core::ptr::with_exposed_provenance_mut::<Page>(address) }
    }

    /// Has on the disk what was stored.
    pub(crate) fn sync(&self) -> Result<(), Error> {
        call(FileCall::SyncMapping, self.address, 0, 0, 0).map(|_| ())
    }

    pub(crate) fn unmap(self) {
        crate::call::unmap(self.address, self.nr_pages * 4096);
    }
}

pub(crate) fn remove(path: &str) -> Result<(), Error> {
    with_path(FileCall::Remove, path, 0, 0).map(|_| ())
}

pub(crate) fn make_directory(path: &str) -> Result<(), Error> {
    with_path(FileCall::MakeDirectory, path, 0, 0).map(|_| ())
}

pub(crate) fn stat(path: &str) -> Result<Stat, Error> {
    let mut words = [0_u64; STAT_WORDS];
    let address = (&raw mut words).addr() as u64;
    with_path(FileCall::Stat, path, address, 0).map(|_| Stat::from_words(words))
}

/// The name with that number in a directory: how many bytes it has, 0 behind the last.
pub(crate) fn nth_name(path: &str, nth: u64, name: &mut [u8; MAX_NAME]) -> Result<u64, Error> {
    let address = name.as_mut_ptr().addr() as u64;
    with_path(FileCall::ReadDirectory, path, address, nth)
}
