//! `window`: looks at all pages of a file through a non-linear mapping, in reverse, and stores to some of them through it; the pages are mapped there
//! and nowhere else, whether they stay, leave memory or move.

use crate::call::{self, say};
use crate::file_call::{File, Mapping};
use crate::memory_call::remap_file_pages;
use guest_programs::abi::Error;
use guest_programs::files::{map, open};
use guest_programs::options::WindowOptions;
use guest_programs::pattern::{Pattern, WORDS, file_page};

/// One page in so many is stored to in each round.
const STORES_ONE_IN: u64 = 3;

/// Runs until it has done its rounds; the exit status is 1 if a check failed, 3 if a call did.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match WindowOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let mut window = match open_window(&options) {
        Ok(window) => window,
        Err((what, error)) => {
            say(format_args!("{what}: {error:?}"));
            return 3;
        }
    };
    let (mut round, mut failed) = (0, 0);
    while options.rounds.is_none_or(|rounds| round < rounds) {
        failed += look(&options, &mut window, round);
        round += 1;
        if options.pause_ms > 0 {
            call::sleep_ms(options.pause_ms);
        }
    }
    say(format_args!("{round} rounds, {failed} checks failed"));
    u64::from(failed > 0)
}

/// Writes the file and maps it, the last page first. It stays open by its mapping alone.
fn open_window(options: &WindowOptions<'_>) -> Result<Mapping, (&'static str, Error)> {
    let flags = open::CREATE | open::TRUNCATE;
    let file = File::open(options.file, flags).map_err(|error| ("open", error))?;
    read_into_hole(file, options.seed)?;
    let mut page = [[0; WORDS]];
    for index in 0..options.pages {
        pattern(options, index, 0).fill(&mut page[0]);
        match file.write_pages(&page, index) {
            Ok(4096) => {}
            Ok(_) => return Err(("a short write", Error::NoSpace)),
            Err(error) => return Err(("write", error)),
        }
    }
    let mapped = file.map(options.pages, map::SHARED | map::WRITE);
    let window = mapped.map_err(|error| ("map", error))?;
    for place in 0..options.pages {
        let remapped = remap_file_pages(window.address_of(place), 1, page_at(options, place));
        remapped.map_err(|error| ("remap", error))?;
    }
    file.close().map_err(|error| ("close", error))?;
    Ok(window)
}

/// Reads a page of a file that has no disk into a mapped page of the file that has no block yet: one is found for it.
fn read_into_hole(file: File, seed: u64) -> Result<(), (&'static str, Error)> {
    let source = File::open("/shm/source", open::CREATE).map_err(|error| ("open", error))?;
    let mut page = [[0; WORDS]];
    file_page(seed, 1, 0, 0).fill(&mut page[0]);
    source.write_pages(&page, 0).map_err(|error| ("write", error))?;
    file.set_size(4096).map_err(|error| ("size", error))?;
    let hole = file
        .map(1, map::SHARED | map::WRITE)
        .map_err(|error| ("map", error))?;
    let read = source.read_bytes_at((hole.address_of(0), 4096), 0);
    let read = read.map_err(|error| ("read into a page without a block", error))?;
    if read != 4096 || file_page(seed, 1, 0, 0).check(hole.page(0)).is_err() {
        return Err(("read into a page without a block", Error::Io));
    }
    hole.unmap();
    source.close().map_err(|error| ("close", error))
}

/// Finds what was stored in the rounds before, and stores anew; how many pages were wrong.
fn look(options: &WindowOptions<'_>, window: &mut Mapping, round: u64) -> u64 {
    let mut failed = 0;
    for place in 0..options.pages {
        let index = page_at(options, place);
        let is_right = pattern(options, index, round).check(window.page(place)).is_ok();
        if !is_right && failed < 4 {
            say(format_args!("round {round}: page {index} is wrong"));
        }
        failed += u64::from(!is_right);
        if index.is_multiple_of(STORES_ONE_IN) {
            pattern(options, index, round + 1).fill(window.page_mut(place));
        }
    }
    call::report(options.pages - failed, failed);
    failed
}

/// Which page of the file a place of the window shows.
const fn page_at(options: &WindowOptions<'_>, place: u64) -> u64 {
    options.pages - 1 - place
}

/// What a page holds when a round begins.
fn pattern(options: &WindowOptions<'_>, index: u64, round: u64) -> Pattern {
    let generation = if index.is_multiple_of(STORES_ONE_IN) {
        u32::try_from(round).unwrap_or(u32::MAX)
    } else {
        0
    };
    file_page(options.seed, 0, index, generation)
}
