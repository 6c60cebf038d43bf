//! Taking a free block of 128 MiB out of use: what the allocator's own books cost, without host or guest memory.

use guest_mm::{BlockIndex, ZoneKind};

use crate::clock::{Sample, Stopwatch};
use crate::flat::memory;
use crate::measure::Contestant;
use crate::rows::OURS;

/// Frames of a block of 128 MiB.
pub(crate) const BLOCK_FRAMES: usize = 1 << 15;
/// Blocks in the memory; samples go round them.
pub(crate) const NR_BLOCKS: usize = 8;
/// Frames of boot memory, which nobody uses.
const BOOT: u32 = 1 << 9;

/// Isolates and takes offline free blocks; bringing them back is not counted.
pub(crate) fn ours() -> Contestant {
    let number = |number| u32::try_from(number).expect("a few");
    let mut memory = memory(BOOT, number(BLOCK_FRAMES), number(NR_BLOCKS));
    Contestant {
        name: OURS.into(),
        sample: Box::new(move |repeats| {
            round(
                repeats,
                &mut memory,
                |memory, block| {
                    let isolated = memory
                        .isolate(BlockIndex(number(block)))
                        .expect("it is online and free");
                    memory.offline(isolated).expect("it is free");
                },
                |memory, block| {
                    memory
                        .online(BlockIndex(number(block)), ZoneKind::Movable)
                        .expect("it is offline");
                },
            )
        }),
    }
}

/// Takes all blocks out, which counts, and brings them back, which does not, that often.
pub(crate) fn round<A>(
    repeats: u64,
    allocator: &mut A,
    mut offline: impl FnMut(&mut A, usize),
    mut online: impl FnMut(&mut A, usize),
) -> Sample {
    let mut sum = Sample::default();
    for _ in 0..repeats {
        let watch = Stopwatch::start();
        (0..NR_BLOCKS).for_each(|block| offline(allocator, block));
        sum += watch.stop(NR_BLOCKS as u64);
        (0..NR_BLOCKS).for_each(|block| online(allocator, block));
    }
    sum
}
