//! Static ELF executables for x86-64 (System V ABI, gABI chapters 4 and 5): where their segments go.

use core::fmt;
use core::ops::Range;

/// Bytes of the file header and of a program header.
const FILE_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const PT_LOAD: u32 = 1;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PF_X: u32 = 1;
const PF_W: u32 = 2;

/// A checked executable: every segment's bytes are in the file, and its addresses are among those of programs.
#[derive(Clone, Copy, Debug)]
pub struct Executable<'a> {
    /// All of the file, or its first part.
    file: &'a [u8],
    entry: u64,
    headers: &'a [u8],
}

/// What may be done with a segment's memory, besides reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SegmentKind {
    /// `R`.
    Constants,
    /// `R E`.
    Code,
    /// `RW`.
    Data,
}

/// A part of the program's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment<'a> {
    /// Virtual address of the first byte.
    pub address: u64,
    /// Bytes that it takes in memory; those beyond `bytes` are zero.
    pub size: u64,
    /// What it starts with: nothing if only the first part of the file is known.
    pub bytes: &'a [u8],
    /// Where in the file that is.
    pub offset: u64,
    /// Bytes of the file.
    pub file_size: u64,
    /// Its rights.
    pub kind: SegmentKind,
}

impl<'a> Executable<'a> {
    /// Checks a file whose segments must lie within `addresses`.
    ///
    /// # Errors
    /// If it is no such executable.
    pub fn parse(file: &'a [u8], addresses: Range<u64>) -> Result<Self, ElfError> {
        Self::parse_head(file, file.len() as u64, addresses)
    }

    /// The same for the first part of a file of `len` bytes, in which all headers are.
    ///
    /// # Errors
    /// As there.
    pub fn parse_head(file: &'a [u8], len: u64, addresses: Range<u64>) -> Result<Self, ElfError> {
        let header = file.get(..FILE_HEADER).ok_or(ElfError::Truncated)?;
        // 64-bit, little-endian, version 1.
        if !header.starts_with(b"\x7fELF\x02\x01\x01") {
            return Err(ElfError::NotElf64);
        }
        if (u16_at(header, 16), u16_at(header, 18)) != (ET_EXEC, EM_X86_64) {
            return Err(ElfError::NotStaticX86);
        }
        let entry = u64_at(header, 24);
        let start = usize::try_from(u64_at(header, 32)).map_err(|_| ElfError::Truncated)?;
        if usize::from(u16_at(header, 54)) != PROGRAM_HEADER {
            return Err(ElfError::NotElf64);
        }
        let table = usize::from(u16_at(header, 56)) * PROGRAM_HEADER;
        let end = start.checked_add(table).ok_or(ElfError::Truncated)?;
        let headers = file.get(start..end).ok_or(ElfError::Truncated)?;
        let executable = Self { file, entry, headers };
        for header in headers
            .chunks_exact(PROGRAM_HEADER)
            .filter(|header| u32_at(header, 0) == PT_LOAD)
        {
            check_segment(len, header, &addresses)?;
        }
        let is_code = |segment: Segment<'_>| {
            segment.kind == SegmentKind::Code
                && (segment.address..segment.address + segment.size).contains(&entry)
        };
        if !executable.segments().any(is_code) {
            return Err(ElfError::Entry(entry));
        }
        Ok(executable)
    }

    /// Where it starts.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The parts of its memory.
    pub fn segments(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let file = self.file;
        let headers = self.headers.chunks_exact(PROGRAM_HEADER);
        headers
            .filter(|header| u32_at(header, 0) == PT_LOAD)
            .map(move |header| {
                let flags = u32_at(header, 4);
                Segment {
                    address: u64_at(header, 16),
                    size: u64_at(header, 40),
                    bytes: file_part(file, header).unwrap_or_default(),
                    offset: u64_at(header, 8),
                    file_size: u64_at(header, 32),
                    kind: match (flags & PF_X != 0, flags & PF_W != 0) {
                        (true, _) => SegmentKind::Code,
                        (false, true) => SegmentKind::Data,
                        (false, false) => SegmentKind::Constants,
                    },
                }
            })
    }
}

fn check_segment(len: u64, header: &[u8], addresses: &Range<u64>) -> Result<(), ElfError> {
    let (offset, file_size) = (u64_at(header, 8), u64_at(header, 32));
    let end = offset.checked_add(file_size).filter(|end| *end <= len);
    end.ok_or(ElfError::Truncated)?;
    let (address, size) = (u64_at(header, 16), u64_at(header, 40));
    let end = address.checked_add(size).ok_or(ElfError::Address(address))?;
    if address < addresses.start || end > addresses.end || file_size > size {
        return Err(ElfError::Address(address));
    }
    if u32_at(header, 4) & (PF_X | PF_W) == PF_X | PF_W {
        return Err(ElfError::WritableCode(address));
    }
    Ok(())
}

fn file_part<'a>(file: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let start = usize::try_from(u64_at(header, 8)).ok()?;
    let len = usize::try_from(u64_at(header, 32)).ok()?;
    file.get(start..start.checked_add(len)?)
}

fn u16_at(header: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([header[offset], header[offset + 1]])
}

fn u32_at(header: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(header, offset)) | u32::from(u16_at(header, offset + 2)) << 16
}

fn u64_at(header: &[u8], offset: usize) -> u64 {
    u64::from(u32_at(header, offset)) | u64::from(u32_at(header, offset + 4)) << 32
}

/// Why a file cannot be run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ElfError {
    /// The file ends before what its headers name.
    Truncated,
    /// Not a 64-bit little-endian ELF file.
    NotElf64,
    /// Not an executable at fixed addresses for x86-64.
    NotStaticX86,
    /// A segment at this address is not within a program's addresses, or has more bytes than room.
    Address(u64),
    /// A segment at this address is both writable and executable.
    WritableCode(u64),
    /// The entry point is not in a segment of code.
    Entry(u64),
}

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("truncated executable"),
            Self::NotElf64 => f.write_str("not a 64-bit ELF file"),
            Self::NotStaticX86 => f.write_str("not a static executable for x86-64"),
            Self::Address(address) => write!(f, "segment at {address:#x} is out of bounds"),
            Self::WritableCode(address) => write!(f, "segment at {address:#x} is writable and executable"),
            Self::Entry(entry) => write!(f, "entry point {entry:#x} is not in the code"),
        }
    }
}

impl core::error::Error for ElfError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    const ADDRESSES: Range<u64> = 0x40_0000..0x100_0000;

    fn executable(address: u64, flags: u32) -> Vec<u8> {
        let mut file = std::vec![0; FILE_HEADER];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..18].copy_from_slice(&ET_EXEC.to_le_bytes());
        file[18..20].copy_from_slice(&EM_X86_64.to_le_bytes());
        file[24..32].copy_from_slice(&0x40_0004_u64.to_le_bytes());
        file[32..40].copy_from_slice(&64_u64.to_le_bytes());
        file[54..56].copy_from_slice(&56_u16.to_le_bytes());
        file[56..58].copy_from_slice(&1_u16.to_le_bytes());
        file.extend(1_u32.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for number in [120_u64, address, address, 8, 0x2000, 4096] {
            file.extend(number.to_le_bytes());
        }
        file.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        file
    }

    #[test]
    fn segments_and_entry_are_found() {
        let file = executable(0x40_0000, PF_X | 4);
        let executable = Executable::parse(&file, ADDRESSES).unwrap();
        assert_eq!(executable.entry(), 0x40_0004);
        let segments: Vec<_> = executable.segments().collect();
        let bytes = &[1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(
            segments,
            [Segment {
                address: 0x40_0000,
                size: 0x2000,
                bytes,
                offset: 120,
                file_size: 8,
                kind: SegmentKind::Code
            }]
        );
    }

    #[test]
    fn headers_are_enough_if_the_file_is_as_long_as_they_say() {
        let file = executable(0x40_0000, PF_X | 4);
        let head = &file[..120];
        let executable = Executable::parse_head(head, file.len() as u64, ADDRESSES).unwrap();
        let segment = executable.segments().next().unwrap();
        assert_eq!(
            (segment.offset, segment.file_size, segment.bytes),
            (120, 8, &[][..])
        );
        let short = Executable::parse_head(head, file.len() as u64 - 1, ADDRESSES);
        assert_eq!(short.unwrap_err(), ElfError::Truncated);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = executable(0x40_0000, PF_X | 4);
        for len in 0..file.len() {
            assert!(Executable::parse(&file[..len], ADDRESSES).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn segments_outside_a_programs_addresses_are_refused() {
        for address in [0x20_0000, 0x3f_f000, 0xff_f000, u64::MAX - 0x1000] {
            let file = executable(address, PF_X | 4);
            assert_eq!(
                Executable::parse(&file, ADDRESSES).unwrap_err(),
                ElfError::Address(address)
            );
        }
    }

    #[test]
    fn rights_that_make_no_sense_are_refused() {
        let both = executable(0x40_0000, PF_X | PF_W);
        assert_eq!(
            Executable::parse(&both, ADDRESSES).unwrap_err(),
            ElfError::WritableCode(0x40_0000)
        );
        let data = executable(0x40_0000, PF_W);
        assert_eq!(
            Executable::parse(&data, ADDRESSES).unwrap_err(),
            ElfError::Entry(0x40_0004)
        );
    }
}
