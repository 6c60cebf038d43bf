//! Guest memory for a machine without a processor: boot memory, a hot-plug region whose blocks are refused to
//! the device while they are unplugged, and the backend that plugs and unplugs them.

use std::cell::{Cell, RefCell};
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use devices::mem::{BackendError, BlockBackend, BlockRun, RegionSpec, UnpluggedMemory};
use guest_virtio::dma::{DmaMemory, Gpa, PAGE_SIZE};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult, Permissions,
};

/// Bytes of memory below the region, all of it usable.
const BOOT_BYTES: usize = 1 << 20;

/// Size of a block; small, since nothing is stored in most of them.
pub(super) const BLOCK: u64 = 1 << 16;

/// Where the region starts.
pub(super) const REGION: u64 = 1 << 32;

/// Which blocks are accessible: what `mprotect` is in a VMM. Shared by the backend and the memory.
type Protection = Rc<RefCell<Vec<bool>>>;

/// All memory of the machine, as the device and the driver reach it.
#[derive(Debug)]
pub(super) struct GuestRam {
    bytes: GuestMemoryMmap,
    protection: Protection,
    /// Where the driver's next frames come from.
    next_frame: Cell<u64>,
    nr_accesses_refused: Cell<u64>,
}

/// Plugs and unplugs blocks of a [`GuestRam`].
#[derive(Debug)]
pub(super) struct Backend {
    protection: Protection,
    /// Answers of the next calls: true is BUSY. Empty: never busy.
    busy: Rc<RefCell<Vec<bool>>>,
}

/// What a test sees and sets of a backend that a device owns.
#[derive(Clone, Debug)]
pub(super) struct BackendView {
    protection: Protection,
    busy: Rc<RefCell<Vec<bool>>>,
}

/// A memory with a region of `nr_blocks` blocks, all unplugged, what stands behind the blocks, and a view of that.
pub(super) fn guest_ram(nr_blocks: usize) -> (GuestRam, Backend, BackendView) {
    let region_bytes = nr_blocks * usize::try_from(BLOCK).unwrap();
    let ranges = [
        (GuestAddress(0), BOOT_BYTES),
        (GuestAddress(REGION), region_bytes),
    ];
    let protection = Protection::new(RefCell::new(vec![false; nr_blocks]));
    let busy = Rc::default();
    let ram = GuestRam {
        bytes: GuestMemoryMmap::from_ranges(&ranges).unwrap(),
        protection: Rc::clone(&protection),
        next_frame: Cell::new(PAGE_SIZE as u64),
        nr_accesses_refused: Cell::new(0),
    };
    let view = BackendView {
        protection: Rc::clone(&protection),
        busy: Rc::clone(&busy),
    };
    (ram, Backend { protection, busy }, view)
}

/// The region of `nr_blocks` blocks, with nothing requested yet.
pub(super) fn region_spec(nr_blocks: usize) -> RegionSpec {
    RegionSpec {
        addr: REGION,
        region_size: nr_blocks as u64 * BLOCK,
        block_size: BLOCK,
        requested_size: 0,
        node_id: None,
        unplugged: UnpluggedMemory::Inaccessible,
    }
}

impl BackendView {
    /// Which blocks are accessible.
    pub(super) fn accessible(&self) -> Vec<bool> {
        self.protection.borrow().clone()
    }

    /// The next calls are answered with BUSY where `answers` says true, the first one first.
    pub(super) fn be_busy(&self, answers: &[bool]) {
        self.busy.replace(answers.iter().rev().copied().collect());
    }
}

impl Backend {
    fn set(&self, run: BlockRun, accessible: bool) -> Result<(), BackendError> {
        if self.busy.borrow_mut().pop() == Some(true) {
            return Err(BackendError::Busy);
        }
        let mut protection = self.protection.borrow_mut();
        for index in run.indices() {
            let block = &mut protection[usize::try_from(index).unwrap()];
            assert_ne!(*block, accessible, "block {index} is in that state already");
            *block = accessible;
        }
        Ok(())
    }
}

impl BlockBackend for Backend {
    fn plug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        self.set(run, true)
    }

    fn unplug(&mut self, run: BlockRun) -> Result<(), BackendError> {
        self.set(run, false)
    }
}

impl GuestRam {
    /// The driver's next frames will be these, wherever that is.
    pub(super) fn place_frames_at(&self, gpa: u64) {
        self.next_frame.set(gpa);
    }

    /// How often the device was refused an access.
    pub(super) fn nr_accesses_refused(&self) -> u64 {
        self.nr_accesses_refused.get()
    }

    fn may_access(&self, addr: GuestAddress, count: usize) -> bool {
        let protection = self.protection.borrow();
        let is_refused = (0u64..).zip(protection.iter()).any(|(index, &accessible)| {
            let start = REGION + index * BLOCK;
            !accessible && addr.0 < start + BLOCK && start < addr.0.saturating_add(count as u64)
        });
        if is_refused {
            self.nr_accesses_refused.set(self.nr_accesses_refused.get() + 1);
        }
        !is_refused
    }
}

/// The device's side: what is unplugged is out of reach.
impl GuestMemory for GuestRam {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.may_access(addr, count) && GuestMemory::check_range(&self.bytes, addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        if !self.may_access(addr, count) {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        GuestMemory::get_slices(&self.bytes, addr, count, access)
    }
}

/// The driver's side: frames from the bottom of memory up.
impl DmaMemory for GuestRam {
    fn allocate(&self, nr_pages: NonZeroUsize) -> Option<Gpa> {
        let start = self.next_frame.get();
        let zeroes = vec![0; nr_pages.get() * PAGE_SIZE];
        self.bytes.write_slice(&zeroes, GuestAddress(start)).ok()?;
        self.next_frame.set(start + zeroes.len() as u64);
        Some(Gpa::new(start))
    }
    /// It is not handed out again.
    fn release(&self, _: Gpa, _: NonZeroUsize) {}
    fn read16(&self, at: Gpa) -> u16 {
        u16::from_le(
            self.bytes
                .load(GuestAddress(at.raw()), Ordering::Relaxed)
                .unwrap(),
        )
    }
    fn write16(&self, at: Gpa, value: u16) {
        let at = GuestAddress(at.raw());
        self.bytes.store(value.to_le(), at, Ordering::Relaxed).unwrap();
    }
    fn read_bytes(&self, at: Gpa, into: &mut [u8]) {
        self.bytes.read_slice(into, GuestAddress(at.raw())).unwrap();
    }
    fn write_bytes(&self, at: Gpa, from: &[u8]) {
        self.bytes.write_slice(from, GuestAddress(at.raw())).unwrap();
    }
}
