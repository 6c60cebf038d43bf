//! `files` writes files over and over and finds in them what it wrote, through reads and through mappings; `names` makes, finds and
//! takes away names.

use crate::call::{self, say};
use crate::checks::Checks;
use crate::file_call::{self, File};
use core::fmt::{self, Write};
use guest_programs::abi::Error;
use guest_programs::files::{MAX_NAME, map, open};
use guest_programs::options::{FilesMode, FilesOptions, NamesOptions};
use guest_programs::pattern::{Page, Random, WORDS, file_page};

/// Pages that are read or written at a time.
const BATCH: usize = 16;

/// A path made of parts.
pub(crate) struct Path {
    bytes: [u8; 96],
    len: usize,
}

impl Path {
    fn new(parts: fmt::Arguments<'_>) -> Self {
        let mut path = Self {
            bytes: [0; 96],
            len: 0,
        };
        // One that is too long is cut off, and not found.
        let _ = path.write_fmt(parts);
        path
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits;
        Ok(())
    }
}

/// `files`: see the module.
pub(crate) fn files<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match FilesOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    match run_files(&options) {
        Ok(0) => 0,
        Ok(failed) => {
            say(format_args!("{failed} checks failed"));
            1
        }
        Err((what, error)) => {
            say(format_args!("{what}: {error:?}"));
            3
        }
    }
}

type Failure = (&'static str, Error);

fn run_files(options: &FilesOptions<'_>) -> Result<u64, Failure> {
    let mut checks = Checks::default();
    call::adjust_oom_score(options.oom_score_adj).map_err(|error| ("oom", error))?;
    match file_call::make_directory(options.directory) {
        Ok(()) | Err(Error::Exists) => {}
        Err(error) => return Err(("directory", error)),
    }
    let (mut generation, mut round) = (options.generation, 0_u64);
    while options.rounds.is_none_or(|rounds| round < rounds) {
        for number in 0..options.files {
            if options.mode == FilesMode::Write {
                write_file(options, number, generation)?;
            }
            if options.reads {
                check_read(options, number, generation, &mut checks)?;
            }
        }
        for number in 0..options.files {
            check_mapping(options, number, generation, &mut checks)?;
        }
        checks.report();
        // One that only looks finds the same each time.
        generation += u32::from(options.mode == FilesMode::Write);
        round += 1;
    }
    say(format_args!("{round} rounds, {} checks failed", checks.failed()));
    Ok(checks.failed())
}

fn path(options: &FilesOptions<'_>, number: u64) -> Path {
    Path::new(format_args!("{}/file{number}", options.directory))
}

/// Writes a file in batches, the odd ones first, half of them through a shared mapping, and syncs it.
fn write_file(options: &FilesOptions<'_>, number: u64, generation: u32) -> Result<(), Failure> {
    let file = File::open(path(options, number).as_str(), open::CREATE).map_err(|error| ("open", error))?;
    let mut pages = [[0; WORDS]; BATCH];
    for odd in [1, 0] {
        let mut first = odd * BATCH as u64;
        while first < options.pages {
            let nr = (options.pages - first).min(BATCH as u64);
            for (index, page) in (first..first + nr).zip(&mut pages) {
                file_page(options.seed, number, index, generation).fill(page);
            }
            let batch = &pages[..usize::try_from(nr).unwrap_or(0)];
            write_all(file, batch, first)?;
            first += 2 * BATCH as u64;
        }
    }
    if options.maps {
        let mapped = file.map(options.pages, map::SHARED | map::WRITE);
        let mut mapping = mapped.map_err(|error| ("map", error))?;
        for index in (0..options.pages).step_by(3) {
            file_page(options.seed, number, index, generation).fill(mapping.page_mut(index));
        }
        mapping.sync().map_err(|error| ("msync", error))?;
        mapping.unmap();
    }
    if options.syncs {
        file.sync().map_err(|error| ("fsync", error))?;
        say(format_args!("synced {number} {generation}"));
    }
    file.close().map_err(|error| ("close", error))
}

fn write_all(file: File, batch: &[Page], first: u64) -> Result<(), Failure> {
    let written = file.write_pages(batch, first).map_err(|error| ("write", error))?;
    match written == size_of_val(batch) as u64 {
        true => Ok(()),
        false => Err(("short write", Error::NoSpace)),
    }
}

/// Reads a file from its beginning to its end.
fn check_read(
    options: &FilesOptions<'_>,
    number: u64,
    generation: u32,
    checks: &mut Checks,
) -> Result<(), Failure> {
    let file = File::open(path(options, number).as_str(), 0).map_err(|error| ("open", error))?;
    let mut pages = [[0; WORDS]; BATCH];
    let mut first = 0;
    while first < options.pages {
        let nr = (options.pages - first).min(BATCH as u64);
        let batch = &mut pages[..usize::try_from(nr).unwrap_or(0)];
        let bytes = size_of_val(batch) as u64;
        let read = file.read_pages(batch, first).map_err(|error| ("read", error))?;
        checks.note(read == bytes);
        for (index, page) in (first..).zip(batch) {
            checks.note(is_right(options, (number, index, generation), page));
        }
        first += nr;
    }
    file.close().map_err(|error| ("close", error))
}

/// Looks at a file through a private mapping, in no order, and stores to some of it, which nobody else is to see.
fn check_mapping(
    options: &FilesOptions<'_>,
    number: u64,
    generation: u32,
    checks: &mut Checks,
) -> Result<(), Failure> {
    if !options.maps {
        return Ok(());
    }
    let file = File::open(path(options, number).as_str(), 0).map_err(|error| ("open", error))?;
    let mapped = file.map(options.pages, map::WRITE);
    let mut mapping = mapped.map_err(|error| ("map", error))?;
    file.close().map_err(|error| ("close", error))?;
    let mut random = Random::new(options.seed ^ u64::from(generation));
    for _ in 0..options.pages {
        let index = random.below(options.pages);
        // A page that was stored to has the next generation's pattern, for this program alone.
        let is_own = index % 8 == 7 && mapping.page(index)[0] == 0;
        if !is_own {
            checks.note(is_right(
                options,
                (number, index, generation),
                mapping.page(index),
            ));
        }
        if index % 8 == 7 {
            mapping.page_mut(index)[0] = 0;
        }
    }
    mapping.unmap();
    Ok(())
}

fn is_right(options: &FilesOptions<'_>, (number, index, generation): (u64, u64, u32), page: &Page) -> bool {
    let checked = file_page(options.seed, number, index, generation).check(page);
    if let Err(wrong) = checked {
        say(format_args!(
            "file {number}, page {index}: word {} is {:#x}, not {:#x}",
            wrong.index, wrong.found, wrong.expected
        ));
    }
    checked.is_ok()
}

/// A file that is open at a fork has one position for both, and is open in either when the other has closed it.
fn share_over_fork(directory: &str, checks: &mut Checks) -> Result<(), Failure> {
    let path = Path::new(format_args!("{directory}/shared"));
    let flags = open::CREATE | open::TRUNCATE;
    let file = File::open(path.as_str(), flags).map_err(|error| ("create", error))?;
    let write = |text: &[u8]| file.write(text).map_err(|error| ("write", error));
    write(b"parent, ")?;
    let Some(child) = call::fork().map_err(|error| ("fork", error))? else {
        let status = u64::from(write(b"child, ") != Ok(7) || file.close().is_err());
        call::exit(status);
    };
    let ended = call::wait(child).map_err(|error| ("wait", error))?;
    checks.note(ended == 0);
    write(b"parent")?;
    let mut bytes = [0; 32];
    file.seek(0).map_err(|error| ("seek", error))?;
    let read = file.read(&mut bytes).map_err(|error| ("read", error))?;
    checks.note(read == 21 && bytes.starts_with(b"parent, child, parent"));
    file.close().map_err(|error| ("close", error))?;
    // Whoever opens it to append writes behind what is there.
    let file = File::open(path.as_str(), open::APPEND).map_err(|error| ("open", error))?;
    file.write(b".").map_err(|error| ("append", error))?;
    file.close().map_err(|error| ("close", error))?;
    checks.note(file_call::stat(path.as_str()).is_ok_and(|stat| stat.size == 22));
    checks.note(file.close() == Err(Error::BadDescriptor));
    file_call::remove(path.as_str()).map_err(|error| ("remove", error))
}

/// `names`: see the module.
pub(crate) fn names<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match NamesOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let mut checks = Checks::default();
    let outcome = (0..options.times).try_for_each(|_| run_names(&options, &mut checks));
    checks.report();
    match outcome {
        Ok(()) => say(format_args!(
            "{} names, {} checks failed",
            options.count,
            checks.failed()
        )),
        Err((what, error)) => {
            say(format_args!("{what}: {error:?}"));
            return 3;
        }
    }
    u64::from(checks.failed() > 0)
}

/// Takes away what somebody has left in a directory whose end came before he had.
fn empty(directory: &str) -> Result<(), Failure> {
    let mut found = [0; MAX_NAME];
    loop {
        let len = file_call::nth_name(directory, 0, &mut found).map_err(|error| ("list", error))?;
        let len = usize::try_from(len).unwrap_or(0);
        let name = found.get(..len).and_then(|name| core::str::from_utf8(name).ok());
        match name {
            None | Some("") => return Ok(()),
            Some(name) => {
                let path = Path::new(format_args!("{directory}/{name}"));
                file_call::remove(path.as_str()).map_err(|error| ("remove what was left", error))?;
            }
        }
    }
}

fn run_names(options: &NamesOptions<'_>, checks: &mut Checks) -> Result<(), Failure> {
    let directory = options.directory;
    match file_call::make_directory(directory) {
        Ok(()) => {}
        Err(Error::Exists) => empty(directory)?,
        Err(error) => return Err(("directory", error)),
    }
    share_over_fork(directory, checks)?;
    let name = |number: u64| Path::new(format_args!("{directory}/n{number}"));
    for number in 0..options.count {
        let file = File::open(name(number).as_str(), open::CREATE).map_err(|error| ("create", error))?;
        let wrote = file
            .write(&number.to_le_bytes())
            .map_err(|error| ("write", error))?;
        checks.note(wrote == 8);
        file.close().map_err(|error| ("close", error))?;
    }
    for round in 0..options.rounds {
        for number in 0..options.count {
            let missing = Path::new(format_args!("{directory}/none{number}"));
            checks.note(file_call::stat(missing.as_str()) == Err(Error::NotFound));
            let stat = file_call::stat(name(number).as_str()).map_err(|error| ("stat", error))?;
            checks.note((stat.size, stat.is_directory) == (8, 0));
            let file = File::open(name(number).as_str(), 0).map_err(|error| ("open", error))?;
            let mut bytes = [0; 8];
            let at_end = file.seek(u64::MAX).map_err(|error| ("seek", error))?;
            file.seek(0).map_err(|error| ("seek", error))?;
            let read = file.read(&mut bytes).map_err(|error| ("read", error))?;
            checks.note((at_end, read, u64::from_le_bytes(bytes)) == (8, 8, number));
            file.close().map_err(|error| ("close", error))?;
        }
        checks.report();
        say(format_args!("round {round}: {} checks failed", checks.failed()));
    }
    let mut found = [0; MAX_NAME];
    let listed =
        (0..).take_while(|nth| file_call::nth_name(directory, *nth, &mut found).is_ok_and(|len| len > 0));
    checks.note(listed.take(4).count() as u64 == options.count.min(4));
    for number in 0..options.count {
        let file = File::open(name(number).as_str(), 0).map_err(|error| ("open", error))?;
        file.set_size(4).map_err(|error| ("cut", error))?;
        file_call::remove(name(number).as_str()).map_err(|error| ("remove", error))?;
        checks.note(file_call::stat(name(number).as_str()) == Err(Error::NotFound));
        // What is open stays until it is closed.
        let mut bytes = [0xFF; 8];
        checks.note(file.read(&mut bytes) == Ok(4));
        file.close().map_err(|error| ("close", error))?;
    }
    file_call::remove(directory).map_err(|error| ("remove directory", error))
}
