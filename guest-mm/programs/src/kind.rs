//! `kind`: holds pages of one kind and no others (but its code and its stack), says where, and checks them round after round: what a kind of pages goes
//! through while the block under them is taken away shows in this program alone.

use crate::call::{self, call, say};
use crate::file_call::{File, Mapping};
use crate::memory_call::remap_file_pages;
use guest_programs::abi::{Call, Error, map_flags};
use guest_programs::files::{map, open};
use guest_programs::options::{Kind, KindOptions};
use guest_programs::pattern::{Pattern, WORDS, file_page};

/// Pages of a huge page.
const HUGE_PAGES: u64 = 512;
/// Of memory that is stored to now and then, one page in so many is in each round.
const STORES_ONE_IN: u64 = 8;
/// Wrong pages that are described.
const MESSAGES: u64 = 8;

type Failure = (&'static str, Error);

/// Runs until it has done its rounds; the exit status is 1 if a check failed, 3 if a call did.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match KindOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    while call::system_info().total < options.from {
        call::sleep_ms(5);
    }
    match hold(&options).and_then(|held| live(&options, held)) {
        Ok(failed) => u64::from(failed > 0),
        Err((what, error)) => {
            say(format_args!("{what}: {error:?}"));
            3
        }
    }
}

/// What it holds.
struct Held {
    memory: Mapping,
    pages: u64,
    /// Where the disk reads from, past the page cache.
    source: Option<File>,
}

/// What is done to the pages in each round, once they were checked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stores {
    None,
    OneIn,
    All,
}

const fn stores(kind: Kind) -> Stores {
    match kind {
        Kind::Swapped | Kind::Forked | Kind::Clean | Kind::Hole | Kind::Direct => Stores::None,
        Kind::Dirty | Kind::WriteBack => Stores::All,
        Kind::Anonymous | Kind::Shmem | Kind::Locked | Kind::Huge | Kind::Reserved | Kind::NonLinear => {
            Stores::OneIn
        }
    }
}

/// Looks at everything, round after round; how many pages were wrong.
fn live(options: &KindOptions, mut held: Held) -> Result<u64, Failure> {
    if options.kind == Kind::Forked {
        // From here on both do the same.
        call::fork().map_err(|error| ("fork", error))?;
    }
    say(format_args!(
        "holds {} pages of {} at {:#x}",
        held.pages,
        options.kind.name(),
        held.memory.address_of(0)
    ));
    let (mut round, mut failed) = (0, 0);
    while options.rounds.is_none_or(|rounds| round < rounds) {
        let wrong = look(options, &mut held, round, failed)?;
        call::report(held.pages - wrong, wrong);
        failed += wrong;
        round += 1;
        if options.pause_ms > 0 {
            call::sleep_ms(options.pause_ms);
        }
    }
    say(format_args!("{round} rounds, {failed} checks failed"));
    Ok(failed)
}

/// Finds what was stored in the rounds before, and stores anew.
fn look(options: &KindOptions, held: &mut Held, round: u64, failed: u64) -> Result<u64, Failure> {
    if let Some(source) = held.source {
        let into = (held.memory.address_of(0), held.pages * 4096);
        (0..held.pages).for_each(|place| held.memory.page_mut(place).fill(u64::MAX));
        let read = source.read_bytes_at(into, 0);
        let read = read.map_err(|error| ("direct read", error))?;
        if read != held.pages * 4096 {
            return Err(("a short direct read", Error::Io));
        }
    }
    let stores = stores(options.kind);
    let mut wrong = 0;
    for place in 0..held.pages {
        let page = held.memory.page(place);
        let is_right = match options.kind {
            Kind::Hole => *page == [0; WORDS],
            _ => pattern(options, held.pages, place, round).check(page).is_ok(),
        };
        wrong += u64::from(!is_right);
        if !is_right && failed + wrong <= MESSAGES {
            say(format_args!(
                "round {round}: page {place} is wrong: {:#x}",
                page[0]
            ));
        }
        let is_stored_to = match stores {
            Stores::None => false,
            Stores::OneIn => (place + round).is_multiple_of(STORES_ONE_IN),
            Stores::All => true,
        };
        if is_stored_to {
            pattern(options, held.pages, place, round + 1).fill(held.memory.page_mut(place));
        }
    }
    if options.kind == Kind::WriteBack {
        held.memory.sync().map_err(|error| ("sync", error))?;
    }
    Ok(wrong)
}

/// What a place holds when a round begins.
fn pattern(options: &KindOptions, pages: u64, place: u64, round: u64) -> Pattern {
    let generation = match stores(options.kind) {
        Stores::None => 0,
        Stores::All => round,
        // How many rounds before this one have stored to it.
        Stores::OneIn => {
            (round + place % STORES_ONE_IN).div_ceil(STORES_ONE_IN)
                - (place % STORES_ONE_IN).div_ceil(STORES_ONE_IN)
        }
    };
    let generation = u32::try_from(generation).unwrap_or(u32::MAX);
    file_page(options.seed, 0, page_at(options.kind, pages, place), generation)
}

/// Which page of its file a place shows.
const fn page_at(kind: Kind, pages: u64, place: u64) -> u64 {
    match kind {
        Kind::NonLinear => pages - 1 - place,
        _ => place,
    }
}

/// Takes the pages and fills them.
fn hold(options: &KindOptions) -> Result<Held, Failure> {
    let whole = options.pages.next_multiple_of(HUGE_PAGES);
    match options.kind {
        Kind::Anonymous | Kind::Forked => filled(options, options.pages, map_flags::NO_HUGE),
        Kind::Huge => filled(options, whole, 0),
        Kind::Swapped => swapped(options),
        Kind::Locked => locked(options),
        Kind::Reserved => loop {
            match filled(options, whole, map_flags::HUGETLB) {
                // The pool has not as many yet.
                Err((_, Error::NoMemory)) => call::sleep_ms(5),
                held => return held,
            }
        },
        Kind::Direct => direct(options),
        Kind::Clean => of_file(options, "/clean"),
        Kind::Hole => of_file(options, "/hole"),
        Kind::Dirty => of_file(options, "/dirty"),
        Kind::WriteBack => of_file(options, "/writeback"),
        Kind::Shmem => of_file(options, "/shm/shmem"),
        Kind::NonLinear => of_file(options, "/shm/nonlinear"),
    }
}

/// Memory of its own.
fn memory(pages: u64, flags: u64) -> Result<Held, Failure> {
    let memory = Mapping::of_memory(pages, flags).map_err(|error| ("map", error))?;
    Ok(Held {
        memory,
        pages,
        source: None,
    })
}

fn filled(options: &KindOptions, pages: u64, flags: u64) -> Result<Held, Failure> {
    let mut held = memory(pages, flags)?;
    fill(options, &mut held);
    Ok(held)
}

fn fill(options: &KindOptions, held: &mut Held) {
    for place in 0..held.pages {
        pattern(options, held.pages, place, 0).fill(held.memory.page_mut(place));
    }
}

fn swapped(options: &KindOptions) -> Result<Held, Failure> {
    let held = filled(options, options.pages, map_flags::NO_HUGE)?;
    let before = call::system_info().swapped_out;
    let range = (held.memory.address_of(0), held.pages * 4096);
    call::page_out(range.0, range.1).map_err(|error| ("page out", error))?;
    // Those that others still have, such as a disk that writes them, stay.
    while call::system_info().swapped_out < before + held.pages / 2 {
        call::sleep_ms(5);
    }
    Ok(held)
}

fn locked(options: &KindOptions) -> Result<Held, Failure> {
    let mut held = memory(options.pages, map_flags::NO_HUGE)?;
    let (address, bytes) = (held.memory.address_of(0), held.pages * 4096);
    let locked = Error::check(call(Call::Lock, address, bytes, 0));
    locked.map_err(|error| ("lock", error))?;
    fill(options, &mut held);
    Ok(held)
}

/// A new file with the pages' first contents.
fn write_file(options: &KindOptions, path: &str) -> Result<File, Failure> {
    let file = File::open(path, open::CREATE | open::TRUNCATE).map_err(|error| ("open", error))?;
    if options.kind == Kind::Hole {
        let bytes = options.pages * 4096;
        file.set_size(bytes).map_err(|error| ("set size", error))?;
        return Ok(file);
    }
    let mut page = [[0; WORDS]];
    for index in 0..options.pages {
        file_page(options.seed, 0, index, 0).fill(&mut page[0]);
        match file.write_pages(&page, index) {
            Ok(4096) => {}
            Ok(_) => return Err(("a short write", Error::NoSpace)),
            Err(error) => return Err(("write", error)),
        }
    }
    if !path.starts_with("/shm/") {
        file.sync().map_err(|error| ("fsync", error))?;
    }
    Ok(file)
}

/// Pages of a file, mapped; the mapping alone keeps it open.
fn of_file(options: &KindOptions, path: &str) -> Result<Held, Failure> {
    let file = write_file(options, path)?;
    let rights = match stores(options.kind) {
        Stores::None => map::SHARED,
        Stores::OneIn | Stores::All => map::SHARED | map::WRITE,
    };
    let memory = file.map(options.pages, rights).map_err(|error| ("map", error))?;
    if options.kind == Kind::NonLinear {
        for place in 0..options.pages {
            let page = page_at(options.kind, options.pages, place);
            let remapped = remap_file_pages(memory.address_of(place), 1, page);
            remapped.map_err(|error| ("remap", error))?;
        }
    }
    file.close().map_err(|error| ("close", error))?;
    Ok(Held {
        memory,
        pages: options.pages,
        source: None,
    })
}

fn direct(options: &KindOptions) -> Result<Held, Failure> {
    let path = "/direct-reads";
    let written = write_file(options, path)?;
    written.close().map_err(|error| ("close", error))?;
    let source = File::open(path, open::DIRECT).map_err(|error| ("open", error))?;
    let held = memory(options.pages, map_flags::NO_HUGE)?;
    Ok(Held {
        source: Some(source),
        ..held
    })
}
