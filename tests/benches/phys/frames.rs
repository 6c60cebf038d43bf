//! The suite for frame allocators: the same loops, compiled for each of them.

use std::sync::Barrier;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::clock::{Sample, Stopwatch, pin};
use crate::measure::Contestant;
use crate::random::Random;

/// Frames of the memory that the allocators manage: 1 GiB.
pub(crate) const NR_FRAMES: usize = 1 << 18;
/// Order of a 2 MiB frame.
pub(crate) const HUGE: u32 = 9;

/// One thread's access to a frame allocator.
pub(crate) trait Hand: Send + 'static {
    /// Takes 2^order frames, naturally aligned; the number of the first.
    fn get(&mut self, order: u32) -> Option<usize>;
    /// Gives back what [`get`](Self::get) returned.
    fn put(&mut self, frame: usize, order: u32);
    /// Gives the frames that this thread keeps at hand back to all.
    fn drain(&mut self) {}
}

/// A frame allocator to be measured.
pub(crate) trait FrameAllocator {
    /// How a thread holds it.
    type Hand: Hand;
    /// What the table calls it.
    fn name(&self) -> String;
    /// A new allocator with that many frames, all free, and as many hands on it.
    fn hands(&self, nr_frames: usize, nr_hands: usize) -> Vec<Self::Hand>;
}

/// The suite, for whichever allocator is behind it.
pub(crate) trait FrameSuite {
    /// `get` and `put` of one chunk of that order, over and over, in as many threads; half of the memory is taken.
    fn pairs(&self, order: u32, nr_threads: usize) -> Contestant;
    /// `get` of half of the memory frame by frame, then `put` of all of it: no list of a processor holds that.
    fn bulk(&self) -> Contestant;
    /// Free 2 MiB frames, as a share of all, after the random half-full workload with that seed: everything taken, half
    /// of it freed at random, then 200 rounds of freeing a tenth at random and taking as much.
    fn half_full(&self, seed: u64) -> f64;
    /// What the table calls the allocator.
    fn label(&self) -> String;
}

impl<A: FrameAllocator> FrameSuite for A {
    fn pairs(&self, order: u32, nr_threads: usize) -> Contestant {
        match order {
            0 => pairs::<A, 0>(self, nr_threads),
            HUGE => pairs::<A, HUGE>(self, nr_threads),
            _ => unreachable!("no row takes chunks of order {order}"),
        }
    }

    fn bulk(&self) -> Contestant {
        let mut hand = self.hands(NR_FRAMES, 1).remove(0);
        let mut taken = Vec::with_capacity(NR_FRAMES / 2);
        Contestant {
            name: self.name(),
            sample: Box::new(move |repeats| {
                let watch = Stopwatch::start();
                for _ in 0..repeats {
                    for _ in 0..NR_FRAMES / 2 {
                        taken.push(hand.get(0).expect("half of the memory"));
                    }
                    while let Some(frame) = taken.pop() {
                        hand.put(frame, 0);
                    }
                }
                watch.stop(repeats * (NR_FRAMES / 2) as u64)
            }),
        }
    }

    fn half_full(&self, seed: u64) -> f64 {
        let mut hand = self.hands(NR_FRAMES, 1).remove(0);
        let mut random = Random::new(seed);
        let mut taken = Vec::with_capacity(NR_FRAMES);
        while let Some(frame) = hand.get(0) {
            taken.push(frame);
        }
        let half = taken.len() / 2;
        while taken.len() > half {
            hand.put(taken.swap_remove(random.below(taken.len())), 0);
        }
        for _ in 0..200 {
            for _ in 0..half / 10 {
                hand.put(taken.swap_remove(random.below(taken.len())), 0);
            }
            for _ in 0..half / 10 {
                taken.push(hand.get(0).expect("as many were put"));
            }
        }
        hand.drain();
        let huge = std::iter::from_fn(|| hand.get(HUGE)).count();
        huge as f64 / (NR_FRAMES >> HUGE) as f64
    }

    fn label(&self) -> String {
        self.name()
    }
}

/// The order is known when the loop is compiled, as it is in an allocator's callers.
fn pairs<A: FrameAllocator, const ORDER: u32>(allocator: &A, nr_threads: usize) -> Contestant {
    let mut hands = allocator.hands(NR_FRAMES, nr_threads);
    for _ in 0..(NR_FRAMES >> ORDER) / 2 {
        hands[0].get(ORDER).expect("half of the memory");
    }
    Contestant {
        name: allocator.name(),
        sample: Box::new(move |repeats| match &mut hands[..] {
            [hand] => pair_loop::<ORDER>(hand, repeats),
            hands => pairs_in_parallel::<ORDER>(hands, repeats),
        }),
    }
}

#[inline(never)]
fn pair_loop<const ORDER: u32>(hand: &mut impl Hand, repeats: u64) -> Sample {
    let watch = Stopwatch::start();
    for _ in 0..repeats {
        let frame = hand.get(ORDER).expect("half of the memory is free");
        // What one call did to memory is there before the next begins.
        compiler_fence(Ordering::SeqCst);
        hand.put(frame, ORDER);
        compiler_fence(Ordering::SeqCst);
    }
    watch.stop(repeats)
}

/// Each thread on a processor of its own; the slowest counts.
fn pairs_in_parallel<const ORDER: u32>(hands: &mut [impl Hand], repeats: u64) -> Sample {
    let start = Barrier::new(hands.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = hands
            .iter_mut()
            .enumerate()
            .map(|(index, hand)| {
                let start = &start;
                scope.spawn(move || {
                    pin(index);
                    start.wait();
                    pair_loop::<ORDER>(hand, repeats)
                })
            })
            .collect();
        let samples = threads
            .into_iter()
            .map(|thread| thread.join().expect("the loop ends"));
        samples
            .max_by_key(|sample| sample.cpu)
            .expect("at least one thread")
    })
}
