//! `rights`: has children do what no program may, one after the other: each of them ends by it, and nothing else.

use crate::call::{self, Chunk, say};
use crate::file_call::File;
use crate::memory_call::{self, Shared};
use core::sync::atomic::Ordering::SeqCst;
use guest_programs::abi::{Error, KILLED, map_flags, prot};
use guest_programs::files::{map, open};

/// A constant, and so in a segment without the right to store.
static CONSTANT: [u64; 2] = [0x5eed; 2];
/// What the memory that children reach for holds: instructions that return at once (`ret`), so that who may run them goes on.
const VALUE: u64 = 0xc3c3_c3c3_c3c3_c3c3;
/// An address of the kernel's own.
const KERNEL: u64 = 0xffff_8000_0000_0000;
/// Bytes that a stack may grow to.
const STACK_BYTES: u64 = 1 << 20;
/// Bytes of it that a level of [`deeper`] takes.
const LEVEL_BYTES: u64 = 8 << 10;

/// Runs all; the exit status is 1 if something was permitted, or changed what it should not.
pub(crate) fn main<'a>(mut arguments: impl Iterator<Item = &'a str>) -> u64 {
    if let Some(argument) = arguments.next() {
        say(format_args!("bad argument {argument}"));
        return 2;
    }
    match run() {
        Ok(0) => 0,
        Ok(_) => 1,
        Err((what, error)) => {
            say(format_args!("{what}: {error:?}"));
            3
        }
    }
}

type Failure = (&'static str, Error);

/// A child does something: it is to end by that. How many failures.
fn refused(what: &str, does: impl FnOnce()) -> Result<u64, Failure> {
    let Some(pid) = call::fork().map_err(|error| ("fork", error))? else {
        does();
        call::exit(0);
    };
    let ended = call::wait(pid).map_err(|error| ("wait", error))?;
    let is_right = ended == KILLED;
    say(format_args!(
        "{what}: {}",
        if is_right {
            "refused"
        } else {
            "permitted, which is wrong"
        }
    ));
    call::report(u64::from(is_right), u64::from(!is_right));
    Ok(u64::from(!is_right))
}

fn run() -> Result<u64, Failure> {
    let mut failed = 0;
    let chunk = Chunk::map(map_flags::NO_HUGE).map_err(|error| ("map", error))?;
    let [plain, read_only, nothing] = [0, 1, 2].map(|page| chunk.address() + page * 4096);
    for address in [plain, read_only, nothing] {
        call::write_word(address, VALUE);
    }
    let protect = |address, rights| {
        let protected = memory_call::protect_page(address, rights);
        protected.map_err(|error| ("protect", error))
    };
    protect(read_only, prot::READ)?;
    protect(nothing, 0)?;
    let code: fn() -> Result<u64, Failure> = run;
    let text = code as usize as u64;
    let constant = (&raw const CONSTANT).addr() as u64;
    failed += refused("a store to code", || call::write_byte(text, 0xcc))?;
    failed += refused("a store to a constant", || call::write_word(constant, 1))?;
    failed += refused("a store to a page that can be read", || {
        call::write_word(read_only, 1);
    })?;
    failed += refused(
        "a store to a page of its own that can be read from now on",
        || {
            // Nobody shares it any more, so that its entry alone forbids the second store.
            call::write_word(plain, 1);
            if memory_call::protect_page(plain, prot::READ).is_ok() {
                call::write_word(plain, 2);
            }
        },
    )?;
    failed += refused("a load from a page without rights", || {
        call::read_word(nothing);
    })?;
    failed += refused("a store to a page without rights", || {
        call::write_word(nothing, 1);
    })?;
    failed += refused("code in data", || memory_call::run_at(plain))?;
    failed += refused("code in a page that can be read", || {
        memory_call::run_at(read_only);
    })?;
    failed += refused("a load from the kernel", || {
        call::read_word(KERNEL);
    })?;
    failed += refused("a store to the kernel", || call::write_word(KERNEL, 1))?;
    failed += refused("code in no area", || memory_call::run_at(4096))?;
    failed += refused("a store to no area", || call::write_word(8, 1))?;
    failed += refused("an instruction for kernels", memory_call::forbid_interrupts)?;
    failed += refused("a stack beyond its limit", || {
        core::hint::black_box(deeper(2 * STACK_BYTES / LEVEL_BYTES));
    })?;
    failed += of_files()? + of_another()?;
    // Nothing has come of any of it; and what comes back is there again.
    protect(nothing, prot::READ)?;
    let found = [plain, read_only, nothing].map(call::read_word);
    let kept = found == [VALUE; 3] && CONSTANT == core::hint::black_box([0x5eed; 2]);
    protect(read_only, prot::READ | prot::WRITE)?;
    call::write_word(read_only, 7);
    let is_right = kept && call::read_word(read_only) == 7;
    call::report(u64::from(is_right), u64::from(!is_right));
    if !is_right {
        say(format_args!("what was there is wrong"));
    }
    Ok(failed + u64::from(!is_right))
}

/// Uses 8 KiB of stack for each level.
#[inline(never)]
fn deeper(levels: u64) -> u64 {
    let room = core::hint::black_box([levels; 1024]);
    match levels {
        0 => room[0],
        _ => deeper(levels - 1).wrapping_add(core::hint::black_box(&room)[512]),
    }
}

/// What is mapped of a file has the mapping's rights, and ends where the file does: also a page of which the program has a copy.
fn of_files() -> Result<u64, Failure> {
    let file = File::open("/shm/rights", open::CREATE).map_err(|error| ("open", error))?;
    file.set_size(4096).map_err(|error| ("size", error))?;
    let shared = file.map(1, map::SHARED).map_err(|error| ("map", error))?;
    let mapped = shared.address_of(0);
    let mut failed = refused("a store to a map without the right", || {
        call::write_word(mapped, 1);
    })?;
    let private = file.map(1, map::WRITE).map_err(|error| ("map", error))?;
    let copied = private.address_of(0);
    call::write_word(copied, VALUE);
    file.set_size(0).map_err(|error| ("size", error))?;
    failed += refused("a load behind the end of a file", || {
        call::read_word(mapped);
    })?;
    failed += refused("a load of a copy behind the end of a file", || {
        call::read_word(copied);
    })?;
    private.unmap();
    shared.unmap();
    file.close().map_err(|error| ("close", error))?;
    crate::file_call::remove("/shm/rights").map_err(|error| ("remove", error))?;
    Ok(failed)
}

/// What another program has at an address where this one has nothing is not there for it.
fn of_another() -> Result<u64, Failure> {
    let words = Shared::map(1).map_err(|error| ("map", error))?;
    let (place, is_over) = (words.word(0), words.word(1));
    let Some(another) = call::fork().map_err(|error| ("fork", error))? else {
        let Ok(chunk) = Chunk::map(map_flags::NO_HUGE) else {
            call::exit(2);
        };
        call::write_word(chunk.address(), VALUE);
        place.store(u32::try_from(chunk.address() >> 12).unwrap_or(0), SeqCst);
        while is_over.load(SeqCst) == 0 {
            call::sleep_ms(1);
        }
        call::exit(u64::from(call::read_word(chunk.address()) != VALUE));
    };
    while place.load(SeqCst) == 0 {
        call::sleep_ms(1);
    }
    let address = u64::from(place.load(SeqCst)) << 12;
    let mut failed = refused("a load from another program", || {
        call::read_word(address);
    })?;
    failed += refused("a store to another program", || call::write_word(address, 1))?;
    is_over.store(1, SeqCst);
    let ended = call::wait(another).map_err(|error| ("wait", error))?;
    call::report(u64::from(ended == 0), u64::from(ended != 0));
    if ended != 0 {
        say(format_args!("what another program had is wrong"));
    }
    words.unmap();
    Ok(failed + u64::from(ended != 0))
}
