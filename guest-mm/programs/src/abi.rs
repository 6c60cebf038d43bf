//! What programs and the manager share: system calls, and the structures they exchange.
//!
//! A system call is `int3` with its number in rax and up to four arguments in rdi, rsi, rdx and r10. The result comes
//! back in rax: a number, or an [`Error`]'s code negated. All other registers stay as they are.

/// The system calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Call {
    /// `(status)`: ends the program.
    Exit = 0,
    /// `(address, bytes)`: writes a line, at most [`MAX_LINE`] bytes of it, to the guest's console.
    Write = 1,
    /// `(bytes, flags, gpa)`: maps zeroed memory (or, with [`map_flags::PHYSICAL`], what is at the physical
    /// address `gpa`) and returns its address.
    Map = 2,
    /// `(address, bytes)`: unmaps memory.
    Unmap = 3,
    /// Lets others run.
    Yield = 4,
    /// `(time)`: sleeps until then, in nanoseconds of [`Call::Clock`].
    SleepUntil = 5,
    /// Returns nanoseconds since the guest started.
    Clock = 6,
    /// `(address)`: stores a [`SystemInfo`] there.
    SystemInfo = 7,
    /// `(ok, failed)`: so many checks of its own data went well, and so many did not, since the last report.
    Report = 8,
    /// `(address, bytes)`: stores the program's arguments there, each ended by a zero byte, and returns how many
    /// bytes they take altogether.
    Arguments = 9,
    /// `(row, seed, address)`: carries out one round of a [`StressRow`], given by its number, in the manager, and
    /// stores a [`StressOutcome`] there. What a round leaves allocated is the program's until it ends.
    Stress = 10,
    /// `()`: doubles the program. Both go on from here with the same memory; the one that called gets the number of the
    /// other, its child, which gets 0.
    Fork = 11,
    /// `(pid)`: waits until that child has ended, and returns its exit status, or [`KILLED`].
    Wait = 12,
    /// `(address, bytes, rights)`: gives memory other rights, of [`prot`].
    Protect = 13,
    /// `(address, bytes, advice)`: says how memory is used, as [`advice`].
    Advise = 14,
    /// `(address)`: moves the end of the heap there; returns where it is. 0 only asks.
    Break = 15,
    /// `(adjustment)`: what is added to the program's score when memory is out, and its children's: -1000 (never chosen) to 1000 (chosen
    /// first), as Linux' `oom_score_adj`.
    OomScoreAdj = 16,
    /// `(address, bytes)`: brings memory in, and keeps it there (Linux `mlock`). A quarter of all memory, at most, for one program; its
    /// children's is not kept.
    Lock = 17,
    /// `(address, bytes)`: memory may leave again (Linux `munlock`).
    Unlock = 18,
    /// `(address, expected, deadline)`: waits until somebody calls for the word of 32 bits at `address`, a multiple of 4, if it is `expected`;
    /// until `deadline` at most, in nanoseconds of [`Call::Clock`], or [`FOR_EVER`] (Linux `FUTEX_WAIT`). The word is the same for all who share its
    /// memory.
    FutexWait = 19,
    /// `(address, most)`: calls up to so many of those who wait for the word at `address`, those first who have waited longest; returns how
    /// many it called (Linux `FUTEX_WAKE`).
    FutexWake = 20,
    /// `(address, bytes, first page)`: has a range of a shared mapping show other pages of its file: that one and those after it
    /// (Linux `remap_file_pages`).
    RemapFilePages = 21,
}

/// A deadline that never comes.
pub const FOR_EVER: u64 = u64::MAX;

/// Result of [`Call::Wait`] for a program that did what no program may.
pub const KILLED: u64 = 1 << 32;

/// Rights of [`Call::Protect`].
pub mod prot {
    /// Loads.
    pub const READ: u64 = 1;
    /// Stores.
    pub const WRITE: u64 = 2;
    /// Instruction fetches.
    pub const EXEC: u64 = 4;
}

/// Advice of [`Call::Advise`], with Linux' numbers.
pub mod advice {
    /// Contents are not needed any more; what is read next is zero.
    pub const DONT_NEED: u64 = 4;
    /// Huge pages are welcome.
    pub const HUGE: u64 = 14;
    /// Huge pages are not.
    pub const NO_HUGE: u64 = 15;
    /// Not used for a while: pages that nobody else has leave memory now, with what is in them.
    pub const PAGE_OUT: u64 = 21;
}

impl Call {
    /// The call with that number.
    pub const fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::Exit,
            1 => Self::Write,
            2 => Self::Map,
            3 => Self::Unmap,
            4 => Self::Yield,
            5 => Self::SleepUntil,
            6 => Self::Clock,
            7 => Self::SystemInfo,
            8 => Self::Report,
            9 => Self::Arguments,
            10 => Self::Stress,
            11 => Self::Fork,
            12 => Self::Wait,
            13 => Self::Protect,
            14 => Self::Advise,
            15 => Self::Break,
            16 => Self::OomScoreAdj,
            17 => Self::Lock,
            18 => Self::Unlock,
            19 => Self::FutexWait,
            20 => Self::FutexWake,
            21 => Self::RemapFilePages,
            _ => return None,
        })
    }
}

/// A mechanism of the memory manager that [`Call::Stress`] works on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum StressRow {
    /// Chunks of every order and mobility, split and merged.
    Buddy = 0,
    /// Single frames and huge pages through the CPU's own lists, hot and cold.
    Pcp = 1,
    /// Requests bound to each zone.
    Zones = 2,
    /// A zone emptied to its watermarks: who may go on below them.
    Atomic = 3,
    /// A request that waits until reclaim serves it.
    Wait = 4,
    /// Frames outside of the direct map, mapped permanently and for a moment.
    Kmap = 5,
    /// A cache of objects.
    Slab = 6,
    /// General caches.
    Kmalloc = 7,
    /// A pool that lends when the allocator fails.
    Mempool = 8,
    /// Areas of single frames.
    Vmalloc = 9,
    /// Each node, and where requests go when it is full.
    Nodes = 10,
}

impl StressRow {
    /// All rows, by number.
    pub const ALL: [Self; 11] = [
        Self::Buddy,
        Self::Pcp,
        Self::Zones,
        Self::Atomic,
        Self::Wait,
        Self::Kmap,
        Self::Slab,
        Self::Kmalloc,
        Self::Mempool,
        Self::Vmalloc,
        Self::Nodes,
    ];

    /// Its name in `stress row=NAME`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Buddy => "buddy",
            Self::Pcp => "pcp",
            Self::Zones => "zones",
            Self::Atomic => "atomic",
            Self::Wait => "wait",
            Self::Kmap => "kmap",
            Self::Slab => "slab",
            Self::Kmalloc => "kmalloc",
            Self::Mempool => "mempool",
            Self::Vmalloc => "vmalloc",
            Self::Nodes => "nodes",
        }
    }

    /// The row of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.name() == name)
    }

    /// The row with that number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|row| *row as u64 == number)
    }
}

/// What came of a round of [`Call::Stress`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct StressOutcome {
    /// Checks that went well: contents, alignment, zone and node of what was allocated, and what the row is about.
    pub ok: u64,
    /// Checks that did not. The manager has described the first of them on the console.
    pub failed: u64,
}

impl StressOutcome {
    /// The structure as it lies in memory, word by word.
    pub const fn to_words(self) -> [u64; 2] {
        [self.ok, self.failed]
    }

    /// The structure out of its words.
    pub const fn from_words([ok, failed]: [u64; 2]) -> Self {
        Self { ok, failed }
    }
}

/// Most bytes that one [`Call::Write`] writes.
pub const MAX_LINE: usize = 200;

/// Flags of [`Call::Map`].
pub mod map_flags {
    /// Only 4 KiB pages.
    pub const NO_HUGE: u64 = 1;
    /// Physical memory, like Linux' `/dev/mem`.
    pub const PHYSICAL: u64 = 2;
    /// Huge pages of the reserved pool, all of them promised now (`MAP_HUGETLB`); bytes are a multiple of 2 MiB.
    pub const HUGETLB: u64 = 4;
    /// Shared with children that are forked later (`MAP_SHARED | MAP_ANONYMOUS`).
    pub const SHARED: u64 = 8;
}

/// Why a call failed: Linux's codes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Error {
    /// `ENOENT`: no such file.
    NotFound = 2,
    /// `EINTR`: the program is to end.
    Interrupted = 4,
    /// `EIO`: the disk failed.
    Io = 5,
    /// `EBADF`: no such descriptor.
    BadDescriptor = 9,
    /// `ECHILD`: no such child.
    NoChild = 10,
    /// `EAGAIN`: not now. As many programs run as there can be, or a word to wait for is another one already.
    Again = 11,
    /// `ENOMEM`: no memory or no room in the address space.
    NoMemory = 12,
    /// `EFAULT`: the program has no such memory.
    Fault = 14,
    /// `EEXIST`: there is such a name.
    Exists = 17,
    /// `ENOTDIR`: not a directory.
    NotADirectory = 20,
    /// `EISDIR`: a directory.
    IsADirectory = 21,
    /// `EINVAL`: arguments that make no sense.
    Invalid = 22,
    /// `EMFILE`: too many files are open.
    TooManyFiles = 24,
    /// `ENOSPC`: the disk is full.
    NoSpace = 28,
    /// `EROFS`: the file system cannot be changed any more.
    ReadOnly = 30,
    /// `ENOSYS`: no such call.
    NoCall = 38,
    /// `ENOTEMPTY`: a directory with names in it.
    NotEmpty = 39,
    /// `ETIMEDOUT`: what was waited for did not happen in time.
    TimedOut = 110,
}

/// Results from here on are negated error codes, as in Linux.
const FIRST_ERROR: u64 = u64::MAX - 4094;

impl Error {
    /// As it comes back in rax.
    pub const fn to_result(self) -> u64 {
        (self as u64).wrapping_neg()
    }

    /// What came back in rax.
    ///
    /// # Errors
    /// The error that it stands for; unknown ones count as [`Error::Invalid`].
    pub const fn check(result: u64) -> Result<u64, Self> {
        if result < FIRST_ERROR {
            return Ok(result);
        }
        Err(match result.wrapping_neg() {
            2 => Self::NotFound,
            4 => Self::Interrupted,
            5 => Self::Io,
            9 => Self::BadDescriptor,
            10 => Self::NoChild,
            11 => Self::Again,
            12 => Self::NoMemory,
            14 => Self::Fault,
            17 => Self::Exists,
            20 => Self::NotADirectory,
            21 => Self::IsADirectory,
            24 => Self::TooManyFiles,
            28 => Self::NoSpace,
            30 => Self::ReadOnly,
            38 => Self::NoCall,
            39 => Self::NotEmpty,
            110 => Self::TimedOut,
            _ => Self::Invalid,
        })
    }
}

/// The guest's memory as a program needs to know it. Sizes in bytes, and what memory has cost so far, in pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SystemInfo {
    /// Memory that the guest manages now.
    pub total: u64,
    /// Memory that it will manage once the resize under way is done; the same as `total` when none is.
    pub future_total: u64,
    /// Memory that programs can still get now.
    pub available: u64,
    /// Physical address of the lowest unplugged block; 0 if there is none.
    pub first_unplugged: u64,
    /// Pages that came from swap areas since boot.
    pub swapped_in: u64,
    /// Pages that were written to swap areas.
    pub swapped_out: u64,
    /// Pages that were read from files.
    pub file_in: u64,
    /// Pages that reclaim has looked at.
    pub scanned: u64,
    /// Pages that it has freed.
    pub freed: u64,
}

/// Words of a [`SystemInfo`].
pub const SYSTEM_INFO_WORDS: usize = 9;
const _: () = assert!(size_of::<SystemInfo>() == SYSTEM_INFO_WORDS * 8);

impl SystemInfo {
    /// The structure as it lies in memory, word by word.
    pub const fn to_words(self) -> [u64; SYSTEM_INFO_WORDS] {
        [
            self.total,
            self.future_total,
            self.available,
            self.first_unplugged,
            self.swapped_in,
            self.swapped_out,
            self.file_in,
            self.scanned,
            self.freed,
        ]
    }

    /// The structure out of its words.
    pub const fn from_words(words: [u64; SYSTEM_INFO_WORDS]) -> Self {
        let [total, future_total, available, first_unplugged, rest @ ..] = words;
        let [swapped_in, swapped_out, file_in, scanned, freed] = rest;
        Self {
            total,
            future_total,
            available,
            first_unplugged,
            swapped_in,
            swapped_out,
            file_in,
            scanned,
            freed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_by_their_own_numbers() {
        for number in 0..30 {
            if let Some(call) = Call::from_number(number) {
                assert_eq!(call as u64, number);
            }
        }
        assert_eq!(Call::from_number(22), None);
    }

    #[test]
    fn rows_are_found_by_their_numbers_and_names() {
        for (number, row) in (0..).zip(StressRow::ALL) {
            assert_eq!(row as u64, number);
            assert_eq!(StressRow::from_number(number), Some(row));
            assert_eq!(StressRow::from_name(row.name()), Some(row));
        }
        assert_eq!(StressRow::from_number(StressRow::ALL.len() as u64), None);
        assert_eq!(StressRow::from_number(u64::MAX), None);
        assert_eq!(StressRow::from_name("Buddy"), None);
    }

    #[test]
    fn errors_survive_the_register() {
        for error in [
            Error::Interrupted,
            Error::NotFound,
            Error::Io,
            Error::BadDescriptor,
            Error::NoChild,
            Error::Again,
            Error::NoMemory,
            Error::Fault,
            Error::Exists,
            Error::NotADirectory,
            Error::IsADirectory,
            Error::Invalid,
            Error::TooManyFiles,
            Error::NoSpace,
            Error::ReadOnly,
            Error::NoCall,
            Error::NotEmpty,
            Error::TimedOut,
        ] {
            assert_eq!(Error::check(error.to_result()), Err(error));
        }
        assert_eq!(Error::check(1 << 44), Ok(1 << 44));
    }
}
