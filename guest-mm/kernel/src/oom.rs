//! The out-of-memory killer: when nothing can be reclaimed for a program that waits, one program ends, and the others go on.
//!
//! Which one is told by `guest_mm::reclaim::oom`; the decision is on the console, and counted in `vmstat`. Until that program has ended there
//! is no second one. Whatever it waits for is interrupted, unless it is a disk that is at its memory.

use crate::kernel::Kernel;
use crate::log::log;
use crate::process::{Program, ProgramRef, State};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};
use guest_mm::PAGE_SIZE;
use guest_mm::reclaim::oom::{Candidate, choose};
use guest_sync::SpinLock;

/// What has happened so far.
#[derive(Default)]
pub(crate) struct Oom {
    /// The program that was told to end, until it has.
    victim: SpinLock<Option<u32>>,
    /// Programs that were told to end, since boot.
    kills: AtomicU64,
    /// Times that there was none who could go.
    helpless: AtomicU64,
}

impl Oom {
    pub(crate) fn report(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "oom_kill {}", self.kills.load(Ordering::Relaxed))?;
        writeln!(out, "oom_no_victim {}", self.helpless.load(Ordering::Relaxed))
    }

    /// A program has ended, and its memory is free.
    pub(crate) fn has_ended(&self, pid: u32) {
        let mut victim = self.victim.lock();
        if *victim == Some(pid) {
            *victim = None;
        }
    }
}

/// Nothing can be reclaimed: has a program end, unless one is just about to.
pub(crate) fn out_of_memory(kernel: &Kernel) {
    let mut victim = kernel.oom.victim.lock();
    if victim.is_some() {
        return;
    }
    let total_pages = total_pages(kernel);
    let candidates = candidates(kernel);
    let chosen = choose(candidates.iter().map(|(_, one)| *one), total_pages);
    let Some(chosen) = chosen else {
        if kernel.oom.helpless.fetch_add(1, Ordering::Relaxed) == 0 {
            log!(Error, "out of memory, and no program that may be ended");
        }
        return;
    };
    *victim = Some(chosen.pid);
    drop(victim);
    kernel.oom.kills.fetch_add(1, Ordering::Relaxed);
    log!(
        Error,
        "out of memory: PID RSS_KIB SWAP_KIB TABLES_KIB ADJ SCORE NAME"
    );
    for (program, one) in &candidates {
        log!(Error, "out of memory: {}", Line(one, total_pages, program.name()));
        if one.pid == chosen.pid {
            program.doom();
        }
    }
    log!(
        Error,
        "out of memory: program {} is ended, score {}",
        chosen.pid,
        chosen.score(total_pages)
    );
}

/// A line of the report.
struct Line<'a>(&'a Candidate, u64, &'a str);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(one, total_pages, name) = self;
        let kib = |pages: u64| pages * PAGE_SIZE / 1024;
        write!(
            f,
            "{} {} {} {} {} {} {name}",
            one.pid,
            kib(one.rss_pages),
            kib(one.swap_pages),
            kib(one.table_pages),
            one.score_adj,
            one.score(*total_pages)
        )
    }
}

/// All memory and swap that there is.
pub(crate) fn total_pages(kernel: &Kernel) -> u64 {
    kernel.phys.memory_stats().total_pages + u64::from(kernel.mm().swap_usage().total)
}

/// The programs that live and have memory.
fn candidates(kernel: &Kernel) -> Vec<(ProgramRef, Candidate)> {
    let programs = kernel.programs.lock();
    let living = programs.iter().filter_map(|program| {
        let candidate = weigh(kernel, program)?;
        Some((program.clone(), candidate))
    });
    living.collect()
}

/// What a program weighs; `None` if it has ended.
pub(crate) fn weigh(kernel: &Kernel, program: &Program) -> Option<Candidate> {
    let status = *program.status.lock();
    let id = status.space?;
    if matches!(status.state, State::Exited(_) | State::Killed) {
        return None;
    }
    let mm = kernel.mm();
    let space = mm.space(id)?;
    Some(Candidate {
        pid: program.pid,
        rss_pages: space.rss_pages() + space.file_pages(),
        swap_pages: space.swap_pages(),
        table_pages: space.table_pages(&mm.frames),
        score_adj: program.oom_score_adj.load(Ordering::Relaxed),
    })
}
