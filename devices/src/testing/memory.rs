//! A guest memory that refuses ranges, as a VMM's does for unplugged blocks, and remembers what it handed out.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult, Permissions,
};

/// The ranges that are refused, shared with whoever takes memory away.
pub(crate) type Refusals = Rc<RefCell<Vec<Range<u64>>>>;

/// 1 MiB of memory at [`Self::BASE`] in which ranges can be refused. Clones are the same memory.
#[derive(Clone)]
pub(crate) struct PatchyMemory {
    inner: GuestMemoryMmap,
    refused: Refusals,
    granted: Rc<RefCell<Vec<Range<u64>>>>,
}

impl PatchyMemory {
    /// Guest-physical address of the first byte.
    pub(crate) const BASE: u64 = 0x10_0000;
    /// Number of bytes.
    pub(crate) const SIZE: usize = 0x10_0000;
    /// The address behind the last byte.
    pub(crate) const END: u64 = Self::BASE + Self::SIZE as u64;

    pub(crate) fn new() -> PatchyMemory {
        let ranges = [(GuestAddress(Self::BASE), Self::SIZE)];
        PatchyMemory {
            inner: GuestMemoryMmap::from_ranges(&ranges).unwrap(),
            refused: Refusals::default(),
            granted: Rc::default(),
        }
    }

    /// From now on, no access to the range.
    pub(crate) fn refuse(&self, range: Range<u64>) {
        self.refused.borrow_mut().push(range);
    }

    /// The refused ranges, to be changed from elsewhere.
    pub(crate) fn refusals(&self) -> Refusals {
        Rc::clone(&self.refused)
    }

    /// Forgets what was handed out so far.
    pub(crate) fn forget_granted(&self) {
        self.granted.borrow_mut().clear();
    }

    /// Whether any byte of the range was handed out since the last [`Self::forget_granted`].
    pub(crate) fn was_granted(&self, range: &Range<u64>) -> bool {
        self.granted
            .borrow()
            .iter()
            .any(|granted| overlap(granted, range))
    }

    /// Writes as the guest does: past every refusal.
    pub(crate) fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.inner.write_slice(bytes, GuestAddress(gpa)).unwrap();
    }

    /// Reads as the guest does.
    pub(crate) fn peek<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.inner.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    fn range(&self, addr: GuestAddress, count: usize) -> Option<Range<u64>> {
        let range = addr.0..addr.0.checked_add(count as u64)?;
        let refused = self
            .refused
            .borrow()
            .iter()
            .any(|refused| overlap(refused, &range));
        (!refused).then_some(range)
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl GuestMemory for PatchyMemory {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.range(addr, count).is_some() && GuestMemory::check_range(&self.inner, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        let range = self
            .range(addr, count)
            .ok_or(GuestMemoryError::InvalidGuestAddress(addr))?;
        self.granted.borrow_mut().push(range);
        GuestMemory::get_slices(&self.inner, addr, count, access)
    }
}
