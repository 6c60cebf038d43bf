//! The tasks of nodes: a node with memory has a `kswapd` and, unless memory is never compacted, a `kcompactd`. They start
//! with its first memory and end with its last (Linux `kswapd_run` and `kswapd_stop`, `mm/memory_hotplug.c`).

use crate::kcompactd;
use crate::kernel::Kernel;
use crate::kswapd;
use crate::log::log;
use alloc::string::String;
use alloc::vec::Vec;
use guest_mm::node::MAX_NODES;
use guest_mm::{NodeId, NodeState};
use guest_sync::SpinLock;

/// A task of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Daemon {
    Kswapd,
    Kcompactd,
}

impl Daemon {
    const ALL: [Self; 2] = [Self::Kswapd, Self::Kcompactd];

    const fn name(self) -> &'static str {
        match self {
            Self::Kswapd => "kswapd",
            Self::Kcompactd => "kcompactd",
        }
    }

    /// Its place in [`Known::running`].
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Which tasks run, for each node.
#[derive(Debug)]
pub(crate) struct NodeTasks {
    /// The daemons that nodes have at all.
    wanted: u8,
    nodes: SpinLock<[Known; MAX_NODES as usize]>,
}

/// What is known of a node.
#[derive(Clone, Copy, Default, Debug)]
struct Known {
    /// A bit for each daemon.
    running: u8,
    was_online: bool,
}

impl NodeTasks {
    /// None runs yet.
    pub(crate) fn new(compacts: bool) -> Self {
        let compactd = if compacts { Daemon::Kcompactd.bit() } else { 0 };
        Self {
            wanted: Daemon::Kswapd.bit() | compactd,
            nodes: SpinLock::default(),
        }
    }

    /// Names of those that run, with the node's number behind each.
    pub(crate) fn names(&self, node: NodeId) -> String {
        let running = self.nodes.lock()[node.index()].running;
        let daemons = Daemon::ALL
            .into_iter()
            .filter(|daemon| running & daemon.bit() != 0);
        let names: Vec<String> = daemons
            .map(|daemon| alloc::format!("{}{node}", daemon.name()))
            .collect();
        names.join(" ")
    }

    /// Whether a daemon is to be started now. It counts as running from then on.
    fn begin(&self, node: NodeId, state: NodeState, daemon: Daemon) -> bool {
        let known = &mut self.nodes.lock()[node.index()];
        let is_missing = state == NodeState::Online && (self.wanted & !known.running) & daemon.bit() != 0;
        known.running |= if is_missing { daemon.bit() } else { 0 };
        is_missing
    }

    /// Whether the node has come, or gone, since this was last asked.
    fn has_changed(&self, node: NodeId, state: NodeState) -> bool {
        let known = &mut self.nodes.lock()[node.index()];
        let is_online = state == NodeState::Online;
        core::mem::replace(&mut known.was_online, is_online) != is_online
    }
}

/// Starts what nodes with memory lack. To be called after memory has come or gone.
pub(crate) fn settle(kernel: &'static Kernel) {
    for node in kernel.phys.topology().nodes() {
        let state = kernel.phys.node_state(node);
        if kernel.nodes.has_changed(node, state) {
            log!(Info, "node {node}: {}", state.name());
        }
        for daemon in Daemon::ALL {
            if !kernel.nodes.begin(node, state, daemon) {
                continue;
            }
            let cpu = kernel.cpu_near(node);
            let is_started = match daemon {
                Daemon::Kswapd => kernel.start_task(cpu, kswapd::work(kernel, node)),
                Daemon::Kcompactd => kernel.start_task(cpu, kcompactd::work(kernel, node)),
            };
            if !is_started {
                kernel.nodes.nodes.lock()[node.index()].running &= !daemon.bit();
            }
        }
    }
}

/// A daemon has seen that its node has no memory. False if it has some again, and nobody else looks after that.
pub(crate) fn may_end(kernel: &Kernel, node: NodeId, daemon: Daemon) -> bool {
    let mut nodes = kernel.nodes.nodes.lock();
    let is_gone = kernel.phys.node_state(node) == NodeState::Offline;
    nodes[node.index()].running &= if is_gone { !daemon.bit() } else { u8::MAX };
    is_gone
}
