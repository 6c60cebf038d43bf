//! What all threads of a machine share, and what they do to it together.
//!
//! Lock order: a device's lock and the lifecycle's are leaves; resize progress may hold its own while it looks at the
//! memory device.

use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use devices::console::{Console, TO_GUEST_LIMIT};
use devices::mem::MemDevice;
use devices::mmio::Effects;
use vmm_sys_util::eventfd::EventFd;

use super::bus::{Bus, MachineRequest};
use super::channel::{Channel, GuestPort};
use super::lifecycle::Lifecycle;
use super::progress::{Refusals, ResizeProgress, Standing};
use super::violation::ViolationWatch;
use super::virtio::VirtioShell;
use super::{GuestCommandError, ResizeError, ResizeOutcome, VmExit};
use crate::control::report::{NodeReport, VmStatus};
use crate::hv::Partition;
use crate::memory::{GuestRam, RegionBackend, Resident};
use crate::spec::{Payload, VmSpec};

/// How long the guest may take to say why it has stalled.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes taken from the guest at a time.
const PIECE: usize = 64 << 10;

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
    pub(super) memory_device: Option<Arc<VirtioShell<MemDevice<RegionBackend>>>>,
    pub(super) discarded: Arc<AtomicU64>,
    pub(super) progress: ResizeProgress,
    pub(super) console: Arc<VirtioShell<Console>>,
    pub(super) channel: Channel,
}

impl Shared {
    /// Does what the guest asked of the machine.
    pub(super) fn serve(&self, request: MachineRequest) {
        self.lifecycle.end(Ok(match request {
            MachineRequest::PowerOff => VmExit::Shutdown,
            MachineRequest::Reset => VmExit::Reboot,
            MachineRequest::Panicked => VmExit::Panicked {
                message: self.last_words(),
            },
        }));
    }

    /// Whether the guest owns a block of the region.
    pub(super) fn is_plugged(&self, block: u64) -> bool {
        self.ram
            .region()
            .is_some_and(|region| region.plugged().is_plugged(block))
    }

    /// Tells everybody who waits for the guest that it has ended.
    pub(super) fn announce_end(&self) {
        self.progress.end();
        self.channel.end();
    }

    /// Takes what the guest has sent over the console. For the event loop.
    pub(super) fn take_replies(&self) {
        loop {
            let bytes = self.console.change(|console| console.take_from_guest(PIECE));
            if bytes.is_empty() {
                return;
            }
            self.channel.receive(&bytes);
        }
    }

    /// Asks for a total of `total_bytes`.
    pub(super) fn resize(&self, total_bytes: u64) -> Result<(), ResizeError> {
        let boot_memory = self.spec.memory;
        let Some(device) = &self.memory_device else {
            return if total_bytes == boot_memory {
                Ok(())
            } else {
                Err(ResizeError::NoRegion { boot_memory })
            };
        };
        if self.lifecycle.is_ending() {
            return Err(ResizeError::Ended);
        }
        let requested_size = total_bytes
            .checked_sub(boot_memory)
            .ok_or(ResizeError::BelowBootMemory {
                total_bytes,
                boot_memory,
            })?;
        self.progress.requested(self.standing().refusals);
        device.change(|memory| match memory.set_requested_size(requested_size) {
            Ok(effects) => (Ok(()), effects),
            Err(error) => (Err(self.explain(error, total_bytes)), Effects::NONE),
        })
    }

    fn explain(&self, error: devices::mem::ResizeError, total_bytes: u64) -> ResizeError {
        let boot_memory = self.spec.memory;
        match error {
            devices::mem::ResizeError::Unaligned { block_size, .. } => ResizeError::Unaligned {
                total_bytes,
                boot_memory,
                block_size,
            },
            devices::mem::ResizeError::BeyondRegion { region_size, .. } => ResizeError::BeyondRegion {
                total_bytes,
                limit: boot_memory + region_size,
            },
        }
    }

    /// Waits for the guest to follow a resize.
    pub(super) fn wait_resize(&self, deadline: Instant) -> ResizeOutcome {
        let mut outcome = self.progress.wait(deadline, || self.standing());
        if let ResizeOutcome::Incomplete { guest_reason, .. } = &mut outcome {
            *guest_reason = self.stall_reason();
        }
        outcome
    }

    /// Sends a command to the guest.
    pub(super) fn guest_command(&self, line: &str, timeout: Duration) -> Result<String, GuestCommandError> {
        self.channel.command(self.console.as_ref(), line, timeout)
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

    fn standing(&self) -> Standing {
        let boot_memory = self.spec.memory;
        let nothing = Standing {
            boot_memory,
            requested_size: 0,
            plugged_size: 0,
            driver_ready: false,
            refusals: Refusals::default(),
        };
        self.memory_device.as_ref().map_or(nothing, |device| {
            device.look(|memory| {
                let counters = memory.device().counters();
                Standing {
                    boot_memory,
                    requested_size: memory.device().requested_size(),
                    plugged_size: memory.device().plugged_size(),
                    driver_ready: memory.is_live(),
                    refusals: Refusals {
                        nacks: counters.nacks,
                        busy: counters.busies,
                        errors: counters.errors,
                    },
                }
            })
        })
    }

    /// Everything there is to report.
    pub(super) fn status(&self) -> VmStatus {
        let boot_memory = self.spec.memory;
        // Without /proc there is no account, and nothing else is wrong.
        let resident = Resident::measure(&self.ram).unwrap_or_default();
        let console_faults = self.console.look(|console| console.guest_faults());
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
            guest_faults: console_faults,
            discarded_bytes: self.discarded.load(Ordering::Relaxed),
            host_resident_bytes: resident.guest_bytes,
            vmm_overhead_bytes: resident.vmm_bytes,
            panic_message: Some(self.last_words()).filter(|words| !words.is_empty()),
            ..VmStatus::default()
        };
        if let Some(device) = &self.memory_device {
            device.look(|memory| {
                let (config, counters) = (memory.device().config(), memory.device().counters());
                status.region_size = config.region_size;
                status.block_size = config.block_size;
                status.usable_region_size = config.usable_region_size;
                status.requested_size = config.requested_size;
                status.plugged_size = config.plugged_size;
                status.total_requested += config.requested_size;
                status.total_plugged += config.plugged_size;
                status.driver_ready = memory.is_live();
                status.guest_faults += memory.guest_faults();
                status.plug_requests = counters.plug_requests;
                status.unplug_requests = counters.unplug_requests + counters.unplug_all_requests;
                (status.nacks, status.busy, status.errors) =
                    (counters.nacks, counters.busies, counters.errors);
            });
        }
        status
    }

    fn node_reports(&self) -> Vec<NodeReport> {
        let region_node = self.spec.hotplug.map(|hotplug| hotplug.node);
        let nodes = (0..).zip(&self.spec.nodes);
        nodes
            .map(|(number, node)| NodeReport {
                boot_memory: node.memory,
                cpus: node.cpus.clone(),
                distances: node.distances.clone(),
                has_region: region_node == Some(number),
            })
            .collect()
    }

    /// What the guest wrote to its emergency console.
    fn last_words(&self) -> String {
        let words = self.console.look(|console| console.device().emergency_output());
        String::from_utf8_lossy(&words).trim().to_owned()
    }
}

impl GuestPort for VirtioShell<Console> {
    fn is_open(&self) -> bool {
        self.look(|console| console.is_live())
    }

    fn send(&self, bytes: &[u8]) -> bool {
        self.change(|console| {
            if TO_GUEST_LIMIT - console.device().to_guest_len() < bytes.len() {
                return (false, Effects::NONE);
            }
            let (accepted, effects) = console.push_to_guest(bytes);
            (accepted == bytes.len(), effects)
        })
    }
}
