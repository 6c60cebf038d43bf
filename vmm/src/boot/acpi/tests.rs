//! The tables as a guest reads them: found from the RSDP on, each with a right checksum, describing what is there.

use super::*;

const TWO_CPUS_TWO_DEVICES: Platform = Platform {
    cpus: 2,
    virtio_devices: 2,
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
    use crate::machine::layout::VIRTIO_MMIO_MAX;
    let largest = Platform {
        cpus: 16,
        virtio_devices: VIRTIO_MMIO_MAX,
    };
    assert!(largest.tables().len() as u64 <= ACPI_TABLES.end - ACPI_TABLES.start);
}
