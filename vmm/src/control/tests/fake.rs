//! A machine that only pretends.

use super::*;

/// A machine whose guest does what the test says.
pub(super) struct FakeMachine {
    pub(super) state: Mutex<FakeState>,
    pub(super) events: Events,
    pub(super) changed: Condvar,
    pub(super) stopped: AtomicBool,
    pub(super) waiting: AtomicUsize,
}

#[derive(Default)]
pub(super) struct FakeState {
    pub(super) requested: u64,
    pub(super) plugged: u64,
    pub(super) held: bool,
    pub(super) vmstat: Option<String>,
}

impl Default for FakeMachine {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            events: Events::new(Instant::now()),
            changed: Condvar::default(),
            stopped: AtomicBool::default(),
            waiting: AtomicUsize::default(),
        }
    }
}

impl FakeMachine {
    pub(super) fn change(&self, change: impl FnOnce(&mut FakeState)) {
        change(&mut self.state.lock().expect("no panic"));
        self.changed.notify_all();
    }

    /// Returns when exactly so many requests wait for the guest.
    pub(super) fn until_waiting(&self, waiters: usize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.waiting.load(Ordering::SeqCst) != waiters {
            assert!(
                Instant::now() < deadline,
                "{} wait",
                self.waiting.load(Ordering::SeqCst)
            );
            std::thread::yield_now();
        }
    }
}

impl MachineHandle for FakeMachine {
    fn status(&self) -> VmStatus {
        let state = self.state.lock().expect("no panic");
        VmStatus {
            name: "fake".into(),
            pid: std::process::id(),
            state: VmState::Running,
            boot_memory: BOOT,
            region_size: REGION,
            block_size: 2 * MIB,
            requested_size: state.requested,
            plugged_size: state.plugged,
            total_requested: BOOT + state.requested,
            total_plugged: BOOT + state.plugged,
            guest_bytes: BOOT + state.plugged,
            ..VmStatus::default()
        }
    }

    /// The second region has nothing plugged.
    fn blocks(&self) -> Vec<BlockReport> {
        let plugged = self.state.lock().expect("no panic").plugged / (2 * MIB);
        let flags: Vec<bool> = (0..REGION / (2 * MIB)).map(|block| block < plugged).collect();
        vec![
            BlockReport::from_flags(4 * GIB, 2 * MIB, &flags),
            BlockReport::from_flags(8 * GIB, 4 * MIB, &[false; 3]),
        ]
    }

    fn resize(&self, total_bytes: u64, place: ResizePlace) -> Result<(), ResizeError> {
        if let ResizePlace::Region(region) = place
            && region > 0
        {
            return Err(ResizeError::NoSuchRegion { region, regions: 1 });
        }
        if total_bytes > BOOT + REGION {
            return Err(ResizeError::BeyondRegion {
                total_bytes,
                limit: BOOT + REGION,
            });
        }
        self.change(|state| state.requested = total_bytes - BOOT);
        Ok(())
    }

    fn keep(&self) -> Result<(), ResizeError> {
        self.change(|state| state.requested = state.plugged);
        Ok(())
    }

    fn wait_resize(&self, deadline: Instant) -> ResizeOutcome {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let state = self.state.lock().expect("no panic");
        let timeout = deadline.saturating_duration_since(Instant::now());
        let going_on =
            |state: &mut FakeState| state.plugged != state.requested && !self.stopped.load(Ordering::SeqCst);
        let (state, _) = self
            .changed
            .wait_timeout_while(state, timeout, going_on)
            .expect("no panic");
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if state.plugged == state.requested {
            return ResizeOutcome::Done {
                total_bytes: BOOT + state.plugged,
            };
        }
        let ended = self.stopped.load(Ordering::SeqCst);
        ResizeOutcome::Incomplete {
            reached_bytes: BOOT + state.plugged,
            target_bytes: BOOT + state.requested,
            reason: if ended {
                IncompleteReason::Ended
            } else {
                IncompleteReason::Stalled {
                    quiet_seconds: 1,
                    shortfall: Shortfall {
                        way: Way::Take,
                        moved_bytes: state.plugged,
                        missing_bytes: state.requested.abs_diff(state.plugged),
                    },
                }
            },
            guest_reason: None,
        }
    }

    fn guest_command(&self, line: &str, _timeout: Duration) -> Result<String, GuestCommandError> {
        let vmstat = self.state.lock().expect("no panic").vmstat.clone();
        match line {
            "vmstat" => vmstat.ok_or(GuestCommandError::NotConnected),
            "say \"hi\"" => Ok("hi\nthere\n".into()),
            other => Err(GuestCommandError::Refused(format!("{other}: no such command"))),
        }
    }

    fn guest_vmstat(&self, timeout: Duration) -> Option<String> {
        self.guest_command("vmstat", timeout).ok()
    }

    fn balloon(&self, order: BalloonRequest) -> Result<BalloonReport, BalloonError> {
        match order {
            BalloonRequest::StatisticsInterval { seconds } => Ok(BalloonReport {
                statistics_interval_seconds: seconds,
                ..BalloonReport::default()
            }),
            _ => Err(BalloonError::NoBalloon),
        }
    }

    fn pause(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().expect("no panic").held, true)
    }

    fn resume(&self) -> bool {
        std::mem::take(&mut self.state.lock().expect("no panic").held)
    }

    /// It has one interface, which is up.
    fn set_link(&self, request: LinkRequest) -> Result<bool, LinkError> {
        match request.interface {
            0 => Ok(request.link == Link::Down),
            interface => Err(LinkError {
                interface,
                interfaces: 1,
            }),
        }
    }

    /// It has one disk, whose limits are never new.
    fn set_rate(&self, request: RateRequest) -> Result<bool, DiskNumberError> {
        match request.disk {
            0 => Ok(request.rate_limiter != RateLimiter::default()),
            disk => Err(DiskNumberError { disk, disks: 1 }),
        }
    }

    fn events(&self) -> Events {
        self.events.clone()
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }
}
