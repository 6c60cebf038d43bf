//! Where everything is in the guest's physical address space and among its ports: the one place that says so.
//!
//! ```text
//! 0            RAM, up to 3 GiB of it
//! 0xC000_0000  nothing
//! 0xD000_0000  virtio-mmio devices, one page each
//! 0xFEC0_0000  IOAPIC            0xFEE0_0000  local APICs
//! 4 GiB        the rest of RAM, then the hot-plug region
//! ```
//!
//! The guest learns all of it from PVH, ACPI or its command line.

use std::ops::Range;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// Guest memory is mapped in the host so that huge pages of this size serve both sides.
pub const HUGE_PAGE: u64 = 2 * MIB;

/// First address that low RAM never reaches.
pub const LOW_RAM_END: u64 = 0xC000_0000;
/// Where RAM goes on, above the 32-bit devices.
pub const HIGH_RAM_START: u64 = 4 * GIB;

/// Page of the `hvm_start_info` or `boot_params` that the boot CPU is handed.
pub const BOOT_INFO: u64 = 0x6000;
/// GDT of the Linux 64-bit boot protocol.
pub const BOOT_GDT: u64 = 0x5000;
/// Identity-mapping page tables of the Linux 64-bit boot protocol: a PML4, a PDPT, a page directory.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// The kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line with its NUL: what Linux on x86 keeps (`COMMAND_LINE_SIZE`).
pub const CMDLINE_MAX: usize = 2048;
/// End of conventional memory: what lies between here and [`HIMEM_START`] is reserved in the memory map.
pub const LOW_MEMORY_END: u64 = 0x9_FC00;
/// The ACPI tables, RSDP first.
pub const ACPI_TABLES: Range<u64> = 0xE_0000..0xF_0000;
/// Where a PC's firmware begins, in real mode: `ffff:0000`. Guests jump here as a way to reset.
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Where kernels may begin.
pub const HIMEM_START: u64 = 0x10_0000;

/// The first virtio-mmio device.
pub const VIRTIO_MMIO_BASE: u64 = 0xD000_0000;
/// Registers of one virtio-mmio device.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// Interrupt line of the first virtio-mmio device; the next one has the next.
pub const VIRTIO_MMIO_GSI: u32 = 5;
/// Most virtio-mmio devices a machine can have: lines 5 to 23.
pub const VIRTIO_MMIO_MAX: u32 = IOAPIC_PINS - VIRTIO_MMIO_GSI;

/// The IOAPIC's registers.
pub const IOAPIC: u32 = 0xFEC0_0000;
/// Its interrupt lines.
pub const IOAPIC_PINS: u32 = 24;
/// Every local APIC's registers.
pub const LOCAL_APIC: u32 = 0xFEE0_0000;
/// Three pages that KVM uses on Intel CPUs without unrestricted guests.
pub const KVM_TSS: u64 = 0xFFFB_D000;
/// One more such page.
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;

/// First port of COM1.
pub const COM1_PORT: u16 = 0x3F8;
/// Ports of COM1.
pub const COM1_PORTS: u16 = 8;
/// Interrupt line of COM1.
pub const COM1_GSI: u32 = 4;
/// Data port of the keyboard controller; its command port is [`I8042_COMMAND`].
pub const I8042_DATA: u16 = 0x60;
/// Command port of the keyboard controller.
pub const I8042_COMMAND: u16 = 0x64;
/// The pvpanic device.
pub const PVPANIC_PORT: u16 = 0x505;
/// ACPI sleep control register (hardware-reduced).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register (hardware-reduced).
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// The FADT's reset register.
pub const RESET_PORT: u16 = 0xCF9;

const _: () = assert!(VIRTIO_MMIO_BASE >= LOW_RAM_END);
const _: () = assert!(VIRTIO_MMIO_BASE + VIRTIO_MMIO_SIZE * (VIRTIO_MMIO_MAX as u64) <= IOAPIC as u64);
const _: () = assert!(KVM_TSS + 3 * 0x1000 <= HIGH_RAM_START);
const _: () = assert!(KVM_IDENTITY_MAP + 0x1000 <= KVM_TSS);
const _: () = assert!(BOOT_GDT + 0x1000 <= BOOT_INFO && BOOT_INFO + 0x1000 <= BOOT_PAGE_TABLES);
const _: () = assert!(BOOT_PAGE_TABLES + 3 * 0x1000 <= CMDLINE);
const _: () = assert!(CMDLINE + CMDLINE_MAX as u64 <= LOW_MEMORY_END);
const _: () = assert!(LOW_MEMORY_END <= ACPI_TABLES.start && ACPI_TABLES.end <= RESET_VECTOR);
const _: () = assert!(RESET_VECTOR + 16 == HIMEM_START);
const _: () = assert!(LOW_RAM_END.is_multiple_of(HUGE_PAGE) && HIGH_RAM_START.is_multiple_of(HUGE_PAGE));
const _: () = assert!(COM1_GSI < VIRTIO_MMIO_GSI);

/// A range of guest-physical addresses with RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// First address.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
}

impl RamRange {
    /// The first address behind it.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.gpa + self.size
    }
}

/// Where `memory` bytes of boot memory are, in address order: one range, or two around the devices below 4 GiB.
/// `None` if they would end beyond 64 bits.
#[must_use]
pub fn ram_ranges(memory: u64) -> Option<Vec<RamRange>> {
    let low = memory.min(LOW_RAM_END);
    let high = memory - low;
    HIGH_RAM_START.checked_add(high)?;
    let mut ranges = vec![RamRange { gpa: 0, size: low }];
    if high > 0 {
        ranges.push(RamRange {
            gpa: HIGH_RAM_START,
            size: high,
        });
    }
    Some(ranges)
}

/// Where each of several pieces of boot memory is when they follow one another: for each, in order, its ranges, of
/// which there are none for an empty piece and two for one that lies around the devices. `None` if they would end
/// beyond 64 bits.
#[must_use]
pub fn ram_slices(sizes: &[u64]) -> Option<Vec<Vec<RamRange>>> {
    let total = sizes.iter().try_fold(0_u64, |sum, size| sum.checked_add(*size))?;
    let mut ram = ram_ranges(total)?.into_iter();
    let mut rest = ram.next();
    let mut slices = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let (mut left, mut slice) = (size, Vec::new());
        while let Some(range) = rest.as_mut().filter(|_| left > 0) {
            let size = left.min(range.size);
            slice.push(RamRange { gpa: range.gpa, size });
            left -= size;
            range.gpa += size;
            range.size -= size;
            if range.size == 0 {
                rest = ram.next();
            }
        }
        slices.push(slice);
    }
    Some(slices)
}

/// Where each of several hot-plug regions begins, one behind the other after `memory` bytes of boot memory; for each its
/// size and the size of its blocks (a power of two) are given. `None` if one would end beyond 64 bits.
#[must_use]
pub fn region_starts(memory: u64, regions: &[(u64, u64)]) -> Option<Vec<u64>> {
    let ram_end = ram_ranges(memory)?.last().map_or(0, |range| range.end());
    let mut free = ram_end.max(HIGH_RAM_START);
    let place = |&(size, block_size): &(u64, u64)| {
        let start = free.checked_next_multiple_of(block_size.max(GIB))?;
        free = start.checked_add(size)?;
        Some(start)
    };
    regions.iter().map(place).collect()
}

/// The registers of virtio-mmio device `index`.
#[must_use]
pub const fn virtio_mmio(index: u32) -> Range<u64> {
    let start = VIRTIO_MMIO_BASE + index as u64 * VIRTIO_MMIO_SIZE;
    start..start + VIRTIO_MMIO_SIZE
}

/// The interrupt line of virtio-mmio device `index`.
#[must_use]
pub const fn virtio_gsi(index: u32) -> u32 {
    VIRTIO_MMIO_GSI + index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_below_the_devices_is_one_range() {
        assert_eq!(
            ram_ranges(512 * MIB),
            Some(vec![RamRange {
                gpa: 0,
                size: 512 * MIB
            }])
        );
        assert_eq!(
            ram_ranges(LOW_RAM_END),
            Some(vec![RamRange {
                gpa: 0,
                size: LOW_RAM_END
            }])
        );
    }

    #[test]
    fn ram_beyond_the_devices_goes_on_at_4_gib() {
        let ranges = ram_ranges(5 * GIB).unwrap();
        assert_eq!(
            ranges,
            [
                RamRange {
                    gpa: 0,
                    size: 3 * GIB
                },
                RamRange {
                    gpa: 4 * GIB,
                    size: 2 * GIB
                }
            ]
        );
        assert_eq!(ranges.iter().map(|range| range.size).sum::<u64>(), 5 * GIB);
    }

    #[test]
    fn regions_follow_all_ram_and_each_other_at_a_gibibyte_and_at_a_block() {
        let starts = |memory, regions: &[(u64, u64)]| region_starts(memory, regions);
        assert_eq!(starts(512 * MIB, &[]), Some(vec![]));
        assert_eq!(starts(512 * MIB, &[(GIB, 2 * MIB)]), Some(vec![4 * GIB]));
        let three = [(64 * MIB, 2 * MIB), (8 * GIB, 4 * GIB), (GIB, 128 * MIB)];
        assert_eq!(
            starts(3 * GIB + 2 * MIB, &three),
            Some(vec![5 * GIB, 8 * GIB, 16 * GIB])
        );
    }

    #[test]
    fn pieces_of_ram_follow_one_another_around_the_devices() {
        let range = |gpa, size| RamRange { gpa, size };
        assert_eq!(
            ram_slices(&[GIB, 0, 3 * GIB, GIB]),
            Some(vec![
                vec![range(0, GIB)],
                vec![],
                vec![range(GIB, 2 * GIB), range(4 * GIB, GIB)],
                vec![range(5 * GIB, GIB)],
            ])
        );
        assert_eq!(
            ram_slices(&[3 * GIB, MIB]),
            Some(vec![vec![range(0, 3 * GIB)], vec![range(4 * GIB, MIB)]])
        );
        assert_eq!(ram_slices(&[u64::MAX, 1]), None);
    }

    #[test]
    fn memory_beyond_64_bits_has_no_place() {
        assert_eq!(ram_ranges(u64::MAX), None);
        assert_eq!(region_starts(u64::MAX - GIB, &[(2 * MIB, 2 * MIB)]), None);
        assert_eq!(
            region_starts(GIB, &[(2 * MIB, 2 * MIB), (u64::MAX, 2 * MIB)]),
            None
        );
    }

    #[test]
    fn every_virtio_device_has_registers_and_a_line_of_its_own() {
        let last = VIRTIO_MMIO_MAX - 1;
        assert!(virtio_mmio(last).end <= u64::from(IOAPIC));
        assert!(virtio_gsi(last) < IOAPIC_PINS);
        assert_eq!(virtio_mmio(1).start, virtio_mmio(0).end);
    }
}
