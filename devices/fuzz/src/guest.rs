//! The guest's memory: two pieces with a hole between, pages of which can be refused, every access of which is watched.
//!
//! Low memory starts at address 0 and holds the driver's rings and buffers; high memory is apart and ends in
//! [`NR_BLOCKS`] blocks that a memory device may plug and unplug.

use std::cell::{Ref, RefCell, RefMut};

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryResult, Permissions,
};

use crate::watch::Watch;

/// A page: the grain at which memory is refused, and the size of a block.
pub(crate) const PAGE: u64 = 0x1000;
const PAGE_LEN: usize = 0x1000;
const _: () = assert!(PAGE_LEN as u64 == PAGE);
/// Size of low memory.
pub(crate) const LOW_SIZE: u64 = 0x1_0000;
/// Where high memory starts.
pub(crate) const HIGH: u64 = 0x10_0000;
/// Size of high memory.
pub(crate) const HIGH_SIZE: u64 = 0x2_0000;
/// Where the driver's rings lie, a page a queue.
pub(crate) const RINGS: u64 = PAGE;
/// Size of the same: eight queues.
pub(crate) const RINGS_SIZE: u64 = 8 * PAGE;
/// Where the driver's buffers lie.
pub(crate) const BUFFERS: u64 = RINGS + RINGS_SIZE;
/// Size of the same.
pub(crate) const BUFFERS_SIZE: u64 = LOW_SIZE - BUFFERS;
/// Blocks of a memory device.
pub(crate) const NR_BLOCKS: u64 = 16;
/// Where they start: they are the end of high memory.
pub(crate) const BLOCKS: u64 = HIGH + HIGH_SIZE - NR_BLOCKS * PAGE;

/// Pages there are; one bit each.
const NR_PAGES: u64 = (LOW_SIZE + HIGH_SIZE) / PAGE;
const _: () = assert!(NR_PAGES <= 64);

thread_local! {
    /// Memory of a guest that is gone: mapping it anew would cost more than a run.
    static SPARE: RefCell<Option<GuestMemoryMmap>> = const { RefCell::new(None) };
}

/// The memory of a guest.
#[derive(Debug)]
pub struct Guest {
    inner: GuestMemoryMmap,
    /// Bit `i`: page `i` is refused, counted from address 0 without the hole.
    refused: RefCell<u64>,
    watch: RefCell<Watch>,
    /// What memory holds as far as it was seen to be written, low memory first.
    seen: RefCell<Vec<u8>>,
}

impl Guest {
    /// Zeroed memory, nothing refused, nothing seen.
    pub(crate) fn new(nr_queues: usize, asynchronous: bool) -> Guest {
        Guest {
            inner: SPARE.take().unwrap_or_else(map),
            refused: RefCell::new(0),
            watch: RefCell::new(Watch::new(nr_queues, asynchronous)),
            seen: RefCell::new(vec![0; usize::try_from(LOW_SIZE + HIGH_SIZE).expect("small")]),
        }
    }

    /// From now on, no access by a device to the page of `gpa`, if there is one.
    pub fn refuse(&self, gpa: u64) {
        *self.refused.borrow_mut() |= Guest::page_bit(gpa);
    }

    /// The page of `gpa` can be accessed again.
    pub fn allow(&self, gpa: u64) {
        *self.refused.borrow_mut() &= !Guest::page_bit(gpa);
    }

    /// Whether every byte is memory, and none refused.
    pub fn owns(&self, gpa: u64, len: u64) -> bool {
        let Some(end) = gpa.checked_add(len) else {
            return false;
        };
        let inside = end <= LOW_SIZE || (HIGH <= gpa && end <= HIGH + HIGH_SIZE);
        let first = gpa / PAGE;
        inside
            && (first..end.div_ceil(PAGE).max(first + 1))
                .all(|page| *self.refused.borrow() & Guest::page_bit(page * PAGE) == 0)
    }

    /// Writes as the guest does: past every refusal, unseen. Bytes outside of memory are dropped.
    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        if self.inner.write_slice(bytes, GuestAddress(gpa)).is_ok() {
            self.saw(gpa, bytes.len());
        } else {
            // The bytes before the end of memory are written all the same.
            (0..bytes.len() as u64)
                .map_while(|at| gpa.checked_add(at))
                .for_each(|gpa| self.saw(gpa, 1));
        }
    }

    /// The bytes of a range, which is memory, may have changed.
    pub(crate) fn saw(&self, gpa: u64, len: usize) {
        let mut seen = self.seen.borrow_mut();
        if let Some(at) = position(gpa)
            && let Some(seen) = seen.get_mut(at..at + len)
        {
            let read = self.inner.read_slice(seen, GuestAddress(gpa));
            debug_assert!(read.is_ok(), "only what was granted is looked at");
        }
    }

    /// A byte that has changed without having been seen, if there is one.
    pub(crate) fn changed_unseen(&self) -> Option<u64> {
        let seen = self.seen.borrow();
        let mut page = [0; PAGE_LEN];
        (0..NR_PAGES).find_map(|index| {
            let at = index * PAGE;
            let gpa = if at < LOW_SIZE { at } else { at - LOW_SIZE + HIGH };
            self.inner.read_slice(&mut page, GuestAddress(gpa)).ok()?;
            let start = position(gpa)?;
            let differs = page
                .iter()
                .zip(&seen[start..])
                .position(|(now, seen)| now != seen)?;
            Some(gpa + differs as u64)
        })
    }

    /// Reads as the guest does; zeros outside of memory.
    pub fn peek<const N: usize>(&self, gpa: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if GuestMemory::check_range(&self.inner, GuestAddress(gpa), N, Permissions::Read) {
            let read = self.inner.read_slice(&mut bytes, GuestAddress(gpa));
            debug_assert!(read.is_ok(), "the range was checked");
        }
        bytes
    }

    /// `len` bytes at `gpa`, which are memory.
    pub(crate) fn peek_all(&self, gpa: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = self.inner.read_slice(&mut bytes, GuestAddress(gpa));
        debug_assert!(read.is_ok(), "the range was checked");
        bytes
    }

    /// The host moves data into a buffer by itself, as a disk does, past the device.
    pub(crate) fn host_writes(&self, gpa: u64, bytes: &[u8]) {
        self.poke(gpa, bytes);
        self.watch_mut().host_wrote(&(gpa..gpa + bytes.len() as u64));
    }

    /// The bit that stands for the page of `gpa`, if there is one.
    pub(crate) fn page_bit(gpa: u64) -> u64 {
        position(gpa).map_or(0, |at| 1 << (at / PAGE_LEN))
    }

    /// A little-endian number at `gpa`.
    pub(crate) fn peek_u16(&self, gpa: u64) -> u16 {
        u16::from_le_bytes(self.peek(gpa))
    }

    /// What was seen.
    pub(crate) fn watch(&self) -> Ref<'_, Watch> {
        self.watch.borrow()
    }

    /// What was seen, to be told something.
    pub(crate) fn watch_mut(&self) -> RefMut<'_, Watch> {
        self.watch.borrow_mut()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let inner = self.inner.clone();
        for gpa in (0..LOW_SIZE).chain(HIGH..HIGH + HIGH_SIZE).step_by(PAGE_LEN) {
            if inner.write_slice(&[0; PAGE_LEN], GuestAddress(gpa)).is_err() {
                return;
            }
        }
        // Fails only when the thread ends: then the mapping goes too.
        let _ = SPARE.try_with(|spare| spare.replace(Some(inner)));
    }
}

fn map() -> GuestMemoryMmap {
    let ranges = [(0, LOW_SIZE), (HIGH, HIGH_SIZE)]
        .map(|(gpa, size)| (GuestAddress(gpa), usize::try_from(size).expect("small")));
    GuestMemoryMmap::from_ranges(&ranges).expect("the host maps 192 KiB")
}

/// How far from the start of memory, the hole not counted.
fn position(gpa: u64) -> Option<usize> {
    let at = match gpa {
        _ if gpa < LOW_SIZE => gpa,
        _ if (HIGH..HIGH + HIGH_SIZE).contains(&gpa) => gpa - HIGH + LOW_SIZE,
        _ => return None,
    };
    usize::try_from(at).ok()
}

impl GuestMemory for Guest {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, addr: GuestAddress, count: usize, _access: Permissions) -> bool {
        self.watch.borrow_mut().checked() && self.owns(addr.0, count as u64)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        let refused = GuestMemoryError::InvalidGuestAddress(addr);
        if !self.watch.borrow_mut().checked() || !self.owns(addr.0, count as u64) {
            return Err(refused);
        }
        if !self.watch.borrow_mut().accessed(self, addr.0, count, access) {
            return Err(refused);
        }
        GuestMemory::get_slices(&self.inner, addr, count, access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_has_a_hole_and_ends() {
        let guest = Guest::new(0, false);
        for (gpa, len, owned) in [
            (0, LOW_SIZE, true),
            (LOW_SIZE - 1, 2, false),
            (HIGH - 1, 2, false),
            (HIGH, HIGH_SIZE, true),
            (HIGH, HIGH_SIZE + 1, false),
            (u64::MAX, 2, false),
        ] {
            assert_eq!(guest.owns(gpa, len), owned, "{len:#x} bytes at {gpa:#x}");
        }
    }

    #[test]
    fn a_new_guest_has_zeroed_memory_whoever_had_it_before() {
        Guest::new(0, false).poke(HIGH + 0x1fff, &[7, 7]);
        assert_eq!(Guest::new(0, false).peek(HIGH + 0x1fff), [0, 0]);
    }

    #[test]
    fn a_change_that_was_not_seen_is_found() {
        let guest = Guest::new(0, false);
        assert_eq!(guest.changed_unseen(), None);
        guest
            .inner
            .write_slice(&[1], GuestAddress(HIGH + 0x1234))
            .unwrap();
        assert_eq!(guest.changed_unseen(), Some(HIGH + 0x1234));
    }

    #[test]
    fn a_range_that_touches_a_refused_page_is_refused() {
        let guest = Guest::new(0, false);
        guest.refuse(BLOCKS + 5);
        assert!(!guest.owns(BLOCKS - 1, 2));
        assert!(guest.owns(BLOCKS - 1, 1));
        assert!(guest.owns(BLOCKS + PAGE, 1));
        guest.allow(BLOCKS);
        assert!(guest.owns(BLOCKS - 1, 2));
    }

    #[test]
    fn what_the_guest_pokes_it_peeks_and_nothing_beyond_memory() {
        let guest = Guest::new(0, false);
        guest.poke(LOW_SIZE - 1, &[7, 8]);
        assert_eq!(guest.peek(LOW_SIZE - 1), [7]);
        assert_eq!(guest.peek(LOW_SIZE - 1), [0, 0]);
    }
}
