//! `shared`: memory that programs share, by forking and by a name under `/shm`, and words of it on which they wait for each other.

use crate::call::{self, Chunk, say};
use crate::checks::Checks;
use crate::file_call::{self, File};
use crate::memory_call::{self, Shared, futex_wait, futex_wait_for_ever, futex_wake, now};
use core::sync::atomic::Ordering::SeqCst;
use guest_programs::abi::{Error, KILLED, map_flags};
use guest_programs::files::{MAX_NAME, map, open};
use guest_programs::options::{CHUNK, SharedMode, SharedOptions};
use guest_programs::pattern::{Page, WORDS, file_page};

/// Runs its rounds; the exit status is 1 if a check failed, 3 if a call did.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match SharedOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let mut checks = Checks::default();
    let outcome = match options.mode {
        SharedMode::All => all(&options, &mut checks),
        SharedMode::Victim => victim(&mut checks),
    };
    checks.report();
    if let Err((what, error)) = outcome {
        say(format_args!("{what}: {error:?}"));
        return 3;
    }
    say(format_args!("shared: {} checks failed", checks.failed()));
    if !options.stays {
        return u64::from(checks.failed() > 0);
    }
    loop {
        call::sleep_ms(1000);
    }
}

type Failure = (&'static str, Error);

fn all(options: &SharedOptions, checks: &mut Checks) -> Result<(), Failure> {
    turns(options, checks)?;
    answers(checks)?;
    as_many_as_asked(checks)?;
    named(options, checks)?;
    in_another_order(options, checks)
}

fn forked(child: impl FnOnce(&mut Checks)) -> Result<u64, Failure> {
    let Some(pid) = call::fork().map_err(|error| ("fork", error))? else {
        let mut checks = Checks::default();
        child(&mut checks);
        checks.report();
        call::exit(u64::from(checks.failed() > 0));
    };
    Ok(pid)
}

/// All of a family write to the same pages in turn: each finds what the one before has written.
fn turns(options: &SharedOptions, checks: &mut Checks) -> Result<(), Failure> {
    let memory = Shared::map(1 + options.pages).map_err(|error| ("map", error))?;
    let members = u32::from(options.children) + 1;
    let mut children = [0; 8];
    for (me, place) in (1..members).zip(&mut children) {
        *place = forked(|checks| take_turns(options, memory, (me, members), checks))?;
    }
    take_turns(options, memory, (0, members), checks);
    for pid in children.into_iter().filter(|&pid| pid > 0) {
        checks.check(call::wait(pid) == Ok(0), "a child's exit status");
    }
    checks.check(
        memory.word(0).load(SeqCst) == members * options.rounds,
        "the number of turns",
    );
    memory.unmap();
    Ok(())
}

fn take_turns(options: &SharedOptions, memory: Shared, (me, members): (u32, u32), checks: &mut Checks) {
    let turn = memory.word(0);
    for _ in 0..options.rounds {
        let mut now = turn.load(SeqCst);
        while now % members != me {
            match futex_wait_for_ever(memory.address_of(0), now) {
                Ok(()) | Err(Error::Again) => {}
                Err(_) => checks.check(false, "a wait"),
            }
            now = turn.load(SeqCst);
        }
        let mut page = [0; WORDS];
        for index in 1..=options.pages {
            let found = memory.read(index);
            let is_right = match now {
                0 => found == [0; WORDS],
                _ => file_page(options.seed, 0, index, now).check(&found).is_ok(),
            };
            checks.check(is_right, "a shared page");
            file_page(options.seed, 0, index, now + 1).fill(&mut page);
            memory.write(index, &page);
        }
        turn.fetch_add(1, SeqCst);
        let woken = futex_wake(memory.address_of(0), u32::MAX);
        checks.check(woken.is_ok_and(|woken| woken < members.into()), "a call");
    }
}

/// What a wait ends with, and whom a call does not reach.
fn answers(checks: &mut Checks) -> Result<(), Failure> {
    const SOON_NS: u64 = 30_000_000;
    let memory = Shared::map(1).map_err(|error| ("map", error))?;
    let word = memory.address_of(1);
    checks.check(
        futex_wait(word, 1, now() + SOON_NS) == Err(Error::Again),
        "another word",
    );
    let deadline = now() + SOON_NS;
    checks.check(
        futex_wait(word, 0, deadline) == Err(Error::TimedOut),
        "a wait in vain",
    );
    checks.check(now() >= deadline, "its end");
    checks.check(
        futex_wait(word + 1, 0, deadline) == Err(Error::Invalid),
        "half a word",
    );
    checks.check(futex_wait(8, 0, deadline) == Err(Error::Fault), "no word");
    checks.check(futex_wake(word, 1) == Ok(0), "a call for nobody");
    // A word of memory that is not shared is another one in a child.
    let chunk = Chunk::map(map_flags::NO_HUGE).map_err(|error| ("map", error))?;
    let own = chunk.address();
    let child = forked(|checks| {
        memory.word(2).store(1, SeqCst);
        let waited = futex_wait(own, 0, now() + 10 * SOON_NS);
        checks.check(waited == Err(Error::TimedOut), "a wait for a word of one's own");
    })?;
    while memory.word(2).load(SeqCst) == 0 {
        call::sleep_ms(1);
    }
    for _ in 0..20 {
        checks.check(futex_wake(own, 1) == Ok(0), "a call for another's word");
        call::sleep_ms(2);
    }
    checks.check(call::wait(child) == Ok(0), "a child's exit status");
    chunk.unmap();
    memory.unmap();
    Ok(())
}

/// Three wait; as many go on as are called.
fn as_many_as_asked(checks: &mut Checks) -> Result<(), Failure> {
    let memory = Shared::map(1).map_err(|error| ("map", error))?;
    let (word, gone_on) = (memory.address_of(0), memory.word(1));
    let mut children = [0; 3];
    for place in &mut children {
        *place = forked(|checks| {
            checks.check(futex_wait_for_ever(word, 0) == Ok(()), "a wait");
            gone_on.fetch_add(1, SeqCst);
        })?;
    }
    let mut called = 0;
    while called < 2 {
        called += futex_wake(word, 1).map_err(|error| ("wake", error))?;
    }
    while gone_on.load(SeqCst) < 2 {
        call::sleep_ms(1);
    }
    call::sleep_ms(20);
    checks.check(gone_on.load(SeqCst) == 2, "the number of those who went on");
    while called < 3 {
        called += futex_wake(word, u32::MAX).map_err(|error| ("wake", error))?;
    }
    checks.check(called == 3, "the number of calls");
    for pid in children {
        checks.check(call::wait(pid) == Ok(0), "a child's exit status");
    }
    memory.unmap();
    Ok(())
}

const NAME: &str = "/shm/pages";

fn write_pages(options: &SharedOptions, file: File, generation: u32) -> Result<(), Failure> {
    let mut pages = [[0; WORDS]; 4];
    for first in (0..options.pages).step_by(pages.len()) {
        for (index, page) in (first..).zip(&mut pages) {
            file_page(options.seed, 1, index, generation).fill(page);
        }
        let written = file
            .write_pages(&pages, first)
            .map_err(|error| ("write", error))?;
        if written != size_of_val(&pages) as u64 {
            return Err(("a short write", Error::NoSpace));
        }
    }
    Ok(())
}

fn is_page(options: &SharedOptions, index: u64, generation: u32, page: &Page) -> bool {
    file_page(options.seed, 1, index, generation).check(page).is_ok()
}

/// A file without a disk: written, read, mapped, cut, and gone when the last who maps it is.
fn named(options: &SharedOptions, checks: &mut Checks) -> Result<(), Failure> {
    let nr_pages = options.pages;
    checks.check(
        File::open(NAME, 0).err() == Some(Error::NotFound),
        "a name that is not there",
    );
    let file = File::open(NAME, open::CREATE).map_err(|error| ("open", error))?;
    write_pages(options, file, 1)?;
    let mut page = [0; WORDS];
    for index in 0..nr_pages {
        let read = file.read_pages(core::slice::from_mut(&mut page), index);
        checks.check(
            read == Ok(4096) && is_page(options, index, 1, &page),
            "a page that was read",
        );
    }
    checks.check(
        file_call::stat(NAME).is_ok_and(|stat| (stat.size, stat.is_directory) == (nr_pages * 4096, 0)),
        "its size",
    );
    let mut shared = file
        .map(nr_pages, map::SHARED | map::WRITE)
        .map_err(|error| ("map", error))?;
    let mut private = file.map(nr_pages, map::WRITE).map_err(|error| ("map", error))?;
    for index in (0..nr_pages).step_by(2) {
        checks.check(
            is_page(options, index, 1, private.page(index)),
            "a page of a private map",
        );
        private.page_mut(index)[0] ^= 1;
        file_page(options.seed, 1, index, 2).fill(shared.page_mut(index));
    }
    // A child finds it by its name.
    let child = forked(|checks| {
        let Ok(file) = File::open(NAME, 0) else {
            return checks.check(false, "the name in a child");
        };
        for index in 0..nr_pages {
            let generation = 2 - u32::from(index % 2 == 1);
            let read = file.read_pages(core::slice::from_mut(&mut page), index);
            let is_right = read == Ok(4096) && is_page(options, index, generation, &page);
            checks.check(is_right, "a page in a child");
        }
    })?;
    checks.check(call::wait(child) == Ok(0), "a child's exit status");
    private.unmap();
    let mut found = [0; MAX_NAME];
    let len = file_call::nth_name("/shm", 0, &mut found);
    checks.check(len == Ok(5) && found.starts_with(b"pages"), "the list of names");
    checks.check(
        file_call::make_directory("/shm/more") == Err(Error::Invalid),
        "a directory",
    );
    cut_and_nameless(options, file, shared, checks)
}

/// Cut off, zero when it grows again, and without a name.
fn cut_and_nameless(
    options: &SharedOptions,
    file: File,
    shared: file_call::Mapping,
    checks: &mut Checks,
) -> Result<(), Failure> {
    let nr_pages = options.pages;
    let half = nr_pages / 2;
    file.set_size(half * 4096).map_err(|error| ("cut", error))?;
    file.set_size(nr_pages * 4096).map_err(|error| ("grow", error))?;
    for index in 0..nr_pages {
        let is_right = match index < half {
            true => is_page(options, index, 2 - u32::from(index % 2 == 1), shared.page(index)),
            false => *shared.page(index) == [0; WORDS],
        };
        checks.check(is_right, "a page of a file that was cut");
    }
    // Without a name, and closed, it lives as long as it is mapped.
    file_call::remove(NAME).map_err(|error| ("remove", error))?;
    checks.check(
        file_call::remove(NAME) == Err(Error::NotFound),
        "a second removal",
    );
    file.close().map_err(|error| ("close", error))?;
    checks.check(
        file_call::stat(NAME) == Err(Error::NotFound),
        "a name that is gone",
    );
    checks.check(is_page(options, 0, 2, shared.page(0)), "a page without a name");
    shared.unmap();
    Ok(())
}

/// The pages of a file in reverse, by a non-linear mapping: what is found there, and what is stored there.
fn in_another_order(options: &SharedOptions, checks: &mut Checks) -> Result<(), Failure> {
    let nr_pages = options.pages;
    let flags = open::CREATE | open::TRUNCATE;
    let file = File::open(NAME, flags).map_err(|error| ("open", error))?;
    write_pages(options, file, 3)?;
    let mut window = file
        .map(nr_pages, map::SHARED | map::WRITE)
        .map_err(|error| ("map", error))?;
    for index in 0..nr_pages {
        let address = window.address_of(index);
        memory_call::remap_file_pages(address, 1, nr_pages - 1 - index).map_err(|error| ("remap", error))?;
    }
    for index in 0..nr_pages {
        let page = nr_pages - 1 - index;
        checks.check(
            is_page(options, page, 3, window.page(index)),
            "a page in another order",
        );
        if index % 3 == 0 {
            file_page(options.seed, 1, page, 4).fill(window.page_mut(index));
        }
    }
    let child = forked(|checks| {
        for index in 0..nr_pages {
            let generation = 3 + u32::from(index % 3 == 0);
            let is_right = is_page(options, nr_pages - 1 - index, generation, window.page(index));
            checks.check(is_right, "a child's page in another order");
        }
    })?;
    checks.check(call::wait(child) == Ok(0), "a child's exit status");
    let mut page = [0; WORDS];
    for index in 0..nr_pages {
        let generation = 3 + u32::from((nr_pages - 1 - index).is_multiple_of(3));
        let read = file.read_pages(core::slice::from_mut(&mut page), index);
        let is_right = read == Ok(4096) && is_page(options, index, generation, &page);
        checks.check(is_right, "a page that was stored to in another order");
    }
    let private = file.map(1, map::WRITE).map_err(|error| ("map", error))?;
    let refused = memory_call::remap_file_pages(private.address_of(0), 1, 0);
    checks.check(refused == Err(Error::Invalid), "another order of what is private");
    private.unmap();
    window.unmap();
    file.close().map_err(|error| ("close", error))?;
    file_call::remove(NAME).map_err(|error| ("remove", error))
}

/// One who waits has to end because memory is out; whoever waits behind it is called.
fn victim(checks: &mut Checks) -> Result<(), Failure> {
    const VICTIMS: u64 = 4;
    call::adjust_oom_score(-1000).map_err(|error| ("adjust", error))?;
    let memory = Shared::map(1).map_err(|error| ("map", error))?;
    let (word, waiting) = (memory.address_of(0), memory.word(1));
    let first = forked(|checks| {
        checks.check(call::adjust_oom_score(1000).is_ok(), "its score");
        for _ in 0..VICTIMS {
            match Chunk::map(map_flags::NO_HUGE) {
                Ok(mut chunk) => chunk.pages_mut().for_each(|(_, page)| page.fill(1)),
                Err(_) => checks.check(false, "its memory"),
            }
        }
        waiting.fetch_add(1, SeqCst);
        let _ = futex_wait_for_ever(word, 0);
        checks.check(false, "that it goes on");
    })?;
    until(|| waiting.load(SeqCst) == 1);
    let second = forked(|checks| {
        waiting.fetch_add(1, SeqCst);
        checks.check(futex_wait_for_ever(word, 0) == Ok(()), "a wait");
    })?;
    until(|| waiting.load(SeqCst) == 2);
    // More than there is without the first one's.
    let chunks = call::system_info().available / CHUNK + VICTIMS / 2;
    for _ in 0..chunks {
        let mut chunk = Chunk::map(map_flags::NO_HUGE).map_err(|error| ("map", error))?;
        chunk.pages_mut().for_each(|(_, page)| page.fill(2));
    }
    checks.check(call::wait(first) == Ok(KILLED), "the end of who waited first");
    checks.check(futex_wake(word, 1) == Ok(1), "a call");
    checks.check(call::wait(second) == Ok(0), "the one who waited behind it");
    checks.check(futex_wake(word, u32::MAX) == Ok(0), "that nobody is left");
    memory.unmap();
    Ok(())
}

/// Waits for what another is just about to do.
fn until(is_so: impl Fn() -> bool) {
    while !is_so() {
        call::sleep_ms(1);
    }
    call::sleep_ms(50);
}
