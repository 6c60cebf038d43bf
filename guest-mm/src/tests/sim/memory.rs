//! Memory for programs that wait for it, as the guest gives it to them: direct reclaim, a turn among those who wait, and the out-of-memory killer
//! when nothing is to be had; the node's daemon; and the clock by which they sleep, whose unit is a turn of a task.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Poll, Waker};
use std::rc::Rc;
use std::vec::Vec;

use super::{Sim, count};
use crate::mm::mapping::FileError;
use crate::reclaim::oom::{Candidate, Patience, choose};
use crate::{Gfp, NodeId, Order, SpaceId};

/// How long one who has found nothing waits before he looks again, and the daemon while somebody waits.
const LOOK_AGAIN: u64 = 40;

/// See the module.
#[derive(Default)]
pub(super) struct Clock {
    now: Cell<u64>,
    sleepers: RefCell<Vec<(u64, Waker)>>,
}

impl Clock {
    pub(super) fn tick(&self) {
        self.now.set(self.now.get() + 1);
        let due = |(until, _): &mut (u64, Waker)| *until <= self.now.get();
        let woken: Vec<_> = self.sleepers.borrow_mut().extract_if(.., due).collect();
        woken.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Time passes until somebody wakes. False if nobody sleeps.
    pub(super) fn skip(&self) -> bool {
        let next = self.sleepers.borrow().iter().map(|(until, _)| *until).min();
        if let Some(until) = next {
            self.now.set(until);
            self.tick();
        }
        next.is_some()
    }

    pub(super) fn now(&self) -> u64 {
        self.now.get()
    }

    pub(super) async fn sleep(&self, turns: u64) {
        let until = self.now.get().saturating_add(turns);
        poll_fn(|context| {
            if self.now.get() >= until {
                return Poll::Ready(());
            }
            let mut sleepers = self.sleepers.borrow_mut();
            sleepers.push((until, context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

/// The program is to end.
#[derive(Debug)]
pub(super) struct Doomed;

/// A program as others see it.
pub(super) struct Process {
    pub(super) space: SpaceId,
    /// It had a page in a frame that has failed.
    pub(super) has_met_failure: Cell<bool>,
    /// It had something there that is lost: it may find that out at any time.
    pub(super) has_lost: Cell<bool>,
    is_doomed: Cell<bool>,
    waits: RefCell<Option<Waker>>,
}

impl Process {
    pub(super) fn is_doomed(&self) -> bool {
        self.is_doomed.get()
    }

    /// Has it end, whatever it waits for.
    pub(super) fn doom(&self) {
        self.is_doomed.set(true);
        if let Some(waker) = self.waits.take() {
            waker.wake();
        }
    }

    /// Waits for something that is given up when the program is to end.
    pub(super) async fn interruptible<T>(&self, what: impl Future<Output = T>) -> Result<T, Doomed> {
        let mut what = pin!(what);
        poll_fn(|context| {
            if self.is_doomed() {
                return Poll::Ready(Err(Doomed));
            }
            *self.waits.borrow_mut() = Some(context.waker().clone());
            what.as_mut().poll(context).map(Ok)
        })
        .await
    }
}

/// What the first comes to, unless the second is done before.
pub(super) async fn before<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> Option<T> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| {
        if let Poll::Ready(value) = first.as_mut().poll(context) {
            return Poll::Ready(Some(value));
        }
        second.as_mut().poll(context).map(|()| None)
    })
    .await
}

impl Sim<'_> {
    pub(super) fn begin_process(&self, space: SpaceId) -> Rc<Process> {
        let is_loser = self.unborn_losers.borrow().contains(&space);
        let process = Rc::new(Process {
            space,
            has_met_failure: Cell::new(false),
            has_lost: Cell::new(is_loser),
            is_doomed: Cell::new(is_loser),
            waits: RefCell::default(),
        });
        self.processes.borrow_mut().push(process.clone());
        process
    }

    /// Its memory is free.
    pub(super) fn end_process(&self, ended: &Rc<Process>) {
        let mut processes = self.processes.borrow_mut();
        processes.retain(|process| !Rc::ptr_eq(process, ended));
    }

    pub(super) fn some_process(&self) -> Option<Rc<Process>> {
        let processes = self.processes.borrow();
        let at = self.below(processes.len().max(1) as u64);
        processes.get(usize::try_from(at).unwrap()).cloned()
    }

    pub(super) fn nr_programs(&self) -> usize {
        self.processes.borrow().len()
    }

    /// Repeats `attempt`, which says which request has found nothing, until it finds memory.
    pub(super) async fn until_memory<T>(
        &self,
        process: &Process,
        mut attempt: impl FnMut() -> Result<T, Gfp>,
    ) -> Result<T, Doomed> {
        let mut gfp = match attempt() {
            Ok(outcome) => return Ok(outcome),
            Err(gfp) => gfp,
        };
        let mut patience = Patience::default();
        loop {
            count(&self.seen.no_memory, 1);
            let reclaim = self.reclaim.try_to_free_pages(self.cpu, gfp, Order::ZERO);
            let reclaimed = process.interruptible(self.failing(reclaim)).await?;
            match attempt() {
                Ok(outcome) => return Ok(outcome),
                Err(now) => gfp = now,
            }
            let mut next = gfp;
            let look = || attempt().map_err(|gfp| next = gfp).ok();
            let turn = self.mm.phys.until_memory(gfp, Order::ZERO, look);
            let turn = before(turn, self.clock.sleep(LOOK_AGAIN));
            if let Some(outcome) = process.interruptible(turn).await? {
                return Ok(outcome);
            }
            gfp = next;
            if patience.is_over(reclaimed) {
                self.out_of_memory();
            }
        }
    }

    /// Waits until there is memory for a page.
    pub(super) async fn until_a_page(&self, process: &Process) -> Result<(), Doomed> {
        let attempt = || {
            let frame = self.mm.phys.alloc_pages(self.cpu, Gfp::USER, Order::ZERO);
            let frame = frame.map_err(|error| error.gfp)?;
            self.mm.phys.free_pages(self.cpu, frame).map_err(|_| Gfp::USER)
        };
        self.until_memory(process, attempt).await
    }

    /// Has a block found for a page that is about to be stored to.
    pub(super) async fn find_block(
        &self,
        process: &Process,
        place: crate::mm::FilePlace,
    ) -> Result<Result<(), FileError>, Doomed> {
        loop {
            let found = self.failing(self.prepare_write(place));
            match process.interruptible(found).await? {
                Err(FileError::OutOfMemory) => self.until_a_page(process).await?,
                found => return Ok(found),
            }
        }
    }

    /// One program ends, the one that the guest would choose; nobody else before it has.
    fn out_of_memory(&self) {
        let processes = self.processes.borrow();
        if processes.iter().any(|process| process.is_doomed()) {
            return;
        }
        let weigh = |(pid, process): (u32, &Rc<Process>)| {
            let space = self.mm.space(process.space)?;
            Some(Candidate {
                pid,
                rss_pages: space.rss_pages() + space.file_pages(),
                swap_pages: space.swap_pages(),
                table_pages: space.table_pages(&self.mm.frames),
                score_adj: 0,
            })
        };
        let total = self.mm.phys.memory_stats().total_pages + u64::from(self.mm.swap_usage().total);
        let chosen = choose((0..).zip(processes.iter()).filter_map(weigh), total);
        let chosen = chosen.expect("who waits for memory is a program");
        processes[usize::try_from(chosen.pid).unwrap()].doom();
        count(&self.seen.oom_kills, 1);
    }

    /// Now and then somebody ends a program from outside.
    pub(super) fn kill_one(&self) {
        if let Some(process) = self.some_process() {
            process.doom();
            count(&self.seen.kills, 1);
        }
    }
}

/// The daemon of a node, which has none as long as it has no memory.
pub(super) async fn kswapd(sim: &Sim<'_>, node: NodeId) {
    loop {
        if sim.mm.phys.daemon_wanted(node).await.is_none() {
            sim.clock.sleep(LOOK_AGAIN).await;
            continue;
        }
        sim.failing(sim.reclaim.balance(sim.cpu, node)).await;
        while sim.mm.phys.nr_waiting() > 0 {
            sim.clock.sleep(LOOK_AGAIN).await;
            sim.failing(sim.reclaim.balance(sim.cpu, node)).await;
        }
    }
}
