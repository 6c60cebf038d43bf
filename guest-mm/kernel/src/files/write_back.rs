//! Dirty pages on their way to the disk: by age (Linux 2.6 `kupdate`), by number (`pdflush`), and before the machine goes.

use super::{RootFs, steps};
use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::cpu::this_cpu;
use guest_kernel::sync::yield_now;
use guest_mm::fs::mounted::Age;
use guest_mm::mm::FilePlace;
use guest_mm::mm::mapping::FileError;

/// Most pages that a round begins with (Linux `MAX_WRITEBACK_PAGES`).
const MOST_PAGES: u32 = 1024;
/// How long those who write back by number wait when all that is dirty is on its way.
const BUSY_NS: u64 = 20_000_000;

/// Starts the daemons.
pub(super) fn start(kernel: &'static Kernel, root: &'static RootFs) {
    let here = this_cpu().id();
    kernel.start_task(here, by_age(kernel, root));
    kernel.start_task(here, by_number(kernel, root));
}

async fn by_age(kernel: &'static Kernel, root: &'static RootFs) {
    let (interval, expire) = kernel.dirty_ns;
    let mut failed = 0_u64;
    loop {
        kernel.timers().sleep(interval).await;
        let age = Age {
            now: kernel.clock.now(),
            expire,
            nr_pages: MOST_PAGES,
        };
        report_lost(root);
        if let Err(error) = steps(root.write_back_old(age)).await {
            failed += 1;
            if failed.is_power_of_two() {
                log!(
                    Error,
                    "file system: cannot commit: {error}; {failed} times since boot"
                );
            }
        }
    }
}

/// Says which pages are lost, whose programs hear of it when they ask (`fsync`).
fn report_lost(root: &RootFs) {
    while let Some(FilePlace { mapping, index }) = root.take_lost_page() {
        match root.name_of(mapping) {
            Some(name) => log!(
                Error,
                "file system: page {index} of {} could not be written, and is lost",
                name.path
            ),
            None => log!(
                Error,
                "file system: page {index} of a deleted file could not be written"
            ),
        }
    }
}

async fn by_number(kernel: &'static Kernel, root: &'static RootFs) {
    loop {
        if steps(root.write_back_many(MOST_PAGES)).await == 0 {
            kernel.timers().sleep(BUSY_NS).await;
        }
        yield_now().await;
    }
}

/// Has everything on the disk: before the machine is switched off or reset.
pub(crate) async fn sync_all(kernel: &'static Kernel) {
    let Some(root) = kernel.files.root() else {
        return;
    };
    match steps(root.sync()).await {
        Ok(()) => {}
        Err(FileError::Io) => log!(Error, "file system: not all of it could be written"),
        Err(error) => log!(Error, "file system: {error}"),
    }
}
