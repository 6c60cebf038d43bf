//! Words of shared memory that programs wait for and call each other about (`futex`), wherever each has them mapped, also rearranged and while
//! their page is in a swap area. A call that is lost shows: who sleeps knows the latest value of the word, or somebody who has just changed it is about to
//! call; and who was called and is not woken sleeps for ever, which ends the simulation.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::pin::pin;
use core::task::Poll;
use std::collections::BTreeMap;

use super::executor::pause;
use super::memory::{Doomed, Process};
use super::program::{settled, touch};
use super::{Sim, count};
use crate::futex::{FutexKey, Futexes, Queued};
use crate::mm::mapping::MappingKind;
use crate::mm::{FaultError, FileArea, FilePlace, MappingId, Sharing};
use crate::tests::machine::{RW, TestMm};
use crate::{Access, Backing, MapRequest, PAGE_SIZE, Place};

/// How many words: one in each page.
const NR_WORDS: usize = 3;

/// See the module.
pub(super) struct Words {
    futexes: Futexes,
    mapping: MappingId,
    /// What is in each: it only grows, so that no value comes back.
    values: [Cell<u32>; NR_WORDS],
    /// Programs that have changed each and have yet to call.
    changing: [Cell<u32>; NR_WORDS],
    /// The page of a word was lost with its frame: nobody finds out what it is any more.
    is_lost: Cell<bool>,
    sleepers: RefCell<BTreeMap<u64, Sleeper>>,
    next: Cell<u64>,
}

/// One who has found a word as he expected it, and was not called yet as far as is known here.
#[derive(Clone, Copy)]
struct Sleeper {
    word: usize,
    expected: u32,
}

/// Sleeps as long as it exists.
struct Asleep<'a>(&'a Words, u64);

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        self.0.sleepers.borrow_mut().remove(&self.1);
    }
}

/// Where a program has them, and which is where.
#[derive(Clone)]
pub(super) struct View {
    va: u64,
    shows: [usize; NR_WORDS],
}

impl Words {
    pub(super) fn new(mm: &TestMm<'_>) -> Self {
        Self {
            futexes: Futexes::default(),
            mapping: mm.create_mapping(MappingKind::Shmem, NR_WORDS as u64 * PAGE_SIZE),
            values: [const { Cell::new(0) }; NR_WORDS],
            changing: [const { Cell::new(0) }; NR_WORDS],
            is_lost: Cell::new(false),
            sleepers: RefCell::default(),
            next: Cell::new(0),
        }
    }

    fn key(&self, word: usize) -> FutexKey {
        let (mapping, index) = (self.mapping, u32::try_from(word).unwrap());
        let place = FilePlace { mapping, index };
        FutexKey::Shared { place, offset: 0 }
    }

    fn fall_asleep(&self, word: usize, expected: u32) -> Asleep<'_> {
        let number = self.next.replace(self.next.get() + 1);
        self.sleepers
            .borrow_mut()
            .insert(number, Sleeper { word, expected });
        Asleep(self, number)
    }

    /// Calls all who wait for a word, some times one of them first.
    async fn call(&self, sim: &Sim<'_>, word: usize) {
        if sim.one_in(2) {
            let called = self.futexes.wake(self.key(word), 1);
            assert!(called <= 1, "{called} were called for one");
            count(&sim.seen.called, called);
            pause().await;
        }
        let called = self.futexes.wake(self.key(word), u32::MAX);
        count(&sim.seen.called, called);
        self.sleepers
            .borrow_mut()
            .retain(|_, sleeper| sleeper.word != word);
        self.changing[word].set(self.changing[word].get() - 1);
    }

    /// A word is lost, if the page is one of them: who waits for it is called, as it changes no more.
    pub(super) fn lose(&self, (mapping, index): (MappingId, u32)) -> bool {
        if mapping != self.mapping {
            return false;
        }
        let word = usize::try_from(index).unwrap();
        self.is_lost.set(true);
        self.futexes.wake(self.key(word), u32::MAX);
        self.sleepers
            .borrow_mut()
            .retain(|_, sleeper| sleeper.word != word);
        true
    }

    /// Programs that sleep until a word changes.
    pub(super) fn nr_asleep(&self) -> usize {
        self.sleepers.borrow().len()
    }

    /// Nobody sleeps who knows an older value, unless he is about to be called.
    pub(super) fn check(&self) {
        for sleeper in self.sleepers.borrow().values() {
            let (word, now) = (sleeper.word, self.values[sleeper.word].get());
            assert!(
                sleeper.expected == now || self.changing[word].get() > 0,
                "word {word} is {now}, and nobody calls one who waits for it to be other than {}",
                sleeper.expected
            );
        }
    }

    /// Nobody changes words any more, or not for some time: who sleeps is called.
    pub(super) fn end(&self) {
        for word in 0..NR_WORDS {
            self.futexes.wake(self.key(word), u32::MAX);
        }
    }

    /// They go when no program shows them any more.
    pub(super) async fn remove(&self, sim: &Sim<'_>) {
        assert_eq!(
            self.futexes.nr_waiting(),
            0,
            "somebody waits for a word who has ended"
        );
        sim.mm.until_unmapped(self.mapping).await;
        sim.mm.truncate(sim.cpu, self.mapping, 0).await.unwrap();
        sim.mm.remove_mapping(self.mapping).unwrap();
    }
}

impl View {
    pub(super) fn new(sim: &Sim<'_>, process: &Process) -> Self {
        let request = MapRequest {
            len: NR_WORDS as u64 * PAGE_SIZE,
            place: Place::Anywhere,
            prot: RW,
            backing: Backing::File(FileArea::new(sim.words.mapping, 0, Sharing::Shared)),
        };
        let va = sim.mm.mmap(process.space, &request).unwrap();
        Self {
            va,
            shows: core::array::from_fn(|word| word),
        }
    }

    pub(super) async fn turn(&mut self, sim: &Sim<'_>, process: &Process) {
        let at = usize::try_from(sim.below(NR_WORDS as u64)).unwrap();
        // Somebody must be left who changes words.
        let may_wait = sim.words.sleepers.borrow().len() + 1 < sim.nr_programs();
        match sim.below(8) {
            0 => self.rearrange(sim, process, at).await,
            1..4 if may_wait => self.wait(sim, process, at).await,
            _ => self.change(sim, process, at).await,
        }
    }

    fn va_of(&self, at: usize) -> u64 {
        self.va + at as u64 * PAGE_SIZE
    }

    async fn rearrange(&mut self, sim: &Sim<'_>, process: &Process, at: usize) {
        let word = usize::try_from(sim.below(NR_WORDS as u64)).unwrap();
        let index = u32::try_from(word).unwrap();
        let remap = || {
            let range = (self.va_of(at), PAGE_SIZE);
            let remap = || {
                sim.mm
                    .remap_file_pages(sim.cpu, process.space, range.0, range.1, index)
            };
            sim.with_failures(remap)
        };
        if settled(sim, process.space, remap).await {
            self.shows[at] = word;
        }
    }

    /// What the word is, as the system call reads it; `None` if the program is to end, or the disk failed.
    async fn look(&self, sim: &Sim<'_>, process: &Process, at: usize) -> Option<u32> {
        let va = self.va_of(at);
        let found = touch(sim, process, va, Access::Read, || {
            sim.mm.futex_word(sim.cpu, process.space, va)
        });
        match found.await {
            Ok(found) => {
                assert_eq!(found, sim.words.values[self.shows[at]].get(), "a word of {va:#x}");
                Some(found)
            }
            Err(error) => {
                check(sim, process, error);
                None
            }
        }
    }

    /// Waits for a word to change.
    async fn wait(&self, sim: &Sim<'_>, process: &Process, at: usize) {
        let (words, word) = (&sim.words, self.shows[at]);
        let Some(expected) = self.look(sim, process, at).await else {
            return;
        };
        pause().await;
        let key = sim.mm.futex_key(process.space, self.va_of(at)).unwrap();
        assert_eq!(key, words.key(word), "the word at {:#x}", self.va_of(at));
        let queued = words.futexes.enter(key).unwrap();
        let seen = sim.mm.futex_word(sim.cpu, process.space, self.va_of(at));
        if seen != Ok(expected) || sim.is_ending.get() || sim.parking.is_asked_for() {
            return;
        }
        let asleep = words.fall_asleep(word, expected);
        count(&sim.seen.sleeps, 1);
        let patience = sim.one_in(3).then(|| 1 + sim.below(60));
        let outcome = process.interruptible(called_before(sim, queued, patience)).await;
        drop(asleep);
        if matches!(outcome, Ok(Called::No) | Err(Doomed)) {
            count(&sim.seen.left_uncalled, 1);
        }
    }

    /// Changes a word and calls those who wait for it.
    async fn change(&self, sim: &Sim<'_>, process: &Process, at: usize) {
        let (word, va) = (self.shows[at], self.va_of(at));
        let (value, changing) = (&sim.words.values[word], &sim.words.changing[word]);
        let stored = touch(sim, process, va, Access::Write, || {
            let next = value.get() + 1;
            let stored = sim.mm.cpu_store(process.space, va, next.into());
            stored.inspect(|()| {
                value.set(next);
                changing.set(changing.get() + 1);
            })
        });
        match stored.await {
            Ok(()) => {
                // From here on it is the kernel's, and is not given up.
                pause().await;
                sim.words.call(sim, word).await;
            }
            Err(error) => check(sim, process, error),
        }
    }
}

enum Called {
    Yes,
    No,
}

/// Waits to be called, or so many turns if that is not for ever.
async fn called_before(sim: &Sim<'_>, queued: Queued<'_>, turns: Option<u64>) -> Called {
    let time = async {
        match turns {
            Some(turns) => sim.clock.sleep(turns).await,
            None => core::future::pending().await,
        }
    };
    let (mut queued, mut time) = (pin!(queued), pin!(time));
    poll_fn(|context| {
        if queued.as_mut().poll(context).is_ready() {
            return Poll::Ready(Called::Yes);
        }
        time.as_mut().poll(context).map(|()| Called::No)
    })
    .await
}

/// Whether there was a reason for a refusal.
fn check(sim: &Sim<'_>, process: &Process, error: FaultError) {
    match error {
        FaultError::OutOfMemory(_) => assert!(process.is_doomed(), "a program that waits gets memory"),
        FaultError::Io { .. } => {
            sim.io_error(sim.swap_failed.get() || sim.words.is_lost.get());
            sim.mend();
        }
        FaultError::Poisoned { .. } => sim.touches_lost(process),
        error => panic!("{error}"),
    }
}
