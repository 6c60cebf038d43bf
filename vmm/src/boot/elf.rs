//! ELF images with a PVH note: checked here, so that each fault has its own words, then loaded by `linux-loader`.
//!
//! ELF-64 object file format, version 1.5; the note is `XEN_ELFNOTE_PHYS32_ENTRY` (Xen, elfnote.h).

use std::io::SeekFrom;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::{Elf, PvhBootCapability};

use super::image::{ImageSource, Loaded, bad_image, check_room, truncated, unreadable};
use super::{BootError, BootRam};

/// How an ELF file begins.
pub(super) const MAGIC: [u8; 4] = [0x7F, b'E', b'L', b'F'];

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PVH_NOTE_TYPE: u32 = 18;
const NOTE_HEADER_SIZE: usize = 12;
/// Bytes of notes that are looked at, in each segment of notes.
const MAX_NOTES: u64 = 1 << 20;
/// More program headers than any kernel has: Linux has 5.
const MAX_PROGRAM_HEADERS: u16 = 128;

/// Loads an image of `size` bytes.
pub(super) fn load<F: ImageSource>(
    name: &str,
    image: &mut F,
    size: u64,
    ram: &BootRam,
    memory: u64,
) -> Result<Loaded, BootError> {
    let segments = program_headers(name, image, size)?;
    let bad = bad_image(name);
    // Before anything else that an ordinary program would have wrong.
    if !has_pvh_note(image, &segments).map_err(unreadable(name))? {
        return Err(bad(
            "no PVH note (XEN_ELFNOTE_PHYS32_ENTRY): this ELF image does not say how to boot it".into(),
        ));
    }
    let mut end = 0;
    for segment in segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD && segment.memory_size > 0)
    {
        let what = format!("a segment of {} bytes", segment.memory_size);
        let past = segment
            .gpa
            .saturating_add(segment.memory_size.max(segment.file_size));
        check_room(name, &what, segment.gpa, past, memory)?;
        end = end.max(past);
    }
    if end == 0 {
        return Err(bad("an ELF image with nothing to load".into()));
    }
    let result = Elf::load(ram, None, image, None).map_err(|error| bad(error.to_string()))?;
    match result.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) if (0x10_0000..end).contains(&entry.0) => {
            // The note holds 32 bits, and `end` is below the 4 GiB line.
            let entry = u32::try_from(entry.0).map_err(|_| bad("PVH entry beyond 4 GiB".into()))?;
            Ok(Loaded::Pvh { entry, end })
        }
        PvhBootCapability::PvhEntryPresent(entry) => Err(bad(format!(
            "PVH entry {:#x} is outside the loaded segments, which end at {end:#x}",
            entry.0
        ))),
        other => Err(bad(format!("a broken PVH note: {other}"))),
    }
}

/// A program header, as far as it matters here.
#[derive(Debug, Clone, Copy)]
struct Segment {
    kind: u32,
    offset: u64,
    gpa: u64,
    file_size: u64,
    memory_size: u64,
}

/// Whether a note of the segments is the one that says where to enter. Notes are a name size, a size, a type, then the
/// name and the content, each filled up to a multiple of 4 bytes.
fn has_pvh_note<F: ImageSource>(image: &mut F, segments: &[Segment]) -> std::io::Result<bool> {
    for segment in segments.iter().filter(|segment| segment.kind == PT_NOTE) {
        let mut notes = vec![0; usize::try_from(segment.file_size.min(MAX_NOTES)).unwrap_or(0)];
        read_at(image, segment.offset, &mut notes)?;
        let mut rest = notes.as_slice();
        while let Some((header, body)) = rest.split_at_checked(NOTE_HEADER_SIZE) {
            let [name_size, size, kind] = [0, 4, 8].map(|at| u32_at(header, at));
            if kind == PVH_NOTE_TYPE && name_size == 4 && body.starts_with(b"Xen\0") {
                return Ok(true);
            }
            let padded = u64::from(name_size).next_multiple_of(4) + u64::from(size).next_multiple_of(4);
            rest = usize::try_from(padded)
                .ok()
                .and_then(|padded| body.get(padded..))
                .unwrap_or(&[]);
        }
    }
    Ok(false)
}

fn program_headers<F: ImageSource>(name: &str, image: &mut F, size: u64) -> Result<Vec<Segment>, BootError> {
    let bad = bad_image(name);
    let truncated = truncated(name, size);
    if size < HEADER_SIZE as u64 {
        return Err(truncated("the ELF header", HEADER_SIZE as u64));
    }
    let mut header = [0; HEADER_SIZE];
    read_at(image, 0, &mut header).map_err(unreadable(name))?;
    let machine = u16_at(&header, 18);
    if (header[4], header[5], machine) != (CLASS_64, LITTLE_ENDIAN, MACHINE_X86_64) {
        let found = format!("class {}, byte order {}, machine {machine}", header[4], header[5]);
        return Err(bad(format!(
            "an ELF image of {found}: it must be of class 2, byte order 1, machine 62 (x86-64)"
        )));
    }
    let (table, entry_size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(entry_size) != PROGRAM_HEADER_SIZE || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(bad(format!(
            "{count} program headers of {entry_size} bytes: 1 to {MAX_PROGRAM_HEADERS} of {PROGRAM_HEADER_SIZE} are allowed"
        )));
    }
    let table_end = table.saturating_add(u64::from(count) * PROGRAM_HEADER_SIZE as u64);
    if table_end > size {
        return Err(truncated("the program header table", table_end));
    }
    let mut segments = Vec::with_capacity(count.into());
    for index in 0..u64::from(count) {
        let mut raw = [0; PROGRAM_HEADER_SIZE];
        read_at(image, table + index * PROGRAM_HEADER_SIZE as u64, &mut raw).map_err(unreadable(name))?;
        let kind = u32_at(&raw, 0);
        let (offset, file_size) = (u64_at(&raw, 8), u64_at(&raw, 32));
        let end = offset.saturating_add(file_size);
        if (kind == PT_LOAD || kind == PT_NOTE) && end > size {
            return Err(truncated(&format!("segment {index}"), end));
        }
        segments.push(Segment {
            kind,
            offset,
            gpa: u64_at(&raw, 24),
            file_size,
            memory_size: u64_at(&raw, 40),
        });
    }
    Ok(segments)
}

fn read_at<F: ImageSource>(image: &mut F, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    image.seek(SeekFrom::Start(offset))?;
    image.read_exact(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
