//! How fast a disk is by itself: written and read by its driver alone, with neither page cache nor file system, and nobody who looks at
//! what is read. That is what reads and writes of files, and swap, are measured by.

use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::cpu::this_cpu;
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use guest_kernel::drive::Drive;
use guest_kernel::sync::Signal;
use guest_mm::disk::{BLOCK_SIZE, BlockNr, IoError, Request};
use guest_mm::pfn::Pfn;
use guest_mm::phys::AllocError;
use guest_mm::{Gfp, Order};
use guest_sync::SpinLock;

/// Requests that are under way at a time.
const DEPTH: usize = 8;
/// Pages of a request: as many as the page cache reads ahead at most.
const REQUEST_PAGES: usize = 32;
/// Most of a disk that is used, in bytes.
const LIMIT: u64 = 64 << 20;

/// Writes the disk full, 64 MiB of it at most, flushes it and reads it back, and says how long that took. What was on the disk is lost.
pub(crate) async fn measure(kernel: &'static Kernel, (index, drive): (usize, &'static Drive)) {
    let name = super::name(index);
    let mut slots = Vec::new();
    let nr_pages = DEPTH * REQUEST_PAGES;
    let pages: Result<Vec<Pfn>, AllocError> = (0..nr_pages)
        .map(|_| kernel.phys.alloc_pages(this_cpu(), Gfp::KERNEL, Order::ZERO))
        .collect();
    match pages {
        Ok(pages) => slots.extend(pages.chunks(REQUEST_PAGES).map(<[Pfn]>::to_vec)),
        Err(error) => return log!(Error, "{name}: no raw rate: {error}"),
    }
    let nr_requests = drive.nr_blocks().min(LIMIT / BLOCK_SIZE) / REQUEST_PAGES as u64;
    let (write, read) = (Request::Write as Make, Request::Read as Make);
    let start = kernel.clock.now();
    let mut errors = transfer(drive, &slots, nr_requests, write).await;
    errors += u32::from(drive.request(Request::Flush).await.is_err());
    let written = kernel.clock.now();
    errors += transfer(drive, &slots, nr_requests, read).await;
    let end = kernel.clock.now();
    log!(
        Info,
        "{name}: raw rate: {} pages written and flushed in {} ns, read in {} ns, {errors} requests failed",
        nr_requests * REQUEST_PAGES as u64,
        written - start,
        end - written
    );
    for pfn in slots.into_iter().flatten() {
        if let Err(error) = kernel.phys.free_pages(this_cpu(), pfn) {
            panic!("the kernel's own frame: {error}");
        }
    }
}

/// A request for some pages.
type Make = fn(BlockNr, Vec<Pfn>) -> Request;

/// Requests that came back.
#[derive(Default)]
struct Returned {
    slots: SpinLock<Vec<(usize, Result<(), IoError>)>>,
    more: Signal,
}

/// Goes through the disk once, from its beginning on; how many requests failed.
async fn transfer(drive: &Drive, slots: &[Vec<Pfn>], nr_requests: u64, make: Make) -> u32 {
    let returned = Arc::new(Returned::default());
    let mut idle: Vec<usize> = (0..slots.len()).collect();
    let (mut next, mut errors) = (0, 0);
    loop {
        while next < nr_requests
            && let Some(slot) = idle.pop()
        {
            let given = returned.clone();
            let done = move |result| {
                given.slots.lock().push((slot, result));
                given.more.raise();
            };
            let first = BlockNr(next * REQUEST_PAGES as u64);
            drive.submit(make(first, slots[slot].clone()), Box::new(done));
            next += 1;
        }
        if idle.len() == slots.len() {
            return errors;
        }
        let seen = returned.more.count();
        let back = core::mem::take(&mut *returned.slots.lock());
        if back.is_empty() {
            returned.more.after(seen).await;
        }
        for (slot, result) in back {
            idle.push(slot);
            errors += u32::from(result.is_err());
        }
    }
}
