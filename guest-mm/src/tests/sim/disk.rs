//! The disk of the swap areas, which has its turn now and then.

use super::Sim;
use crate::disk::{BlockDevice, BlockNr, Fault, Request};
use crate::mm::IoChoice;
use crate::swap::AreaHeader;

/// Blocks of each swap area, one behind the other on the disk; the first is full before the second has anything.
pub(super) const BLOCKS: [u32; 2] = [300, 8192];

fn headers() -> [AreaHeader; 2] {
    BLOCKS.map(|blocks| AreaHeader {
        bad: std::vec![7, 200],
        ..AreaHeader::new(blocks)
    })
}

/// The same request at the place of its area on the disk.
fn on_disk(request: Request, area: u8) -> Request {
    let start = if area == 0 { 0 } else { u64::from(BLOCKS[0]) };
    let at = |block: BlockNr| BlockNr(start + block.0);
    match request {
        Request::Read(block, pages) => Request::Read(at(block), pages),
        Request::Write(block, pages) => Request::Write(at(block), pages),
        Request::Flush => Request::Flush,
    }
}

impl Sim<'_> {
    /// Two areas: one is filled before the other.
    pub(super) fn swap_on(&self) {
        for (header, priority) in headers().iter().zip([1, 0]) {
            self.mm.swap_on(header, priority).unwrap();
        }
    }

    /// The disk takes what it can, and does one request. False if there is nothing for it to do.
    pub(super) fn disk_turn(&self) -> bool {
        let mut has_worked = false;
        let most_pages = 1 + usize::try_from(self.below(16)).unwrap();
        while let Some((request, io)) = self.mm.next_io(IoChoice::All, most_pages) {
            has_worked = true;
            let request = on_disk(request, io.area().number());
            if let Err((_, io)) = self.disk.submit(request, io) {
                self.mm.io_refused(io);
                break;
            }
        }
        if !self.is_ending.get() && self.one_in(8) {
            let block = BlockNr(self.below(64) + [0, BLOCKS[0].into()][usize::from(self.one_in(2))]);
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
            if result.is_err() {
                self.swap_failed.set(true);
            }
            self.mm.end_io(self.cpu, io, result);
        }
        has_worked
    }
}
