//! Making a machine: from a specification to vCPUs that wait to run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use devices::console::Console;
use devices::mem::{MemDevice, RegionSpec, UnpluggedMemory};
use vmm_sys_util::eventfd::EventFd;

use super::bus::{Bus, MmioWindow};
use super::channel::Channel;
use super::layout::{RamRange, ram_ranges, region_start};
use super::lifecycle::Lifecycle;
use super::progress::ResizeProgress;
use super::serial::SerialPort;
use super::shared::Shared;
use super::violation::ViolationWatch;
use super::virtio::VirtioShell;
use super::{Vm, VmError, VmHandle};
use crate::boot::acpi::{Affinity, Platform};
use crate::boot::{self, CommandLine, InitrdFile, KernelImage};
use crate::hv::{Hypervisor, Partition, Vcpu, kick_signal};
use crate::memory::{GuestRam, MemoryError, RegionBackend, RegionLayout};
use crate::spec::{HotplugSpec, Payload, SerialMode, VmSpec};
use crate::terminal::{Output, Sink};

/// Makes the machine that `spec` describes.
pub(super) fn assemble(spec: &VmSpec) -> Result<Vm, VmError> {
    let built = Instant::now();
    let hypervisor = Hypervisor::open()?;
    let kick = kick_signal()?;
    let virtio_devices = 1 + u32::from(spec.hotplug.is_some());
    let payload = open_payload(&spec.payload, virtio_devices)?;
    let cpuid = hypervisor.supported_cpuid()?;
    let region = spec
        .hotplug
        .map(|hotplug| place_region(spec, hotplug))
        .transpose()?;
    check_address_bits(spec, region, &cpuid)?;
    let ranges = ram_ranges(spec.memory).ok_or_else(|| no_address_space(spec))?;
    let ram = Arc::new(GuestRam::new(&ranges, region)?);
    let mut partition = hypervisor.create_partition()?;
    partition.set_memory(&ram)?;

    let sink = open_sink(&spec.serial)?;
    let output = Output::start(sink).map_err(VmError::host("start the serial output"))?;
    let com1 = Arc::new(SerialPort::new(output.writer()).map_err(VmError::host("create event descriptors"))?);
    com1.connect(&partition)?;
    let devices = Devices::new(spec, region, &ram, &partition)?;

    let rsdp = Platform {
        cpus: spec.cpus.get(),
        virtio_devices,
        affinity: affinity(spec, region),
    }
    .write_tables(ram.boot_view())?;
    let boot_state = payload.load(ram.boot_view(), spec.memory, rsdp)?;
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
        bus: Bus::new(devices.windows, Arc::clone(&com1)),
        violations: ViolationWatch::new(ram.region().cloned(), spec.on_violation),
        ram,
        memory_device: devices.memory,
        discarded: devices.discarded,
        progress: ResizeProgress::new(),
        console: devices.console,
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

/// Opens the payload's files, so that what is wrong with them is said before memory is mapped.
fn open_payload(payload: &Payload, virtio_devices: u32) -> Result<boot::Payload, VmError> {
    let (kernel, initrd, cmdline) = match payload {
        Payload::BuiltIn { cmdline, programs } => {
            let kernel = KernelImage::embedded("built-in guest", boot::built_in::image())?;
            (
                kernel,
                None,
                CommandLine::for_built_in(cmdline, virtio_devices, programs)?,
            )
        }
        Payload::Kernel {
            kernel,
            initrd,
            cmdline,
        } => {
            let initrd = initrd.as_deref().map(InitrdFile::open).transpose()?;
            (
                KernelImage::open(kernel)?,
                initrd,
                CommandLine::for_kernel(cmdline)?,
            )
        }
    };
    Ok(boot::Payload {
        kernel,
        initrd,
        cmdline,
    })
}

fn place_region(spec: &VmSpec, hotplug: HotplugSpec) -> Result<RegionLayout, VmError> {
    let start = region_start(spec.memory, hotplug.block_size).ok_or_else(|| no_address_space(spec))?;
    Ok(RegionLayout {
        start,
        size: hotplug.region_size,
        block_size: hotplug.block_size,
    })
}

/// What the guest is told of nodes: nothing unless the user named some.
fn affinity(spec: &VmSpec, region: Option<RegionLayout>) -> Option<Affinity<'_>> {
    let region = spec.hotplug.zip(region).map(|(hotplug, region)| {
        let (gpa, size) = (region.start, region.size);
        (RamRange { gpa, size }, hotplug.node)
    });
    (!spec.nodes.is_empty()).then_some(Affinity {
        nodes: &spec.nodes,
        region,
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
    region: Option<RegionLayout>,
    cpuid: &kvm_bindings::CpuId,
) -> Result<(), VmError> {
    let ram_end = ram_ranges(spec.memory).and_then(|ranges| ranges.last().map(|last| last.end()));
    let end = region.map_or(ram_end, |region| region.start.checked_add(region.size));
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

/// The virtio devices, connected.
struct Devices {
    memory: Option<Arc<VirtioShell<MemDevice<RegionBackend>>>>,
    discarded: Arc<AtomicU64>,
    console: Arc<VirtioShell<Console>>,
    windows: Vec<Arc<dyn MmioWindow>>,
}

impl Devices {
    fn new(
        spec: &VmSpec,
        region: Option<RegionLayout>,
        ram: &GuestRam,
        partition: &Partition,
    ) -> Result<Self, VmError> {
        let descriptors = || VmError::host("create event descriptors");
        let mut windows: Vec<Arc<dyn MmioWindow>> = Vec::new();
        let (mut memory, mut discarded) = (None, Arc::default());
        if let (Some(region), Some(backend)) = (region, ram.backend()) {
            discarded = backend.discarded_bytes();
            let device = MemDevice::new(
                &RegionSpec {
                    addr: region.start,
                    region_size: region.size,
                    block_size: region.block_size,
                    requested_size: spec.hotplug.map_or(0, |hotplug| hotplug.requested_size),
                    node_id: spec
                        .hotplug
                        .filter(|_| !spec.nodes.is_empty())
                        .map(|hotplug| hotplug.node.into()),
                    unplugged: UnpluggedMemory::Inaccessible,
                },
                backend,
            )?;
            let shell = VirtioShell::new(device, ram.device_view().clone()).map_err(descriptors())?;
            shell.connect(partition, 0)?;
            let shell = Arc::new(shell);
            windows.push(Arc::clone(&shell) as Arc<dyn MmioWindow>);
            memory = Some(shell);
        }
        let console =
            VirtioShell::new(Console::new(None), ram.device_view().clone()).map_err(descriptors())?;
        console.connect(partition, u32::from(memory.is_some()))?;
        let console = Arc::new(console);
        windows.push(Arc::clone(&console) as Arc<dyn MmioWindow>);
        Ok(Self {
            memory,
            discarded,
            console,
            windows,
        })
    }
}
