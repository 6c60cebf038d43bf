//! What a simulation has done.

use core::cell::{Cell, RefCell};
use std::vec::Vec;

use crate::VmStat;
use crate::reclaim::ReclaimStat;

/// How often something happened, so that a simulation that does nothing is noticed.
#[derive(Default, Debug)]
pub(super) struct Seen {
    pub(super) forks: Cell<u32>,
    pub(super) words_checked: Cell<u32>,
    pub(super) waits: Cell<u32>,
    pub(super) no_memory: Cell<u32>,
    pub(super) moved_pages: Cell<u32>,
    pub(super) evicted_pages: Cell<u32>,
    pub(super) pages_awaited: Cell<u32>,
    pub(super) blocks_removed: Cell<u32>,
    pub(super) given_up: Cell<u32>,
    pub(super) batches_given_up: Cell<u32>,
    pub(super) together: Cell<u32>,
    pub(super) together_given_up: Cell<u32>,
    pub(super) packed: Cell<u32>,
    pub(super) node_moves: Cell<u32>,
    pub(super) frames_replaced: Cell<u32>,
    pub(super) frames_lost: Cell<u32>,
    pub(super) touches_of_lost: Cell<u32>,
    pub(super) injected: Cell<u32>,
    pub(super) io_errors: Cell<u32>,
    pub(super) lost_pages: Cell<u32>,
    pub(super) inodes_given_up: Cell<u32>,
    pub(super) commits: Cell<u32>,
    pub(super) stats: RefCell<VmStat>,
    pub(super) oom_kills: Cell<u32>,
    pub(super) kills: Cell<u32>,
    pub(super) locked: Cell<u32>,
    pub(super) reclaim: Cell<ReclaimStat>,
    pub(super) compacted: Cell<u32>,
    pub(super) file_words: Cell<u32>,
    pub(super) mapped_words: Cell<u32>,
    pub(super) truncates: Cell<u32>,
    pub(super) syncs: Cell<u32>,
    pub(super) rearranged: Cell<u32>,
    pub(super) beyond_end: Cell<u32>,
    pub(super) words_after_power: Cell<u32>,
    pub(super) sleeps: Cell<u32>,
    pub(super) called: Cell<u32>,
    pub(super) left_uncalled: Cell<u32>,
    pub(super) reserved_pages: Cell<u32>,
    pub(super) direct_words: Cell<u32>,
    pub(super) direct_refusals: Cell<u32>,
    pub(super) names: Cell<u32>,
    pub(super) registered: Cell<u32>,
    pub(super) register_refusals: Cell<u32>,
    pub(super) kernel_words: Cell<u32>,
    pub(super) area_pages_moved: Cell<u32>,
    pub(super) slab_pages_moved: Cell<u32>,
    pub(super) gone_for_good: Cell<u32>,
    pub(super) reads_of_gone: Cell<u32>,
}

pub(super) fn count(cell: &Cell<u32>, more: u32) {
    cell.set(cell.get() + more);
}

/// A total of all machines, with its name.
type Line = (&'static str, u32);

/// All of it.
pub(super) fn summary(all: &[Seen]) -> Vec<Line> {
    let mut lines = Vec::from_iter(of_memory(all));
    lines.extend(of_blocks(all));
    lines.extend(of_what_stays_in_memory(all));
    lines.extend(of_files(all));
    lines
}

fn sum(all: &[Seen], what: fn(&Seen) -> &Cell<u32>) -> u32 {
    all.iter().map(|seen| what(seen).get()).sum()
}

/// What the machines themselves have counted.
fn counted(all: &[Seen], what: fn(&VmStat) -> u64) -> u32 {
    let sum: u64 = all.iter().map(|seen| what(&seen.stats.borrow())).sum();
    u32::try_from(sum).unwrap_or(u32::MAX)
}

fn of_memory(all: &[Seen]) -> impl IntoIterator<Item = Line> + use<> {
    let total = |what| sum(all, what);
    let reclaim = |what: fn(&ReclaimStat) -> u64| {
        let sum: u64 = all.iter().map(|seen| what(&seen.reclaim.get())).sum();
        u32::try_from(sum).unwrap_or(u32::MAX)
    };
    [
        (
            "writers slowed down",
            counted(all, |stats| stats.balance_dirty_pages),
        ),
        ("forks", total(|seen| &seen.forks)),
        ("words checked", total(|seen| &seen.words_checked)),
        ("waits for a page", total(|seen| &seen.waits)),
        ("requests without memory", total(|seen| &seen.no_memory)),
        ("requests failed on purpose", total(|seen| &seen.injected)),
        ("errors of the disk met", total(|seen| &seen.io_errors)),
        ("pages that could not be written", total(|seen| &seen.lost_pages)),
        ("programs ended for their memory", total(|seen| &seen.oom_kills)),
        ("programs ended from outside", total(|seen| &seen.kills)),
        ("pages reclaimed directly", reclaim(|stat| stat.pgsteal_direct)),
        (
            "pages reclaimed by the daemon",
            reclaim(|stat| stat.pgsteal_kswapd),
        ),
        ("runs of the daemon", reclaim(|stat| stat.pageoutrun)),
        (
            "waits of reclaim for the disks",
            reclaim(|stat| stat.reclaim_throttled),
        ),
    ]
}

fn of_blocks(all: &[Seen]) -> impl IntoIterator<Item = Line> + use<> {
    let total = |what| sum(all, what);
    [
        ("pages moved", total(|seen| &seen.moved_pages)),
        ("pages evicted from blocks", total(|seen| &seen.evicted_pages)),
        ("waits of blocks for a page", total(|seen| &seen.pages_awaited)),
        ("blocks removed", total(|seen| &seen.blocks_removed)),
        (
            "blocks given up where somebody waited",
            total(|seen| &seen.given_up),
        ),
        (
            "batches under way that were given up",
            total(|seen| &seen.batches_given_up),
        ),
        (
            "pages written before they moved",
            counted(all, |stats| stats.migrate_written_first),
        ),
        ("batches of several blocks", total(|seen| &seen.together)),
        (
            "looks at several blocks given up with a batch under way",
            total(|seen| &seen.together_given_up),
        ),
        ("blocks packed", total(|seen| &seen.packed)),
        ("pages moved to another node", total(|seen| &seen.node_moves)),
        (
            "frames replaced before they failed",
            total(|seen| &seen.frames_replaced),
        ),
        ("frames lost with their contents", total(|seen| &seen.frames_lost)),
        ("touches of what was lost", total(|seen| &seen.touches_of_lost)),
    ]
}

/// Pages that no disk takes.
fn of_what_stays_in_memory(all: &[Seen]) -> impl IntoIterator<Item = Line> + use<> {
    let total = |what| sum(all, what);
    [
        ("buffers registered", total(|seen| &seen.registered)),
        ("buffers refused", total(|seen| &seen.register_refusals)),
        (
            "pages that left blocks to be registered",
            counted(all, |stats| stats.longterm_moved),
        ),
        (
            "pages moved by their file system",
            counted(all, |stats| stats.migrate_taken_over),
        ),
        (
            "page tables moved",
            counted(all, |stats| stats.kernel_tables_moved),
        ),
        ("words of the kernel's own", total(|seen| &seen.kernel_words)),
        ("pages of areas moved", total(|seen| &seen.area_pages_moved)),
        ("frames of slabs emptied", total(|seen| &seen.slab_pages_moved)),
        (
            "pages that were nowhere else lost",
            total(|seen| &seen.gone_for_good),
        ),
        ("reads of those", total(|seen| &seen.reads_of_gone)),
    ]
}

fn of_files(all: &[Seen]) -> impl IntoIterator<Item = Line> + use<> {
    let total = |what| sum(all, what);
    [
        ("pages locked", total(|seen| &seen.locked)),
        ("inodes given up", total(|seen| &seen.inodes_given_up)),
        ("commits", total(|seen| &seen.commits)),
        ("pages compacted", total(|seen| &seen.compacted)),
        ("words of files read", total(|seen| &seen.file_words)),
        ("words of mapped files", total(|seen| &seen.mapped_words)),
        ("files cut off", total(|seen| &seen.truncates)),
        ("files synced", total(|seen| &seen.syncs)),
        ("areas rearranged", total(|seen| &seen.rearranged)),
        ("touches beyond the end", total(|seen| &seen.beyond_end)),
        (
            "words after a loss of power",
            total(|seen| &seen.words_after_power),
        ),
        ("sleeps at a word", total(|seen| &seen.sleeps)),
        ("calls", total(|seen| &seen.called)),
        ("sleepers that left", total(|seen| &seen.left_uncalled)),
        (
            "stores to reserved huge pages",
            total(|seen| &seen.reserved_pages),
        ),
        ("words past the page cache", total(|seen| &seen.direct_words)),
        (
            "pages not moved for the disk",
            total(|seen| &seen.direct_refusals),
        ),
        ("calls with names", total(|seen| &seen.names)),
    ]
}
