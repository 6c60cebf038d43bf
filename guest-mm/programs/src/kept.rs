//! `kept`: memory that cannot leave for a disk, or that must stay where it is. Files that are in memory alone, buffers that are registered
//! for transfers, and an event ring in which reads say how they ended; all of it checked, round after round.

use crate::aio_call::{Ring, register_buffer, unregister_buffers};
use crate::call::{self, Chunk, Table, say};
use crate::checks::Checks;
use crate::file_call::{File, Mapping};
use guest_programs::abi::{Error, map_flags};
use guest_programs::files::{map, open};
use guest_programs::options::{CHUNK, KeptOptions, KeptWhat};
use guest_programs::pattern::{Page, WORDS, file_page};

/// Events that the ring has room for.
const ROOM: u64 = 64;
/// The same, for what is kept of each.
const ROOM_PLACES: usize = 64;
/// How often a buffer is registered that there is no memory for yet.
const PATIENCE: u32 = 200;
/// How often the ring is looked at before the program sleeps until something comes.
const LOOKS: u32 = 1000;

type Failure = (&'static str, Error);

/// Runs its rounds; the exit status is 1 if a check failed, 3 if a call did.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match KeptOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let outcome = match options.what {
        KeptWhat::Ram => ram(&options),
        KeptWhat::Buffer => buffer(&options),
        KeptWhat::Ring => ring(&options),
    };
    match outcome {
        Ok(failed) => {
            say(format_args!("kept: {failed} checks failed"));
            u64::from(failed > 0)
        }
        Err((what, error)) => {
            say(format_args!("{what}: {error:?}"));
            3
        }
    }
}

fn rounds(options: &KeptOptions) -> impl Iterator<Item = u32> {
    let rounds = options.rounds;
    (1..).take_while(move |round| rounds.is_none_or(|rounds| u64::from(*round) <= rounds))
}

/// A file under `/ram`: every second page is written and read by calls, the others through a mapping.
fn ram(options: &KeptOptions) -> Result<u64, Failure> {
    let file = File::open("/ram/kept", open::CREATE | open::TRUNCATE).map_err(|error| ("open", error))?;
    file.set_size(options.pages * 4096)
        .map_err(|error| ("set size", error))?;
    let mapped = file.map(options.pages, map::SHARED | map::WRITE);
    let mut mapping: Mapping = mapped.map_err(|error| ("map", error))?;
    let mut checks = Checks::default();
    let mut page: Page = [0; WORDS];
    for round in rounds(options) {
        for index in 0..options.pages {
            let now = file_page(options.seed, 0, index, round);
            // Nothing was there, or what the round before has left, seen by the other way.
            let is_as_before = |page: &Page| match round {
                1 => *page == [0; WORDS],
                _ => file_page(options.seed, 0, index, round - 1).check(page).is_ok(),
            };
            if index.is_multiple_of(2) {
                checks.check(
                    is_as_before(mapping.page(index)),
                    "a page of memory seen by mapping",
                );
                now.fill(&mut page);
                let written = file.write_pages(core::slice::from_ref(&page), index);
                checks.check(written == Ok(4096), "a write to memory");
            } else {
                let read = file.read_pages(core::slice::from_mut(&mut page), index);
                checks.check(read == Ok(4096) && is_as_before(&page), "a page of memory read");
                now.fill(mapping.page_mut(index));
            }
        }
        checks.report();
        call::sleep_ms(options.pause_ms);
    }
    Ok(checks.failed())
}

/// Chunks that are registered, and what a disk writes and reads goes through them. The first ones are kept; with `again=1` every eighth round
/// has new ones.
fn buffer(options: &KeptOptions) -> Result<u64, Failure> {
    let mut checks = Checks::default();
    let file = File::open("/kept", open::CREATE | open::TRUNCATE | open::DIRECT);
    let room = usize::try_from(options.chunks()).unwrap_or(0);
    let mut chunks = Table::new(room).map_err(|error| ("map", error))?;
    // More than may be kept at all is refused, and nothing of it is.
    let total = call::system_info().total / CHUNK * CHUNK;
    let everything = call::map(total, map_flags::NO_HUGE).map_err(|error| ("map", error))?;
    checks.check(
        register_buffer(everything, total) == Err(Error::NoMemory),
        "registering everything",
    );
    call::unmap(everything, total);
    if let Ok(file) = &file {
        in_its_place(*file, &mut checks)?;
    }
    for round in rounds(options) {
        let is_new = round == 1 || options.is_again && round.is_multiple_of(8);
        if is_new {
            renew(options, &mut chunks, round)?;
        }
        for nth in 0..chunks.len() {
            let Some(chunk) = chunks.at(nth) else { break };
            fill_or_check(options, chunk, is_new, &mut checks);
            if let Ok(file) = &file {
                transfer(options, (*file, nth as u64), chunk, &mut checks);
            }
        }
        checks.report();
        call::sleep_ms(options.pause_ms);
    }
    Ok(checks.failed())
}

/// Memory that comes where a registered buffer was is another: what a disk writes and reads goes through that. The heap comes where it was.
fn in_its_place(file: File, checks: &mut Checks) -> Result<(), Failure> {
    const BYTES: u64 = 8 * 4096;
    let bottom = call::set_break(0).map_err(|error| ("break", error))?;
    let buffer = bottom.next_multiple_of(4096);
    let words = || (buffer..buffer + BYTES).step_by(512);
    let grow = || call::set_break(buffer + BYTES).map_err(|error| ("break", error));
    grow()?;
    words().for_each(|word| call::write_word(word, 1));
    register(buffer, BYTES).map_err(|error| ("register", error))?;
    call::set_break(bottom).map_err(|error| ("break", error))?;
    grow()?;
    words().for_each(|word| call::write_word(word, !word));
    let written = file.write_bytes_at((buffer, BYTES), 0);
    words().for_each(|word| call::write_word(word, 0));
    let read = file.read_bytes_at((buffer, BYTES), 0);
    let is_back = words().all(|word| call::read_word(word) == !word);
    checks.check(
        (written, read, is_back) == (Ok(BYTES), Ok(BYTES), true),
        "memory in the place of a registered buffer",
    );
    call::set_break(bottom).map_err(|error| ("break", error))?;
    unregister_buffers().map_err(|error| ("unregister", error))
}

/// Gives up all chunks, and registers new ones.
fn renew(options: &KeptOptions, chunks: &mut Table<Chunk>, round: u32) -> Result<(), Failure> {
    unregister_buffers().map_err(|error| ("unregister", error))?;
    while let Some(chunk) = chunks.swap_remove(0) {
        chunk.unmap();
    }
    for _ in 0..options.chunks() {
        // In turn huge pages, if there are any, and small ones.
        let flags = if round.is_multiple_of(16) {
            0
        } else {
            map_flags::NO_HUGE
        };
        let mut chunk = Chunk::map(flags).map_err(|error| ("map", error))?;
        for (address, page) in chunk.pages_mut() {
            file_page(options.seed, 1, address / 4096, 0).fill(page);
        }
        register(chunk.address(), CHUNK).map_err(|error| ("register", error))?;
        chunks.push(chunk);
    }
    Ok(())
}

/// Registers memory; what there is for it outside of removable memory may be on its way still.
fn register(address: u64, bytes: u64) -> Result<(), Error> {
    for _ in 0..PATIENCE {
        match register_buffer(address, bytes) {
            Err(Error::NoMemory | Error::Again) => call::sleep_ms(50),
            outcome => return outcome,
        }
    }
    register_buffer(address, bytes)
}

/// Checks what was in a chunk before it was registered, or since it was last written.
fn fill_or_check(options: &KeptOptions, chunk: &mut Chunk, is_new: bool, checks: &mut Checks) {
    let generation = if is_new { 0 } else { chunk.generation };
    for (address, page) in chunk.pages() {
        let expected = file_page(options.seed, 1, address / 4096, generation);
        checks.check(expected.check(page).is_ok(), "a page of a registered buffer");
    }
    chunk.generation = generation.wrapping_add(1);
    let generation = chunk.generation;
    for (address, page) in chunk.pages_mut() {
        file_page(options.seed, 1, address / 4096, generation).fill(page);
    }
}

/// Writes a chunk to the file past the page cache, and reads it back into the same frames.
fn transfer(options: &KeptOptions, (file, nth): (File, u64), chunk: &mut Chunk, checks: &mut Checks) {
    let bytes = CHUNK.min(32 * 4096);
    let written = file.write_bytes_at((chunk.address(), bytes), nth * bytes);
    checks.check(written == Ok(bytes), "a write from a registered buffer");
    for (_, page) in chunk.pages_mut().take(32) {
        page.fill(u64::MAX);
    }
    let read = file.read_bytes_at((chunk.address(), bytes), nth * bytes);
    checks.check(read == Ok(bytes), "a read into a registered buffer");
    let generation = chunk.generation;
    let is_back = chunk.pages().take(32).all(|(address, page)| {
        file_page(options.seed, 1, address / 4096, generation)
            .check(page)
            .is_ok()
    });
    checks.check(is_back, "what a disk has put into a registered buffer");
}

/// Reads a file, as many pages at a time as the ring has room for, and looks for their events in memory.
fn ring(options: &KeptOptions) -> Result<u64, Failure> {
    let mut checks = Checks::default();
    let path = options.path();
    let file = File::open(path, open::CREATE | open::TRUNCATE).map_err(|error| ("open", error))?;
    let mut page: Page = [0; WORDS];
    for index in 0..options.pages {
        file_page(options.seed, 2, index, 0).fill(&mut page);
        let written = file.write_pages(core::slice::from_ref(&page), index);
        checks.check(written == Ok(4096), "a write");
    }
    let mut ring = Ring::set_up(ROOM).map_err(|error| ("set up", error))?;
    let twice = Ring::set_up(ROOM).map(|_| ()).err();
    checks.check(twice == Some(Error::Invalid), "a second ring");
    say(format_args!("the ring is at {:#x}", ring.address()));
    let mut chunk = Chunk::map(map_flags::NO_HUGE).map_err(|error| ("map", error))?;
    for round in rounds(options) {
        let first = u64::from(round) * 17 % options.pages;
        read_some(options, file, &mut ring, (&mut chunk, first), &mut checks)?;
        checks.report();
        call::sleep_ms(options.pause_ms);
    }
    Ok(checks.failed())
}

/// As many reads as there is room for, at pages from `first` on.
fn read_some(
    options: &KeptOptions,
    file: File,
    ring: &mut Ring,
    (chunk, first): (&mut Chunk, u64),
    checks: &mut Checks,
) -> Result<(), Failure> {
    chunk.pages_mut().for_each(|(_, page)| page.fill(u64::MAX));
    let index_of = |nth: u64| (first + nth * 5) % options.pages;
    let before = ring.taken();
    for nth in 0..ROOM {
        let memory = (chunk.address() + nth * 4096, 4096);
        let number = ring.read(file.descriptor(), memory, index_of(nth) * 4096);
        let number = number.map_err(|error| ("begin to read", error))?;
        checks.check(number == before + nth, "the number of a read");
    }
    let memory = (chunk.address(), 4096);
    let one_more = ring.read(file.descriptor(), memory, 0);
    checks.check(one_more == Err(Error::Again), "a read without room for its event");
    let mut seen = [false; ROOM_PLACES];
    let mut looks = 0;
    while ring.taken() < before + ROOM {
        let Some(event) = ring.next() else {
            looks += 1;
            if looks > LOOKS {
                ring.wait(ring.taken() + 1).map_err(|error| ("wait", error))?;
            }
            continue;
        };
        let nth = event.number.wrapping_sub(before);
        let place = usize::try_from(nth).ok().and_then(|nth| seen.get_mut(nth));
        let is_first = place.is_some_and(|place| !core::mem::replace(place, true));
        let is_read = is_first && event.result == 4096;
        checks.check(is_read, "an event");
        let found = chunk.pages().nth(usize::try_from(nth).unwrap_or(usize::MAX));
        let is_right =
            found.is_some_and(|(_, page)| file_page(options.seed, 2, index_of(nth), 0).check(page).is_ok());
        checks.check(is_right, "a page whose event has come");
    }
    Ok(())
}
