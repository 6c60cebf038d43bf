//! Work that needs more memory than there is: the same as `tests/benches/vm/reclaim.rs` does with the library.

use super::{Failure, PAGE, failed, figure};
use crate::call;
use crate::call::say;
use crate::file_call::File;
use guest_programs::abi::{SystemInfo, map_flags};
use guest_programs::files::map;
use guest_programs::options::BenchOptions;
use guest_programs::pattern::{Random, WORDS};

/// Accesses of `paging`.
const ACCESSES: u64 = 200_000;
/// Those of `mapped`.
const FILE_ACCESSES: u64 = 40_000;
/// Pages of the file that `mixed` reads, and accesses for each.
const READ_PAGES: u64 = 16_384;
const ACCESSES_PER_READ: u64 = 16;

/// Memory whose pages have numbers in their first words that change with each store.
struct Area {
    start: u64,
    pages: u64,
    random: Random,
    /// What is in the first word of each page.
    words: u64,
    /// Whether that is known of each page before it is used for the first time: until then it is 0 here.
    is_known: bool,
    is_right: bool,
}

impl Area {
    fn new(bytes: u64) -> Result<Self, Failure> {
        let pages = bytes.div_ceil(PAGE);
        let start = call::map(pages * PAGE, map_flags::NO_HUGE).map_err(failed("map"))?;
        Self::of(start, pages)
    }

    /// Memory that is mapped already.
    fn of(start: u64, pages: u64) -> Result<Self, Failure> {
        let words = call::map(pages * 8, map_flags::NO_HUGE).map_err(failed("map"))?;
        Ok(Self {
            start,
            pages,
            random: Random::new(0x5eed),
            words,
            is_known: true,
            is_right: true,
        })
    }

    fn load(&mut self, page: u64) {
        let found = call::read_word(self.start + page * PAGE);
        let expected = call::read_word(self.words + page * 8);
        if expected == 0 && !self.is_known {
            call::write_word(self.words + page * 8, found);
        } else {
            self.is_right &= found == expected;
        }
    }

    fn store(&mut self, page: u64) {
        self.load(page);
        let word = call::read_word(self.words + page * 8).wrapping_add(page + 1);
        call::write_word(self.words + page * 8, word);
        call::write_word(self.start + page * PAGE, word);
    }

    /// One of the pages, the first quarter of them seven times of eight; one access in four is a store.
    fn use_some_page(&mut self) {
        let among = match self.random.below(8) {
            0 => self.pages,
            _ => self.pages / 4,
        };
        let page = self.random.below(among.max(1));
        match self.random.below(4) {
            0 => self.store(page),
            _ => self.load(page),
        }
    }

    /// Every page, one after the other, whatever is there.
    fn fill(&mut self) {
        for page in 0..self.pages {
            call::write_word(self.words + page * 8, page + 1);
            call::write_word(self.start + page * PAGE, page + 1);
        }
    }

    fn check(&self) -> Result<(), Failure> {
        self.is_right.then_some(()).ok_or(Failure::Wrong("memory"))
    }
}

/// What the guest has done since `before`.
fn report(name: &str, before: &SystemInfo) {
    let now = call::system_info();
    let read = now.swapped_in - before.swapped_in + now.file_in - before.file_in;
    let (scanned, freed) = (now.scanned - before.scanned, now.freed - before.freed);
    let out = now.swapped_out - before.swapped_out;
    say(format_args!(
        "{name}, pages: {read} read, {out} swapped out, {scanned} scanned, {freed} freed"
    ));
}

/// Milliseconds between two looks at what has arrived on the disk, and most of those looks.
const LOOK_MS: u64 = 1;
const MOST_LOOKS: u64 = 60_000;

/// Has memory leave for the swap area, and waits until all of it has arrived there.
pub(super) fn page_out(start: u64, bytes: u64) -> Result<(), Failure> {
    let wanted = call::system_info().swapped_out + bytes / PAGE;
    call::page_out(start, bytes).map_err(failed("page out"))?;
    for _ in 0..MOST_LOOKS {
        if call::system_info().swapped_out >= wanted {
            return Ok(());
        }
        call::sleep_ms(LOOK_MS);
    }
    Err(Failure::Wrong("pages that leave"))
}

/// Memory leaves, and is read again from its beginning to its end. Nothing else is short of memory meanwhile.
pub(super) fn swap(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let mut area = Area::new(options.size)?;
    for _ in 0..options.rounds {
        area.fill();
        let start = call::clock();
        page_out(area.start, area.pages * PAGE)?;
        figure("swap-out", area.pages, start);
        let (before, start) = (call::system_info().swapped_in, call::clock());
        (0..area.pages).for_each(|page| area.load(page));
        figure("swap-in", area.pages, start);
        if call::system_info().swapped_in - before < area.pages {
            return Err(Failure::Wrong("pages that come back"));
        }
    }
    area.check()
}

/// Memory is filled, which pushes out what was filled first if there is less, and read again.
pub(super) fn fill(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let mut area = Area::new(options.size)?;
    let (before, start) = (call::system_info(), call::clock());
    area.fill();
    figure("filled", area.pages, start);
    report("filled", &before);
    let (before, start) = (call::system_info(), call::clock());
    (0..area.pages).for_each(|page| area.load(page));
    figure("read again", area.pages, start);
    report("read again", &before);
    area.check()
}

/// A file is read through once while some memory is used again and again.
pub(super) fn reading(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let mut hot = Area::new(options.size)?;
    hot.fill();
    let mut file = Reading::open(options)?;
    let (before, start) = (call::system_info(), call::clock());
    for page in 0..options.pages {
        if page % 16 == 0 {
            (0..hot.pages / 64).for_each(|n| hot.store((page + n * 64) % hot.pages));
        }
        file.read_next()?;
    }
    figure("reading", 1, start);
    report("reading", &before);
    hot.check()
}

/// More memory is used than there is.
pub(super) fn paging(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let mut area = Area::new(options.size)?;
    let (before, start) = (call::system_info(), call::clock());
    area.fill();
    (0..ACCESSES).for_each(|_| area.use_some_page());
    figure("paging", 1, start);
    report("paging", &before);
    area.check()
}

/// Memory is used while a file is read over and over.
pub(super) fn mixed(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let mut area = Area::new(options.size)?;
    let mut file = Reading::open(options)?;
    let (before, start) = (call::system_info(), call::clock());
    area.fill();
    for _ in 0..READ_PAGES {
        (0..ACCESSES_PER_READ).for_each(|_| area.use_some_page());
        file.read_next()?;
    }
    figure("mixed", 1, start);
    report("mixed", &before);
    area.check()
}

/// A file that is twice as large as memory, mapped and used as memory is in `paging`.
pub(super) fn mapped(options: &BenchOptions<'_>) -> Result<(), Failure> {
    let file = File::open(options.file, 0).map_err(failed("open"))?;
    let mapping = file.map(options.pages, map::SHARED | map::WRITE);
    let mapping = mapping.map_err(failed("map a file"))?;
    let mut area = Area::of(mapping.address_of(0), options.pages)?;
    area.is_known = false;
    let (before, start) = (call::system_info(), call::clock());
    (0..FILE_ACCESSES).for_each(|_| area.use_some_page());
    mapping.sync().map_err(failed("sync"))?;
    figure("mapped", 1, start);
    report("mapped", &before);
    area.check()
}

/// A file, and how far it was read.
struct Reading {
    file: File,
    pages: u64,
    next: u64,
}

impl Reading {
    fn open(options: &BenchOptions<'_>) -> Result<Self, Failure> {
        Ok(Self {
            file: File::open(options.file, 0).map_err(failed("open"))?,
            pages: options.pages,
            next: 0,
        })
    }

    /// The next page, from the beginning again after the last one.
    fn read_next(&mut self) -> Result<(), Failure> {
        let mut page = [[0; WORDS]; 1];
        let at = self.next % self.pages;
        let read = self.file.read_pages(&mut page, at).map_err(failed("read"))?;
        self.next += 1;
        (read == PAGE).then_some(()).ok_or(Failure::Wrong("size"))
    }
}
