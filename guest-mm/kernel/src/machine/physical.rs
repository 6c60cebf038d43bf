//! Physical memory at its own addresses: in the manager's address space a physical address *is* the pointer.

#![expect(unsafe_code, reason = "turns physical addresses into pointers")]

use guest_kernel::physical::{PhysicalBytes, Unreadable, to_usize};

/// What the nucleus's first page tables map: everything below 4 GiB. Gone once the manager has its own tables.
pub(crate) struct FirstTables(());

/// End of what the first tables map.
const FIRST_TABLES_END: u64 = 4 << 30;
/// The nucleus's page, which ring 3 cannot read.
const NUCLEUS: core::ops::Range<u64> = 0x20_0000..0x40_0000;

impl FirstTables {
    /// The view through the first tables.
    ///
    /// # Safety
    /// They must be in use, and remain so as long as the value is used.
    pub(crate) const unsafe fn in_use() -> Self {
        Self(())
    }
}

impl PhysicalBytes for FirstTables {
    fn read(&self, gpa: u64, into: &mut [u8]) -> Result<(), Unreadable> {
        let error = Unreadable { gpa, len: into.len() };
        let end = gpa.checked_add(into.len() as u64).ok_or(error)?;
        if end > FIRST_TABLES_END || (gpa < NUCLEUS.end && end > NUCLEUS.start) {
            return Err(error);
        }
        for (address, byte) in (gpa..).zip(into) {
            // SAFETY: the first tables map it, and a volatile read of a byte is fine whatever is there.
            *byte = unsafe { core::ptr::with_exposed_provenance::<u8>(to_usize(address)).read_volatile() };
        }
        Ok(())
    }
}
