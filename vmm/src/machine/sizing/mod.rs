//! One target, two means: how much of a size the guest is asked to reach by blocks, and how much by its balloon.
//!
//! Blocks come first: what is unplugged is protected, and costs the guest nothing while it is away. The balloon takes
//! what blocks cannot give: a part of a block, boot memory, and blocks that the guest cannot empty. When the balloon holds a
//! block's worth of them, the guest is lent that much for a moment, so that it has the room to empty a block after
//! all; each block that goes this way lets the balloon shrink by as much.
//!
//! Pure: [`Sizing::step`] is told how things stand and what time it is, and answers what to ask of the devices.

#[cfg(test)]
mod tests;

use std::time::Duration;

/// Blocks that have not moved for so long will not: the balloon takes the rest.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// How long a block's worth of the balloon is lent.
pub(super) const LOAN: Duration = Duration::from_secs(2);
/// From one loan that led to nothing to the next, at first; twice as long each time.
pub(super) const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// The same, at most.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(160);

/// The machine's limits. Sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Boot memory.
    pub(super) boot_memory: u64,
}

/// What the guest is to have. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// In all.
    pub(super) total: u64,
    /// In each hot-plug region, in whole blocks. Where that and boot memory are more than the total, the balloon takes the
    /// rest.
    pub(super) blocks: Vec<u64>,
}

/// How things stand. Sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    /// Plugged in all regions.
    pub(super) plugged: u64,
    /// In the balloon; 0 without one, or without a driver for it.
    pub(super) held: u64,
    /// A block that a region has too many of, no larger than what is in the balloon, and the largest such one; 0: none.
    pub(super) surplus_block: u64,
}

/// What to ask of the devices. Sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orders {
    /// To be requested of all regions together: what [`Sizing::blocks`] add up to.
    pub(super) requested: u64,
    /// To be in the balloon.
    pub(super) balloon: u64,
    /// The guest should try again to unplug, even if the same was requested before.
    pub(super) try_again: bool,
    /// When to look again, if nothing happens before.
    pub(super) wake: Option<Duration>,
}

/// The target, and how far the means have been tried.
#[derive(Debug, Clone)]
pub(super) struct Sizing {
    limits: Limits,
    target: Target,
    phase: Phase,
    plugged: u64,
    /// When a block last moved, or the target was set.
    moved_at: Duration,
    pause: Duration,
}

/// What the balloon may do while more is plugged than wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The guest is unplugging: the balloon takes no more of the memory that is moved about.
    Blocks,
    /// The balloon takes the rest, until it is time for a loan.
    Balloon { until: Duration },
    /// A block's worth is lent, until it is called back.
    Loan { until: Duration, bytes: u64 },
}

impl Sizing {
    /// A machine whose guest is to have `target`.
    pub(super) fn new(limits: Limits, target: Target, now: Duration) -> Self {
        Self {
            limits,
            target,
            phase: Phase::Blocks,
            plugged: 0,
            moved_at: now,
            pause: FIRST_PAUSE,
        }
    }

    /// What the guest is to have in all, in bytes.
    pub(super) fn target(&self) -> u64 {
        self.target.total
    }

    /// What is to be requested of each region.
    pub(super) fn blocks(&self) -> &[u64] {
        &self.target.blocks
    }

    /// Asks for a total, which the caller has checked, or for the same once more: everything is tried afresh.
    pub(super) fn ask(&mut self, target: Target, now: Duration) {
        *self = Self {
            plugged: self.plugged,
            ..Self::new(self.limits, target, now)
        };
    }

    /// What is to be plugged in all regions together.
    pub(super) fn wanted_plugged(&self) -> u64 {
        self.target.blocks.iter().sum()
    }

    /// What to ask of the devices now. To be called when something has changed, and at [`Orders::wake`].
    pub(super) fn step(&mut self, view: View, now: Duration) -> Orders {
        let moved = view.plugged != self.plugged;
        if moved {
            self.plugged = view.plugged;
            self.moved_at = now;
            self.pause = FIRST_PAUSE;
        }
        let requested = self.wanted_plugged();
        let surplus = (self.limits.boot_memory + view.plugged).saturating_sub(self.target.total);
        let before = self.phase;
        self.phase = if view.plugged <= requested {
            Phase::Blocks
        } else {
            self.next_phase(view.surplus_block, moved, now)
        };
        let lends = matches!(self.phase, Phase::Loan { .. });
        Orders {
            requested,
            balloon: match self.phase {
                Phase::Blocks if view.plugged > requested => view.held.min(surplus),
                Phase::Blocks | Phase::Balloon { .. } => surplus,
                Phase::Loan { bytes, .. } => surplus.saturating_sub(bytes),
            },
            try_again: lends && (moved || self.phase != before),
            wake: match self.phase {
                Phase::Blocks if view.plugged > requested => Some(self.moved_at + PATIENCE),
                Phase::Blocks => None,
                Phase::Balloon { until } | Phase::Loan { until, .. } => Some(until),
            },
        }
    }

    /// The phase while more is plugged than wanted.
    fn next_phase(&mut self, surplus_block: u64, moved: bool, now: Duration) -> Phase {
        match self.phase {
            Phase::Blocks if now >= self.moved_at + PATIENCE => Phase::Balloon {
                until: now + self.pause,
            },
            // What was lent has been used well: the next block, at once.
            Phase::Loan { bytes, .. } if moved => {
                let bytes = if surplus_block > 0 { surplus_block } else { bytes };
                Phase::Loan {
                    until: now + LOAN,
                    bytes,
                }
            }
            Phase::Loan { until, .. } if now >= until => {
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Phase::Balloon {
                    until: now + self.pause,
                }
            }
            Phase::Balloon { until } if now >= until => {
                if surplus_block > 0 {
                    let (until, bytes) = (now + LOAN, surplus_block);
                    Phase::Loan { until, bytes }
                } else {
                    Phase::Balloon {
                        until: now + self.pause,
                    }
                }
            }
            phase => phase,
        }
    }
}
