//! What a PVH boot hands over: `hvm_start_info` (Xen `public/arch-x86/hvm/start_info.h`), version 1.

use crate::physical::{PhysicalBytes, Unreadable};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// Bytes in an entry of the memory map.
const MEMMAP_ENTRY_SIZE: u64 = 24;
/// Most entries of a memory map that are looked at.
const MAX_MEMMAP_ENTRIES: u32 = 128;
/// Longest command line that is read, in bytes.
const MAX_COMMAND_LINE: u64 = 16 << 10;

/// The parts of the start information that this guest uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BootInfo {
    /// The kernel command line; empty if there is none.
    pub command_line: String,
    /// Physical address of the ACPI root pointer, if there is one.
    pub rsdp: Option<u64>,
    /// The memory map, in the VMM's order.
    pub memory_map: Vec<MemoryRange>,
}

/// A range of physical addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What is there.
    pub kind: MemoryKind,
}

/// What lies in a range of the memory map (E820 types).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemoryKind {
    /// Type 1: memory for us.
    Ram,
    /// Any other type: not ours. The raw type.
    Reserved(u32),
}

impl BootInfo {
    /// Reads the start information at `gpa` and everything it points to.
    ///
    /// # Errors
    /// If it is not start information of version 1 or later, or points to something that cannot be read.
    pub fn read(memory: &impl PhysicalBytes, gpa: u64) -> Result<Self, PvhError> {
        let magic = memory.read_u32(gpa)?;
        if magic != MAGIC {
            return Err(PvhError::Magic(magic));
        }
        let version = memory.read_u32(gpa + 4)?;
        if version < 1 {
            return Err(PvhError::Version(version));
        }
        let command_line = match memory.read_u64(gpa + 24)? {
            0 => String::new(),
            at => read_string(memory, at)?,
        };
        let rsdp = Some(memory.read_u64(gpa + 32)?).filter(|&address| address != 0);
        let memory_map = read_memory_map(memory, memory.read_u64(gpa + 40)?, memory.read_u32(gpa + 48)?)?;
        Ok(Self {
            command_line,
            rsdp,
            memory_map,
        })
    }
}

fn read_memory_map(memory: &impl PhysicalBytes, gpa: u64, count: u32) -> Result<Vec<MemoryRange>, PvhError> {
    (0..u64::from(count.min(MAX_MEMMAP_ENTRIES)))
        .map(|index| {
            let entry = gpa.saturating_add(index * MEMMAP_ENTRY_SIZE);
            let start = memory.read_u64(entry)?;
            let len = memory.read_u64(entry + 8)?;
            let kind = match memory.read_u32(entry + 16)? {
                1 => MemoryKind::Ram,
                other => MemoryKind::Reserved(other),
            };
            let len = len.min(u64::MAX - start);
            Ok(MemoryRange { start, len, kind })
        })
        .collect()
}

/// The bytes up to the first zero; those that are not UTF-8 become replacement characters.
fn read_string(memory: &impl PhysicalBytes, gpa: u64) -> Result<String, PvhError> {
    let mut bytes = Vec::new();
    for offset in 0..MAX_COMMAND_LINE {
        match memory.read_array::<1>(gpa.saturating_add(offset))? {
            [0] => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            [byte] => bytes.push(byte),
        }
    }
    Err(PvhError::CommandLineTooLong)
}

/// Why the start information is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PvhError {
    /// It does not start with the magic number but with this one.
    Magic(u32),
    /// It has this version, which knows no memory map.
    Version(u32),
    /// The command line does not end within 16 KiB.
    CommandLineTooLong,
    /// Part of it cannot be read.
    Unreadable(Unreadable),
}

impl From<Unreadable> for PvhError {
    fn from(error: Unreadable) -> Self {
        Self::Unreadable(error)
    }
}

impl fmt::Display for PvhError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic(magic) => write!(f, "start information begins with {magic:#x}, not {MAGIC:#x}"),
            Self::Version(version) => write!(
                f,
                "start information has version {version}, which has no memory map"
            ),
            Self::CommandLineTooLong => write!(f, "command line longer than {MAX_COMMAND_LINE} bytes"),
            Self::Unreadable(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for PvhError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::Image;

    fn image() -> Image {
        let mut bytes = std::vec![0; 4096];
        let mut put = |at: usize, with: &[u8]| bytes[at..at + with.len()].copy_from_slice(with);
        put(0, &MAGIC.to_le_bytes());
        put(4, &1_u32.to_le_bytes());
        put(24, &0x1100_u64.to_le_bytes());
        put(32, &0xe0000_u64.to_le_bytes());
        put(40, &0x1200_u64.to_le_bytes());
        put(48, &2_u32.to_le_bytes());
        put(0x100, b"quiet a=b\0");
        for (at, start, len, kind) in [(0x200, 0_u64, 0x9f000_u64, 1_u32), (0x218, 0xe0000, u64::MAX, 2)] {
            put(at, &start.to_le_bytes());
            put(at + 8, &len.to_le_bytes());
            put(at + 16, &kind.to_le_bytes());
        }
        Image { base: 0x1000, bytes }
    }

    #[test]
    fn command_line_rsdp_and_memory_map_are_found() {
        let info = BootInfo::read(&image(), 0x1000).unwrap();
        assert_eq!(info.command_line, "quiet a=b");
        assert_eq!(info.rsdp, Some(0xe0000));
        assert_eq!(
            info.memory_map[0],
            MemoryRange {
                start: 0,
                len: 0x9f000,
                kind: MemoryKind::Ram
            }
        );
    }

    #[test]
    fn a_range_never_wraps() {
        let info = BootInfo::read(&image(), 0x1000).unwrap();
        assert_eq!(
            info.memory_map[1].start.checked_add(info.memory_map[1].len),
            Some(u64::MAX)
        );
    }

    #[test]
    fn a_wrong_magic_number_is_named() {
        let mut image = image();
        image.bytes[0] = 0;
        assert_eq!(BootInfo::read(&image, 0x1000), Err(PvhError::Magic(0x336e_c500)));
    }

    #[test]
    fn version_0_is_refused() {
        let mut image = image();
        image.bytes[4] = 0;
        assert_eq!(BootInfo::read(&image, 0x1000), Err(PvhError::Version(0)));
    }

    #[test]
    fn a_command_line_without_an_end_is_refused() {
        let mut image = image();
        image.bytes[0x100..].fill(b'x');
        assert!(matches!(
            BootInfo::read(&image, 0x1000),
            Err(PvhError::Unreadable(_))
        ));
    }
}
