//! Why a resize does not go on, in the words that `vmstat` and `resize --wait` print.

use core::fmt;

/// Why a plug request came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlugFailure {
    /// NACK: the device does not want this now, for instance because `requested_size` was lowered.
    Nack,
    /// BUSY: the host cannot at the moment.
    Busy,
    /// ERROR: something is wrong with these blocks.
    Error,
    /// The guest had no memory to manage the new blocks with; it gave them back.
    NoMemory,
}

/// Why an unplug request came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnplugFailure {
    /// NACK.
    Nack,
    /// BUSY: the host cannot at the moment.
    Busy,
    /// ERROR: something is wrong with these blocks.
    Error,
}

/// Why a plugged block cannot be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StuckReason {
    /// A page on it cannot move for as long as its owner likes.
    Pinned,
    /// A page on it is in use just now (under I/O, being changed); later may work.
    Busy,
    /// What is on it found no room elsewhere.
    NoMemory,
    /// The guest gave it up, and the device would not take it.
    DeviceRefused,
}

impl From<UnplugFailure> for StuckReason {
    fn from(why: UnplugFailure) -> Self {
        match why {
            UnplugFailure::Busy => Self::Busy,
            UnplugFailure::Nack | UnplugFailure::Error => Self::DeviceRefused,
        }
    }
}

/// Why the target was not reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StallReason {
    /// The guest has no room: for what is on the blocks to unplug, or for managing the blocks to plug.
    NoMemory,
    /// Pages that cannot move.
    Pinned,
    /// The host, or pages in use just now: worth another try later.
    Busy,
    /// The device answered NACK or ERROR.
    DeviceRefused,
    /// No unplugged block is left in the usable region.
    RegionFull,
}

impl StallReason {
    /// One word, stable: the value of `resize_stall_reason` in `vmstat`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoMemory => "no-memory",
            Self::Pinned => "pinned",
            Self::Busy => "busy",
            Self::DeviceRefused => "device-refused",
            Self::RegionFull => "region-full",
        }
    }
}

impl fmt::Display for StallReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many plugged blocks cannot be given up, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StuckBlocks {
    /// [`StuckReason::Pinned`].
    pub pinned: u32,
    /// [`StuckReason::Busy`].
    pub busy: u32,
    /// [`StuckReason::NoMemory`].
    pub no_memory: u32,
    /// [`StuckReason::DeviceRefused`].
    pub device_refused: u32,
}

impl StuckBlocks {
    pub(super) fn add(&mut self, reason: StuckReason) {
        *match reason {
            StuckReason::Pinned => &mut self.pinned,
            StuckReason::Busy => &mut self.busy,
            StuckReason::NoMemory => &mut self.no_memory,
            StuckReason::DeviceRefused => &mut self.device_refused,
        } += 1;
    }

    /// All of them.
    pub const fn total(&self) -> u32 {
        self.pinned + self.busy + self.no_memory + self.device_refused
    }
}

impl fmt::Display for StuckBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks stay", self.total())?;
        let named = [
            (StallReason::Pinned, self.pinned),
            (StallReason::Busy, self.busy),
            (StallReason::NoMemory, self.no_memory),
            (StallReason::DeviceRefused, self.device_refused),
        ];
        let some = named.into_iter().filter(|&(_, count)| count > 0);
        some.enumerate().try_for_each(|(at, (reason, count))| {
            let before = if at == 0 { ":" } else { "," };
            write!(f, "{before} {count} {reason}")
        })
    }
}

/// The one reason to report for many stuck blocks: the one that somebody could do something about first.
pub(super) fn strongest(reasons: impl Iterator<Item = StuckReason>) -> StallReason {
    let rank = |reason: &StuckReason| match reason {
        StuckReason::NoMemory => 3,
        StuckReason::Busy => 2,
        StuckReason::DeviceRefused => 1,
        StuckReason::Pinned => 0,
    };
    match reasons.max_by_key(rank) {
        Some(StuckReason::NoMemory) => StallReason::NoMemory,
        Some(StuckReason::Busy) => StallReason::Busy,
        Some(StuckReason::DeviceRefused) => StallReason::DeviceRefused,
        // Nobody asks without a stuck block.
        Some(StuckReason::Pinned) | None => StallReason::Pinned,
    }
}
