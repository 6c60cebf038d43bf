//! `bench`: does one piece of work, and says how long it took by the guest's clock and what it cost in pages. Each figure is a line,
//! `NAME: N in T ns`.

mod faults;
mod paging;
mod slices;

use crate::call::{self, say};
use crate::file_call::{self, File};
use guest_programs::abi::Error;
use guest_programs::files::open;
use guest_programs::options::{BenchOptions, BenchWork};
use guest_programs::pattern::{Page, WORDS};

/// Pages that are read or written at a time.
const BATCH: usize = 32;
/// Bytes of a page.
const PAGE: u64 = 4096;

/// Why the work was not done.
enum Failure {
    /// What was called, and the error.
    Call(&'static str, Error),
    /// Something else was there than what was put there.
    Wrong(&'static str),
}

/// See the module; the exit status is 1 if a check failed, 3 if a call did.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match BenchOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let outcome = match options.work {
        Some(BenchWork::Faults) => faults::run(&options),
        Some(BenchWork::Files) => files(&options),
        Some(BenchWork::Swap) => paging::swap(&options),
        Some(BenchWork::Fill) => paging::fill(&options),
        Some(BenchWork::Reading) => paging::reading(&options),
        Some(BenchWork::Paging) => paging::paging(&options),
        Some(BenchWork::Mixed) => paging::mixed(&options),
        Some(BenchWork::MappedFile) => paging::mapped(&options),
        Some(BenchWork::Slices) => slices::run(&options),
        None => {
            say(format_args!("work=?"));
            return 2;
        }
    };
    match outcome {
        Ok(()) => 0,
        Err(Failure::Call(what, error)) => {
            say(format_args!("{what}: {error:?}"));
            3
        }
        Err(Failure::Wrong(what)) => {
            say(format_args!("{what}: not what was written"));
            1
        }
    }
}

/// A figure: so many, since a time.
fn figure(name: &str, count: u64, since: u64) {
    let ns = call::clock().saturating_sub(since);
    say(format_args!("{name}: {count} in {ns} ns"));
}

fn failed(what: &'static str) -> impl Fn(Error) -> Failure {
    move |error| Failure::Call(what, error)
}

/// The file from the disk, then from memory, then another one written and synced.
fn files(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let file = File::open(options.file, 0).map_err(failed("open"))?;
    let start = call::clock();
    read_all(file, options.pages)?;
    figure("read from the disk", options.pages, start);
    for _ in 0..options.rounds {
        let start = call::clock();
        read_all(file, options.pages)?;
        figure("read in memory", options.pages, start);
    }
    file.close().map_err(failed("close"))?;
    for round in 0..options.rounds {
        write_all(options.pages, round + 1)?;
    }
    Ok(())
}

fn read_all(file: File, pages: u64) -> Result<(), Failure> {
    let mut batch = [[0; WORDS]; BATCH];
    for first in (0..pages).step_by(BATCH) {
        let read = file.read_pages(&mut batch, first).map_err(failed("read"))?;
        if read != PAGE * (pages - first).min(BATCH as u64) {
            return Err(Failure::Wrong("size"));
        }
    }
    Ok(())
}

/// A new file, whose first and last page are looked at afterwards.
fn write_all(pages: u64, word: u64) -> Result<(), Failure> {
    const PATH: &str = "/written";
    let mut batch: [Page; BATCH] = [[word; WORDS]; BATCH];
    let file = File::open(PATH, open::CREATE).map_err(failed("create"))?;
    let start = call::clock();
    for first in (0..pages).step_by(BATCH) {
        let left = usize::try_from(pages - first).unwrap_or(BATCH).min(BATCH);
        file.write_pages(&batch[..left], first).map_err(failed("write"))?;
    }
    file.sync().map_err(failed("sync"))?;
    figure("written and synced", pages, start);
    for page in [0, pages - 1] {
        batch[0] = [0; WORDS];
        file.read_pages(&mut batch[..1], page).map_err(failed("read"))?;
        if batch[0] != [word; WORDS] {
            return Err(Failure::Wrong("written"));
        }
    }
    file.close().map_err(failed("close"))?;
    file_call::remove(PATH).map_err(failed("remove"))
}
