//! System calls for memory that programs share, and for waiting on words of it.

#![expect(
    unsafe_code,
    reason = "touches memory by address that belongs to no value of the language's"
)]

use crate::call::call;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use core::sync::atomic::AtomicU32;
use guest_programs::abi::{Call, Error, FOR_EVER, map_flags};
use guest_programs::pattern::Page;

/// Memory that the program shares with children that it forks from now on, all of it zero at first. It is unmapped when the program ends.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    address: u64,
    nr_pages: u64,
}

impl Shared {
    /// Maps so many pages.
    pub(crate) fn map(nr_pages: u64) -> Result<Self, Error> {
        let address = Error::check(call(Call::Map, nr_pages * 4096, map_flags::SHARED, 0))?;
        Ok(Self { address, nr_pages })
    }

    /// Unmaps it.
    pub(crate) fn unmap(self) {
        crate::call::unmap(self.address, self.nr_pages * 4096);
    }

    /// The address of a word of 32 bits, below 1024 to a page.
    pub(crate) const fn address_of(&self, word: u64) -> u64 {
        self.address + word * 4
    }

    /// That word.
    pub(crate) fn word(&self, word: u64) -> &'static AtomicU32 {
        assert!(word < self.nr_pages * 1024);
        word_at(self.address_of(word))
    }

    /// A copy of a page, which nobody writes to meanwhile.
    pub(crate) fn read(&self, index: u64) -> Page {
        assert!(index < self.nr_pages);
        // SAFETY: mapped memory of that size, which the caller says nobody changes; any bytes make a page.
        unsafe { with_exposed_provenance::<Page>(to_usize(self.address + index * 4096)).read_volatile() }
    }

    /// Fills a page, which nobody else looks at meanwhile.
    pub(crate) fn write(&self, index: u64, page: &Page) {
        assert!(index < self.nr_pages);
        let to = with_exposed_provenance_mut::<Page>(to_usize(self.address + index * 4096));
        // SAFETY: as for `read`.
        unsafe { to.write_volatile(*page) };
    }
}

/// The word at an address that is mapped, and a multiple of 4.
pub(crate) fn word_at(address: u64) -> &'static AtomicU32 {
    let word = with_exposed_provenance_mut::<u32>(to_usize(address));
    // SAFETY: the caller has mapped it, for good as far as this is used; whoever else touches it does so atomically too.
    unsafe { AtomicU32::from_ptr(word) }
}

/// Waits until somebody calls for the word at an address, if it is `expected`, or it is `deadline` of [`now`].
pub(crate) fn futex_wait(address: u64, expected: u32, deadline: u64) -> Result<(), Error> {
    let waited = call(Call::FutexWait, address, expected.into(), deadline);
    Error::check(waited).map(|_| ())
}

/// The same without a deadline.
pub(crate) fn futex_wait_for_ever(address: u64, expected: u32) -> Result<(), Error> {
    futex_wait(address, expected, FOR_EVER)
}

/// Calls up to `most` of those who wait for the word at an address; how many those were.
pub(crate) fn futex_wake(address: u64, most: u32) -> Result<u64, Error> {
    Error::check(call(Call::FutexWake, address, most.into(), 0))
}

/// Has pages of a shared mapping, from an address on, show others of its file: `first_page` and those after it.
pub(crate) fn remap_file_pages(address: u64, nr_pages: u64, first_page: u64) -> Result<(), Error> {
    let remapped = call(Call::RemapFilePages, address, nr_pages * 4096, first_page);
    Error::check(remapped).map(|_| ())
}

/// Nanoseconds since the guest started.
pub(crate) fn now() -> u64 {
    call(Call::Clock, 0, 0, 0)
}

/// Gives the page at an address other rights.
pub(crate) fn protect_page(address: u64, rights: u64) -> Result<(), Error> {
    Error::check(call(Call::Protect, address, 4096, rights)).map(|_| ())
}

/// Goes on with the code at an address, whatever is there.
pub(crate) fn run_at(address: u64) {
    // SAFETY: not code of the language's: that it cannot be run is the purpose, and the program that does this ends by it.
    let code: extern "C" fn() =
        unsafe { core::mem::transmute(with_exposed_provenance::<()>(to_usize(address))) };
    code();
}

/// Asks for an interrupt-free CPU, as only a kernel may.
pub(crate) fn forbid_interrupts() {
    // SAFETY: a program may not: it ends by it.
    unsafe { core::arch::asm!("cli", options(nomem, nostack)) };
}

#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits here")]
const fn to_usize(value: u64) -> usize {
    value as usize
}
