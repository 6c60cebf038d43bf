//! Waiting for something that others give back: a slot, a frame, an object.
//!
//! A [`WaitQueue`] stands beside the thing itself. Whoever finds none of it awaits [`WaitQueue::until`]; whoever gives
//! one back calls [`WaitQueue::wake_one`]. Those who wait are woken in the order in which they came. A future that is
//! dropped after it was woken passes the call on, so none is lost.
//!
//! The queue's lock is the last in every order: nothing is allocated, freed or called while it is taken. Wakers are
//! cloned, dropped and woken outside.

use alloc::collections::VecDeque;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use guest_sync::SpinLock;

/// Who waits, in order.
#[derive(Debug)]
pub struct WaitQueue {
    queue: SpinLock<Queue>,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<(Ticket, Waker)>,
    next: u64,
}

/// A place in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ticket(u64);

/// Which end of the queue.
#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

impl WaitQueue {
    /// Nobody waits.
    pub fn new() -> Self {
        Self {
            queue: SpinLock::new(Queue {
                waiting: VecDeque::new(),
                next: 0,
            }),
        }
    }

    /// Nobody waits; the first `waiters` at a time need no memory to be noted.
    pub fn with_room(waiters: usize) -> Self {
        Self {
            queue: SpinLock::new(Queue {
                waiting: VecDeque::with_capacity(waiters),
                next: 0,
            }),
        }
    }

    /// The first `Some` of `attempt`, which is tried at once, and again whenever this future's turn has come.
    pub const fn until<T, A: FnMut() -> Option<T>>(&self, attempt: A) -> Until<'_, A> {
        Until {
            queue: self,
            attempt,
            ticket: None,
        }
    }

    /// Lets the one who has waited longest try. Returns whether there was one.
    pub fn wake_one(&self) -> bool {
        let first = self.queue.lock().waiting.pop_front();
        let Some((_, waker)) = first else {
            return false;
        };
        waker.wake();
        true
    }

    /// Lets everybody who waits now try, in order. The room that they waited in stays for those to come.
    pub fn wake_all(&self) {
        let end = self.queue.lock().next;
        loop {
            let mut queue = self.queue.lock();
            // Who was called in vain may be back meanwhile, in the first place.
            let place = queue.waiting.iter().position(|(ticket, _)| ticket.0 < end);
            let called = place.and_then(|place| queue.waiting.remove(place));
            drop(queue);
            let Some((_, waker)) = called else {
                return;
            };
            waker.wake();
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.queue.lock().waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds a waker; the room for it is allocated before the lock is taken. `None` if there is no memory for it.
    fn enter(&self, waker: &Waker, end: End) -> Option<Ticket> {
        let waker = waker.clone();
        let mut room = VecDeque::new();
        loop {
            let mut queue = self.queue.lock();
            let len = queue.waiting.len();
            if room.capacity() > queue.waiting.capacity() {
                // Moving what is there needs no more room.
                room.append(&mut queue.waiting);
                core::mem::swap(&mut queue.waiting, &mut room);
            }
            if queue.waiting.capacity() > len {
                let ticket = Ticket(queue.next);
                queue.next += 1;
                match end {
                    End::Front => queue.waiting.push_front((ticket, waker)),
                    End::Back => queue.waiting.push_back((ticket, waker)),
                }
                return Some(ticket);
            }
            drop(queue);
            room = VecDeque::new();
            room.try_reserve(2 * len + 8).ok()?;
        }
    }

    /// Takes a ticket out of the queue. False if it has been called already.
    fn leave(&self, ticket: Ticket) -> bool {
        let mut queue = self.queue.lock();
        let place = queue.waiting.iter().position(|(waiting, _)| *waiting == ticket);
        let left = place.and_then(|place| queue.waiting.remove(place));
        drop(queue);
        left.is_some()
    }

    /// Whether the ticket has not been called yet; then the waker is exchanged.
    fn is_waiting(&self, ticket: Ticket, waker: &Waker) -> bool {
        let mut waker = waker.clone();
        let mut queue = self.queue.lock();
        let place = queue.waiting.iter_mut().find(|(waiting, _)| *waiting == ticket);
        let is_waiting = place.is_some();
        if let Some((_, known)) = place {
            core::mem::swap(known, &mut waker);
        }
        drop(queue);
        is_waiting
    }
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

/// See [`WaitQueue::until`].
#[must_use = "futures do nothing unless they are polled"]
#[derive(Debug)]
pub struct Until<'a, A> {
    queue: &'a WaitQueue,
    attempt: A,
    ticket: Option<Ticket>,
}

/// Nothing in it is ever pinned.
impl<A> Unpin for Until<'_, A> {}

impl<T, A: FnMut() -> Option<T>> Future for Until<'_, A> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        // Whoever was called and found nothing keeps the first place.
        let end = match this.ticket {
            Some(ticket) if this.queue.is_waiting(ticket, context.waker()) => None,
            Some(_) => Some(End::Front),
            None => Some(End::Back),
        };
        if let Some(end) = end {
            if let Some(value) = (this.attempt)() {
                this.ticket = None;
                return Poll::Ready(value);
            }
            this.ticket = this.queue.enter(context.waker(), end);
            if this.ticket.is_none() {
                // There is no memory to wait in: looks again after everybody else.
                context.waker().wake_by_ref();
            }
        }
        // Once more: what was given back before the place was taken has woken nobody.
        let Some(value) = (this.attempt)() else {
            return Poll::Pending;
        };
        this.give_up_place();
        Poll::Ready(value)
    }
}

impl<A> Until<'_, A> {
    /// Leaves the queue; a call that came meanwhile goes to the next.
    fn give_up_place(&mut self) {
        if let Some(ticket) = self.ticket.take()
            && !self.queue.leave(ticket)
        {
            self.queue.wake_one();
        }
    }
}

impl<A> Drop for Until<'_, A> {
    fn drop(&mut self) {
        self.give_up_place();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::boxed::Box;
    use std::cell::Cell;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;
    use std::vec::Vec;

    /// A task that counts how often it was woken.
    #[derive(Default)]
    struct Task(AtomicU32);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Waiter<'a> {
        task: Arc<Task>,
        future: Pin<Box<dyn Future<Output = ()> + 'a>>,
    }

    impl<'a> Waiter<'a> {
        fn new(queue: &'a WaitQueue, tokens: &Rc<Cell<u32>>) -> Self {
            let tokens = tokens.clone();
            let attempt = move || tokens.get().checked_sub(1).map(|left| tokens.set(left));
            let mut waiter = Self {
                task: Arc::default(),
                future: Box::pin(queue.until(attempt)),
            };
            waiter.poll();
            waiter
        }

        fn poll(&mut self) -> bool {
            let waker = self.task.clone().into();
            self.future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
        }

        fn wakes(&self) -> u32 {
            self.task.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn those_who_wait_are_woken_in_the_order_in_which_they_came() {
        let (queue, tokens) = (WaitQueue::new(), Rc::new(Cell::new(0)));
        let mut waiters: Vec<Waiter> = (0..20).map(|_| Waiter::new(&queue, &tokens)).collect();
        for index in 0..20 {
            tokens.set(1);
            assert!(queue.wake_one());
            assert!(
                waiters
                    .iter()
                    .enumerate()
                    .all(|(other, waiter)| waiter.wakes() == u32::from(other <= index))
            );
            assert!(waiters[index].poll());
        }
        assert!(!queue.wake_one());
    }

    #[test]
    fn who_was_called_in_vain_keeps_the_first_place() {
        let (queue, tokens) = (WaitQueue::new(), Rc::new(Cell::new(0)));
        let (mut first, mut second) = (Waiter::new(&queue, &tokens), Waiter::new(&queue, &tokens));
        queue.wake_one();
        assert!(!first.poll());
        queue.wake_one();
        assert_eq!((first.wakes(), second.wakes()), (2, 0));
        tokens.set(2);
        assert!(second.poll() && first.poll());
    }

    #[test]
    fn a_call_to_one_who_does_not_wait_any_more_goes_to_the_next() {
        let (queue, tokens) = (WaitQueue::new(), Rc::new(Cell::new(0)));
        let (first, mut second) = (Waiter::new(&queue, &tokens), Waiter::new(&queue, &tokens));
        tokens.set(1);
        queue.wake_one();
        drop(first);
        assert_eq!(second.wakes(), 1);
        assert!(second.poll());
    }

    #[test]
    fn one_who_leaves_before_the_call_leaves_no_gap() {
        let (queue, tokens) = (WaitQueue::new(), Rc::new(Cell::new(0)));
        let (first, second) = (Waiter::new(&queue, &tokens), Waiter::new(&queue, &tokens));
        drop(first);
        assert_eq!(queue.len(), 1);
        assert!(queue.wake_one());
        assert_eq!(second.wakes(), 1);
    }

    #[test]
    fn who_calls_everybody_leaves_the_room_for_those_to_come() {
        let (queue, tokens) = (WaitQueue::with_room(4), Rc::new(Cell::new(0)));
        let room = |queue: &WaitQueue| queue.queue.lock().waiting.capacity();
        let before = room(&queue);
        let mut waiters: Vec<Waiter> = (0..4).map(|_| Waiter::new(&queue, &tokens)).collect();
        queue.wake_all();
        assert!(waiters.iter().all(|waiter| waiter.wakes() == 1) && queue.is_empty());
        assert_eq!(room(&queue), before);
        assert!(waiters.iter_mut().all(|waiter| !waiter.poll()));
        assert_eq!((queue.len(), room(&queue)), (4, before));
    }

    #[test]
    fn one_who_succeeds_unasked_after_a_call_passes_it_on() {
        let (queue, tokens) = (WaitQueue::new(), Rc::new(Cell::new(0)));
        let (mut first, second) = (Waiter::new(&queue, &tokens), Waiter::new(&queue, &tokens));
        tokens.set(1);
        // Polled for another reason, it takes the token and its place is gone.
        assert!(first.poll());
        assert_eq!(queue.len(), 1);
        queue.wake_all();
        assert_eq!((second.wakes(), queue.len()), (1, 0));
    }
}
