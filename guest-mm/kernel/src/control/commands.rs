//! Commands with arguments, and those that take a while: the memory of one program, the pool of huge pages, compaction.

use super::{node_moves, tree};
use crate::kcompactd;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::memory_failure::{self, Severity};
use crate::resize::orders::{self, pack};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::fmt::Write;
use guest_mm::compact::Goal;
use guest_mm::{NodeId, Pfn, SpaceId, Zone, report};
use guest_virtio::control::{Command, Reply};

/// The answer, if it is one of these commands.
pub(super) async fn answer(kernel: &'static Kernel, command: &Command<'_>) -> Option<Reply> {
    let words: Vec<&str> = command.arguments().collect();
    let name_of = |mapping| kernel.files.root()?.name_of(mapping);
    let outcome = match (command.name(), &words[..]) {
        ("maps", &[pid]) => of_program(kernel, pid, |out, id| {
            report::maps(out, &kernel.mm(), id, name_of)
        }),
        ("smaps", &[pid]) => of_program(kernel, pid, |out, id| {
            report::smaps(out, &kernel.mm(), id, name_of)
        }),
        ("maps" | "smaps", _) => Err(format!("{} takes a program's number", command.name())),
        ("pagemap", &[pid, at]) => pagemap(kernel, pid, at, "1"),
        ("pagemap", &[pid, at, pages]) => pagemap(kernel, pid, at, pages),
        ("pagemap", _) => Err("pagemap takes a program's number, an address, and a number of pages".into()),
        ("frame", &[pfn]) => frames(kernel, pfn, "1"),
        ("frame", &[pfn, frames_there]) => frames(kernel, pfn, frames_there),
        ("frame", _) => Err("frame takes a frame's number, and how many from there".into()),
        ("poison", &[pfn]) => poison(kernel, pfn, "soft").await,
        ("poison", &[pfn, severity]) => poison(kernel, pfn, severity).await,
        ("poison", _) => Err("poison takes a frame's number, and soft or hard".into()),
        ("hugepages", []) => Ok(pool(kernel)),
        ("hugepages", &[wanted]) => resize_pool(kernel, wanted),
        ("hugepages", _) => Err("hugepages takes one number".into()),
        ("migratepages", &[pid, from, to]) => node_moves::migrate_pages(kernel, pid, (from, to)).await,
        ("migratepages", _) => Err("migratepages takes a program's number and two nodes' numbers".into()),
        ("events", []) => Ok(tree::events(kernel, 0)),
        ("events", &[after]) => number(after)
            .map(|after| tree::events(kernel, after))
            .ok_or_else(|| format!("{after} is not the number of an event")),
        ("events", _) => Err("events takes the number of the event after which to begin".into()),
        ("cancel", []) => orders::cancel(kernel).await,
        ("cancel", _) => Err("cancel takes no arguments".into()),
        ("pack", []) => pack(kernel).await,
        ("pack", _) => Err("pack takes no arguments".into()),
        ("compact", []) => Ok(compact(kernel).await),
        ("compact", _) => Err("compact takes no arguments".into()),
        _ => return None,
    };
    Some(outcome.map_or_else(Reply::Err, Reply::Ok))
}

/// What `write` says of the address space of a program that has one.
fn of_program(
    kernel: &Kernel,
    pid: &str,
    write: impl FnOnce(&mut String, SpaceId) -> fmt::Result,
) -> Result<String, String> {
    let space = space_of(kernel, pid)?;
    let mut text = String::new();
    write(&mut text, space).map_err(|fmt::Error| format!("program {pid} has ended meanwhile"))?;
    Ok(text)
}

pub(super) fn space_of(kernel: &Kernel, pid: &str) -> Result<SpaceId, String> {
    let number: u32 = pid
        .parse()
        .map_err(|_| format!("{pid} is not a program's number"))?;
    let status = {
        let programs = kernel.programs.lock();
        let found = programs.iter().find(|program| program.pid == number);
        found.map(|program| *program.status.lock())
    };
    let status = status.ok_or_else(|| format!("no program {number}"))?;
    let ended = || format!("program {number} has ended: {}", status.state);
    status.space.ok_or_else(ended)
}

pub(super) fn node(kernel: &Kernel, text: &str) -> Result<NodeId, String> {
    let known = || kernel.phys.topology().nodes();
    let number: Option<u8> = text.parse().ok();
    let found = known().find(|node| Some(node.number()) == number);
    found.ok_or_else(|| format!("there is no node {text}: they are 0 to {}", known().count() - 1))
}

/// Most lines of an answer about single pages.
const MOST_PAGES: u32 = 4096;

fn pagemap(kernel: &Kernel, pid: &str, at: &str, pages: &str) -> Result<String, String> {
    let va = address(at).ok_or_else(|| format!("{at} is not an address of a program"))?;
    let nr_pages = number_of_pages(pages)?.into();
    of_program(kernel, pid, |out, id| {
        report::pagemap(out, &kernel.mm(), id, (va, nr_pages))
    })
}

fn number_of_pages(text: &str) -> Result<u32, String> {
    let number = text.parse().ok();
    let number = number.filter(|pages| (1..=MOST_PAGES).contains(pages));
    number.ok_or_else(|| format!("{text} is not a number of pages from 1 to {MOST_PAGES}"))
}

fn frames(kernel: &Kernel, pfn: &str, nr_frames: &str) -> Result<String, String> {
    let (first, nr_frames) = (frame_number(pfn)?, number_of_pages(nr_frames)?);
    let mut text = format!("{}\n", report::FRAME_COLUMNS);
    for number in (first.number()..).take(nr_frames as usize) {
        // Writing to a string cannot fail.
        let _ = report::frame(&mut text, kernel.phys, Pfn::new(number));
    }
    Ok(text)
}

async fn poison(kernel: &'static Kernel, pfn: &str, severity: &str) -> Result<String, String> {
    let severity = Severity::from_name(severity).ok_or_else(|| format!("{severity} is not soft or hard"))?;
    memory_failure::poison(kernel, frame_number(pfn)?, severity).await
}

/// Decimal, or hexadecimal with `0x`.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// An address that a program can have: below 2^47.
fn address(text: &str) -> Option<u64> {
    number(text).filter(|va| *va < 1 << 47)
}

fn frame_number(text: &str) -> Result<Pfn, String> {
    let pfn = number(text).and_then(|number| u32::try_from(number).ok());
    pfn.map(Pfn::new)
        .ok_or_else(|| format!("{text} is not the number of a page frame"))
}

fn pool(kernel: &Kernel) -> String {
    let pool = kernel.phys.huge_pool();
    format!(
        "hugepages_total {}\nhugepages_free {}\nhugepages_reserved {}\n",
        pool.total, pool.free, pool.reserved
    )
}

fn resize_pool(kernel: &Kernel, wanted: &str) -> Result<String, String> {
    let wanted: u32 = wanted
        .parse()
        .map_err(|_| format!("{wanted} is not a number of pages"))?;
    kernel.mm().set_nr_huge_pages(this_cpu(), wanted.into());
    kernel.memory_came.raise();
    Ok(pool(kernel))
}

/// Compacts all memory, zone by zone.
async fn compact(kernel: &'static Kernel) -> String {
    let zones: Vec<&Zone> = kernel.phys.populated_zones().collect();
    let mut text = String::new();
    for zone in zones {
        let before = kernel.phys.external_fragmentation(zone);
        let result = kcompactd::compact(kernel, zone, Goal::Everything).await;
        let after = kernel.phys.external_fragmentation(zone);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "node {} zone {}: {result}, {before} % of free memory in small chunks, {after} % now",
            zone.node(),
            zone.kind().name()
        );
    }
    text
}
