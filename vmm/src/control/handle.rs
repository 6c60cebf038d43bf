//! What the API server needs of a machine. [`crate::machine::VmHandle`] is the one that runs a guest; tests of the server
//! bring their own, so that they need no KVM.

use std::time::{Duration, Instant};

use crate::control::api::{BalloonRequest, LinkRequest, RateRequest};
use crate::control::report::{BalloonReport, BlockReport, VmStatus};
use crate::journal::Events;
use crate::machine::{
    BalloonError, DiskNumberError, GuestCommandError, LinkError, ResizeError, ResizeOutcome, ResizePlace,
    VmHandle,
};

/// A running machine as seen from the control socket. The methods are those of [`VmHandle`] and mean what they mean there.
pub trait MachineHandle: Send + Sync + 'static {
    /// What the VM is doing now.
    fn status(&self) -> VmStatus;

    /// Which blocks are plugged, of each hot-plug region in the order of their addresses.
    fn blocks(&self) -> Vec<BlockReport>;

    /// Asks the guest for a total of `total_bytes`, with the change made in `place`, and returns at once.
    ///
    /// # Errors
    /// The size is not one that the VM can have; the guest has seen nothing then.
    fn resize(&self, total_bytes: u64, place: ResizePlace) -> Result<(), ResizeError>;

    /// Asks the guest to keep what it has.
    ///
    /// # Errors
    /// It cannot be asked any more.
    fn keep(&self) -> Result<(), ResizeError>;

    /// Blocks until the guest has what was last requested, the VM ends, or `deadline` passes. Talks to nobody: the caller
    /// may wait in short turns, and asks the guest for its reason once, at the end.
    fn wait_resize(&self, deadline: Instant) -> ResizeOutcome;

    /// Sends one line to the guest's control channel and returns its answer.
    ///
    /// # Errors
    /// The guest refused, or did not answer properly in time.
    fn guest_command(&self, line: &str, timeout: Duration) -> Result<String, GuestCommandError>;

    /// What the built-in guest counts, if it answers in time. Other guests are not asked.
    fn guest_vmstat(&self, timeout: Duration) -> Option<String>;

    /// Carries out an order to the balloon and says how it stands then.
    ///
    /// # Errors
    /// There is no balloon, or the guest cannot do it or did not answer.
    fn balloon(&self, order: BalloonRequest) -> Result<BalloonReport, BalloonError>;

    /// Holds the guest. Returns whether it ran before.
    fn pause(&self) -> bool;

    /// Lets a held guest go on. Returns whether it was held.
    fn resume(&self) -> bool;

    /// Plugs the wire of a network interface in or out. Returns whether that is new.
    ///
    /// # Errors
    /// There is no such interface.
    fn set_link(&self, request: LinkRequest) -> Result<bool, LinkError>;

    /// Changes what a disk may do in a second. Returns whether that is new.
    ///
    /// # Errors
    /// There is no such disk.
    fn set_rate(&self, request: RateRequest) -> Result<bool, DiskNumberError>;

    /// What happens to the VM.
    fn events(&self) -> Events;

    /// Ends the VM.
    fn stop(&self);
}

impl MachineHandle for VmHandle {
    fn status(&self) -> VmStatus {
        Self::status(self)
    }

    fn blocks(&self) -> Vec<BlockReport> {
        Self::blocks(self)
    }

    fn resize(&self, total_bytes: u64, place: ResizePlace) -> Result<(), ResizeError> {
        Self::resize(self, total_bytes, place)
    }

    fn keep(&self) -> Result<(), ResizeError> {
        Self::keep(self)
    }

    fn wait_resize(&self, deadline: Instant) -> ResizeOutcome {
        Self::wait_resize(self, deadline)
    }

    fn guest_command(&self, line: &str, timeout: Duration) -> Result<String, GuestCommandError> {
        Self::guest_command(self, line, timeout)
    }

    fn guest_vmstat(&self, timeout: Duration) -> Option<String> {
        Self::guest_vmstat(self, timeout)
    }

    fn balloon(&self, order: BalloonRequest) -> Result<BalloonReport, BalloonError> {
        Self::balloon(self, order)
    }

    fn pause(&self) -> bool {
        Self::pause(self)
    }

    fn resume(&self) -> bool {
        Self::resume(self)
    }

    fn set_link(&self, request: LinkRequest) -> Result<bool, LinkError> {
        Self::set_link(self, request)
    }

    fn set_rate(&self, request: RateRequest) -> Result<bool, DiskNumberError> {
        Self::set_rate(self, request)
    }

    fn events(&self) -> Events {
        Self::events(self)
    }

    fn stop(&self) {
        Self::stop(self);
    }
}
