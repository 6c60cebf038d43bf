//! The check of a scratch disk: it is written full, flushed, read back and compared.

use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::dma::KernelDma;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use guest_kernel::disk_pattern::{PIECE_BYTES, Places, count_wrong, pattern};
use guest_kernel::drive::Drive;
use guest_kernel::sync::Signal;
use guest_mm::disk::{BLOCK_SIZE, BlockNr, IoError, Request};
use guest_mm::pfn::{PAGE_BYTES, Pfn};
use guest_sync::SpinLock;
use guest_virtio::dma::{DmaArea, DmaMemory};

/// Requests that are under way at a time.
const DEPTH: usize = 8;
/// Most of a disk that is used, in bytes.
const LIMIT: u64 = 64 << 20;
/// Blocks of a piece.
const PIECE_BLOCKS: u64 = PIECE_BYTES as u64 / BLOCK_SIZE;

/// How far the check of a scratch disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// It is no scratch disk.
    None,
    Running,
    Done(Findings),
}

/// What the check has found. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    pub(super) checked: u64,
    pub(super) wrong: u64,
    /// Requests that failed.
    errors: u64,
}

impl Check {
    /// How far it is in a word, and what it has found.
    pub(super) fn in_words(self) -> (&'static str, Findings) {
        match self {
            Self::None => ("none", Findings::default()),
            Self::Running => ("running", Findings::default()),
            Self::Done(findings) if findings.wrong == 0 && findings.errors == 0 => ("good", findings),
            Self::Done(findings) => ("failed", findings),
        }
    }
}

fn note(kernel: &Kernel, index: usize, check: Check) {
    if let Some(status) = kernel.disks.lock().get_mut(index) {
        status.check = check;
    }
}

/// Writes the disk full, in no particular order and with several requests under way, flushes it, reads it back in another
/// order and compares.
pub(crate) async fn check(kernel: &'static Kernel, (index, drive): (usize, &'static Drive)) {
    let name = super::name(index);
    note(kernel, index, Check::Running);
    let memory = KernelDma { kernel, driver: None };
    let area = match DmaArea::allocate(memory, DEPTH * PIECE_BYTES) {
        Ok(area) => area,
        Err(error) => return log!(Error, "{name}: no check: {error}"),
    };
    let mut pass = Pass {
        drive,
        area,
        returned: Arc::new(Returned::default()),
        findings: Findings::default(),
    };
    let pieces = drive.nr_blocks().min(LIMIT / BLOCK_SIZE) / PIECE_BLOCKS;
    pass.run(Direction::Write, Places::forward(pieces)).await;
    if let Err(error) = drive.request(Request::Flush).await {
        log!(Error, "{name}: flush: {error}");
        pass.findings.errors += 1;
    }
    pass.run(Direction::Read, Places::backward(pieces)).await;
    let Findings {
        checked,
        wrong,
        errors,
    } = pass.findings;
    log!(
        Info,
        "{name}: {checked} bytes checked, {wrong} of them wrong, {errors} requests failed"
    );
    note(kernel, index, Check::Done(pass.findings));
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

/// The check at work.
struct Pass {
    drive: &'static Drive,
    /// A piece for each request under way.
    area: DmaArea<KernelDma>,
    returned: Arc<Returned>,
    findings: Findings,
}

/// Requests that came back, by the number of their part of the area.
#[derive(Default)]
struct Returned {
    slots: SpinLock<Vec<(usize, Result<(), IoError>)>>,
    more: Signal,
}

impl Returned {
    async fn next(&self) -> (usize, Result<(), IoError>) {
        loop {
            let seen = self.more.count();
            let returned = self.slots.lock().pop();
            if let Some(returned) = returned {
                return returned;
            }
            self.more.after(seen).await;
        }
    }
}

impl Pass {
    /// Does one thing to all pieces of the disk.
    async fn run(&mut self, direction: Direction, mut places: Places) {
        let mut idle = Vec::from_iter(0..DEPTH);
        // The piece of each request under way.
        let mut piece_of = [0; DEPTH];
        loop {
            while let Some(slot) = idle.pop() {
                let Some(piece) = places.next() else {
                    idle.push(slot);
                    break;
                };
                piece_of[slot] = piece;
                self.submit(direction, slot, piece);
            }
            if idle.len() == DEPTH {
                return;
            }
            let (slot, result) = self.returned.next().await;
            idle.push(slot);
            match result {
                Err(IoError) => self.findings.errors += 1,
                Ok(()) if direction == Direction::Read => self.compare(slot, piece_of[slot]),
                Ok(()) => {}
            }
        }
    }

    fn submit(&self, direction: Direction, slot: usize, piece: u64) {
        let start = self.area.at(slot * PIECE_BYTES, PIECE_BYTES);
        let pages = (0..PIECE_BYTES / PAGE_BYTES)
            .filter_map(|page| Pfn::containing(self.area.at(slot * PIECE_BYTES + page * PAGE_BYTES, 1).raw()))
            .collect();
        let first = BlockNr(piece * PIECE_BLOCKS);
        let request = match direction {
            Direction::Read => Request::Read(first, pages),
            Direction::Write => {
                self.area.memory().write_bytes(start, &pattern(piece));
                Request::Write(first, pages)
            }
        };
        let returned = self.returned.clone();
        let done = move |result| {
            returned.slots.lock().push((slot, result));
            returned.more.raise();
        };
        self.drive.submit(request, Box::new(done));
    }

    fn compare(&mut self, slot: usize, piece: u64) {
        let mut bytes = alloc::vec![0; PIECE_BYTES];
        let start = self.area.at(slot * PIECE_BYTES, PIECE_BYTES);
        self.area.memory().read_bytes(start, &mut bytes);
        self.findings.checked += PIECE_BYTES as u64;
        self.findings.wrong += count_wrong(piece, &bytes);
    }
}
