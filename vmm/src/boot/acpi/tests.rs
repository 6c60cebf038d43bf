//! The tables as a guest reads them: found from the RSDP on, each with a right checksum, describing what is there.

use super::*;
use crate::machine::layout::{GIB, MIB, RamRange, VIRTIO_MMIO_MAX};
use crate::spec::{MAX_REGIONS, NodeSpec};

const TWO_CPUS_TWO_DEVICES: Platform<'_> = Platform {
    cpus: 2,
    virtio_devices: 2,
    affinity: None,
};

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The table at guest-physical address `gpa`, with its length and checksum checked.
fn table(area: &[u8], gpa: u64, signature: &[u8; 4]) -> Vec<u8> {
    let at = usize::try_from(gpa - ACPI_TABLES.start).unwrap();
    let length = usize::try_from(u32_at(area, at + 4)).unwrap();
    let table = area[at..at + length].to_vec();
    assert_eq!(&table[..4], signature);
    assert_eq!(
        sum(&table),
        0,
        "checksum of {}",
        String::from_utf8_lossy(signature)
    );
    table
}

/// XSDT entries by following the RSDP.
fn root(area: &[u8]) -> Vec<u64> {
    assert_eq!(&area[..8], b"RSD PTR ");
    assert_eq!(sum(&area[..20]), 0, "checksum of ACPI 1.0's part");
    assert_eq!(sum(&area[..36]), 0, "extended checksum");
    assert_eq!(area[15], 2, "revision");
    let xsdt = table(area, u64_at(area, 24), b"XSDT");
    xsdt[36..]
        .chunks(8)
        .map(|entry| u64::from_le_bytes(entry.try_into().unwrap()))
        .collect()
}

#[test]
fn the_fadt_describes_a_hardware_reduced_platform_that_sleeps_and_resets() {
    let area = TWO_CPUS_TWO_DEVICES.tables();
    let fadt = table(&area, root(&area)[0], b"FACP");
    let flags = u32_at(&fadt, 112);
    assert_ne!(flags & 1 << 20, 0, "HW_REDUCED_ACPI");
    assert_ne!(flags & 1 << 10, 0, "RESET_REG_SUP");
    // Generic addresses: system I/O, 8 bits, byte access, port.
    assert_eq!(
        fadt[116..128],
        [1, 8, 0, 1, 0xF9, 0x0C, 0, 0, 0, 0, 0, 0],
        "RESET_REG"
    );
    assert_eq!(fadt[128], 0x06, "RESET_VALUE");
    assert_eq!(
        fadt[244..256],
        [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0],
        "SLEEP_CONTROL_REG"
    );
    assert_eq!(
        fadt[256..268],
        [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0],
        "SLEEP_STATUS_REG"
    );
    table(&area, u64_at(&fadt, 140), b"DSDT");
}

#[test]
fn the_madt_lists_every_cpu_and_the_ioapic() {
    let area = TWO_CPUS_TWO_DEVICES.tables();
    let madt = table(&area, root(&area)[1], b"APIC");
    assert_eq!(u32_at(&madt, 36), LOCAL_APIC);
    assert_eq!(madt[44..52], [0, 8, 0, 0, 1, 0, 0, 0]);
    assert_eq!(madt[52..60], [0, 8, 1, 1, 1, 0, 0, 0]);
    assert_eq!(madt[60..72], [1, 12, 0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0]);
    assert_eq!(madt.len(), 72);
}

#[test]
fn the_dsdt_gives_each_device_its_window_and_line() {
    let area = TWO_CPUS_TWO_DEVICES.tables();
    let fadt = table(&area, root(&area)[0], b"FACP");
    let dsdt = table(&area, u64_at(&fadt, 140), b"DSDT");
    let has = |needle: &[u8]| dsdt.windows(needle.len()).any(|window| window == needle);
    for (window, line) in [([0, 0, 0, 0xD0], 5), ([0, 0x10, 0, 0xD0], 6)] {
        // Memory32Fixed, read-write: tag, length 9, flags 1, base, 0x1000 bytes; then an extended interrupt
        // descriptor: tag, length 6, consumer and edge-triggered and active high, one line.
        let mut resources = vec![0x86, 9, 0, 1];
        resources.extend(window);
        resources.extend([0, 0x10, 0, 0, 0x89, 6, 0, 0b0011, 1, line, 0, 0, 0]);
        assert!(has(&resources), "device with line {line}");
    }
    assert!(has(b"LNRO0005\0") && has(b"QEMU0001\0"));
    // EISA id PNP0501, and COM1's ports: 16-bit decode, 0x3f8, alignment 1, length 8.
    assert!(has(&[0x41, 0xD0, 0x05, 0x01]) && has(&[0x47, 1, 0xF8, 3, 0xF8, 3, 1, 8]));
    // Name (\_S5, Package { 5, 0, 0, 0 }): 7 bytes of package, of which one its length and one its count.
    assert!(has(b"\x08\\_S5_\x12\x07\x04\x0A\x05\x00\x00\x00"), "{dsdt:02x?}");
}

#[test]
fn the_largest_machine_fits() {
    let cpus = |node: u8| (node * 2..node * 2 + 2).collect();
    let nodes: Vec<NodeSpec> = (0..8).map(|number| node(GIB, cpus(number), &[20; 8])).collect();
    let largest_region = RamRange {
        gpa: 16 * GIB,
        size: GIB,
    };
    let largest = Platform {
        cpus: 16,
        virtio_devices: VIRTIO_MMIO_MAX,
        affinity: Some(Affinity {
            nodes: &nodes,
            regions: &[(largest_region, 7); MAX_REGIONS],
        }),
    };
    assert!(largest.tables().len() as u64 <= ACPI_TABLES.end - ACPI_TABLES.start);
}

fn node(memory: u64, cpus: Vec<u8>, distances: &[u8]) -> NodeSpec {
    NodeSpec {
        memory,
        cpus,
        distances: distances.to_vec(),
    }
}

#[test]
fn without_nodes_there_is_no_affinity_table() {
    assert_eq!(root(&TWO_CPUS_TWO_DEVICES.tables()).len(), 2);
}

/// The bytes of the SRAT, structure by structure, as ACPI 6.5, section 5.2.16, has them: node 0 with CPUs 0 and 2 and
/// memory on both sides of the hole, node 1 with CPU 1, node 2 with nothing but the hot-plug region.
#[test]
fn the_srat_says_whose_each_cpu_and_each_piece_of_memory_is() {
    let nodes = [
        node(3 * GIB + 512 * MIB, vec![0, 2], &[10, 21, 31]),
        node(256 * MIB, vec![1], &[21, 10, 41]),
        node(0, vec![], &[31, 41, 10]),
    ];
    let region = RamRange {
        gpa: 5 * GIB,
        size: 2 * GIB,
    };
    let near_0 = RamRange {
        gpa: 8 * GIB,
        size: 2 * GIB,
    };
    let platform = Platform {
        cpus: 3,
        affinity: Some(Affinity {
            nodes: &nodes,
            regions: &[(region, 2), (near_0, 0)],
        }),
        ..TWO_CPUS_TWO_DEVICES
    };
    let area = platform.tables();
    let srat = table(&area, root(&area)[2], b"SRAT");
    assert_eq!(srat[8], 3, "revision");
    assert_eq!(srat[36..48], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "reserved");
    let cpu = |domain, apic_id| [0, 16, domain, apic_id, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (at, domain, apic_id) in [(48, 0, 0), (64, 0, 2), (80, 1, 1)] {
        assert_eq!(srat[at..at + 16], cpu(domain, apic_id), "CPU {apic_id}");
    }
    #[rustfmt::skip]
    let memory: [[u8; 40]; 5] = [
        // Type, length, domain (4), reserved (2), base (8), length (8), reserved (4), flags (4), reserved (8).
        [1, 40, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0xC0, 0, 0, 0, 0,  0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 40, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 1, 0, 0, 0,  0, 0, 0, 0x20, 0, 0, 0, 0,  0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 40, 1, 0, 0, 0, 0, 0,  0, 0, 0, 0x20, 1, 0, 0, 0,  0, 0, 0, 0x10, 0, 0, 0, 0,  0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // Enabled and hot-pluggable.
        [1, 40, 2, 0, 0, 0, 0, 0,  0, 0, 0, 0x40, 1, 0, 0, 0,  0, 0, 0, 0x80, 0, 0, 0, 0,  0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1, 40, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 2, 0, 0, 0,  0, 0, 0, 0x80, 0, 0, 0, 0,  0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    assert_eq!(srat[96..], *memory.as_flattened());
}

#[test]
fn the_slit_is_the_matrix_of_distances_row_by_row() {
    let nodes = [
        node(GIB, vec![0], &[10, 21, 31]),
        node(GIB, vec![1], &[21, 10, 41]),
        node(GIB, vec![], &[31, 41, 10]),
    ];
    let platform = Platform {
        affinity: Some(Affinity {
            nodes: &nodes,
            regions: &[],
        }),
        ..TWO_CPUS_TWO_DEVICES
    };
    let area = platform.tables();
    let slit = table(&area, root(&area)[3], b"SLIT");
    assert_eq!(slit[36..44], [3, 0, 0, 0, 0, 0, 0, 0], "localities");
    assert_eq!(slit[44..], [10, 21, 31, 21, 10, 41, 31, 41, 10]);
}
