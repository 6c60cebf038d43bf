//! The machine: everything that runs for one guest, from the first byte of its memory to the last of its threads.
//!
//! [`Vm::build`] makes a machine from a [`VmSpec`], [`Vm::run`] runs it until it ends, and a [`VmHandle`] is how
//! everybody else (API, command line, demo) sees and changes it meanwhile.
//!
//! Threads: one for each vCPU (`vcpus`), one event loop that processes virtio queues and takes input (`events`), one
//! that writes serial output out ([`crate::terminal::Output`]); the thread in [`Vm::run`] waits for the end and takes
//! everything down. What they share is in `shared`; how a VM lives and ends, in `lifecycle`.

mod assemble;
mod bus;
mod channel;
mod devices;
mod events;
mod exit;
mod firmware;
mod input;
pub mod layout;
mod lifecycle;
mod progress;
mod reboots;
mod regions;
mod resize;
mod serial;
mod shared;
mod sizing;
mod split;
mod target;
mod vcpus;
mod violation;
mod virtio;

pub use devices::BalloonError;
pub use exit::{DiskNumberError, GuestCommandError, LinkError, VmError, VmExit};
pub use resize::{IncompleteReason, ResizeError, ResizeOutcome, ResizePlace, Shortfall, Way};
pub use violation::Violation;

use std::sync::Arc;
use std::time::{Duration, Instant};

use ::devices::net::LinkState;

use crate::control::api::{BalloonRequest, Link, LinkRequest, RateRequest};
use crate::control::report::{BalloonReport, BlockReport, Hinting, VmStatus};
use crate::journal::Events;
use crate::memory::Region;
use crate::spec::VmSpec;
#[cfg(doc)]
use crate::spec::{HvcMode, SerialMode};
use crate::terminal::{EndSignals, Output, OutputWriter, RawMode};
use events::{EventLoop, RunningLoop};
use firmware::{Boot, Firmware};
use lifecycle::Turn;
use shared::Shared;
use vcpus::VcpuThreads;

/// How long a guest may take to give statistics that somebody waits for.
const STATISTICS_TIMEOUT: Duration = Duration::from_secs(5);

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Vm {
    handle: VmHandle,
    firmware: Firmware,
    boot: Boot,
    /// The signal that gets a vCPU out of the guest.
    kick: libc::c_int,
    /// Where the guest's consoles go, the serial port first.
    outputs: Vec<Output>,
    /// What the user at standard input sees.
    screen: OutputWriter,
}

impl Vm {
    /// Makes the machine: memory, vCPUs, devices, payload and ACPI tables.
    ///
    /// # Errors
    /// Anything the host or the payload lacks; each message names the value and the rule.
    pub fn build(spec: &VmSpec) -> Result<Self, VmError> {
        assemble::assemble(spec)
    }

    /// A handle for other threads; any number may exist.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        self.handle.clone()
    }

    /// Runs the guest, through all its reboots; returns when the VM has ended and all its threads are gone.
    ///
    /// SIGINT, SIGTERM and SIGHUP end the VM. With [`SerialMode::Terminal`] or [`HvcMode::Terminal`], standard input is the
    /// guest's, and in raw mode if it is a terminal, until this returns.
    ///
    /// # Errors
    /// A fault of the host or of the VMM itself. What the guest does wrong is a [`VmExit`].
    pub fn run(self) -> Result<VmExit, VmError> {
        let shared = &self.handle.shared;
        let mut events = EventLoop::new(shared)?;
        events.hear(EndSignals::catch().map_err(VmError::host("catch signals"))?);
        let raw_mode = match shared.input_line() {
            Some(line) => {
                let raw_mode = RawMode::enter().map_err(VmError::host("set up the terminal"))?;
                events.take_input(line, self.screen);
                Some(raw_mode)
            }
            None => None,
        };
        let events = events.start()?;
        let (mut firmware, mut boot) = (self.firmware, self.boot);
        let vcpus = loop {
            shared.lifecycle.start();
            let vcpus = VcpuThreads::start(boot, shared, self.kick);
            if until_reboot_or_end(&vcpus, shared) == Turn::TakeDown {
                break Some(vcpus);
            }
            vcpus.join();
            match reboot(&mut firmware, &events, shared) {
                Ok(next) => boot = next,
                Err(error) => {
                    shared.lifecycle.end(Err(error));
                    break None;
                }
            }
        };
        // First, so that what the guest said last is heard by those who wait for it, and then that it has ended.
        events.join();
        shared.announce_end();
        // Before the vCPUs are waited for: one of them may be waiting for room in the output.
        self.outputs.iter().for_each(Output::finish);
        if let Some(vcpus) = vcpus {
            vcpus.kick();
            vcpus.join();
        }
        drop(raw_mode);
        shared.lifecycle.take_end()
    }
}

/// Keeps the vCPUs where they belong. On [`Turn::Reboot`] all their threads have left.
fn until_reboot_or_end(vcpus: &VcpuThreads, shared: &Shared) -> Turn {
    loop {
        match shared.lifecycle.next_turn() {
            Turn::Hold => vcpus.kick(),
            Turn::Reboot => {
                vcpus.kick();
                if shared.lifecycle.wait_until_left() {
                    return Turn::Reboot;
                }
            }
            Turn::TakeDown => return Turn::TakeDown,
        }
    }
}

/// Resets the machine, whose vCPUs are gone, and boots it again.
fn reboot(firmware: &mut Firmware, events: &RunningLoop, shared: &Shared) -> Result<Boot, VmError> {
    events.reset_devices()?;
    shared.clear()?;
    firmware.power_on(shared)
}

/// A view of a machine for other threads.
#[derive(Debug, Clone)]
pub struct VmHandle {
    shared: Arc<Shared>,
}

impl VmHandle {
    /// What the VM is doing now.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        self.shared.status()
    }

    /// Asks the guest to grow or shrink to `total_bytes` (boot memory plus hot-plugged memory), in the regions that `place`
    /// names, and returns at once.
    ///
    /// # Errors
    /// See [`ResizeError`]; the guest has seen nothing then.
    pub fn resize(&self, total_bytes: u64, place: ResizePlace) -> Result<(), ResizeError> {
        self.shared.resize(total_bytes, place)
    }

    /// Asks the guest to keep what it has: what was about to leave goes back to use, and what has not come is not wanted any more.
    ///
    /// # Errors
    /// [`ResizeError::Ended`]; with a balloon, [`ResizeError::BelowFloor`].
    pub fn keep(&self) -> Result<(), ResizeError> {
        self.shared.keep()
    }

    /// Blocks until the guest has reached what was last requested, the VM ends, or `deadline` passes.
    #[must_use]
    pub fn wait_resize(&self, deadline: Instant) -> ResizeOutcome {
        self.shared.wait_resize(deadline)
    }

    /// Which blocks are plugged, of each hot-plug region in the order of their addresses.
    #[must_use]
    pub fn blocks(&self) -> Vec<BlockReport> {
        let report = |region: &Arc<Region>| {
            let layout = region.layout();
            BlockReport::from_flags(layout.start, layout.block_size, &region.plugged().snapshot())
        };
        self.shared.ram.regions().iter().map(report).collect()
    }

    /// Sends one command line to the guest's control channel and returns the text of its answer.
    ///
    /// # Errors
    /// The guest's own refusal, or that it did not answer properly in time.
    pub fn guest_command(&self, line: &str, timeout: Duration) -> Result<String, GuestCommandError> {
        self.shared.guest_command(line, timeout)
    }

    /// What the built-in guest counts, if it answers in time. Other guests are not asked: their console is nobody's control channel.
    #[must_use]
    pub fn guest_vmstat(&self, timeout: Duration) -> Option<String> {
        self.shared.guest_vmstat(timeout)
    }

    /// Carries out an order to the balloon and says how it stands then. Waits for the guest only where the order is to
    /// wait.
    ///
    /// # Errors
    /// See [`BalloonError`].
    pub fn balloon(&self, order: BalloonRequest) -> Result<BalloonReport, BalloonError> {
        let balloon = self.shared.devices.balloon.as_ref();
        let balloon = balloon.ok_or(BalloonError::NoBalloon)?;
        match order {
            BalloonRequest::Show => {}
            BalloonRequest::Statistics => balloon.fresh_statistics(STATISTICS_TIMEOUT)?,
            BalloonRequest::StatisticsInterval { seconds } => balloon.set_statistics_interval(seconds),
            BalloonRequest::StartHinting => balloon.hint(Hinting::Asked)?,
            BalloonRequest::StopHinting => balloon.hint(Hinting::Idle)?,
        }
        Ok(balloon.balloon_report())
    }

    /// Holds the guest: its CPUs stand still until [`Self::resume`]. Returns whether they ran before.
    pub fn pause(&self) -> bool {
        self.shared.lifecycle.pause()
    }

    /// Lets a held guest go on. Returns whether it was held.
    pub fn resume(&self) -> bool {
        self.shared.lifecycle.resume()
    }

    /// Plugs the wire of a network interface in or out, of which the guest's driver is told. Returns whether that is new.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn set_link(&self, request: LinkRequest) -> Result<bool, LinkError> {
        let net = &self.shared.devices.net;
        let device = net.get(request.interface).ok_or(LinkError {
            interface: request.interface,
            interfaces: net.len(),
        })?;
        Ok(device.set_link(match request.link {
            Link::Up => LinkState::Up,
            Link::Down => LinkState::Down,
        }))
    }

    /// Changes what a disk may do in a second. Returns whether that is new.
    ///
    /// # Errors
    /// There is no such disk.
    pub fn set_rate(&self, request: RateRequest) -> Result<bool, DiskNumberError> {
        let disks = &self.shared.devices.disks;
        let disk = disks.get(request.disk).ok_or(DiskNumberError {
            disk: request.disk,
            disks: disks.len(),
        })?;
        Ok(disk.change_rate(|old| request.rate_limiter.applied_to(old)))
    }

    /// What happens to the VM.
    #[must_use]
    pub fn events(&self) -> Events {
        self.shared.events.clone()
    }

    /// Ends the VM; `Vm::run` returns [`VmExit::Stopped`] soon after, unless it is ending already.
    pub fn stop(&self) {
        self.shared.lifecycle.end(Ok(VmExit::Stopped));
    }
}

#[cfg(test)]
mod tests;
