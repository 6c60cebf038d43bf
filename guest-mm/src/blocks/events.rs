//! What has happened to blocks: the newest steps, each with a number, for whoever follows them (Linux: the uevents of
//! `/sys/devices/system/memory`).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::blocks::{BlockIndex, BlockState};

/// Events that are kept. Older ones are forgotten, which the numbers of those that are left show.
const KEPT: usize = 256;

/// A step of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockEvent {
    /// Its number: 1 for the first since boot, and one more for each.
    pub number: u64,
    /// The block.
    pub block: BlockIndex,
    /// What it was before.
    pub from: BlockState,
    /// What it is since.
    pub to: BlockState,
}

/// The newest events.
#[derive(Debug, Default)]
pub(crate) struct BlockEvents {
    newest: VecDeque<BlockEvent>,
    count: u64,
}

impl BlockEvents {
    /// Room for all that is kept, so that nothing is allocated when something happens.
    pub(crate) fn with_room() -> Self {
        Self {
            newest: VecDeque::with_capacity(KEPT),
            count: 0,
        }
    }

    pub(crate) fn add(&mut self, block: BlockIndex, from: BlockState, to: BlockState) {
        self.count += 1;
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(BlockEvent {
            number: self.count,
            block,
            from,
            to,
        });
    }

    /// Those that are kept and have a greater number, oldest first.
    pub(crate) fn after(&self, number: u64) -> Vec<BlockEvent> {
        let newer = self.newest.iter().filter(|event| event.number > number);
        newer.copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_numbers_go_on() {
        let mut events = BlockEvents::with_room();
        assert_eq!(events.after(0), []);
        for block in 0..300 {
            events.add(BlockIndex(block), BlockState::Offline, BlockState::Online);
        }
        let kept = events.after(0);
        assert_eq!(kept.len(), KEPT);
        assert_eq!(
            kept.first().map(|event| (event.number, event.block)),
            Some((45, BlockIndex(44)))
        );
        assert_eq!(events.after(299).len(), 1);
        assert_eq!(events.after(300), []);
    }
}
