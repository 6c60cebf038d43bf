//! The smallest kernel there is: its first instruction but two says so on the serial port. Any VMM that boots PVH takes it.

/// Where it is loaded and entered.
const ENTRY: u32 = 0x10_0000;
/// What it says.
pub(crate) const SAYS: u8 = b'!';

/// 32-bit code, as PVH enters it: `mov dx, 0x3f8; mov al, '!'; out dx, al; hlt; jmp $-1`.
const CODE: [u8; 10] = [0x66, 0xba, 0xf8, 0x03, 0xb0, SAYS, 0xee, 0xf4, 0xeb, 0xfd];

/// `XEN_ELFNOTE_PHYS32_ENTRY` (Xen's `public/elfnote.h`).
const PHYS32_ENTRY: u32 = 18;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const NOTE_AT: usize = HEADER + 2 * PROGRAM_HEADER;
const NOTE_LEN: usize = 20;
const CODE_AT: usize = 0x1000;

/// An ELF-64 image of it.
pub(crate) fn image() -> Vec<u8> {
    let mut image = vec![0; CODE_AT + CODE.len()];
    image[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // e_type EXEC, e_machine x86-64, e_version.
    put(&mut image, 16, &2u16.to_le_bytes());
    put(&mut image, 18, &62u16.to_le_bytes());
    put(&mut image, 20, &1u32.to_le_bytes());
    put(&mut image, 24, &u64::from(ENTRY).to_le_bytes());
    put(&mut image, 32, &(HEADER as u64).to_le_bytes());
    // e_ehsize, e_phentsize, e_phnum.
    for (at, value) in [(52, HEADER), (54, PROGRAM_HEADER), (56, 2)] {
        put(&mut image, at, &u16::try_from(value).unwrap_or(0).to_le_bytes());
    }
    // PT_LOAD, readable and executable; PT_NOTE, readable.
    program_header(&mut image, HEADER, (1, 5), (CODE_AT, CODE.len()), ENTRY.into());
    program_header(
        &mut image,
        HEADER + PROGRAM_HEADER,
        (4, 4),
        (NOTE_AT, NOTE_LEN),
        0,
    );
    let note = [4, 4, PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0"), ENTRY];
    put(&mut image, NOTE_AT, &note.map(u32::to_le_bytes).concat());
    put(&mut image, CODE_AT, &CODE);
    image
}

fn program_header(image: &mut [u8], at: usize, kind: (u32, u32), place: (usize, usize), gpa: u64) {
    let ((kind, flags), (offset, len)) = (kind, place);
    put(image, at, &kind.to_le_bytes());
    put(image, at + 4, &flags.to_le_bytes());
    for (index, value) in [offset as u64, gpa, gpa, len as u64, len as u64, 4]
        .into_iter()
        .enumerate()
    {
        put(image, at + 8 + 8 * index, &value.to_le_bytes());
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}
