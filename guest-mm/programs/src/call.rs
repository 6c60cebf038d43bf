//! System calls, and what else needs `unsafe`: raw memory.

#![expect(
    unsafe_code,
    reason = "enters the manager with int3 and touches memory by address"
)]

use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use guest_programs::abi::{
    Call, Error, MAX_LINE, SYSTEM_INFO_WORDS, StressOutcome, StressRow, SystemInfo, advice, map_flags,
};
use guest_programs::options::CHUNK;
use guest_programs::pattern::Page;

global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".global program_start",
    "program_start:",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    ".popsection",
    main = sym start,
);

extern "C" fn start() -> ! {
    exit(crate::main())
}

/// Enters the manager with any of its calls.
pub(crate) fn enter(number: u64, [first, second, third, fourth]: [u64; 4]) -> u64 {
    let result;
    // SAFETY: the manager changes rax and what the call says it changes in memory, which each caller provides for.
    unsafe {
        asm!(
            "int3",
            inlateout("rax") number => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            in("r10") fourth,
            options(nostack)
        );
    }
    result
}

pub(crate) fn call(number: Call, first: u64, second: u64, third: u64) -> u64 {
    enter(number as u64, [first, second, third, 0])
}

/// Ends the program.
pub(crate) fn exit(status: u64) -> ! {
    loop {
        call(Call::Exit, status, 0, 0);
    }
}

/// Writes a line to the guest's console, cut off where it is too long.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    let mut line = Line {
        bytes: [0; MAX_LINE],
        len: 0,
    };
    // Too long a line ends early, which is all that can go wrong.
    let _ = line.write_fmt(message);
    call(
        Call::Write,
        (&raw const line.bytes).addr() as u64,
        line.len as u64,
        0,
    );
}

struct Line {
    bytes: [u8; MAX_LINE],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        if fits == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

/// Stores the program's arguments and returns how many bytes they have.
pub(crate) fn arguments(into: &mut [u8]) -> usize {
    let len = call(
        Call::Arguments,
        into.as_mut_ptr().addr() as u64,
        into.len() as u64,
        0,
    );
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The guest's memory.
pub(crate) fn system_info() -> SystemInfo {
    let mut words = [0_u64; SYSTEM_INFO_WORDS];
    call(Call::SystemInfo, (&raw mut words).addr() as u64, 0, 0);
    SystemInfo::from_words(words)
}

/// Reports checks of the program's own data.
pub(crate) fn report(ok: u64, failed: u64) {
    call(Call::Report, ok, failed, 0);
}

/// Has the manager carry out a round of a row.
///
/// # Errors
/// [`Error::NoCall`] for a row that this guest does not have.
pub(crate) fn stress(row: StressRow, seed: u64) -> Result<StressOutcome, Error> {
    let mut words = [0_u64; 2];
    let address = (&raw mut words).addr() as u64;
    Error::check(call(Call::Stress, row as u64, seed, address)).map(|_| StressOutcome::from_words(words))
}

/// Doubles the program: `None` in the child, the child's number in the other.
///
/// # Errors
/// If there is no memory for another program, or too many run.
pub(crate) fn fork() -> Result<Option<u64>, Error> {
    Error::check(call(Call::Fork, 0, 0, 0)).map(|pid| (pid > 0).then_some(pid))
}

/// Waits for a child's end; its exit status, or [`guest_programs::abi::KILLED`].
///
/// # Errors
/// If there is no such child.
pub(crate) fn wait(child: u64) -> Result<u64, Error> {
    Error::check(call(Call::Wait, child, 0, 0))
}

/// Gives a chunk other rights.
///
/// # Errors
/// If it is not there.
pub(crate) fn protect(chunk: &Chunk, rights: u64) -> Result<(), Error> {
    Error::check(call(Call::Protect, chunk.address, CHUNK, rights)).map(|_| ())
}

/// Says how a chunk is used.
///
/// # Errors
/// If it is not there.
pub(crate) fn advise(chunk: &mut Chunk, advice: u64) -> Result<(), Error> {
    Error::check(call(Call::Advise, chunk.address, CHUNK, advice)).map(|_| ())
}

/// Has a range of memory leave, with what is in it, as far as nobody else has it.
///
/// # Errors
/// If it is not there.
pub(crate) fn page_out(address: u64, bytes: u64) -> Result<(), Error> {
    Error::check(call(Call::Advise, address, bytes, advice::PAGE_OUT)).map(|_| ())
}

/// Gives some of a chunk's pages back, from number `first` on.
///
/// # Errors
/// If they are not there.
pub(crate) fn forget_pages(chunk: &mut Chunk, first: u64, pages: u64) -> Result<(), Error> {
    let (start, bytes) = (chunk.address + first * 4096, pages * 4096);
    Error::check(call(Call::Advise, start, bytes, advice::DONT_NEED)).map(|_| ())
}

/// Moves the end of the heap; returns where it is then.
///
/// # Errors
/// If it cannot be there.
pub(crate) fn set_break(end: u64) -> Result<u64, Error> {
    Error::check(call(Call::Break, end, 0, 0))
}

/// What is added to this program's score when memory is out, and its children's.
///
/// # Errors
/// If it is not from -1000 to 1000.
pub(crate) fn adjust_oom_score(adjustment: i16) -> Result<(), Error> {
    let adjustment = i64::from(adjustment).cast_unsigned();
    Error::check(call(Call::OomScoreAdj, adjustment, 0, 0)).map(|_| ())
}

/// Keeps a chunk in memory.
///
/// # Errors
/// If there is not enough memory, or the program may not keep as much.
pub(crate) fn lock(chunk: &Chunk) -> Result<(), Error> {
    Error::check(call(Call::Lock, chunk.address, CHUNK, 0)).map(|_| ())
}

/// Lets a chunk leave memory again.
///
/// # Errors
/// If it is not there.
pub(crate) fn unlock(chunk: &Chunk) -> Result<(), Error> {
    Error::check(call(Call::Unlock, chunk.address, CHUNK, 0)).map(|_| ())
}

/// Nanoseconds since the guest started.
pub(crate) fn clock() -> u64 {
    call(Call::Clock, 0, 0, 0)
}

/// This CPU's time-stamp counter: a clock without a call, of unknown rate. The same on all CPUs, as far as the machine has them agree.
pub(crate) fn ticks() -> u64 {
    // SAFETY: ring 3 may execute the instruction (CR4.TSD is clear), which only reads a register.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Maps memory, with the given [`map_flags`]; returns its address.
///
/// # Errors
/// If there is no room in the address space.
pub(crate) fn map(bytes: u64, flags: u64) -> Result<u64, Error> {
    Error::check(call(Call::Map, bytes, flags, 0))
}

/// Sleeps for so many milliseconds.
pub(crate) fn sleep_ms(ms: u64) {
    let now = clock();
    call(
        Call::SleepUntil,
        now.saturating_add(ms.saturating_mul(1_000_000)),
        0,
        0,
    );
}

/// Maps the physical page that contains `gpa`; returns the address of that byte.
///
/// # Errors
/// If there is no such physical address.
pub(crate) fn map_physical(gpa: u64) -> Result<u64, Error> {
    let page = gpa / 4096 * 4096;
    Error::check(call(Call::Map, 4096, map_flags::PHYSICAL, page)).map(|address| address + gpa % 4096)
}

/// Reads a byte, whatever is there.
pub(crate) fn read_byte(address: u64) -> u8 {
    // SAFETY: not memory of the language's: the access itself, and what comes of it, is the purpose.
    unsafe { with_exposed_provenance::<u8>(to_usize(address)).read_volatile() }
}

/// Reads a word of the heap, or of what [`map`] has mapped.
pub(crate) fn read_word(address: u64) -> u64 {
    // SAFETY: memory that belongs to no value of the language's, mapped by `set_break` or [`map`].
    unsafe { with_exposed_provenance::<u64>(to_usize(address)).read_volatile() }
}

/// Writes a word of the heap, or of what [`map`] has mapped.
pub(crate) fn write_word(address: u64, value: u64) {
    // SAFETY: as for `read_word`.
    unsafe { with_exposed_provenance_mut::<u64>(to_usize(address)).write_volatile(value) };
}

/// Writes a byte, whatever is there.
pub(crate) fn write_byte(address: u64, value: u8) {
    // SAFETY: as for `read_byte`.
    unsafe { with_exposed_provenance_mut::<u8>(to_usize(address)).write_volatile(value) };
}

/// Gives memory back.
pub(crate) fn unmap(address: u64, bytes: u64) {
    call(Call::Unmap, address, bytes, 0);
}

/// Pages in a chunk.
const CHUNK_PAGES: usize = to_usize(CHUNK / 4096);

/// 2 MiB of memory, owned.
pub(crate) struct Chunk {
    address: u64,
    /// How often it was filled.
    pub(crate) generation: u32,
}

impl Chunk {
    /// Maps one, with the given [`map_flags`].
    ///
    /// # Errors
    /// If there is no room in the address space.
    pub(crate) fn map(flags: u64) -> Result<Self, Error> {
        let address = Error::check(call(Call::Map, CHUNK, flags, 0))?;
        Ok(Self {
            address,
            generation: 0,
        })
    }

    /// Where it is.
    pub(crate) const fn address(&self) -> u64 {
        self.address
    }

    /// Gives it back.
    pub(crate) fn unmap(self) {
        call(Call::Unmap, self.address, CHUNK, 0);
    }

    /// Its pages with their addresses.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (u64, &Page)> {
        // SAFETY: mapped memory of that size, of which this value is the only owner; any bytes make a page.
        let pages = unsafe { &*with_exposed_provenance::<[Page; CHUNK_PAGES]>(to_usize(self.address)) };
        (self.address..).step_by(4096).zip(pages)
    }

    /// One of its pages, below 512, with its address.
    pub(crate) fn page(&mut self, index: usize) -> (u64, &mut Page) {
        assert!(index < CHUNK_PAGES);
        let address = self.address + index as u64 * 4096;
        let start = with_exposed_provenance_mut::<Page>(to_usize(address));
        // SAFETY: as for `pages`.
        (address, unsafe { &mut *start })
    }

    /// Its pages with their addresses, to be written to.
    pub(crate) fn pages_mut(&mut self) -> impl Iterator<Item = (u64, &mut Page)> {
        let start = with_exposed_provenance_mut::<[Page; CHUNK_PAGES]>(to_usize(self.address));
        // SAFETY: as for `pages`.
        let pages = unsafe { &mut *start };
        (self.address..).step_by(4096).zip(pages)
    }
}

/// A list in memory of its own.
pub(crate) struct Table<T: 'static> {
    places: &'static mut [core::mem::MaybeUninit<T>],
    len: usize,
}

impl<T> Table<T> {
    /// An empty list with room for `capacity` values; its memory is taken as it is filled.
    ///
    /// # Errors
    /// If there is no room in the address space.
    pub(crate) fn new(capacity: usize) -> Result<Self, Error> {
        let bytes = (capacity * size_of::<T>()).max(1);
        let address = Error::check(call(Call::Map, bytes as u64, map_flags::NO_HUGE, 0))?;
        let start = with_exposed_provenance_mut(to_usize(address));
        // SAFETY: freshly mapped, page-aligned, large enough, never unmapped, and nobody else's.
        let places = unsafe { core::slice::from_raw_parts_mut(start, capacity) };
        Ok(Self { places, len: 0 })
    }

    /// How many values are in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a value; returns it when the list is full.
    pub(crate) fn push(&mut self, value: T) -> Option<T> {
        let Some(place) = self.places.get_mut(self.len) else {
            return Some(value);
        };
        place.write(value);
        self.len += 1;
        None
    }

    /// The value at `index`, if there is one.
    pub(crate) fn at(&mut self, index: usize) -> Option<&mut T> {
        let place = self.places[..self.len].get_mut(index)?;
        // SAFETY: places below `len` were written, and are not read out before `len` is lowered.
        Some(unsafe { place.assume_init_mut() })
    }

    /// Takes the value at `index` out; the last one takes its place.
    pub(crate) fn swap_remove(&mut self, index: usize) -> Option<T> {
        let last = self.len.checked_sub(1).filter(|&last| index <= last)?;
        self.places.swap(index, last);
        self.len = last;
        // SAFETY: it was below `len`, and is no longer.
        Some(unsafe { self.places[last].assume_init_read() })
    }
}

/// A 64-bit number as the `usize` that it fits: programs are x86-64.
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits here")]
const fn to_usize(value: u64) -> usize {
    value as usize
}
