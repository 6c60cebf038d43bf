//! Commands with arguments, and those that take a while: the memory of one program, the pool of huge pages, compaction.

use crate::kcompactd;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::fmt::Write;
use guest_mm::compact::Goal;
use guest_mm::{SpaceId, Zone, report};
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
        ("hugepages", []) => Ok(pool(kernel)),
        ("hugepages", &[wanted]) => resize_pool(kernel, wanted),
        ("hugepages", _) => Err("hugepages takes one number".into()),
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
    let space = status.space.ok_or_else(ended)?;
    let mut text = String::new();
    write(&mut text, space).map_err(|fmt::Error| format!("program {number} has ended meanwhile"))?;
    Ok(text)
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
