//! Taking a free block of 128 MiB out of use: what the allocator's own books cost, without host or guest memory.

use crate::clock::{Sample, Stopwatch};
use crate::frames::FrameSuite;
use crate::measure::Contestant;
use crate::peers::Plugin;

/// Frames of a block of 128 MiB.
pub(crate) const BLOCK_FRAMES: usize = 1 << 15;
/// Blocks in the memory; samples go round them.
pub(crate) const NR_BLOCKS: usize = 8;

/// The allocators from outside that can take a range of frames out of use.
pub(crate) fn peers(plugins: &[Plugin]) -> Vec<Contestant> {
    let able = plugins.iter().filter_map(|plugin| {
        let mut ranges = plugin.ranges(NR_BLOCKS * BLOCK_FRAMES)?;
        Some(Contestant {
            name: plugin.label(),
            sample: Box::new(move |repeats| {
                round(
                    repeats,
                    &mut ranges,
                    |ranges, block| ranges.offline(block * BLOCK_FRAMES, BLOCK_FRAMES),
                    |ranges, block| ranges.online(block * BLOCK_FRAMES, BLOCK_FRAMES),
                )
            }),
        })
    });
    able.collect()
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
