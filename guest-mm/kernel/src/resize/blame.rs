//! Who keeps a page where it is, by name: what an operator needs to know when a block does not leave.

use crate::disks;
use crate::files;
use crate::kernel::Kernel;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guest_mm::blocks::IsolateError;
use guest_mm::migrate::{Refusal, RefusalReason};
use guest_mm::{BlockIndex, KernelUse, Pfn};

/// A page that has kept a block from leaving.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blame {
    /// The block.
    pub(super) block: BlockIndex,
    /// The page, and why it stayed.
    pub(super) refusal: Refusal,
}

impl Blame {
    /// In words: the block, the frame, its size, and who holds it.
    pub(crate) fn describe(&self, kernel: &Kernel) -> String {
        format!("block {}: {}", self.block.0, refusal(kernel, &self.refusal))
    }
}

/// Why a page stayed, with the names of the programs that it is held for, or of the cache or disk that it belongs to.
pub(super) fn refusal(kernel: &Kernel, refusal: &Refusal) -> String {
    match refusal.reason {
        RefusalReason::Pinned { .. } | RefusalReason::UnderIo { .. } => {
            with_owners(kernel, refusal.to_string(), refusal.pfn)
        }
        RefusalReason::Unmovable(used_for) => {
            let owner = match used_for {
                KernelUse::Slab => kernel.slabs.name_of(refusal.pfn).map(String::from),
                KernelUse::Dma { driver } => disks::name_of_driver(kernel, driver),
                _ => None,
            };
            owner.map_or_else(|| refusal.to_string(), |name| format!("{refusal}: of {name}"))
        }
        RefusalReason::Busy => refusal.to_string(),
    }
}

/// Why a block cannot be taken out of use, with the names of the programs that a page is held for.
pub(super) fn isolate_error(kernel: &Kernel, error: &IsolateError) -> String {
    match error {
        IsolateError::Pinned { pfn, .. } => with_owners(kernel, error.to_string(), *pfn),
        _ => error.to_string(),
    }
}

fn with_owners(kernel: &Kernel, mut text: String, head: Pfn) -> String {
    let space = kernel.phys.pinned_for(head);
    let mut pids = files::ring_owners(kernel, head);
    let programs = kernel.programs.lock();
    let of_space = programs
        .iter()
        .filter(|program| space.is_some() && program.status.lock().space == space);
    pids.extend(of_space.map(|program| program.pid));
    let owners = programs.iter().filter(|program| pids.contains(&program.pid));
    let names: Vec<String> = owners
        .map(|program| format!("{}[{}]", program.name(), program.pid))
        .collect();
    if !names.is_empty() {
        text.push_str(" of ");
        text.push_str(&names.join(", "));
    }
    text
}
