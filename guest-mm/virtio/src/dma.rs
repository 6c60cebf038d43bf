//! Memory that a driver shares with its device, reached only by guest-physical address.
//!
//! The device may change any byte of it at any moment, so there is no reference or slice over it anywhere: the
//! kernel offers volatile reads and writes ([`DmaMemory`]), and an area ([`DmaArea`]) checks offsets before it
//! turns them into addresses. The virtio 1.3 sections that matter are 2.6 (device area, driver area, alignment)
//! and 2.7 (split virtqueues).

use alloc::rc::Rc;
use core::num::NonZeroUsize;

/// Bytes in one page of [`DmaMemory`].
pub const PAGE_SIZE: usize = 4096;

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(u64);

impl Gpa {
    /// The address `raw`; every value is legal.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as a number of bytes from physical address 0.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

/// What the kernel offers a driver: frames the device may reach, and volatile access to them.
///
/// Accesses of 2 bytes (ring indices and flags) are naturally aligned and must be single volatile loads or stores:
/// the device may be writing the same location. The byte copies are volatile too, but may go piece by piece.
/// Addresses passed in always lie inside frames that this memory handed out.
pub trait DmaMemory {
    /// `nr_pages` physically contiguous, zeroed frames, which stay where they are; `None` if there are none. A driver that starts
    /// again uses the same ones, and a device that was given up is not trusted to have forgotten their addresses. Who wants the frames
    /// for something else asks the driver to move ([`relocate`](crate::relocate)). Returns the address of the first byte, a multiple of [`PAGE_SIZE`].
    fn allocate(&self, nr_pages: NonZeroUsize) -> Option<Gpa>;

    /// Takes back what [`allocate`](Self::allocate) gave: the device has been reset since it knew the address, or never did.
    fn release(&self, at: Gpa, nr_pages: NonZeroUsize);

    /// Reads 2 bytes, little-endian.
    fn read16(&self, at: Gpa) -> u16;
    /// Writes 2 bytes, little-endian.
    fn write16(&self, at: Gpa, value: u16);
    /// Copies `into.len()` bytes out of the shared memory.
    fn read_bytes(&self, at: Gpa, into: &mut [u8]);
    /// Copies `from` into the shared memory.
    fn write_bytes(&self, at: Gpa, from: &[u8]);
}

macro_rules! forward_dma_memory {
    ($pointer:ty) => {
        impl<M: DmaMemory + ?Sized> DmaMemory for $pointer {
            fn allocate(&self, nr_pages: NonZeroUsize) -> Option<Gpa> {
                (**self).allocate(nr_pages)
            }
            fn release(&self, at: Gpa, nr_pages: NonZeroUsize) {
                (**self).release(at, nr_pages);
            }
            fn read16(&self, at: Gpa) -> u16 {
                (**self).read16(at)
            }
            fn write16(&self, at: Gpa, value: u16) {
                (**self).write16(at, value);
            }
            fn read_bytes(&self, at: Gpa, into: &mut [u8]) {
                (**self).read_bytes(at, into);
            }
            fn write_bytes(&self, at: Gpa, from: &[u8]) {
                (**self).write_bytes(at, from);
            }
        }
    };
}

forward_dma_memory!(&M);
forward_dma_memory!(Rc<M>);

/// The kernel had no contiguous frames for a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfDmaMemory {
    /// How many pages were asked for.
    pub nr_pages: NonZeroUsize,
}

impl core::fmt::Display for OutOfDmaMemory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "no {} contiguous pages for a driver", self.nr_pages)
    }
}

impl core::error::Error for OutOfDmaMemory {}

/// Some contiguous frames of `M`, which belong to whoever holds this.
#[derive(Debug)]
pub struct DmaArea<M> {
    memory: M,
    start: Gpa,
    nr_pages: NonZeroUsize,
}

impl<M: DmaMemory> DmaArea<M> {
    /// Takes enough frames for `bytes` bytes (at least one page), zeroed.
    pub fn allocate(memory: M, bytes: usize) -> Result<Self, OutOfDmaMemory> {
        let nr_pages = NonZeroUsize::new(bytes.div_ceil(PAGE_SIZE)).unwrap_or(NonZeroUsize::MIN);
        let start = memory.allocate(nr_pages).ok_or(OutOfDmaMemory { nr_pages })?;
        Ok(Self {
            memory,
            start,
            nr_pages,
        })
    }

    /// As many other frames of the same memory, zeroed.
    pub(crate) fn another(&self) -> Result<Self, OutOfDmaMemory>
    where
        M: Clone,
    {
        Self::allocate(self.memory.clone(), self.size())
    }

    /// Copies all that is in `from`, which is as large.
    pub(crate) fn copy_from(&self, from: &Self) {
        let mut piece = [0; 64];
        for offset in (0..self.size()).step_by(piece.len()) {
            from.memory.read_bytes(from.at(offset, piece.len()), &mut piece);
            self.memory.write_bytes(self.at(offset, piece.len()), &piece);
        }
    }

    /// Gives the frames back, which no device knows any more.
    pub fn release(self) {
        self.memory.release(self.start, self.nr_pages);
    }

    /// The memory this area is a part of.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Where it begins.
    pub fn start(&self) -> Gpa {
        self.start
    }

    /// Zeroes the area.
    pub fn clear(&self) {
        let zeroes = [0; 64];
        for offset in (0..self.size()).step_by(zeroes.len()) {
            self.memory.write_bytes(self.at(offset, zeroes.len()), &zeroes);
        }
    }

    /// Bytes in the area.
    pub fn size(&self) -> usize {
        self.nr_pages.get() * PAGE_SIZE
    }

    /// The address of the byte at `offset`.
    ///
    /// # Panics
    /// If `len` bytes from there are not all inside. Offsets are the driver's own numbers, never the device's:
    /// a panic here is a bug in the driver.
    pub fn at(&self, offset: usize, len: usize) -> Gpa {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size());
        assert!(
            inside,
            "{len} bytes at offset {offset} of a DMA area of {} bytes",
            self.size()
        );
        Gpa(self.start.0 + offset as u64)
    }
}
