//! Resizing a running guest: what was asked, how far the guest got, and why not further.
//!
//! A resize is a wish: the machine changes the virtio-mem device's `requested_size`, and the guest's driver plugs or
//! unplugs blocks until `plugged_size` agrees, in its own time or never. Sizes here are totals in bytes, boot memory
//! plus hot-plugged memory.

use std::fmt;

use thiserror::Error;

use crate::spec::ByteSize;

/// Where memory comes from or goes to in a resize.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResizePlace {
    /// Any region: growing begins with the first one, shrinking with the last.
    #[default]
    Anywhere,
    /// The region with this index alone; the others are asked for what they were asked for before.
    Region(usize),
}

/// Why a resize was refused before the guest saw it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResizeError {
    /// The VM was started without a hot-plug region.
    #[error(
        "no hot-plug region: the memory of this VM stays at {boot_memory} bytes (start it with --hotplug SIZE)"
    )]
    NoRegion {
        /// Boot memory in bytes.
        boot_memory: u64,
    },
    /// Boot memory cannot be taken away.
    #[error("{total_bytes} bytes is below the boot memory of {boot_memory} bytes, which always stays")]
    BelowBootMemory {
        /// The total asked for, in bytes.
        total_bytes: u64,
        /// Boot memory in bytes.
        boot_memory: u64,
    },
    /// The region ends before the total asked for.
    #[error("{total_bytes} bytes is beyond the {limit} bytes of boot memory and hot-plug region together")]
    BeyondRegion {
        /// The total asked for, in bytes.
        total_bytes: u64,
        /// Boot memory plus region size, in bytes.
        limit: u64,
    },
    /// Memory comes and goes in whole blocks.
    #[error(
        "{total_bytes} bytes: the part above the boot memory of {boot_memory} bytes must be a multiple of the block size, {block_size} bytes"
    )]
    Unaligned {
        /// The total asked for, in bytes.
        total_bytes: u64,
        /// Boot memory in bytes.
        boot_memory: u64,
        /// Block size in bytes.
        block_size: u64,
    },
    /// The balloon leaves the guest its floor.
    #[error("{total_bytes} bytes is below the balloon's floor of {floor} bytes (see --balloon floor=SIZE)")]
    BelowFloor {
        /// The total asked for, in bytes.
        total_bytes: u64,
        /// The floor in bytes.
        floor: u64,
    },
    /// The balloon's unit is a page.
    #[error("{total_bytes} bytes is no multiple of the balloon's unit, {unit} bytes")]
    UnalignedToPages {
        /// The total asked for, in bytes.
        total_bytes: u64,
        /// The unit in bytes.
        unit: u64,
    },
    /// No whole blocks of the regions are so much together.
    #[error(
        "{total_bytes} bytes: the blocks of the regions do not add up to it; the next size below is {below} bytes"
    )]
    NotInBlocks {
        /// The total asked for, in bytes.
        total_bytes: u64,
        /// The largest total below it that the guest can have.
        below: u64,
    },
    /// No region has the index.
    #[error("region {region}: this VM has {regions} regions, counted from 0")]
    NoSuchRegion {
        /// The index asked for.
        region: usize,
        /// How many there are.
        regions: usize,
    },
    /// The region alone cannot make the change.
    #[error(
        "{total_bytes} bytes: region {region} would have to have {wanted}, and has 0 to {region_size} bytes in blocks of {block_size}"
    )]
    RegionAlone {
        /// The total asked for, in bytes.
        total_bytes: u64,
        /// The region.
        region: usize,
        /// What it would have to have, in bytes; may be less than nothing.
        wanted: i128,
        /// Its size, in bytes.
        region_size: u64,
        /// Its blocks, in bytes.
        block_size: u64,
    },
    /// The VM has ended or is ending.
    #[error("the VM has ended")]
    Ended,
}

/// How a resize stands when `VmHandle::wait_resize` returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResizeOutcome {
    /// The guest has exactly what was requested.
    Done {
        /// Boot memory plus plugged memory, in bytes.
        total_bytes: u64,
    },
    /// The guest has not got there.
    Incomplete {
        /// Boot memory plus plugged memory now, in bytes.
        reached_bytes: u64,
        /// Boot memory plus requested memory, in bytes.
        target_bytes: u64,
        /// The most telling reason known to the machine.
        reason: IncompleteReason,
        /// What the guest's own driver gives as its reason (`resize_stall_reason` of its `vmstat`), if it was asked
        /// and answered with anything but `none`.
        guest_reason: Option<String>,
    },
}

/// Why a resize is incomplete, as far as the machine can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncompleteReason {
    /// No driver has set DRIVER_OK on the virtio-mem device: nobody in the guest listens.
    DriverNotReady,
    /// All blocks are where they should be, and no driver has set DRIVER_OK on the balloon, which is to do the rest.
    BalloonNotReady,
    /// The guest is held, so that its driver does nothing.
    Held,
    /// There is a driver, and it has asked the device for nothing since the resize was asked for: it does not answer, or
    /// has no block that it could plug or empty.
    NoRequest {
        /// Seconds since the resize was asked for.
        quiet_seconds: u64,
        /// What is missing.
        shortfall: Shortfall,
    },
    /// The guest's requests were turned down since the resize was asked for, and nothing moves.
    Refused {
        /// NACK answers.
        nacks: u64,
        /// BUSY answers.
        busy: u64,
        /// ERROR answers.
        errors: u64,
        /// What is missing.
        shortfall: Shortfall,
    },
    /// The driver has done something and then went quiet.
    Stalled {
        /// Seconds since a block was last plugged or unplugged, or since the resize was asked for.
        quiet_seconds: u64,
        /// What is missing.
        shortfall: Shortfall,
    },
    /// Blocks were still moving when the time was up, or the guest was at work on one.
    TimedOut,
    /// The VM ended first.
    Ended,
}

/// How far a guest has got, and what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortfall {
    /// Whether the guest is to take or to give.
    pub way: Way,
    /// Moved this way since the resize was asked for, in bytes.
    pub moved_bytes: u64,
    /// Still to be moved, in bytes.
    pub missing_bytes: u64,
}

/// Which way memory goes in a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The guest is to take more.
    Take,
    /// The guest is to give some back.
    Give,
}

impl Shortfall {
    /// From three totals in bytes: before the resize, now, and as it should be.
    pub(super) fn between(before: u64, now: u64, target: u64) -> Self {
        let way = if now < target { Way::Take } else { Way::Give };
        let moved_bytes = match way {
            Way::Take => now.saturating_sub(before),
            Way::Give => before.saturating_sub(now),
        };
        Self {
            way,
            moved_bytes,
            missing_bytes: now.abs_diff(target),
        }
    }
}

impl fmt::Display for Shortfall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (missing, moved) = (ByteSize(self.missing_bytes), ByteSize(self.moved_bytes));
        match self.way {
            Way::Take => write!(f, "stalled with {missing} still to be taken and {moved} taken"),
            Way::Give => write!(
                f,
                "stalled with {missing} still to be given back and {moved} given back"
            ),
        }
    }
}

impl IncompleteReason {
    /// In one word, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::DriverNotReady => "driver-absent",
            Self::BalloonNotReady => "balloon-driver-absent",
            Self::Held => "held",
            Self::NoRequest { .. } => "no-request",
            Self::Refused { .. } => "refused",
            Self::Stalled { .. } => "stalled",
            Self::TimedOut => "time-up",
            Self::Ended => "ended",
        }
    }
}

impl fmt::Display for IncompleteReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DriverNotReady => f.write_str("the guest has no virtio-mem driver ready"),
            Self::BalloonNotReady => f.write_str("the guest has no virtio-balloon driver ready"),
            Self::Held => f.write_str("the guest is held"),
            Self::NoRequest {
                quiet_seconds,
                shortfall,
            } => {
                let other = match shortfall.way {
                    Way::Take => "cannot take any",
                    Way::Give => "has no block that it can empty",
                };
                write!(
                    f,
                    "{shortfall}: the guest's driver has asked for nothing for {quiet_seconds} s: it does not answer, or {other}"
                )
            }
            Self::Refused {
                nacks,
                busy,
                errors,
                shortfall,
            } => {
                write!(
                    f,
                    "{shortfall}: requests of the guest were refused: {nacks} NACK, {busy} BUSY, {errors} ERROR"
                )
            }
            Self::Stalled {
                quiet_seconds,
                shortfall,
            } => write!(f, "{shortfall}: nothing has moved for {quiet_seconds} s"),
            Self::TimedOut => f.write_str("time is up and memory is still moving"),
            Self::Ended => f.write_str("the VM has ended"),
        }
    }
}

impl fmt::Display for ResizeOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { total_bytes } => write!(f, "the guest has {total_bytes} bytes"),
            Self::Incomplete {
                reached_bytes,
                target_bytes,
                reason,
                guest_reason,
            } => {
                write!(
                    f,
                    "the guest has {reached_bytes} of {target_bytes} bytes: {reason}"
                )?;
                guest_reason
                    .as_ref()
                    .map_or(Ok(()), |guest| write!(f, " (the guest says: {guest})"))
            }
        }
    }
}
