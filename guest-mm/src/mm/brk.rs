//! The heap that a program grows and shrinks by moving its end (`brk`).

use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::{Backing, HugeAdvice, Mm, MmapError, Prot, Residence, Vma};
use crate::pagetable::VaRange;
use crate::pfn::PAGE_SIZE;

/// Why the end of the heap stays where it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BrkError {
    /// Below the heap's start, or beyond user memory.
    OutOfRange {
        /// End that was asked for.
        end: u64,
    },
    /// Something else is there, or nearer.
    Occupied(VaRange),
    /// What was to go cannot be unmapped.
    Unmap(MmapError),
}

impl fmt::Display for BrkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { end } => write!(f, "the heap cannot end at {end:#x}"),
            Self::Occupied(range) => write!(f, "the heap cannot grow: something is in {range}"),
            Self::Unmap(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for BrkError {}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Where a program's heap begins, empty: after its executable, as its loader knows.
    pub fn set_heap(&self, id: SpaceId, start: u64) {
        if let Some(space) = self.spaces.find(id) {
            space.lock().heap = start..start;
        }
    }

    /// Moves the end of a program's heap, and returns it; 0 asks where it is. Whole pages come and go.
    ///
    /// # Errors
    /// When it cannot be there; it stays where it was.
    pub fn brk(&self, cpu: &Cpu, id: SpaceId, end: u64) -> Result<u64, BrkError> {
        let unknown = BrkError::Unmap(MmapError::UnknownSpace(id));
        let found = self.spaces.find(id).ok_or(unknown)?;
        let heap = found.lock().heap.clone();
        if end == 0 {
            return Ok(heap.end);
        }
        let out_of_range = BrkError::OutOfRange { end };
        let pages = |end: u64| end.checked_next_multiple_of(PAGE_SIZE).ok_or(out_of_range);
        let (old, new) = (pages(heap.end)?, pages(end)?);
        if heap.start == 0 || end < heap.start {
            return Err(out_of_range);
        }
        if new < old {
            let shrunk = self.munmap(cpu, id, new, old - new);
            shrunk.map_err(BrkError::Unmap)?;
        }
        let mut space = found.lock();
        if new > old {
            let range = VaRange::new(old, new - old).ok_or(out_of_range)?;
            if !space.is_free(range) {
                return Err(BrkError::Occupied(range));
            }
            space.insert(Vma {
                range,
                prot: Prot::READ.with(Prot::WRITE),
                backing: Backing::Anonymous(HugeAdvice::NoHuge),
                residence: Residence::Pageable,
                anon_vma: None,
            });
        }
        space.heap.end = end;
        Ok(end)
    }
}
