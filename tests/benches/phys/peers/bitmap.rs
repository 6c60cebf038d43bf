//! `bitmap-allocator`: a tree of bitmaps.

use bitmap_allocator::{BitAlloc, BitAlloc1M};

use crate::frames::{FrameAllocator, Hand};

pub(super) struct Bitmap;

/// On the heap: the bitmap has 140 KiB.
pub(super) struct Bits(Box<BitAlloc1M>);

impl FrameAllocator for Bitmap {
    type Hand = Bits;

    fn name(&self) -> String {
        "bitmap-allocator".into()
    }

    fn hands(&self, nr_frames: usize, nr_hands: usize) -> Vec<Bits> {
        assert_eq!(nr_hands, 1, "it knows no threads");
        let mut bits = Box::new(BitAlloc1M::DEFAULT);
        bits.insert(0..nr_frames);
        vec![Bits(bits)]
    }
}

impl Hand for Bits {
    fn get(&mut self, order: u32) -> Option<usize> {
        match order {
            0 => self.0.alloc(),
            _ => self.0.alloc_contiguous(None, 1 << order, order as usize),
        }
    }

    fn put(&mut self, frame: usize, order: u32) {
        let freed = match order {
            0 => self.0.dealloc(frame),
            _ => self.0.dealloc_contiguous(frame, 1 << order),
        };
        assert!(freed, "frame {frame} was taken");
    }
}
