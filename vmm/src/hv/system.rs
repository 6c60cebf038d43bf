//! `/dev/kvm`, opened and checked once per VM.

use std::io;
use std::path::Path;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::{HvError, KVM_PATH, Partition};

/// Everything a VM needs of KVM beyond its first version, and why. Order: the most telling first.
const NEEDED: [(Cap, &str, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY", "for guest memory"),
    (
        Cap::Irqchip,
        "KVM_CAP_IRQCHIP",
        "for interrupt controllers in the kernel",
    ),
    (Cap::Pit2, "KVM_CAP_PIT2", "for the interval timer"),
    (
        Cap::ExtCpuid,
        "KVM_CAP_EXT_CPUID",
        "to say what the guest's CPU can do",
    ),
    (Cap::Irqfd, "KVM_CAP_IRQFD", "for device interrupts"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD", "for device notifications"),
    (Cap::MpState, "KVM_CAP_MP_STATE", "for more than one CPU"),
    (
        Cap::ImmediateExit,
        "KVM_CAP_IMMEDIATE_EXIT",
        "to stop a running CPU (Linux 4.13)",
    ),
];

/// The host's KVM.
#[derive(Debug)]
pub struct Hypervisor {
    kvm: Kvm,
}

impl Hypervisor {
    /// Opens `/dev/kvm` and checks that it has what a VM needs.
    ///
    /// # Errors
    /// It is absent, not permitted, or lacks a capability.
    pub fn open() -> Result<Self, HvError> {
        Self::open_at(Path::new(KVM_PATH))
    }

    fn open_at(path: &Path) -> Result<Self, HvError> {
        let kvm = Kvm::new_with_path(c_path(path)?)
            .map_err(|errno| open_error(io::Error::from_raw_os_error(errno.errno())))?;
        let found = kvm.get_api_version();
        if found != 12 {
            return Err(HvError::ApiVersion { found });
        }
        match NEEDED.iter().find(|(cap, ..)| !kvm.check_extension(*cap)) {
            Some((_, name, why)) => Err(HvError::Capability { name, why }),
            None => Ok(Self { kvm }),
        }
    }

    /// Creates an empty VM.
    ///
    /// # Errors
    /// KVM has no room for another one.
    pub fn create_partition(&self) -> Result<Partition, HvError> {
        let vm = self.kvm.create_vm().map_err(HvError::request("create a VM"))?;
        Partition::new(vm)
    }

    /// What a guest's CPU may be told it can do.
    ///
    /// # Errors
    /// KVM does not say.
    pub fn supported_cpuid(&self) -> Result<CpuId, HvError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(HvError::request("list the CPU features it supports"))
    }

    /// Whether the local APIC's timer can be armed with a time-stamp value.
    #[must_use]
    pub fn has_tsc_deadline_timer(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}

fn c_path(path: &Path) -> Result<std::ffi::CString, HvError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    std::ffi::CString::new(bytes).map_err(|nul| HvError::Open(nul.into()))
}

fn open_error(error: io::Error) -> HvError {
    match error.kind() {
        io::ErrorKind::NotFound => HvError::NoDevice(error),
        io::ErrorKind::PermissionDenied => HvError::NoPermission(error),
        // The node exists, but no module serves it.
        _ if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => HvError::NoDevice(error),
        _ => HvError::Open(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_named() {
        let error = Hypervisor::open_at(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(matches!(error, HvError::NoDevice(_)));
        assert!(
            error
                .to_string()
                .starts_with("/dev/kvm: No such file or directory"),
            "{error}"
        );
    }

    #[test]
    fn a_forbidden_device_is_named() {
        let error = open_error(io::Error::from_raw_os_error(libc::EACCES));
        assert!(
            error.to_string().starts_with("/dev/kvm: Permission denied"),
            "{error}"
        );
    }

    #[test]
    fn this_host_has_all_that_a_vm_needs() {
        let hypervisor = Hypervisor::open().expect("the KVM tests need /dev/kvm");
        assert!(!hypervisor.supported_cpuid().unwrap().as_slice().is_empty());
    }
}
