//! What all threads of a machine share, and what they do to it together.
//!
//! Lock order: a device's lock and the lifecycle's are leaves; resize progress may hold its own while it looks at the
//! memory device.

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::bus::{Bus, MachineRequest, ResetCause};
use super::channel::Channel;
use super::devices::DeviceList;
use super::input::InputLine;
use super::lifecycle::Lifecycle;
use super::progress::{ResizeProgress, Standing};
use super::reboots::RebootWatch;
use super::sizing::Sizing;
use super::violation::ViolationWatch;
use super::{GuestCommandError, IncompleteReason, ResizeOutcome, VmError, VmExit};
use crate::control::report::{NodeReport, VmState, VmStatus};
use crate::journal::{EventKind, Events, ResizeStep};
use crate::memory::{GuestRam, Resident};
use crate::spec::{HvcMode, OnReboot, Payload, SerialMode, VmSpec};

/// How long the guest may take to say why it has stalled.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// One machine, as its threads and its handles see it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: VmSpec,
    pub(super) built: Instant,
    pub(super) ram: Arc<GuestRam>,
    pub(super) lifecycle: Lifecycle,
    /// Signalled when the VM ends.
    pub(super) ended: EventFd,
    pub(super) bus: Bus,
    pub(super) violations: ViolationWatch,
    pub(super) progress: ResizeProgress,
    /// What was last asked for, of a machine with a balloon. Lock order: after the progress's, before the
    /// devices'.
    pub(super) sizing: Mutex<Option<Sizing>>,
    pub(super) events: Events,
    pub(super) devices: DeviceList,
    pub(super) channel: Channel,
    pub(super) reboots: RebootWatch,
    /// How often the guest has been booted, the first time included.
    pub(super) boots: AtomicU64,
}

impl Shared {
    /// Does what the guest asked of the machine.
    pub(super) fn serve(&self, request: MachineRequest) {
        match request {
            MachineRequest::PowerOff => self.lifecycle.end(Ok(VmExit::Shutdown)),
            MachineRequest::Reset(cause) => self.reset(cause, VmExit::Reboot),
            MachineRequest::Panicked => self.lifecycle.end(Ok(VmExit::Panicked {
                message: self.devices.console.last_words(),
            })),
        }
    }

    /// A CPU of the guest has come to a dead end, which resets a PC.
    pub(super) fn triple_fault(&self, message: String) {
        if self.spec.on_reboot == OnReboot::Reboot {
            tracing::warn!("{message}: the guest reboots");
        }
        self.reset(ResetCause::TripleFault, VmExit::Panicked { message });
    }

    /// Reboots the guest, or ends the VM with `exit` where that is the user's wish.
    fn reset(&self, cause: ResetCause, exit: VmExit) {
        match self.spec.on_reboot {
            OnReboot::Exit => self.lifecycle.end(Ok(exit)),
            OnReboot::Reboot => {
                if self.lifecycle.reboot() {
                    if let Some(resets) = self.reboots.is_loop(self.built.elapsed()) {
                        let cause = cause.as_str();
                        return self.lifecycle.end(Ok(VmExit::RebootLoop { resets, cause }));
                    }
                    let cause_word = cause.as_str().to_owned();
                    self.events.emit(EventKind::Reboot { cause: cause_word });
                    tracing::info!("the guest reboots: {}", cause.as_str());
                }
            }
        }
    }

    /// Clears what the guest has left, once its vCPUs are gone and its devices reset.
    ///
    /// # Errors
    /// The host does not take memory back.
    pub(super) fn clear(&self) -> Result<(), VmError> {
        self.bus.reset();
        self.channel.restart();
        self.ram.discard_boot_memory()?;
        self.boots.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tells everybody who waits for the guest that it has ended.
    pub(super) fn announce_end(&self) {
        self.progress.end();
        self.channel.end();
        self.devices.iter().for_each(|device| device.shell().release());
        self.events.end();
    }

    /// Asks the guest for something. However fast it is, that it was asked is told before that it has followed.
    pub(super) fn resize_begins(&self, ask: impl FnOnce()) {
        let before = self.standing();
        self.progress.asking();
        ask();
        self.progress.requested(&before);
        self.tell(ResizeStep::Requested, &self.standing(), None);
        self.progress.asked();
        self.resize_moves();
    }

    /// Blocks or pages of the balloon have come or gone.
    pub(super) fn resize_moves(&self) {
        let standing = self.standing();
        if self.progress.moved(self.spec.memory, &standing) {
            self.tell(ResizeStep::Reached, &standing, None);
        }
    }

    /// For the event loop, when [`ResizeProgress::timer`] has expired: nothing has moved for a while. A guest that says that it is at work is left to it.
    pub(super) fn resize_is_quiet(self: &Arc<Self>) {
        let standing = self.standing();
        let Some(reason) = self.progress.stalled(self.spec.memory, &standing) else {
            return;
        };
        let shared = Arc::clone(self);
        let ask = move || match shared
            .guest_vmstat(REASON_TIMEOUT)
            .is_some_and(|vmstat| is_at_work(&vmstat))
        {
            true => shared.progress.look_again(),
            false => shared.tell(ResizeStep::Stalled, &standing, Some(reason)),
        };
        // The guest's answer comes by way of the event loop, which therefore cannot wait for it.
        let asked = thread::Builder::new().name("resize".into()).spawn(ask);
        if let Err(error) = asked {
            tracing::warn!("a resize that nothing is heard of: {error}");
        }
    }

    fn tell(&self, step: ResizeStep, standing: &Standing, reason: Option<IncompleteReason>) {
        self.events.emit(EventKind::Resize {
            step,
            target_bytes: standing.target(self.spec.memory),
            reached_bytes: standing.reached(self.spec.memory),
            cause: reason.map(|reason| reason.code().to_owned()),
            reason: reason.map(|reason| reason.to_string()),
        });
    }

    /// Waits for the guest to follow a resize.
    pub(super) fn wait_resize(&self, deadline: Instant) -> ResizeOutcome {
        let mut outcome = self.progress.wait(self.spec.memory, deadline, || self.standing());
        if let ResizeOutcome::Incomplete {
            reason, guest_reason, ..
        } = &mut outcome
        {
            let vmstat = self.guest_vmstat(REASON_TIMEOUT).unwrap_or_default();
            *guest_reason = stall_reason(&vmstat);
            let seems_idle = matches!(
                reason,
                IncompleteReason::Stalled { .. } | IncompleteReason::NoRequest { .. }
            );
            let has_stalled = guest_reason
                .as_ref()
                .is_some_and(|reason| !reason.starts_with("trying"));
            if seems_idle && !has_stalled && is_at_work(&vmstat) {
                *reason = IncompleteReason::TimedOut;
            }
        }
        outcome
    }

    /// What standard input belongs to, if it is the guest's.
    pub(super) fn input_line(&self) -> Option<Arc<dyn InputLine>> {
        match (&self.spec.serial, &self.spec.hvc) {
            (SerialMode::Terminal, _) => Some(Arc::clone(self.bus.com1()) as _),
            (_, HvcMode::Terminal) => Some(Arc::clone(&self.devices.console) as _),
            _ => None,
        }
    }

    /// Sends a command to the guest.
    pub(super) fn guest_command(&self, line: &str, timeout: Duration) -> Result<String, GuestCommandError> {
        if self.lifecycle.phase() == VmState::Paused {
            return Err(GuestCommandError::Held);
        }
        self.channel.command(self.devices.console.as_ref(), line, timeout)
    }

    /// What the built-in guest counts. Other guests are not asked: their console is nobody's control channel.
    pub(super) fn guest_vmstat(&self, timeout: Duration) -> Option<String> {
        let is_built_in = matches!(self.spec.payload, Payload::BuiltIn { .. });
        is_built_in.then(|| self.guest_command("vmstat", timeout).ok())?
    }

    pub(super) fn standing(&self) -> Standing {
        let standings = self.devices.memory.iter().map(|device| device.standing());
        let standing = standings.reduce(Standing::and).unwrap_or_default();
        Standing {
            balloon: self.balloon_standing(),
            held: self.lifecycle.phase() == VmState::Paused,
            ..standing
        }
    }

    /// Everything there is to report.
    pub(super) fn status(&self) -> VmStatus {
        let boot_memory = self.spec.memory;
        // Without /proc there is no account, and nothing else is wrong.
        let resident = Resident::measure(&self.ram).unwrap_or_default();
        let mut status = VmStatus {
            name: self.spec.name.to_string(),
            pid: process::id(),
            state: self.lifecycle.phase(),
            uptime_seconds: self.built.elapsed().as_secs(),
            reboots: self.boots.load(Ordering::Relaxed) - 1,
            boot_memory,
            nodes: self.node_reports(),
            total_requested: boot_memory,
            total_plugged: boot_memory,
            violations: self.violations.count(),
            last_violation_gpa: self.violations.last_gpa(),
            host_resident_bytes: resident.guest_bytes,
            vmm_overhead_bytes: resident.vmm_bytes,
            panic_message: Some(self.devices.console.last_words()).filter(|words| !words.is_empty()),
            ..VmStatus::default()
        };
        for device in self.devices.iter() {
            status.guest_faults += device.shell().guest_faults();
            device.report(&mut status);
        }
        let standing = self.standing();
        status.total_requested = standing.target(boot_memory);
        status.guest_bytes = standing.reached(boot_memory);
        status
    }

    fn node_reports(&self) -> Vec<NodeReport> {
        let nodes = (0..).zip(&self.spec.nodes);
        nodes
            .map(|(number, node)| NodeReport {
                boot_memory: node.memory,
                cpus: node.cpus.clone(),
                distances: node.distances.clone(),
                has_region: self.spec.hotplug.iter().any(|region| region.node == number),
            })
            .collect()
    }
}

/// What the built-in guest gives as its reason for not following a resize.
fn stall_reason(vmstat: &str) -> Option<String> {
    let mut lines = vmstat.lines();
    let reason = lines
        .find_map(|line| line.strip_prefix("resize_stall_reason "))?
        .trim();
    (!matches!(reason, "" | "none")).then(|| reason.to_owned())
}

/// Whether it says that it is taking or emptying blocks just now.
fn is_at_work(vmstat: &str) -> bool {
    vmstat.lines().any(|line| line == "resize_at_work 1")
}
