//! How much is read around a page that a fault wants, from the swap area or from a file.

use crate::pfn::PAGE_SIZE;

/// Pages that are read together, aligned (Linux for swap: `1 << page_cluster`).
const AT_FIRST: u32 = 8;
/// The same for a program that goes on and on: as many as a reader of a file is read ahead of.
pub(crate) const MOST_AHEAD: u32 = 128;

/// Where the faults of an address space on pages that are not in memory have got to (Linux `swap_vma_readahead`, which knows this of each
/// area).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FaultAhead {
    /// The address that was read last.
    last: u64,
    /// Pages that were read with it.
    window: u32,
}

impl FaultAhead {
    /// A page at an address has to be read: how many are read together. One who goes on to behind those that were read last gets
    /// twice as many, anybody else as few as there are.
    pub(crate) fn read(&mut self, va: u64) -> u32 {
        let reach = 2 * u64::from(self.window) * PAGE_SIZE;
        let goes_on = va > self.last && va - self.last <= reach;
        self.window = match goes_on {
            true => (2 * self.window).min(MOST_AHEAD),
            false => AT_FIRST,
        };
        self.last = va;
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn windows_double_for_one_who_goes_on_and_begin_again_for_one_who_jumps() {
        let mut ahead = FaultAhead::default();
        let mut page = 1000;
        let mut windows = Vec::new();
        for _ in 0..7 {
            windows.push(ahead.read(page * PAGE_SIZE));
            // The first page behind those that were read.
            page = (page / u64::from(ahead.window) + 1) * u64::from(ahead.window);
        }
        assert_eq!(windows, [8, 16, 32, 64, 128, 128, 128]);
        assert_eq!(ahead.read(0), AT_FIRST, "backwards");
        assert_eq!(ahead.read(900 * PAGE_SIZE), AT_FIRST, "far away");
    }
}
