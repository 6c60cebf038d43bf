//! How the guest follows a resize: what to wait for, and what to say when it did not get there.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::{IncompleteReason, ResizeOutcome, Shortfall};

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
    /// How things stood when the size was last asked for.
    before: Standing,
    /// Whether it has been said that the guest has what was last asked for.
    told: bool,
    /// How many are just asking: what is reached meanwhile is told when it is known that it was asked for.
    asking: u32,
    /// Expires when nothing has moved for [`QUIET`].
    timer: TimerFd,
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
    /// Whether the guest is held.
    pub(super) held: bool,
    /// All requests of the guest so far.
    pub(super) requests: u64,
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
            held: self.held || other.held,
            requests: self.requests + other.requests,
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

    /// Whether the guest has what it is to have.
    fn is_there(&self, boot_memory: u64) -> bool {
        self.reached(boot_memory) == self.target(boot_memory)
    }

    /// Whether the guest has done something since things stood like `before`.
    fn is_beyond(&self, before: &Self) -> bool {
        let held = |standing: &Self| standing.balloon.map(|balloon| balloon.held);
        self.requests > before.requests || held(self) != held(before)
    }

    /// Whether the driver that could still do something is there. A balloon gives back what it holds beyond what is wanted
    /// in it, and takes from any guest that is to give; blocks it cannot plug.
    fn drivers_ready(&self, boot_memory: u64) -> bool {
        let grows = self.reached(boot_memory) < self.target(boot_memory);
        let balloon = self.balloon.filter(|balloon| balloon.driver_ready);
        let balloon_can = balloon.is_some_and(|balloon| !grows || balloon.held > balloon.wanted);
        balloon_can || (self.driver_ready && self.plugged_size != self.requested_size)
    }
}

impl ResizeProgress {
    /// # Errors
    /// The host gives no timer.
    pub(super) fn new() -> io::Result<Self> {
        let state = State {
            last_move: Instant::now(),
            before: Standing::default(),
            told: false,
            asking: 0,
            timer: TimerFd::new().map_err(io::Error::from)?,
            ended: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            moved: Condvar::new(),
        })
    }

    /// Readable when [`Self::stalled`] is to be called.
    pub(super) fn timer(&self) -> RawFd {
        self.lock().timer.as_raw_fd()
    }

    /// A size is about to be asked for: until [`Self::asked`] nobody is told that it is there.
    pub(super) fn asking(&self) {
        self.lock().asking += 1;
    }

    /// It is known that a size was asked for.
    pub(super) fn asked(&self) {
        self.lock().asking -= 1;
    }

    /// A size has been asked for, and things stand so.
    pub(super) fn requested(&self, before: &Standing) {
        let mut state = self.lock();
        state.before = *before;
        state.told = false;
        state.has_moved();
        self.moved.notify_all();
    }

    /// Blocks were plugged or unplugged. Returns whether the guest has just got what was asked for.
    pub(super) fn moved(&self, boot_memory: u64, standing: &Standing) -> bool {
        let mut state = self.lock();
        state.has_moved();
        self.moved.notify_all();
        standing.is_there(boot_memory) && state.asking == 0 && !std::mem::replace(&mut state.told, true)
    }

    /// Why the guest does not have what was asked for, if nothing has moved for a while.
    pub(super) fn stalled(&self, boot_memory: u64, standing: &Standing) -> Option<IncompleteReason> {
        let mut state = self.lock();
        let now = Instant::now();
        if now < state.last_move + QUIET {
            // Something has moved since the timer expired, and has set it anew.
            return None;
        }
        // What has expired stays readable until it is set or cleared.
        let _ = state.timer.clear();
        (!standing.is_there(boot_memory)).then(|| state.reason(boot_memory, standing, now))
    }

    /// The guest is at work, though nothing has moved: it is asked again when as much time has passed.
    pub(super) fn look_again(&self) {
        let mut state = self.lock();
        // A timer that cannot be set says nothing.
        let _ = state.timer.reset(QUIET, None);
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
            if standing.is_there(boot_memory) {
                return ResizeOutcome::Done {
                    total_bytes: reached_bytes,
                };
            }
            if state.ended || now >= deadline {
                return ResizeOutcome::Incomplete {
                    reached_bytes,
                    target_bytes,
                    reason: state.reason(boot_memory, &standing, now),
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
    /// Something has moved: it may be quiet from now on.
    fn has_moved(&mut self) {
        self.last_move = Instant::now();
        // A timer that cannot be set says nothing; waiters have their own clock.
        let _ = self.timer.reset(QUIET, None);
    }

    /// The most telling reason: no VM, nobody there, at work, never began, turned down, or gone quiet.
    fn reason(&self, boot_memory: u64, standing: &Standing, now: Instant) -> IncompleteReason {
        let quiet = now.saturating_duration_since(self.last_move);
        let quiet_seconds = quiet.as_secs();
        let shortfall = Shortfall::between(
            self.before.reached(boot_memory),
            standing.reached(boot_memory),
            standing.target(boot_memory),
        );
        let (since, before) = (standing.refusals, self.before.refusals);
        let (nacks, busy, errors) = (
            since.nacks.saturating_sub(before.nacks),
            since.busy.saturating_sub(before.busy),
            since.errors.saturating_sub(before.errors),
        );
        if self.ended {
            IncompleteReason::Ended
        } else if standing.held {
            IncompleteReason::Held
        } else if !standing.drivers_ready(boot_memory) {
            let no_balloon_driver = standing.balloon.is_some_and(|balloon| !balloon.driver_ready);
            if no_balloon_driver && standing.driver_ready && standing.plugged_size == standing.requested_size
            {
                IncompleteReason::BalloonNotReady
            } else {
                IncompleteReason::DriverNotReady
            }
        } else if quiet < QUIET && standing.reached(boot_memory) != self.before.reached(boot_memory) {
            IncompleteReason::TimedOut
        } else if !standing.is_beyond(&self.before) {
            IncompleteReason::NoRequest {
                quiet_seconds,
                shortfall,
            }
        } else if nacks + busy + errors > 0 {
            IncompleteReason::Refused {
                nacks,
                busy,
                errors,
                shortfall,
            }
        } else {
            IncompleteReason::Stalled {
                quiet_seconds,
                shortfall,
            }
        }
    }
}

#[cfg(test)]
mod tests;
