//! The manager's address space: every byte of memory that is there, at its physical address, and the windows of
//! `guest_kernel::layout`.
//!
//! Boot memory is mapped once, but for what lies above `highmem=`. A hot-plugged block is mapped after the device
//! plugged it and unmapped before it is unplugged, so that a stray access of the manager faults instead of touching
//! memory that is gone.

#![expect(unsafe_code, reason = "makes page tables the manager's own")]

use super::activity::forget_manager_translations;
use super::frames::DirectFrames;
use super::nucleus;
use core::ops::Range;
use guest_kernel::layout::DIRECT_MAP_END;
use guest_mm::Entry;
use guest_mm::kernel_map::{FrameSource, KernelRange, KernelTables, OutOfFrames};
use guest_mm::pfn::Pfn;

/// What may be done with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// The nucleus: nothing at all from ring 3, everything from ring 0.
    Nucleus,
    /// Code.
    Execute,
    /// Constants.
    Read,
    /// Memory.
    Write,
    /// Registers of a device.
    Device,
}

impl Access {
    const fn bits(self) -> u64 {
        const UNCACHED: u64 = Entry::CACHE_DISABLE | Entry::WRITE_THROUGH;
        const CONSTANT: u64 = Entry::USER | Entry::NO_EXECUTE;
        Entry::PRESENT
            | match self {
                Self::Nucleus => Entry::WRITABLE,
                Self::Execute => Entry::USER,
                Self::Read => CONSTANT,
                Self::Write => CONSTANT | Entry::WRITABLE,
                Self::Device => CONSTANT | Entry::WRITABLE | UNCACHED,
            }
    }
}

/// The manager's page tables. Tables are never freed: there is one for each GiB that ever had memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DirectMap {
    tables: KernelTables,
}

impl DirectMap {
    /// Tables that map nothing.
    pub(crate) fn new(source: &impl FrameSource) -> Result<Self, OutOfFrames> {
        let tables = KernelTables::new(&DirectFrames, source)?;
        Ok(Self { tables })
    }

    /// The tables, for those who map something elsewhere.
    pub(crate) fn tables(&self) -> KernelTables {
        self.tables
    }

    /// Makes these the manager's tables, and forgets cached translations.
    ///
    /// # Safety
    /// They must map the nucleus, the image and all memory in use as they are mapped now.
    pub(crate) unsafe fn activate(&self) {
        // SAFETY: by this function's own condition.
        unsafe { nucleus::set_root(self.tables.root().gpa()) };
    }

    /// Maps `range`, page-aligned, with the largest pages that fit. What is mapped there already stays as it is.
    ///
    /// # Errors
    /// If a page table is needed and there is no frame for it. What was mapped before it was needed stays mapped.
    pub(crate) fn map(
        &self,
        range: Range<u64>,
        access: Access,
        source: &impl FrameSource,
    ) -> Result<(), OutOfFrames> {
        let Some(range) = addresses(&range) else {
            return Ok(());
        };
        let first = Pfn::containing(range.start()).ok_or(OutOfFrames)?;
        self.tables
            .map(&DirectFrames, source, range, (first, access.bits()))
    }

    /// Makes sure that mapping `range` with 2 MiB pages needs no further table.
    ///
    /// # Errors
    /// If there is no frame for one.
    pub(crate) fn prepare(&self, range: Range<u64>, source: &impl FrameSource) -> Result<(), OutOfFrames> {
        addresses(&range).map_or(Ok(()), |range| {
            self.tables.prepare_huge(&DirectFrames, source, range)
        })
    }

    /// Unmaps a hot-plugged block: `range` is a multiple of 2 MiB that was mapped as such. When this returns, no
    /// access to it is possible any more, from any CPU.
    pub(crate) fn unmap_huge(&self, range: Range<u64>) {
        let Some(range) = addresses(&range) else {
            return;
        };
        self.tables.unmap(&DirectFrames, range);
        forget_manager_translations();
    }
}

/// The range as addresses of the direct map; `None` if it is empty.
fn addresses(range: &Range<u64>) -> Option<KernelRange> {
    if range.is_empty() {
        return None;
    }
    let addresses = KernelRange::new(range.start, range.end - range.start);
    let inside = addresses.filter(|addresses| addresses.end() <= DIRECT_MAP_END);
    assert!(inside.is_some(), "{range:x?} cannot be mapped");
    inside
}
