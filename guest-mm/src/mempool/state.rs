//! What is behind a pool's lock: the elements kept, who waits, and what those who wait were given. Nothing here
//! allocates after its construction.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::task::Waker;

/// Requests of a pool that wait without polling. There may be more: those look again each time they are polled.
pub const MAX_WAITING: usize = 64;

/// A place in the queue, in order.
pub(super) type Ticket = u64;

/// Invariant: while somebody waits, nothing is kept for whoever comes.
#[derive(Debug)]
pub(super) struct State<E> {
    /// Elements to keep, at least 1.
    min_nr: usize,
    /// Kept for whoever comes; has room for `min_nr`.
    elements: Vec<E>,
    /// Given to those who waited and have not been polled since.
    granted: Vec<(Ticket, E)>,
    waiting: VecDeque<(Ticket, Waker)>,
    next: Ticket,
}

/// What one who waits finds.
pub(super) enum Turn<E> {
    /// An element.
    Granted(E),
    /// Nothing yet.
    Waiting,
}

impl<E> State<E> {
    /// A pool with these elements, a list with room for `min_nr`; `None` without memory for the other lists.
    pub(super) fn new(elements: Vec<E>, min_nr: usize) -> Option<Self> {
        let mut state = Self {
            min_nr,
            elements,
            granted: Vec::new(),
            waiting: VecDeque::new(),
            next: 0,
        };
        state.granted.try_reserve_exact(MAX_WAITING).ok()?;
        state.waiting.try_reserve_exact(MAX_WAITING).ok()?;
        Some(state)
    }

    pub(super) fn min_nr(&self) -> usize {
        self.min_nr
    }

    pub(super) fn nr_kept(&self) -> usize {
        self.elements.len()
    }

    pub(super) fn nr_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// An element that is kept for whoever comes.
    pub(super) fn kept(&mut self) -> Option<E> {
        self.elements.pop()
    }

    /// Takes an element in: for the first who waits, who is to be woken, or to keep. Otherwise it comes back.
    pub(super) fn offer(&mut self, element: E) -> (Option<Waker>, Option<E>) {
        if self.granted.len() < MAX_WAITING
            && let Some((ticket, waker)) = self.waiting.pop_front()
        {
            self.granted.push((ticket, element));
            return (Some(waker), None);
        }
        if self.elements.len() < self.min_nr {
            self.elements.push(element);
            return (None, None);
        }
        (None, Some(element))
    }

    /// Queues up; `None` if the queue is full.
    pub(super) fn wait(&mut self, waker: &Waker) -> Option<Ticket> {
        if self.waiting.len() == MAX_WAITING {
            return None;
        }
        let ticket = self.next;
        self.next += 1;
        self.waiting.push_back((ticket, waker.clone()));
        Some(ticket)
    }

    /// Whether it is this one's turn; if not, `waker` is the one to wake.
    pub(super) fn turn(&mut self, ticket: Ticket, waker: &Waker) -> Turn<E> {
        if let Some(at) = self.granted.iter().position(|&(of, _)| of == ticket) {
            return Turn::Granted(self.granted.swap_remove(at).1);
        }
        if let Some((_, known)) = self.waiting.iter_mut().find(|(of, _)| *of == ticket)
            && !known.will_wake(waker)
        {
            known.clone_from(waker);
        }
        Turn::Waiting
    }

    /// Leaves the queue, and returns what was granted meanwhile.
    pub(super) fn leave(&mut self, ticket: Ticket) -> Option<E> {
        self.waiting.retain(|&(of, _)| of != ticket);
        let at = self.granted.iter().position(|&(of, _)| of == ticket)?;
        Some(self.granted.swap_remove(at).1)
    }

    /// The first who waits with a ticket above that one.
    pub(super) fn waiter_after(&self, after: Option<Ticket>) -> Option<(Ticket, Waker)> {
        let (ticket, waker) = self.waiting.iter().find(|&&(of, _)| Some(of) > after)?;
        Some((*ticket, waker.clone()))
    }

    /// Keeps `min_nr` elements from now on, in `list`, which is empty and has room for them. Returns the old list with
    /// what is too much.
    pub(super) fn resize(&mut self, min_nr: usize, list: Vec<E>) -> Vec<E> {
        let mut old = core::mem::replace(&mut self.elements, list);
        self.min_nr = min_nr;
        self.elements.extend(old.drain(..min_nr.min(old.len())));
        old
    }

    /// All that is kept.
    pub(super) fn into_kept(self) -> impl Iterator<Item = E> {
        let granted = self.granted.into_iter().map(|(_, element)| element);
        self.elements.into_iter().chain(granted)
    }
}
