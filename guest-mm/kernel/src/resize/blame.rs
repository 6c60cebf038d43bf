//! Who keeps a page where it is, by name, and what else keeps a block: what an operator needs to know when one does not leave.

use crate::disks;
use crate::drivers;
use crate::files;
use crate::kernel::Kernel;
use crate::swap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use guest_mm::blocks::IsolateError;
use guest_mm::migrate::{BusyWith, PageKind, Refusal, RefusalReason};
use guest_mm::{BlockIndex, KernelUse, Pfn};
use guest_virtio::plan::StallReason;

/// What has kept a block from leaving.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blame {
    /// The block; `None` if none could even be begun with.
    pub(crate) block: Option<BlockIndex>,
    pub(crate) cause: Cause,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Cause {
    /// A page has stayed.
    Page(Refusal),
    /// There is no room elsewhere.
    Shortage(Shortage),
}

/// Memory that cannot be done without, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shortage {
    /// What is on the block, or its whole size, is taken elsewhere.
    pub(crate) needed: u64,
    /// Free, and what can be reclaimed, without the reserve.
    pub(crate) spare: u64,
    /// What must remain for programs.
    pub(crate) reserve: u64,
}

/// The last of each sort since a round began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Blames([Option<Blame>; 3]);

impl Blame {
    /// In words.
    pub(crate) fn describe(&self, kernel: &Kernel) -> String {
        let why = self.cause.describe(kernel);
        match self.block {
            Some(block) => format!("block {}: {why}", block.0),
            None => why,
        }
    }

    /// Why a resize stalls for which this is to blame.
    pub(super) const fn stall(&self) -> StallReason {
        match self.cause {
            Cause::Page(refusal) if refusal.reason.is_busy() => StallReason::Busy,
            Cause::Page(_) => StallReason::Pinned,
            Cause::Shortage(_) => StallReason::NoMemory,
        }
    }
}

impl Cause {
    /// In words: the frame, its size and kind, and who holds it; or how much memory is missing.
    pub(super) fn describe(&self, kernel: &Kernel) -> String {
        match self {
            Self::Page(page) => refusal(kernel, page),
            Self::Shortage(shortage) => shortage.to_string(),
        }
    }
}

impl Blames {
    pub(super) fn add(&mut self, blame: Blame) {
        if let Some(place) = Self::place(blame.stall()) {
            self.0[place] = Some(blame);
        }
    }

    /// What is to blame for a stall.
    pub(super) fn of(&self, stall: StallReason) -> Option<Blame> {
        self.0[Self::place(stall)?]
    }

    const fn place(stall: StallReason) -> Option<usize> {
        match stall {
            StallReason::Pinned => Some(0),
            StallReason::Busy => Some(1),
            StallReason::NoMemory => Some(2),
            StallReason::DeviceRefused | StallReason::RegionFull => None,
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [needed, spare, reserve] = [self.needed, self.spare, self.reserve].map(|bytes| bytes >> 10);
        write!(
            f,
            "programs need its memory: {needed} KiB are needed elsewhere, and {spare} KiB are to spare beyond the {reserve} KiB that must remain"
        )
    }
}

/// Why a page stayed, with the names of the programs that it is held for, or of the cache or disk that it belongs to or is under way to.
pub(super) fn refusal(kernel: &Kernel, refusal: &Refusal) -> String {
    let text = refusal.to_string();
    match (refusal.reason, holder(kernel, refusal)) {
        (RefusalReason::Pinned { .. } | RefusalReason::UnderIo { .. }, _) => {
            with_owners(kernel, text, refusal.pfn)
        }
        (RefusalReason::Unmovable(_), Some(owner)) => format!("{text}: of {owner}"),
        // The disk has a name.
        (RefusalReason::Busy(_), Some(disk)) => match text.strip_suffix("a disk") {
            Some(text) => format!("{text}{disk}"),
            None => text,
        },
        (_, None) => text,
    }
}

/// Who has a page that stayed, if that is known.
pub(crate) fn holder(kernel: &Kernel, refusal: &Refusal) -> Option<String> {
    match (refusal.reason, refusal.kind) {
        (RefusalReason::Pinned { holder } | RefusalReason::UnderIo { holder }, _) => {
            Some(with_owners(kernel, holder.into(), refusal.pfn))
        }
        (RefusalReason::Unmovable(KernelUse::Slab), _) => kernel.slabs.name_of(refusal.pfn).map(String::from),
        (RefusalReason::Unmovable(KernelUse::Dma { driver }), _) => {
            drivers::find(kernel, driver).map(|driver| driver.device.to_string())
        }
        (RefusalReason::Busy(BusyWith::Reading | BusyWith::Writeback), kind) => match kind {
            PageKind::File { .. } => disks::name_of_root(kernel),
            PageKind::SwapCache { area } => swap::name_of_disk(kernel, area?),
            _ => None,
        },
        (RefusalReason::Busy(BusyWith::FileSystem), kind) => kind.file_system().map(String::from),
        _ => None,
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
