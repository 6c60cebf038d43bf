//! The daemon of a node that compacts its memory (Linux `kcompactd`): sleeps until a request for more than a frame has
//! failed, and looks now and then whether free memory has become too scattered.

use crate::kernel::Kernel;
use crate::machine::activity;
use crate::machine::cpu::this_cpu;
use crate::nodes::{self, Daemon};
use alloc::vec::Vec;
use guest_kernel::sync::{Winner, race, yield_now};
use guest_mm::compact::{CompactResult, Compaction, Goal};
use guest_mm::{NodeId, Zone};

/// How often it looks by itself. (Linux: `HPAGE_FRAG_CHECK_INTERVAL_MSEC`, half a second.)
const LOOK_NS: u64 = 2_000_000_000;
/// Looks that it leaves out after one that brought nothing (Linux: `COMPACT_MAX_DEFER_SHIFT`).
const LEFT_OUT: u32 = 64;

/// Looks after a node for as long as it has memory.
pub(crate) async fn work(kernel: &'static Kernel, node: NodeId) {
    let mut left_out = 0;
    loop {
        let look = kernel.timers().sleep(LOOK_NS);
        let order = match race(kernel.phys.compaction_wanted(node), look).await {
            Winner::First(None) if nodes::may_end(kernel, node, Daemon::Kcompactd) => return,
            Winner::First(order) => order,
            Winner::Second(()) if left_out > 0 => {
                left_out -= 1;
                continue;
            }
            Winner::Second(()) => None,
        };
        let goals: Vec<(&Zone, Goal)> = kernel.phys.compaction_goals(node, order).collect();
        let before = kernel.phys.fragmentation_score(node);
        let has_goals = !goals.is_empty();
        for (zone, goal) in goals {
            let result = compact(kernel, zone, goal).await;
            kernel.phys.compaction_ended(zone, goal, result);
        }
        if order.is_none() && has_goals && kernel.phys.fragmentation_score(node) >= before {
            left_out = LEFT_OUT;
        }
    }
}

/// One run over a zone, with programs running between its steps.
pub(crate) async fn compact(kernel: &'static Kernel, zone: &'static Zone, goal: Goal) -> CompactResult {
    match kernel.begin_compaction(zone, goal) {
        Ok(run) => to_its_end(kernel, run).await,
        Err(result) => result,
    }
}

/// A huge page is made in a zone for one that is to leave its block, with programs running between the steps.
pub(crate) async fn first_stage(kernel: &'static Kernel, zone: &'static Zone) -> CompactResult {
    let begun = {
        let _working = kernel.mm();
        kernel.memory().begin_first_stage(zone)
    };
    match begun {
        Ok(run) => to_its_end(kernel, run).await,
        Err(result) => result,
    }
}

async fn to_its_end(kernel: &'static Kernel, mut run: Compaction<'static>) -> CompactResult {
    loop {
        let ended = kernel.mm().compaction_step(this_cpu(), &mut run);
        activity::answer();
        if let Some(result) = ended {
            let _working = kernel.mm();
            drop(run);
            return result;
        }
        yield_now().await;
    }
}
