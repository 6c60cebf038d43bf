//! The machine: everything that runs for one guest, from the first byte of its memory to the last of its threads.
//!
//! [`Vm::build`] makes a machine from a [`VmSpec`], [`Vm::run`] runs it until it ends, and a [`VmHandle`] is how
//! everybody else (API, command line, demo) sees and changes it meanwhile.

mod exit;
pub mod layout;
mod resize;

pub use exit::{GuestCommandError, VmError, VmExit};
pub use resize::{IncompleteReason, ResizeError, ResizeOutcome};

use std::time::{Duration, Instant};

use crate::control::report::VmStatus;
use crate::spec::VmSpec;

/// A machine that is ready to run.
#[derive(Debug)]
pub struct Vm {
    handle: VmHandle,
}

impl Vm {
    /// Makes the machine: memory, vCPUs, devices, payload and ACPI tables.
    ///
    /// # Errors
    /// Anything the host or the payload lacks; each message names the value and the rule.
    pub fn build(spec: &VmSpec) -> Result<Self, VmError> {
        let _ = spec;
        Err(VmError::Unfinished)
    }

    /// A handle for other threads; any number may exist.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        self.handle.clone()
    }

    /// Runs the guest; returns when the VM has ended and all its threads are gone.
    ///
    /// # Errors
    /// A fault of the host or of the VMM itself. What the guest does wrong is a [`VmExit`].
    pub fn run(self) -> Result<VmExit, VmError> {
        Err(VmError::Unfinished)
    }
}

/// A view of a machine for other threads.
#[derive(Debug, Clone)]
pub struct VmHandle {}

impl VmHandle {
    /// What the VM is doing now.
    #[must_use]
    pub fn status(&self) -> VmStatus {
        VmStatus::default()
    }

    /// Asks the guest to grow or shrink to `total_bytes` (boot memory plus hot-plugged memory) and returns at once.
    ///
    /// # Errors
    /// See [`ResizeError`]; the guest has seen nothing then.
    pub fn resize(&self, total_bytes: u64) -> Result<(), ResizeError> {
        let _ = total_bytes;
        Err(ResizeError::Ended)
    }

    /// Blocks until the guest has reached what was last requested, the VM ends, or `deadline` passes.
    #[must_use]
    pub fn wait_resize(&self, deadline: Instant) -> ResizeOutcome {
        let _ = deadline;
        ResizeOutcome::Done { total_bytes: 0 }
    }

    /// For each block of the hot-plug region, in address order, whether it is plugged. Empty without a region.
    #[must_use]
    pub fn blocks(&self) -> Vec<bool> {
        Vec::new()
    }

    /// Sends one command line to the guest's control channel and returns the text of its answer.
    ///
    /// # Errors
    /// The guest's own refusal, or that it did not answer properly in time.
    pub fn guest_command(&self, line: &str, timeout: Duration) -> Result<String, GuestCommandError> {
        let _ = (line, timeout);
        Err(GuestCommandError::Ended)
    }

    /// Ends the VM; `Vm::run` returns [`VmExit::Stopped`] soon after.
    pub fn stop(&self) {}
}
