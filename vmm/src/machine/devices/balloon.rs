//! The balloon: memory taken from the guest page by page, and the guest's own account of its memory.
//!
//! How large it shall be is decided with the blocks together, in `sizing`; here are the device, the timers for that and
//! for statistics, and the orders that come over the control socket.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::balloon::{Balloon, BalloonOptions, HintingState};
use devices::mmio::{Effects, MmioTransport};
use event_manager::EventSet;
use virtio_wire::balloon::PAGE_SIZE;
use vmm_sys_util::timerfd::TimerFd;

use super::{MachineDevice, OnLoop, Parts};
use crate::control::report::{BalloonReport, Hinting, VmStatus};
use crate::journal::{EventKind, Events};
use crate::machine::VmError;
use crate::machine::virtio::{Shell, VirtioShell};
use crate::memory::GuestPages;
use crate::spec::BalloonSpec;

mod error;
mod report;
mod told;

pub use error::BalloonError;
use told::{Size, Told};

/// The timer of the sizing policy.
const SIZING: u32 = 0;
/// The timer of statistics.
const STATISTICS: u32 = 1;

/// The balloon device.
#[derive(Debug)]
pub(in super::super) struct BalloonDevice {
    shell: Arc<VirtioShell<Balloon<GuestPages>>>,
    spec: BalloonSpec,
    events: Events,
    /// Lock order: before the device's lock.
    told: Mutex<Told>,
    shown_free: Arc<AtomicU64>,
    sizing_timer: Mutex<TimerFd>,
    /// Lock order: before the device's lock.
    samples: Mutex<Samples>,
    sampled: Condvar,
}

/// When the guest last reported its statistics. The device counts reports and knows no time.
#[derive(Debug)]
struct Samples {
    timer: TimerFd,
    interval_seconds: u32,
    count: u64,
    at: Option<Instant>,
}

impl BalloonDevice {
    /// The balloon that the specification asks for.
    ///
    /// # Errors
    /// No descriptors are left.
    pub(super) fn of(parts: Parts<'_>) -> Result<Option<Self>, VmError> {
        parts.spec.balloon.map(|spec| Self::new(parts, spec)).transpose()
    }

    fn new(parts: Parts<'_>, spec: BalloonSpec) -> Result<Self, VmError> {
        let pages = GuestPages::new(Arc::clone(parts.ram));
        let shown_free = pages.shown_free();
        let options = BalloonOptions {
            deflate_on_oom: spec.deflate_on_oom,
            hinting: spec.hinting,
            reporting: spec.reporting,
        };
        let device = Balloon::new(options, to_pages(spec.size), pages);
        let shell = VirtioShell::new(device, parts.ram.device_view().clone());
        let timer = || TimerFd::new().map_err(|error| VmError::host("create a timer")(error.into()));
        Ok(Self {
            shell: Arc::new(shell.map_err(VmError::host("create event descriptors"))?),
            spec,
            events: parts.events.clone(),
            told: Mutex::new(Told::nothing()),
            shown_free,
            sizing_timer: Mutex::new(timer()?),
            samples: Mutex::new(Samples {
                timer: timer()?,
                interval_seconds: 0,
                count: 0,
                at: None,
            }),
            sampled: Condvar::new(),
        })
    }

    /// What the guest keeps in any case, in bytes.
    pub(in super::super) fn floor(&self) -> u64 {
        self.spec.floor
    }

    /// Bytes in the balloon.
    pub(in super::super) fn held(&self) -> u64 {
        self.shell.look(|balloon| balloon.device().pages()) * PAGE_SIZE
    }

    /// Bytes that the host wants in it.
    pub(in super::super) fn target(&self) -> u64 {
        u64::from(self.shell.look(|balloon| balloon.device().target())) * PAGE_SIZE
    }

    /// Whether a driver is using it.
    pub(in super::super) fn is_live(&self) -> bool {
        self.shell.is_live()
    }

    /// Asks the guest to have `bytes` in the balloon. The driver is told even if that is not new.
    pub(in super::super) fn order(&self, bytes: u64) {
        let mut told = lock(&self.told);
        // As it is before the guest has heard of it: the guest may be at work at once.
        let held = self.held();
        self.shell
            .change(|balloon| ((), balloon.set_balloon_target(to_pages(bytes))));
        let target = self.target();
        self.say(&mut told, Size { target, held });
    }

    /// Blocks between two guest-physical addresses are gone: no page of them is in the balloon any more.
    pub(in super::super) fn forget(&self, gpa: u64, end: u64) {
        self.shell.change(|balloon| {
            balloon.forget_pages(gpa, end);
            ((), Effects::NONE)
        });
        self.tell();
    }

    /// Tells whoever reads the events of the balloon's size, if there is something to tell.
    fn tell(&self) {
        let mut told = lock(&self.told);
        let size = self.shell.look(|balloon| Size {
            target: u64::from(balloon.device().target()) * PAGE_SIZE,
            held: balloon.device().pages() * PAGE_SIZE,
        });
        self.say(&mut told, size);
    }

    fn say(&self, told: &mut Told, size: Size) {
        if told.is_news(size) {
            self.events.emit(EventKind::Balloon {
                target_bytes: size.target,
                held_bytes: size.held,
            });
        }
    }

    /// Has the sizing policy look again after so long, or not at all. A timer that cannot be set only makes it late: it
    /// looks at every change as well.
    pub(in super::super) fn look_again(&self, after: Option<Duration>) {
        let mut timer = lock(&self.sizing_timer);
        let _ = match after {
            // A timer of no time at all would be one that is off.
            Some(after) => timer.reset(after.max(Duration::from_millis(1)), None),
            None => timer.clear(),
        };
    }

    /// Asks for statistics now, and every `seconds` from then on; 0: no more.
    pub(in super::super) fn set_statistics_interval(&self, seconds: u32) {
        let mut samples = lock(&self.samples);
        samples.interval_seconds = seconds;
        let interval = Duration::from_secs(seconds.into());
        let _ = match seconds {
            0 => samples.timer.clear(),
            _ => samples.timer.reset(interval, None),
        };
        drop(samples);
        if seconds > 0 {
            self.shell.change(|balloon| ((), balloon.request_statistics()));
        }
    }

    /// Asks for statistics and waits for them.
    ///
    /// # Errors
    /// The guest has no driver that knows statistics, or did not answer in time.
    pub(in super::super) fn fresh_statistics(&self, timeout: Duration) -> Result<(), BalloonError> {
        // A driver that starts the device again gives statistics first thing.
        let is_expected = self.shell.look(MmioTransport::is_restarting);
        if !is_expected && !self.negotiated(virtio_wire::balloon::feature::STATS_VQ) {
            return Err(BalloonError::NoDriver);
        }
        let before = lock(&self.samples).count;
        self.shell.change(|balloon| ((), balloon.request_statistics()));
        let samples = lock(&self.samples);
        let waited = self
            .sampled
            .wait_timeout_while(samples, timeout, |samples| samples.count == before)
            .unwrap_or_else(PoisonError::into_inner)
            .1;
        if waited.timed_out() {
            return Err(BalloonError::NoStatistics {
                seconds: timeout.as_secs(),
            });
        }
        Ok(())
    }

    /// Begins a round of hinting, or ends it.
    ///
    /// # Errors
    /// The VM was started without hinting, or the guest's driver does not know it.
    pub(in super::super) fn hint(&self, on: Hinting) -> Result<(), BalloonError> {
        if !self.spec.hinting {
            return Err(BalloonError::NotOffered);
        }
        if !self.negotiated(virtio_wire::balloon::feature::FREE_PAGE_HINT) {
            return Err(BalloonError::NoDriver);
        }
        self.shell.change(|balloon| {
            let effects = match on {
                Hinting::Idle => balloon.stop_hinting(),
                Hinting::Asked | Hinting::Running => balloon.start_hinting(),
            };
            ((), effects)
        });
        Ok(())
    }

    fn negotiated(&self, feature: u64) -> bool {
        self.shell
            .look(|balloon| balloon.is_live() && balloon.negotiated_features() & feature != 0)
    }

    /// Notes when statistics came.
    fn note_sample(&self) {
        let mut samples = lock(&self.samples);
        let (count, there) = self.shell.look(|balloon| {
            let device = balloon.device();
            (device.counters().statistics, device.statistics().is_some())
        });
        if count != samples.count {
            samples.count = count;
            samples.at = Some(Instant::now());
            self.sampled.notify_all();
        }
        if !there {
            samples.at = None;
        }
    }
}

impl MachineDevice for BalloonDevice {
    fn shell(&self) -> Arc<dyn Shell> {
        Arc::clone(&self.shell) as _
    }

    fn start(&self, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        on.add_source(&*lock(&self.sizing_timer), SIZING, EventSet::IN);
        on.add_source(&lock(&self.samples).timer, STATISTICS, EventSet::IN);
        self.set_statistics_interval(self.spec.stats_seconds);
        self.tell();
        Ok(())
    }

    fn after_queue(&self, _: u16, _: bool, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        self.note_sample();
        self.tell();
        on.machine.balloon_moved();
        Ok(())
    }

    fn ready(&self, source: u32, _: EventSet, on: &mut OnLoop<'_, '_>) -> Result<(), VmError> {
        // Both go off once. One that was set anew meanwhile has not.
        let went_off = |timer: &mut TimerFd| !timer.is_armed().unwrap_or(false) && timer.clear().is_ok();
        if source == SIZING {
            if went_off(&mut lock(&self.sizing_timer)) {
                on.machine.pursue_target();
            }
            return Ok(());
        }
        let mut samples = lock(&self.samples);
        if went_off(&mut samples.timer) {
            let seconds = samples.interval_seconds;
            drop(samples);
            self.set_statistics_interval(seconds);
        }
        Ok(())
    }

    fn report(&self, status: &mut VmStatus) {
        status.balloon = Some(self.balloon_report());
    }
}

impl BalloonDevice {
    /// Everything there is to say of it.
    pub(in super::super) fn balloon_report(&self) -> BalloonReport {
        let (interval_seconds, at) = {
            let samples = lock(&self.samples);
            (samples.interval_seconds, samples.at)
        };
        let mut report = self.shell.look(report::of_device);
        report.floor = self.spec.floor;
        report.shown_free_bytes = self.shown_free.load(Ordering::Relaxed);
        report.statistics_interval_seconds = interval_seconds;
        if let (Some(statistics), Some(at)) = (&mut report.statistics, at) {
            statistics.age_milliseconds = u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        report
    }
}

impl From<HintingState> for Hinting {
    fn from(state: HintingState) -> Self {
        match state {
            HintingState::Idle => Self::Idle,
            HintingState::Asked => Self::Asked,
            HintingState::Running => Self::Running,
        }
    }
}

/// The balloon behind its registers.
type Transport = MmioTransport<Balloon<GuestPages>>;

/// Bytes as pages, as many as the configuration can say: 16 TiB, more than a guest may have.
fn to_pages(bytes: u64) -> u32 {
    u32::try_from(bytes / PAGE_SIZE).unwrap_or(u32::MAX)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
