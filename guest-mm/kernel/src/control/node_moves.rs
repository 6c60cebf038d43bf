//! `migratepages`: the memory of a program moves from a node to another, and what stays is told with why.

use super::commands::{node, space_of};
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use guest_kernel::sync::yield_now;
use guest_mm::migrate::{BatchEnd, NodeMove, Refusal, RefusalReason, Stays};
use guest_mm::{NodeState, PAGEBLOCK_NR_PAGES};

/// Pages that are moved to another node at a time; the program waits for those meanwhile.
const MOVE_PAGES: u32 = 128;

/// Pages that did not move, in 4 KiB.
#[derive(Default)]
struct Refused {
    pinned: u32,
    busy: u32,
}

impl Refused {
    fn add(&mut self, refusal: &Refusal) {
        let nr_pages = refusal.order.nr_pages();
        match refusal.reason {
            RefusalReason::Pinned { .. } => self.pinned += nr_pages,
            RefusalReason::Busy(_) | RefusalReason::UnderIo { .. } | RefusalReason::Unmovable(_) => {
                self.busy += nr_pages;
            }
        }
    }
}

/// Moves the memory of a program from a node to another, while it runs on.
pub(super) async fn migrate_pages(
    kernel: &'static Kernel,
    pid: &str,
    (from, to): (&str, &str),
) -> Result<String, String> {
    let space = space_of(kernel, pid)?;
    let (source, target) = (node(kernel, from)?, node(kernel, to)?);
    if source == target {
        return Err(format!(
            "from node {from} to node {to} nothing moves: the two nodes have to be different ones"
        ));
    }
    if kernel.phys.node_state(target) == NodeState::Offline {
        return Err(format!("node {to} is offline: it has no memory"));
    }
    let start = NodeMove::new(space, source, target);
    let (mut moving, mut moved, mut refused) = (start.clone(), 0, Refused::default());
    let mut passes = 1;
    loop {
        let report = kernel
            .mm()
            .migrate_node_batch(this_cpu(), &mut moving, MOVE_PAGES);
        let Some(report) = report else {
            // A huge page that was split in the first pass goes in the second, in pieces.
            if passes == 2 {
                break;
            }
            passes += 1;
            (moving, refused) = (start.clone(), Refused::default());
            continue;
        };
        moved += report.moved_small + report.moved_huge * PAGEBLOCK_NR_PAGES;
        report.refused.iter().for_each(|refusal| refused.add(refusal));
        if report.end == BatchEnd::NoMemory {
            return Err(format!("{moved} pages moved; node {to} has no room for more"));
        }
        yield_now().await;
    }
    Ok(said(moved, moving.stays(), &refused, to))
}

/// How many pages moved, how many stay, and why.
fn said(moved: u32, stays: Stays, refused: &Refused, to: &str) -> String {
    let mut total = 0;
    let mut reasons = Vec::new();
    let mut add = |nr_pages: u32, why: String| {
        if nr_pages > 0 {
            total += nr_pages;
            reasons.push(format!("{nr_pages} {why}"));
        }
    };
    let most = stays.most_mappings;
    add(stays.shared, format!("shared, mapped up to {most} times"));
    add(
        stays.no_huge_frame,
        format!("of reserved huge pages, for which node {to} has no free huge page"),
    );
    add(refused.pinned, "pinned".into());
    add(refused.busy, "in use just now".into());
    match &reasons[..] {
        [] => format!("{moved} pages moved, 0 stay\n"),
        _ => format!("{moved} pages moved, {total} stay: {}\n", reasons.join("; ")),
    }
}
