//! The swap areas of the command line, and the task that carries pages to them and back.
//!
//! An area is a disk that `ballast disk swap` has made one; each has a header in its first block, which is looked at before any page goes
//! there. The memory manager says what is to be read and written (`Mm::next_io`), one task on the boot CPU takes it to the disks, reads before writes,
//! and what the disks say goes back from their tasks.

use crate::disks;
use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::cpu::this_cpu;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};
use guest_kernel::cmdline::SwapDisk;
use guest_kernel::drive::Drive;
use guest_kernel::sync::{Signal, race};
use guest_mm::disk::{BLOCK_SIZE, BlockNr, IoError, Request};
use guest_mm::frames::Frames;
use guest_mm::mm::{IoChoice, PageIo};
use guest_mm::pfn::{PAGE_BYTES, Pfn};
use guest_mm::phys::AllocError;
use guest_mm::swap::{AreaHeader, AreaNr, AreaUsage, HeaderError, SwapOnError};
use guest_mm::{Gfp, Order};
use guest_sync::SpinLock;

/// Pages that one request reads, at most: as many as are read ahead together, so that they come with one interrupt.
const READ_PAGES: usize = 128;
/// Pages that one request writes, at most: if each is a segment of its own, four such requests fit in a disk's queue of 256 entries,
/// beside their headers.
const WRITE_PAGES: usize = 62;
/// Pages that are being written at a time, at most: reads, for which programs wait, should not stand behind more.
const MOST_WRITES: usize = 512;

/// The areas, and what is on its way to them.
pub(crate) struct Swap {
    /// By number. Nothing else is locked under this lock.
    areas: SpinLock<Vec<Area>>,
    /// Pages that the disks are writing.
    writing: AtomicUsize,
    /// Some were written.
    written: Signal,
}

#[derive(Clone, Copy)]
struct Area {
    drive: &'static Drive,
    /// Number of its disk, which is its name.
    disk: usize,
    /// Requests that failed.
    errors: u64,
}

impl Swap {
    pub(crate) const fn new() -> Self {
        Self {
            areas: SpinLock::new(Vec::new()),
            writing: AtomicUsize::new(0),
            written: Signal::new(),
        }
    }

    fn area(&self, area: AreaNr) -> Option<Area> {
        self.areas.lock().get(area.index()).copied()
    }
}

/// Why a disk is no swap area.
enum NoArea {
    NoDisk,
    ReadOnly,
    /// Whose it is.
    Taken(&'static str),
    Memory(AllocError),
    Io(IoError),
    Header(HeaderError),
    SwapOn(SwapOnError),
}

impl fmt::Display for NoArea {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDisk => f.write_str("there is no such disk"),
            Self::ReadOnly => f.write_str("it can be read only"),
            Self::Taken(owner) => write!(f, "it is in use already, as {owner}"),
            Self::Memory(error) => error.fmt(f),
            Self::Io(error) => error.fmt(f),
            Self::Header(HeaderError::NotASwapArea) => {
                f.write_str("not a swap area: `ballast disk swap` makes one")
            }
            Self::Header(error) => error.fmt(f),
            Self::SwapOn(error) => error.fmt(f),
        }
    }
}

/// Takes the areas into use, in the order of the command line, and starts the task that serves them. What cannot be used is reported, and
/// left alone.
pub(crate) async fn start(kernel: &'static Kernel, swaps: Vec<SwapDisk>) {
    // As in Linux: who has no priority comes after all before him.
    let mut last = 0_i16;
    for SwapDisk { disk, priority } in swaps {
        let priority = priority.unwrap_or_else(|| {
            last = last.saturating_sub(1);
            last
        });
        match swap_on(kernel, &disk, priority).await {
            Ok(mib) => log!(Info, "{disk}: swap area of {mib} MiB, priority {priority}"),
            Err(error) => log!(Error, "swap={disk}: {error}"),
        }
    }
    if !kernel.swap.areas.lock().is_empty() {
        kernel.start_task(this_cpu().id(), serve(kernel));
    }
}

async fn swap_on(kernel: &'static Kernel, disk: &str, priority: i16) -> Result<u64, NoArea> {
    let (index, drive) = disks::find(kernel, disk).ok_or(NoArea::NoDisk)?;
    if drive.is_read_only() {
        return Err(NoArea::ReadOnly);
    }
    let block = first_block(kernel, drive).await?;
    let header = AreaHeader::from_block(&block, drive.nr_blocks()).map_err(NoArea::Header)?;
    disks::claim(kernel, index, "a swap area").map_err(NoArea::Taken)?;
    let area = Area {
        drive,
        disk: index,
        errors: 0,
    };
    let number = kernel.mm().swap_on(&header, priority);
    let number = number.map_err(NoArea::SwapOn)?;
    let mut areas = kernel.swap.areas.lock();
    debug_assert_eq!(areas.len(), number.index());
    areas.push(area);
    Ok((u64::from(header.nr_blocks) * BLOCK_SIZE) >> 20)
}

async fn first_block(kernel: &'static Kernel, drive: &Drive) -> Result<Box<[u8; PAGE_BYTES]>, NoArea> {
    let frame = kernel.phys.alloc_pages(this_cpu(), Gfp::KERNEL, Order::ZERO);
    let frame: Pfn = frame.map_err(NoArea::Memory)?;
    let read = drive.request(Request::Read(BlockNr(0), alloc::vec![frame])).await;
    let mut block = Box::new([0; PAGE_BYTES]);
    kernel.frames.read_bytes(frame, 0, &mut block[..]);
    if let Err(error) = kernel.phys.free_pages(this_cpu(), frame) {
        panic!("the kernel's own frame: {error}");
    }
    read.map(|()| block).map_err(NoArea::Io)
}

/// Takes what the memory manager asks for to the disks, for ever.
async fn serve(kernel: &'static Kernel) {
    loop {
        let written = kernel.swap.written.count();
        let (choice, most) = match kernel.swap.writing.load(Ordering::Relaxed) {
            ..MOST_WRITES => (IoChoice::All, WRITE_PAGES),
            _ => (IoChoice::Reads, READ_PAGES),
        };
        let read = kernel.mm().next_io(IoChoice::Reads, READ_PAGES);
        match read.or_else(|| kernel.mm().next_io(choice, most)) {
            Some((request, io)) => begin(kernel, request, io),
            None => {
                let room = kernel.swap.written.after(written);
                race(kernel.swap_io_wanted(choice), room).await;
            }
        }
    }
}

/// Has a disk carry out a request.
fn begin(kernel: &'static Kernel, request: Request, io: PageIo) {
    let Some(area) = kernel.swap.area(io.area()) else {
        return kernel.mm().end_io(this_cpu(), io, Err(IoError));
    };
    let writes = if io.is_write() { io.nr_pages() } else { 0 };
    kernel.swap.writing.fetch_add(writes, Ordering::Relaxed);
    let done = move |result| {
        if result == Err(IoError) {
            note_error(kernel, &io);
        }
        kernel.mm().end_io(this_cpu(), io, result);
        kernel.swap.writing.fetch_sub(writes, Ordering::Relaxed);
        if writes > 0 {
            kernel.swap.written.raise();
        }
    };
    area.drive.submit(request, Box::new(done));
}

/// Counts a request that failed, and reports the first, the second, the fourth, and so on.
fn note_error(kernel: &Kernel, io: &PageIo) {
    let mut areas = kernel.swap.areas.lock();
    let Some(area) = areas.get_mut(io.area().index()) else {
        return;
    };
    area.errors += 1;
    let Area { disk, errors, .. } = *area;
    drop(areas);
    if errors.is_power_of_two() {
        let (what, pages) = (if io.is_write() { "write" } else { "read" }, io.nr_pages());
        log!(
            Error,
            "{}: swap: a {what} of {pages} pages failed, {errors} requests since boot",
            disks::name(disk)
        );
    }
}

/// The name of the disk that an area is on.
pub(crate) fn name_of_disk(kernel: &Kernel, area: AreaNr) -> Option<String> {
    kernel.swap.area(area).map(|area| disks::name(area.disk))
}

/// Every area, as `/proc/swaps`. Sizes in KiB.
pub(crate) fn report(out: &mut String, kernel: &Kernel) -> fmt::Result {
    writeln!(out, "FILENAME TYPE SIZE_KIB USED_KIB PRIORITY ERRORS")?;
    for usage in kernel.mm().swap_areas() {
        let AreaUsage {
            area,
            priority,
            total,
            free,
        } = usage;
        let Some(Area { disk, errors, .. }) = kernel.swap.area(area) else {
            continue;
        };
        let kib = |slots: u32| u64::from(slots) * BLOCK_SIZE / 1024;
        writeln!(
            out,
            "/dev/{} partition {} {} {priority} {errors}",
            disks::name(disk),
            kib(total),
            kib(total - free)
        )?;
    }
    Ok(())
}
