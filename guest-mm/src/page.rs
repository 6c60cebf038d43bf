//! The page descriptor: what is known of each frame (Linux `struct page`).
//!
//! Descriptors are supplied by the caller as one array ([`MemMap`](crate::MemMap)) and are atomics used `Relaxed`: who
//! may change one is decided by who has the frame, not by the descriptor. An all-zero descriptor is a valid one
//! ([`PageState::Blank`]), and only the first frame of an allocated chunk says what the chunk is: taking or freeing
//! 2 MiB touches one descriptor, not 512. Free frames have blank descriptors: which frames are free is written in the
//! bitmaps of their pageblocks.

mod flags;
mod kernel_use;

use core::fmt;
use core::num::NonZeroU32;

use guest_sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::mm::{AnonPlace, AnonVmaId};
use crate::pfn::Order;

pub use flags::PageFlags;
pub use kernel_use::KernelUse;

/// What a descriptor says of its frame.
///
/// More is known from the place: a free frame of a block that is going offline is *isolated* (nobody can get it), and
/// a frame of a block that is not online has no descriptor that may be looked at.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum PageState {
    /// Nothing of its own: free, or inside a chunk whose first frame says what it is. All fields are zero.
    #[default]
    Blank = 0,
    /// First frame of a chunk of `order` (0 or 9) that waits on a CPU's list for the next request.
    Cached = 1,
    /// First frame of an allocated chunk of `order`.
    Allocated = 2,
    /// Kernel image, boot data, firmware: exists, never given out, never freed.
    Reserved = 3,
    /// No memory here: a hole in a boot region.
    Hole = 4,
    /// The memory behind it has failed (Linux `PG_hwpoison`): exists, and is never given out again.
    Poisoned = 5,
}

impl PageState {
    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Blank,
            1 => Self::Cached,
            2 => Self::Allocated,
            3 => Self::Reserved,
            4 => Self::Hole,
            _ => Self::Poisoned,
        }
    }
}

/// State, order, age, flags and count of a descriptor, as they are at one moment: one word, so that the whole can be
/// compared and replaced at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head(u64);

impl Head {
    pub(crate) const BLANK: Self = Self(0);
    const ORDER_SHIFT: u32 = 4;
    const AGE_SHIFT: u32 = 8;
    const FLAGS_SHIFT: u32 = 14;
    const ONE_REFERENCE: u64 = 1 << 32;

    /// A chunk on a CPU's list.
    pub(crate) const fn cached(order: Order) -> Self {
        Self(PageState::Cached as u64 | Self::order_bits(order))
    }

    /// A chunk just allocated: one reference, no properties.
    pub(crate) const fn allocated(order: Order) -> Self {
        Self(PageState::Allocated as u64 | Self::order_bits(order) | Self::ONE_REFERENCE)
    }

    /// Nothing but a state.
    pub(crate) const fn bare(state: PageState) -> Self {
        Self(state as u64)
    }

    /// The same with another order.
    pub(crate) const fn with_order(self, order: Order) -> Self {
        Self(self.0 & !(0xf << Self::ORDER_SHIFT) | Self::order_bits(order))
    }

    /// The same with another age, at most [`MAX_AGE`].
    const fn with_age(self, age: u8) -> Self {
        Self(self.0 & !((MAX_AGE as u64) << Self::AGE_SHIFT) | (age as u64) << Self::AGE_SHIFT)
    }

    pub(crate) const fn state(self) -> PageState {
        PageState::from_bits(self.0.to_le_bytes()[0] & 0xf)
    }

    pub(crate) fn order(self) -> Order {
        Order::new(self.0.to_le_bytes()[0] >> Self::ORDER_SHIFT)
            .expect("the field is only ever written from an Order")
    }

    const fn age(self) -> u8 {
        self.0.to_le_bytes()[1] & MAX_AGE
    }

    pub(crate) const fn flags(self) -> PageFlags {
        #[expect(clippy::cast_possible_truncation, reason = "the count above is cut off")]
        let low = self.0 as u32;
        PageFlags(low >> Self::FLAGS_SHIFT)
    }

    pub(crate) const fn count(self) -> u32 {
        let bytes = self.0.to_le_bytes();
        u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]])
    }

    const fn order_bits(order: Order) -> u64 {
        (order.number() as u64) << Self::ORDER_SHIFT
    }

    const fn flag_bits(flags: PageFlags) -> u64 {
        (flags.0 as u64) << Self::FLAGS_SHIFT
    }
}

/// The greatest age that a page can have: six bits.
pub const MAX_AGE: u8 = 63;

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?}, order {}, {:?}, count {}",
            self.state(),
            self.order().number(),
            self.flags(),
            self.count()
        )
    }
}

/// Descriptor of one page frame.
#[derive(Debug, Default)]
pub struct Page {
    /// Bits 0 to 3: [`PageState`]. 4 to 7: order of the chunk at the head of an allocated or cached chunk, otherwise
    /// 0. 8 to 13: age, 0..=63, of a page on a list. 14 to 31: [`PageFlags`], none unless `Allocated`. 32 to 63, `_count`: references to an
    /// allocated chunk, at its head: one for the kernel that owns it, or one for each entry that maps it, one for the tree that it is in,
    /// one for its private data, and one for each pin and for whoever works on it; otherwise 0.
    head: AtomicU64,
    /// Page-table entries that map the chunk, at its head, migration entries included: 0 for all but `ANON` and `FILE` pages, and for
    /// those that are not mapped just now.
    _mapcount: AtomicU32,
    /// `ANON`: number of the `anon_vma` while it is mapped, otherwise 0. `FILE`: number of the mapping. `TABLE`: number of the address
    /// space. `SLAB`: the slab allocator's. No flags: who of the kernel's own has it, as far as that can move it. Otherwise 0.
    mapping: AtomicU32,
    /// `ANON`: virtual address divided by 4096; user addresses end at 16 TiB so that it fits. `FILE`: offset in the file divided by
    /// 4096. `TABLE`: level and address that it belongs to. `SLAB`: the slab allocator's. No flags: its
    /// owner's. Otherwise 0.
    index: AtomicU32,
    /// `TABLE`: entries in use, 0..=512. `SWAPCACHE`: its slot. `PRIVATE`: the file system's (PageFS: the block). `SLAB`: the slab
    /// allocator's. Otherwise 0.
    private: AtomicU32,
    /// `lru`, half of it: `LRU`: the next page's frame number + 1, or 0. `SLAB`: the slab allocator's. Otherwise 0.
    next: AtomicU32,
    /// `lru`, the other half: `LRU`: the previous page's. `SLAB`: the slab allocator's. Otherwise 0.
    prev: AtomicU32,
}

// A model checker's atomics are larger.
#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Page>() <= 32, "goals.md: at most 32 bytes a page");

impl Page {
    /// A blank descriptor.
    pub fn new() -> Self {
        Self::default()
    }

    /// What the frame is, as its own descriptor says.
    #[inline]
    pub fn state(&self) -> PageState {
        self.head().state()
    }

    /// Properties of an allocated page.
    #[inline]
    pub fn flags(&self) -> PageFlags {
        self.head().flags()
    }

    /// Order of the chunk whose head this is.
    pub fn order(&self) -> Order {
        self.head().order()
    }

    /// How long it has been in use, as the 2.4 scheme of reclaim sees it: 0 to [`MAX_AGE`].
    pub fn age(&self) -> u8 {
        self.head().age()
    }

    /// Sets the age; more than [`MAX_AGE`] is [`MAX_AGE`].
    pub fn set_age(&self, age: u8) {
        let aged = |head| Some(Head(head).with_age(age.min(MAX_AGE)).0);
        let done = self.head.fetch_update(Relaxed, Relaxed, aged);
        debug_assert!(done.is_ok());
    }

    /// References: 0 when nobody uses the frame.
    pub fn count(&self) -> u32 {
        self.head().count()
    }

    /// Page-table entries that map it.
    pub fn mapcount(&self) -> u32 {
        self._mapcount.load(Relaxed)
    }

    /// Number of the `anon_vma` or address space, or what the owner of a `SLAB` page keeps here.
    #[inline]
    pub fn mapping(&self) -> u32 {
        self.mapping.load(Relaxed)
    }

    /// Place in the address space, or what the owner of a `SLAB` page keeps here.
    #[inline]
    pub fn index(&self) -> u32 {
        self.index.load(Relaxed)
    }

    /// Entries in use of a page table, or what the owner of a `SLAB` page keeps here.
    #[inline]
    pub fn private(&self) -> u32 {
        self.private.load(Relaxed)
    }

    /// The links of a `SLAB` page: next and previous.
    #[inline]
    pub fn links(&self) -> (u32, u32) {
        (self.next.load(Relaxed), self.prev.load(Relaxed))
    }

    /// Sets `mapping`. Only for who has the frame, and only where its flags give the field a meaning; the same holds
    /// for the next four.
    pub fn set_mapping(&self, mapping: u32) {
        self.mapping.store(mapping, Relaxed);
    }

    /// Sets `index`.
    pub fn set_index(&self, index: u32) {
        self.index.store(index, Relaxed);
    }

    /// Sets `private`.
    pub fn set_private(&self, private: u32) {
        self.private.store(private, Relaxed);
    }

    /// Sets `next`.
    pub fn set_next(&self, next: u32) {
        self.next.store(next, Relaxed);
    }

    /// Sets `prev`.
    pub fn set_prev(&self, prev: u32) {
        self.prev.store(prev, Relaxed);
    }

    /// Adds properties to an allocated page. Only for who has the frame.
    pub fn add_flags(&self, flags: PageFlags) {
        self.head.fetch_or(Head::flag_bits(flags), Relaxed);
    }

    /// Takes properties away. Only for who has the frame.
    pub fn remove_flags(&self, flags: PageFlags) {
        self.head.fetch_and(!Head::flag_bits(flags), Relaxed);
    }

    /// Makes the page one without properties again, as it was when it was allocated: before it is freed.
    pub fn clear(&self) {
        self.remove_flags(PageFlags::ALL);
        self.set_age(0);
        self.clear_fields();
    }

    /// Where an anonymous page is mapped, in whichever address spaces. `None` for any other page, and for one that is not mapped.
    pub fn anon_place(&self) -> Option<AnonPlace> {
        if !self.flags().has(PageFlags::ANON) || self.mapcount() == 0 {
            return None;
        }
        Some(AnonPlace {
            anon_vma: AnonVmaId(NonZeroU32::new(self.mapping())?),
            va: u64::from(self.index()) << crate::pfn::PAGE_SHIFT,
        })
    }

    /// Takes the page lock if nobody has it. False when somebody has.
    pub(crate) fn try_lock(&self) -> bool {
        let before = self.head.fetch_or(Head::flag_bits(PageFlags::LOCKED), Acquire);
        !Head(before).flags().has(PageFlags::LOCKED)
    }

    /// Lets go of the page lock; what was done under it is seen by the next who takes it.
    pub(crate) fn unlock(&self) {
        let before = self.head.fetch_and(!Head::flag_bits(PageFlags::LOCKED), Release);
        debug_assert!(Head(before).flags().has(PageFlags::LOCKED), "unlocked twice");
    }

    /// One more entry maps it.
    pub(crate) fn add_mapping(&self) {
        self._mapcount.fetch_add(1, Relaxed);
    }

    /// One entry less maps it; returns how many still do. The last one of an anonymous page forgets the `anon_vma`, which may go
    /// now.
    pub(crate) fn drop_mapping(&self) -> u32 {
        let left = self._mapcount.fetch_sub(1, AcqRel) - 1;
        if left == 0 && self.flags().has(PageFlags::ANON) {
            self.set_mapping(0);
        }
        left
    }

    #[inline]
    pub(crate) fn head(&self) -> Head {
        Head(self.head.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_head(&self, head: Head) {
        self.head.store(head.0, Relaxed);
    }

    pub(crate) fn set_mapcount(&self, mapcount: u32) {
        self._mapcount.store(mapcount, Relaxed);
    }

    /// One more reference to a chunk that has one. False when it has none any more.
    pub(crate) fn try_reference(&self) -> bool {
        let more = |head| (Head(head).count() > 0).then_some(head + Head::ONE_REFERENCE);
        self.head.fetch_update(Relaxed, Relaxed, more).is_ok()
    }

    /// One reference less; returns the descriptor's head as it was before. Whoever drops the last one sees what the others did.
    pub(crate) fn drop_reference(&self) -> Head {
        Head(self.head.fetch_sub(Head::ONE_REFERENCE, AcqRel))
    }

    /// Makes the descriptor a blank one, whatever it was.
    #[cfg(test)]
    pub(crate) fn set_blank(&self) {
        self.set_head(Head::BLANK);
        self.clear_fields();
    }

    /// Zeroes everything but the head.
    pub(crate) fn clear_fields(&self) {
        for field in self.fields() {
            field.store(0, Relaxed);
        }
    }

    /// Makes this the descriptor of what `other` is the descriptor of.
    pub(crate) fn copy_from(&self, other: &Self) {
        self.set_head(other.head());
        for (mine, theirs) in self.fields().into_iter().zip(other.fields()) {
            mine.store(theirs.load(Relaxed), Relaxed);
        }
    }

    /// Whether everything but the head is zero.
    pub(crate) fn has_blank_fields(&self) -> bool {
        self.fields().iter().all(|field| field.load(Relaxed) == 0)
    }

    fn fields(&self) -> [&AtomicU32; 6] {
        [
            &self._mapcount,
            &self.mapping,
            &self.index,
            &self.private,
            &self.next,
            &self.prev,
        ]
    }
}

#[cfg(test)]
mod tests;
