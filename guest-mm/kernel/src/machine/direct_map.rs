//! The manager's address space: every byte of memory that is there, at its physical address, and nothing else.
//!
//! Boot memory is mapped once. A hot-plugged block is mapped after the device plugged it and unmapped before it is
//! unplugged, so that a stray access of the manager faults instead of touching memory that is gone.

#![expect(unsafe_code, reason = "writes the manager's own page tables")]

use super::nucleus;
use core::fmt;
use core::ops::Range;
use core::ptr::with_exposed_provenance_mut;
use core::sync::atomic::{AtomicU64, Ordering};
use guest_kernel::physical::to_usize;

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
const ENTRIES: usize = 512;
/// Ring 3 cannot use the upper half on some hosts: the direct map ends with the lower one.
const END: u64 = 1 << 47;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const UNCACHED: u64 = 1 << 3 | 1 << 4;
const HUGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

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
        PRESENT
            | match self {
                Self::Nucleus => WRITABLE,
                Self::Execute => USER,
                Self::Read => USER | NO_EXECUTE,
                Self::Write => USER | WRITABLE | NO_EXECUTE,
                Self::Device => USER | WRITABLE | NO_EXECUTE | UNCACHED,
            }
    }
}

/// Where page tables come from: the physical address of an unused, mapped frame, or `None` if there is none.
pub(crate) trait TableFrames {
    /// A frame, contents unknown.
    fn take(&mut self) -> Option<u64>;
}

/// No frame was left for a page table. What was mapped before it was needed stays mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OutOfTables;

impl fmt::Display for OutOfTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no frame for a page table of the manager")
    }
}

/// The manager's page tables. Tables are never freed: there is one for each GiB that ever had memory.
#[derive(Debug)]
pub(crate) struct DirectMap {
    root: u64,
}

impl DirectMap {
    /// Tables that map nothing.
    pub(crate) fn new(frames: &mut impl TableFrames) -> Result<Self, OutOfTables> {
        Ok(Self {
            root: new_table(frames)?,
        })
    }

    /// Makes these the manager's tables.
    ///
    /// # Safety
    /// They must map the nucleus, the image and all memory in use as they are mapped now.
    pub(crate) unsafe fn activate(&self) {
        // SAFETY: by this function's own condition.
        unsafe { nucleus::set_root(self.root) };
    }

    /// Maps `range`, page-aligned, which is not mapped yet, with the largest pages that fit.
    ///
    /// # Errors
    /// If a page table is needed and there is no frame for it.
    pub(crate) fn map(
        &mut self,
        range: Range<u64>,
        access: Access,
        frames: &mut impl TableFrames,
    ) -> Result<(), OutOfTables> {
        assert!(
            range.end <= END && range.start.is_multiple_of(PAGE),
            "{range:x?} cannot be mapped"
        );
        let mut address = range.start;
        while address < range.end {
            let pages = entry(self.root, address, 3);
            let directory = entry(descend(pages, frames)?, address, 2);
            let slot = entry(descend(directory, frames)?, address, 1);
            let is_huge = address.is_multiple_of(HUGE_PAGE) && range.end - address >= HUGE_PAGE;
            if is_huge {
                slot.store(address | access.bits() | HUGE, Ordering::Release);
                address += HUGE_PAGE;
            } else {
                let slot = entry(descend(slot, frames)?, address, 0);
                slot.store(address | access.bits(), Ordering::Release);
                address += PAGE;
            }
        }
        Ok(())
    }

    /// Makes sure that mapping `range` with 2 MiB pages needs no further table.
    ///
    /// # Errors
    /// If there is no frame for one.
    pub(crate) fn prepare(
        &mut self,
        range: Range<u64>,
        frames: &mut impl TableFrames,
    ) -> Result<(), OutOfTables> {
        let first = range.start / GIB * GIB;
        for address in (first..range.end).step_by(to_usize(GIB)) {
            let directory = entry(descend(entry(self.root, address, 3), frames)?, address, 2);
            descend(directory, frames)?;
        }
        Ok(())
    }

    /// Unmaps a hot-plugged block: `range` is a multiple of 2 MiB that was mapped as such. When this returns, no
    /// access to it is possible any more.
    pub(crate) fn unmap_huge(&mut self, range: Range<u64>) {
        for address in range.clone().step_by(to_usize(HUGE_PAGE)) {
            let Some(directory) = table_behind(entry(self.root, address, 3)) else {
                continue;
            };
            let Some(table) = table_behind(entry(directory, address, 2)) else {
                continue;
            };
            entry(table, address, 1).store(0, Ordering::Release);
        }
        if range.end - range.start <= HUGE_PAGE {
            nucleus::invalidate(range.start);
        } else {
            // SAFETY: the tables in use, less a block that nobody uses.
            unsafe { self.activate() };
        }
    }
}

/// The entry for `address` in the table at `table`, of `level` 3 (root) to 0.
fn entry(table: u64, address: u64, level: u32) -> &'static AtomicU64 {
    let index = to_usize(address >> (12 + 9 * level)) % ENTRIES;
    let entries = with_exposed_provenance_mut::<AtomicU64>(to_usize(table)).wrapping_add(index);
    // SAFETY: `table` is the physical address of a table of these page tables: mapped, never freed, and accessed
    // through this function only, by us and the hardware.
    unsafe { &*entries }
}

/// The table that an entry refers to; made if there is none.
fn descend(entry: &AtomicU64, frames: &mut impl TableFrames) -> Result<u64, OutOfTables> {
    if let Some(table) = table_behind(entry) {
        return Ok(table);
    }
    let table = new_table(frames)?;
    entry.store(table | PRESENT | WRITABLE | USER, Ordering::Release);
    Ok(table)
}

fn table_behind(entry: &AtomicU64) -> Option<u64> {
    let value = entry.load(Ordering::Relaxed);
    assert!(value & HUGE == 0, "a table where a huge page is mapped");
    (value & PRESENT != 0).then_some(value & ADDRESS)
}

fn new_table(frames: &mut impl TableFrames) -> Result<u64, OutOfTables> {
    let table = frames.take().ok_or(OutOfTables)?;
    for index in 0..ENTRIES as u64 {
        entry(table, index << 12, 0).store(0, Ordering::Relaxed);
    }
    Ok(table)
}
