//! What the workers of the devices tell the world: the control channel shows it.

use crate::resize::blame::Blame;
use guest_mm::VmStat;
use guest_virtio::plan::{StallReason, StuckBlocks};

/// What the resize worker tells the world.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ResizeStatus {
    /// Bytes that the host wants plugged.
    pub(crate) requested: u64,
    /// Bytes that are plugged.
    pub(crate) plugged: u64,
    /// Whether it is taking or emptying blocks just now.
    pub(crate) at_work: bool,
    /// How often it was begun with the size that the host wants: again after each pause, when it did not get there.
    pub(crate) tries: u64,
    /// Why it does not go on; `None` while it does, and when there is nothing to do.
    pub(crate) stall: Option<StallReason>,
    /// What keeps a block, or is being waited for.
    pub(crate) blame: Option<Blame>,
    /// Blocks that do not leave.
    pub(crate) stuck: StuckBlocks,
    /// How many blocks had left before the host wanted that.
    pub(crate) before: Passes,
}

/// How many blocks have left at the first look at their pages, at the second, and later.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Passes(pub(crate) [u64; 3]);

impl Passes {
    /// Since boot.
    pub(crate) const fn of(stats: &VmStat) -> Self {
        Self([
            stats.blocks_unplug_pass1,
            stats.blocks_unplug_pass2,
            stats.blocks_unplug_pass_more,
        ])
    }

    /// Since things stood like `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self([0, 1, 2].map(|pass| self.0[pass] - before.0[pass]))
    }
}

/// What the balloon's worker tells the world. Pages of 4 KiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BalloonStatus {
    /// That the host wants in the balloon.
    pub(crate) target: u64,
    /// That are in it.
    pub(crate) held: u64,
    /// That went in, since boot.
    pub(crate) inflated: u64,
    /// That came out, since boot.
    pub(crate) deflated: u64,
    /// There is no page that could go in.
    pub(crate) stalled: bool,
}
