//! What can be wrong with what the user asked for. Each message names the option, the value and the rule that it breaks.

use std::fmt;

use thiserror::Error;

use super::name::NameError;
use super::node::NodeError;
use super::size::{ByteSize, SizeError};

/// Why options are not a [`super::VmSpec`]. The command line reports it with exit status 2.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// The VM's name.
    #[error("--name")]
    Name(#[from] NameError),
    /// A text where a size belongs.
    #[error("{option}")]
    Size {
        /// The option that takes the size.
        option: &'static str,
        /// What is wrong with the text.
        source: SizeError,
    },
    /// A size that the option does not take.
    #[error("{option} {bytes}: {rule}")]
    Amount {
        /// The option.
        option: &'static str,
        /// What was asked for.
        bytes: ByteSize,
        /// The rule that it breaks.
        rule: SizeRule,
    },
    /// Nodes that do not fit together.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// More than the region holds.
    #[error("{option} {bytes}: more than the hot-plug region of {region}")]
    BeyondRegion {
        /// The option.
        option: &'static str,
        /// What was asked for.
        bytes: ByteSize,
        /// The size of the region.
        region: ByteSize,
    },
    /// More than something else that limits it.
    #[error("{option} {bytes}: more than {of}, {limit}")]
    Above {
        /// The option.
        option: &'static str,
        /// What was asked for.
        bytes: ByteSize,
        /// The most it may be.
        limit: ByteSize,
        /// What the limit is.
        of: &'static str,
    },
    /// More than a guest can address.
    #[error(
        "--memory {memory} and --hotplug {region}: together more than {limit}, the guest's address space"
    )]
    AddressSpace {
        /// Boot memory.
        memory: ByteSize,
        /// Hot-plug region.
        region: ByteSize,
        /// The most that both may have together.
        limit: ByteSize,
    },
    /// An option given too often.
    #[error("{option}: given {count} times, at most {limit} times")]
    TooMany {
        /// The option.
        option: &'static str,
        /// How often it was given.
        count: usize,
        /// The most.
        limit: usize,
    },
    /// Not a number of CPUs.
    #[error("--cpus {value:?}: a VM has 1 to {limit} CPUs")]
    Cpus {
        /// What was written.
        value: String,
        /// The most CPUs a VM may have.
        limit: u8,
    },
    /// An option whose value is not one of a few words.
    #[error("{option} {value:?}: one of {allowed}")]
    Choice {
        /// The option.
        option: &'static str,
        /// What was written.
        value: String,
        /// The words allowed.
        allowed: &'static str,
    },
    /// A text that cannot be handed to the guest or the host as it is.
    #[error("{option} {value:?}: {rule}")]
    Text {
        /// The option.
        option: &'static str,
        /// What was written.
        value: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// Two options that exclude each other.
    #[error("{option} and {other}: {rule}")]
    Conflict {
        /// One option.
        option: &'static str,
        /// The other.
        other: &'static str,
        /// Why they exclude each other.
        rule: &'static str,
    },
    /// An option that means nothing without another.
    #[error("{option} without {missing}: {rule}")]
    Missing {
        /// The option that was given.
        option: &'static str,
        /// The option that was not.
        missing: &'static str,
        /// Why it is needed.
        rule: &'static str,
    },
}

/// What a size has to be. Written as what is wrong with one that is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SizeRule {
    /// At least so many bytes.
    AtLeast(u64),
    /// Whole units of so many bytes.
    MultipleOf(u64),
    /// A power of two, as virtio-mem's blocks (virtio 1.3, 5.15.4).
    PowerOfTwo,
}

impl SizeRule {
    /// Whether a size of `bytes` keeps the rule.
    #[must_use]
    pub const fn allows(self, bytes: u64) -> bool {
        match self {
            Self::AtLeast(least) => bytes >= least,
            Self::MultipleOf(unit) => bytes.is_multiple_of(unit),
            Self::PowerOfTwo => bytes.is_power_of_two(),
        }
    }
}

impl fmt::Display for SizeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::AtLeast(least) => write!(f, "the smallest is {}", ByteSize(least)),
            Self::MultipleOf(unit) => write!(f, "not a multiple of {}", ByteSize(unit)),
            Self::PowerOfTwo => f.write_str("not a power of two"),
        }
    }
}
