//! Nodes out of SRAT and SLIT (ACPI 6.5, sections 5.2.16 and 5.2.17): which of them each CPU and each range of memory
//! belongs to, and how far they are from each other.
//!
//! Without an SRAT, and with one that contradicts itself, everything is of one node; a SLIT that makes no sense is
//! passed over. Nodes are numbered from 0 on in the order of their proximity domains.

use super::{HEADER, u32_at, u64_at};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Most nodes that are told apart.
pub const MAX_NODES: usize = 8;
/// Distance of a node to itself.
pub const LOCAL_DISTANCE: u8 = 10;
/// Distance to another node when nothing is said of it (Linux' `REMOTE_DISTANCE`).
pub const REMOTE_DISTANCE: u8 = 20;

/// What precedes the SRAT's structures, and the SLIT's matrix.
const SRAT_HEADER: usize = HEADER + 12;
const SLIT_HEADER: usize = HEADER + 8;
/// Structures of the SRAT (sections 5.2.16.1 to 5.2.16.3).
const LOCAL_APIC: u8 = 0;
const MEMORY: u8 = 1;
const LOCAL_X2APIC: u8 = 2;
/// Flags of all three.
const ENABLED: u32 = 1;
/// Flag of memory.
const HOT_PLUGGABLE: u32 = 1 << 1;

/// A range of physical memory and whose it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemoryAffinity {
    /// Physical addresses; not empty.
    pub range: Range<u64>,
    /// Number of the node.
    pub node: u8,
    /// Memory may come and go here: none of it need be there at boot.
    pub is_hot_pluggable: bool,
}

/// The nodes of a machine: always at least one, at most [`MAX_NODES`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Affinity {
    /// Proximity domain of each node, ascending.
    domains: Vec<u32>,
    /// Ranges that do not overlap, by address.
    memory: Vec<MemoryAffinity>,
    /// CPUs by their APIC ids, and their nodes.
    cpus: Vec<(u32, u8)>,
    distances: [[u8; MAX_NODES]; MAX_NODES],
}

impl Default for Affinity {
    /// One node that has everything.
    fn default() -> Self {
        Self {
            domains: alloc::vec![0],
            memory: Vec::new(),
            cpus: Vec::new(),
            distances: core::array::from_fn(|from| core::array::from_fn(|to| usual_distance(from, to))),
        }
    }
}

const fn usual_distance(from: usize, to: usize) -> u8 {
    if from == to {
        LOCAL_DISTANCE
    } else {
        REMOTE_DISTANCE
    }
}

impl Affinity {
    /// The nodes that the tables describe; either may be absent.
    ///
    /// # Errors
    /// If the SRAT is no description of nodes. A wrong SLIT is passed over.
    pub fn read(srat: Option<&[u8]>, slit: Option<&[u8]>) -> Result<Self, AffinityError> {
        let Some(srat) = srat else {
            return Ok(Self::default());
        };
        let entries = entries(srat);
        let mut domains: Vec<u32> = entries.iter().map(|entry| entry.domain).collect();
        domains.sort_unstable();
        domains.dedup();
        if domains.is_empty() {
            return Ok(Self::default());
        }
        if domains.len() > MAX_NODES {
            return Err(AffinityError::TooManyNodes(domains.len()));
        }
        let mut affinity = Self {
            domains,
            ..Self::default()
        };
        for entry in entries {
            let node = affinity.node_of_domain(entry.domain).unwrap_or(0);
            match entry.of {
                Whose::Cpu { apic_id } => affinity.add_cpu(apic_id, node)?,
                Whose::Memory {
                    start,
                    len,
                    is_hot_pluggable,
                } => affinity.add_memory(start, len, node, is_hot_pluggable)?,
            }
        }
        affinity.check_overlap()?;
        if let Some(slit) = slit {
            affinity.add_distances(slit);
        }
        Ok(affinity)
    }

    fn add_cpu(&mut self, apic_id: u32, node: u8) -> Result<(), AffinityError> {
        match self.cpus.iter().find(|(id, _)| *id == apic_id) {
            Some(&(_, other)) if other != node => Err(AffinityError::CpuTwice(apic_id)),
            Some(_) => Ok(()),
            None => {
                self.cpus.push((apic_id, node));
                Ok(())
            }
        }
    }

    fn add_memory(
        &mut self,
        start: u64,
        len: u64,
        node: u8,
        is_hot_pluggable: bool,
    ) -> Result<(), AffinityError> {
        let end = start
            .checked_add(len)
            .ok_or(AffinityError::Memory { start, len })?;
        if len > 0 {
            self.memory.push(MemoryAffinity {
                range: start..end,
                node,
                is_hot_pluggable,
            });
        }
        Ok(())
    }

    /// Puts the ranges in order; two nodes cannot have the same memory.
    fn check_overlap(&mut self) -> Result<(), AffinityError> {
        self.memory
            .sort_unstable_by_key(|memory| (memory.range.start, memory.range.end));
        for pair in self.memory.windows(2) {
            if let [first, second] = pair
                && first.range.end > second.range.start
            {
                return Err(AffinityError::Overlap(second.range.start));
            }
        }
        Ok(())
    }

    /// Takes the distances over if all of them are possible: 10 from a node to itself, more to others.
    fn add_distances(&mut self, slit: &[u8]) {
        let localities = u64_at(slit, HEADER).and_then(|count| usize::try_from(count).ok());
        let matrix = slit.get(SLIT_HEADER..).unwrap_or_default();
        let Some(localities) = localities.filter(|count| count.checked_mul(*count) == Some(matrix.len()))
        else {
            return;
        };
        let mut distances = self.distances;
        for (from, from_domain) in self.domains.iter().enumerate() {
            for (to, to_domain) in self.domains.iter().enumerate() {
                let (row, column) = (*from_domain as usize, *to_domain as usize);
                if row >= localities || column >= localities {
                    continue;
                }
                let distance = matrix[row * localities + column];
                if (from == to) != (distance == LOCAL_DISTANCE) || distance < LOCAL_DISTANCE {
                    return;
                }
                distances[from][to] = distance;
            }
        }
        self.distances = distances;
    }

    /// How many nodes there are.
    #[must_use]
    pub fn nr_nodes(&self) -> u8 {
        u8::try_from(self.domains.len()).unwrap_or(1)
    }

    /// The node of a proximity domain, as devices name it.
    #[must_use]
    pub fn node_of_domain(&self, domain: u32) -> Option<u8> {
        let node = self.domains.binary_search(&domain).ok()?;
        u8::try_from(node).ok()
    }

    /// The node of a CPU; 0 for one that the tables do not know.
    #[must_use]
    pub fn node_of_cpu(&self, apic_id: u32) -> u8 {
        let known = self.cpus.iter().find(|(id, _)| *id == apic_id);
        known.map_or(0, |&(_, node)| node)
    }

    /// The node of a physical address; 0 for one that the tables do not know.
    #[must_use]
    pub fn node_of_address(&self, gpa: u64) -> u8 {
        let memory = self.memory.iter().find(|memory| memory.range.contains(&gpa));
        memory.map_or(0, |memory| memory.node)
    }

    /// How far node `to` is from node `from`, in the unit of the SLIT.
    ///
    /// # Panics
    /// If there can be no such node.
    #[must_use]
    pub fn distance(&self, from: u8, to: u8) -> u8 {
        self.distances[usize::from(from)][usize::from(to)]
    }

    /// The ranges of memory, by address.
    #[must_use]
    pub fn memory(&self) -> &[MemoryAffinity] {
        &self.memory
    }

    /// `range` in pieces of one node each, in order; they begin and end at multiples of `unit` bytes (a power of two)
    /// or where `range` does. A unit with memory of several nodes is of the node that its first byte is of.
    pub fn split(&self, range: Range<u64>, unit: u64) -> Vec<(Range<u64>, u8)> {
        let borders = self
            .memory
            .iter()
            .flat_map(|memory| [memory.range.start, memory.range.end]);
        let mut cuts: Vec<u64> = borders
            .filter_map(|border| border.checked_next_multiple_of(unit))
            .filter(|cut| range.start < *cut && *cut < range.end)
            .chain([range.start, range.end])
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut pieces: Vec<(Range<u64>, u8)> = Vec::new();
        for cut in cuts.windows(2) {
            let (piece, node) = (cut[0]..cut[1], self.node_of_address(cut[0]));
            match pieces.last_mut() {
                Some((last, of)) if *of == node => last.end = piece.end,
                _ => pieces.push((piece, node)),
            }
        }
        pieces
    }
}

/// What a structure of the SRAT is about.
enum Whose {
    Cpu {
        apic_id: u32,
    },
    Memory {
        start: u64,
        len: u64,
        is_hot_pluggable: bool,
    },
}

struct Entry {
    domain: u32,
    of: Whose,
}

/// The enabled structures that mean something here, up to the first whose length is wrong.
fn entries(srat: &[u8]) -> Vec<Entry> {
    // Before revision 2 a domain had 8 bits, and the other 24 were reserved.
    let domain_mask = match srat.get(8) {
        Some(0 | 1) | None => 0xff,
        Some(_) => u32::MAX,
    };
    let mut entries = Vec::new();
    let mut rest = srat.get(SRAT_HEADER..).unwrap_or_default();
    while let [_, len, ..] = *rest {
        let Some((structure, behind)) = rest.split_at_checked(usize::from(len).max(2)) else {
            break;
        };
        if let Some(mut entry) = entry(structure) {
            entry.domain &= domain_mask;
            entries.push(entry);
        }
        rest = behind;
    }
    entries
}

/// One structure, if it is enabled and of a kind that is known here.
fn entry(structure: &[u8]) -> Option<Entry> {
    let (flags, domain, of) = match *structure.first()? {
        LOCAL_APIC => {
            let domain = [2, 9, 10, 11].map(|at| structure.get(at).copied().unwrap_or(0));
            let apic_id = u32::from(*structure.get(3)?);
            (
                u32_at(structure, 4)?,
                u32::from_le_bytes(domain),
                Whose::Cpu { apic_id },
            )
        }
        LOCAL_X2APIC => {
            let apic_id = u32_at(structure, 8)?;
            (
                u32_at(structure, 12)?,
                u32_at(structure, 4)?,
                Whose::Cpu { apic_id },
            )
        }
        MEMORY => {
            let flags = u32_at(structure, 28)?;
            let of = Whose::Memory {
                start: u64_at(structure, 8)?,
                len: u64_at(structure, 16)?,
                is_hot_pluggable: flags & HOT_PLUGGABLE != 0,
            };
            (flags, u32_at(structure, 2)?, of)
        }
        _ => return None,
    };
    (flags & ENABLED != 0).then_some(Entry { domain, of })
}

/// Why the SRAT describes no nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AffinityError {
    /// More proximity domains than there can be nodes.
    TooManyNodes(usize),
    /// This range is not one.
    Memory {
        /// First physical address.
        start: u64,
        /// Length in bytes: beyond the end of the address space.
        len: u64,
    },
    /// Two ranges have the memory at this physical address.
    Overlap(u64),
    /// The CPU with this APIC id is of two nodes.
    CpuTwice(u32),
}

impl fmt::Display for AffinityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyNodes(nr_nodes) => write!(f, "SRAT: {nr_nodes} nodes, more than {MAX_NODES}"),
            Self::Memory { start, len } => write!(f, "SRAT: {len:#x} bytes of memory at {start:#x}"),
            Self::Overlap(gpa) => write!(f, "SRAT: the memory at {gpa:#x} comes twice"),
            Self::CpuTwice(apic_id) => write!(f, "SRAT: CPU {apic_id} is of two nodes"),
        }
    }
}

impl core::error::Error for AffinityError {}

#[cfg(test)]
mod tests;
