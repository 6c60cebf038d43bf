//! The slab descriptor: what is known of a slab, kept in the page descriptor of its first frame.

use core::sync::atomic::Ordering::Relaxed;

use guest_sync::atomic::AtomicU32;

use super::cache::CacheId;
use super::object::ObjAddr;
use crate::page::NO_LINK;
use crate::pfn::{PAGE_SIZE, Pfn};

/// The fields of a page descriptor that belong to the owner of an allocated chunk.
///
/// Who may write them: all of them, who makes or destroys the slab; `private`, `next` and `prev`, who holds the lock
/// of the slab's cache and node.
#[derive(Clone, Copy, Debug)]
pub struct SlabFields<'a> {
    /// Bits 0 to 11: number of the cache. 12 to 23: colour. 24 to 30: where in their frame the object descriptors
    /// are, in 32 bytes, if they are off the slab.
    pub mapping: &'a AtomicU32,
    /// Frame of the object descriptors if they are off the slab.
    pub index: &'a AtomicU32,
    /// Bits 0 to 15: objects taken from the slab. 16 to 31: number of its first free object, or [`END`].
    pub private: &'a AtomicU32,
    /// Next slab on the list, or [`NO_LINK`].
    pub next: &'a AtomicU32,
    /// Previous slab on the list, or [`NO_LINK`].
    pub prev: &'a AtomicU32,
}

/// The object descriptor of the last free object.
pub(crate) const END: u16 = u16::MAX;
/// The object descriptor of an object that was taken from the slab.
pub(crate) const TAKEN: u16 = u16::MAX - 1;

/// Objects of general caches are at least this large and aligned.
const UNIT: u64 = 32;

/// How full a slab is: objects taken, and the first of the free ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fill {
    pub(crate) taken: u16,
    pub(crate) first_free: u16,
}

impl SlabFields<'_> {
    /// Describes a new slab without lists or objects.
    pub(crate) fn describe(&self, cache: CacheId, colour: u32, descriptors: Option<ObjAddr>) {
        let (frame, unit) = descriptors.map_or((NO_LINK, 0), |at| {
            let frame = at.pfn().expect("general caches lie in frames").number();
            (frame, (at.gpa() % PAGE_SIZE / UNIT) as u32)
        });
        self.mapping
            .store(u32::from(cache.0) | colour << 12 | unit << 24, Relaxed);
        self.index.store(frame, Relaxed);
        self.next.store(NO_LINK, Relaxed);
        self.prev.store(NO_LINK, Relaxed);
        self.set_fill(Fill {
            taken: 0,
            first_free: 0,
        });
    }

    #[inline]
    pub(crate) fn cache(&self) -> CacheId {
        CacheId((self.mapping.load(Relaxed) & 0xfff) as u16)
    }

    #[inline]
    pub(crate) fn colour(&self) -> u32 {
        self.mapping.load(Relaxed) >> 12 & 0xfff
    }

    /// Where the object descriptors are if they are off the slab.
    #[inline]
    pub(crate) fn descriptors(&self) -> Option<ObjAddr> {
        let frame = self.index.load(Relaxed);
        let unit = u64::from(self.mapping.load(Relaxed) >> 24);
        (frame != NO_LINK).then(|| ObjAddr::new(Pfn::new(frame).gpa() + unit * UNIT))
    }

    #[inline]
    pub(crate) fn fill(&self) -> Fill {
        let private = self.private.load(Relaxed);
        Fill {
            taken: (private & 0xffff) as u16,
            first_free: (private >> 16) as u16,
        }
    }

    #[inline]
    pub(crate) fn set_fill(&self, fill: Fill) {
        let private = u32::from(fill.taken) | u32::from(fill.first_free) << 16;
        self.private.store(private, Relaxed);
    }

    #[inline]
    pub(crate) fn next(&self) -> Option<Pfn> {
        link(self.next.load(Relaxed))
    }

    #[inline]
    pub(crate) fn prev(&self) -> Option<Pfn> {
        link(self.prev.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_next(&self, slab: Option<Pfn>) {
        self.next.store(slab.map_or(NO_LINK, Pfn::number), Relaxed);
    }

    #[inline]
    pub(crate) fn set_prev(&self, slab: Option<Pfn>) {
        self.prev.store(slab.map_or(NO_LINK, Pfn::number), Relaxed);
    }
}

#[inline]
fn link(number: u32) -> Option<Pfn> {
    (number != NO_LINK).then(|| Pfn::new(number))
}
