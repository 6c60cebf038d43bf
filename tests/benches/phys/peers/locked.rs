//! An allocator that knows no threads, shared by several behind one spin lock.

use std::sync::Arc;

use crate::frames::{FrameAllocator, Hand};

/// The allocator, locked for every call.
pub(super) struct Locked<A>(pub(super) A);

impl<A: FrameAllocator> FrameAllocator for Locked<A> {
    type Hand = Arc<spin::Mutex<A::Hand>>;

    fn name(&self) -> String {
        format!("{} + lock", self.0.name())
    }

    fn hands(&self, nr_frames: usize, nr_hands: usize) -> Vec<Self::Hand> {
        let shared = Arc::new(spin::Mutex::new(self.0.hands(nr_frames, 1).remove(0)));
        vec![shared; nr_hands]
    }
}

impl<H: Hand> Hand for Arc<spin::Mutex<H>> {
    fn get(&mut self, order: u32) -> Option<usize> {
        self.lock().get(order)
    }

    fn put(&mut self, frame: usize, order: u32) {
        self.lock().put(frame, order);
    }
}
