//! What the host itself says of a VM's process, from `/proc` (proc(5)): the device's word and the guest's are not asked.
//!
//! Two looks: [`resident_bytes`] is cheap enough to be taken a hundred times a second; [`Mappings`] reads every mapping
//! and shows whether unplugged blocks, which the VMM protects with `PROT_NONE`, still hold memory. All sizes are bytes.

use std::fs;
use std::io;

use thiserror::Error;

/// Resident memory of a process (`VmRSS` of `/proc/PID/status`), in bytes: its guest's memory, and the VMM's own.
///
/// # Errors
/// The process is gone, or its status has no `VmRSS` (it has exited and waits to be reaped).
pub fn resident_bytes(pid: u32) -> io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(kib_to_bytes)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has no memory")))
}

/// What a process has mapped, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Mappings {
    /// Resident in all mappings.
    pub resident: u64,
    /// Address space that nobody may touch (`---p`): unplugged blocks, and guard areas.
    pub inaccessible: u64,
    /// Resident in mappings that nobody may touch. Memory there is lost to everyone.
    pub inaccessible_resident: u64,
}

/// Why memory does not count as returned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotReturned {
    /// Unplugged address space still holds memory.
    #[error("{bytes} bytes are still resident in unplugged blocks")]
    StillResident {
        /// How much.
        bytes: u64,
    },
    /// Part of what should be unplugged can still be touched.
    #[error("only {inaccessible} bytes are protected, {unplugged} are unplugged")]
    NotProtected {
        /// Address space with no access.
        inaccessible: u64,
        /// What should have none.
        unplugged: u64,
    },
    /// The process holds more than what its guest has left and its allowance.
    #[error("the process holds {resident} bytes, more than the {limit} it is entitled to")]
    TooMuchHeld {
        /// What it holds.
        resident: u64,
        /// What it may hold.
        limit: u64,
    },
}

/// Bytes that the host was seen to have back. Only [`Mappings::returned`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct Returned {
    bytes: u64,
}

impl Returned {
    /// How much, in bytes. They can be booked once.
    #[must_use]
    pub fn into_bytes(self) -> u64 {
        self.bytes
    }

    /// One out of thin air.
    #[cfg(test)]
    pub fn for_tests(bytes: u64) -> Self {
        Self { bytes }
    }
}

impl Mappings {
    /// Looks at a running process.
    ///
    /// # Errors
    /// The process is gone or may not be looked at.
    pub fn read(pid: u32) -> io::Result<Self> {
        fs::read_to_string(format!("/proc/{pid}/smaps")).map(|text| Self::parse(&text))
    }

    /// Sums up the text of `/proc/PID/smaps`. A mapping's first line is `START-END PERMS OFFSET DEVICE INODE [PATH]` in
    /// hexadecimal; `Name: N kB` lines follow it.
    #[must_use]
    pub fn parse(smaps: &str) -> Self {
        let mut sum = Self::default();
        let mut forbidden = false;
        for line in smaps.lines() {
            if let Some((size, permissions)) = mapping(line) {
                forbidden = permissions.starts_with("---");
                sum.inaccessible += if forbidden { size } else { 0 };
            } else if let Some(resident) = line.strip_prefix("Rss:").and_then(kib_to_bytes) {
                sum.resident += resident;
                sum.inaccessible_resident += if forbidden { resident } else { 0 };
            }
        }
        sum
    }

    /// Whether `bytes` that a guest unplugged are really back: `unplugged` bytes of its region are out of its reach and
    /// hold nothing, and the process as a whole holds at most `limit`.
    ///
    /// # Errors
    /// What speaks against it.
    pub fn returned(&self, bytes: u64, unplugged: u64, limit: u64) -> Result<Returned, NotReturned> {
        if self.inaccessible < unplugged {
            return Err(NotReturned::NotProtected {
                inaccessible: self.inaccessible,
                unplugged,
            });
        }
        if self.inaccessible_resident > 0 {
            return Err(NotReturned::StillResident {
                bytes: self.inaccessible_resident,
            });
        }
        if self.resident > limit {
            return Err(NotReturned::TooMuchHeld {
                resident: self.resident,
                limit,
            });
        }
        Ok(Returned { bytes })
    }
}

/// Size and permissions of a mapping, if the line begins one.
fn mapping(line: &str) -> Option<(u64, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    Some((end.checked_sub(start)?, rest.split(' ').next()?))
}

/// The value of `   123 kB`.
fn kib_to_bytes(value: &str) -> Option<u64> {
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0008000000 rw-p 00000000 00:00 0 
Size:             131072 kB
Rss:              131072 kB
Pss:              131072 kB
VmFlags: rd wr mr mw me ac hg 
7f0040000000-7f0050000000 rw-p 00000000 00:00 0 
Size:             262144 kB
Rss:              200000 kB
7f0050000000-7f0080000000 ---p 00000000 00:00 0                          [anon: hot-plug]
Size:             786432 kB
Rss:                   0 kB
";

    fn mib(count: u64) -> u64 {
        count << 20
    }

    #[test]
    fn mappings_are_summed_by_what_may_be_touched() {
        assert_eq!(
            Mappings::parse(SMAPS),
            Mappings {
                resident: (131_072 + 200_000) * 1024,
                inaccessible: mib(768),
                inaccessible_resident: 0
            }
        );
    }

    #[test]
    fn memory_left_in_an_unplugged_block_is_not_returned() {
        let text = SMAPS.replace("Rss:                   0 kB", "Rss:                   4 kB");
        assert_eq!(
            Mappings::parse(&text).returned(mib(256), mib(768), u64::MAX),
            Err(NotReturned::StillResident { bytes: 4096 })
        );
    }

    #[test]
    fn a_block_that_can_still_be_touched_is_not_returned() {
        assert_eq!(
            Mappings::parse(SMAPS).returned(mib(256), mib(776), u64::MAX),
            Err(NotReturned::NotProtected {
                inaccessible: mib(768),
                unplugged: mib(776)
            })
        );
    }

    #[test]
    fn a_process_that_holds_more_than_its_due_has_not_returned_it() {
        let seen = Mappings::parse(SMAPS);
        assert!(seen.returned(mib(256), mib(768), seen.resident - 1).is_err());
        assert_eq!(
            seen.returned(mib(256), mib(768), seen.resident),
            Ok(Returned { bytes: mib(256) })
        );
    }

    #[test]
    fn this_process_can_be_looked_at_both_ways() {
        let pid = std::process::id();
        let cheap = resident_bytes(pid).expect("this process runs");
        let whole = Mappings::read(pid).expect("this process runs");
        assert!(cheap > 100 << 10, "{cheap}");
        assert!(
            whole.resident > 100 << 10 && whole.inaccessible_resident == 0,
            "{whole:?}"
        );
    }

    #[test]
    fn a_process_that_does_not_exist_has_no_memory() {
        assert!(resident_bytes(u32::MAX).is_err());
        assert!(Mappings::read(u32::MAX).is_err());
    }
}
