//! Memory pools: a few elements kept for when the allocator has none (Linux `mm/mempool.c`).
//!
//! One user, one pool. A request goes to the allocator; only when that fails is one of the kept elements used; and
//! when there is none left, the request waits until an element is freed. So whoever frees what he takes always gets
//! on, however short memory is.

mod source;
mod state;
mod wait;

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::fmt;
use core::num::NonZeroUsize;
use core::sync::atomic::Ordering::Relaxed;

use guest_sync::atomic::{AtomicU64, AtomicUsize};
use guest_sync::{Cpu, SpinLock};

use crate::gfp::Gfp;
use state::State;

pub use source::{KmallocSource, ObjectSource, PoolSource};
pub use state::MAX_WAITING;
pub use wait::{Allocation, ThisCpu};

/// A pool of elements of one kind.
///
/// Its lock is held for some steps only, and nothing is taken under it: elements come and go, and waiters are woken,
/// without it.
pub struct Mempool<S: PoolSource> {
    source: S,
    state: SpinLock<State<S::Element>>,
    /// Elements that users have.
    out: AtomicUsize,
    from_pool: AtomicU64,
    waited: AtomicU64,
}

/// What a pool has and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Elements to be kept.
    pub min_nr: usize,
    /// Elements kept.
    pub curr_nr: usize,
    /// Elements that users have.
    pub out: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Requests so far that the allocator refused and the pool served at once.
    pub from_pool: u64,
    /// Requests so far that had to wait.
    pub waited: u64,
}

/// There is no memory for the elements that the pool should keep; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CannotFill {
    /// Elements that should be kept.
    pub min_nr: usize,
}

impl fmt::Display for CannotFill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory for a pool of {} elements", self.min_nr)
    }
}

impl core::error::Error for CannotFill {}

/// Elements that were not freed when the pool was destroyed. They belong to nobody from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PoolLeak {
    /// How many.
    pub nr_elements: usize,
}

impl fmt::Display for PoolLeak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} elements of the pool were not freed", self.nr_elements)
    }
}

impl core::error::Error for PoolLeak {}

impl<S: PoolSource> Mempool<S> {
    /// A pool that keeps `min_nr` elements.
    ///
    /// # Errors
    /// When the source, or the heap for a list of them, has no memory for that.
    pub fn new(cpu: &Cpu, source: S, min_nr: NonZeroUsize, gfp: Gfp) -> Result<Self, CannotFill> {
        let min_nr = min_nr.get();
        let list = reserve(min_nr)?;
        let mut state = State::new(list, min_nr).ok_or(CannotFill { min_nr })?;
        for element in fill(cpu, &source, min_nr, min_nr, gfp)? {
            // Nobody waits yet, and the list has room.
            let (_, _) = state.offer(element);
        }
        Ok(Self {
            source,
            state: SpinLock::new(state),
            out: AtomicUsize::new(0),
            from_pool: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        })
    }

    /// Where its elements come from.
    pub const fn source(&self) -> &S {
        &self.source
    }

    /// Takes an element: the allocator's, or else one that is kept. `None` if there is neither.
    pub fn try_alloc(&self, cpu: &Cpu, gfp: Gfp) -> Option<S::Element> {
        // The allocator must not wait for memory while there is a pool.
        if let Some(element) = self.source.take(cpu, gfp.without(Gfp::WAIT)) {
            self.out.fetch_add(1, Relaxed);
            return Some(element);
        }
        let element = self.state.lock().kept()?;
        self.count_from_pool();
        Some(element)
    }

    /// Takes an element, and waits for one if there is none. `cpu` tells the CPU on which the future is polled.
    ///
    /// Those who wait are served in order. Dropping the future gives up the place, and passes on what it was given.
    pub fn alloc<C: ThisCpu>(&self, cpu: C, gfp: Gfp) -> Allocation<'_, S, C> {
        Allocation::new(self, cpu, gfp)
    }

    /// Frees an element: whoever waits longest gets it, or the pool if it is not full, or else the allocator.
    pub fn free(&self, cpu: &Cpu, element: S::Element) {
        self.out.fetch_sub(1, Relaxed);
        self.offer(cpu, element);
    }

    fn offer(&self, cpu: &Cpu, element: S::Element) {
        let (waker, superfluous) = self.state.lock().offer(element);
        if let Some(waker) = waker {
            waker.wake();
        }
        if let Some(element) = superfluous {
            self.source.put(cpu, element);
        }
    }

    /// The allocator may have memory again: all who wait try it.
    pub fn memory_came(&self) {
        let mut after = None;
        loop {
            // One at a time, so that nobody is woken under the lock.
            let next = self.state.lock().waiter_after(after);
            let Some((ticket, waker)) = next else {
                break;
            };
            waker.wake();
            after = Some(ticket);
        }
    }

    /// Changes how many elements are kept. Superfluous ones go back to the allocator.
    ///
    /// # Errors
    /// When there is no memory for more elements: nothing was changed.
    pub fn resize(&self, cpu: &Cpu, min_nr: NonZeroUsize, gfp: Gfp) -> Result<(), CannotFill> {
        let min_nr = min_nr.get();
        let missing = min_nr.saturating_sub(self.state.lock().min_nr());
        let list = reserve(min_nr)?;
        let more = fill(cpu, &self.source, missing, min_nr, gfp)?;
        let superfluous = self.state.lock().resize(min_nr, list);
        superfluous
            .into_iter()
            .for_each(|element| self.source.put(cpu, element));
        more.into_iter().for_each(|element| self.offer(cpu, element));
        Ok(())
    }

    /// Gives what is kept back to the allocator.
    ///
    /// # Errors
    /// When users still have elements.
    pub fn destroy(self, cpu: &Cpu) -> Result<(), PoolLeak> {
        for element in self.state.into_inner().into_kept() {
            self.source.put(cpu, element);
        }
        match self.out.load(Relaxed) {
            0 => Ok(()),
            nr_elements => Err(PoolLeak { nr_elements }),
        }
    }

    /// What it has and did.
    pub fn stats(&self) -> PoolStats {
        let state = self.state.lock();
        PoolStats {
            min_nr: state.min_nr(),
            curr_nr: state.nr_kept(),
            out: self.out.load(Relaxed),
            waiting: state.nr_waiting(),
            from_pool: self.from_pool.load(Relaxed),
            waited: self.waited.load(Relaxed),
        }
    }

    fn count_from_pool(&self) {
        self.out.fetch_add(1, Relaxed);
        self.from_pool.fetch_add(1, Relaxed);
    }
}

/// An empty list with room for `min_nr` elements.
fn reserve<E>(min_nr: usize) -> Result<Vec<E>, CannotFill> {
    let mut list = Vec::new();
    list.try_reserve_exact(min_nr)
        .map_err(|_| CannotFill { min_nr })?;
    Ok(list)
}

/// `count` new elements, or none at all.
fn fill<S: PoolSource>(
    cpu: &Cpu,
    source: &S,
    count: usize,
    min_nr: usize,
    gfp: Gfp,
) -> Result<Vec<S::Element>, CannotFill> {
    let mut elements = reserve(count).map_err(|_| CannotFill { min_nr })?;
    while elements.len() < count {
        let Some(element) = source.take(cpu, gfp) else {
            elements.into_iter().for_each(|element| source.put(cpu, element));
            return Err(CannotFill { min_nr });
        };
        elements.push(element);
    }
    Ok(elements)
}

impl<S: PoolSource> fmt::Debug for Mempool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}
