//! The 64-bit Linux boot protocol: `boot_params` (the "zero page"), a GDT and identity-mapping page tables
//! (Documentation/arch/x86/boot.rst and zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestAddress};

use super::memory_map::memory_map;
use super::{BootError, BootRam, Initrd};
use crate::hv::{BootState, GDT};
use crate::machine::layout::{BOOT_GDT, BOOT_INFO, BOOT_PAGE_TABLES, CMDLINE, CMDLINE_MAX, HUGE_PAGE};

/// `type_of_loader` of a boot loader without an assigned number.
const UNDEFINED_LOADER: u8 = 0xFF;

const PRESENT_WRITABLE: u64 = 0b11;
const PAGE_SIZE_BIT: u64 = 1 << 7;
const ENTRIES: u64 = 512;

/// Writes `boot_params` for a kernel whose file has `header`.
///
/// # Errors
/// Guest memory does not reach them.
pub fn write_boot_params(
    ram: &BootRam,
    memory: u64,
    rsdp: u64,
    initrd: Option<Initrd>,
    header: &setup_header,
) -> Result<(), BootError> {
    let low = |gpa: u64| u32::try_from(gpa).expect("the loader places nothing above 4 GiB");
    let mut params = boot_params {
        hdr: *header,
        ..boot_params::default()
    };
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.cmd_line_ptr = low(CMDLINE);
    params.hdr.cmdline_size = u32::try_from(CMDLINE_MAX).expect("a few KiB");
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low(initrd.gpa);
        params.hdr.ramdisk_size = low(initrd.size);
    }
    params.acpi_rsdp_addr = rsdp;
    let map = memory_map(memory);
    params.e820_entries = u8::try_from(map.len()).expect("a handful of ranges");
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.gpa,
            size: entry.size,
            r#type: entry.range_type as u32,
        };
    }
    ram.write_obj(params, GuestAddress(BOOT_INFO))?;
    Ok(())
}

/// Writes the GDT and the page tables, which map the first gibibyte onto itself, and returns the state in which the
/// boot CPU enters the kernel at `entry`.
///
/// # Errors
/// Guest memory does not reach them.
pub fn write_tables(ram: &BootRam, entry: u64) -> Result<BootState, BootError> {
    for (address, descriptor) in (BOOT_GDT..).step_by(size_of::<u64>()).zip(GDT) {
        ram.write_obj(descriptor, GuestAddress(address))?;
    }
    let (pml4, pdpt, directory) = (
        BOOT_PAGE_TABLES,
        BOOT_PAGE_TABLES + 0x1000,
        BOOT_PAGE_TABLES + 0x2000,
    );
    ram.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    ram.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt))?;
    for index in 0..ENTRIES {
        let huge_page = (index * HUGE_PAGE) | PAGE_SIZE_BIT | PRESENT_WRITABLE;
        ram.write_obj(huge_page, GuestAddress(directory + index * 8))?;
    }
    Ok(BootState::Linux64 {
        entry,
        boot_params: BOOT_INFO,
        gdt: BOOT_GDT,
        page_tables: pml4,
    })
}
