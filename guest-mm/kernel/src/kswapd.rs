//! The daemon of a node (Linux `kswapd`): sleeps until the node's memory runs low, and reclaims until there is enough.

use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use guest_mm::NodeId;
use guest_sync::Cpu;

/// How often it looks again while somebody waits for memory: an interval in which other CPUs' lists fill again.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// One daemon for each node, on a CPU of that node if it has one.
pub(crate) fn start(kernel: &'static Kernel) {
    for node in kernel.phys.topology().nodes() {
        kernel.start_task(kernel.cpu_near(node), work(kernel, node));
    }
}

async fn work(kernel: &'static Kernel, node: NodeId) {
    let here = this_cpu as fn() -> &'static Cpu;
    loop {
        kernel.phys.daemon_wanted(node).await;
        kernel.reclaim.balance(here, node).await;
        while kernel.phys.nr_waiting() > 0 {
            kernel.timers().sleep(LOOK_AGAIN_NS).await;
            kernel.reclaim.balance(here, node).await;
        }
    }
}
