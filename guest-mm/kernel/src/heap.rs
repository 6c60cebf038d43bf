//! The manager's heap: two-level segregated fit (M. Masmano et al., "TLSF: a new dynamic memory allocator for
//! real-time systems", 2004). Allocation and release take a bounded number of steps, neighbours that are free are
//! always joined, and memory can be added at any time.
//!
//! The heap never asks for memory by itself: an allocation may happen in the middle of a change of the frame
//! allocator's own structures. Whoever runs the machine keeps [`Heap::free_bytes`] above what the next step needs.

#![expect(unsafe_code, reason = "an allocator keeps its lists in the memory it manages")]

#[cfg(test)]
mod tests;

use core::alloc::Layout;
use core::ptr::{NonNull, null_mut};

/// All sizes and addresses of blocks are multiples of this.
const GRANULE: usize = 16;
/// Bytes in front of every block's payload.
const HEADER: usize = size_of::<Header>();
/// Smallest payload: a free block keeps its two list links there.
const MIN_PAYLOAD: usize = 16;
/// log2 of the number of lists between two powers of two.
const SECOND_BITS: u32 = 4;
const SECOND: usize = 1 << SECOND_BITS;
/// Sizes below this have a list of their own for each multiple of the granule.
const SMALL: usize = GRANULE * SECOND;
const SMALL_BITS: u32 = SMALL.trailing_zeros();
/// Classes of sizes: all small ones together, then one for each power of two up to 2^39.
const FIRST: usize = 32;
/// Largest payload.
const MAX_PAYLOAD: usize = 1 << (SMALL_BITS as usize + FIRST - 2);

/// In front of every block. The end of each area has one too, with payload 0 and in use.
#[repr(C, align(16))]
struct Header {
    /// The block that ends where this one starts; null for the first of an area.
    below: *mut Header,
    /// Bytes of payload, a multiple of [`GRANULE`]; bit 0 is set while the block is free.
    size_and_free: usize,
}

/// The payload of a free block.
#[repr(C)]
struct Links {
    next: *mut Header,
    previous: *mut Header,
}

const _: () = assert!(HEADER == GRANULE && size_of::<Links>() <= MIN_PAYLOAD);
const FREE: usize = 1;

/// A heap over any number of areas of memory.
pub struct Heap {
    /// Bit n: some list of class n is not empty.
    first_map: u32,
    /// Bit n of word m: list n of class m is not empty.
    second_map: [u16; FIRST],
    lists: [[*mut Header; SECOND]; FIRST],
    total_bytes: usize,
    free_bytes: usize,
}

impl Heap {
    /// A heap without memory.
    pub const fn new() -> Self {
        Self {
            first_map: 0,
            second_map: [0; FIRST],
            lists: [[null_mut(); SECOND]; FIRST],
            total_bytes: 0,
            free_bytes: 0,
        }
    }

    /// Bytes of all areas, bookkeeping included.
    pub const fn total_bytes(&self) -> usize {
        self.total_bytes
    }

    /// Bytes of payload in free blocks.
    pub const fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    /// Whether an allocation of `bytes` with ordinary alignment would succeed now.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        rounded(bytes).is_some_and(|size| self.find(size).is_some())
    }

    /// Adds an area of `bytes` bytes from `start` on. Areas too small to be of use are ignored.
    ///
    /// # Safety
    /// The area must be valid for reads and writes for the rest of the heap's life, and used by nobody else.
    pub unsafe fn add(&mut self, start: NonNull<u8>, bytes: usize) {
        let skip = start.as_ptr().align_offset(GRANULE);
        let Some(usable) = bytes.checked_sub(skip).map(|usable| usable & !(GRANULE - 1)) else {
            return;
        };
        if usable < 2 * HEADER + MIN_PAYLOAD {
            return;
        }
        let size = (usable - 2 * HEADER).min(MAX_PAYLOAD);
        // SAFETY: `skip` bytes from the start is inside the area, by the check above.
        let first = unsafe { start.as_ptr().add(skip) }.cast::<Header>();
        let header = Header {
            below: null_mut(),
            size_and_free: size,
        };
        // SAFETY: the area is ours and has room for the header.
        unsafe { first.write(header) };
        // SAFETY: the block was just written, with its end inside the area.
        let end = unsafe { above(first) };
        let header = Header {
            below: first,
            size_and_free: 0,
        };
        // SAFETY: header, payload and this second header fit the area: `usable` counts all three.
        unsafe { end.write(header) };
        self.total_bytes += usable;
        // SAFETY: the block is in no list and between an area's start and an end in use.
        unsafe { self.insert(first) };
    }

    /// Memory for `layout`, or `None` if no block is large enough.
    pub fn allocate(&mut self, layout: Layout) -> Option<NonNull<u8>> {
        let size = rounded(layout.size())?;
        let align = layout.align().max(GRANULE);
        // With a larger alignment a front part may have to be split off, which must hold a block of its own.
        let slack = if align > GRANULE {
            align + HEADER + MIN_PAYLOAD
        } else {
            0
        };
        let block = self.find(rounded(size.checked_add(slack)?)?)?;
        // SAFETY: `find` returns a block from the lists.
        unsafe { self.remove(block) };
        // SAFETY: the block is in no list any more, and at least `size + slack` long.
        let block = unsafe { self.split_front(block, align) };
        // SAFETY: the block is in no list, and `split_front` took at most `slack` of it.
        unsafe { self.split_back(block, size) };
        NonNull::new(payload(block))
    }

    /// Takes memory back.
    ///
    /// # Safety
    /// `memory` must come from [`allocate`](Self::allocate) of this heap, and not have been released since.
    pub unsafe fn release(&mut self, memory: NonNull<u8>) {
        // SAFETY: every payload has its header in front.
        let mut block = unsafe { memory.as_ptr().sub(HEADER) }.cast::<Header>();
        // SAFETY: the block is in use and in no list, so its header is valid.
        let below = unsafe { (*block).below };
        // SAFETY: `below` is null or the header of the neighbour.
        if !below.is_null() && unsafe { is_free(below) } {
            // SAFETY: free blocks are in the lists.
            unsafe { self.remove(below) };
            // SAFETY: the two are neighbours, and neither is in a list.
            unsafe { join(below, block) };
            block = below;
        }
        // SAFETY: there is always a block above: the end of the area at the latest.
        let next = unsafe { above(block) };
        // SAFETY: `next` is a header.
        if unsafe { is_free(next) } {
            // SAFETY: free blocks are in the lists.
            unsafe { self.remove(next) };
            // SAFETY: the two are neighbours, and neither is in a list.
            unsafe { join(block, next) };
        }
        // SAFETY: the block is in no list.
        unsafe { self.insert(block) };
    }

    /// A free block of at least `size` bytes.
    fn find(&self, size: usize) -> Option<*mut Header> {
        // The list of `size` itself may start with blocks that are too small: begin at the next size up that
        // starts a list.
        let step = if size < SMALL {
            0
        } else {
            (1 << (size.ilog2() - SECOND_BITS)) - 1
        };
        let (first, second) = class(size.checked_add(step)?)?;
        let lists = self.second_map[first] & (u16::MAX << second);
        if lists != 0 {
            return Some(self.lists[first][lists.trailing_zeros() as usize]);
        }
        let classes = self.first_map & u32::MAX.checked_shl(u32::try_from(first).ok()? + 1).unwrap_or(0);
        if classes == 0 {
            return None;
        }
        let first = classes.trailing_zeros() as usize;
        Some(self.lists[first][self.second_map[first].trailing_zeros() as usize])
    }

    /// Puts a block into its list and marks it free.
    ///
    /// # Safety
    /// It must be a block of this heap that is in no list.
    unsafe fn insert(&mut self, block: *mut Header) {
        // SAFETY: the caller passes a block.
        let size = unsafe { size_of_block(block) };
        let Some((first, second)) = class(size) else {
            return;
        };
        let head = self.lists[first][second];
        let both = Links {
            next: head,
            previous: null_mut(),
        };
        // SAFETY: nobody uses the payload of a free block.
        unsafe { links(block).write(both) };
        if !head.is_null() {
            // SAFETY: `head` is in the list, so it is free and has links.
            unsafe { (*links(head)).previous = block };
        }
        // SAFETY: the caller passes a block.
        unsafe { (*block).size_and_free = size | FREE };
        self.lists[first][second] = block;
        self.second_map[first] |= 1 << second;
        self.first_map |= 1 << first;
        self.free_bytes += size;
    }

    /// Takes a block out of its list and marks it in use.
    ///
    /// # Safety
    /// It must be a free block of this heap.
    unsafe fn remove(&mut self, block: *mut Header) {
        // SAFETY: the caller passes a block.
        let size = unsafe { size_of_block(block) };
        let Some((first, second)) = class(size) else {
            return;
        };
        // SAFETY: a free block has links.
        let Links { next, previous } = unsafe { links(block).read() };
        if !next.is_null() {
            // SAFETY: `next` is in the same list.
            unsafe { (*links(next)).previous = previous };
        }
        if previous.is_null() {
            self.lists[first][second] = next;
            if next.is_null() {
                self.second_map[first] &= !(1 << second);
                if self.second_map[first] == 0 {
                    self.first_map &= !(1 << first);
                }
            }
        } else {
            // SAFETY: `previous` is in the same list.
            unsafe { (*links(previous)).next = next };
        }
        // SAFETY: the caller passes a block.
        unsafe { (*block).size_and_free = size };
        self.free_bytes -= size;
    }

    /// Splits off what lies in front of the first payload address that is a multiple of `align`.
    ///
    /// # Safety
    /// The block must be in no list, and longer than `align + HEADER + MIN_PAYLOAD` if `align` exceeds the granule.
    unsafe fn split_front(&mut self, block: *mut Header, align: usize) -> *mut Header {
        let mut skip = payload(block).align_offset(align);
        if skip == 0 {
            return block;
        }
        while skip < HEADER + MIN_PAYLOAD {
            skip += align;
        }
        // SAFETY: the caller says that the block is long enough.
        let rest = unsafe { split(block, skip - HEADER) };
        // SAFETY: the front part is in no list.
        unsafe { self.insert(block) };
        rest
    }

    /// Splits off what lies behind the first `size` bytes of payload, if it is worth a block.
    ///
    /// # Safety
    /// The block must be in no list, and at least `size` long.
    unsafe fn split_back(&mut self, block: *mut Header, size: usize) {
        // SAFETY: the caller passes a block.
        if unsafe { size_of_block(block) } >= size + HEADER + MIN_PAYLOAD {
            // SAFETY: the block is long enough, by the line above.
            let rest = unsafe { split(block, size) };
            // SAFETY: the rest is in no list.
            unsafe { self.insert(rest) };
        }
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

/// The payload that a request is served with; `None` if it is too large for any heap.
fn rounded(bytes: usize) -> Option<usize> {
    let size = bytes.max(MIN_PAYLOAD).checked_next_multiple_of(GRANULE)?;
    (size <= MAX_PAYLOAD).then_some(size)
}

/// Class and list of the free blocks of `size` bytes; `None` if no block is that large.
fn class(size: usize) -> Option<(usize, usize)> {
    if size < SMALL {
        return Some((0, size / GRANULE));
    }
    let log2 = size.ilog2();
    let first = (log2 - SMALL_BITS) as usize + 1;
    (first < FIRST).then_some((first, (size >> (log2 - SECOND_BITS)) & (SECOND - 1)))
}

/// # Safety
/// `block` must point to a header.
unsafe fn size_of_block(block: *mut Header) -> usize {
    // SAFETY: by this function's own condition.
    unsafe { (*block).size_and_free & !FREE }
}

/// # Safety
/// `block` must point to a header.
unsafe fn is_free(block: *mut Header) -> bool {
    // SAFETY: by this function's own condition.
    unsafe { (*block).size_and_free & FREE != 0 }
}

/// The payload, even an empty one, starts behind the header.
fn payload(block: *mut Header) -> *mut u8 {
    block.wrapping_add(1).cast()
}

/// Where the links of a block are while it is free.
fn links(block: *mut Header) -> *mut Links {
    payload(block).cast()
}

/// The header behind a block.
///
/// # Safety
/// `block` must point to a header that is not the end of an area.
unsafe fn above(block: *mut Header) -> *mut Header {
    // SAFETY: by this function's own condition.
    let size = unsafe { size_of_block(block) };
    // A payload ends where the next header starts.
    payload(block).wrapping_add(size).cast()
}

/// Cuts a block in two behind `size` bytes of payload and returns the upper one.
///
/// # Safety
/// The block must be in no list and have at least `size + HEADER + MIN_PAYLOAD` bytes; `size` is a multiple of the
/// granule.
unsafe fn split(block: *mut Header, size: usize) -> *mut Header {
    // SAFETY: by this function's own condition, also for the next lines.
    let whole = unsafe { size_of_block(block) };
    // SAFETY: `block` is not the end of its area.
    let next = unsafe { above(block) };
    // SAFETY: `block` is a header.
    unsafe { (*block).size_and_free = size };
    // SAFETY: the block was just made this long.
    let rest = unsafe { above(block) };
    let header = Header {
        below: block,
        size_and_free: whole - size - HEADER,
    };
    // SAFETY: this lies inside the payload of the old block, which nobody uses.
    unsafe { rest.write(header) };
    // SAFETY: `next` is a header.
    unsafe { (*next).below = rest };
    rest
}

/// Makes one block of two neighbours.
///
/// # Safety
/// `upper` must be the header behind `lower`, and neither in a list nor the end of an area.
unsafe fn join(lower: *mut Header, upper: *mut Header) {
    // SAFETY: by this function's own condition, also for the next lines.
    let upper_size = unsafe { size_of_block(upper) };
    // SAFETY: `upper` is not the end of its area.
    let next = unsafe { above(upper) };
    // SAFETY: `lower` is a header.
    let lower_size = unsafe { size_of_block(lower) };
    // SAFETY: `lower` is a header.
    unsafe { (*lower).size_and_free = lower_size + HEADER + upper_size };
    // SAFETY: `next` is a header.
    unsafe { (*next).below = lower };
}
