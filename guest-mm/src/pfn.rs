//! Frame numbers, orders and ranges of frames: the only place where addresses, frames and orders are computed with.
//!
//! A page frame is 4 KiB of guest-physical memory. Its number ([`Pfn`]) is 32 bits wide: 16 TiB of physical memory,
//! and half of what a pointer would take in every link between descriptors.

use core::fmt;
use core::ops::{Add, Sub};

/// log2 of the size of a page frame.
pub const PAGE_SHIFT: u32 = 12;
/// Size of a page frame in bytes.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// [`PAGE_SIZE`] as a length in memory.
pub const PAGE_BYTES: usize = 1 << PAGE_SHIFT;
/// Number of 64-bit words in a page frame, which is also the number of entries in a page table.
pub const WORDS_PER_PAGE: usize = 512;
/// Frames in a pageblock: the 2 MiB unit in which memory is grouped by mobility, and the size of a huge page.
pub const PAGEBLOCK_NR_PAGES: u32 = 1 << Order::PAGEBLOCK.0;
/// Size of a pageblock, and of a huge page, in bytes.
pub const PAGEBLOCK_SIZE: u64 = PAGE_SIZE << Order::PAGEBLOCK.0;

/// [`PAGEBLOCK_SIZE`] as a length in memory.
pub(crate) const PAGEBLOCK_BYTES: usize = PAGE_BYTES << Order::PAGEBLOCK.0;

const _: () = assert!(WORDS_PER_PAGE as u64 * 8 == PAGE_SIZE);
const _: () = assert!(PAGEBLOCK_SIZE == 2 << 20);

/// Number of a page frame: guest-physical address divided by [`PAGE_SIZE`]. 0 to `u32::MAX - 1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Pfn(u32);

impl Pfn {
    /// The frame of that number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The frame that contains the guest-physical address, or `None` beyond 16 TiB.
    pub const fn containing(gpa: u64) -> Option<Self> {
        let number = gpa >> PAGE_SHIFT;
        if number < u32::MAX as u64 {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "compared with u32::MAX on the line above"
            )]
            Some(Self(number as u32))
        } else {
            None
        }
    }

    /// The frame's number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// Guest-physical address of the frame's first byte.
    pub const fn gpa(self) -> u64 {
        (self.0 as u64) << PAGE_SHIFT
    }

    /// Whether a chunk of `order` may start here.
    pub const fn is_aligned(self, order: Order) -> bool {
        self.0 & (order.nr_pages() - 1) == 0
    }

    /// The first frame of the naturally aligned chunk of `order` that contains this frame.
    pub const fn align_down(self, order: Order) -> Self {
        Self(self.0 & !(order.nr_pages() - 1))
    }

    /// The other half of the chunk of the next order (Knuth's buddy).
    pub const fn buddy(self, order: Order) -> Self {
        Self(self.0 ^ order.nr_pages())
    }
}

impl Add<u32> for Pfn {
    type Output = Self;

    fn add(self, nr_pages: u32) -> Self {
        Self(self.0 + nr_pages)
    }
}

impl Sub for Pfn {
    type Output = u32;

    /// Frames from `base` to `self`; `self` must not lie below.
    fn sub(self, base: Self) -> u32 {
        self.0 - base.0
    }
}

impl fmt::Debug for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

impl fmt::Display for Pfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfn {:#x}", self.0)
    }
}

/// log2 of a number of frames: 0 (4 KiB) to [`Order::MAX`] (4 MiB, Linux' `MAX_PAGE_ORDER`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Order(u8);

/// Number of different orders.
pub const NR_PAGE_ORDERS: usize = Order::MAX.0 as usize + 1;

impl Order {
    /// One frame, 4 KiB.
    pub const ZERO: Self = Self(0);
    /// A pageblock: 512 frames, 2 MiB, a huge page.
    pub const PAGEBLOCK: Self = Self(9);
    /// The largest order, 10: 1024 frames, 4 MiB.
    pub const MAX: Self = Self(10);

    /// The order, or `None` above [`Order::MAX`].
    pub const fn new(order: u8) -> Option<Self> {
        if order <= Self::MAX.0 {
            Some(Self(order))
        } else {
            None
        }
    }

    /// The smallest order whose chunk holds `bytes`, or `None` when the largest does not. 0 bytes need order 0.
    pub const fn holding(bytes: u64) -> Option<Self> {
        let mut order = Self::ZERO;
        while order.bytes() < bytes {
            match Self::new(order.0 + 1) {
                Some(next) => order = next,
                None => return None,
            }
        }
        Some(order)
    }

    /// The order as a number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The order as an array index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Frames in a chunk of this order.
    pub const fn nr_pages(self) -> u32 {
        1 << self.0
    }

    /// Bytes in a chunk of this order.
    pub const fn bytes(self) -> u64 {
        PAGE_SIZE << self.0
    }

    /// All orders, smallest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=Self::MAX.0).map(Self)
    }
}

/// Frames `start .. end`, `end` not included. Never wraps; may be empty.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct PfnRange {
    start: Pfn,
    nr_pages: u32,
}

impl PfnRange {
    /// `nr_pages` frames from `start`, or `None` when that passes the largest frame number.
    pub const fn new(start: Pfn, nr_pages: u32) -> Option<Self> {
        match start.0.checked_add(nr_pages) {
            Some(_) => Some(Self { start, nr_pages }),
            None => None,
        }
    }

    /// The whole frames inside `len` bytes from `gpa`: partial frames at both ends are left out.
    /// `None` beyond 16 TiB or when the range wraps.
    pub fn inside(gpa: u64, len: u64) -> Option<Self> {
        let end = gpa.checked_add(len)?;
        let start = Pfn::containing(gpa.checked_add(PAGE_SIZE - 1)?)?;
        let end = Pfn::containing(end)?;
        Self::new(start, end.0.saturating_sub(start.0))
    }

    /// All frames touched by `len` bytes from `gpa`: partial frames at both ends are included.
    /// `None` beyond 16 TiB or when the range wraps.
    pub fn covering(gpa: u64, len: u64) -> Option<Self> {
        let end = gpa.checked_add(len)?.checked_add(PAGE_SIZE - 1)?;
        let start = Pfn::containing(gpa)?;
        let end = Pfn::containing(end)?;
        Self::new(start, end.0 - start.0)
    }

    /// First frame.
    pub const fn start(self) -> Pfn {
        self.start
    }

    /// First frame after the range.
    pub const fn end(self) -> Pfn {
        Pfn(self.start.0 + self.nr_pages)
    }

    /// Number of frames.
    pub const fn nr_pages(self) -> u32 {
        self.nr_pages
    }

    /// Size in bytes.
    pub const fn bytes(self) -> u64 {
        (self.nr_pages as u64) << PAGE_SHIFT
    }

    /// Whether there is no frame in it.
    pub const fn is_empty(self) -> bool {
        self.nr_pages == 0
    }

    /// Whether the frame lies inside.
    pub const fn contains(self, pfn: Pfn) -> bool {
        pfn.0 >= self.start.0 && pfn.0 - self.start.0 < self.nr_pages
    }

    /// Whether all of `other` lies inside.
    pub const fn covers(self, other: Self) -> bool {
        self.start.0 <= other.start.0 && other.end().0 <= self.end().0
    }

    /// Whether the two have a frame in common.
    pub const fn overlaps(self, other: Self) -> bool {
        !self.is_empty() && !other.is_empty() && self.start.0 < other.end().0 && other.start.0 < self.end().0
    }

    /// The smallest range that contains both.
    pub fn hull(self, other: Self) -> Self {
        let start = self.start.min(other.start);
        let end = self.end().max(other.end());
        Self {
            start,
            nr_pages: end - start,
        }
    }

    /// Whether both borders lie on pageblock borders.
    pub const fn is_pageblock_aligned(self) -> bool {
        self.start.is_aligned(Order::PAGEBLOCK) && self.end().is_aligned(Order::PAGEBLOCK)
    }

    /// The frames, lowest first.
    pub fn iter(self) -> impl Iterator<Item = Pfn> {
        (self.start.0..self.start.0 + self.nr_pages).map(Pfn)
    }
}

impl fmt::Display for PfnRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pfns {:#x}..{:#x}", self.start.0, self.end().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_inside_and_covering_treat_partial_frames_differently() {
        let inside = PfnRange::inside(0x1001, 0x2fff).unwrap();
        assert_eq!((inside.start().number(), inside.nr_pages()), (2, 2));
        let covering = PfnRange::covering(0x1001, 0x2000).unwrap();
        assert_eq!((covering.start().number(), covering.nr_pages()), (1, 3));
        assert!(PfnRange::inside(0x1001, 0x10).unwrap().is_empty());
        assert_eq!(PfnRange::inside(u64::MAX - 4096, 8192), None);
        assert_eq!(PfnRange::covering(1 << 44, 4096), None);
    }

    #[test]
    fn an_order_holds_what_it_says() {
        assert_eq!(Order::holding(0), Some(Order::ZERO));
        assert_eq!(Order::holding(4097), Order::new(1));
        assert_eq!(Order::holding(4 << 20), Some(Order::MAX));
        assert_eq!(Order::holding((4 << 20) + 1), None);
        assert_eq!(Order::new(11), None);
    }

    #[test]
    fn a_buddy_is_mutual_and_adjacent() {
        for order in Order::all() {
            let pfn = Pfn::new(4096 + order.nr_pages());
            assert_eq!(pfn.buddy(order).buddy(order), pfn);
            assert_eq!(pfn - pfn.buddy(order), order.nr_pages());
        }
    }
}
