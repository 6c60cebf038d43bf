//! Payloads, right and wrong: what is loaded where, and which one line a wrong file ends with.

use std::io::Write;

use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::machine::layout::{BOOT_INFO, CMDLINE, MIB, ram_ranges};
use crate::memory::GuestRam;
use crate::spec::Backing;

const MEMORY: u64 = 64 * MIB;
const ENTRY: u32 = 0x20_0010;
const RSDP: u64 = 0xE_0000;

fn ram() -> GuestRam {
    GuestRam::new(&ram_ranges(MEMORY).unwrap(), Backing::Anonymous, &[]).unwrap()
}

/// An ELF image with one segment at 2 MiB, whose first bytes are a PVH note.
fn elf() -> Vec<u8> {
    let mut image = vec![0; 64 + 2 * 56];
    image[..4].copy_from_slice(b"\x7fELF");
    (image[4], image[5], image[6]) = (2, 1, 1);
    put(&mut image, 16, &2u16.to_le_bytes());
    put(&mut image, 18, &62u16.to_le_bytes());
    put(&mut image, 24, &0x20_0000u64.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 54, &56u16.to_le_bytes());
    put(&mut image, 56, &2u16.to_le_bytes());
    let offset = image.len() as u64;
    for (at, kind, size) in [(64, 1u32, 0x40u64), (64 + 56, 4, 20)] {
        put(&mut image, at, &kind.to_le_bytes());
        put(&mut image, at + 8, &offset.to_le_bytes());
        put(&mut image, at + 24, &0x20_0000u64.to_le_bytes());
        put(&mut image, at + 32, &size.to_le_bytes());
        put(&mut image, at + 40, &size.to_le_bytes());
    }
    for word in [4u32, 4, 18] {
        image.extend(word.to_le_bytes());
    }
    image.extend(b"Xen\0");
    image.extend(ENTRY.to_le_bytes());
    image.resize(usize::try_from(offset).unwrap() + 0x40, 0x90);
    image
}

/// A bzImage that wants 4 MiB at 16 MiB, with 512 bytes of code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024 + 512];
    image[0x1F1] = 1;
    put(&mut image, 0x1F4, &32u32.to_le_bytes());
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x020Fu16.to_le_bytes());
    image[0x211] = 1;
    put(&mut image, 0x22C, &0x7FFF_FFFFu32.to_le_bytes());
    put(&mut image, 0x236, &1u16.to_le_bytes());
    put(&mut image, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut image, 0x260, &(4u32 << 20).to_le_bytes());
    image[1024..].fill(0xCC);
    image
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn file(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn load(image: &[u8], initrd: Option<&[u8]>) -> Result<(GuestRam, BootState), BootError> {
    let ram = ram();
    let kernel = KernelImage::open(file(image).path())?;
    let initrd = initrd
        .map(|bytes| InitrdFile::open(file(bytes).path()))
        .transpose()?;
    let cmdline = CommandLine::for_kernel("console=ttyS0")?;
    let state = Payload {
        kernel,
        initrd,
        cmdline,
    }
    .load(ram.boot_view(), MEMORY, RSDP)?;
    Ok((ram, state))
}

fn fault(image: &[u8]) -> String {
    let text = load(image, None).unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn an_elf_image_starts_where_its_note_says() {
    let (ram, state) = load(&elf(), None).unwrap();
    assert_eq!(
        state,
        BootState::Pvh {
            entry: ENTRY,
            start_info: 0x6000
        }
    );
    assert_eq!(
        ram.boot_view().read_obj::<u8>(GuestAddress(0x20_003F)).unwrap(),
        0x90
    );
    let mut line = [0; 14];
    ram.boot_view()
        .read_slice(&mut line, GuestAddress(CMDLINE))
        .unwrap();
    assert_eq!(&line, b"console=ttyS0\0");
}

#[test]
fn the_start_info_is_as_xen_lays_it_out() {
    let (ram, _) = load(&elf(), Some(&[7; 5000])).unwrap();
    let mut info = [0u8; 0x80 + 3 * 24];
    ram.boot_view()
        .read_slice(&mut info, GuestAddress(BOOT_INFO))
        .unwrap();
    let initrd = MEMORY - 8192;
    let mut golden = Vec::new();
    for word in [0x336E_C578u32, 1, 0, 1] {
        golden.extend(word.to_le_bytes());
    }
    for word in [0x6040u64, 0x2_0000, 0xE_0000, 0x6080, 3] {
        golden.extend(word.to_le_bytes());
    }
    assert_eq!(info[..56], golden, "hvm_start_info");
    let module: Vec<u8> = [initrd, 5000, 0, 0]
        .iter()
        .flat_map(|word: &u64| word.to_le_bytes())
        .collect();
    assert_eq!(info[0x40..0x60], module, "hvm_modlist_entry");
    let map: Vec<u64> = info[0x80..]
        .chunks(8)
        .map(|word| u64::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(
        map,
        [
            0,
            0x9_FC00,
            1,
            0x9_FC00,
            0x6_0400,
            2,
            0x10_0000,
            MEMORY - 0x10_0000,
            1
        ]
    );
    assert_eq!(
        ram.boot_view()
            .read_obj::<u8>(GuestAddress(initrd + 4999))
            .unwrap(),
        7
    );
}

#[test]
fn a_bzimage_starts_in_long_mode_with_its_parameters() {
    let (ram, state) = load(&bzimage(), Some(&[9; 100])).unwrap();
    let BootState::Linux64 {
        entry, boot_params, ..
    } = state
    else {
        panic!("{state:?}")
    };
    assert_eq!((entry, boot_params), (16 * MIB + 0x200, BOOT_INFO));
    let view = ram.boot_view();
    assert_eq!(view.read_obj::<u8>(GuestAddress(16 * MIB)).unwrap(), 0xCC);
    let word = |at: u64| view.read_obj::<u32>(GuestAddress(BOOT_INFO + at)).unwrap();
    assert_eq!(word(0x70), 0xE_0000, "acpi_rsdp_addr");
    assert_eq!(
        word(0x218),
        u32::try_from(MEMORY - 4096).unwrap(),
        "ramdisk_image"
    );
    assert_eq!(word(0x21C), 100, "ramdisk_size");
    assert_eq!(word(0x228), 0x2_0000, "cmd_line_ptr");
    assert_eq!(
        view.read_obj::<u8>(GuestAddress(BOOT_INFO + 0x210)).unwrap(),
        0xFF,
        "type_of_loader"
    );
    assert_eq!(
        view.read_obj::<u8>(GuestAddress(BOOT_INFO + 0x1E8)).unwrap(),
        3,
        "e820_entries"
    );
    // The second e820 entry: 20 bytes each, packed.
    assert_eq!((word(0x2D0 + 20), word(0x2D0 + 20 + 16)), (0x9_FC00, 2));
    // The last page-directory entry maps the last 2 MiB of the first gibibyte onto themselves.
    assert_eq!(
        view.read_obj::<u64>(GuestAddress(0xB000 + 511 * 8)).unwrap(),
        0x3FE0_0083
    );
}

#[test]
fn what_is_no_kernel_is_refused_by_its_first_bytes() {
    assert!(fault(b"").contains("begins with nothing: the file is empty"));
    assert!(fault(b"#!/bin/sh\n").contains("begins with 23 21 2f 62"));
    let missing = KernelImage::open(std::path::Path::new("/nonexistent/kernel")).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("/nonexistent/kernel: No such file"),
        "{missing}"
    );
    let folder = KernelImage::open(std::path::Path::new("/")).unwrap_err();
    assert!(
        folder
            .to_string()
            .ends_with("is a directory: a kernel must be a regular file"),
        "{folder}"
    );
}

#[test]
fn an_elf_image_cut_anywhere_is_truncated() {
    let image = elf();
    for len in 4..image.len() {
        let text = fault(&image[..len]);
        assert!(
            text.contains("truncated") && text.ends_with(&format!("the file at byte {len}")),
            "{len}: {text}"
        );
    }
}

#[test]
fn an_elf_image_without_a_pvh_note_is_named_so() {
    let mut image = elf();
    put(&mut image, 64 + 56, &0u32.to_le_bytes());
    assert!(fault(&image).contains("no PVH note (XEN_ELFNOTE_PHYS32_ENTRY)"));
    let mut image = elf();
    put(&mut image, 64 + 2 * 56 + 8, &17u32.to_le_bytes());
    assert!(fault(&image).contains("no PVH note"));
}

#[test]
fn an_ordinary_program_lacks_first_of_all_the_note() {
    let program = std::env::current_exe().unwrap();
    let mut payload = Payload {
        kernel: KernelImage::open(&program).unwrap(),
        initrd: None,
        cmdline: CommandLine::for_kernel("").unwrap(),
    };
    let error = payload.load(ram().boot_view(), MEMORY, RSDP).unwrap_err();
    assert!(error.to_string().contains("no PVH note"), "{error}");
}

#[test]
fn a_jump_to_the_firmware_is_a_reset() {
    let (ram, _) = load(&elf(), None).unwrap();
    let code: [u8; 7] = ram.boot_view().read_obj(GuestAddress(0xF_FFF0)).unwrap();
    assert_eq!(code, [0xB0, 0xFE, 0xE6, 0x64, 0xF4, 0xEB, 0xFD]);
}

#[test]
fn an_elf_image_for_another_machine_is_refused() {
    let mut image = elf();
    put(&mut image, 18, &183u16.to_le_bytes());
    assert!(fault(&image).contains("machine 183"));
    let mut image = elf();
    image[4] = 1;
    assert!(fault(&image).contains("class 1"));
}

#[test]
fn an_elf_image_that_does_not_fit_is_refused() {
    for gpa in [MEMORY - 0x20, 0xF_F000, u64::MAX - 8, 1 << 40] {
        let mut image = elf();
        put(&mut image, 64 + 24, &gpa.to_le_bytes());
        let text = fault(&image);
        assert!(
            text.contains("does not fit in memory") && text.contains("0x100000..0x4000000"),
            "{text}"
        );
    }
}

#[test]
fn a_pvh_entry_outside_the_image_is_refused() {
    let mut image = elf();
    put(&mut image, 64 + 2 * 56 + 16, &0x30_0000u32.to_le_bytes());
    assert!(fault(&image).contains("PVH entry 0x300000 is outside"));
}

#[test]
fn a_bzimage_cut_short_is_truncated() {
    let image = bzimage();
    for len in [0x206, 0x267, 1024, 1024 + 496] {
        assert!(fault(&image[..len]).contains("truncated"), "{len}");
    }
}

#[test]
fn a_bzimage_too_old_or_without_a_64_bit_entry_is_refused() {
    let mut image = bzimage();
    put(&mut image, 0x206, &0x0204u16.to_le_bytes());
    assert!(fault(&image).contains("boot protocol 0x0204"));
    let mut image = bzimage();
    image[0x236] = 0;
    assert!(fault(&image).contains("xloadflags 0x0"));
}

#[test]
fn a_bzimage_that_needs_more_memory_than_there_is_is_refused() {
    let mut image = bzimage();
    put(&mut image, 0x260, &(60u32 << 20).to_le_bytes());
    assert!(fault(&image).contains("does not fit in memory: the kernel needs 0x1000000..0x4c00000"));
}

#[test]
fn an_initrd_that_does_not_fit_behind_the_kernel_is_refused() {
    let ram = ram();
    let kernel = KernelImage::open(file(&bzimage()).path()).unwrap();
    let large = tempfile::NamedTempFile::new().unwrap();
    large.as_file().set_len(44 * MIB + 1).unwrap();
    let initrd = Some(InitrdFile::open(large.path()).unwrap());
    let mut payload = Payload {
        kernel,
        initrd,
        cmdline: CommandLine::for_kernel("").unwrap(),
    };
    let error = payload.load(ram.boot_view(), MEMORY, RSDP).unwrap_err();
    assert!(
        error.to_string().contains("initial RAM disk of 46137345 bytes"),
        "{error}"
    );
    assert!(
        InitrdFile::open(file(b"").path())
            .unwrap_err()
            .to_string()
            .contains("not empty")
    );
}
