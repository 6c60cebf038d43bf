//! What puts a guest into a machine, at power-on and at each reboot: a VM of KVM's with its vCPUs, all lines connected,
//! the ACPI tables, and the payload.
//!
//! KVM has no reset. A VM of its own for each boot leaves nothing of the guest before in vCPUs, interrupt controllers and
//! timers, and nothing to forget here when KVM learns of one more register. What outlives a boot (memory, devices,
//! counters, the control socket) is in [`Shared`].

use std::sync::Arc;

use kvm_bindings::CpuId;

use super::VmError;
use super::assemble::affinity;
use super::layout::RamRange;
use super::shared::Shared;
use crate::boot::acpi::Platform;
use crate::boot::{self, CommandLine, InitrdFile, KernelImage};
use crate::hv::{Hypervisor, Partition, Vcpu};
use crate::spec;

/// What every boot of a machine begins with.
#[derive(Debug)]
pub(super) struct Firmware {
    hypervisor: Hypervisor,
    cpuid: CpuId,
    payload: boot::Payload,
    /// Each region's addresses and the node that it belongs to.
    regions: Vec<(RamRange, u8)>,
}

/// A guest that has not run its first instruction.
#[derive(Debug)]
pub(super) struct Boot {
    pub(super) partition: Arc<Partition>,
    pub(super) vcpus: Vec<Vcpu>,
}

impl Firmware {
    pub(super) fn new(
        hypervisor: Hypervisor,
        cpuid: CpuId,
        payload: boot::Payload,
        regions: Vec<(RamRange, u8)>,
    ) -> Self {
        Self {
            hypervisor,
            cpuid,
            payload,
            regions,
        }
    }

    /// Makes the machine ready to run. Boot memory must read as zeros, and no earlier boot be left.
    ///
    /// # Errors
    /// The host refuses, or the payload does not fit.
    pub(super) fn power_on(&mut self, machine: &Shared) -> Result<Boot, VmError> {
        let (spec, ram) = (&machine.spec, &machine.ram);
        let mut partition = self.hypervisor.create_partition()?;
        partition.set_memory(ram)?;
        machine.bus.com1().connect(&partition)?;
        machine.devices.connect(&partition)?;
        let rsdp = Platform {
            cpus: spec.cpus.get(),
            virtio_devices: machine.devices.count(),
            affinity: affinity(spec, &self.regions),
        }
        .write_tables(ram.boot_view())?;
        let boot_state = self.payload.load(ram.boot_view(), spec.memory, rsdp)?;
        boot::built_in::release();
        let mut vcpus = Vec::new();
        for id in 0..spec.cpus.get() {
            let vcpu: Vcpu = partition.create_vcpu(id)?;
            let tsc_deadline = self.hypervisor.has_tsc_deadline_timer();
            vcpu.set_features(&self.cpuid, spec.cpus.get(), tsc_deadline)?;
            vcpus.push(vcpu);
        }
        if let Some(boot_cpu) = vcpus.first() {
            boot_cpu.set_boot_state(boot_state)?;
        }
        Ok(Boot {
            partition: Arc::new(partition),
            vcpus,
        })
    }
}

/// The payload's files, opened, so that what is wrong with them is said before memory is mapped. They stay open: a guest
/// reboots into what it was started with, whatever becomes of the files' names.
pub(super) struct PayloadFiles {
    kernel: KernelImage,
    initrd: Option<InitrdFile>,
}

impl PayloadFiles {
    /// # Errors
    /// A file cannot be read, or is no kernel.
    pub(super) fn open(payload: &spec::Payload) -> Result<Self, VmError> {
        Ok(match payload {
            spec::Payload::BuiltIn { .. } => Self {
                kernel: KernelImage::embedded("built-in guest", boot::built_in::image())?,
                initrd: None,
            },
            spec::Payload::Kernel { kernel, initrd, .. } => {
                let initrd = initrd.as_deref().map(InitrdFile::open).transpose()?;
                Self {
                    kernel: KernelImage::open(kernel)?,
                    initrd,
                }
            }
        })
    }

    /// The files with the command line of `payload` for a machine with so many virtio devices.
    ///
    /// # Errors
    /// The command line is too long with all that the machine adds to it.
    pub(super) fn with_command_line(
        self,
        payload: &spec::Payload,
        virtio_devices: u32,
    ) -> Result<boot::Payload, VmError> {
        let cmdline = match payload {
            spec::Payload::BuiltIn { cmdline, programs } => {
                CommandLine::for_built_in(cmdline, virtio_devices, programs)?
            }
            spec::Payload::Kernel { cmdline, .. } => CommandLine::for_kernel(cmdline)?,
        };
        Ok(boot::Payload {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline,
        })
    }
}
