//! `buddy_system_allocator`: a buddy system whose free lists are ordered sets.

use buddy_system_allocator::FrameAllocator as Buddies;

use crate::frames::{FrameAllocator, Hand};

/// Chunks up to 4 MiB, as in the other allocators.
const NR_ORDERS: usize = 11;

pub(super) struct BuddySystem;

impl FrameAllocator for BuddySystem {
    type Hand = Buddies<NR_ORDERS>;

    fn name(&self) -> String {
        "buddy_system_allocator".into()
    }

    fn hands(&self, nr_frames: usize, nr_hands: usize) -> Vec<Self::Hand> {
        assert_eq!(nr_hands, 1, "it knows no threads");
        let mut buddies = Buddies::new();
        buddies.add_frame(0, nr_frames);
        vec![buddies]
    }
}

impl Hand for Buddies<NR_ORDERS> {
    fn get(&mut self, order: u32) -> Option<usize> {
        self.alloc(1 << order)
    }

    fn put(&mut self, frame: usize, order: u32) {
        self.dealloc(frame, 1 << order);
    }
}
