//! What the user asked for, validated: a [`VmSpec`] is plain data, and building one touches nothing.

mod error;
mod file;
mod name;
mod node;
mod options;
mod size;
mod validate;

pub use error::{SizeRule, SpecError};
pub use file::FileError;
pub use name::{MAX_NAME_LENGTH, NameError, VmName};
pub use node::{LOCAL_DISTANCE, MAX_NODES, NodeError, NodeSpec, REMOTE_DISTANCE};
pub use options::VmOptions;
pub use size::{ByteSize, GIB, MIB, SizeError, parse_size};
pub use validate::{
    DEFAULT_MEMORY, MAX_CMDLINE_LENGTH, MAX_CPUS, MAX_TOTAL_MEMORY, MEMORY_UNIT, MIN_BLOCK_SIZE, MIN_MEMORY,
};

use std::num::NonZeroU8;
use std::path::PathBuf;

/// Everything that decides what a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// Unique among the running VMs of one user.
    pub name: VmName,
    /// What boots.
    pub payload: Payload,
    /// Boot memory in bytes: a multiple of 2 MiB, at least 32 MiB.
    pub memory: u64,
    /// The hot-plug region, if there is one.
    pub hotplug: Option<HotplugSpec>,
    /// Virtual CPUs, 1 to 16.
    pub cpus: NonZeroU8,
    /// NUMA nodes, at most 8, whose memory adds up to `memory`. Empty: the guest is told nothing of nodes.
    pub nodes: Vec<NodeSpec>,
    /// What to do when the guest touches an unplugged block.
    pub on_violation: OnViolation,
    /// Where the guest's serial port goes.
    pub serial: SerialMode,
}

/// What boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// The guest embedded in the binary.
    BuiltIn {
        /// Extra command line.
        cmdline: String,
        /// Programs to run, each a line such as `hog fill=70%`.
        programs: Vec<String>,
    },
    /// A PVH ELF image or a bzImage.
    Kernel {
        /// The kernel file.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// The hot-plug region. All sizes are bytes and multiples of `block_size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HotplugSpec {
    /// Size of the region.
    pub region_size: u64,
    /// Size of a block: a power of two, at least 2 MiB.
    pub block_size: u64,
    /// How much of it the guest is asked to take at boot.
    pub requested_size: u64,
    /// The node that its memory belongs to; 0 without nodes.
    pub node: u8,
}

/// What to do when the guest touches an unplugged block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnViolation {
    /// End the VM.
    Kill,
    /// Stop all its vCPUs and keep it for inspection.
    Pause,
}

/// Where the guest's serial port goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialMode {
    /// Standard input and output in raw mode, with the escape key.
    Terminal,
    /// Standard output; no input.
    Stdout,
    /// Appended to a file; no input.
    File(PathBuf),
    /// Nowhere.
    Discard,
}
