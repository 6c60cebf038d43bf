//! How a VM ends, and what can go wrong with it: the guest's doing ([`VmExit`]) and the host's ([`VmError`]) are
//! different types and never become each other.

use thiserror::Error;

/// Why a VM ended. None of these is a fault of the VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// The guest powered off (ACPI S5).
    Shutdown,
    /// The guest asked for a reboot (i8042, reset register, or triple fault).
    Reboot,
    /// [`super::VmHandle::stop`], the terminal's escape key, or a signal ended it.
    Stopped,
    /// The guest reported a panic.
    Panicked {
        /// What it wrote to the emergency console first; empty if nothing.
        message: String,
    },
    /// The guest touched a block it does not own, and the policy is to kill.
    Violation {
        /// Guest-physical address of the access.
        gpa: u64,
        /// Index of the unplugged block.
        block: u64,
    },
}

/// A fault of the host, of the payload, or of the VMM: the VM cannot be built or cannot go on.
#[derive(Debug, Error)]
pub enum VmError {
    /// Not built yet.
    #[error("this machine is not finished")]
    Unfinished,
}

/// Why a command to the guest brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GuestCommandError {
    /// The line is not one that may be sent: empty, too long, or holding a control character.
    #[error("{line:?}: a guest command is one line of 1 to {max} printable bytes")]
    BadCommand {
        /// The line.
        line: String,
        /// Longest line accepted, in bytes.
        max: usize,
    },
    /// No driver has opened the console, so nobody in the guest listens.
    #[error("the guest has no control channel open")]
    NotConnected,
    /// The guest did not answer in time.
    #[error("the guest did not answer within {seconds} s")]
    TimedOut {
        /// How long the machine waited.
        seconds: u64,
    },
    /// The guest answered `err`.
    #[error("the guest refused: {0}")]
    Refused(String),
    /// The guest answered, but not in the channel's protocol.
    #[error("the guest's answer breaks the protocol: {0}")]
    BadAnswer(String),
    /// The VM has ended or is ending.
    #[error("the VM has ended")]
    Ended,
}
