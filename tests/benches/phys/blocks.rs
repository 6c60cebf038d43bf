//! The other allocators' part in taking a free block of 128 MiB out of use.

use crate::frames::FrameSuite;
use crate::measure::Contestant;
use crate::offline::{BLOCK_FRAMES, NR_BLOCKS, round};
use crate::peers::Plugin;

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
