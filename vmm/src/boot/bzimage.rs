//! bzImages: checked here, so that each fault has its own words, then loaded by `linux-loader`.
//!
//! Documentation/arch/x86/boot.rst; the fields are those of the setup header at 0x1f1.

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use vm_memory::GuestAddress;

use super::image::{ImageSource, Loaded, bad_image, check_room, truncated};
use super::{BootError, BootRam};

/// How much of a file must be looked at to recognise and check it.
pub(super) const HEADER_END: usize = 0x268;

/// Where the setup header's magic number is, and what it is.
const MAGIC_AT: usize = 0x202;
const MAGIC: &[u8; 4] = b"HdrS";
/// The protocol with `xloadflags`, `pref_address` and `init_size` (Linux 3.8).
const MIN_VERSION: u16 = 0x020C;
/// `loadflags`: the protected-mode code is loaded at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry point at [`ENTRY_64_OFFSET`].
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;
/// What the boot page tables map.
const MAPPED: u64 = 1 << 30;

/// Whether `start`, the first bytes of a file, is how a bzImage begins.
pub(super) fn is_bzimage(start: &[u8]) -> bool {
    start.get(MAGIC_AT..MAGIC_AT + MAGIC.len()) == Some(MAGIC)
}

/// Loads an image of `size` bytes at the address it prefers.
pub(super) fn load<F: ImageSource>(
    name: &str,
    image: &mut F,
    size: u64,
    ram: &BootRam,
    memory: u64,
) -> Result<Loaded, BootError> {
    let header = check_header(name, image, size)?;
    let start = header.start;
    let end = start.saturating_add(header.needs);
    check_room(name, "the kernel", start, end, memory)?;
    let bad = bad_image(name);
    if end > MAPPED {
        return Err(bad(format!(
            "wants {start:#x}..{end:#x}: a bzImage must lie in the first gibibyte"
        )));
    }
    let result =
        BzImage::load(ram, Some(GuestAddress(start)), image, None).map_err(|error| bad(error.to_string()))?;
    let header = result.setup_header.ok_or_else(|| bad("no setup header".into()))?;
    Ok(Loaded::Linux {
        entry: start + ENTRY_64_OFFSET,
        end,
        header: Box::new(header),
    })
}

/// What the header says about memory.
struct Wants {
    /// Where the kernel prefers to be.
    start: u64,
    /// Bytes from there that it uses before it knows its memory map.
    needs: u64,
}

fn check_header<F: ImageSource>(name: &str, image: &mut F, size: u64) -> Result<Wants, BootError> {
    let bad = bad_image(name);
    let truncated = truncated(name, size);
    if size < HEADER_END as u64 {
        return Err(truncated("the setup header", HEADER_END as u64));
    }
    let mut header = [0; HEADER_END];
    image.rewind().map_err(super::image::unreadable(name))?;
    image
        .read_exact(&mut header)
        .map_err(super::image::unreadable(name))?;
    let version = u16::from_le_bytes([header[0x206], header[0x207]]);
    let xloadflags = u16::from_le_bytes([header[0x236], header[0x237]]);
    if version < MIN_VERSION || header[0x211] & LOADED_HIGH == 0 || xloadflags & XLF_KERNEL_64 == 0 {
        let flags = format!("loadflags {:#x}, xloadflags {xloadflags:#x}", header[0x211]);
        return Err(bad(format!(
            "a bzImage of boot protocol {version:#06x}, {flags}: 0x020c or later, loaded high, with a 64-bit entry is needed"
        )));
    }
    let setup_sectors = match header[0x1F1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    // `syssize` counts paragraphs of 16 bytes, the last one perhaps not full.
    let paragraphs = u64::from(u32_at(&header, 0x1F4));
    let end = (setup_sectors + 1) * 512 + (paragraphs * 16).saturating_sub(15);
    if end > size {
        return Err(truncated("the kernel", end));
    }
    let start = u64::from(u32_at(&header, 0x258)) | u64::from(u32_at(&header, 0x25C)) << 32;
    let needs = u64::from(u32_at(&header, 0x260)).max(size);
    Ok(Wants { start, needs })
}

fn u32_at(header: &[u8; HEADER_END], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}
