//! Which memory and which CPU belongs to which node (SRAT), and how far nodes are from each other (SLIT).
//!
//! `acpi_tables` writes the memory affinity structures and the SLIT. It has no affinity structure for local APICs, and
//! its SRAT has revision 1, in which a proximity domain has 8 bits only; so the table itself is put together here.

use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;
use acpi_tables::srat::MemoryAffinity;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::machine::layout::{RamRange, ram_slices};
use crate::spec::NodeSpec;

/// Revision of the SRAT (ACPI 6.5, section 5.2.16): proximity domains of 32 bits.
const SRAT_REVISION: u8 = 3;
/// What precedes the structures: the header, a 1 "to maintain backward compatibility", 8 reserved bytes.
const SRAT_HEADER: u32 = 48;
/// Length of a processor local APIC affinity structure (section 5.2.16.1).
const APIC_AFFINITY: u8 = 16;

/// The nodes of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affinity<'a> {
    /// The nodes; boot memory is theirs in this order.
    pub nodes: &'a [NodeSpec],
    /// The hot-plug regions, and the node that each belongs to.
    pub regions: &'a [(RamRange, u8)],
}

impl Affinity<'_> {
    /// The system resource affinity table.
    pub(super) fn srat(self) -> Vec<u8> {
        let mut srat = Sdt::new(
            *b"SRAT",
            SRAT_HEADER,
            SRAT_REVISION,
            OEM_ID,
            OEM_TABLE_ID,
            OEM_REVISION,
        );
        srat.write_u32(36, 1);
        for (domain, node) in (0..).zip(self.nodes) {
            for &cpu in &node.cpus {
                srat.append_slice(&local_apic_affinity(domain, cpu));
            }
        }
        let memory: Vec<u64> = self.nodes.iter().map(|node| node.memory).collect();
        for (domain, ranges) in (0..).zip(ram_slices(&memory).unwrap_or_default()) {
            for range in ranges {
                let affinity = MemoryAffinity::new(domain, range.gpa, range.size).enabled();
                srat.append_slice(&bytes_of(&affinity));
            }
        }
        for (range, node) in self.regions {
            let affinity = MemoryAffinity::new((*node).into(), range.gpa, range.size);
            srat.append_slice(&bytes_of(&affinity.enabled().hotpluggable()));
        }
        srat.as_slice().to_vec()
    }

    /// The system locality distance information table.
    pub(super) fn slit(self) -> Vec<u8> {
        let localities = u32::try_from(self.nodes.len()).expect("at most 8 nodes");
        let mut slit = SLIT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, localities);
        for (from, node) in self.nodes.iter().enumerate() {
            // The diagonal is 10 from the start, and both directions are set at once.
            for (to, &distance) in node.distances.iter().enumerate().skip(from + 1) {
                slit.set_distance(from, to, distance);
            }
        }
        bytes_of(&slit)
    }
}

/// Section 5.2.16.1: the domain's low byte and the APIC id, enabled, the domain's other bytes, clock domain 0.
fn local_apic_affinity(domain: u32, apic_id: u8) -> [u8; APIC_AFFINITY as usize] {
    let [low, high @ ..] = domain.to_le_bytes();
    let mut structure = [0; APIC_AFFINITY as usize];
    structure[..4].copy_from_slice(&[0, APIC_AFFINITY, low, apic_id]);
    structure[4] = 1;
    structure[9..12].copy_from_slice(&high);
    structure
}
