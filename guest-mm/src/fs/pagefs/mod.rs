#![doc = include_str!("README.md")]

mod check;
mod crc;
mod directory;
mod inode;
mod pointers;
mod superblock;
#[cfg(test)]
mod tests;
mod volume;

pub use check::{Damage, Usage, check};
pub use directory::{MAX_NAME, Name, NameError, Record};
pub use inode::{Extent, Inode, InodeNr, Kind};
pub use volume::{Blocks, FsError, Volume};

use core::pin::pin;
use core::task::{Context, Poll, Waker};

use crate::pfn::PAGE_BYTES;
use pointers::Pointer;

/// What a block holds.
pub type Block = [u8; PAGE_BYTES];

/// Why a block does not say what it should: its CRC is right, or it has none, but it is not of this format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FormatError {
    /// Neither superblock is valid.
    NotPageFs,
    /// Of a version that is not known.
    Version(u32),
    /// It claims more blocks than the disk has, or fewer than a file system needs.
    Size(u32),
    /// The block that a pointer names is not the one that was written there.
    Checksum(u32),
    /// A pointer or an extent names a block outside of the file system.
    OutOfRange(u32),
    /// An inode of an unknown kind, or with a size that does not fit its extents.
    Inode(u32),
    /// A record of a directory whose name is not one.
    Name(u32),
}

impl core::fmt::Display for FormatError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NotPageFs => f.write_str("no valid superblock: this is not a PageFS"),
            Self::Version(version) => write!(f, "a PageFS of version {version}, not 1"),
            Self::Size(blocks) => write!(f, "a PageFS of {blocks} blocks does not fit the disk"),
            Self::Checksum(block) => write!(f, "block {block} is not what its pointer says (CRC-32)"),
            Self::OutOfRange(block) => write!(f, "block {block} is outside of the file system"),
            Self::Inode(inode) => write!(f, "inode {inode} is damaged"),
            Self::Name(inode) => write!(f, "a record of inode {inode} has no proper name"),
        }
    }
}

impl core::error::Error for FormatError {}

/// The result of a future whose [`Blocks`] never wait, as those of a file on the host.
///
/// # Panics
/// When they do.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("blocks that never wait have waited"),
    }
}

/// The four bytes at `at`, little endian.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put_word(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The eight bytes at `at`, little endian.
fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

fn put_long(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}
