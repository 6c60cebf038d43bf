//! What the user asked for, validated: a [`VmSpec`] is plain data, and building one touches nothing.

mod backing;
mod balloon;
mod check;
mod console_port;
mod cpus;
mod disk;
mod error;
mod file;
mod hotplug;
mod hvc;
mod memory;
mod name;
mod net;
mod node;
mod options;
mod payload;
mod reboot;
mod serial;
mod size;
#[cfg(test)]
mod testing;
mod validate;
mod violation;
mod vsock;

pub use backing::{Backing, HugePage, PageSupply};
pub use balloon::{BALLOON_UNIT, BalloonSpec, MAX_STATS_SECONDS};
pub use console_port::{ConsolePortSpec, PortEnd};
pub use cpus::MAX_CPUS;
pub use disk::{DiskCache, DiskSpec, EngineChoice};
pub use error::{SizeRule, SpecError};
pub use file::FileError;
pub use hotplug::{HotplugSpec, MAX_REGIONS, MIN_BLOCK_SIZE};
pub use hvc::HvcMode;
pub use memory::{DEFAULT_MEMORY, MAX_TOTAL_MEMORY, MEMORY_UNIT, MIN_MEMORY};
pub use name::{MAX_NAME_LENGTH, NameError, VmName};
pub use net::NetSpec;
pub use node::{LOCAL_DISTANCE, MAX_NODES, NodeError, NodeSpec, REMOTE_DISTANCE};
pub use options::VmOptions;
pub use payload::{MAX_CMDLINE_LENGTH, Payload};
pub use reboot::{DEFAULT_REBOOT_LIMIT, OnReboot};
pub use serial::SerialMode;
pub use size::{ByteSize, GIB, MIB, SizeError, parse_size};
pub use violation::OnViolation;
pub use vsock::VsockSpec;

use std::num::{NonZeroU8, NonZeroU32};

/// Everything that decides what a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Unique among the running VMs of one user.
    pub name: VmName,
    /// What boots.
    pub payload: Payload,
    /// Boot memory in bytes: a multiple of 2 MiB and of the backing's pages, at least 32 MiB.
    pub memory: u64,
    /// What boot memory is made of.
    pub backing: Backing,
    /// The hot-plug regions, at most 16, in the order of their devices and addresses.
    pub hotplug: Vec<HotplugSpec>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonSpec>,
    /// Virtual CPUs, 1 to 16.
    pub cpus: NonZeroU8,
    /// NUMA nodes, at most 8, whose memory adds up to `memory`. Empty: the guest is told nothing of nodes.
    pub nodes: Vec<NodeSpec>,
    /// What to do when the guest touches an unplugged block.
    pub on_violation: OnViolation,
    /// What to do when the guest resets its machine.
    pub on_reboot: OnReboot,
    /// So many resets in a row, with little time in between, end the VM.
    pub reboot_limit: Option<NonZeroU32>,
    /// Where the guest's serial port goes.
    pub serial: SerialMode,
    /// What the console's first port is.
    pub hvc: HvcMode,
    /// Named ports of the console.
    pub console_ports: Vec<ConsolePortSpec>,
    /// Network interfaces, each with a tap of its own.
    pub net: Vec<NetSpec>,
    /// The socket device, if there is one.
    pub vsock: Option<VsockSpec>,
    /// Disks, in the order in which the guest finds them.
    pub disks: Vec<DiskSpec>,
    /// Whether the guest has an entropy device.
    pub rng: bool,
}
