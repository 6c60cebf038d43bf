//! Whole nodes: all blocks of one go out of use in one go, or everything is put back as it was. The order is that of Linux
//! (`mm/memory_hotplug.c`, `offline_pages` and `try_offline_node`): no allocation enters any of them, then their pages move, the blocks go
//! offline one after the other, and with the last one the node leaves the zonelists, its tasks end, and it is offline.

use super::shrink::Emptied;
use super::{Descriptors, Interruption, OfflineBlock, Worker, blame};
use crate::memory_failure;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use guest_kernel::control_tree::OnlinePolicy;
use guest_mm::{BlockIndex, BlockState, IsolatedBlock, NodeId, PAGE_SIZE, ZoneKind};

/// The blocks of a node on their way out.
#[derive(Default)]
struct Leaving {
    /// Isolated, and not looked at yet.
    isolated: Vec<IsolatedBlock>,
    /// Emptied.
    offline: Vec<OfflineBlock>,
}

impl Worker {
    /// Takes all blocks of a node out of use, or puts those that are plugged back in use.
    pub(super) async fn make_node(
        &mut self,
        node: NodeId,
        wanted: OnlinePolicy,
        interrupted: &mut Result<(), Interruption>,
    ) -> Result<(), String> {
        match wanted {
            OnlinePolicy::Offline => self.take_node_offline(node, interrupted).await,
            OnlinePolicy::Movable => self.take_node_online(node, ZoneKind::Movable),
            OnlinePolicy::Kernel => self.take_node_online(node, ZoneKind::Normal),
        }
    }

    fn take_node_online(&self, node: NodeId, kind: ZoneKind) -> Result<(), String> {
        let mut offline = self.blocks_of(node, BlockState::Offline);
        if offline.is_empty() {
            return Err(format!("node {node} has no plugged block that is offline"));
        }
        // A block with too many failed frames stays out of use.
        let check = |block: &BlockIndex| memory_failure::check_limit(self.kernel, *block);
        let all_sound = offline.iter().try_for_each(check);
        offline.retain(|block| check(block).is_ok());
        let descriptors = Descriptors::Missing;
        let blocks = offline.into_iter().map(|block| OfflineBlock {
            block,
            descriptors,
            zone: None,
        });
        self.bring_all_online(blocks.collect(), kind);
        self.kernel.memory_came.raise();
        all_sound?;
        match self.blocks_of(node, BlockState::Offline).len() {
            0 => Ok(()),
            left => Err(format!(
                "{left} blocks stay offline: there is no memory to manage them with"
            )),
        }
    }

    async fn take_node_offline(
        &mut self,
        node: NodeId,
        interrupted: &mut Result<(), Interruption>,
    ) -> Result<(), String> {
        let boot_pages = self.kernel.phys.boot_pages(node);
        if boot_pages > 0 {
            let mib = (boot_pages * PAGE_SIZE) >> 20;
            return Err(format!(
                "node {node} has {mib} MiB of boot memory, which never goes"
            ));
        }
        let mut leaving = self.isolate_node(node)?;
        match self.empty_node(&mut leaving).await {
            Ok(()) => {
                let blocks: Vec<BlockIndex> = leaving.offline.iter().map(|offline| offline.block).collect();
                // The descriptors may be on the blocks themselves.
                self.unback(leaving.offline);
                for block in blocks {
                    self.kernel.direct_map.unmap_huge(self.addresses(block));
                }
                Ok(())
            }
            Err(Kept { why, interruption }) => {
                self.put_node_back(leaving);
                *interrupted = interruption;
                Err(format!("{why}; node {node} is as it was"))
            }
        }
    }

    /// Withdraws all blocks of a node from use, so that nothing moves from one to the next; or none of them.
    fn isolate_node(&mut self, node: NodeId) -> Result<Leaving, String> {
        let phys = self.kernel.phys;
        let mut leaving = Leaving::default();
        for block in self.blocks_of(node, BlockState::Online) {
            match phys.isolate(block) {
                Ok(isolated) => leaving.isolated.push(isolated),
                Err(error) => {
                    self.put_node_back(leaving);
                    let why = blame::isolate_error(self.kernel, &error);
                    return Err(format!("block {}: {why}; node {node} is as it was", block.0));
                }
            }
        }
        if leaving.isolated.is_empty() {
            return Err(format!("node {node} has no block that is online"));
        }
        Ok(leaving)
    }

    /// Empties all blocks of a node. They stay where they are in `leaving` when one cannot be emptied.
    async fn empty_node(&mut self, leaving: &mut Leaving) -> Result<(), Kept> {
        let used = leaving
            .isolated
            .iter()
            .map(|block| self.kernel.phys.used_pages(block));
        let used: u64 = used.map(u64::from).sum();
        if self.spare_bytes() < used * PAGE_SIZE {
            return Err(Kept::because(self.shortage(used * PAGE_SIZE).to_string()));
        }
        self.look_at_use(&mut leaving.isolated)
            .await
            .map_err(Kept::interrupted)?;
        while let Some(block) = leaving.isolated.pop() {
            match self.empty(block).await {
                Emptied::Yes(offline) => leaving.offline.push(offline),
                Emptied::No(block, reason) => {
                    let why = self.why_kept(&block, reason);
                    let why = format!("block {}: {why}", block.block().0);
                    leaving.isolated.push(block);
                    return Err(Kept::because(why));
                }
                Emptied::Interrupted(block, why) => {
                    leaving.isolated.push(block);
                    return Err(Kept::interrupted(why));
                }
            }
        }
        Ok(())
    }

    /// Every block goes back to the zone where it was.
    fn put_node_back(&mut self, leaving: Leaving) {
        for block in leaving.isolated {
            self.put_back(block, None);
        }
        for offline in leaving.offline {
            self.bring_online(offline);
        }
        self.kernel.memory_came.raise();
    }

    /// The blocks near to a node that are in a state.
    fn blocks_of(&self, node: NodeId, wanted: BlockState) -> Vec<BlockIndex> {
        let region = self.kernel.phys.hotplug_region();
        let blocks = region
            .iter()
            .filter(|&(_, state)| state == wanted && region.node() == node);
        blocks.map(|(block, _)| block).collect()
    }
}

/// A node cannot go.
struct Kept {
    why: String,
    interruption: Result<(), Interruption>,
}

impl Kept {
    const fn because(why: String) -> Self {
        let interruption = Ok(());
        Self { why, interruption }
    }

    fn interrupted(why: Interruption) -> Self {
        Self {
            why: why.as_str().into(),
            interruption: Err(why),
        }
    }
}
