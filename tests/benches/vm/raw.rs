//! What the rows are measured by: the copying, or the zeroing, alone. One operation is one page.

use guest_mm::{Frames, Order, Pfn};

use crate::clock::Stopwatch;
use crate::flat::Flat;
use crate::measure::Contestant;
use crate::random::Random;

const FRAMES: u32 = 1 << 14;

/// Copies of pages in random order to random places.
pub(crate) const MEMCPY: &str = "memcpy of random pages";
/// Pages zeroed in random order.
pub(crate) const ZERO: &str = "zeroing of random pages";
/// A run of blocks copied off a disk of memory.
pub(crate) const DEVICE: &str = "raw copy from the disk";

/// The same, and each page on to who reads it: what a page cache cannot do without.
pub(crate) const DEVICE_AND_READER: &str = "raw copy, and to the reader";

fn shuffled(order: Order) -> Vec<u32> {
    let mut random = Random::new(0x9e37_79b9_7f4a_7c15);
    let mut places: Vec<u32> = (0..FRAMES >> order.number())
        .map(|page| page << order.number())
        .collect();
    for place in (1..places.len()).rev() {
        places.swap(place, random.below(place + 1));
    }
    places
}

fn contestant(name: &str, pages: Vec<u32>, mut work: impl FnMut(usize, Pfn) + 'static) -> Contestant {
    Contestant {
        name: name.into(),
        sample: Box::new(move |repeats| {
            let watch = Stopwatch::start();
            for _ in 0..repeats {
                for (nth, page) in pages.iter().enumerate() {
                    work(nth, Pfn::new(*page));
                }
            }
            watch.stop(repeats * pages.len() as u64)
        }),
    }
}

pub(crate) fn memcpy() -> Contestant {
    let (from, to) = (Flat::new(FRAMES), Flat::new(FRAMES));
    let mut targets = shuffled(Order::ZERO);
    targets.reverse();
    contestant(MEMCPY, shuffled(Order::ZERO), move |nth, page| {
        from.copy_to(page, &to, Pfn::new(targets[nth]));
    })
}

pub(crate) fn zeroing(order: Order) -> Contestant {
    let frames = Flat::new(FRAMES);
    contestant(ZERO, shuffled(order), move |_, page| frames.zero(page, order))
}

/// The same, and each page to who reads it.
pub(crate) fn device_and_reader() -> Contestant {
    let (disk, frames, reader) = (Flat::new(FRAMES), Flat::new(FRAMES), Flat::new(1));
    contestant(DEVICE_AND_READER, (0..2048).collect(), move |_, page| {
        disk.copy_to(page, &frames, page);
        frames.copy_to(page, &reader, Pfn::new(0));
    })
}

pub(crate) fn device() -> Contestant {
    let (disk, frames) = (Flat::new(FRAMES), Flat::new(FRAMES));
    contestant(DEVICE, (0..2048).collect(), move |_, page| {
        disk.copy_to(page, &frames, page);
    })
}
