//! Disks, as memory management sees them: pages to and from runs of blocks, many at a time, none of them waited for here.
//!
//! A request is handed over with a token, and the token comes back with the result. What the request needs (page locks,
//! references, who waits) belongs in the token: while the device may touch a page, nobody else can unlock or free it,
//! whatever becomes of those who wait for the result.
//!
//! The kernel implements [`BlockDevice`] with a virtio disk; [`SimulatedDisk`] is one for tests that answers in any order,
//! fails where it is told to, and can lose its power.

mod simulated;
#[cfg(test)]
mod tests;

pub use simulated::{Fault, SimulatedDisk};

use alloc::vec::Vec;
use core::fmt;

use crate::pfn::Pfn;

/// Bytes of a block: those of a page.
pub const BLOCK_SIZE: u64 = crate::pfn::PAGE_SIZE;

/// Number of a block on a disk, from 0, in units of [`BLOCK_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BlockNr(pub u64);

impl fmt::Display for BlockNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}", self.0)
    }
}

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Fills each page from one of the blocks that begin here.
    Read(BlockNr, Vec<Pfn>),
    /// Writes each page to one of the blocks that begin here.
    Write(BlockNr, Vec<Pfn>),
    /// Makes durable every write that was answered before this was submitted.
    Flush,
}

impl Request {
    /// The first block and the pages; nothing for a flush.
    pub fn transfer(&self) -> Option<(BlockNr, &[Pfn])> {
        match self {
            Self::Read(first, pages) | Self::Write(first, pages) => Some((*first, pages)),
            Self::Flush => None,
        }
    }
}

/// Why a request was not taken. It comes back with its token; nothing has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// As many requests as the disk can hold are under way.
    Full,
    /// There is no such block, or no page.
    OutOfRange,
}

/// The disk could not do it. Of a write, any part may have been done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoError;

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the disk reported an error")
    }
}

impl core::error::Error for IoError {}

/// A disk. `T` is what comes back with a request.
pub trait BlockDevice<T> {
    /// How many blocks there are.
    fn nr_blocks(&self) -> u64;

    /// Begins with a request. Requests under way are done in any order.
    ///
    /// # Errors
    /// The token again, and why.
    fn submit(&self, request: Request, token: T) -> Result<(), (Refused, T)>;

    /// A request that is done, if there is one: its token and how it went.
    fn completed(&self) -> Option<(T, Result<(), IoError>)>;
}
