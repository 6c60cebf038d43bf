//! `family`: doubles itself again and again. Each member checks that it finds what its parent had at the moment of the fork and
//! nothing that anybody has written since, and leaves its mark on memory that it shares with the others.

use crate::call::{self, Chunk, say};
use crate::checks::Checks;
use guest_programs::abi::{Error, advice, map_flags, prot};
use guest_programs::options::FamilyOptions;
use guest_programs::pattern::{Pattern, Random};

/// Chunks of 2 MiB that the family shares: the even ones in huge pages, the odd ones in small ones.
const MOST_CHUNKS: usize = 8;
/// Children at a time.
const MOST_CHILDREN: usize = 8;
/// One page in so many is written to by each member.
const MARK_ONE_IN: u64 = 3;
/// Bytes by which the heap grows.
const HEAP: u64 = 300 << 10;
/// Depth of the recursion that lets the stack grow, of about 8 KiB each.
const DEPTH: u64 = 60;

/// Runs until it has done its rounds; the exit status is 1 if any check of any member failed.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match FamilyOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let mut chunks: [Option<Chunk>; MOST_CHUNKS] = [const { None }; MOST_CHUNKS];
    for (index, place) in chunks.iter_mut().enumerate().take(options.chunks.into()) {
        let flags = if index % 2 == 0 { 0 } else { map_flags::NO_HUGE };
        *place = Chunk::map(flags).ok();
    }
    let mut checks = Checks::default();
    let (mut forks, mut round) = (0_u64, 0);
    while options.rounds.is_none_or(|rounds| round < rounds) {
        round += 1;
        forks += generation(&options, &mut chunks, round, &mut checks);
        checks.report();
        if checks.failed() > 0 {
            break;
        }
    }
    say(format_args!(
        "{round} rounds, {forks} forks, {} checks failed",
        checks.failed()
    ));
    u64::from(checks.failed() > 0)
}

/// Fills everything, has children, each of which has one more, writes on meanwhile, and waits for them. Returns how many
/// forks there were.
fn generation(options: &FamilyOptions, chunks: &mut [Option<Chunk>], round: u64, checks: &mut Checks) -> u64 {
    let stamp = u32::try_from(round % 1000).unwrap_or(0) * 100;
    fill(options.seed, chunks, stamp);
    let mut children = [0; MOST_CHILDREN];
    let mut forks = 0;
    for (index, place) in (1..).zip(children.iter_mut().take(options.children.into())) {
        match call::fork() {
            Ok(None) => call::exit(child(options, chunks, stamp, index)),
            Ok(Some(pid)) => (*place, forks) = (pid, forks + 1),
            Err(error) => no_fork(error, checks),
        }
        mark(options.seed, chunks, stamp + index * 10, index.into());
    }
    for pid in children.into_iter().filter(|&pid| pid > 0) {
        checks.check(call::wait(pid) == Ok(0), "a child's exit status");
        checks.check(call::wait(pid).is_err(), "a child that ended twice");
    }
    // What this one has written last, whatever the children did.
    let last = u32::from(options.children);
    verify(options.seed, chunks, stamp, last, checks);
    heap_and_stack(round, checks);
    forks
}

/// A child's life: it finds what was there when it was forked, writes over part of it, and has a child of its own that finds
/// that.
fn child(options: &FamilyOptions, chunks: &mut [Option<Chunk>], stamp: u32, index: u32) -> u64 {
    let mut checks = Checks::default();
    verify(options.seed, chunks, stamp, index - 1, &mut checks);
    let own = options.seed ^ 0x5a5a;
    fill(own, chunks, stamp + index);
    let grandchild = match call::fork() {
        Ok(None) => {
            verify(own, chunks, stamp + index, 0, &mut checks);
            forget(chunks, &mut checks);
            heap_and_stack(index.into(), &mut checks);
            checks.report();
            call::exit(u64::from(checks.failed() > 0));
        }
        Ok(Some(pid)) => Some(pid),
        Err(error) => {
            no_fork(error, &mut checks);
            None
        }
    };
    read_only(chunks, &mut checks);
    if let Some(pid) = grandchild {
        checks.check(call::wait(pid) == Ok(0), "a grandchild's exit status");
    }
    verify(own, chunks, stamp + index, 0, &mut checks);
    checks.report();
    u64::from(checks.failed() > 0)
}

/// A fork waits for memory, so that none fails.
fn no_fork(error: Error, checks: &mut Checks) {
    say(format_args!("a fork: {error:?}"));
    checks.check(false, "a fork");
}

fn fill(seed: u64, chunks: &mut [Option<Chunk>], generation: u32) {
    for chunk in chunks.iter_mut().flatten() {
        for (address, page) in chunk.pages_mut() {
            Pattern::new(seed, address, generation).fill(page);
        }
    }
}

/// Whether the member that writes after fork `index` writes to that page.
fn is_marked(address: u64, index: u64) -> bool {
    Random::new(address ^ (index << 50)).below(MARK_ONE_IN) == 0
}

fn mark(seed: u64, chunks: &mut [Option<Chunk>], generation: u32, index: u64) {
    for chunk in chunks.iter_mut().flatten() {
        for (address, page) in chunk
            .pages_mut()
            .filter(|&(address, _)| is_marked(address, index))
        {
            Pattern::new(seed, address, generation).fill(page);
        }
    }
}

/// Checks pages that were filled at `stamp` and marked after each of the first `marks` forks.
fn verify(seed: u64, chunks: &[Option<Chunk>], stamp: u32, marks: u32, checks: &mut Checks) {
    for chunk in chunks.iter().flatten() {
        for (address, page) in chunk.pages() {
            let last = (1..=marks).rev().find(|&index| is_marked(address, index.into()));
            let generation = last.map_or(stamp, |index| stamp + index * 10);
            let is_right = Pattern::new(seed, address, generation).check(page).is_ok();
            checks.check(is_right, "a page");
        }
    }
}

/// What is not needed any more reads as zero.
fn forget(chunks: &mut [Option<Chunk>], checks: &mut Checks) {
    for chunk in chunks.iter_mut().flatten() {
        checks.check(call::advise(chunk, advice::DONT_NEED).is_ok(), "advice");
        for (_, page) in chunk.pages().step_by(37) {
            checks.check(page.iter().all(|&word| word == 0), "a forgotten page");
        }
    }
}

/// Rights go and come back, and with them nothing that others see.
fn read_only(chunks: &[Option<Chunk>], checks: &mut Checks) {
    for chunk in chunks.iter().flatten() {
        let is_done =
            call::protect(chunk, prot::READ).and_then(|()| call::protect(chunk, prot::READ | prot::WRITE));
        checks.check(is_done.is_ok(), "a change of rights");
    }
}

/// The heap's end moves up and down, and the stack grows.
fn heap_and_stack(seed: u64, checks: &mut Checks) {
    let start = call::set_break(0).unwrap_or(0);
    let grown = call::set_break(start + HEAP);
    checks.check(grown == Ok(start + HEAP), "the end of the heap");
    if grown.is_ok() {
        // Below the first whole page is what the executable or the last round has left there.
        let words = || (start.next_multiple_of(4096)..start + HEAP - 8).step_by(4096);
        checks.check(words().all(|word| call::read_word(word) == 0), "a new heap");
        words().for_each(|word| call::write_word(word, word ^ seed));
        checks.check(
            words().all(|word| call::read_word(word) == word ^ seed),
            "the heap",
        );
        checks.check(call::set_break(start) == Ok(start), "the end of the heap");
    }
    checks.check(
        deeper(DEPTH, seed) == (0..=DEPTH).fold(seed, u64::wrapping_add),
        "the stack",
    );
}

/// Uses 8 KiB of stack for each level.
#[inline(never)]
fn deeper(levels: u64, seed: u64) -> u64 {
    let room = core::hint::black_box([levels; 1024]);
    let below = if levels == 0 {
        seed
    } else {
        deeper(levels - 1, seed)
    };
    below.wrapping_add(core::hint::black_box(&room)[512])
}
