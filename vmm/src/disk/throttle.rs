//! How much a disk may do in a second: a rate limit, the time it goes by, and a timer for who has to wait.
//!
//! Nobody sleeps: an operation that has to wait stays in the guest's queue, and the event loop hears of the timer like of
//! anything else.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use devices::block::{Admission, Operation};
use devices::rate::{RateLimiter, RateSpec};
use vmm_sys_util::timerfd::TimerFd;

/// A rate limit on the host's clock.
#[derive(Debug)]
pub(super) struct Throttle {
    limiter: RateLimiter,
    began: Instant,
    /// Armed while an operation waits, for the time when its tokens are there.
    timer: TimerFd,
}

impl Throttle {
    /// # Errors
    /// No descriptors are left.
    pub(super) fn new(rate: RateSpec) -> io::Result<Self> {
        Ok(Self {
            limiter: RateLimiter::new(rate, Duration::ZERO),
            began: Instant::now(),
            timer: TimerFd::new()?,
        })
    }

    pub(super) fn rate(&self) -> RateSpec {
        self.limiter.spec()
    }

    /// What waits has to be asked for again: the timer knows nothing of the new rate.
    pub(super) fn set_rate(&mut self, rate: RateSpec) {
        let now = self.began.elapsed();
        self.limiter.change(rate, now);
    }

    pub(super) fn timer(&self) -> RawFd {
        self.timer.as_raw_fd()
    }

    /// Makes the timer unreadable again.
    ///
    /// # Errors
    /// The timer does not work.
    pub(super) fn time_has_come(&mut self) -> io::Result<()> {
        Ok(self.timer.clear()?)
    }

    /// Whether an operation may begin; if not, the timer goes off when it may.
    ///
    /// # Errors
    /// The timer does not work.
    pub(super) fn admit(&mut self, operation: &Operation) -> io::Result<Admission> {
        match self.limiter.take(self.began.elapsed(), operation.storage_len()) {
            Ok(()) => Ok(Admission::Now),
            Err(wait) => {
                self.timer.reset(wait, None)?;
                Ok(Admission::Later)
            }
        }
    }
}
