//! The slab allocator: objects of one size cut from chunks of frames, kept in caches (J. Bonwick, "The slab
//! allocator", 1994; "Understanding the Linux Kernel", 3rd ed., chapter 8; Linux 2.6 `mm/slab.c`).
//!
//! A *cache* holds objects of one kind. Its objects lie in *slabs*, chunks of the page allocator, which stand on three
//! lists by how full they are. Each CPU keeps some objects at hand, so that most requests take no lock; whoever frees
//! an object keeps it, wherever it comes from. *General caches* serve [`kmalloc`](SlabAllocator::kmalloc).
//!
//! Nothing here needs a heap but making and destroying caches: a heap may live on top of `kmalloc`. What is known of
//! a slab is in its page descriptor and, through [`Frames`], on the slab itself.

mod alloc_path;
mod cache;
mod debug;
mod free_path;
mod general;
mod head;
mod info;
mod layout;
mod lists;
mod misuse;
mod object;
mod registry;
mod shrink;
mod source;
mod track;
mod vacate;
mod validate;

#[cfg(test)]
pub(crate) mod tests;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use guest_sync::SpinLock;

use crate::frames::Frames;

pub use cache::{Cache, CacheId, CacheSpec, Constructor, Debugging, Objects};
pub use general::{GENERAL_SIZES, KMALLOC_MAX};
pub use info::{CacheInfo, slabinfo};
pub use layout::{Alignment, CACHE_LINE, MAX_OBJECT, SlabLayout};
pub use misuse::{Damage, DamageKind, Misuse, SHOWN};
pub use object::ObjAddr;
pub use registry::{CreateError, Leak};
pub use shrink::Reaped;
pub use source::SlabSource;
pub use track::Track;
pub use vacate::{IsLeaving, MoveObjects};

/// Caches that can be made besides the general ones.
pub const MAX_CACHES: usize = 128;

/// There is no object free, and no frames for another slab.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoObject {
    /// Name of the cache.
    pub cache: &'static str,
}

impl fmt::Display for NoObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cache {}: no memory for another slab", self.cache)
    }
}

impl core::error::Error for NoObject {}

/// All caches of a machine.
///
/// Lock order: the table of caches is never held while another lock is taken; a cache's node before the journal;
/// whatever the source takes comes last and is never called with a lock of this allocator held.
pub struct SlabAllocator<F, P> {
    frames: F,
    source: P,
    /// The general caches: normal ones by size, then those for DMA.
    general: Box<[Cache]>,
    table: SpinLock<Box<[Option<Arc<Cache>>]>>,
    journal: misuse::Journal,
    files: track::Files,
}

impl<F: Frames, P: SlabSource> SlabAllocator<F, P> {
    /// An allocator with the general caches, which take no frames before they are used. Needs a heap, about a KiB a
    /// CPU and cache.
    pub fn new(frames: F, source: P, general: Debugging) -> Self {
        let (nr_cpus, nr_nodes) = (source.nr_cpus(), source.nr_nodes());
        Self {
            frames,
            source,
            general: general::caches(general, nr_cpus, nr_nodes),
            table: SpinLock::new((0..MAX_CACHES).map(|_| None).collect()),
            journal: misuse::Journal::new(),
            files: track::Files::new(),
        }
    }

    /// The frames that objects lie in.
    pub const fn frames(&self) -> &F {
        &self.frames
    }

    /// Where slabs come from.
    pub const fn source(&self) -> &P {
        &self.source
    }

    /// Whether the general caches are debugged.
    pub fn is_debugged(&self) -> bool {
        self.general.iter().any(Cache::is_debugged)
    }

    /// Misuses noticed so far.
    pub fn nr_misuses(&self) -> u64 {
        self.journal.count()
    }

    /// The oldest misuse that was not read yet; of more than 32 unread ones the oldest are lost.
    pub fn next_misuse(&self) -> Option<Misuse> {
        self.journal.read()
    }
}

impl<F, P> fmt::Debug for SlabAllocator<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlabAllocator").finish_non_exhaustive()
    }
}
