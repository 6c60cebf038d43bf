//! Making a machine: from a specification to vCPUs that wait to run for the first time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use super::bus::Bus;
use super::channel::Channel;
use super::devices::{DeviceList, Parts};
use super::firmware::{Firmware, PayloadFiles};
use super::layout::{RamRange, ram_ranges, region_starts};
use super::lifecycle::Lifecycle;
use super::progress::ResizeProgress;
use super::reboots::RebootWatch;
use super::serial::SerialPort;
use super::shared::Shared;
use super::violation::ViolationWatch;
use super::{Vm, VmError, VmHandle};
use crate::boot::acpi::Affinity;
use crate::hv::{Hypervisor, kick_signal};
use crate::journal::Events;
use crate::memory::{GuestRam, MemoryError, RegionLayout, RegionPlan};
use crate::spec::{HotplugSpec, HvcMode, SerialMode, VmSpec};
use crate::terminal::{Output, OutputWriter, Sink};

/// Makes the machine that `spec` describes.
pub(super) fn assemble(spec: &VmSpec) -> Result<Vm, VmError> {
    let built = Instant::now();
    let events = Events::new(built);
    let hypervisor = Hypervisor::open()?;
    let kick = kick_signal()?;
    let files = PayloadFiles::open(&spec.payload)?;
    let cpuid = hypervisor.supported_cpuid()?;
    let regions = place_regions(spec)?;
    check_address_bits(spec, &regions, &cpuid)?;
    let ranges = ram_ranges(spec.memory).ok_or_else(|| no_address_space(spec))?;
    let ram = Arc::new(GuestRam::new(&ranges, spec.backing, &regions)?);
    let (outputs, screen) = open_outputs(spec)?;
    let com1 = SerialPort::new(outputs[0].writer()).map_err(VmError::host("create event descriptors"))?;
    let com1 = Arc::new(com1);
    let devices = DeviceList::new(Parts {
        spec,
        ram: &ram,
        events: &events,
        screen: &screen,
    })?;
    let payload = files.with_command_line(&spec.payload, devices.count())?;
    let windows = devices.iter().map(|device| device.shell() as _).collect();
    let ended = EventFd::new(libc::EFD_NONBLOCK).map_err(VmError::host("create event descriptors"))?;
    let wake = ended
        .try_clone()
        .map_err(VmError::host("create event descriptors"))?;
    let shared = Arc::new(Shared {
        spec: spec.clone(),
        built,
        lifecycle: Lifecycle::new(wake, events.clone()),
        ended,
        bus: Bus::new(windows, Arc::clone(&com1)),
        violations: ViolationWatch::new(Arc::clone(&ram), spec.on_violation),
        ram,
        devices,
        sizing: std::sync::Mutex::default(),
        progress: ResizeProgress::new().map_err(VmError::host("create a timer"))?,
        events,
        channel: Channel::new(),
        reboots: RebootWatch::new(spec.reboot_limit),
        boots: AtomicU64::new(1),
    });
    let mut firmware = Firmware::new(hypervisor, cpuid, payload, region_nodes(spec, &regions));
    let boot = firmware.power_on(&shared)?;
    Ok(Vm {
        handle: VmHandle { shared },
        firmware,
        boot,
        kick,
        outputs,
        screen,
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
pub(super) fn affinity<'a>(spec: &'a VmSpec, regions: &'a [(RamRange, u8)]) -> Option<Affinity<'a>> {
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

/// The outputs, the serial port's first, and what writes to the one that shows what standard input types.
fn open_outputs(spec: &VmSpec) -> Result<(Vec<Output>, OutputWriter), VmError> {
    let start = |sink| Output::start(sink).map_err(VmError::host("start the guest's output"));
    let mut outputs = vec![start(open_sink(&spec.serial)?)?];
    if spec.hvc == HvcMode::Terminal && spec.serial != SerialMode::Stdout {
        outputs.push(start(open_sink(&SerialMode::Stdout)?)?);
    }
    // Two writers of one output do not tear each other's lines apart more than they have to.
    let screen = outputs[outputs.len() - 1].writer();
    Ok((outputs, screen))
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
