//! The control tree: what its files say, and what becomes of what is written to them.

use crate::drivers::{self, Driver};
use crate::kernel::Kernel;
use crate::memory_failure;
use crate::resize::orders::{PATIENCE_NS, order, order_node};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use guest_kernel::control_tree::{BlockFile, Device, Directory, Entry, File, NodeFile, OnlinePolicy, find};
use guest_kernel::sync::{Winner, race};
use guest_mm::blocks::{BlockCost, Change, EventsAfter, MemoryEvent};
use guest_mm::migrate::Method;
use guest_mm::{BlockIndex, BlockState, Memmap, NodeId, NodeState, PAGE_SIZE};
use guest_virtio::control::Reply;

/// Most MiB a second that can be asked for: 1 TiB.
const MOST_RATE: u64 = 1 << 20;

/// Answers `sysfs PATH` and `sysfs PATH VALUE`.
pub(super) async fn answer(kernel: &Kernel, path: &str, value: Option<&str>) -> Reply {
    let entry = match find(path) {
        Ok(entry) => entry,
        Err(error) => return Reply::Err(error.to_string()),
    };
    let outcome = match (entry, value) {
        (Entry::Directory(directory), None) => list(kernel, directory, path),
        (Entry::File(file), None) => read(kernel, file, path),
        (Entry::File(file), Some(value)) => write(kernel, file, path, value).await.map(|()| String::new()),
        (Entry::Directory(_), Some(_)) => Err(alloc::format!("{path} is a directory")),
    };
    outcome.map_or_else(Reply::Err, Reply::Ok)
}

fn list(kernel: &Kernel, directory: Directory, path: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut line = |name: fmt::Arguments<'_>| writeln!(text, "{name}").map_err(|error| error.to_string());
    match directory {
        Directory::Root => {
            line(format_args!("devices/"))?;
            line(format_args!("memory/"))?;
            line(format_args!("node/"))?;
        }
        Directory::Block(block) => {
            block_state(kernel, block, path)?;
        }
        Directory::Node(node) => {
            node_of(kernel, node, path)?;
        }
        Directory::Device(device) => {
            driver_of(kernel, device, path)?;
        }
        Directory::Memory | Directory::Nodes | Directory::Devices => {}
    }
    for name in directory.files() {
        line(format_args!("{name}"))?;
    }
    match directory {
        Directory::Memory => {
            for block in 0..kernel.phys.hotplug_region().nr_blocks() {
                line(format_args!("memory{block}/"))?;
            }
        }
        Directory::Nodes => {
            for node in kernel.phys.topology().nodes() {
                line(format_args!("node{node}/"))?;
            }
        }
        Directory::Devices => {
            for driver in drivers::all(kernel) {
                line(format_args!("{}/", driver.device))?;
            }
        }
        Directory::Root | Directory::Block(_) | Directory::Node(_) | Directory::Device(_) => {}
    }
    Ok(text)
}

fn read(kernel: &Kernel, file: File, path: &str) -> Result<String, String> {
    let region = kernel.phys.hotplug_region();
    Ok(match file {
        File::BlockSize => alloc::format!("{:x}", u64::from(region.block_nr_pages()) * PAGE_SIZE),
        File::AutoOnline => kernel.orders.policy().name().into(),
        File::MigrateRate => kernel.orders.rate().to_string(),
        File::MigrateMethod => kernel.orders.method().name().into(),
        File::MemmapOnMemory => match kernel.orders.memmap() {
            Memmap::OnBlock => "on".into(),
            Memmap::BootMemory => "off".into(),
        },
        File::PoisonLimit => kernel.failures.limit().to_string(),
        File::PossibleNodes => numbers(kernel.phys.topology().nodes()),
        File::NodesWithMemory => {
            let nodes = kernel.phys.topology().nodes();
            numbers(nodes.filter(|&node| kernel.phys.node_state(node) == NodeState::Online))
        }
        File::Events(after) => events(kernel, after),
        File::Block(block, file) => read_block(kernel, block, file, path)?,
        File::Node(node, file) => read_node(kernel, node_of(kernel, node, path)?, file),
        File::DriverMemory(device) => {
            let areas = driver_of(kernel, device, path)?.memory().into_iter();
            let areas: Vec<String> = areas.map(|area| alloc::format!("{:x}", area.raw())).collect();
            areas.join(" ")
        }
    })
}

/// What came after the event of that number, a line each; before it what is not kept any more. A number that is yet to come is one of before the
/// guest was started again.
pub(super) fn events(kernel: &Kernel, after: u64) -> String {
    let EventsAfter {
        missed,
        newest,
        events,
    } = kernel.phys.hotplug_region().events_after(after);
    if after > newest {
        return alloc::format!("restarted {newest}\n");
    }
    let mut text = String::new();
    if missed > 0 {
        let (first, last) = (after + 1, after + missed);
        text = alloc::format!("missed {missed} events, {first} to {last}\n");
    }
    text.extend(events.into_iter().map(event_line));
    text
}

fn event_line(event: MemoryEvent) -> String {
    let number = event.number;
    match event.change {
        Change::Block { block, from, to } => {
            alloc::format!("{number} memory{} {} {}\n", block.0, from.name(), to.name())
        }
        Change::Node { node, to } => {
            let from = match to {
                NodeState::Online => NodeState::Offline,
                NodeState::Offline => NodeState::Online,
            };
            alloc::format!("{number} node{node} {} {}\n", from.name(), to.name())
        }
    }
}

/// Numbers of nodes, as in `0,2`.
fn numbers(nodes: impl Iterator<Item = NodeId>) -> String {
    let numbers: Vec<String> = nodes.map(|node| node.to_string()).collect();
    numbers.join(",")
}

fn read_block(kernel: &Kernel, block: u32, file: BlockFile, path: &str) -> Result<String, String> {
    let state = block_state(kernel, block, path)?;
    let (region, block) = (kernel.phys.hotplug_region(), BlockIndex(block));
    let usage = kernel.phys.block_usage(block);
    Ok(match file {
        BlockFile::State => state.name().into(),
        BlockFile::Removable => {
            // Of those of the kernel's zone it shows when it is tried.
            let (phys, can_be_tried) = (kernel.phys, |cost: &BlockCost| cost.block == block);
            let is_tried = phys.rank_blocks().iter().any(can_be_tried)
                || phys.rank_kernel_blocks().iter().any(can_be_tried);
            u8::from(is_tried).to_string()
        }
        BlockFile::Zone => usage.map_or("none", |usage| usage.zone.name()).into(),
        BlockFile::Node => region.node().to_string(),
        BlockFile::PhysAddr => {
            let start = region.block_range(block).map_or(0, |range| range.start().gpa());
            alloc::format!("{start:x}")
        }
        BlockFile::UsedPages => usage.map_or(0, |usage| usage.used_pages).to_string(),
        BlockFile::Memmap => kernel.phys.memmap(block).map_or("none", Memmap::name).into(),
        BlockFile::MemmapPages => usage.map_or(0, |usage| usage.memmap_pages).to_string(),
        BlockFile::PoisonedPages => kernel.phys.poisoned_pages(block).to_string(),
        BlockFile::FreePages => usage.map_or(0, |usage| usage.free_pages).to_string(),
    })
}

fn read_node(kernel: &Kernel, node: NodeId, file: NodeFile) -> String {
    let (phys, topology) = (kernel.phys, kernel.phys.topology());
    let zones = || phys.populated_zones().filter(|zone| zone.node() == node);
    match file {
        NodeFile::State => phys.node_state(node).name().into(),
        NodeFile::Zonelist => {
            let zones = phys.node(node).into_iter().flat_map(|node| node.zonelist());
            let names = zones.map(|zone| alloc::format!("{}@{}", zone.kind().name(), zone.node()));
            names.collect::<Vec<String>>().join(" ")
        }
        NodeFile::Tasks => kernel.nodes.names(node),
        NodeFile::Cpulist => {
            let cpus: Vec<String> = topology.cpus_of(node).map(|cpu| cpu.to_string()).collect();
            cpus.join(",")
        }
        NodeFile::Distance => {
            let distances = topology.nodes().map(|to| topology.distance(node, to).to_string());
            distances.collect::<Vec<String>>().join(" ")
        }
        NodeFile::Blocks => {
            let region = phys.hotplug_region();
            let online = region.iter().filter(|&(_, state)| state == BlockState::Online);
            let here = if region.node() == node { online.count() } else { 0 };
            here.to_string()
        }
        NodeFile::TotalPages => zones()
            .map(|zone| zone.counters().managed_pages)
            .sum::<u64>()
            .to_string(),
        NodeFile::FreePages => {
            let free = zones().map(|zone| {
                let counters = zone.counters();
                counters.free_pages + counters.cached_pages
            });
            free.sum::<u64>().to_string()
        }
    }
}

async fn write(kernel: &Kernel, file: File, path: &str, value: &str) -> Result<(), String> {
    match file {
        File::AutoOnline => {
            kernel.orders.set_policy(policy(value)?);
            Ok(())
        }
        File::MigrateRate => {
            let rate = value.parse().ok().filter(|&rate: &u64| rate <= MOST_RATE);
            let rate = rate.ok_or_else(|| {
                alloc::format!("{value} is no rate: 1 to {MOST_RATE} MiB a second, or 0 for no limit")
            })?;
            kernel.orders.set_rate(rate);
            Ok(())
        }
        File::MigrateMethod => {
            let method = Method::from_name(value).ok_or_else(|| {
                let words = Method::ALL.map(Method::name);
                alloc::format!("{value} is not one of {}", words.join(", "))
            })?;
            kernel.orders.set_method(method);
            Ok(())
        }
        File::PoisonLimit => {
            let limit = value.parse();
            let limit = limit.map_err(|_| alloc::format!("{value} is not a number of frames"))?;
            kernel.failures.set_limit(limit);
            Ok(())
        }
        File::Block(block, BlockFile::State) => {
            let (state, wanted) = (block_state(kernel, block, path)?, policy(value)?);
            if state == BlockState::Offline && wanted != OnlinePolicy::Offline {
                memory_failure::check_limit(kernel, BlockIndex(block))?;
            }
            order(kernel, BlockIndex(block), wanted).await
        }
        File::Node(node, NodeFile::State) => {
            let node = node_of(kernel, node, path)?;
            order_node(kernel, node, policy(value)?).await
        }
        File::DriverMemory(device) if value == "move" => {
            let driver = driver_of(kernel, device, path)?;
            let patience = kernel.timers().sleep(PATIENCE_NS);
            match race(driver.relocation.request(), patience).await {
                Winner::First(moved) => moved.map_err(|error| error.to_string()),
                Winner::Second(()) => {
                    Err("the device is busy; its memory moves once nothing is under way".into())
                }
            }
        }
        File::DriverMemory(_) => Err(alloc::format!("{path} takes move")),
        File::BlockSize
        | File::MemmapOnMemory
        | File::Events(_)
        | File::PossibleNodes
        | File::NodesWithMemory
        | File::Block(..)
        | File::Node(..) => Err(alloc::format!("{path} cannot be written")),
    }
}

fn policy(value: &str) -> Result<OnlinePolicy, String> {
    OnlinePolicy::from_name(value).ok_or_else(|| {
        alloc::format!("{value} is not one of offline, online_movable (or online), online_kernel")
    })
}

fn block_state(kernel: &Kernel, block: u32, path: &str) -> Result<BlockState, String> {
    let region = kernel.phys.hotplug_region();
    let missing = || match region.nr_blocks() {
        0 => alloc::format!("there is no {path}: the guest has no memory device"),
        blocks => alloc::format!("there is no {path}: blocks are memory0 to memory{}", blocks - 1),
    };
    region.state(BlockIndex(block)).ok_or_else(missing)
}

fn driver_of(kernel: &Kernel, device: Device, path: &str) -> Result<&'static Driver, String> {
    let found = drivers::of(kernel, device);
    found
        .ok_or_else(|| alloc::format!("there is no {path}: the guest has no such device, or does not use it"))
}

fn node_of(kernel: &Kernel, node: u8, path: &str) -> Result<NodeId, String> {
    let mut nodes = kernel.phys.topology().nodes();
    let found = nodes.find(|&known| NodeId::new(node) == Some(known));
    found.ok_or_else(|| {
        alloc::format!(
            "there is no {path}: node0 is the first of {}",
            kernel.phys.topology().nr_nodes()
        )
    })
}
