//! Single frames: what is known of one, and which one a program has at an address (Linux `/proc/kpageflags`, `/proc/PID/pagemap`).

use core::fmt;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::Mm;
use crate::page::KernelUse;
use crate::pagetable::Entry;
use crate::pfn::{PAGE_SIZE, Pfn};
use crate::phys::{FrameState, PhysicalMemory};

/// The columns of [`frame`] and [`pagemap`].
pub const FRAME_COLUMNS: &str = "PFN STATE HEAD COUNT MAPCOUNT NODE BLOCK FLAGS";

/// What is known of a frame, in the columns of [`FRAME_COLUMNS`]: those behind HEAD are of the chunk that begins there.
///
/// # Errors
/// Those of the writer.
pub fn frame(out: &mut impl fmt::Write, phys: &PhysicalMemory<'_>, pfn: Pfn) -> fmt::Result {
    let state = match phys.frame_state(pfn) {
        FrameState::Free(_) => "free",
        FrameState::Isolated(_) => "isolated",
        FrameState::Cached(_) => "cached",
        FrameState::Allocated(_) => "allocated",
        FrameState::Reserved => "reserved",
        FrameState::Poisoned => "poisoned",
        FrameState::Offline => "offline",
        FrameState::Changing => "changing",
    };
    let head = phys.head_of(pfn).unwrap_or(pfn);
    let block = phys.block_of(pfn);
    let page = phys.page(head);
    let (count, mapcount) = page.map_or((0, 0), |page| (page.count(), page.mapcount()));
    write!(
        out,
        "{:#x} {state} {:#x} {count} {mapcount} ",
        pfn.number(),
        head.number()
    )?;
    match phys.zone_of(pfn) {
        Some(zone) => write!(out, "{} ", zone.node())?,
        None => out.write_str("- ")?,
    }
    match block {
        Some(block) => write!(out, "{} ", block.0)?,
        None => out.write_str("- ")?,
    }
    match page {
        // Of those without flags the owner is known.
        Some(page) => match page.kernel_use() {
            Some(KernelUse::Vmalloc { .. }) => writeln!(out, "{{vmalloc}}"),
            Some(KernelUse::Dma { .. }) => writeln!(out, "{{dma}}"),
            _ => writeln!(out, "{:?}", page.flags()),
        },
        None => writeln!(out, "-"),
    }
}

/// What a program has at an address and behind it, a page a line: the address, and then the frame as [`frame`] shows it, or what is there instead of
/// one.
///
/// # Errors
/// Those of the writer, and when there is no such address space.
pub fn pagemap<F: Frames, M: Mmu>(
    out: &mut impl fmt::Write,
    mm: &Mm<'_, F, M>,
    id: SpaceId,
    (va, nr_pages): (u64, u64),
) -> fmt::Result {
    writeln!(out, "ADDRESS {FRAME_COLUMNS}")?;
    let start = va / PAGE_SIZE * PAGE_SIZE;
    for va in (start..)
        .step_by(crate::pfn::PAGE_BYTES)
        .take(usize::try_from(nr_pages).unwrap_or(usize::MAX))
    {
        let (entry, pfn) = mm.entry_at(id, va).ok_or(fmt::Error)?;
        write!(out, "{va:#x} ")?;
        match entry {
            _ if entry.is_present() => frame(out, mm.phys, pfn)?,
            _ => writeln!(out, "{}", absent(entry))?,
        }
    }
    Ok(())
}

/// What is in the place of a frame.
fn absent(entry: Entry) -> &'static str {
    match entry {
        _ if entry.is_migration() => "migrating",
        _ if entry.is_poisoned() => "poisoned",
        _ if entry.swap_slot().is_some() => "swapped",
        _ if entry.file_index().is_some() => "file",
        _ => "none",
    }
}
