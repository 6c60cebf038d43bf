//! NUMA nodes: `--node memory=SIZE,cpus=LIST,distance=LIST`, once for each node, in the order of their numbers.
//!
//! Every part may be left out. Nodes without `memory=` share what `--memory` leaves, those without `cpus=` share the
//! CPUs that nobody names, and a distance that nobody gives is 10 to the node itself and 20 to any other. Lists are
//! written with colons, because the comma separates the parts: `cpus=0-2:7`, `distance=10:20:30`.

use std::num::NonZeroU8;

use thiserror::Error;

use super::SpecError;
use super::error::SizeRule;
use super::memory::{DEFAULT_MEMORY, MEMORY_UNIT, MIN_MEMORY};
use super::size::{ByteSize, parse_size};

/// The most nodes a VM may have.
pub const MAX_NODES: usize = 8;
/// From a node to itself (ACPI 6.5, section 5.2.17).
pub const LOCAL_DISTANCE: u8 = 10;
/// From a node to another one when nothing is said: twice as far, as Linux assumes too (`REMOTE_DISTANCE`).
pub const REMOTE_DISTANCE: u8 = 20;
/// The farthest; 255 means that one cannot be reached from the other.
const MAX_DISTANCE: u8 = 254;

/// One node. Its number is its place in [`super::VmSpec::nodes`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSpec {
    /// Boot memory of the node in bytes: a multiple of 2 MiB, which may be 0 for any node but the first.
    pub memory: u64,
    /// Its CPUs, in order; every CPU of the VM is in one node. May be empty.
    pub cpus: Vec<u8>,
    /// How far each node is, itself (10) included: one number a node, 10 to 254, the same in both directions.
    pub distances: Vec<u8>,
}

/// What `--node` and `--memory` can have wrong with each other.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NodeError {
    /// More nodes than a VM may have.
    #[error("--node given {count} times: a VM has at most {MAX_NODES} nodes")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// A part that is none, or one that comes twice.
    #[error(
        "--node {text:?}: {part:?} is not one of memory=SIZE, cpus=LIST and distance=LIST, each at most once"
    )]
    Part {
        /// The node as written.
        text: String,
        /// The part that is wrong.
        part: String,
    },
    /// An amount of memory that no node can have.
    #[error("--node {node} memory={bytes}: {rule}")]
    Memory {
        /// Number of the node.
        node: usize,
        /// What it would get.
        bytes: ByteSize,
        /// The rule that this breaks.
        rule: SizeRule,
    },
    /// Nodes with and without memory of their own, and no total.
    #[error("--node {node} without memory=: the other nodes have it, and --memory does not say what is left")]
    NoTotal {
        /// The first node without.
        node: usize,
    },
    /// The nodes' memory is not what the VM has.
    #[error("--memory {memory}: the nodes have {sum} together")]
    Sum {
        /// What the VM has.
        memory: ByteSize,
        /// What the nodes have.
        sum: ByteSize,
    },
    /// Not a list of CPUs.
    #[error("--node {node} cpus={text:?}: CPUs are 0 to {last} as in 0-2:7, or none")]
    Cpus {
        /// Number of the node.
        node: usize,
        /// The list as written.
        text: String,
        /// The VM's last CPU.
        last: u8,
    },
    /// A CPU in two nodes.
    #[error("--node {node} cpus: CPU {cpu} is of node {other} already")]
    SharedCpu {
        /// Number of the second node that names it.
        node: usize,
        /// The CPU.
        cpu: u8,
        /// Number of the first node that names it; it may be the same one.
        other: usize,
    },
    /// A CPU in no node.
    #[error("--node: CPU {cpu} is of no node, and every node has its cpus= given")]
    LostCpu {
        /// The CPU.
        cpu: u8,
    },
    /// Not a list of distances.
    #[error(
        "--node {node} distance={text:?}: one number for each of the {nodes} nodes, {LOCAL_DISTANCE} for the node itself and 11 to {MAX_DISTANCE} for another"
    )]
    Distances {
        /// Number of the node.
        node: usize,
        /// The list as written.
        text: String,
        /// How many nodes there are.
        nodes: usize,
    },
    /// Two nodes that do not agree how far they are from each other.
    #[error("--node {to} distance: {back} to node {from}, which has {there} the other way")]
    OneWay {
        /// The node with the lower number.
        from: usize,
        /// The other one.
        to: usize,
        /// From the first to the second.
        there: u8,
        /// From the second to the first.
        back: u8,
    },
    /// A node that does not exist.
    #[error("--hotplug node={text:?}: the nodes are 0 to {last}")]
    NoSuchNode {
        /// What was written.
        text: String,
        /// The last node.
        last: usize,
    },
}

/// One `--node` in its parts.
#[derive(Debug, Default)]
struct Parts<'a> {
    memory: Option<u64>,
    cpus: Option<&'a str>,
    distance: Option<&'a str>,
}

impl<'a> Parts<'a> {
    fn parse(text: &'a str) -> Result<Self, SpecError> {
        let mut parts = Self::default();
        // Without any part a node is still a node.
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let is_new = match part.split_once('=') {
                Some(("memory", size)) => {
                    let size = parse_size(size).map_err(|source| SpecError::Size {
                        option: "--node memory",
                        source,
                    })?;
                    parts.memory.replace(size).is_none()
                }
                Some(("cpus", list)) => parts.cpus.replace(list).is_none(),
                Some(("distance", list)) => parts.distance.replace(list).is_none(),
                _ => false,
            };
            if !is_new {
                let (text, part) = (text.to_owned(), part.to_owned());
                return Err(NodeError::Part { text, part }.into());
            }
        }
        Ok(parts)
    }
}

/// The nodes from their texts, and all boot memory in bytes. Without a text there is no node, and the memory is `total`
/// or the default.
pub(super) fn nodes(
    texts: &[String],
    total: Option<u64>,
    cpus: NonZeroU8,
) -> Result<(Vec<NodeSpec>, u64), SpecError> {
    if texts.is_empty() {
        return Ok((Vec::new(), total.unwrap_or(DEFAULT_MEMORY)));
    }
    if texts.len() > MAX_NODES {
        return Err(NodeError::TooMany { count: texts.len() }.into());
    }
    let parts = texts
        .iter()
        .map(|text| Parts::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    let memory = memory_of(&parts, total)?;
    let cpus = cpus_of(&parts, cpus)?;
    let distances = distances_of(&parts)?;
    let sum = memory.iter().sum();
    let nodes = memory.into_iter().zip(cpus).zip(distances);
    let nodes = nodes.map(|((memory, cpus), distances)| NodeSpec {
        memory,
        cpus,
        distances,
    });
    Ok((nodes.collect(), sum))
}

/// Boot memory of each node. The sum does not overflow.
fn memory_of(parts: &[Parts<'_>], total: Option<u64>) -> Result<Vec<u64>, NodeError> {
    let given: Vec<Option<u64>> = parts.iter().map(|parts| parts.memory).collect();
    let sum = given
        .iter()
        .flatten()
        .try_fold(0_u64, |sum, memory| sum.checked_add(*memory));
    let open = given.iter().filter(|memory| memory.is_none()).count() as u64;
    let total = match (total, given.iter().position(Option::is_none)) {
        (Some(total), _) => total,
        (None, None) => sum.unwrap_or(u64::MAX),
        (None, Some(_)) if sum == Some(0) => DEFAULT_MEMORY,
        (None, Some(node)) => return Err(NodeError::NoTotal { node }),
    };
    let left = sum.and_then(|sum| total.checked_sub(sum));
    let Some(left) = left.filter(|&left| open > 0 || left == 0) else {
        return Err(NodeError::Sum {
            memory: ByteSize(total),
            sum: ByteSize(sum.unwrap_or(u64::MAX)),
        });
    };
    let units = left / MEMORY_UNIT;
    let mut shares = (0..open).map(|share| {
        let one_more = u64::from(share < units % open);
        (units / open + one_more) * MEMORY_UNIT
    });
    let memory: Vec<u64> = given
        .into_iter()
        .map(|memory| memory.or_else(|| shares.next()).unwrap_or(0))
        .collect();
    for (node, &bytes) in memory.iter().enumerate() {
        // The kernel is loaded into the first.
        let least = SizeRule::AtLeast(if node == 0 { MIN_MEMORY } else { 0 });
        let rules = [least, SizeRule::MultipleOf(MEMORY_UNIT)];
        if let Some(&rule) = rules.iter().find(|rule| !rule.allows(bytes)) {
            let bytes = ByteSize(bytes);
            return Err(NodeError::Memory { node, bytes, rule });
        }
    }
    Ok(memory)
}

/// The CPUs of each node: those it names, and for nodes that name none an even share of the rest.
fn cpus_of(parts: &[Parts<'_>], cpus: NonZeroU8) -> Result<Vec<Vec<u8>>, NodeError> {
    let last = cpus.get() - 1;
    let mut node_of: Vec<Option<usize>> = vec![None; usize::from(cpus.get())];
    for (node, parts) in parts.iter().enumerate() {
        let Some(text) = parts.cpus else { continue };
        let list = cpu_list(text, last).ok_or_else(|| NodeError::Cpus {
            node,
            text: text.to_owned(),
            last,
        })?;
        for cpu in list {
            if let Some(other) = node_of[usize::from(cpu)].replace(node) {
                return Err(NodeError::SharedCpu { node, cpu, other });
            }
        }
    }
    let open: Vec<usize> = (0..parts.len())
        .filter(|&node| parts[node].cpus.is_none())
        .collect();
    let free: Vec<u8> = (0..=last)
        .filter(|&cpu| node_of[usize::from(cpu)].is_none())
        .collect();
    if let (Some(&cpu), true) = (free.first(), open.is_empty()) {
        return Err(NodeError::LostCpu { cpu });
    }
    for (index, &cpu) in free.iter().enumerate() {
        // Neighbours together: 3 CPUs of 2 nodes are 2 and 1.
        node_of[usize::from(cpu)] = Some(open[index * open.len() / free.len()]);
    }
    let mut cpus = vec![Vec::new(); parts.len()];
    for (cpu, node) in (0..=last).zip(node_of) {
        cpus[node.unwrap_or(0)].push(cpu);
    }
    Ok(cpus)
}

/// The CPUs of a list such as `0-2:7`, or of `none`.
fn cpu_list(text: &str, last: u8) -> Option<Vec<u8>> {
    if text == "none" {
        return Some(Vec::new());
    }
    let mut cpus = Vec::new();
    for range in text.split(':') {
        let (first, end) = range.split_once('-').unwrap_or((range, range));
        let (first, end) = (number(first)?, number(end)?);
        if first > end || end > last {
            return None;
        }
        cpus.extend(first..=end);
    }
    Some(cpus)
}

/// The distances from each node to each.
fn distances_of(parts: &[Parts<'_>]) -> Result<Vec<Vec<u8>>, NodeError> {
    let nodes = parts.len();
    let mut rows = Vec::with_capacity(nodes);
    for (node, parts) in parts.iter().enumerate() {
        let row = parts.distance.map(|text| {
            distance_list(text, node, nodes).ok_or_else(|| NodeError::Distances {
                node,
                text: text.to_owned(),
                nodes,
            })
        });
        rows.push(row.transpose()?);
    }
    let mut distances = vec![vec![LOCAL_DISTANCE; nodes]; nodes];
    for from in 0..nodes {
        for to in from + 1..nodes {
            let there = rows[from].as_ref().map(|row| row[to]);
            let back = rows[to].as_ref().map(|row| row[from]);
            if let (Some(there), Some(back)) = (there, back)
                && there != back
            {
                return Err(NodeError::OneWay {
                    from,
                    to,
                    there,
                    back,
                });
            }
            let distance = there.or(back).unwrap_or(REMOTE_DISTANCE);
            distances[from][to] = distance;
            distances[to][from] = distance;
        }
    }
    Ok(distances)
}

/// One number a node, as [`NodeError::Distances`] says.
fn distance_list(text: &str, node: usize, nodes: usize) -> Option<Vec<u8>> {
    let row = text.split(':').map(number).collect::<Option<Vec<u8>>>()?;
    let is_right = |(to, &distance): (usize, &u8)| {
        if to == node {
            distance == LOCAL_DISTANCE
        } else {
            (LOCAL_DISTANCE + 1..=MAX_DISTANCE).contains(&distance)
        }
    };
    (row.len() == nodes && row.iter().enumerate().all(is_right)).then_some(row)
}

/// The number of the node that `--hotplug` names.
pub(super) fn node_number(text: &str, nodes: usize) -> Result<u8, NodeError> {
    let last = nodes.saturating_sub(1);
    number(text)
        .filter(|&node| usize::from(node) <= last)
        .ok_or_else(|| NodeError::NoSuchNode {
            text: text.to_owned(),
            last,
        })
}

/// Digits only: `from_str` of a number also takes a leading plus sign, which nobody means.
fn number(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

#[cfg(test)]
mod tests;
