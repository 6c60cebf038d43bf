//! The swap area's disk, which has its turn now and then.

use super::Sim;
use crate::disk::{BlockDevice, BlockNr, Fault};
use crate::mm::IoChoice;
use crate::swap::AreaHeader;

/// Blocks of the swap area: twice the memory.
pub(super) const BLOCKS: u32 = 8192;

pub(super) fn header() -> AreaHeader {
    AreaHeader {
        bad: std::vec![7, 300],
        ..AreaHeader::new(BLOCKS)
    }
}

impl Sim<'_> {
    /// The disk takes what it can, and does one request. False if there is nothing for it to do.
    pub(super) fn disk_turn(&self) -> bool {
        let mut has_worked = false;
        let most_pages = 1 + usize::try_from(self.below(16)).unwrap();
        while let Some((request, io)) = self.mm.next_io(IoChoice::All, most_pages) {
            has_worked = true;
            if let Err((_, io)) = self.disk.submit(request, io) {
                self.mm.io_refused(io);
                break;
            }
        }
        if !self.is_ending.get() && self.one_in(8) {
            let block = BlockNr(self.below(BLOCKS.into()) % 64);
            let fault = if self.one_in(2) { Fault::Read } else { Fault::Write };
            self.disk.break_block(fault, block);
        }
        if self.is_ending.get() || self.one_in(60) {
            self.disk.mend();
        }
        let choice = usize::try_from(self.below(16)).unwrap();
        has_worked |= self.disk.step(&self.mm.frames, choice);
        while let Some((io, result)) = self.disk.completed() {
            has_worked = true;
            self.mm.end_io(self.cpu, io, result);
        }
        has_worked
    }
}
