//! The daemon of a node (Linux `kswapd`): sleeps until the node's memory runs low, and reclaims until there is enough.

use crate::kernel::Kernel;
use guest_mm::NodeId;

/// How often it looks again while somebody waits for memory: an interval in which other CPUs' lists fill again.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// One daemon for each node, on a CPU of that node if it has one.
pub(crate) fn start(kernel: &'static Kernel) {
    for node in kernel.phys.topology().nodes() {
        kernel.start_task(kernel.cpu_near(node), work(kernel, node));
    }
}

async fn work(kernel: &'static Kernel, node: NodeId) {
    loop {
        kernel.phys.daemon_wanted(node).await;
        kernel.balance(node);
        while kernel.phys.nr_waiting() > 0 {
            kernel.timers().sleep(LOOK_AGAIN_NS).await;
            kernel.balance(node);
        }
    }
}
