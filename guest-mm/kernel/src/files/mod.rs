//! Files: the file system of the disk that `root=` names, the tasks that carry its pages and write them back, and what programs
//! ask of it.

mod aio;
mod call;
mod descriptors;
mod direct;
mod image;
mod mount;
mod registered;
mod ring;
mod shm;
mod steps;
mod write_back;

pub(crate) use aio::{Aio, end as end_aio, owners as ring_owners, vmstat as aio_vmstat};
pub(crate) use call::serve;
pub(crate) use descriptors::Descriptors;
pub(crate) use direct::vmstat as direct_vmstat;
pub(crate) use image::{ImageError, open as open_program};
pub(crate) use mount::{Files, INODES, NAMES, RootFs, mount};
pub(crate) use registered::Registered;
pub(crate) use shm::{Shm, anonymous as anonymous_shm, reap as reap_shm, vmstat as shm_vmstat};
pub(crate) use steps::steps;
pub(crate) use write_back::sync_all;

use crate::fault;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::process::{Doomed, Program};
use alloc::string::String;
use core::fmt::{self, Write};
use guest_mm::mm::FilePlace;
use guest_mm::mm::mapping::{FileError, FileSystem};
use guest_mm::{Gfp, Order};

/// Has a block found for a page that is about to be stored to.
///
/// # Errors
/// When there is none, or the disk failed, or the program is to end.
pub(crate) async fn find_block(
    kernel: &'static Kernel,
    program: &Program,
    place: FilePlace,
) -> Result<(), FileError> {
    let root = kernel.files.root().ok_or(FileError::Unknown(place.mapping))?;
    loop {
        let search = steps(root.prepare_write(place.mapping, place.index));
        match program.interruptible(search).await {
            Ok(Err(FileError::OutOfMemory)) => until_memory(kernel, program, Gfp::USER).await?,
            Ok(found) => return found,
            Err(Doomed) => return Err(FileError::OutOfMemory),
        }
    }
}

/// Waits until there is a frame for such a request.
///
/// # Errors
/// When the program is to end.
async fn until_memory(kernel: &'static Kernel, program: &Program, gfp: Gfp) -> Result<(), FileError> {
    let attempt = || {
        let frame = kernel.phys.alloc_pages(this_cpu(), gfp, Order::ZERO).ok()?;
        kernel.phys.free_pages(this_cpu(), frame).ok()
    };
    let came = fault::until_memory_for(kernel, program, gfp, attempt).await;
    came.map_err(|_| FileError::OutOfMemory)
}

/// The counters of the file system, if there is one, as lines of `/proc/vmstat`.
pub(crate) fn vmstat(out: &mut String, kernel: &Kernel) -> fmt::Result {
    let Some(root) = kernel.files.root() else {
        return Ok(());
    };
    let ((names, inodes), pages) = (root.cache_stat(), root.page_ops());
    for (name, value) in [
        ("nr_dentry", names.entries),
        ("nr_dentry_negative", names.negative),
        ("dentry_hit", names.hits),
        ("dentry_miss", names.misses),
        ("dentry_reclaimed", names.reclaimed),
        ("nr_inodes", inodes.inodes),
        ("nr_inodes_held", inodes.held),
        ("inode_hit", inodes.hits),
        ("inode_miss", inodes.misses),
        ("inode_reclaimed", inodes.reclaimed),
        ("fs_page_released", pages.released),
        ("fs_page_invalidated", pages.invalidated),
        ("fs_page_migrated", pages.migrated),
        ("fs_page_lost", pages.lost),
    ] {
        writeln!(out, "{name} {value}")?;
    }
    Ok(())
}
