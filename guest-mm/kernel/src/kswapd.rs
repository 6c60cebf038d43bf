//! The daemon of a node (Linux `kswapd`): sleeps until the node's memory runs low, and reclaims until there is enough.

use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::nodes::{self, Daemon};
use guest_mm::{NodeId, NodeState};
use guest_sync::Cpu;

/// How often it looks again while somebody waits for memory: an interval in which other CPUs' lists fill again.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// Runs in a row that freed nothing after which it takes its time (Linux `MAX_RECLAIM_RETRIES`): what a zone is empty for
/// is then not to be had back, and every request that finds it empty calls for the daemon.
const HOPELESS: u32 = 16;

/// Looks after a node for as long as it has memory.
pub(crate) async fn work(kernel: &'static Kernel, node: NodeId) {
    let here = this_cpu as fn() -> &'static Cpu;
    let mut failures = 0;
    loop {
        if kernel.phys.daemon_wanted(node).await.is_none() {
            if nodes::may_end(kernel, node, Daemon::Kswapd) {
                return;
            }
            continue;
        }
        let run = kernel.reclaim.balance(here, node).await;
        failures = match run.is_balanced || run.freed_pages > 0 {
            true => 0,
            false => failures + 1,
        };
        if failures >= HOPELESS {
            kernel.timers().sleep(LOOK_AGAIN_NS).await;
        }
        while kernel.phys.nr_waiting() > 0 && kernel.phys.node_state(node) == NodeState::Online {
            kernel.timers().sleep(LOOK_AGAIN_NS).await;
            kernel.reclaim.balance(here, node).await;
        }
    }
}
