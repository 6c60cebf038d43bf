//! Names.

use core::fmt;

use super::{Block, FormatError, InodeNr, put_word, word};

/// Bytes of a name, at most.
pub const MAX_NAME: usize = RECORD_BYTES - 5;
/// Bytes of a record.
const RECORD_BYTES: usize = 64;

/// A name of up to [`MAX_NAME`] bytes: anything but `/` and NUL, not `.` or `..`, and not nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    bytes: [u8; MAX_NAME],
    len: u8,
}

/// Why something is not a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    /// It is empty, `.` or `..`.
    Reserved,
    /// It has so many bytes.
    TooLong(usize),
    /// It contains `/` or NUL.
    Byte(u8),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved => f.write_str("a name is not empty, \".\" or \"..\""),
            Self::TooLong(len) => write!(f, "a name of {len} bytes; {MAX_NAME} are the most"),
            Self::Byte(byte) => write!(f, "a name has no byte {byte:#04x} in it"),
        }
    }
}

impl core::error::Error for NameError {}

impl Name {
    /// A name of these bytes.
    ///
    /// # Errors
    /// They are none.
    pub fn new(bytes: &[u8]) -> Result<Self, NameError> {
        if matches!(bytes, b"" | b"." | b"..") {
            return Err(NameError::Reserved);
        }
        if let Some(byte) = bytes.iter().find(|byte| matches!(byte, 0 | b'/')) {
            return Err(NameError::Byte(*byte));
        }
        let len = u8::try_from(bytes.len())
            .ok()
            .filter(|len| usize::from(*len) <= MAX_NAME);
        let len = len.ok_or(NameError::TooLong(bytes.len()))?;
        let mut name = [0; MAX_NAME];
        name[..bytes.len()].copy_from_slice(bytes);
        Ok(Self { bytes: name, len })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// What it names.
    pub inode: InodeNr,
    /// The name.
    pub name: Name,
}

impl Record {
    /// Records of a block of a directory.
    pub const PER_BLOCK: usize = crate::pfn::PAGE_BYTES / RECORD_BYTES;

    /// Writes one, or none, to its place in a block. `index` is below [`Self::PER_BLOCK`].
    pub fn put(record: Option<&Self>, block: &mut Block, index: usize) {
        let bytes = &mut block[index * RECORD_BYTES..][..RECORD_BYTES];
        bytes.fill(0);
        if let Some(record) = record {
            put_word(bytes, 0, record.inode.number());
            bytes[4] = record.name.len;
            bytes[5..].copy_from_slice(&record.name.bytes);
        }
    }

    /// The record at a place in a block of `directory`, if there is one. `index` is below [`Self::PER_BLOCK`].
    ///
    /// # Errors
    /// There is something else.
    pub fn at(directory: InodeNr, block: &Block, index: usize) -> Result<Option<Self>, FormatError> {
        let bytes = &block[index * RECORD_BYTES..][..RECORD_BYTES];
        let number = word(bytes, 0);
        if number == 0 {
            return Ok(None);
        }
        let damaged = FormatError::Name(directory.number());
        let inode = InodeNr::new(number).ok_or(damaged)?;
        let name = bytes[5..].get(..usize::from(bytes[4])).ok_or(damaged)?;
        let name = Name::new(name).map_err(|_| damaged)?;
        Ok(Some(Self { inode, name }))
    }
}
