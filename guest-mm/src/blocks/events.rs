//! What has happened to blocks and nodes: the newest steps, each with a number, for whoever follows them (Linux: the uevents of
//! `/sys/devices/system/memory`, and the memory notifier's changes of nodes).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::blocks::{BlockIndex, BlockState};
use crate::node::{NodeId, NodeState};

/// Events that are kept: a block that is plugged and put to use makes three. Of older ones is known how many there were.
const KEPT: usize = 2048;

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

/// What has happened after some event.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventsAfter {
    /// Events right after that one which are not kept any more.
    pub missed: u64,
    /// Number of the newest event of all; 0 before the first.
    pub newest: u64,
    /// Those that are kept, oldest first.
    pub events: Vec<MemoryEvent>,
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

    /// Those with a greater number.
    pub(crate) fn after(&self, number: u64) -> EventsAfter {
        let newer = self.newest.iter().filter(|event| event.number > number);
        let forgotten = self.count - self.newest.len() as u64;
        EventsAfter {
            missed: forgotten.saturating_sub(number),
            newest: self.count,
            events: newer.copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_numbers_go_on_and_who_was_away_learns_how_many_are_gone() {
        let mut events = MemoryEvents::with_room();
        let nothing = |newest, missed| EventsAfter {
            missed,
            newest,
            events: Vec::new(),
        };
        assert_eq!(events.after(0), nothing(0, 0));
        let online = |block| Change::Block {
            block: BlockIndex(block),
            from: BlockState::Offline,
            to: BlockState::Online,
        };
        let all = KEPT as u64 + 44;
        (0..).take(KEPT + 44).for_each(|block| events.add(online(block)));
        let kept = events.after(0);
        assert_eq!((kept.events.len(), kept.missed, kept.newest), (KEPT, 44, all));
        assert_eq!(
            kept.events.first().map(|event| (event.number, event.change)),
            Some((45, online(44)))
        );
        // Who has seen some of those that are gone, and who has seen all of them.
        assert_eq!(events.after(40).missed, 4);
        assert_eq!(
            (events.after(44).missed, events.after(44).events.len()),
            (0, KEPT)
        );
        assert_eq!(events.after(all - 1).events.len(), 1);
        assert_eq!(events.after(all), nothing(all, 0));
    }
}
