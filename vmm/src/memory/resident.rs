//! How much host memory a VM really uses, by the kernel's own account: of anonymous memory and of the VMM itself
//! `/proc/self/smaps` (proc(5)), which is per mapping, of memory in a file the blocks that the file holds (a page of it
//! stays when no mapping shows it any more).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;

use super::{GuestRam, MemoryError};

const SMAPS: &str = "/proc/self/smaps";

/// Resident memory of this process, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resident {
    /// Of the guest's memory.
    pub guest_bytes: u64,
    /// Of everything else: the VMM's program text, heap and stacks.
    pub vmm_bytes: u64,
}

impl Resident {
    /// Measures now.
    ///
    /// # Errors
    /// `/proc` is not mounted or not readable.
    pub fn measure(ram: &GuestRam) -> Result<Self, MemoryError> {
        let (mut anonymous, mut files) = (Vec::new(), Vec::new());
        let mut file_bytes = 0;
        for mapping in ram.mappings() {
            let hva = mapping.as_ptr() as u64;
            let range = hva..hva + mapping.len() as u64;
            match mapping.file_bytes() {
                None => anonymous.push(range),
                Some(bytes) => {
                    file_bytes += bytes.map_err(|source| MemoryError::Account {
                        path: "the size of a memory file",
                        source,
                    })?;
                    files.push(range);
                }
            }
        }
        let unreadable = |source| MemoryError::Account { path: SMAPS, source };
        let mut lines = BufReader::new(File::open(SMAPS).map_err(unreadable)?);
        let mut sum = Sum {
            anonymous,
            files,
            ..Sum::default()
        };
        sum.resident.guest_bytes = file_bytes;
        let mut line = String::new();
        while lines.read_line(&mut line).map_err(unreadable)? > 0 {
            sum.add(&line);
            line.clear();
        }
        Ok(sum.resident)
    }
}

#[derive(Debug, Default)]
struct Sum {
    /// Guest memory that counts here.
    anonymous: Vec<Range<u64>>,
    /// Guest memory that does not.
    files: Vec<Range<u64>>,
    mapping: Owner,
    resident: Resident,
}

/// Whose the mapping is that the lines are about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Owner {
    Guest,
    File,
    #[default]
    Vmm,
}

impl Sum {
    /// Takes one line: the first of a mapping (`start-end perms …`), a counter (`Rss:  12 kB`), or another.
    fn add(&mut self, line: &str) {
        if let Some(kib) = line.strip_prefix("Rss:") {
            let bytes = kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024;
            match self.mapping {
                Owner::Guest => self.resident.guest_bytes += bytes,
                Owner::File => {}
                Owner::Vmm => self.resident.vmm_bytes += bytes,
            }
        } else if let Some(start) = mapping_start(line) {
            let among = |ranges: &[Range<u64>]| ranges.iter().any(|range| range.contains(&start));
            self.mapping = match (among(&self.anonymous), among(&self.files)) {
                (true, _) => Owner::Guest,
                (false, true) => Owner::File,
                (false, false) => Owner::Vmm,
            };
        }
    }
}

fn mapping_start(line: &str) -> Option<u64> {
    let (start, rest) = line.split_once('-')?;
    let (end, _) = rest.split_once(' ')?;
    u64::from_str_radix(end, 16).ok()?;
    u64::from_str_radix(start, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_go_to_the_mapping_they_follow() {
        let mut sum = Sum {
            anonymous: vec![0x2000..0x4000, 0x9000..0xa000],
            files: vec![0x5000..0x6000, 0xb000..0xc000],
            ..Sum::default()
        };
        for line in [
            "1000-2000 r-xp 00000000 fe:01 42   /usr/bin/x-y z\n",
            "Size:                 4 kB\n",
            "Rss:                  4 kB\n",
            "2000-3000 rw-p 00000000 00:00 0 \n",
            "Rss:                 12 kB\n",
            "VmFlags: rd wr mr mw me ac\n",
            "3000-4000 ---p 00000000 00:00 0 \n",
            "Rss:                  8 kB\n",
            "5000-6000 rw-s 00000000 00:01 7 /memfd:guest-memory (deleted)\n",
            "Rss:                  4 kB\n",
            "4000-5000 rw-p 00000000 00:00 0 [heap]\n",
            "Rss:                 16 kB\n",
        ] {
            sum.add(line);
        }
        assert_eq!(
            sum.resident,
            Resident {
                guest_bytes: 20 << 10,
                vmm_bytes: 20 << 10
            }
        );
    }
}
