//! Reads and writes of files that were opened with `open::DIRECT`: the disk reaches the program's own pages, which are pinned for as long
//! as that takes, so that neither reclaim nor a block that is emptied takes them away.

use super::call::file_error;
use super::{RootFs, steps, until_memory};
use crate::fault;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::process::Program;
use crate::syscall::copy_error;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use guest_mm::fs::mounted::File;
use guest_mm::mm::mapping::FileError;
use guest_mm::phys::Pin;
use guest_mm::{Gfp, PAGE_SIZE, Pfn, SpaceId};
use guest_programs::abi::Error;

/// Most pages of one transfer, which are pinned together: 256 KiB.
const MOST_PAGES: u64 = 64;

/// Pages that went straight from a disk to a program, and the other way.
static READ_PAGES: AtomicU64 = AtomicU64::new(0);
static WRITTEN_PAGES: AtomicU64 = AtomicU64::new(0);
/// Pages of such transfers that were in registered buffers.
static REGISTERED_PAGES: AtomicU64 = AtomicU64::new(0);

/// Whose memory.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) kernel: &'static Kernel,
    pub(super) root: &'static RootFs,
    pub(super) program: &'a Program,
    pub(super) space: SpaceId,
}

/// The direction, seen from the program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
}

/// Pages of a program that stay where they are.
struct Pinned<'a> {
    of: Of<'a>,
    pins: Vec<Pin>,
    frames: Vec<Pfn>,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        for pin in self.pins.drain(..) {
            self.of.kernel.phys.unpin(this_cpu(), pin);
        }
    }
}

/// Reads or writes `len` bytes at `offset`, all of it in whole pages; how many bytes.
///
/// # Errors
/// [`Error::Invalid`] unless address, length and offset are multiples of 4096; [`Error::Fault`] for memory that the program cannot write to,
/// or that is shared. What was done before an error counts.
pub(super) async fn transfer(
    of: Of<'_>,
    file: &File,
    (direction, offset): (Direction, u64),
    (address, len): (u64, u64),
) -> Result<u64, Error> {
    let is_whole = [offset, address, len]
        .iter()
        .all(|it| it.is_multiple_of(PAGE_SIZE));
    if !is_whole {
        return Err(Error::Invalid);
    }
    let mut done = 0;
    while done < len {
        let nr_pages = ((len - done) / PAGE_SIZE).min(MOST_PAGES);
        let index = u32::try_from((offset + done) / PAGE_SIZE).map_err(|_| Error::Invalid)?;
        let part = part(of, file, (direction, index), (address + done, nr_pages)).await;
        match part {
            Ok(bytes) => done += bytes,
            Err(error) if done == 0 => return Err(error),
            Err(_) => break,
        }
        if part != Ok(nr_pages * PAGE_SIZE) {
            break;
        }
    }
    Ok(done)
}

async fn part(
    of: Of<'_>,
    file: &File,
    (direction, index): (Direction, u32),
    (address, nr_pages): (u64, u64),
) -> Result<u64, Error> {
    let pinned = pin(of, address, nr_pages).await?;
    let frames = &pinned.frames;
    loop {
        // Not to be given up: the disk is at the frames until it has answered, which it does.
        let outcome = match direction {
            Direction::Read => {
                let read = of.root.read_direct(file, index, frames);
                of.program.wait_for(steps(read)).await
            }
            Direction::Write => {
                let written = of.root.write_direct(file, index, frames);
                let written = of.program.wait_for(steps(written)).await;
                written.map(|()| nr_pages * PAGE_SIZE)
            }
        };
        match outcome {
            Ok(bytes) => {
                let count = match direction {
                    Direction::Read => &READ_PAGES,
                    Direction::Write => &WRITTEN_PAGES,
                };
                count.fetch_add(bytes.div_ceil(PAGE_SIZE), Relaxed);
                return Ok(bytes);
            }
            Err(FileError::OutOfMemory) => {
                until_memory(of.kernel, of.program, Gfp::USER)
                    .await
                    .map_err(file_error)?;
            }
            Err(error) => return Err(file_error(error)),
        }
    }
}

/// Pins pages of the program, each of which becomes its own first: all of them at a time, as nobody may wait with some. Those of registered buffers are
/// pinned already, and once more: the program may have mapped other memory at their addresses since.
async fn pin(of: Of<'_>, address: u64, nr_pages: u64) -> Result<Pinned<'_>, Error> {
    let addresses: Vec<u64> = (0..nr_pages).map(|page| address + page * PAGE_SIZE).collect();
    let pins = fault::copy(of.kernel, of.program, |mm| {
        mm.pin_user_pages(this_cpu(), of.space, &addresses, "direct I/O")
    });
    let pins = pins.await.map_err(copy_error)?;
    let frames: Vec<Pfn> = pins.iter().map(Pin::pfn).collect();
    let kept = addresses.iter().zip(&frames);
    let kept = kept.filter(|&(&va, &frame)| of.program.registered.frame_at(va) == Some(frame));
    REGISTERED_PAGES.fetch_add(kept.count() as u64, Relaxed);
    Ok(Pinned { of, pins, frames })
}

/// The counters, as lines of `/proc/vmstat`.
pub(crate) fn vmstat(out: &mut String) -> fmt::Result {
    writeln!(out, "direct_read_pages {}", READ_PAGES.load(Relaxed))?;
    writeln!(out, "direct_written_pages {}", WRITTEN_PAGES.load(Relaxed))?;
    writeln!(out, "direct_registered_pages {}", REGISTERED_PAGES.load(Relaxed))
}
