//! Words that programs wait for: no call is lost, whoever comes first, and whoever leaves.

use std::pin::pin;
use std::task::{Context, Poll, Wake, Waker};

use guest_mm::SpaceId;
use guest_mm::futex::{FutexKey, Futexes, Queued};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;

use crate::explore;

/// Wakes the thread that polls.
struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.unpark();
    }
}

/// Sleeps until somebody calls: loom reports who sleeps for ever.
fn sleep(queued: Queued<'_>) {
    let waker = Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    let mut queued = pin!(queued);
    while let Poll::Pending = queued.as_mut().poll(&mut Context::from_waker(&waker)) {
        thread::park();
    }
}

/// A word, and who waits for it.
struct World {
    futexes: Futexes,
    key: FutexKey,
    word: AtomicU32,
}

impl World {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            futexes: Futexes::default(),
            key: FutexKey::Private {
                space: SpaceId::of_model(),
                va: 0,
            },
            // What is in memory, where a store is seen by others at some time.
            word: AtomicU32::new(0),
        })
    }

    /// As the system call does it: enters, looks, and sleeps if nothing has changed.
    fn wait(&self) {
        let queued = self.futexes.enter(self.key).expect("there is a heap");
        if self.word.load(Ordering::Relaxed) == 0 {
            sleep(queued);
        }
        assert_eq!(
            self.word.load(Ordering::Relaxed),
            1,
            "it was called, and may go on"
        );
    }

    fn change(&self) {
        self.word.store(1, Ordering::Relaxed);
        self.futexes.wake(self.key, u32::MAX);
    }
}

#[test]
fn who_changes_a_word_reaches_one_who_is_about_to_wait_for_it() {
    explore(|| {
        let world = World::new();
        let waiter = {
            let world = world.clone();
            thread::spawn(move || world.wait())
        };
        world.change();
        waiter.join().expect("it ends");
        assert_eq!(world.futexes.nr_waiting(), 0);
    });
}

/// The first of two leaves just when one is called: it is the other who is called then, in any case.
#[test]
fn a_call_for_one_who_leaves_is_not_lost_on_its_way_to_the_next() {
    explore(|| {
        let world = World::new();
        let enter = || world.futexes.enter(world.key).expect("there is a heap");
        let (leaves, stays) = (enter(), enter());
        let caller = {
            let world = world.clone();
            thread::spawn(move || world.futexes.wake(world.key, 1))
        };
        drop(leaves);
        sleep(stays);
        assert_eq!(caller.join().expect("it ends"), 1);
        assert_eq!(world.futexes.nr_waiting(), 0);
    });
}
