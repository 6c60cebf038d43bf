//! How a VM ends, and what can go wrong with it: the guest's doing ([`VmExit`]) and the host's ([`VmError`]) are
//! different types and never become each other.

use std::fmt;
use std::io;
use std::path::PathBuf;

use devices::DeviceError;
use devices::mem::RegionError;
use thiserror::Error;

use super::layout::VIRTIO_MMIO_MAX;
use super::reboots::CALM;
use super::violation::Violation;
use crate::boot::BootError;
use crate::disk::DiskError;
use crate::hv::{EmulationFault, HvError};
use crate::memory::MemoryError;

/// Why a VM ended. None of these is a fault of the VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmExit {
    /// The guest powered off (ACPI S5).
    Shutdown,
    /// The guest asked for a reboot (i8042, or the ACPI reset register), and is not to have it.
    Reboot,
    /// The guest has reset its machine again and again, hardly booted.
    RebootLoop {
        /// How often in a row.
        resets: u32,
        /// How it did so the last time, in a word.
        cause: &'static str,
    },
    /// [`super::VmHandle::stop`], the terminal's escape key, or a signal ended it.
    Stopped,
    /// The guest reported a panic, or came to a dead end (a triple fault).
    Panicked {
        /// What it wrote to the emergency console first, or where the dead end is; may be empty.
        message: String,
    },
    /// The guest touched a block it does not own, and the policy is to kill.
    Violation(Violation),
}

impl fmt::Display for VmExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest powered off"),
            Self::Reboot => f.write_str("the guest asked for a reboot"),
            Self::RebootLoop { resets, cause } => write!(
                f,
                "the guest reset its machine {resets} times in a row without running for {} s in between, the last time by {cause}",
                CALM.as_secs()
            ),
            Self::Stopped => f.write_str("stopped"),
            Self::Panicked { message } => write!(f, "the guest panicked: {message}"),
            Self::Violation(violation) => violation.fmt(f),
        }
    }
}

/// A fault of the host, of the payload, or of the VMM: the VM cannot be built or cannot go on.
#[derive(Debug, Error)]
pub enum VmError {
    /// KVM.
    #[error(transparent)]
    Hypervisor(#[from] HvError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The payload.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A device, for which the host failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The hot-plug region cannot be as it was asked for.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// More virtio devices than windows and interrupt lines.
    #[error("{count} virtio devices: a machine has room for {VIRTIO_MMIO_MAX}, regions and console included")]
    TooManyDevices {
        /// How many were asked for.
        count: usize,
    },
    /// The host's CPU cannot address that much guest memory.
    #[error("guest memory would end at {end:#x}: this host's CPU has {bits} physical address bits, so at most {:#x}", 1u128 << bits)]
    AddressBits {
        /// First address behind the guest's memory.
        end: u64,
        /// Physical address bits.
        bits: u32,
    },
    /// The serial port's file.
    #[error("{}: {source}", path.display())]
    SerialFile {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A tap cannot be opened.
    #[error("--net tap={name}: {source}")]
    Tap {
        /// Its name.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket of a device cannot be opened.
    #[error("{option} {path:?}: {source}")]
    Socket {
        /// The option that names it.
        option: &'static str,
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something else that the host provides.
    #[error("cannot {what}: {source}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The event loop.
    #[error(transparent)]
    EventLoop(event_manager::Error),
    /// KVM cannot execute what the guest wants executed.
    #[error("the guest cannot go on: {0}")]
    Emulation(EmulationFault),
    /// The host did not provide memory that the guest owns.
    #[error("the host cannot provide the guest's memory{} (rip {rip:#x})", gpa.map(|gpa| format!(" at gpa {gpa:#x}")).unwrap_or_default())]
    HostMemory {
        /// Guest-physical address, if KVM said.
        gpa: Option<u64>,
        /// Where the guest was.
        rip: u64,
    },
    /// KVM reported an exit that this VMM never asks for.
    #[error("a vCPU stopped for an unexpected reason: {0}")]
    UnexpectedExit(String),
}

impl VmError {
    /// For `map_err`: names what the host did not do.
    pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}

/// There is no such network interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("interface {interface}: this VM has {interfaces} of them, counted from 0")]
pub struct LinkError {
    /// Which was asked for.
    pub interface: usize,
    /// How many there are.
    pub interfaces: usize,
}

/// There is no such disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("disk {disk}: this VM has {disks} of them, counted from 0")]
pub struct DiskNumberError {
    /// Which was asked for.
    pub disk: usize,
    /// How many there are.
    pub disks: usize,
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
    /// The guest is held, and answers nothing until it is let go.
    #[error("the guest is held (see ballast resume)")]
    Held,
    /// The guest did not answer in time.
    #[error("the guest did not answer within {seconds} s")]
    TimedOut {
        /// How long the machine waited.
        seconds: u64,
    },
    /// The guest rebooted and has forgotten what it was asked.
    #[error("the guest rebooted before it answered")]
    Rebooted,
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
