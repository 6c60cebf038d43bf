//! What can be wrong with what the user asked for. Each message names the option, the value and the rule that it breaks.

use thiserror::Error;

use super::name::NameError;
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
    /// A size below the smallest that makes sense.
    #[error("{option} {bytes}: the smallest is {least}")]
    TooSmall {
        /// The option.
        option: &'static str,
        /// What was asked for.
        bytes: ByteSize,
        /// The smallest size allowed.
        least: ByteSize,
    },
    /// A size that is not made of whole units.
    #[error("{option} {bytes}: not a multiple of {unit}")]
    NotMultiple {
        /// The option.
        option: &'static str,
        /// What was asked for.
        bytes: ByteSize,
        /// What it has to be a multiple of.
        unit: ByteSize,
    },
    /// A block size that is not a power of two (virtio 1.3, 5.15.4).
    #[error("--block-size {bytes}: not a power of two")]
    NotPowerOfTwo {
        /// What was asked for.
        bytes: ByteSize,
    },
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
