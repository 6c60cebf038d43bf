//! Looks through physical memory for stamps of `fill`, by way of `/proc/kcore` (proc(5)): an ELF file whose program
//! headers say where which physical memory is. The kernel gives zeros for pages that are not online. Prints
//! `pages P stamped S nonzero N`, where a page counts as not zero if one of a few of its words is.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::PAGE;
use crate::fill::MAGIC;

/// Bytes read at once.
const CHUNK: usize = 256 * PAGE;

/// Looks at `bytes` bytes from the physical `address` on.
pub(crate) fn find(address: usize, bytes: usize) -> Result<(), String> {
    let file = File::open("/proc/kcore").map_err(|error| format!("/proc/kcore: {error}"))?;
    let mut headers = vec![0; 1 << 16];
    let read = file
        .read_at(&mut headers, 0)
        .map_err(|error| format!("/proc/kcore: {error}"))?;
    let segments = segments(&headers[..read]).ok_or("/proc/kcore is no ELF file with program headers")?;
    let (mut pages, mut counts) = (0, Counts::default());
    let mut chunk = vec![0; CHUNK];
    for at in (address..address + bytes).step_by(CHUNK) {
        let part = &mut chunk[..CHUNK.min(address + bytes - at)];
        let offset = offset_of(&segments, at as u64, part.len() as u64)
            .ok_or_else(|| format!("physical address {at:#x} is not in /proc/kcore"))?;
        file.read_exact_at(part, offset)
            .map_err(|error| format!("/proc/kcore at {at:#x}: {error}"))?;
        pages += part.len() / PAGE;
        part.chunks_exact(PAGE).for_each(|page| counts.add(page));
    }
    println!(
        "pages {pages} stamped {} nonzero {}",
        counts.stamped, counts.nonzero
    );
    Ok(())
}

#[derive(Default)]
struct Counts {
    stamped: usize,
    nonzero: usize,
}

impl Counts {
    fn add(&mut self, page: &[u8]) {
        self.stamped += usize::from(page[..8] == MAGIC.to_le_bytes());
        // One word of each cache line but the last is enough to tell, and costs an emulated processor little.
        self.nonzero += usize::from(page.chunks(64).any(|line| line[..8] != [0; 8]));
    }
}

/// Part of the file: physical memory from `physical` on, `size` bytes at `offset`.
#[derive(Debug, PartialEq)]
struct Segment {
    physical: u64,
    size: u64,
    offset: u64,
}

fn offset_of(segments: &[Segment], address: u64, bytes: u64) -> Option<u64> {
    let holds =
        |it: &&Segment| address >= it.physical && address + bytes <= it.physical.saturating_add(it.size);
    let segment = segments.iter().find(holds)?;
    Some(segment.offset + (address - segment.physical))
}

/// The loadable segments of a 64-bit ELF file (elf(5)) whose physical address is known.
fn segments(file: &[u8]) -> Option<Vec<Segment>> {
    const PT_LOAD: u64 = 1;
    let number = |at: usize, bytes: usize| -> Option<u64> {
        let field = file.get(at..at + bytes)?;
        Some(
            field
                .iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte)),
        )
    };
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    let mut found = Vec::new();
    for index in 0..count {
        let at = usize::try_from(table + index * size).ok()?;
        let segment = Segment {
            physical: number(at + 24, 8)?,
            size: number(at + 40, 8)?,
            offset: number(at + 8, 8)?,
        };
        // What is not physical memory has an address of all ones, or 0.
        if number(at, 4)? == PT_LOAD && segment.physical.wrapping_add(1) > 1 {
            found.push(segment);
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn physical_memory_is_found_by_the_program_headers() {
        let mut file = vec![0; 64 + 2 * 56];
        file[32] = 64;
        file[54] = 56;
        file[56] = 2;
        for (at, physical) in [(64, u64::MAX), (64 + 56, 0x1000)] {
            file[at] = 1;
            file[at + 8..at + 16].copy_from_slice(&0x700_u64.to_le_bytes());
            file[at + 24..at + 32].copy_from_slice(&physical.to_le_bytes());
            file[at + 40..at + 48].copy_from_slice(&0x2000_u64.to_le_bytes());
        }
        let segments = segments(&file).unwrap();
        assert_eq!(segments.len(), 1);
        assert_eq!(offset_of(&segments, 0x2000, 0x1000), Some(0x1700));
        assert_eq!(offset_of(&segments, 0x2000, 0x1001), None);
        assert_eq!(offset_of(&segments, 0xfff, 1), None);
    }

    #[test]
    fn a_stamp_anywhere_else_than_at_the_beginning_only_counts_as_not_zero() {
        let mut counts = Counts::default();
        let mut page = vec![0; PAGE];
        counts.add(&page);
        assert_eq!((counts.stamped, counts.nonzero), (0, 0));
        page[64..72].copy_from_slice(&MAGIC.to_le_bytes());
        counts.add(&page);
        assert_eq!((counts.stamped, counts.nonzero), (0, 1));
        page[..8].copy_from_slice(&MAGIC.to_le_bytes());
        counts.add(&page);
        assert_eq!((counts.stamped, counts.nonzero), (1, 2));
    }
}
