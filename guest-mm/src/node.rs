//! NUMA nodes: which memory is near to which CPUs, and in which order zones are tried.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use guest_sync::{CpuId, MAX_CPUS};

use crate::pfn::{Order, Pfn};
use crate::zone::{NR_ZONES, ZoneKind};

/// Most nodes.
pub const MAX_NODES: u8 = 8;

/// Distance of a node to itself (ACPI specification 6.5, 5.2.17, "System Locality Information Table").
pub const LOCAL_DISTANCE: u8 = 10;
/// Distance between nodes of which nothing is known (Linux `REMOTE_DISTANCE`).
pub const REMOTE_DISTANCE: u8 = 20;
/// Distance that means: not reachable.
pub const UNREACHABLE: u8 = 255;

/// Number of a node, below [`MAX_NODES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeId(u8);

impl NodeId {
    /// The first node: there is always one.
    pub const ZERO: Self = Self(0);

    /// Node `number`; `None` from [`MAX_NODES`] on.
    pub const fn new(number: u8) -> Option<Self> {
        if number < MAX_NODES {
            Some(Self(number))
        } else {
            None
        }
    }

    /// The number.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The number, as an index.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a node has memory (Linux `N_MEMORY`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeState {
    /// None: it has CPUs at most.
    Offline,
    /// Some, found at boot or hot-added.
    Online,
}

impl NodeState {
    /// Its word in the control tree and in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Online => "online",
        }
    }
}

/// Where the zones of memory found at boot end. Memory from `normal` on is [`ZoneKind::HighMem`]. A zone whose limit
/// is not above the one before it stays empty.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ZoneLimits {
    /// First frame after [`ZoneKind::Dma`].
    pub dma: Pfn,
    /// First frame after [`ZoneKind::Dma32`].
    pub dma32: Pfn,
    /// First frame after [`ZoneKind::Normal`]: the kernel has mapped what lies below.
    pub normal: Pfn,
}

impl ZoneLimits {
    /// Everything is [`ZoneKind::Normal`].
    pub const NORMAL: Self = Self {
        dma: Pfn::new(0),
        dma32: Pfn::new(0),
        normal: Pfn::new(u32::MAX - 1),
    };

    /// Those of a PC whose kernel has mapped everything: 16 MiB, 4 GiB, none.
    pub const PC: Self = Self {
        dma: Pfn::new(1 << 12),
        dma32: Pfn::new(1 << 20),
        normal: Pfn::new(u32::MAX - 1),
    };

    /// The zone of a frame, and the first frame that is in another one.
    pub(crate) fn zone_at(&self, pfn: Pfn) -> (ZoneKind, Pfn) {
        if pfn < self.dma {
            (ZoneKind::Dma, self.dma)
        } else if pfn < self.dma32 {
            (ZoneKind::Dma32, self.dma32)
        } else if pfn < self.normal {
            (ZoneKind::Normal, self.normal)
        } else {
            (ZoneKind::HighMem, Pfn::new(u32::MAX))
        }
    }

    /// Whether boot memory can be in such a zone at all.
    pub(crate) fn may_have(&self, kind: ZoneKind) -> bool {
        match kind {
            ZoneKind::Dma => self.dma > Pfn::new(0),
            ZoneKind::Dma32 => self.dma32 > self.dma,
            ZoneKind::HighMem => self.normal < Self::NORMAL.normal,
            ZoneKind::Normal | ZoneKind::Movable => true,
        }
    }
}

/// The shape of a machine: its CPUs and nodes, which are near to which, and the borders of its zones.
#[derive(Clone, Debug)]
pub struct Topology {
    nr_cpus: u8,
    nr_nodes: u8,
    cpu_nodes: [NodeId; MAX_CPUS as usize],
    distances: [[u8; MAX_NODES as usize]; MAX_NODES as usize],
    limits: ZoneLimits,
}

/// Why a machine cannot have that shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TopologyError {
    /// No CPU at all, or more than [`MAX_CPUS`].
    Cpus(u8),
    /// No node at all, or more than [`MAX_NODES`].
    Nodes(u8),
    /// There is no such CPU.
    UnknownCpu(CpuId),
    /// There is no such node.
    UnknownNode(NodeId),
    /// A node's distance to itself is 10, to another one more.
    Distance {
        /// From here.
        from: NodeId,
        /// To there.
        to: NodeId,
        /// Not possible.
        distance: u8,
    },
    /// A border between zones inside a pageblock.
    Limit(Pfn),
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpus(nr_cpus) => write!(f, "{nr_cpus} CPUs are not 1 to {MAX_CPUS}"),
            Self::Nodes(nr_nodes) => write!(f, "{nr_nodes} nodes are not 1 to {MAX_NODES}"),
            Self::UnknownCpu(cpu) => write!(f, "no CPU {cpu}"),
            Self::UnknownNode(node) => write!(f, "no node {node}"),
            Self::Distance { from, to, distance } => {
                write!(f, "distance {distance} from node {from} to node {to}")
            }
            Self::Limit(pfn) => write!(f, "a zone ends at {pfn}, which is not aligned to 2 MiB"),
        }
    }
}

impl core::error::Error for TopologyError {}

impl Topology {
    /// `nr_cpus` CPUs and `nr_nodes` nodes; every CPU near to node 0, all nodes equally far from each other, and no
    /// zones but Normal and Movable.
    ///
    /// # Errors
    /// When there are no CPUs or nodes, or too many.
    pub fn new(nr_cpus: u8, nr_nodes: u8) -> Result<Self, TopologyError> {
        if nr_cpus == 0 || nr_cpus > MAX_CPUS {
            return Err(TopologyError::Cpus(nr_cpus));
        }
        if nr_nodes == 0 || nr_nodes > MAX_NODES {
            return Err(TopologyError::Nodes(nr_nodes));
        }
        let mut distances = [[REMOTE_DISTANCE; MAX_NODES as usize]; MAX_NODES as usize];
        for (node, row) in distances.iter_mut().enumerate() {
            row[node] = LOCAL_DISTANCE;
        }
        Ok(Self {
            nr_cpus,
            nr_nodes,
            cpu_nodes: [NodeId::ZERO; MAX_CPUS as usize],
            distances,
            limits: ZoneLimits::NORMAL,
        })
    }

    /// One node with `nr_cpus` CPUs (at least 1, at most [`MAX_CPUS`]: numbers beyond are brought in).
    pub fn one_node(nr_cpus: u8) -> Self {
        Self::new(nr_cpus.clamp(1, MAX_CPUS), 1).expect("the numbers are possible")
    }

    /// Puts a CPU near to a node.
    ///
    /// # Errors
    /// When there is no such CPU or node.
    pub fn set_cpu_node(&mut self, cpu: CpuId, node: NodeId) -> Result<(), TopologyError> {
        if cpu.number() >= self.nr_cpus {
            return Err(TopologyError::UnknownCpu(cpu));
        }
        self.check(node)?;
        self.cpu_nodes[cpu.index()] = node;
        Ok(())
    }

    /// Sets how far `to` is from `from`, in the unit of the SLIT: 10 is the node itself, 255 unreachable.
    ///
    /// # Errors
    /// When there is no such node, or the distance is not possible.
    pub fn set_distance(&mut self, from: NodeId, to: NodeId, distance: u8) -> Result<(), TopologyError> {
        self.check(from)?;
        self.check(to)?;
        if (from == to) != (distance == LOCAL_DISTANCE) || distance < LOCAL_DISTANCE {
            return Err(TopologyError::Distance { from, to, distance });
        }
        self.distances[from.index()][to.index()] = distance;
        Ok(())
    }

    /// Sets the borders of zones.
    ///
    /// # Errors
    /// When one of them is not aligned to 2 MiB.
    pub fn set_limits(&mut self, limits: ZoneLimits) -> Result<(), TopologyError> {
        let borders = [limits.dma, limits.dma32, limits.normal];
        let unaligned = borders
            .iter()
            .find(|pfn| !pfn.is_aligned(Order::PAGEBLOCK) && **pfn != ZoneLimits::NORMAL.normal);
        if let Some(&pfn) = unaligned {
            return Err(TopologyError::Limit(pfn));
        }
        self.limits = limits;
        Ok(())
    }

    /// CPUs.
    pub const fn nr_cpus(&self) -> u8 {
        self.nr_cpus
    }

    /// Nodes.
    pub const fn nr_nodes(&self) -> u8 {
        self.nr_nodes
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nr_nodes).map(NodeId)
    }

    /// The node that a CPU is near to.
    #[inline]
    pub const fn node_of(&self, cpu: CpuId) -> NodeId {
        self.cpu_nodes[cpu.index()]
    }

    /// The CPUs that are near to a node.
    pub fn cpus_of(&self, node: NodeId) -> impl Iterator<Item = CpuId> + '_ {
        let cpus = (0..self.nr_cpus).filter_map(CpuId::new);
        cpus.filter(move |&cpu| self.node_of(cpu) == node)
    }

    /// How far `to` is from `from`: 10 for the node itself.
    pub const fn distance(&self, from: NodeId, to: NodeId) -> u8 {
        self.distances[from.index()][to.index()]
    }

    /// The borders of zones.
    pub const fn limits(&self) -> &ZoneLimits {
        &self.limits
    }

    /// Numbers of all zones in the order in which a request near to `node` tries them: nodes by distance, and on each
    /// the highest zone first (Linux `build_zonelists`). Nodes that cannot be reached are left out.
    pub(crate) fn zonelist(&self, node: NodeId) -> Box<[ZoneIndex]> {
        let mut nodes: Vec<NodeId> = self.nodes().collect();
        nodes.retain(|&other| self.distance(node, other) != UNREACHABLE);
        let from = |other: NodeId| (other.0 + self.nr_nodes - node.0) % self.nr_nodes;
        nodes.sort_unstable_by_key(|&other| (self.distance(node, other), from(other)));
        let zones = nodes.into_iter().flat_map(|node| {
            ZoneKind::ALL
                .into_iter()
                .rev()
                .map(move |kind| ZoneIndex::of(node, kind))
        });
        zones.collect()
    }

    pub(crate) fn check(&self, node: NodeId) -> Result<(), TopologyError> {
        if node.0 < self.nr_nodes {
            Ok(())
        } else {
            Err(TopologyError::UnknownNode(node))
        }
    }
}

/// Number of a zone among those of all nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ZoneIndex(u8);

impl ZoneIndex {
    pub(crate) const fn of(node: NodeId, kind: ZoneKind) -> Self {
        Self(node.0 * ZONES_PER_NODE + kind as u8)
    }

    pub(crate) const fn from_number(number: u8) -> Self {
        Self(number)
    }

    pub(crate) const fn number(self) -> u8 {
        self.0
    }

    #[inline]
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Some of the zones of all nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ZoneSet(u64);

impl ZoneSet {
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// A bit for each zone, by its number.
    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn has(self, zone: ZoneIndex) -> bool {
        self.0 >> zone.0 & 1 != 0
    }

    /// A node is online if one of its zones is among them.
    pub(crate) const fn node_state(self, node: NodeId) -> NodeState {
        let zones = (1 << ZONES_PER_NODE) - 1;
        match self.0 >> (node.0 * ZONES_PER_NODE) & zones {
            0 => NodeState::Offline,
            _ => NodeState::Online,
        }
    }
}

impl FromIterator<ZoneIndex> for ZoneSet {
    fn from_iter<I: IntoIterator<Item = ZoneIndex>>(zones: I) -> Self {
        Self(zones.into_iter().fold(0, |bits, zone| bits | 1 << zone.0))
    }
}

/// [`NR_ZONES`], as numbers of zones are counted.
const ZONES_PER_NODE: u8 = 5;

const _: () = assert!(ZONES_PER_NODE as usize == NR_ZONES);
const _: () = assert!(
    NR_ZONES * MAX_NODES as usize <= 64,
    "a tag has six bits for the zone"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zonelist_goes_by_distance_and_on_each_node_from_the_highest_zone_down() {
        let node = |number| NodeId::new(number).unwrap();
        let mut topology = Topology::new(1, 3).unwrap();
        for (from, to, distance) in [
            (0, 1, 30),
            (0, 2, 15),
            (2, 1, 12),
            (2, 0, 12),
            (1, 0, UNREACHABLE),
        ] {
            topology.set_distance(node(from), node(to), distance).unwrap();
        }
        let nodes_of = |from| -> Vec<u8> {
            let list = topology.zonelist(node(from));
            assert!(
                list.chunks(NR_ZONES)
                    .all(|zones| zones.is_sorted_by(|a, b| a > b))
            );
            list.iter()
                .step_by(NR_ZONES)
                .map(|zone| zone.0 / ZONES_PER_NODE)
                .collect()
        };
        assert_eq!(nodes_of(0), [0, 2, 1]);
        assert_eq!(nodes_of(1), [1, 2], "0 cannot be reached");
        assert_eq!(nodes_of(2), [2, 0, 1], "of equals the next in the circle");
    }

    #[test]
    fn impossible_machines_are_refused() {
        let node = |number| NodeId::new(number).unwrap();
        assert_eq!(Topology::new(0, 1).unwrap_err(), TopologyError::Cpus(0));
        assert_eq!(Topology::new(65, 1).unwrap_err(), TopologyError::Cpus(65));
        assert_eq!(Topology::new(1, 9).unwrap_err(), TopologyError::Nodes(9));
        let mut topology = Topology::new(2, 2).unwrap();
        let cpu = CpuId::new(2).unwrap();
        assert_eq!(
            topology.set_cpu_node(cpu, node(0)),
            Err(TopologyError::UnknownCpu(cpu))
        );
        let unknown = Err(TopologyError::UnknownNode(node(2)));
        assert_eq!(topology.set_cpu_node(CpuId::ZERO, node(2)), unknown);
        assert_eq!(topology.set_distance(node(0), node(2), 20), unknown);
        for (to, distance) in [(0, 20), (1, 10), (1, 9)] {
            assert!(topology.set_distance(node(0), node(to), distance).is_err());
        }
        let limits = ZoneLimits {
            dma: Pfn::new(5),
            ..ZoneLimits::PC
        };
        assert_eq!(
            topology.set_limits(limits),
            Err(TopologyError::Limit(Pfn::new(5)))
        );
        topology.set_limits(ZoneLimits::PC).unwrap();
    }
}
