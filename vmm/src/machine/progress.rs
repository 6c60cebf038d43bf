//! How the guest follows a resize: what to wait for, and what to say when it did not get there.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{IncompleteReason, ResizeOutcome};

/// A guest that has moved no block for so long is called stalled rather than slow.
const QUIET: Duration = Duration::from_secs(2);

/// Wakes those who wait for a resize, and keeps what they want to know. Lock order: before a device's lock.
#[derive(Debug)]
pub(super) struct ResizeProgress {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug)]
struct State {
    /// When the size was last asked for or a block last moved.
    last_move: Instant,
    /// The refusals when the size was last asked for.
    before: Refusals,
    ended: bool,
}

/// Requests of the guest that were not granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Refusals {
    pub(super) nacks: u64,
    pub(super) busy: u64,
    pub(super) errors: u64,
}

/// How things stand with the memory devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// Requested part of the regions, in bytes.
    pub(super) requested_size: u64,
    /// Plugged part of the regions, in bytes.
    pub(super) plugged_size: u64,
    /// Whether a driver is using each of them.
    pub(super) driver_ready: bool,
    /// All refusals so far.
    pub(super) refusals: Refusals,
    /// How things stand with the balloon, if there is one.
    pub(super) balloon: Option<BalloonStanding>,
}

/// How things stand with the balloon. Sizes are bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct BalloonStanding {
    /// In the balloon.
    pub(super) held: u64,
    /// Wanted in it.
    pub(super) wanted: u64,
    /// Boot memory, blocks and balloon together: what the guest was asked to have, if it was.
    pub(super) target: Option<u64>,
    /// Whether a driver is using it.
    pub(super) driver_ready: bool,
}

impl Standing {
    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            requested_size: self.requested_size + other.requested_size,
            plugged_size: self.plugged_size + other.plugged_size,
            driver_ready: self.driver_ready && other.driver_ready,
            refusals: Refusals {
                nacks: self.refusals.nacks + other.refusals.nacks,
                busy: self.refusals.busy + other.refusals.busy,
                errors: self.refusals.errors + other.refusals.errors,
            },
            balloon: self.balloon.or(other.balloon),
        }
    }

    /// What the guest is to have, in bytes.
    pub(super) fn target(&self, boot_memory: u64) -> u64 {
        let blocks = boot_memory + self.requested_size;
        self.balloon.map_or(blocks, |balloon| {
            let wanted = || blocks.saturating_sub(balloon.wanted);
            balloon.target.unwrap_or_else(wanted)
        })
    }

    /// What the guest has, in bytes: without what is in its balloon.
    pub(super) fn reached(&self, boot_memory: u64) -> u64 {
        let held = self.balloon.map_or(0, |balloon| balloon.held);
        (boot_memory + self.plugged_size).saturating_sub(held)
    }

    /// Whether the driver that could still do something is there.
    fn drivers_ready(&self) -> bool {
        let balloon_ready = self.balloon.is_some_and(|balloon| balloon.driver_ready);
        balloon_ready || (self.driver_ready && self.plugged_size != self.requested_size)
    }
}

impl ResizeProgress {
    pub(super) fn new() -> Self {
        let state = State {
            last_move: Instant::now(),
            before: Refusals::default(),
            ended: false,
        };
        Self {
            state: Mutex::new(state),
            moved: Condvar::new(),
        }
    }

    /// A size is being asked for; `before` are the refusals up to now.
    pub(super) fn requested(&self, before: Refusals) {
        let mut state = self.lock();
        state.last_move = Instant::now();
        state.before = before;
        self.moved.notify_all();
    }

    /// Blocks were plugged or unplugged.
    pub(super) fn moved(&self) {
        self.lock().last_move = Instant::now();
        self.moved.notify_all();
    }

    /// The VM ends.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.moved.notify_all();
    }

    /// Waits until the guest has what is requested beyond `boot_memory` bytes, the VM ends, or `deadline` passes.
    pub(super) fn wait(
        &self,
        boot_memory: u64,
        deadline: Instant,
        look: impl Fn() -> Standing,
    ) -> ResizeOutcome {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            let standing = look();
            let (reached_bytes, target_bytes) = (standing.reached(boot_memory), standing.target(boot_memory));
            if reached_bytes == target_bytes {
                return ResizeOutcome::Done {
                    total_bytes: reached_bytes,
                };
            }
            if state.ended || now >= deadline {
                return ResizeOutcome::Incomplete {
                    reached_bytes,
                    target_bytes,
                    reason: state.reason(&standing, now),
                    guest_reason: None,
                };
            }
            state = self
                .moved
                .wait_timeout(state, deadline - now)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The most telling reason: no VM, nobody there, turned down, gone quiet, or simply slow.
    fn reason(&self, standing: &Standing, now: Instant) -> IncompleteReason {
        let quiet = now.saturating_duration_since(self.last_move);
        let Refusals { nacks, busy, errors } = standing.refusals;
        let (nacks, busy, errors) = (
            nacks.saturating_sub(self.before.nacks),
            busy.saturating_sub(self.before.busy),
            errors.saturating_sub(self.before.errors),
        );
        if self.ended {
            IncompleteReason::Ended
        } else if !standing.drivers_ready() {
            if standing.balloon.is_some() && standing.plugged_size == standing.requested_size {
                IncompleteReason::BalloonNotReady
            } else {
                IncompleteReason::DriverNotReady
            }
        } else if quiet < QUIET {
            IncompleteReason::TimedOut
        } else if nacks + busy + errors > 0 {
            IncompleteReason::Refused { nacks, busy, errors }
        } else {
            IncompleteReason::Stalled {
                quiet_seconds: quiet.as_secs(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    const STANDING: Standing = Standing {
        balloon: None,
        requested_size: 100,
        plugged_size: 40,
        driver_ready: true,
        refusals: Refusals {
            nacks: 5,
            busy: 0,
            errors: 0,
        },
    };

    fn reason(state: &State, standing: Standing) -> IncompleteReason {
        state.reason(&standing, Instant::now())
    }

    fn quiet_since(seconds: u64, before: Refusals) -> State {
        State {
            last_move: Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap(),
            before,
            ended: false,
        }
    }

    #[test]
    fn the_most_telling_reason_is_given() {
        let none = Refusals::default();
        assert_eq!(
            reason(&quiet_since(0, none), STANDING),
            IncompleteReason::TimedOut
        );
        assert_eq!(
            reason(&quiet_since(9, none), STANDING),
            IncompleteReason::Refused {
                nacks: 5,
                busy: 0,
                errors: 0
            }
        );
        // Refusals from before the resize explain nothing.
        assert_eq!(
            reason(&quiet_since(9, STANDING.refusals), STANDING),
            IncompleteReason::Stalled { quiet_seconds: 9 }
        );
        let nobody = Standing {
            driver_ready: false,
            ..STANDING
        };
        assert_eq!(
            reason(&quiet_since(0, none), nobody),
            IncompleteReason::DriverNotReady
        );
        let state = State {
            ended: true,
            ..quiet_since(0, none)
        };
        assert_eq!(reason(&state, nobody), IncompleteReason::Ended);
    }

    #[test]
    fn a_waiter_is_woken_by_the_last_block() {
        let progress = Arc::new(ResizeProgress::new());
        let plugged = Arc::new(AtomicU64::new(40));
        let waiter = {
            let (progress, plugged) = (Arc::clone(&progress), Arc::clone(&plugged));
            std::thread::spawn(move || {
                let look = || Standing {
                    plugged_size: plugged.load(Ordering::Acquire),
                    ..STANDING
                };
                progress.wait(512, Instant::now() + Duration::from_secs(60), look)
            })
        };
        for size in [60, 80, 100] {
            plugged.store(size, Ordering::Release);
            progress.moved();
        }
        assert_eq!(waiter.join().unwrap(), ResizeOutcome::Done { total_bytes: 612 });
    }

    #[test]
    fn a_waiter_is_told_how_far_it_got() {
        let outcome = ResizeProgress::new().wait(512, Instant::now(), || STANDING);
        assert!(matches!(
            outcome,
            ResizeOutcome::Incomplete {
                reached_bytes: 552,
                target_bytes: 612,
                ..
            }
        ));
    }
}
