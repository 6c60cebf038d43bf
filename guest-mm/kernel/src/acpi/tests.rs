//! ACPI tables built byte by byte from the specification.

use super::*;
use crate::physical::Image;

const BASE: u64 = 0xe0000;

fn table(signature: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend(u32::try_from(body.len() + 36).unwrap().to_le_bytes());
    table.extend([0; 28]);
    table.extend(body);
    table[9] = 0_u8.wrapping_sub(table.iter().fold(0, |sum, byte| sum.wrapping_add(*byte)));
    table
}

fn dsdt_body() -> Vec<u8> {
    let mut body = Vec::new();
    // Name (\_S5, Package () { 5, 0 })
    body.extend([0x08, b'\\', b'_', b'S', b'5', b'_', 0x12, 5, 2, 0x0a, 5, 0]);
    // Device (OTHR) { Name (_HID, "LNRO0005") ... an I/O port 0x700 }
    body.extend(device(b"LNRO0005", 0x700));
    body.extend(device(b"QEMU0001", 0x505));
    body
}

fn device(hid: &[u8; 8], port: u16) -> Vec<u8> {
    let mut inner = b"PEVT\x08_HID\x0d".to_vec();
    inner.extend(hid);
    inner.extend([0, 0x08, b'_', b'C', b'R', b'S', 0x11, 13, 0x0a, 10, 0x47, 1]);
    inner.extend(port.to_le_bytes());
    inner.extend(port.to_le_bytes());
    inner.extend([1, 1, 0x79, 0]);
    let mut device = std::vec![0x5b, 0x82, u8::try_from(inner.len() + 1).unwrap()];
    assert!(device[2] < 0x40);
    device.append(&mut inner);
    device
}

fn image() -> Image {
    let mut fadt = std::vec![0; 268 - 36];
    let mut put = |offset: usize, bytes: &[u8]| fadt[offset - 36..][..bytes.len()].copy_from_slice(bytes);
    put(112, &(1_u32 << 10 | 1 << 20).to_le_bytes());
    put(116, &[1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0]);
    put(128, &[6]);
    put(140, &(BASE + 0x400).to_le_bytes());
    put(244, &[1, 8, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0]);
    let mut madt = std::vec![0, 0, 0xe0, 0xfe, 0, 0, 0, 0];
    madt.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    // CPU 1 is not enabled; CPU 2 comes twice, as x2APIC too; CPU 3 as x2APIC only.
    madt.extend([0, 8, 1, 1, 0, 0, 0, 0]);
    madt.extend([0, 8, 2, 2, 1, 0, 0, 0]);
    madt.extend([9, 16, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
    madt.extend([9, 16, 0, 0, 3, 1, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
    madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0]);
    let mut xsdt = (BASE + 0x100).to_le_bytes().to_vec();
    xsdt.extend((BASE + 0x300).to_le_bytes());
    let mut rsdp = b"RSD PTR \0OEMID_\x02".to_vec();
    rsdp.resize(24, 0);
    rsdp.extend((BASE + 0x80).to_le_bytes());
    let mut bytes = std::vec![0; 0x600];
    for (at, table) in [
        (0, rsdp),
        (0x80, table(b"XSDT", &xsdt)),
        (0x100, table(b"FACP", &fadt)),
        (0x300, table(b"APIC", &madt)),
        (0x400, table(b"DSDT", &dsdt_body())),
    ] {
        bytes[at..at + table.len()].copy_from_slice(&table);
    }
    Image { base: BASE, bytes }
}

#[test]
fn every_fact_is_found() {
    assert_eq!(
        Acpi::read(&image(), BASE),
        Ok(Acpi {
            cpus: [0, 2, 0x103].map(|id| LocalApic { id }).to_vec(),
            io_apics: std::vec![IoApic {
                address: 0xfec0_0000,
                gsi_base: 24
            }],
            power_off: Some(PortWrite {
                port: 0x600,
                value: 0x34
            }),
            reset: Some(PortWrite {
                port: 0xcf9,
                value: 6
            }),
            pvpanic_port: Some(0x505),
            affinity: Affinity::default(),
            affinity_error: None,
        })
    );
}

#[test]
fn a_table_with_a_wrong_checksum_is_refused() {
    let mut image = image();
    image.bytes[0x330] ^= 1;
    assert_eq!(Acpi::read(&image, BASE), Err(AcpiError::Checksum(BASE + 0x300)));
}

#[test]
fn a_table_that_claims_no_length_is_refused() {
    let mut image = image();
    image.bytes[0x84..0x88].fill(0);
    assert_eq!(
        Acpi::read(&image, BASE),
        Err(AcpiError::Length {
            address: BASE + 0x80,
            len: 0
        })
    );
}

#[test]
fn an_address_without_root_pointer_is_named() {
    assert_eq!(
        Acpi::read(&image(), BASE + 0x80),
        Err(AcpiError::NoRootPointer(BASE + 0x80))
    );
}

#[test]
fn truncated_madt_entries_end_the_list() {
    let mut acpi = Acpi::default();
    let mut body = std::vec![0; 44];
    body.extend([1, 12, 0, 0]);
    acpi.add_madt(&body);
    body.extend([0, 0, 0, 0]);
    acpi.add_madt(&body);
    assert_eq!(acpi, Acpi::default());
}

#[test]
fn a_dsdt_without_the_device_has_no_port() {
    assert_eq!(aml::port_of_device(&dsdt_body(), b"QEMU0002"), None);
    assert_eq!(aml::port_of_device(&[], b"QEMU0001"), None);
    assert_eq!(aml::sleep_type(b"\x08_S5_\x12"), None);
}

#[test]
fn a_wrong_srat_costs_the_nodes_and_nothing_else() {
    let mut image = image();
    // In the DSDT's place in the list of tables a CPU of two nodes; the DSDT itself is found through the FADT.
    let mut srat = std::vec![0; 12];
    for domain in [0, 1] {
        srat.extend([0, 16, domain, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    let srat = table(b"SRAT", &srat);
    image.bytes[0x580..0x580 + srat.len()].copy_from_slice(&srat);
    let tables = [0x100, 0x300, 0x580].map(|at| (BASE + at).to_le_bytes());
    let xsdt = table(b"XSDT", tables.as_flattened());
    image.bytes[0x80..0x80 + xsdt.len()].copy_from_slice(&xsdt);
    let acpi = Acpi::read(&image, BASE).unwrap();
    assert_eq!(acpi.affinity_error, Some(AffinityError::CpuTwice(7)));
    assert_eq!(acpi.affinity, Affinity::default());
    assert_eq!(acpi.pvpanic_port, Some(0x505));
    assert_eq!(acpi.io_apics.len(), 1);
}
