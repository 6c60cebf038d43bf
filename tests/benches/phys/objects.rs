//! The suite for allocators of objects.

use std::hint::black_box;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::clock::Stopwatch;
use crate::measure::Contestant;

/// Objects that stay allocated while pairs are measured, so that no allocator is at its first object.
const NR_LIVE: usize = 1000;

/// An allocator of objects of one size, as a single thread holds it.
pub(crate) trait Objects: 'static {
    /// Takes an object.
    fn get(&mut self) -> Option<NonNull<u8>>;
    /// Gives back what [`get`](Self::get) returned.
    fn put(&mut self, object: NonNull<u8>);
}

/// An object allocator to be measured.
pub(crate) trait ObjectAllocator {
    /// What serves one size.
    type Objects: Objects;
    /// What the table calls it.
    fn name(&self) -> String;
    /// A new allocator, asked for objects of that many bytes, aligned to 8.
    fn objects(&self, size: usize) -> Self::Objects;
}

/// The suite, for whichever allocator is behind it.
pub(crate) trait ObjectSuite {
    /// `get`, a store into the object, and `put`, over and over, while others stay.
    fn pairs(&self, size: usize) -> Contestant;
}

impl<A: ObjectAllocator> ObjectSuite for A {
    fn pairs(&self, size: usize) -> Contestant {
        let mut objects = self.objects(size);
        for _ in 0..NR_LIVE {
            black_box(objects.get().expect("there is memory"));
        }
        Contestant {
            name: self.name(),
            sample: Box::new(move |repeats| {
                let watch = Stopwatch::start();
                for _ in 0..repeats {
                    let object = objects.get().expect("there is memory");
                    // What one call did to memory is there before the next begins.
                    compiler_fence(Ordering::SeqCst);
                    objects.put(black_box(object));
                    compiler_fence(Ordering::SeqCst);
                }
                watch.stop(repeats)
            }),
        }
    }
}
