//! Nodes and zones as Linux shows them: `/proc/zoneinfo`, `/proc/pagetypeinfo`, and what `numactl --hardware` and
//! `numastat` print of the nodes.

use alloc::vec::Vec;
use core::fmt;

use crate::node::NodeId;
use crate::pageblock::{MigrateType, Whole};
use crate::pfn::{NR_PAGE_ORDERS, Order, PAGE_SIZE, PAGEBLOCK_NR_PAGES};
use crate::phys::PhysicalMemory;
use crate::section::{Admission, Section};
use crate::stats::ZoneStat;
use crate::zone::{Watermark, Zone, ZoneKind};

/// Number of migrate types.
const NR_TYPES: usize = MigrateType::ALL.len();
const MIB: u64 = 1 << 20;

/// `/proc/zoneinfo`: frames and watermarks of every zone, what it keeps from requests that could go higher, its counters,
/// and the lists of each CPU. As in Linux, zones without memory end with the line `protection`.
///
/// # Errors
/// Those of the writer.
pub fn zoneinfo(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>) -> fmt::Result {
    memory.zones().try_for_each(|zone| zone_text(out, memory, zone))
}

fn zone_text(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>, zone: &Zone) -> fmt::Result {
    let counters = zone.counters();
    writeln!(out, "Node {}, zone {:>8}", zone.node(), zone.kind().name())?;
    writeln!(out, "  pages free     {}", counters.free_pages)?;
    for (name, pages) in [
        ("min", zone.watermark(Watermark::Min)),
        ("low", zone.watermark(Watermark::Low)),
        ("high", zone.watermark(Watermark::High)),
        ("spanned", counters.spanned_pages),
        ("present", counters.present_pages),
        ("managed", counters.managed_pages),
    ] {
        writeln!(out, "        {name:<8} {pages}")?;
    }
    write!(out, "        protection: (")?;
    for (index, kind) in ZoneKind::ALL.into_iter().enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        write!(out, "{separator}{}", zone.reserve(kind))?;
    }
    writeln!(out, ")")?;
    if !zone.is_populated() {
        return Ok(());
    }
    writeln!(out, "      {:<12} {}", "nr_free_pages", counters.free_pages)?;
    for (name, value) in memory.zone_stat(zone).entries() {
        writeln!(out, "      {name:<12} {value}")?;
    }
    writeln!(out, "  pagesets")?;
    for (cpu, lists) in zone.lists().iter() {
        writeln!(out, "    cpu: {cpu}")?;
        for (name, value) in [
            ("count:", lists.nr_pages()),
            ("high:", zone.limits().high(Order::ZERO).into()),
            ("batch:", zone.limits().batch().into()),
        ] {
            writeln!(out, "              {name:<8} {value}")?;
        }
    }
    writeln!(out, "  start_pfn:           {}", zone.span().start().number())
}

/// What a zone has of each migrate type, in the order of [`MigrateType::ALL`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TypeCounts {
    /// Free chunks of each order, not counting those that CPUs keep at hand.
    pub free_chunks: [[u64; NR_PAGE_ORDERS]; NR_TYPES],
    /// Pageblocks.
    pub pageblocks: [u64; NR_TYPES],
}

impl PhysicalMemory<'_> {
    /// Free chunks and pageblocks of a zone by migrate type. Looks at every pageblock.
    pub fn type_counts(&self, zone: &Zone) -> TypeCounts {
        let mut counts = TypeCounts::default();
        let areas = zone.areas.lock();
        for (_, section) in areas.iter() {
            for (number, pageblock) in (0..).zip(&section.pageblocks) {
                let kind = self.type_of(section, number);
                counts.pageblocks[kind] += 1;
                let chunks = &mut counts.free_chunks[kind];
                match pageblock.whole {
                    Whole::No => pageblock.count_chunks(chunks),
                    Whole::Single => chunks[Order::PAGEBLOCK.index()] += 1,
                    Whole::PairHead => chunks[Order::MAX.index()] += 1,
                    Whole::PairTail => {}
                }
            }
        }
        counts
    }

    /// Place of a pageblock's type in [`MigrateType::ALL`].
    fn type_of(&self, section: &Section, number: u32) -> usize {
        let found = match section.admission {
            Admission::Isolated => Some(MigrateType::Isolate),
            Admission::Open => self.migrate_type(section.pfn(number * PAGEBLOCK_NR_PAGES)),
        };
        let place = |kind| MigrateType::ALL.iter().position(|of| *of == kind);
        found.and_then(place).unwrap_or(0)
    }
}

/// `/proc/pagetypeinfo`: free chunks of each order and number of pageblocks, by migrate type. Linux writes all of it once
/// for each node; here one text has the zones of all nodes.
///
/// # Errors
/// Those of the writer.
pub fn pagetypeinfo(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>) -> fmt::Result {
    writeln!(out, "Page block order: {}", Order::PAGEBLOCK.number())?;
    writeln!(out, "Pages per block:  {PAGEBLOCK_NR_PAGES}\n")?;
    write!(out, "{:<43} ", "Free pages count per migrate type at order")?;
    for order in Order::all() {
        write!(out, "{:>6} ", order.number())?;
    }
    writeln!(out)?;
    for zone in memory.populated_zones() {
        let counts = memory.type_counts(zone);
        for (kind, chunks) in MigrateType::ALL.into_iter().zip(counts.free_chunks) {
            let (node, zone) = (zone.node(), zone.kind().name());
            write!(out, "Node {node:>4}, zone {zone:>8}, type {:>12} ", kind.name())?;
            for count in chunks {
                write!(out, "{count:>6} ")?;
            }
            writeln!(out)?;
        }
    }
    write!(out, "\n{:<23}", "Number of blocks type ")?;
    for kind in MigrateType::ALL {
        write!(out, "{:>12} ", kind.name())?;
    }
    writeln!(out)?;
    for zone in memory.populated_zones() {
        write!(out, "Node {}, zone {:>8} ", zone.node(), zone.kind().name())?;
        for blocks in memory.type_counts(zone).pageblocks {
            write!(out, "{blocks:>12} ")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Reads one counter of a zone.
type Counter = fn(&ZoneStat) -> u64;

/// The nodes: CPUs, memory and distances as `numactl --hardware` prints them, then what `numastat` does of the requests
/// that each served.
///
/// # Errors
/// Those of the writer.
pub fn nodes(out: &mut impl fmt::Write, memory: &PhysicalMemory<'_>) -> fmt::Result {
    let topology = memory.topology();
    let nodes: Vec<NodeId> = topology.nodes().collect();
    let last = nodes.len() - 1;
    match last {
        0 => writeln!(out, "available: 1 nodes (0)")?,
        _ => writeln!(out, "available: {} nodes (0-{last})", nodes.len())?,
    }
    for &node in &nodes {
        write!(out, "node {node} cpus:")?;
        for cpu in topology.cpus_of(node) {
            write!(out, " {cpu}")?;
        }
        let sum = |of: fn(&Zone) -> u64| zones_of(memory, node).map(of).sum::<u64>() * PAGE_SIZE / MIB;
        let size = sum(|zone| zone.counters().managed_pages);
        let free = sum(|zone| zone.counters().free_pages + zone.counters().cached_pages);
        writeln!(out, "\nnode {node} size: {size} MB\nnode {node} free: {free} MB")?;
    }
    write!(out, "node distances:\nnode ")?;
    nodes
        .iter()
        .try_for_each(|node| write!(out, "{:>3} ", node.number()))?;
    for &from in &nodes {
        write!(out, "\n{:>3}: ", from.number())?;
        nodes
            .iter()
            .try_for_each(|&to| write!(out, "{:>3} ", topology.distance(from, to)))?;
    }
    write!(out, "\n\n{:<15}", "")?;
    for node in &nodes {
        write!(out, "{:>16}", alloc::format!("node{node}"))?;
    }
    writeln!(out)?;
    let rows: [(&str, Counter); 5] = [
        ("numa_hit", |stat| stat.numa_hit),
        ("numa_miss", |stat| stat.numa_miss),
        ("numa_foreign", |stat| stat.numa_foreign),
        ("local_node", |stat| stat.numa_local),
        ("other_node", |stat| stat.numa_other),
    ];
    for (name, of) in rows {
        write!(out, "{name:<15}")?;
        for &node in &nodes {
            let sum: u64 = zones_of(memory, node)
                .map(|zone| of(&memory.zone_stat(zone)))
                .sum();
            write!(out, "{sum:>16}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn zones_of<'a>(memory: &'a PhysicalMemory<'_>, node: NodeId) -> impl Iterator<Item = &'a Zone> {
    memory.zones().filter(move |zone| zone.node() == node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::phys_model::{descriptors, one_cpu};
    use crate::{BootRegion, Gfp, MemMap, Page, Pfn, PfnRange, Topology, ZoneLimits};
    use std::string::String;

    const NODE_NR_PAGES: u32 = 4096;

    /// 16 MiB of node 0, half of it for DMA, and 16 MiB of node 1; one CPU.
    fn two_nodes(pages: &[Page]) -> PhysicalMemory<'_> {
        let mut topology = Topology::new(1, 2).unwrap();
        let node = |number| NodeId::new(number).unwrap();
        topology.set_distance(node(0), node(1), 30).unwrap();
        let limits = ZoneLimits {
            dma: Pfn::new(2048),
            ..ZoneLimits::PC
        };
        topology.set_limits(limits).unwrap();
        let span = |number: u32| PfnRange::new(Pfn::new(number * NODE_NR_PAGES), NODE_NR_PAGES).unwrap();
        let all = PfnRange::new(Pfn::new(0), 2 * NODE_NR_PAGES).unwrap();
        let memory = PhysicalMemory::new(MemMap::new(Pfn::new(0), pages).unwrap(), all, topology);
        for number in [0, 1] {
            let span = span(number.into());
            let region = BootRegion {
                node: node(number),
                span,
                usable: &[span],
                reserved: &[PfnRange::new(Pfn::new(0), 1).unwrap()],
            };
            memory.add_boot_region(region).unwrap();
        }
        memory
    }

    fn written(write: impl Fn(&mut String) -> fmt::Result) -> String {
        let mut text = String::new();
        write(&mut text).unwrap();
        text
    }

    #[test]
    fn zoneinfo_has_every_zone_of_every_node() {
        let (pages, cpu) = (descriptors(2 * NODE_NR_PAGES), one_cpu());
        let memory = two_nodes(&pages);
        memory
            .alloc_pages(&cpu, Gfp::NONE, Order::new(3).unwrap())
            .unwrap();
        let text = written(|out| zoneinfo(out, &memory));
        let headings = text.lines().filter(|line| line.starts_with("Node ")).count();
        assert_eq!(headings, 10, "{text}");
        let start = text.find("Node 0, zone    DMA32\n").unwrap();
        let zone = &text[start..][..text[start + 1..].find("Node ").unwrap() + 1];
        let min = memory
            .zone(NodeId::ZERO, ZoneKind::Dma32)
            .watermark(Watermark::Min);
        for line in [
            "  pages free     2040\n",
            &std::format!("        min      {min}\n"),
            "        spanned  2048\n",
            "        managed  2048\n",
            "      nr_free_pages 2040\n",
            "      numa_hit     1\n",
            "    cpu: 0\n              count:   0\n",
            "  start_pfn:           2048\n",
        ] {
            assert!(zone.contains(line), "{line:?} is not in:\n{zone}");
        }
        assert!(
            text.contains("Node 1, zone   Normal\n  pages free     0\n"),
            "{text}"
        );
    }

    #[test]
    fn pagetypeinfo_has_what_buddyinfo_has_by_type() {
        let (pages, cpu) = (descriptors(2 * NODE_NR_PAGES), one_cpu());
        let memory = two_nodes(&pages);
        memory
            .alloc_pages(&cpu, Gfp::NONE, Order::new(3).unwrap())
            .unwrap();
        let zone = memory.zone(NodeId::ZERO, ZoneKind::Dma32);
        let counts = memory.type_counts(zone);
        let mut sum = [0; NR_PAGE_ORDERS];
        for chunks in counts.free_chunks {
            sum.iter_mut()
                .zip(chunks)
                .for_each(|(sum, chunks)| *sum += chunks);
        }
        assert_eq!(sum, memory.free_chunks(NodeId::ZERO, ZoneKind::Dma32));
        // Unmovable, Movable, Reclaimable, Isolate.
        assert_eq!(counts.pageblocks, [1, 3, 0, 0]);
        let text = written(|out| pagetypeinfo(out, &memory));
        assert!(text.starts_with(
            "Page block order: 9\nPages per block:  512\n\nFree pages count per migrate type at order "
        ));
        let line = "Node    0, zone    DMA32, type    Unmovable      0      0      0      1      1      1      1      1      1      0      0 \n";
        assert!(text.contains(line), "{text}");
        let line = "Node 0, zone    DMA32            1            3            0            0 \n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn nodes_are_shown_with_cpus_memory_and_distances() {
        let (pages, cpu) = (descriptors(2 * NODE_NR_PAGES), one_cpu());
        let memory = two_nodes(&pages);
        memory
            .alloc_pages(&cpu, Gfp::NONE, Order::new(1).unwrap())
            .unwrap();
        let text = written(|out| nodes(out, &memory));
        let expected = "\
available: 2 nodes (0-1)
node 0 cpus: 0
node 0 size: 15 MB
node 0 free: 15 MB
node 1 cpus:
node 1 size: 16 MB
node 1 free: 16 MB
node distances:
node   0   1 
  0:  10  30 
  1:  20  10 

                          node0           node1
numa_hit                      1               0
numa_miss                     0               0
numa_foreign                  0               0
local_node                    1               0
other_node                    0               0
";
        assert_eq!(text, expected);
    }
}
