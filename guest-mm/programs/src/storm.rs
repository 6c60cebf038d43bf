//! `storm`: forks until there is a tree of programs, all of which live and write at the same time, with more memory between them than there
//! is. Each finds what its parent had at the fork, writes over two thirds of it, and finds its own and the rest of its ancestors' for
//! as long as it lives. Some end without waiting for their children.

use crate::call::{self, Chunk, say};
use guest_programs::abi::map_flags;
use guest_programs::options::{MOST_DEPTH, StormOptions};
use guest_programs::pattern::Pattern;

/// How often a member looks at all of its memory after its children were forked.
const LOOKS: u32 = 2;
/// Between two looks: long enough for all members to have been forked, so that they are all there at the same time.
const PAUSE_MS: u64 = 1000;
/// Members whose number in the family is one less than a multiple of this do not wait for their children.
const ORPHANS_ONE_IN: u64 = 5;
/// Levels of the tree.
const LEVELS: usize = MOST_DEPTH as usize + 1;

/// A member of the tree.
struct Member<'a> {
    options: &'a StormOptions,
    chunk: &'a mut Chunk,
    /// Its level, 0 for the first one.
    level: usize,
    /// Its number in the tree, of its width: unlike all others' of the level.
    number: u64,
    /// What the pages of its ancestors, by level, and its own start from.
    seeds: [u64; LEVELS],
    ok: u64,
    failed: u64,
}

/// Runs its rounds; the exit status is 1 if a check of any member failed that somebody waited for.
pub(crate) fn main<'a>(arguments: impl Iterator<Item = &'a str>) -> u64 {
    let options = match StormOptions::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            say(format_args!("{error}"));
            return 2;
        }
    };
    let Ok(mut chunk) = Chunk::map(map_flags::NO_HUGE) else {
        say(format_args!("no room for its memory"));
        return 2;
    };
    let mut failed = 0;
    for round in 0..options.rounds {
        let mut seeds = [0; LEVELS];
        seeds[0] = options.seed.wrapping_add(round << 32);
        let first = Member {
            options: &options,
            chunk: &mut chunk,
            level: 0,
            number: 0,
            seeds,
            ok: 0,
            failed: 0,
        };
        failed += first.live();
    }
    say(format_args!("{} storms, {failed} checks failed", options.rounds));
    if !options.stays {
        return u64::from(failed > 0);
    }
    loop {
        call::sleep_ms(1000);
    }
}

impl Member<'_> {
    /// A member's life, from its fork to its end; how many checks failed.
    fn live(mut self) -> u64 {
        if self.level > 0 {
            self.look(self.level - 1, "what its parent had");
        }
        self.write();
        let width = usize::from(self.options.width);
        let mut children = [0; 8];
        if self.level < usize::from(self.options.depth) {
            for (nth, place) in (0..).zip(&mut children[..width]) {
                match call::fork() {
                    Ok(None) => self.become_child(nth),
                    Ok(Some(pid)) => *place = pid,
                    Err(error) => {
                        self.failed += 1;
                        say(format_args!("a fork is wrong: {error:?}"));
                    }
                }
            }
        }
        for _ in 0..LOOKS {
            self.look(self.level, "its own memory");
            call::sleep_ms(PAUSE_MS);
        }
        let waits = self.level == 0 || self.number % ORPHANS_ONE_IN != ORPHANS_ONE_IN - 1;
        for pid in children.into_iter().filter(|&pid| pid > 0 && waits) {
            let ended = call::wait(pid);
            self.check(ended == Ok(0), "a child's exit status");
            self.check(call::wait(pid).is_err(), "a child that ended twice");
        }
        self.look(self.level, "its own memory at the end");
        call::report(self.ok, self.failed);
        self.failed
    }

    /// The child's side of a fork.
    fn become_child(&mut self, nth: u64) -> ! {
        let number = self.number * u64::from(self.options.width) + nth;
        let mut seeds = self.seeds;
        seeds[self.level + 1] = self.seeds[self.level] ^ ((number + 1) << (8 * (self.level + 1)));
        let child = Member {
            options: self.options,
            chunk: self.chunk,
            level: self.level + 1,
            number,
            seeds,
            ok: 0,
            failed: 0,
        };
        call::exit(u64::from(child.live() > 0))
    }

    /// Writes over two thirds of the pages, the first member over all.
    fn write(&mut self) {
        let (level, seed) = (self.level, self.seeds[self.level]);
        for (index, (address, page)) in self.chunk.pages_mut().enumerate() {
            if is_written(index, level) {
                Pattern::new(seed, address, 0).fill(page);
            }
        }
    }

    /// Whether all pages hold what the members down to a level have written.
    fn look(&mut self, level: usize, what: &str) {
        let (mut ok, mut wrong) = (0, 0);
        for (index, (address, page)) in self.chunk.pages().enumerate() {
            let writer = (0..=level).rev().find(|&level| is_written(index, level));
            let expected = Pattern::new(self.seeds[writer.unwrap_or(0)], address, 0);
            match expected.check(page) {
                Ok(()) => ok += 1,
                Err(_) => wrong += 1,
            }
        }
        self.ok += ok;
        self.failed += wrong;
        if wrong > 0 {
            say(format_args!(
                "level {}: {wrong} pages of {what}: is wrong",
                self.level
            ));
        }
    }

    fn check(&mut self, is_right: bool, what: &str) {
        self.ok += u64::from(is_right);
        self.failed += u64::from(!is_right);
        if !is_right {
            say(format_args!("level {}: {what} is wrong", self.level));
        }
    }
}

/// Whether a member of that level writes to the page.
const fn is_written(index: usize, level: usize) -> bool {
    level == 0 || !(index + level).is_multiple_of(3)
}
