//! The slab descriptor: what is known of a slab, kept in the page descriptor of its first frame.

use super::cache::CacheId;
use super::object::ObjAddr;
use super::source::SlabSource;
use crate::page::Page;
use crate::pfn::{PAGE_SIZE, Pfn};

/// No frame.
const NONE: u32 = u32::MAX;

/// The slab descriptor in a page descriptor.
///
/// | field | what it holds |
/// |---|---|
/// | `mapping` | bits 0 to 11: number of the cache; 12 to 23: colour; 24 to 30: where in their frame the object descriptors are, in 32 bytes, if they are off the slab; 31: it is on a list |
/// | `index` | frame of the object descriptors if they are off the slab, otherwise [`NONE`] |
/// | `private` | bits 0 to 15: objects taken from the slab; 16 to 31: number of its first free object, or [`END`] |
/// | `next`, `prev` | the neighbours on the slab's list, or [`NONE`] |
///
/// All of them are written by who makes or destroys the slab; `private`, `next`, `prev` and bit 31 of `mapping` also by who holds the
/// lock of the slab's cache and node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlabHead<'a>(&'a Page);

/// The descriptor of a slab.
#[inline]
pub(crate) fn head(source: &impl SlabSource, slab: Pfn) -> SlabHead<'_> {
    SlabHead(source.page(slab))
}

/// The object descriptor of the last free object.
pub(crate) const END: u16 = u16::MAX;
/// The object descriptor of an object that was taken from the slab.
pub(crate) const TAKEN: u16 = u16::MAX - 1;

/// Bit 31 of `mapping`.
const LISTED: u32 = 1 << 31;

/// Objects of general caches are at least this large and aligned.
const UNIT: u64 = 32;

/// How full a slab is: objects taken, and the first of the free ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fill {
    pub(crate) taken: u16,
    pub(crate) first_free: u16,
}

impl SlabHead<'_> {
    /// Describes a new slab without lists or objects.
    pub(crate) fn describe(&self, cache: CacheId, colour: u32, descriptors: Option<ObjAddr>) {
        let (frame, unit) = descriptors.map_or((NONE, 0), |at| {
            let frame = at.pfn().expect("general caches lie in frames").number();
            (frame, (at.gpa() % PAGE_SIZE / UNIT) as u32)
        });
        self.0.set_mapping(u32::from(cache.0) | colour << 12 | unit << 24);
        self.0.set_index(frame);
        self.0.set_next(NONE);
        self.0.set_prev(NONE);
        self.set_fill(Fill {
            taken: 0,
            first_free: 0,
        });
    }

    #[inline]
    pub(crate) fn cache(&self) -> CacheId {
        CacheId((self.0.mapping() & 0xfff) as u16)
    }

    #[inline]
    pub(crate) fn colour(&self) -> u32 {
        self.0.mapping() >> 12 & 0xfff
    }

    /// Where the object descriptors are if they are off the slab.
    #[inline]
    pub(crate) fn descriptors(&self) -> Option<ObjAddr> {
        let frame = self.0.index();
        let unit = u64::from(self.0.mapping() >> 24 & 0x7f);
        (frame != NONE).then(|| ObjAddr::new(Pfn::new(frame).gpa() + unit * UNIT))
    }

    /// Whether it is on a list.
    #[inline]
    pub(crate) fn is_listed(&self) -> bool {
        self.0.mapping() & LISTED != 0
    }

    /// Notes that it is on a list now.
    #[inline]
    pub(crate) fn set_listed(&self) {
        self.0.set_mapping(self.0.mapping() | LISTED);
    }

    /// Notes that it is on no list any more.
    #[inline]
    pub(crate) fn set_unlisted(&self) {
        self.0.set_mapping(self.0.mapping() & !LISTED);
    }

    #[inline]
    pub(crate) fn fill(&self) -> Fill {
        let private = self.0.private();
        Fill {
            taken: (private & 0xffff) as u16,
            first_free: (private >> 16) as u16,
        }
    }

    #[inline]
    pub(crate) fn set_fill(&self, fill: Fill) {
        let private = u32::from(fill.taken) | u32::from(fill.first_free) << 16;
        self.0.set_private(private);
    }

    #[inline]
    pub(crate) fn next(&self) -> Option<Pfn> {
        link(self.0.links().0)
    }

    #[inline]
    pub(crate) fn prev(&self) -> Option<Pfn> {
        link(self.0.links().1)
    }

    #[inline]
    pub(crate) fn set_next(&self, slab: Option<Pfn>) {
        self.0.set_next(slab.map_or(NONE, Pfn::number));
    }

    #[inline]
    pub(crate) fn set_prev(&self, slab: Option<Pfn>) {
        self.0.set_prev(slab.map_or(NONE, Pfn::number));
    }
}

#[inline]
fn link(number: u32) -> Option<Pfn> {
    (number != NONE).then(|| Pfn::new(number))
}
