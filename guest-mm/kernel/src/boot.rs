//! From the first instruction to a machine that works: what the VMM said, the manager's page tables, the heap, the
//! page frames, clock and interrupt controllers.

#![expect(unsafe_code, reason = "takes over physical memory and the devices")]

use crate::log::{self, log};
use crate::machine::apic::{self, LocalApics};
use crate::machine::clock::Clock;
use crate::machine::cpu;
use crate::machine::descriptors;
use crate::machine::direct_map::{Access, DirectMap};
use crate::machine::frames::DirectFrames;
use crate::machine::io_apic::{self, IoApic};
use crate::machine::registers::MmioRegisters;
use crate::machine::{heap, image, physical::FirstTables, serial};
use crate::panic;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;
use guest_kernel::acpi::{self, Acpi};
use guest_kernel::cmdline::Options;
use guest_kernel::layout::{DIRECT_MAP_END, VMEMMAP_BASE};
use guest_kernel::physical::to_usize;
use guest_kernel::pvh::{BootInfo, MemoryKind};
use guest_mm::kernel_map::{DESCRIPTOR_BYTES, FrameSource, OutOfFrames, Vmemmap};
use guest_mm::node::TopologyError;
use guest_mm::pfn::{Order, PAGE_SIZE, PAGEBLOCK_SIZE, Pfn, PfnRange};
use guest_mm::phys::{BootRegion, PhysicalMemory};
use guest_mm::{MemMap, NodeId, Page, Topology, ZoneLimits};
use guest_sync::CpuId;

/// Below this is what firmware and VMM left for us: no longer needed once it was read, and not worth managing.
const LOW_MEMORY: u64 = 1 << 20;
/// Where the other CPUs start: the second page.
const START_PAGE: u64 = 0x1000;
/// Boot memory for the manager's own structures before there are slabs, besides what grows with the machine.
const FIRST_HEAP: u64 = 256 << 10;
/// And for checks of the memory manager, which must not take what they count.
const CHECKS_HEAP: u64 = 1 << 20;
/// Boot memory for the manager's page tables: 256 GiB of RAM in any layout.
const FIRST_TABLES: u64 = 320 * PAGE_SIZE;
/// Ranges of RAM further apart than this get descriptors of their own.
const LARGE_HOLE: u64 = 1 << 30;

/// Everything that is known once the machine works.
pub(crate) struct Machine {
    pub(crate) options: Options,
    pub(crate) acpi: Acpi,
    pub(crate) memory: &'static PhysicalMemory<'static>,
    pub(crate) slabs: &'static heap::Slabs,
    pub(crate) direct_map: DirectMap,
    pub(crate) vmemmap: Vmemmap,
    /// Boot memory that is not in the direct map, by address.
    pub(crate) high: Vec<PfnRange>,
    pub(crate) clock: Clock,
    pub(crate) local_apics: LocalApics,
    /// APIC id of the boot CPU.
    pub(crate) apic_id: u32,
    /// The other CPUs, none of which was started.
    pub(crate) others: Vec<cpu::Start>,
    pub(crate) io_apics: Vec<IoApic>,
    /// Registers of the devices on the command line, with their global system interrupts.
    pub(crate) devices: Vec<(MmioRegisters, u32)>,
}

/// Boots, with the start information at the physical address `start_info`.
///
/// # Safety
/// To be called once, by the nucleus's way in.
pub(crate) unsafe fn boot(start_info: u64) -> Machine {
    // SAFETY: this happens once, and first.
    unsafe { cpu::make_tokens() };
    serial::start();
    // SAFETY: this happens once.
    unsafe { heap::start() };
    // SAFETY: they are in use until `map_memory`.
    let first = unsafe { FirstTables::in_use() };
    let info = match BootInfo::read(&first, start_info) {
        Ok(info) => info,
        Err(error) => panic!("boot information: {error}"),
    };
    let options = Options::parse(&info.command_line);
    log::set_level(options.loglevel);
    let (acpi, acpi_error) = match info.rsdp.map(|rsdp| Acpi::read(&first, rsdp)) {
        None => (Acpi::default(), None),
        Some(Ok(acpi)) => (acpi, None),
        Some(Err(error)) => (Acpi::default(), Some(error)),
    };
    if let Some(port) = acpi.pvpanic_port {
        panic::report_to_port(port);
    }
    let ram = ram_ranges(&info);
    let claimed = claim(
        &ram,
        other_cpus(&acpi, &options, &ram),
        u64::from(acpi.affinity.nr_nodes()),
        if options.validate { CHECKS_HEAP } else { 0 },
    );
    let limit = direct_map_limit(&options, &claimed);
    let io_apics = io_apic_addresses(&acpi);
    // SAFETY: the claimed range is RAM behind the image, which nobody uses yet.
    let (direct_map, vmemmap) = unsafe { map_memory((&ram, limit), &claimed, &options, &io_apics) };
    let clock = Clock::start().unwrap_or_else(|| panic!("the hypervisor offers no kvmclock"));
    let local_apics = LocalApics::start(&clock).unwrap_or_else(|| panic!("the CPU has no x2APIC mode"));
    let apic_id = apic::this_id();
    let topology = topology(&acpi, apic_id, &options, limit);
    // SAFETY: these are the tables that are in use from now on.
    let pages = unsafe { descriptors::all_pages(&vmemmap) };
    let memory = add_frames(&ram, &claimed, &acpi, (pages, topology));
    let watched = if options.validate {
        heap::Watched::Yes
    } else {
        heap::Watched::No
    };
    // SAFETY: the heap is part of what is claimed, which is reserved; the direct map has all but high memory.
    let slabs = unsafe { heap::start_slabs(memory, claimed.end, options.slab_debug, watched) };
    let boot_bytes: u64 = ram.iter().map(|range| range.end - range.start).sum();
    log!(
        Info,
        "Ballast guest: {} MiB of RAM, command line: {}",
        boot_bytes >> 20,
        info.command_line
    );
    options.errors.iter().for_each(|error| log!(Warning, "{error}"));
    acpi_error.inspect(|error| log!(Warning, "{error}"));
    acpi.affinity_error.inspect(|error| log!(Warning, "{error}"));
    Machine {
        devices: devices(&options),
        io_apics: io_apics.into_iter().map(start_io_apic).collect(),
        others: starts(&acpi, apic_id, &claimed),
        apic_id,
        options,
        acpi,
        memory,
        slabs,
        direct_map,
        vmemmap,
        high: high_ranges(&ram, limit),
        clock,
        local_apics,
    }
}

/// RAM in whole pages, by address, neighbours joined.
fn ram_ranges(info: &BootInfo) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = info
        .memory_map
        .iter()
        .filter(|range| range.kind == MemoryKind::Ram)
        .map(|range| {
            range.start.next_multiple_of(PAGE_SIZE)..(range.start + range.len) / PAGE_SIZE * PAGE_SIZE
        })
        .filter(|range| !range.is_empty())
        .collect();
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, range| {
        let touches = next.start <= range.end;
        if touches {
            range.end = range.end.max(next.end);
        }
        touches
    });
    ranges
}

/// What the manager takes for itself before the frame allocator runs: from the nucleus to the end of the range.
struct Claim {
    /// Stacks of all CPUs but the boot CPU, one behind the other.
    stacks: Range<u64>,
    tables: Range<u64>,
    /// Memory of the descriptors, for each span.
    descriptors: Vec<(PfnRange, Pfn)>,
    heap: Range<u64>,
    end: u64,
}

impl Claim {
    /// Where the other CPUs' stacks start.
    fn each_stacks(&self) -> impl Iterator<Item = u64> + use<> {
        self.stacks.clone().step_by(to_usize(cpu::STACKS_SIZE))
    }
}

/// How many CPUs besides this one are to be used.
fn other_cpus(acpi: &Acpi, options: &Options, ram: &[Range<u64>]) -> u64 {
    if !ram.iter().any(|range| range.contains(&START_PAGE)) {
        return 0;
    }
    let all = (acpi.cpus.len() as u64).min(u64::from(options.max_cpus.get()));
    all.saturating_sub(1)
}

fn starts(acpi: &Acpi, this: u32, claimed: &Claim) -> Vec<cpu::Start> {
    let others = acpi.cpus.iter().map(|cpu| cpu.id).filter(|&id| id != this);
    let with_stacks = (1..).zip(others).zip(claimed.each_stacks());
    with_stacks
        .filter_map(|((number, apic_id), stacks)| {
            Some(cpu::Start {
                id: CpuId::new(number)?,
                apic_id,
                stacks: u32::try_from(stacks).ok()?,
                page: START_PAGE,
            })
        })
        .collect()
}

fn claim(ram: &[Range<u64>], other_cpus: u64, nr_nodes: u64, checks_heap: u64) -> Claim {
    let holds_image = |range: &&Range<u64>| range.start <= image::nucleus() && range.end > image::end();
    let Some(around) = ram.iter().find(holds_image) else {
        panic!("the image is not in RAM: {ram:x?}");
    };
    let highest = ram.last().map_or(0, |range| range.end);
    // A pageblock takes less than 128 bytes; the table from pageblocks to sections takes 4 for each 2 MiB below the
    // highest address; each CPU has lists of less than 8 KiB in each of two zones of a node, and
    // thirty of less than 1.5 KiB for general caches.
    let spanned: u64 = spans(ram).map(|span| span.end - span.start).sum();
    let bookkeeping = spanned / PAGEBLOCK_SIZE * 128
        + highest / PAGEBLOCK_SIZE * 4
        + (1 + other_cpus) * (nr_nodes * (16 << 10) + 30 * 1536);
    // The image ends with stacks, so this is aligned as stacks must be.
    let stacks = image::end()..image::end() + other_cpus * cpu::STACKS_SIZE;
    let tables = stacks.end..stacks.end + FIRST_TABLES;
    let mut descriptors = Vec::new();
    let mut start = tables.end;
    for span in spans(ram).filter_map(|span| PfnRange::inside(span.start, span.end - span.start)) {
        let bytes = u64::from(span.nr_pages()) * DESCRIPTOR_BYTES;
        // Descriptors of 256 MiB are 2 MiB, and mapped as one page.
        let align = if bytes >= PAGEBLOCK_SIZE {
            PAGEBLOCK_SIZE
        } else {
            PAGE_SIZE
        };
        start = start.next_multiple_of(align);
        descriptors.extend(Pfn::containing(start).map(|first| (span, first)));
        start += bytes;
    }
    let heap_start = start;
    let end = (heap_start + bookkeeping + FIRST_HEAP + checks_heap).next_multiple_of(PAGE_SIZE);
    assert!(
        end <= around.end,
        "{} KiB of RAM are too little",
        (around.end - around.start) >> 10
    );
    Claim {
        stacks,
        heap: heap_start..end,
        tables,
        descriptors,
        end,
    }
}

/// Where the direct map of boot memory ends: at `highmem=`, but what is claimed is in it.
fn direct_map_limit(options: &Options, claimed: &Claim) -> u64 {
    options.highmem.map_or(DIRECT_MAP_END, |limit| {
        limit.get().max(claimed.end).next_multiple_of(PAGEBLOCK_SIZE)
    })
}

/// Table frames out of the claimed range.
struct FirstFrames {
    next: Cell<u64>,
    end: u64,
}

impl FrameSource for FirstFrames {
    fn take(&self, order: Order) -> Option<Pfn> {
        let frame = self.next.get();
        self.next.set(frame + PAGE_SIZE);
        Pfn::containing(frame).filter(|_| order == Order::ZERO && frame < self.end)
    }

    /// Whatever fails at boot ends the guest.
    fn give(&self, _: Pfn, _: Order) {}
}

/// Maps RAM up to the limit, the image with the rights that its parts need, the registers of devices, and the
/// descriptors, and makes these the manager's page tables; then the heap gets its memory.
///
/// # Safety
/// Nobody else may use the claimed ranges.
unsafe fn map_memory(
    (ram, limit): (&[Range<u64>], u64),
    claimed: &Claim,
    options: &Options,
    io_apics: &[acpi::IoApic],
) -> (DirectMap, Vmemmap) {
    let frames = FirstFrames {
        next: Cell::new(claimed.tables.start),
        end: claimed.tables.end,
    };
    let map = || -> Result<(DirectMap, Vmemmap), OutOfFrames> {
        let map = DirectMap::new(&frames)?;
        map.map(image::nucleus()..image::text().start, Access::Nucleus, &frames)?;
        map.map(image::text(), Access::Execute, &frames)?;
        map.map(image::rodata(), Access::Read, &frames)?;
        let guards: Vec<Range<u64>> = core::iter::once(image::stacks())
            .chain(claimed.each_stacks())
            .map(cpu::guard)
            .collect();
        for range in without(image::data(), &guards) {
            map.map(range, Access::Write, &frames)?;
        }
        for range in ram {
            // Page 0 stays unmapped, so that null pointers fault.
            let below = range.start.max(PAGE_SIZE)..range.end.min(image::nucleus());
            let above = range.start.max(image::end())..range.end.min(limit);
            for part in [below, above].into_iter().flat_map(|part| without(part, &guards)) {
                map.map(part, Access::Write, &frames)?;
            }
        }
        for page in device_pages(options, io_apics) {
            map.map(page * PAGE_SIZE..(page + 1) * PAGE_SIZE, Access::Device, &frames)?;
        }
        let vmemmap = Vmemmap::new(map.tables(), &DirectFrames, &frames, VMEMMAP_BASE)?;
        for &(span, first) in &claimed.descriptors {
            vmemmap.back_with(&DirectFrames, &frames, span, first)?;
        }
        Ok((map, vmemmap))
    };
    let (map, vmemmap) = match map() {
        Ok(maps) => maps,
        Err(error) => panic!("{error}"),
    };
    // SAFETY: nucleus, image, stacks and RAM are mapped where they were; the start information is not used again.
    unsafe { map.activate() };
    // SAFETY: the range is mapped for good and, by this function's own condition, ours.
    unsafe { heap::add(claimed.heap.start, claimed.heap.end - claimed.heap.start) };
    (map, vmemmap)
}

/// `range` less those `holes` that lie in it; they are in order.
fn without(range: Range<u64>, holes: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut parts = Vec::new();
    let mut start = range.start;
    for hole in holes
        .iter()
        .filter(|hole| range.start <= hole.start && hole.end <= range.end)
    {
        parts.push(start..hole.start);
        start = hole.end;
    }
    parts.push(start..range.end);
    parts
}

/// Numbers of the pages with registers of devices.
fn device_pages(options: &Options, io_apics: &[acpi::IoApic]) -> Vec<u64> {
    let devices = options
        .devices
        .iter()
        .map(|device| (device.base, device.size.get()));
    let io_apics = io_apics
        .iter()
        .map(|io_apic| (u64::from(io_apic.address), io_apic::SIZE));
    let mut pages: Vec<u64> = devices
        .chain(io_apics)
        .flat_map(|(base, size)| (base / PAGE_SIZE..(base + size).div_ceil(PAGE_SIZE)).take(16))
        .collect();
    pages.sort_unstable();
    pages.dedup();
    pages
}

/// Stretches of RAM, each with its small holes, aligned to pageblocks.
fn spans(ram: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    let groups = ram.chunk_by(|lower, upper| upper.start - lower.end <= LARGE_HOLE);
    groups.filter_map(|group| {
        let (first, last) = (group.first()?, group.last()?);
        Some(first.start / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE..last.end.next_multiple_of(PAGEBLOCK_SIZE))
    })
}

/// CPUs and nodes as ACPI has them.
fn topology(acpi: &Acpi, this: u32, options: &Options, limit: u64) -> Topology {
    let affinity = &acpi.affinity;
    let cpus = acpi.cpus.len().clamp(1, usize::from(options.max_cpus.get()));
    let nr_cpus = u8::try_from(cpus).unwrap_or(1);
    let build = || -> Result<Topology, TopologyError> {
        let mut topology = Topology::new(nr_cpus, affinity.nr_nodes())?;
        topology.set_limits(ZoneLimits::PC)?;
        let nodes: Vec<NodeId> = topology.nodes().collect();
        for &from in &nodes {
            for &to in &nodes {
                topology.set_distance(from, to, affinity.distance(from.number(), to.number()))?;
            }
        }
        // This CPU is number 0, and the others have numbers in the order of the table (`starts`).
        let others = acpi.cpus.iter().map(|cpu| cpu.id).filter(|&id| id != this);
        let numbered = (0..nr_cpus).filter_map(CpuId::new);
        for (cpu, apic_id) in numbered.zip(core::iter::once(this).chain(others)) {
            let node = NodeId::new(affinity.node_of_cpu(apic_id)).unwrap_or_default();
            topology.set_cpu_node(cpu, node)?;
        }
        Ok(topology)
    };
    let mut topology = build().unwrap_or_else(|error| {
        log!(Warning, "nodes: {error}");
        Topology::one_node(nr_cpus)
    });
    if let Some(limit) = Pfn::containing(limit) {
        // What is not mapped is in no other zone.
        let limits = *topology.limits();
        let limits = ZoneLimits {
            dma: limits.dma.min(limit),
            dma32: limits.dma32.min(limit),
            normal: limits.normal.min(limit),
        };
        if let Err(error) = topology.set_limits(limits) {
            panic!("the end of the direct map: {error}");
        }
    }
    topology
}

/// Boot memory from the limit on.
fn high_ranges(ram: &[Range<u64>], limit: u64) -> Vec<PfnRange> {
    let above = ram
        .iter()
        .map(|range| range.start.max(limit)..range.end.max(limit));
    above
        .filter_map(|range| PfnRange::inside(range.start, range.end - range.start))
        .filter(|range| !range.is_empty())
        .collect()
}

/// Hands all RAM to the frame allocator, with what is taken already marked as reserved.
fn add_frames(
    ram: &[Range<u64>],
    claimed: &Claim,
    acpi: &Acpi,
    (pages, topology): (&'static [Page], Topology),
) -> &'static PhysicalMemory<'static> {
    let pfns = |range: &Range<u64>| PfnRange::inside(range.start, range.end - range.start);
    let usable: Vec<PfnRange> = ram.iter().filter_map(pfns).collect();
    let reserved: Vec<PfnRange> = [0..LOW_MEMORY, image::nucleus()..claimed.end]
        .iter()
        .filter_map(pfns)
        .collect();
    let map =
        MemMap::new(Pfn::new(0), pages).expect("frame numbers have 32 bits, and so have the descriptors");
    let highest = ram.last().map_or(0, |range| range.end);
    let boot = PfnRange::covering(0, highest).unwrap_or_default();
    let memory = Box::leak(Box::new(PhysicalMemory::new(map, boot, topology)));
    for (span, node) in spans(ram).flat_map(|span| acpi.affinity.split(span, PAGEBLOCK_SIZE)) {
        let Some(span) = pfns(&span) else { continue };
        let region = BootRegion {
            node: NodeId::new(node).unwrap_or_default(),
            span,
            usable: &usable,
            reserved: &reserved,
        };
        if let Err(error) = memory.add_boot_region(region) {
            panic!("RAM: {error}");
        }
    }
    memory
}

/// The I/O APICs of ACPI; without ACPI the one that every PC has.
fn io_apic_addresses(acpi: &Acpi) -> Vec<acpi::IoApic> {
    if acpi.io_apics.is_empty() {
        let address = u32::try_from(io_apic::PC_ADDRESS).expect("a constant below 4 GiB");
        return alloc::vec![acpi::IoApic { address, gsi_base: 0 }];
    }
    acpi.io_apics.clone()
}

fn start_io_apic(found: acpi::IoApic) -> IoApic {
    // SAFETY: `map_memory` mapped it.
    let registers = unsafe { MmioRegisters::at(u64::from(found.address), io_apic::SIZE) };
    IoApic::new(registers, found.gsi_base)
}

fn devices(options: &Options) -> Vec<(MmioRegisters, u32)> {
    let registers = |device: &guest_kernel::cmdline::MmioDevice| {
        // SAFETY: `map_memory` mapped it, up to 16 pages.
        let registers = unsafe { MmioRegisters::at(device.base, device.size.get().min(16 * PAGE_SIZE)) };
        (registers, device.gsi)
    };
    options.devices.iter().map(registers).collect()
}
