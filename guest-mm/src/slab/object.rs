//! Addresses of objects, and access to their bytes through [`Frames`].
//!
//! An object may span frames; it never starts at an address that is not a multiple of a word.

use core::fmt;

use crate::frames::Frames;
use crate::pfn::{PAGE_BYTES, PAGE_SIZE, Pfn};

/// Bytes of a word, and the smallest alignment of an object.
pub(crate) const WORD: u32 = 8;

/// Physical address of an object's first byte: a multiple of 8, below 16 TiB. The direct map turns it into a pointer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjAddr(u64);

impl ObjAddr {
    /// The object at an address. Whether there is one is found out when it is freed.
    #[inline]
    pub const fn new(gpa: u64) -> Self {
        Self(gpa)
    }

    /// The address.
    #[inline]
    pub const fn gpa(self) -> u64 {
        self.0
    }

    /// The frame that the object starts in; `None` beyond 16 TiB.
    #[inline]
    pub(crate) const fn pfn(self) -> Option<Pfn> {
        Pfn::containing(self.0)
    }
}

impl fmt::Debug for ObjAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for ObjAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Frame and offset in it. Addresses come from slabs, which are made of frames.
#[inline]
fn place(gpa: u64) -> (Pfn, usize) {
    let pfn = Pfn::containing(gpa).expect("a slab's address lies in a frame");
    (pfn, (gpa % PAGE_SIZE) as usize)
}

/// The aligned word at `gpa`.
#[inline]
pub(crate) fn read_word(frames: &impl Frames, gpa: u64) -> u64 {
    let (pfn, offset) = place(gpa);
    frames.read(pfn, offset / 8)
}

/// Writes the aligned word at `gpa`.
#[inline]
pub(crate) fn write_word(frames: &impl Frames, gpa: u64, value: u64) {
    let (pfn, offset) = place(gpa);
    frames.write(pfn, offset / 8, value);
}

/// The aligned 16-bit value at `gpa`. Whoever calls has the whole word for himself.
#[inline]
pub(crate) fn read_u16(frames: &impl Frames, gpa: u64) -> u16 {
    let shift = gpa % 8 * 8;
    ((read_word(frames, gpa - gpa % 8) >> shift) & 0xffff) as u16
}

/// Writes the aligned 16-bit value at `gpa`. Whoever calls has the whole word for himself.
#[inline]
pub(crate) fn write_u16(frames: &impl Frames, gpa: u64, value: u16) {
    let (word, shift) = (gpa - gpa % 8, gpa % 8 * 8);
    let others = read_word(frames, word) & !(0xffff << shift);
    write_word(frames, word, others | u64::from(value) << shift);
}

/// Bytes handled at a time.
const PIECE: usize = 64;

/// Calls `each` with (frame, offset, bytes done so far, bytes) for every piece of `len` bytes from `gpa` on; no piece
/// is longer than [`PIECE`] or crosses a frame's border.
fn pieces(gpa: u64, len: u32, mut each: impl FnMut(Pfn, usize, u32, usize)) {
    let mut done = 0;
    while done < len {
        let (pfn, offset) = place(gpa + u64::from(done));
        let now = PIECE.min(PAGE_BYTES - offset).min((len - done) as usize);
        each(pfn, offset, done, now);
        done += u32::try_from(now).expect("a piece is small");
    }
}

/// Fills bytes with a value.
pub(crate) fn fill(frames: &impl Frames, gpa: u64, len: u32, value: u8) {
    pieces(gpa, len, |pfn, offset, _, now| {
        frames.write_bytes(pfn, offset, &[value; PIECE][..now]);
    });
}

/// Copies bytes out.
pub(crate) fn read(frames: &impl Frames, gpa: u64, bytes: &mut [u8]) {
    let len = u32::try_from(bytes.len()).expect("objects are small");
    pieces(gpa, len, |pfn, offset, done, now| {
        frames.read_bytes(pfn, offset, &mut bytes[done as usize..done as usize + now]);
    });
}

/// Copies bytes of one object to another.
pub(crate) fn copy(frames: &impl Frames, from: u64, to: u64, len: u32) {
    pieces(from, len, |pfn, offset, done, now| {
        let mut bytes = [0; PIECE];
        frames.read_bytes(pfn, offset, &mut bytes[..now]);
        let mut left = &bytes[..now];
        let at = to + u64::from(done);
        let part = u32::try_from(now).expect("a piece is small");
        pieces(at, part, |pfn, offset, _, now| {
            let (bytes, rest) = left.split_at(now);
            frames.write_bytes(pfn, offset, bytes);
            left = rest;
        });
    });
}

/// First and last byte of `len` from `gpa` that are not `value`, as offsets.
pub(crate) fn unlike(frames: &impl Frames, gpa: u64, len: u32, value: u8) -> Option<(u32, u32)> {
    let mut found: Option<(u32, u32)> = None;
    pieces(gpa, len, |pfn, offset, done, now| {
        let mut bytes = [value; PIECE];
        frames.read_bytes(pfn, offset, &mut bytes[..now]);
        if bytes == [value; PIECE] {
            return;
        }
        for (at, _) in (done..).zip(bytes).filter(|&(_, byte)| byte != value) {
            found = Some((found.map_or(at, |(first, _)| first), at));
        }
    });
    found
}
