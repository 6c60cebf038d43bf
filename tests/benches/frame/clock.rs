//! Time as a benchmark on a shared machine needs it: the processor time of the thread beside the wall's.
//!
//! What other programs take away is in the wall's time only. A sample whose two times differ much ran beside them, with
//! cold caches after each switch, and is taken again.

#![allow(dead_code, reason = "each bench uses its part")]

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// A running measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopwatch {
    wall: Instant,
    cpu: Duration,
}

/// What a sample took.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sample {
    /// Operations done.
    pub(crate) operations: u64,
    /// Processor time of the thread.
    pub(crate) cpu: Duration,
    /// Time on the wall.
    pub(crate) wall: Duration,
}

impl Stopwatch {
    /// Starts now.
    pub(crate) fn start() -> Self {
        Self {
            wall: Instant::now(),
            cpu: thread_time(),
        }
    }

    /// Ends now; `operations` were done since the start.
    pub(crate) fn stop(self, operations: u64) -> Sample {
        Sample {
            operations,
            cpu: thread_time() - self.cpu,
            wall: self.wall.elapsed(),
        }
    }
}

impl Sample {
    /// Nanoseconds of processor time for one operation.
    pub(crate) fn ns(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.operations as f64
    }

    /// Whether the thread had to wait for its processor for more than a tenth of the time.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.wall.as_secs_f64() > self.cpu.as_secs_f64() * 1.1
    }
}

impl AddAssign for Sample {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.cpu += other.cpu;
        self.wall += other.wall;
    }
}

/// Keeps the calling thread on the `index`-th of the processors that the process may use.
pub(crate) fn pin(index: usize) {
    let allowed = sched_getaffinity(None).expect("every thread may ask for its own processors");
    let mut processors = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).cycle();
    let mut one = CpuSet::new();
    one.set(processors.nth(index).expect("a cycle over at least one"));
    sched_setaffinity(None, &one).expect("a subset of what is allowed");
}

fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("processor time is not negative");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("below a second"))
}
