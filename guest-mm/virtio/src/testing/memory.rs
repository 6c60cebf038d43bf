//! Guest memory for tests: the device's side may write anywhere in it, too.

use crate::dma::{DmaMemory, Gpa, PAGE_SIZE};
use core::cell::{Cell, RefCell};
use core::num::NonZeroUsize;
use std::vec::Vec;

/// Not 0, so that a forgotten base address shows.
const BASE: u64 = 0x1_0000_0000;

/// A few pages at [`BASE`], handed out from the bottom.
#[derive(Debug)]
pub(crate) struct TestMemory {
    bytes: RefCell<Vec<u8>>,
    nr_used_pages: Cell<usize>,
    /// Given back: nobody touches it any more.
    released: RefCell<Vec<core::ops::Range<usize>>>,
}

impl TestMemory {
    pub(crate) fn new(nr_pages: usize) -> Self {
        // What is not zeroed by `allocate` is recognisable.
        Self {
            bytes: RefCell::new(std::vec![0xa5; nr_pages * PAGE_SIZE]),
            nr_used_pages: Cell::new(0),
            released: RefCell::default(),
        }
    }

    fn range(&self, at: Gpa, len: usize) -> core::ops::Range<usize> {
        let start = usize::try_from(at.raw().checked_sub(BASE).expect("below test memory")).unwrap();
        let gone = |released: &core::ops::Range<usize>| start < released.end && released.start < start + len;
        assert!(
            !self.released.borrow().iter().any(gone),
            "{len} bytes at {at:?} were given back"
        );
        start..start + len
    }

    /// Pages that are in use.
    pub(crate) fn nr_pages_in_use(&self) -> usize {
        let released = self.released.borrow();
        self.nr_used_pages.get() - released.iter().map(core::ops::Range::len).sum::<usize>() / PAGE_SIZE
    }

    fn read<const N: usize>(&self, at: Gpa) -> [u8; N] {
        assert!(
            at.raw().is_multiple_of(N as u64),
            "unaligned read of {N} bytes at {at:?}"
        );
        let mut bytes = [0; N];
        self.read_bytes(at, &mut bytes);
        bytes
    }

    fn write<const N: usize>(&self, at: Gpa, bytes: [u8; N]) {
        assert!(
            at.raw().is_multiple_of(N as u64),
            "unaligned write of {N} bytes at {at:?}"
        );
        self.write_bytes(at, &bytes);
    }
}

impl DmaMemory for TestMemory {
    fn allocate(&self, nr_pages: NonZeroUsize) -> Option<Gpa> {
        let start = self.nr_used_pages.get() * PAGE_SIZE;
        let bytes = nr_pages.get() * PAGE_SIZE;
        self.bytes.borrow_mut().get_mut(start..start + bytes)?.fill(0);
        self.nr_used_pages.set(self.nr_used_pages.get() + nr_pages.get());
        Some(Gpa::new(BASE + start as u64))
    }
    fn release(&self, at: Gpa, nr_pages: NonZeroUsize) {
        let range = self.range(at, nr_pages.get() * PAGE_SIZE);
        self.released.borrow_mut().push(range);
    }
    fn read16(&self, at: Gpa) -> u16 {
        u16::from_le_bytes(self.read(at))
    }
    fn write16(&self, at: Gpa, value: u16) {
        self.write(at, value.to_le_bytes());
    }
    fn read_bytes(&self, at: Gpa, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes.borrow()[self.range(at, into.len())]);
    }
    fn write_bytes(&self, at: Gpa, from: &[u8]) {
        let range = self.range(at, from.len());
        self.bytes.borrow_mut()[range].copy_from_slice(from);
    }
}
