//! Failing memory: a frame that can no longer be trusted is taken out of use while everything runs on (Linux `mm/memory-failure.c`).
//!
//! *Soft*: the frame still has its contents, but somebody has counted too many corrected errors. Whoever uses it gets another
//! frame with the same contents and notices nothing ([`Mm::soft_offline`]).
//!
//! *Hard*: the contents are gone ([`Mm::memory_failure`]). What is also on a disk is forgotten and read from there by whoever
//! wants it next. What was only in memory is lost: the entries that mapped it become *poisoned* ones ([`Entry::poisoned`]), an
//! access to which is a fault of the program ([`FaultError::Poisoned`]), and who had it mapped is named to the caller, who ends
//! those programs and no others. A lost page of a file is an error that the next `fsync` tells, one of shared memory can
//! never be read again, and neither can one of the swap cache.
//!
//! Either way the frame ends as [`PageState::Poisoned`]: no part of managed memory, so that its block can still be emptied
//! and go. A block that is unplugged forgets: what the device plugs there later is other memory.
//!
//! [`Entry::poisoned`]: crate::Entry::poisoned
//! [`FaultError::Poisoned`]: crate::mm::FaultError::Poisoned
//! [`PageState::Poisoned`]: crate::PageState::Poisoned

mod hard;
mod retire;
mod soft;

use core::fmt;

#[cfg(doc)]
use crate::mm::Mm;
use crate::page::KernelUse;
use crate::pfn::Pfn;

/// Why a frame was not taken out of use. Nothing has changed, but for what [`Mm::memory_failure`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryFailureError {
    /// No memory is there, or none that is online.
    NoMemoryThere(Pfn),
    /// It is out of use already.
    AlreadyPoisoned(Pfn),
    /// Somebody holds its physical address.
    Pinned {
        /// The frame.
        pfn: Pfn,
        /// Who.
        holder: &'static str,
    },
    /// The kernel's own: nobody knows all the references to it, or its owner has not moved it.
    Unmovable {
        /// The frame.
        pfn: Pfn,
        /// What the kernel uses it for.
        used_for: KernelUse,
    },
    /// Somebody is at work on it, or on its block: it may be possible later.
    Busy(Pfn),
    /// There is no other frame for its contents.
    NoMemory(Pfn),
}

impl fmt::Display for MemoryFailureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemoryThere(pfn) => write!(f, "no memory is online at {pfn}"),
            Self::AlreadyPoisoned(pfn) => write!(f, "{pfn} is out of use already"),
            Self::Pinned { pfn, holder } => write!(f, "{pfn} is pinned by {holder}"),
            Self::Unmovable {
                pfn,
                used_for: KernelUse::Other,
            } => write!(f, "{pfn} is the kernel's own, which cannot do without it"),
            Self::Unmovable { pfn, used_for } => {
                write!(f, "{pfn} is {used_for}, and the kernel cannot do without it")
            }
            Self::Busy(pfn) => write!(f, "{pfn} is busy"),
            Self::NoMemory(pfn) => write!(f, "no other frame is free for what is in {pfn}"),
        }
    }
}

impl core::error::Error for MemoryFailureError {}

/// What was in a frame that is out of use now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// Nothing: it was free.
    Nothing,
    /// Its contents are in another frame.
    Moved,
    /// Its contents are on a disk, and are read from there again.
    OnDisk,
    /// Its contents are gone.
    Lost,
}

impl Contents {
    /// In a word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "free",
            Self::Moved => "moved",
            Self::OnDisk => "dropped",
            Self::Lost => "lost",
        }
    }
}
