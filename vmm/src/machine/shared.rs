//! What all threads of a machine share, and what they do to it together.
//!
//! Lock order: a device's lock and the lifecycle's are leaves; resize progress may hold its own while it looks at the
//! memory device.

use std::process;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::bus::{Bus, MachineRequest};
use super::channel::Channel;
use super::devices::DeviceList;
use super::lifecycle::Lifecycle;
use super::progress::{ResizeProgress, Standing};
use super::sizing::Sizing;
use super::violation::ViolationWatch;
use super::{GuestCommandError, ResizeOutcome, VmExit};
use crate::control::report::{NodeReport, VmStatus};
use crate::hv::Partition;
use crate::memory::{GuestRam, Resident};
use crate::spec::{Payload, VmSpec};

/// How long the guest may take to say why it has stalled.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);

/// One machine, as its threads and its handles see it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: VmSpec,
    pub(super) built: Instant,
    /// Holds the lines between KVM and the devices.
    pub(super) partition: Partition,
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
    pub(super) devices: DeviceList,
    pub(super) channel: Channel,
}

impl Shared {
    /// Does what the guest asked of the machine.
    pub(super) fn serve(&self, request: MachineRequest) {
        self.lifecycle.end(Ok(match request {
            MachineRequest::PowerOff => VmExit::Shutdown,
            MachineRequest::Reset => VmExit::Reboot,
            MachineRequest::Panicked => VmExit::Panicked {
                message: self.devices.console.last_words(),
            },
        }));
    }

    /// Tells everybody who waits for the guest that it has ended.
    pub(super) fn announce_end(&self) {
        self.progress.end();
        self.channel.end();
        self.devices.iter().for_each(|device| device.shell().release());
    }

    /// Waits for the guest to follow a resize.
    pub(super) fn wait_resize(&self, deadline: Instant) -> ResizeOutcome {
        let mut outcome = self.progress.wait(self.spec.memory, deadline, || self.standing());
        if let ResizeOutcome::Incomplete { guest_reason, .. } = &mut outcome {
            *guest_reason = self.stall_reason();
        }
        outcome
    }

    /// Sends a command to the guest.
    pub(super) fn guest_command(&self, line: &str, timeout: Duration) -> Result<String, GuestCommandError> {
        self.channel.command(self.devices.console.as_ref(), line, timeout)
    }

    /// What the built-in guest gives as its reason for not following a resize. Other guests are not asked: their
    /// console is nobody's control channel.
    fn stall_reason(&self) -> Option<String> {
        if !matches!(self.spec.payload, Payload::BuiltIn { .. }) {
            return None;
        }
        let vmstat = self.guest_command("vmstat", REASON_TIMEOUT).ok()?;
        let reason = vmstat
            .lines()
            .find_map(|line| line.strip_prefix("resize_stall_reason "))?
            .trim();
        (!matches!(reason, "" | "none")).then(|| reason.to_owned())
    }

    pub(super) fn standing(&self) -> Standing {
        let standings = self.devices.memory.iter().map(|device| device.standing());
        let standing = standings.reduce(Standing::and).unwrap_or_default();
        Standing {
            balloon: self.balloon_standing(),
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
