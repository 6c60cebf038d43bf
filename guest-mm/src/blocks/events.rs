//! What has happened to blocks and nodes: the newest steps, each with a number, for whoever follows them (Linux: the uevents of
//! `/sys/devices/system/memory`, and the memory notifier's changes of nodes).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::blocks::{BlockIndex, BlockState};
use crate::node::{NodeId, NodeState};

/// Events that are kept. Older ones are forgotten, which the numbers of those that are left show.
const KEPT: usize = 256;

/// A step of a block or a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryEvent {
    /// Its number: 1 for the first since boot, and one more for each.
    pub number: u64,
    /// What happened.
    pub change: Change,
}

/// What can happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// To a block.
    Block {
        /// The block.
        block: BlockIndex,
        /// What it was before.
        from: BlockState,
        /// What it is since.
        to: BlockState,
    },
    /// To a node: its first block has come, or its last has gone.
    Node {
        /// The node.
        node: NodeId,
        /// What it is since; before it was the other one.
        to: NodeState,
    },
}

/// The newest events.
#[derive(Debug, Default)]
pub(crate) struct MemoryEvents {
    newest: VecDeque<MemoryEvent>,
    count: u64,
}

impl MemoryEvents {
    /// Room for all that is kept, so that nothing is allocated when something happens.
    pub(crate) fn with_room() -> Self {
        Self {
            newest: VecDeque::with_capacity(KEPT),
            count: 0,
        }
    }

    pub(crate) fn add(&mut self, change: Change) {
        self.count += 1;
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(MemoryEvent {
            number: self.count,
            change,
        });
    }

    /// Those that are kept and have a greater number, oldest first.
    pub(crate) fn after(&self, number: u64) -> Vec<MemoryEvent> {
        let newer = self.newest.iter().filter(|event| event.number > number);
        newer.copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_numbers_go_on() {
        let mut events = MemoryEvents::with_room();
        assert_eq!(events.after(0), []);
        let online = |block| Change::Block {
            block: BlockIndex(block),
            from: BlockState::Offline,
            to: BlockState::Online,
        };
        for block in 0..300 {
            events.add(online(block));
        }
        let kept = events.after(0);
        assert_eq!(kept.len(), KEPT);
        assert_eq!(
            kept.first().map(|event| (event.number, event.change)),
            Some((45, online(44)))
        );
        assert_eq!(events.after(299).len(), 1);
        assert_eq!(events.after(300), []);
    }
}
