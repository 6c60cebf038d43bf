//! Programs that stop between two calls, with nothing pinned, so that the machine can be looked at while nobody is at work on a page.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::task::{Poll, Waker};
use std::vec::Vec;

use super::executor::Executor;
use super::turns::{step, turn};
use super::{Sim, TURNS};

/// See the module.
#[derive(Default)]
pub(super) struct Parking {
    is_asked_for: Cell<bool>,
    nr_parked: Cell<usize>,
    wakers: RefCell<Vec<Waker>>,
}

/// Counted as long as it exists.
struct Parked<'a>(&'a Parking);

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        self.0.nr_parked.set(self.0.nr_parked.get() - 1);
    }
}

impl Parking {
    /// Programs are to stop.
    pub(super) fn is_asked_for(&self) -> bool {
        self.is_asked_for.get()
    }

    /// Stops until all may go on.
    pub(super) async fn stop(&self) {
        self.nr_parked.set(self.nr_parked.get() + 1);
        let _parked = Parked(self);
        poll_fn(|context| {
            if !self.is_asked_for() {
                return Poll::Ready(());
            }
            self.wakers.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// All go on.
    pub(super) fn go_on(&self) {
        self.is_asked_for.set(false);
        self.wakers.take().into_iter().for_each(Waker::wake);
    }
}

/// Has all programs stop, and the disks do all that they have to. One who waits for something that never comes is found here.
pub(super) fn park<'a>(sim: &'a Sim<'_>, executor: &mut Executor<'a>) {
    sim.parking.is_asked_for.set(true);
    sim.words.end();
    let mut turns = 0;
    while sim.parking.nr_parked.get() < sim.nr_programs() {
        step(sim, executor);
        turns += 1;
        assert!(turns < 30 * TURNS, "programs do not stop");
    }
    while turn(sim, executor) {}
}
