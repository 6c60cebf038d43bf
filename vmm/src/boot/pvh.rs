//! The PVH start info: what an ELF kernel finds in EBX (Xen, public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use super::memory_map::memory_map;
use super::{BootError, BootRam, Initrd};
use crate::machine::layout::{BOOT_INFO, CMDLINE};

/// "xEn3", with the top bit of the first byte set.
pub const MAGIC: u32 = 0x336E_C578;
/// The version with a memory map.
const VERSION: u32 = 1;

/// The list of modules, in the page of the start info.
const MODULES: u64 = BOOT_INFO + 0x40;
/// The memory map, in the same page.
const MEMORY_MAP: u64 = BOOT_INFO + 0x80;
/// Ranges that the map can hold.
const MAX_RANGES: u64 = (0x1000 - 0x80) / size_of::<hvm_memmap_table_entry>() as u64;

const _: () = assert!(size_of::<hvm_start_info>() as u64 <= MODULES - BOOT_INFO);
const _: () = assert!(size_of::<hvm_modlist_entry>() as u64 <= MEMORY_MAP - MODULES);
const _: () = assert!(MAX_RANGES >= 4, "low, reserved, below and above the devices");

/// Writes the start info of a guest with `memory` bytes of boot memory, and returns its address.
///
/// # Errors
/// Guest memory does not reach it.
pub fn write_start_info(
    ram: &BootRam,
    memory: u64,
    rsdp: u64,
    initrd: Option<Initrd>,
) -> Result<u32, BootError> {
    let map = memory_map(memory);
    for (address, entry) in (MEMORY_MAP..)
        .step_by(size_of::<hvm_memmap_table_entry>())
        .zip(&map)
    {
        let entry = hvm_memmap_table_entry {
            addr: entry.gpa,
            size: entry.size,
            type_: entry.range_type as u32,
            reserved: 0,
        };
        ram.write_obj(entry, GuestAddress(address))?;
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.gpa,
            size: initrd.size,
            ..hvm_modlist_entry::default()
        };
        ram.write_obj(module, GuestAddress(MODULES))?;
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: initrd.map_or(0, |_| 1),
        modlist_paddr: initrd.map_or(0, |_| MODULES),
        cmdline_paddr: CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).expect("a handful of ranges"),
        ..hvm_start_info::default()
    };
    ram.write_obj(info, GuestAddress(BOOT_INFO))?;
    Ok(u32::try_from(BOOT_INFO).expect("boot data is below 1 MiB"))
}
