//! The hypervisor: what this VMM needs of KVM, and nothing it does not.
//!
//! [`Hypervisor`] is `/dev/kvm`, opened and checked; [`Partition`] is one VM's file descriptor with its interrupt
//! controllers, memory slots, irqfds and ioeventfds; [`Vcpu`] is one virtual CPU, whose [`ActiveVcpu::run`] returns a
//! [`VcpuEvent`] for everything that KVM does not settle itself. A vCPU thread is interrupted with a signal
//! ([`kick_signal`]), without the classic race between the last look at a flag and entering the guest.

mod cpuid;
mod kick;
mod operand;
mod partition;
mod registers;
mod system;
mod vcpu;

pub use kick::kick_signal;
pub use partition::Partition;
pub use registers::{BootState, GDT};
pub use system::Hypervisor;
pub use vcpu::{ActiveVcpu, EmulationFault, Vcpu, VcpuEvent};

use std::io;

use thiserror::Error;
use vmm_sys_util::errno;

/// Where KVM is.
pub const KVM_PATH: &str = "/dev/kvm";

/// What KVM can refuse.
#[derive(Debug, Error)]
pub enum HvError {
    /// There is no KVM on this host.
    #[error("{KVM_PATH}: {0}: KVM is needed (load the kvm module, or pass the device into the container)")]
    NoDevice(io::Error),
    /// There is, but not for this user.
    #[error("{KVM_PATH}: {0}: the user must be able to read and write it (group kvm, usually)")]
    NoPermission(io::Error),
    /// There is, but opening it fails in another way.
    #[error("{KVM_PATH}: cannot be opened: {0}")]
    Open(io::Error),
    /// The device is not KVM as it has been since Linux 2.6.22.
    #[error("{KVM_PATH}: API version {found}, but it must be 12")]
    ApiVersion {
        /// What it says it is.
        found: i32,
    },
    /// This kernel's KVM lacks something.
    #[error("{KVM_PATH}: this host's KVM lacks {name}, which is needed {why}")]
    Capability {
        /// The kernel's name of the capability.
        name: &'static str,
        /// What for, and since when kernels have it.
        why: &'static str,
    },
    /// A request that should have worked did not.
    #[error("KVM refused to {what}: {source}")]
    Request {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: errno::Error,
    },
}

impl HvError {
    /// For `map_err`: names the request that failed.
    fn request(what: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Request { what, source }
    }
}
