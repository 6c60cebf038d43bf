//! Faults by kind: each page of some memory is touched once.

use super::{Failure, PAGE, failed, figure, paging};
use crate::call;
use crate::file_call::File;
use guest_programs::abi::{Error, map_flags};
use guest_programs::files::map;
use guest_programs::options::BenchOptions;
use guest_programs::pattern::WORDS;

/// Calls that do nothing but tell the time.
const CALLS: u64 = 2000;
/// Bytes of a huge page.
const HUGE: u64 = 2 << 20;

/// Pages that are read together when one is missing, aligned: of a file, and of the swap area for one who goes backwards.
const READ_TOGETHER: u64 = 8;

/// Each kind, round after round.
pub(super) fn run(options: &BenchOptions<'_>) -> Result<(), Failure> {
    for round in 0..options.rounds {
        let start = call::clock();
        (0..CALLS).for_each(|_| {
            call::clock();
        });
        figure("system call", CALLS, start);
        anonymous(options.size)?;
        copy_on_write(options.size)?;
        file(options)?;
        file_from_disk(options, round + 1)?;
        first_store(options)?;
        swapped(options.size)?;
    }
    Ok(())
}

fn store(start: u64, bytes: u64, step: u64) -> u64 {
    let pages = bytes / step;
    (0..pages).for_each(|page| call::write_word(start + page * step, page + 1));
    pages
}

fn anonymous(bytes: u64) -> Result<(), Failure> {
    let small = call::map(bytes, map_flags::NO_HUGE).map_err(failed("map"))?;
    let start = call::clock();
    let pages = store(small, bytes, PAGE);
    figure("fault, anonymous 4 KiB", pages, start);
    call::unmap(small, bytes);

    let zeroes = call::map(bytes, map_flags::NO_HUGE).map_err(failed("map"))?;
    let start = call::clock();
    let sum: u64 = (0..pages).map(|page| call::read_word(zeroes + page * PAGE)).sum();
    figure("fault, zero page", pages, start);
    call::unmap(zeroes, bytes);
    if sum != 0 {
        return Err(Failure::Wrong("zero page"));
    }

    let large = call::map(bytes, 0).map_err(failed("map"))?;
    let start = call::clock();
    let pages = store(large, bytes, HUGE);
    figure("fault, anonymous 2 MiB", pages, start);
    call::unmap(large, bytes);
    Ok(())
}

/// The child stores to what it shares with its parent.
fn copy_on_write(bytes: u64) -> Result<(), Failure> {
    let shared = call::map(bytes, map_flags::NO_HUGE).map_err(failed("map"))?;
    let pages = store(shared, bytes, PAGE);
    let before = call::clock();
    let Some(child) = call::fork().map_err(failed("fork"))? else {
        let start = call::clock();
        (0..pages).for_each(|page| call::write_word(shared + page * PAGE, 0));
        figure("fault, copy-on-write 4 KiB", pages, start);
        call::exit(0);
    };
    figure("fork, page", pages, before);
    if call::wait(child).map_err(failed("wait"))? != 0 {
        return Err(Failure::Call("wait", Error::Fault));
    }
    let is_kept = (0..pages).all(|page| call::read_word(shared + page * PAGE) == page + 1);
    call::unmap(shared, bytes);
    is_kept.then_some(()).ok_or(Failure::Wrong("copy-on-write"))
}

/// Pages of a file that are in memory are mapped one by one.
fn file(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let file = File::open(options.file, 0).map_err(failed("open"))?;
    let mut page = [[0; WORDS]; 1];
    let mut expected: u64 = 0;
    for index in 0..options.pages {
        file.read_pages(&mut page, index).map_err(failed("read"))?;
        expected = expected.wrapping_add(page[0][0]);
    }
    let mapping = file.map(options.pages, 0).map_err(failed("map a file"))?;
    let start = call::clock();
    let sum = (0..options.pages).fold(0, |sum: u64, index| sum.wrapping_add(mapping.page(index)[0]));
    figure("fault, file page in memory", options.pages, start);
    mapping.unmap();
    file.close().map_err(failed("close"))?;
    (sum == expected)
        .then_some(())
        .ok_or(Failure::Wrong("mapped file"))
}

/// Pages of a file that nobody has read yet, in the part behind the one that [`file`] uses which is this round's: each fault reads a few with
/// the one that is wanted, and none of those is touched.
fn file_from_disk(options: &BenchOptions<'_>, round: u64) -> Result<(), Failure> {
    let file = File::open(options.file, 0).map_err(failed("open"))?;
    let first = round * options.pages;
    let mapping = file.map(first + options.pages, 0).map_err(failed("map a file"))?;
    let before = call::system_info().file_in;
    let faults = options.pages / READ_TOGETHER;
    let start = call::clock();
    for fault in 0..faults {
        call::read_word(mapping.address_of(first + fault * READ_TOGETHER));
    }
    figure("fault, file page from the disk", faults, start);
    let read = call::system_info().file_in - before;
    mapping.unmap();
    file.close().map_err(failed("close"))?;
    (read >= faults)
        .then_some(())
        .ok_or(Failure::Wrong("a file that was not in memory"))
}

/// Stores to pages of a file that are mapped, shared, in memory and clean: each becomes dirty. They are written before the next round.
fn first_store(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let file = File::open(options.file, 0).map_err(failed("open"))?;
    let mapping = file.map(options.pages, map::SHARED | map::WRITE);
    let mapping = mapping.map_err(failed("map a file"))?;
    let places = || (0..options.pages).map(|index| mapping.address_of(index));
    let sum = places().fold(0, |sum: u64, va| sum.wrapping_add(call::read_word(va)));
    let start = call::clock();
    places().for_each(|va| call::write_word(va + 8, sum));
    figure("fault, first store to a file page", options.pages, start);
    let is_there = places().all(|va| call::read_word(va + 8) == sum);
    mapping.sync().map_err(failed("sync"))?;
    mapping.unmap();
    file.close().map_err(failed("close"))?;
    is_there.then_some(()).ok_or(Failure::Wrong("stores to a file"))
}

/// Pages in the swap area, from the last to the first: each fault reads a few with the one that is wanted, and none of those is touched.
fn swapped(bytes: u64) -> Result<(), Failure> {
    let start = call::map(bytes, map_flags::NO_HUGE).map_err(failed("map"))?;
    let pages = store(start, bytes, PAGE);
    paging::page_out(start, bytes)?;
    let faults = pages / READ_TOGETHER;
    let since = call::clock();
    let sum: u64 = (1..=faults)
        .map(|fault| call::read_word(start + (pages - fault * READ_TOGETHER) * PAGE))
        .sum();
    figure("fault, swap-in", faults, since);
    call::unmap(start, bytes);
    let expected = (1..=faults).map(|fault| pages - fault * READ_TOGETHER + 1).sum();
    (sum == expected)
        .then_some(())
        .ok_or(Failure::Wrong("swapped memory"))
}
