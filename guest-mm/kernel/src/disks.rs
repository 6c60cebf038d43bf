//! The disks of this machine: their drivers, what is said of them, and a check that writes a scratch disk full, flushes it and
//! reads it back.

use crate::devices::{Disk, restart};
use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::dma::KernelDma;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use guest_kernel::disk_pattern::{PIECE_BYTES, PIECE_SECTORS, Places, count_wrong, pattern};
use guest_virtio::block::{Access, BlockError, Counters, DiskInfo, Operation, Reason, SECTOR_SIZE};
use guest_virtio::dma::{DmaArea, DmaMemory};
use guest_virtio::queue::Segment;

/// Requests of the check that are under way at a time.
const DEPTH: usize = 8;
/// Most of a disk that the check uses, in bytes.
const CHECK_LIMIT: u64 = 64 << 20;

/// What is known of one disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DiskStatus {
    info: DiskInfo,
    counters: Counters,
    in_flight: u16,
    broken: bool,
    check: Check,
}

/// How far the check of a scratch disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    /// It is no scratch disk.
    None,
    Running,
    Done(Findings),
}

/// What the check has found. Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Findings {
    checked: u64,
    wrong: u64,
    /// Requests that failed.
    errors: u64,
}

/// The name of a disk, by its number: as Linux calls it.
pub(crate) fn name(index: usize) -> String {
    // More than 26 do not fit into the machine.
    let letter = u8::try_from(index).map_or(b'?', |index| b'a'.saturating_add(index));
    alloc::format!("vd{}", char::from(letter))
}

/// Takes note of another disk; returns its number.
pub(crate) fn add(kernel: &Kernel, disk: &Disk) -> usize {
    let mut disks = kernel.disks.lock();
    disks.push(DiskStatus {
        info: disk.info(),
        counters: disk.counters(),
        in_flight: 0,
        broken: false,
        check: Check::None,
    });
    disks.len() - 1
}

/// Starts a disk again whenever it has broken down.
pub(crate) async fn keep(kernel: &'static Kernel, disk: &'static Disk, index: usize) {
    loop {
        let fault = disk.broken_down().await;
        log!(Error, "{}: {fault}", name(index));
        publish(kernel, disk, index);
        restart(kernel, || disk.restart()).await;
        publish(kernel, disk, index);
    }
}

/// Takes the newest counters over.
fn publish(kernel: &Kernel, disk: &Disk, index: usize) {
    if let Some(status) = kernel.disks.lock().get_mut(index) {
        status.info = disk.info();
        status.counters = disk.counters();
        status.in_flight = disk.in_flight();
        status.broken = disk.fault().is_some();
    }
}

fn note(kernel: &Kernel, index: usize, check: Check) {
    if let Some(status) = kernel.disks.lock().get_mut(index) {
        status.check = check;
    }
}

/// What there is to say of all disks.
pub(crate) fn report(out: &mut String, kernel: &Kernel) -> fmt::Result {
    writeln!(
        out,
        "DISK STATE ACCESS BYTES IN_FLIGHT READS READ_BYTES WRITES WRITTEN_BYTES FLUSHES ERRORS CHECK CHECKED_BYTES WRONG_BYTES"
    )?;
    for (index, disk) in kernel.disks.lock().iter().enumerate() {
        let state = if disk.broken { "broken" } else { "ready" };
        let access = match disk.info.access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
        };
        let (word, findings) = match disk.check {
            Check::None => ("none", Findings::default()),
            Check::Running => ("running", Findings::default()),
            Check::Done(findings) if findings.wrong == 0 && findings.errors == 0 => ("good", findings),
            Check::Done(findings) => ("failed", findings),
        };
        let counters = disk.counters;
        writeln!(
            out,
            "{} {state} {access} {} {} {} {} {} {} {} {} {word} {} {}",
            name(index),
            disk.info.capacity_sectors.saturating_mul(SECTOR_SIZE),
            disk.in_flight,
            counters.reads,
            counters.read_bytes,
            counters.writes,
            counters.written_bytes,
            counters.flushes,
            counters.errors,
            findings.checked,
            findings.wrong,
        )?;
    }
    Ok(())
}

/// Writes the disk full, in no particular order and with several requests under way, flushes it, reads it back in another
/// order and compares.
pub(crate) async fn check(kernel: &'static Kernel, disk: &'static Disk, index: usize) {
    note(kernel, index, Check::Running);
    let memory = KernelDma(kernel);
    let area = match DmaArea::allocate(memory, DEPTH * PIECE_BYTES) {
        Ok(area) => area,
        Err(error) => return log!(Error, "{}: no check: {error}", name(index)),
    };
    let sectors = disk.info().capacity_sectors.min(CHECK_LIMIT / SECTOR_SIZE);
    let mut pass = Pass {
        kernel,
        disk,
        index,
        area,
        findings: Findings::default(),
    };
    let pieces = sectors / PIECE_SECTORS;
    pass.run(Operation::Write, Places::forward(pieces)).await;
    if let Err(error) = pass.flush().await {
        log!(Error, "{}: flush: {error}", name(index));
        pass.findings.errors += 1;
    }
    pass.run(Operation::Read, Places::backward(pieces)).await;
    let Findings {
        checked,
        wrong,
        errors,
    } = pass.findings;
    log!(
        Info,
        "{}: {checked} bytes checked, {wrong} of them wrong, {errors} requests failed",
        name(index)
    );
    note(kernel, index, Check::Done(pass.findings));
}

/// The check at work.
struct Pass {
    kernel: &'static Kernel,
    disk: &'static Disk,
    index: usize,
    /// A piece for each request under way.
    area: DmaArea<KernelDma>,
    findings: Findings,
}

impl Pass {
    /// Does one thing to all pieces of the disk.
    async fn run(&mut self, operation: Operation, places: Places) {
        let mut places = places.peekable();
        let mut idle = Vec::from_iter(0..DEPTH);
        // The piece of each request under way.
        let mut piece_of = [0; DEPTH];
        while places.peek().is_some() || idle.len() < DEPTH {
            while let (Some(slot), Some(&piece)) = (idle.last().copied(), places.peek()) {
                if !self.submit(operation, slot, piece) {
                    break;
                }
                piece_of[slot] = piece;
                idle.pop();
                places.next();
            }
            self.disk.commit();
            if idle.len() == DEPTH {
                // Nothing was taken, and nothing will come back.
                return;
            }
            let (slot, result) = self.disk.next().await;
            publish(self.kernel, self.disk, self.index);
            idle.push(slot);
            match result {
                Err(_) => self.findings.errors += 1,
                Ok(()) if operation == Operation::Read => self.compare(slot, piece_of[slot]),
                Ok(()) => {}
            }
        }
    }

    /// Hands a request over, if there is room for it. One that cannot be made is an error of the check.
    fn submit(&mut self, operation: Operation, slot: usize, piece: u64) -> bool {
        let start = self.area.at(slot * PIECE_BYTES, PIECE_BYTES);
        if operation == Operation::Write {
            self.area.memory().write_bytes(start, &pattern(piece));
        }
        let len = u32::try_from(PIECE_BYTES).unwrap_or(u32::MAX);
        let data = [Segment { start, len }];
        match self.disk.submit(operation, piece * PIECE_SECTORS, &data, slot) {
            Ok(()) => true,
            Err(refused) => {
                self.findings.errors += u64::from(refused.reason != Reason::Full);
                false
            }
        }
    }

    fn compare(&mut self, slot: usize, piece: u64) {
        let mut bytes = alloc::vec![0; PIECE_BYTES];
        let start = self.area.at(slot * PIECE_BYTES, PIECE_BYTES);
        self.area.memory().read_bytes(start, &mut bytes);
        self.findings.checked += PIECE_BYTES as u64;
        self.findings.wrong += count_wrong(piece, &bytes);
    }

    async fn flush(&self) -> Result<(), BlockError> {
        if self.disk.submit(Operation::Flush, 0, &[], 0).is_err() {
            return Err(BlockError::Lost);
        }
        self.disk.commit();
        let (_, result) = self.disk.next().await;
        publish(self.kernel, self.disk, self.index);
        result
    }
}
