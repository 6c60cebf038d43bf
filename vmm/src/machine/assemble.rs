//! Making a machine: from a specification to vCPUs that wait to run.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::bus::Bus;
use super::channel::Channel;
use super::devices::{DeviceList, Parts};
use super::layout::{RamRange, ram_ranges, region_starts};
use super::lifecycle::Lifecycle;
use super::progress::ResizeProgress;
use super::serial::SerialPort;
use super::shared::Shared;
use super::violation::ViolationWatch;
use super::{Vm, VmError, VmHandle};
use crate::boot::acpi::{Affinity, Platform};
use crate::boot::{self, CommandLine, InitrdFile, KernelImage};
use crate::hv::{Hypervisor, Vcpu, kick_signal};
use crate::memory::{GuestRam, MemoryError, RegionLayout, RegionPlan};
use crate::spec::{HotplugSpec, Payload, SerialMode, VmSpec};
use crate::terminal::{Output, Sink};

/// Makes the machine that `spec` describes.
pub(super) fn assemble(spec: &VmSpec) -> Result<Vm, VmError> {
    let built = Instant::now();
    let hypervisor = Hypervisor::open()?;
    let kick = kick_signal()?;
    let files = PayloadFiles::open(&spec.payload)?;
    let cpuid = hypervisor.supported_cpuid()?;
    let regions = place_regions(spec)?;
    check_address_bits(spec, &regions, &cpuid)?;
    let ranges = ram_ranges(spec.memory).ok_or_else(|| no_address_space(spec))?;
    let ram = Arc::new(GuestRam::new(&ranges, spec.backing, &regions)?);
    let mut partition = hypervisor.create_partition()?;
    partition.set_memory(&ram)?;

    let sink = open_sink(&spec.serial)?;
    let output = Output::start(sink).map_err(VmError::host("start the serial output"))?;
    let com1 = Arc::new(SerialPort::new(output.writer()).map_err(VmError::host("create event descriptors"))?);
    com1.connect(&partition)?;
    let devices = DeviceList::new(Parts { spec, ram: &ram })?;
    devices.connect(&partition)?;
    let virtio_devices = devices.count();

    let near = region_nodes(spec, &regions);
    let rsdp = Platform {
        cpus: spec.cpus.get(),
        virtio_devices,
        affinity: affinity(spec, &near),
    }
    .write_tables(ram.boot_view())?;
    let cmdline = command_line(&spec.payload, virtio_devices)?;
    let boot_state = files.with(cmdline).load(ram.boot_view(), spec.memory, rsdp)?;
    boot::built_in::release();
    let mut vcpus = Vec::new();
    for id in 0..spec.cpus.get() {
        let vcpu: Vcpu = partition.create_vcpu(id)?;
        vcpu.set_features(&cpuid, spec.cpus.get(), hypervisor.has_tsc_deadline_timer())?;
        vcpus.push(vcpu);
    }
    if let Some(boot_cpu) = vcpus.first() {
        boot_cpu.set_boot_state(boot_state)?;
    }

    let windows = devices.iter().map(|device| device.shell() as _).collect();
    let ended = EventFd::new(libc::EFD_NONBLOCK).map_err(VmError::host("create event descriptors"))?;
    let wake = ended
        .try_clone()
        .map_err(VmError::host("create event descriptors"))?;
    let shared = Shared {
        spec: spec.clone(),
        built,
        partition,
        lifecycle: Lifecycle::new(wake),
        ended,
        bus: Bus::new(windows, Arc::clone(&com1)),
        violations: ViolationWatch::new(Arc::clone(&ram), spec.on_violation),
        ram,
        devices,
        progress: ResizeProgress::new(),
        sizing: std::sync::Mutex::default(),
        channel: Channel::new(),
    };
    Ok(Vm {
        handle: VmHandle {
            shared: Arc::new(shared),
        },
        vcpus,
        kick,
        com1,
        output,
    })
}

/// The payload's files, opened, so that what is wrong with them is said before memory is mapped.
struct PayloadFiles {
    kernel: KernelImage,
    initrd: Option<InitrdFile>,
}

impl PayloadFiles {
    fn open(payload: &Payload) -> Result<Self, VmError> {
        Ok(match payload {
            Payload::BuiltIn { .. } => Self {
                kernel: KernelImage::embedded("built-in guest", boot::built_in::image())?,
                initrd: None,
            },
            Payload::Kernel { kernel, initrd, .. } => {
                let initrd = initrd.as_deref().map(InitrdFile::open).transpose()?;
                Self {
                    kernel: KernelImage::open(kernel)?,
                    initrd,
                }
            }
        })
    }

    fn with(self, cmdline: CommandLine) -> boot::Payload {
        boot::Payload {
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline,
        }
    }
}

/// The command line for a machine with so many virtio devices.
fn command_line(payload: &Payload, virtio_devices: u32) -> Result<CommandLine, VmError> {
    Ok(match payload {
        Payload::BuiltIn { cmdline, programs } => {
            CommandLine::for_built_in(cmdline, virtio_devices, programs)?
        }
        Payload::Kernel { cmdline, .. } => CommandLine::for_kernel(cmdline)?,
    })
}

/// The regions, each with its place.
fn place_regions(spec: &VmSpec) -> Result<Vec<RegionPlan>, VmError> {
    let sizes: Vec<_> = spec
        .hotplug
        .iter()
        .map(|hotplug| (hotplug.region_size, hotplug.block_size))
        .collect();
    let starts = region_starts(spec.memory, &sizes).ok_or_else(|| no_address_space(spec))?;
    let plan = |(hotplug, start): (&HotplugSpec, u64)| RegionPlan {
        layout: RegionLayout {
            start,
            size: hotplug.region_size,
            block_size: hotplug.block_size,
        },
        backing: hotplug.backing,
        pages: hotplug.pages,
        unplugged: hotplug.unplugged,
    };
    Ok(spec.hotplug.iter().zip(starts).map(plan).collect())
}

/// Each region's addresses and the node that it belongs to.
fn region_nodes(spec: &VmSpec, regions: &[RegionPlan]) -> Vec<(RamRange, u8)> {
    let nodes = spec.hotplug.iter().map(|hotplug| hotplug.node);
    let ranges = regions.iter().map(|region| RamRange {
        gpa: region.layout.start,
        size: region.layout.size,
    });
    ranges.zip(nodes).collect()
}

/// What the guest is told of nodes: nothing unless the user named some.
fn affinity<'a>(spec: &'a VmSpec, regions: &'a [(RamRange, u8)]) -> Option<Affinity<'a>> {
    (!spec.nodes.is_empty()).then_some(Affinity {
        nodes: &spec.nodes,
        regions,
    })
}

fn no_address_space(spec: &VmSpec) -> VmError {
    MemoryError::AddressSpace {
        gpa: 0,
        size: spec.memory,
    }
    .into()
}

/// The host's CPU must be able to address all of the guest's memory.
fn check_address_bits(
    spec: &VmSpec,
    regions: &[RegionPlan],
    cpuid: &kvm_bindings::CpuId,
) -> Result<(), VmError> {
    let ram_end = ram_ranges(spec.memory).and_then(|ranges| ranges.last().map(|last| last.end()));
    let end = regions.last().map(|region| region.layout.end()).or(ram_end);
    let end = end.ok_or_else(|| no_address_space(spec))?;
    // CPUID 0x8000_0008, EAX bits 7 to 0; CPUs without the leaf have 36.
    let leaf = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008);
    let bits = leaf.map_or(36, |entry| entry.eax & 0xFF);
    if bits < 64 && end > 1 << bits {
        return Err(VmError::AddressBits { end, bits });
    }
    Ok(())
}

fn open_sink(serial: &SerialMode) -> Result<Sink, VmError> {
    match serial {
        SerialMode::Terminal | SerialMode::Stdout => {
            Sink::stdout().map_err(VmError::host("use standard output"))
        }
        SerialMode::File(path) => append_to(path),
        SerialMode::Discard => Ok(Sink::Nothing),
    }
}

fn append_to(path: &Path) -> Result<Sink, VmError> {
    Sink::append(path).map_err(|source| VmError::SerialFile {
        path: path.to_owned(),
        source,
    })
}
