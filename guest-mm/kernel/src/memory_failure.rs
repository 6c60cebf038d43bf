//! Frames that are taken out of use while the guest runs, because an operator says that they fail (`poison`). What becomes of their contents is told by
//! [`guest_mm::memory_failure`]; here programs end that have lost something, and blocks with too many such frames go out of use.

use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::cpu::this_cpu;
use crate::process::{Program, ProgramRef};
use crate::resize::kernel_pages::{have_owners_move, move_driver};
use crate::resize::orders::order;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicU32, Ordering};
use guest_kernel::control_tree::OnlinePolicy;
use guest_mm::memory_failure::{Contents, MemoryFailureError};
use guest_mm::{BlockIndex, BlockState, FrameState, KernelUse, PAGE_SIZE, Pfn, SpaceId};
use guest_sync::Cpu;

/// How often a frame is tried on which somebody is at work, and how long that one is given in between.
const TRIES: u32 = 50;
const PAUSE_NS: u64 = 10_000_000;
/// How often the owner of a page of the kernel's own is asked to move it: it, or somebody else, may just be using what is in there.
const OWNER_TRIES: u32 = 10;
/// Pages that are reclaimed when there is no frame for the contents of another.
const RECLAIM_PAGES: u64 = 512;

/// A block with more failed frames than this goes out of use, unless an operator says otherwise (`memory/poison_limit`).
const LIMIT: u32 = 16;

/// How much is known of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Severity {
    /// It has its contents, and is not to be trusted with others.
    Soft,
    /// Its contents are gone.
    Hard,
}

impl Severity {
    /// The one with that word.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        match name {
            "soft" => Some(Self::Soft),
            "hard" => Some(Self::Hard),
            _ => None,
        }
    }
}

/// What has happened, and what an operator wants.
pub(crate) struct MemoryFailures {
    /// Failed frames that a block may have and stay in use.
    limit: AtomicU32,
    /// Programs that ended because they lost something.
    kills: AtomicU32,
}

impl Default for MemoryFailures {
    fn default() -> Self {
        Self {
            limit: AtomicU32::new(LIMIT),
            kills: AtomicU32::new(0),
        }
    }
}

impl MemoryFailures {
    /// Failed frames that a block may have and stay in use.
    pub(crate) fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets how many those are, from the next failure on.
    pub(crate) fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// A program has lost a page and ends for it: because somebody said so, or because it has touched the page before that. It counts once.
    pub(crate) fn ends(&self, program: &Program) {
        if !program.has_lost_a_page.swap(true, Ordering::Relaxed) {
            self.kills.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// For `vmstat`: frames out of use, and programs that ended for it.
pub(crate) fn vmstat(out: &mut String, kernel: &Kernel) -> core::fmt::Result {
    writeln!(out, "nr_poisoned {}", kernel.phys.poisoned_frames().len())?;
    writeln!(
        out,
        "poison_kill {}",
        kernel.failures.kills.load(Ordering::Relaxed)
    )
}

/// For `meminfo`: memory that is out of use.
pub(crate) fn meminfo(out: &mut String, kernel: &Kernel) -> core::fmt::Result {
    let kib = kernel.phys.poisoned_frames().len() as u64 * PAGE_SIZE / 1024;
    writeln!(out, "{:<20}{kib:>4} kB", "HardwareCorrupted:")
}

/// Takes a frame out of use. What was done, a fact a line.
///
/// # Errors
/// Why it is still in use.
pub(crate) async fn poison(kernel: &'static Kernel, pfn: Pfn, severity: Severity) -> Result<String, String> {
    let mut text = String::new();
    let contents = take(kernel, pfn, severity, &mut text).await;
    // Programs have lost something even if the frame is still busy.
    let contents = contents.map_err(|error| match text.trim_end() {
        "" => format!("{error}"),
        ends => format!("{error}; {}", ends.replace('\n', "; ")),
    })?;
    log!(
        Warning,
        "memory failure: {pfn} is out of use, its contents: {}",
        contents.name()
    );
    text.insert_str(0, &format!("{pfn} is out of use: {}\n", contents.name()));
    if let Some(block) = kernel.phys.block_of(pfn) {
        text += &contain(kernel, block).await;
    }
    kernel.memory_came.raise();
    kernel.validate();
    Ok(text)
}

/// Takes the frame out of use; adds to `text` which programs end for it.
async fn take(
    kernel: &'static Kernel,
    pfn: Pfn,
    severity: Severity,
    text: &mut String,
) -> Result<Contents, MemoryFailureError> {
    let (mut tries, mut has_left) = (0, false);
    loop {
        let outcome = match severity {
            Severity::Soft => kernel.mm().soft_offline_with(this_cpu(), pfn, |report| {
                have_owners_move(kernel, report);
            }),
            Severity::Hard => lose(kernel, pfn, text),
        };
        tries += 1;
        match outcome {
            Err(MemoryFailureError::Busy(_)) if tries < TRIES => kernel.timers().sleep(PAUSE_NS).await,
            Err(MemoryFailureError::NoMemory(_)) if tries < TRIES => {
                let here = this_cpu as fn() -> &'static Cpu;
                let reclaimed = kernel.reclaim.reclaim_pages(here, RECLAIM_PAGES).await;
                if !reclaimed.has_progress {
                    return outcome;
                }
            }
            Err(MemoryFailureError::Unmovable { used_for, .. })
                if severity == Severity::Soft && tries < OWNER_TRIES =>
            {
                if !have_owner_try(kernel, pfn, used_for).await {
                    return outcome;
                }
                has_left |= matches!(used_for, KernelUse::Dma { .. });
            }
            // Its driver has let go of it in between.
            Ok(Contents::Nothing) if has_left => return Ok(Contents::Moved),
            outcome => return outcome,
        }
    }
}

/// Takes a frame out of use whose contents are gone. Who has lost them ends at once: later the number of an address space may be another's.
fn lose(kernel: &Kernel, pfn: Pfn, text: &mut String) -> Result<Contents, MemoryFailureError> {
    // A program that touches its lost page at once may be gone before it is looked for.
    let (known, mut losers) = (holders(kernel), Vec::new());
    let outcome = kernel.mm().memory_failure(this_cpu(), pfn, &mut losers);
    *text += &end(kernel, pfn, &losers, known);
    outcome
}

/// The owner of a page of the kernel's own has not moved it: it is asked, or gets a moment to let go of it. False when that is of no use.
async fn have_owner_try(kernel: &'static Kernel, pfn: Pfn, used_for: KernelUse) -> bool {
    match used_for {
        KernelUse::Dma { driver } => {
            let nr_pages = match kernel.phys.frame_state(pfn) {
                FrameState::Allocated(order) => order.nr_pages(),
                _ => 1,
            };
            move_driver(kernel, driver, nr_pages).await
        }
        KernelUse::Slab | KernelUse::Vmalloc { .. } | KernelUse::PageTable => {
            kernel.timers().sleep(PAUSE_NS).await;
            true
        }
        KernelUse::Other => false,
    }
}

/// The programs that have memory, by their address spaces.
fn holders(kernel: &Kernel) -> Vec<(SpaceId, ProgramRef)> {
    let programs = kernel.programs.lock();
    let space_of = |program: &ProgramRef| Some((program.status.lock().space?, program.clone()));
    programs.iter().filter_map(space_of).collect()
}

/// Ends the programs that have lost a page, and says so: those that were `known` before, and those that came to the page since.
fn end(kernel: &Kernel, pfn: Pfn, losers: &[SpaceId], mut known: Vec<(SpaceId, ProgramRef)>) -> String {
    for (space, program) in holders(kernel) {
        if !known.iter().any(|(before, _)| *before == space) {
            known.push((space, program));
        }
    }
    let mut text = String::new();
    for (_, program) in known.iter().filter(|(space, _)| losers.contains(space)) {
        kernel.failures.ends(program);
        log!(
            Error,
            "memory failure: {} [{}] has lost a page in {pfn}, and is ended",
            program.name(),
            program.pid
        );
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "program {} ({}) has lost a page, and is ended",
            program.pid,
            program.name()
        );
        program.doom();
    }
    text
}

/// Whether a block may come into use.
///
/// # Errors
/// It has too many failed frames.
pub(crate) fn check_limit(kernel: &Kernel, block: BlockIndex) -> Result<(), String> {
    let (failed, limit) = (kernel.phys.poisoned_pages(block), kernel.failures.limit());
    match failed > limit {
        true => Err(format!(
            "block {} has {failed} failed frames, more than the {limit} of memory/poison_limit: it comes into use with a higher limit, or once the \
             host has given it other memory",
            block.0
        )),
        false => Ok(()),
    }
}

/// Takes a block out of use that has too many failed frames. What came of that; nothing if there is no need.
async fn contain(kernel: &'static Kernel, block: BlockIndex) -> String {
    let (failed, limit) = (kernel.phys.poisoned_pages(block), kernel.failures.limit());
    let is_online = kernel.phys.hotplug_region().state(block) == Some(BlockState::Online);
    if failed <= limit || !is_online {
        return String::new();
    }
    let number = block.0;
    match order(kernel, block, OnlinePolicy::Offline).await {
        Ok(()) => {
            log!(
                Warning,
                "memory failure: block {number} has {failed} failed frames, and is out of use"
            );
            format!("block {number} has {failed} failed frames, more than {limit}, and is out of use\n")
        }
        Err(why) => format!(
            "block {number} has {failed} failed frames, more than {limit}, and is still in use: {why}\n"
        ),
    }
}
