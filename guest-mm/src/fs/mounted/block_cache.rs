//! Blocks of metadata in memory, as they are on the disk: those that were used last.
//!
//! Inodes in memory have their blocks with them (`pagefs`); what is here is directories for the most part, of which every look for a name
//! reads one block after the other. Who writes enters what he wrote when it has arrived. A block that belongs to data now may still be
//! here as it was: nobody asks for it before it is written as metadata again.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use guest_sync::SpinLock;

use super::super::pagefs::Block;

/// Most blocks: 256 KiB, enough for a directory of 4096 names.
const MOST_BLOCKS: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct BlockCache {
    /// Nothing else is locked under this lock; it may use the heap.
    state: SpinLock<State>,
}

#[derive(Debug, Default)]
struct State {
    blocks: BTreeMap<u32, Cached>,
    /// Uses so far.
    clock: u64,
}

#[derive(Debug)]
struct Cached {
    contents: Box<Block>,
    used_at: u64,
}

impl BlockCache {
    /// What a block holds, if it is here.
    pub(super) fn find(&self, block: u32) -> Option<Box<Block>> {
        let mut state = self.state.lock();
        state.clock += 1;
        let now = state.clock;
        let cached = state.blocks.get_mut(&block)?;
        cached.used_at = now;
        Some(cached.contents.clone())
    }

    /// Takes note of what a block holds. The one that was not used for longest makes room.
    pub(super) fn enter(&self, block: u32, contents: &Block) {
        let contents = Box::new(*contents);
        let mut state = self.state.lock();
        state.clock += 1;
        let used_at = state.clock;
        if !state.blocks.contains_key(&block) && state.blocks.len() >= MOST_BLOCKS {
            let oldest = state.blocks.iter().min_by_key(|(_, cached)| cached.used_at);
            if let Some(oldest) = oldest.map(|(block, _)| *block) {
                state.blocks.remove(&oldest);
            }
        }
        state.blocks.insert(block, Cached { contents, used_at });
    }

    /// What the block holds is not known any more.
    pub(super) fn forget(&self, block: u32) {
        self.state.lock().blocks.remove(&block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pfn::PAGE_BYTES;

    #[test]
    fn blocks_used_last_stay_with_what_was_entered_last() {
        let cache = BlockCache::default();
        for block in 0..64 {
            cache.enter(block, &[7; PAGE_BYTES]);
        }
        cache.enter(5, &[8; PAGE_BYTES]);
        assert_eq!(cache.find(0).unwrap()[0], 7);
        // The room of 1, which nobody has asked for.
        cache.enter(64, &[9; PAGE_BYTES]);
        let there: std::vec::Vec<u32> = (0..65).filter(|block| cache.find(*block).is_some()).collect();
        assert!(there.len() == 64 && !there.contains(&1), "{there:?}");
        assert_eq!((cache.find(5).unwrap()[9], cache.find(64).unwrap()[0]), (8, 9));
        cache.forget(5);
        assert_eq!(cache.find(5), None);
    }
}
