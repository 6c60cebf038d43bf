//! Reading what firmware or the VMM left in physical memory: untrusted bytes at untrusted addresses.

use core::fmt;

/// A 64-bit number, such as an address or a size, as the `usize` that it fits: this kernel is for x86-64.
#[expect(clippy::cast_possible_truncation, reason = "checked by the assertion below")]
pub const fn to_usize(value: u64) -> usize {
    value as usize
}

const _: () = assert!(usize::BITS == u64::BITS);

/// Physical memory as far as it may be read.
pub trait PhysicalBytes {
    /// Copies `into.len()` bytes from the physical address `gpa` on.
    ///
    /// # Errors
    /// If any of them must not or cannot be read.
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), Unreadable>;

    /// Copies `N` bytes from `gpa` on.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_array<const N: usize>(&self, gpa: u64) -> Result<[u8; N], Unreadable> {
        let mut bytes = [0; N];
        self.read(gpa, &mut bytes)?;
        Ok(bytes)
    }

    /// A little-endian 32-bit number.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_u32(&self, gpa: u64) -> Result<u32, Unreadable> {
        self.read_array(gpa).map(u32::from_le_bytes)
    }

    /// A little-endian 64-bit number.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn read_u64(&self, gpa: u64) -> Result<u64, Unreadable> {
        self.read_array(gpa).map(u64::from_le_bytes)
    }
}

/// Some bytes cannot be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable {
    /// The physical address of the first.
    pub gpa: u64,
    /// How many.
    pub len: usize,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes at physical address {:#x} cannot be read",
            self.len, self.gpa
        )
    }
}

impl core::error::Error for Unreadable {}

/// Bytes at a physical address, for tests.
#[cfg(test)]
pub(crate) struct Image {
    pub(crate) base: u64,
    pub(crate) bytes: alloc::vec::Vec<u8>,
}

#[cfg(test)]
impl PhysicalBytes for Image {
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let error = Unreadable { gpa, len: into.len() };
        let start = usize::try_from(gpa.checked_sub(self.base).ok_or(error)?).map_err(|_| error)?;
        let end = start.checked_add(into.len()).ok_or(error)?;
        into.copy_from_slice(self.bytes.get(start..end).ok_or(error)?);
        Ok(())
    }
}
