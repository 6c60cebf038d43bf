//! `direct`: reads and writes a file past the guest's page cache, from and into its own memory, and finds the same through the page cache, by
//! reading and by mapping; and the other way round.

use crate::call::{self, Chunk, say};
use crate::file_call::{self, File};
use guest_programs::abi::{Error, map_flags};
use guest_programs::files::{map, open};
use guest_programs::options::DirectOptions;
use guest_programs::pattern::{Page, WORDS, file_page};

/// Pages of the buffer, which are read or written at a time.
const BATCH: u64 = 512;

/// Runs its rounds; the exit status is 1 if a check failed, 3 if a call did.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match DirectOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let (mut failed, mut round) = (0, 0);
    while options.rounds.is_none_or(|rounds| round < rounds) {
        match run(&options, u32::try_from(round % 1000).unwrap_or(0) * 10) {
            Ok(wrong) => failed += wrong,
            Err((what, error)) => {
                say(format_args!("{what}: {error:?}"));
                return 3;
            }
        }
        round += 1;
    }
    say(format_args!("{round} rounds, {failed} checks failed"));
    u64::from(failed > 0)
}

type Failure = (&'static str, Error);

struct Run<'a> {
    options: &'a DirectOptions,
    direct: File,
    cached: File,
    buffer: Chunk,
    ok: u64,
    failed: u64,
}

/// A round, which writes generations from `first` on; how many checks failed.
fn run(options: &DirectOptions, first: u32) -> Result<u64, Failure> {
    let path = "/direct";
    let flags = open::CREATE | open::TRUNCATE | open::DIRECT;
    let direct = File::open(path, flags).map_err(|error| ("open", error))?;
    let cached = File::open(path, 0).map_err(|error| ("open", error))?;
    // Every second round in huge pages.
    let flags = if first.is_multiple_of(20) {
        map_flags::NO_HUGE
    } else {
        0
    };
    let mut run = Run {
        options,
        direct,
        cached,
        buffer: Chunk::map(flags).map_err(|error| ("map", error))?,
        ok: 0,
        failed: 0,
    };
    run.everything(first)?;
    let Run {
        ok, failed, buffer, ..
    } = run;
    buffer.unmap();
    for file in [direct, cached] {
        file.sync().map_err(|error| ("fsync", error))?;
        file.close().map_err(|error| ("close", error))?;
    }
    call::report(ok, failed);
    Ok(failed)
}

impl Run<'_> {
    fn everything(&mut self, first: u32) -> Result<(), Failure> {
        let nr_pages = self.options.pages;
        let half = nr_pages / 2;
        // Behind a hole first, and then into it.
        self.write_direct((half, nr_pages), first + 1)?;
        self.check_direct((0, half), None)?;
        self.write_direct((0, half), first + 2)?;
        self.check_cached(|index| first + 1 + u32::from(index < half))?;
        // What is in memory by now is replaced, also where it is mapped.
        let mut mapping = self.map()?;
        self.write_direct((0, nr_pages), first + 3)?;
        self.check_cached(|_| first + 3)?;
        for index in 0..nr_pages {
            self.check(
                is_page(self.options, index, first + 3, mapping.page(index)),
                "a mapped page",
            );
        }
        // What is stored and written is found past the cache.
        for index in (0..nr_pages).step_by(3) {
            file_page(self.options.seed, 0, index, first + 4).fill(mapping.page_mut(index));
        }
        let mut page = [0; WORDS];
        for index in (1..nr_pages).step_by(3) {
            file_page(self.options.seed, 0, index, first + 5).fill(&mut page);
            let written = self.cached.write_pages(core::slice::from_ref(&page), index);
            self.check(written == Ok(4096), "a write");
        }
        let newest = move |index| first + [4, 5, 3][usize::try_from(index % 3).unwrap_or(0)];
        self.check_direct((0, nr_pages), Some(&newest))?;
        mapping.unmap();
        // Whole pages or nothing, and only what is the program's own to be written to.
        let bad = self.direct.read_bytes_at((self.buffer.address() + 8, 4096), 0);
        self.check(bad == Err(Error::Invalid), "half a page of memory");
        let bad = self.direct.read_bytes_at((self.buffer.address(), 100), 0);
        self.check(bad == Err(Error::Invalid), "half a page of the file");
        let bad = self.direct.read_bytes_at((4096, 4096), 0);
        self.check(bad == Err(Error::Fault), "memory that is not there");
        let behind = self
            .direct
            .read_bytes_at((self.buffer.address(), 4096), nr_pages * 4096);
        self.check(behind == Ok(0), "a read behind the end");
        Ok(())
    }

    fn map(&self) -> Result<file_call::Mapping, Failure> {
        let mapped = self.cached.map(self.options.pages, map::SHARED | map::WRITE);
        mapped.map_err(|error| ("map", error))
    }

    fn write_direct(&mut self, (first, end): (u64, u64), generation: u32) -> Result<(), Failure> {
        for start in (first..end).step_by(usize::try_from(BATCH).unwrap_or(1)) {
            let nr = (end - start).min(BATCH);
            for (index, (_, page)) in (start..start + nr).zip(self.buffer.pages_mut()) {
                file_page(self.options.seed, 0, index, generation).fill(page);
            }
            let from = (self.buffer.address(), nr * 4096);
            let written = self.direct.write_bytes_at(from, start * 4096);
            let written = written.map_err(|error| ("direct write", error))?;
            self.check(written == nr * 4096, "the length of a direct write");
        }
        Ok(())
    }

    /// Reads past the cache, and finds pages of a generation, or zeroes.
    fn check_direct(
        &mut self,
        (first, end): (u64, u64),
        generation: Option<&dyn Fn(u64) -> u32>,
    ) -> Result<(), Failure> {
        for start in (first..end).step_by(usize::try_from(BATCH).unwrap_or(1)) {
            let nr = (end - start).min(BATCH);
            self.buffer.pages_mut().for_each(|(_, page)| page.fill(u64::MAX));
            let read = self
                .direct
                .read_bytes_at((self.buffer.address(), nr * 4096), start * 4096);
            let read = read.map_err(|error| ("direct read", error))?;
            let (mut ok, mut failed) = (u64::from(read == nr * 4096), u64::from(read != nr * 4096));
            for (index, (_, page)) in (start..start + nr).zip(self.buffer.pages()) {
                let is_right = match generation {
                    Some(generation) => is_page(self.options, index, generation(index), page),
                    None => *page == [0; WORDS],
                };
                ok += u64::from(is_right);
                failed += u64::from(!is_right);
            }
            (self.ok, self.failed) = (self.ok + ok, self.failed + failed);
            if failed > 0 {
                say(format_args!(
                    "{failed} pages from {start} on, read past the cache: wrong"
                ));
            }
        }
        Ok(())
    }

    fn check_cached(&mut self, generation: impl Fn(u64) -> u32) -> Result<(), Failure> {
        let mut page = [0; WORDS];
        for index in 0..self.options.pages {
            let read = self.cached.read_pages(core::slice::from_mut(&mut page), index);
            let read = read.map_err(|error| ("read", error))?;
            let is_right = read == 4096 && is_page(self.options, index, generation(index), &page);
            self.check(is_right, "a page in the cache");
        }
        Ok(())
    }

    fn check(&mut self, is_right: bool, what: &str) {
        self.ok += u64::from(is_right);
        self.failed += u64::from(!is_right);
        if !is_right && self.failed <= 5 {
            say(format_args!("{what} is wrong"));
        }
    }
}

fn is_page(options: &DirectOptions, index: u64, generation: u32, page: &Page) -> bool {
    file_page(options.seed, 0, index, generation).check(page).is_ok()
}
