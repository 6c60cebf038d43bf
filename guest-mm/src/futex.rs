//! Waiting for a word of memory to change (Linux `kernel/futex.c`): programs that share a word wait on it and wake each other, and the
//! memory manager knows nothing but who waits, and for which word.
//!
//! A word is told by a [`FutexKey`]: where it is in a mapping that several address spaces show, or else its address space and address.
//! So programs meet at a shared word wherever each has it mapped, also while its page is in the swap area: no frame is named.
//!
//! No wake-up is lost: who waits enters first ([`Futexes::enter`]) and then looks at the word; who wakes has changed the word before. Either
//! the one sees the change, and leaves, or the other finds somebody waiting. One who was called and leaves all the same (the word
//! had changed, his time was up, he has to end) passes the call on to the next who waits for that word.

use alloc::vec::Vec;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use guest_sync::{Cpu, SpinLock};

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::{CopyError, FaultError, FilePlace, Layout, Mm, Sharing};
use crate::pfn::PAGE_SIZE;

/// Bytes of a word, to which its address is aligned.
pub const FUTEX_BYTES: u64 = 4;

/// Which word.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum FutexKey {
    /// Of memory that no other address space shows: a fork's child has its own.
    Private {
        /// Whose.
        space: SpaceId,
        /// Its address.
        va: u64,
    },
    /// Of a shared mapping.
    Shared {
        /// Which page of what.
        place: FilePlace,
        /// Where in the page, in bytes.
        offset: u16,
    },
}

/// There is no memory to wait in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// Lists of those who wait, by a hash of the word. Who waits for another word of the same list is passed over.
#[derive(Debug)]
pub struct Futexes {
    lists: [SpinLock<List>; NR_LISTS],
}

/// A model has one, where all words meet, and little room.
const NR_LISTS: usize = if cfg!(loom) { 1 } else { 64 };

/// In the order in which they came. The heap is used under its lock, and nothing else is called.
#[derive(Debug, Default)]
struct List {
    waiting: Vec<Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    key: FutexKey,
    ticket: u64,
    /// `None` until it is polled for the first time.
    waker: Option<Waker>,
}

impl Default for Futexes {
    fn default() -> Self {
        Self {
            lists: core::array::from_fn(|_| SpinLock::default()),
        }
    }
}

impl Futexes {
    fn list(&self, key: FutexKey) -> &SpinLock<List> {
        let number = match key {
            FutexKey::Private { space, va } => u64::from(space.number()) << 40 ^ va,
            FutexKey::Shared { place, offset } => {
                u64::from(place.mapping.number()) << 40 ^ u64::from(place.index) << 12 ^ u64::from(offset)
            }
        };
        // Knuth's multiplicative hash; neighbours go to different lists.
        let hash = (number / FUTEX_BYTES).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
        &self.lists[usize::try_from(hash).unwrap_or(0) % NR_LISTS]
    }

    /// Has the caller among those who wait, before it looks at the word. Awaiting what this returns waits until somebody calls; dropping it
    /// leaves.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn enter(&self, key: FutexKey) -> Result<Queued<'_>, NoRoom> {
        let mut list = self.list(key).lock();
        list.waiting.try_reserve(1).map_err(|_| NoRoom)?;
        let ticket = list.next;
        list.next += 1;
        list.waiting.push(Waiting {
            key,
            ticket,
            waker: None,
        });
        drop(list);
        Ok(Queued {
            futexes: self,
            key,
            ticket: Some(ticket),
        })
    }

    /// Calls those who have waited longest for a word, `most` at most; how many those were. Who comes after the call has begun, be it one
    /// who was just called, is not meant.
    pub fn wake(&self, key: FutexKey, most: u32) -> u32 {
        let (mut called, mut end) = (0, None);
        while called < most {
            let mut list = self.list(key).lock();
            let end = *end.get_or_insert(list.next);
            let is_meant = |waiting: &Waiting| waiting.key == key && waiting.ticket < end;
            let Some(first) = list.waiting.iter().position(is_meant) else {
                break;
            };
            let waiting = list.waiting.remove(first);
            drop(list);
            called += 1;
            // Without one it has yet to be polled, and sees that it was called.
            if let Some(waker) = waiting.waker {
                waker.wake();
            }
        }
        called
    }

    /// How many wait, for all words.
    pub fn nr_waiting(&self) -> usize {
        self.lists.iter().map(|list| list.lock().waiting.len()).sum()
    }
}

/// One who waits for a word: ready when he was called.
#[must_use = "who does not wait leaves at once"]
#[derive(Debug)]
pub struct Queued<'a> {
    futexes: &'a Futexes,
    key: FutexKey,
    /// `None` once the call has been taken note of.
    ticket: Option<u64>,
}

impl Future for Queued<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut waker = Some(context.waker().clone());
        let mut list = self.futexes.list(self.key).lock();
        let place = list
            .waiting
            .iter_mut()
            .find(|waiting| Some(waiting.ticket) == self.ticket);
        match place {
            Some(waiting) => {
                // The old one is dropped outside of the lock.
                core::mem::swap(&mut waiting.waker, &mut waker);
                Poll::Pending
            }
            None => {
                drop(list);
                self.ticket = None;
                Poll::Ready(())
            }
        }
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut list = self.futexes.list(self.key).lock();
        let place = list.waiting.iter().position(|waiting| waiting.ticket == ticket);
        let left = place.map(|place| list.waiting.remove(place));
        drop(list);
        if left.is_none() {
            self.futexes.wake(self.key, 1);
        }
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Which word is at an address, which is a multiple of [`FUTEX_BYTES`].
    ///
    /// # Errors
    /// The program has no memory there.
    pub fn futex_key(&self, id: SpaceId, va: u64) -> Result<FutexKey, CopyError> {
        let fault = |error| CopyError::Fault { va, error };
        let unknown = fault(FaultError::UnknownSpace(id));
        let space = self.spaces.find(id).ok_or(unknown)?;
        let space = space.lock();
        let vma = space.vma_at(va).ok_or(fault(FaultError::NoArea { va }))?;
        let shared = vma.backing.file().filter(|area| area.sharing == Sharing::Shared);
        let Some(area) = shared else {
            return Ok(FutexKey::Private { space: id, va });
        };
        let linear = area.first_page + vma.page_offset(va);
        let index = match area.layout {
            Layout::Linear => linear,
            Layout::NonLinear => {
                let entry = space.table.find(&self.frames, va).entry;
                match entry.is_present() || entry.is_migration() {
                    true => self.mapped_page(entry.pfn()).index(),
                    false => entry.file_index().unwrap_or(linear),
                }
            }
        };
        let place = FilePlace {
            mapping: area.mapping,
            index,
        };
        let offset = u16::try_from(va % PAGE_SIZE).expect("below the size of a page");
        Ok(FutexKey::Shared { place, offset })
    }

    /// The word at an address, as the program itself would read it.
    ///
    /// # Errors
    /// As [`Mm::read_user`].
    pub fn futex_word(&self, cpu: &Cpu, id: SpaceId, va: u64) -> Result<u32, CopyError> {
        let mut bytes = [0; 4];
        self.read_user(cpu, id, va, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;
    use std::thread;

    /// Counts calls.
    #[derive(Default)]
    struct Calls(AtomicU32);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn key(va: u64) -> FutexKey {
        FutexKey::Private {
            space: SpaceId(core::num::NonZeroU32::MIN),
            va,
        }
    }

    fn is_called(queued: &mut Queued<'_>) -> bool {
        let waker = Waker::from(Arc::new(Calls::default()));
        pin!(queued).poll(&mut Context::from_waker(&waker)).is_ready()
    }

    #[test]
    fn those_who_wait_for_a_word_are_called_in_order_and_others_are_not() {
        let futexes = Futexes::default();
        let mut waiting: std::vec::Vec<_> = [8, 4, 8, 8]
            .map(|va| futexes.enter(key(va)).unwrap())
            .into_iter()
            .collect();
        assert!(!waiting.iter_mut().any(is_called));
        assert_eq!(futexes.wake(key(8), 2), 2);
        let called: std::vec::Vec<bool> = waiting.iter_mut().map(is_called).collect();
        assert_eq!(called, [true, false, true, false]);
        assert_eq!((futexes.wake(key(8), u32::MAX), futexes.wake(key(8), 1)), (1, 0));
        drop(waiting);
        assert_eq!(futexes.nr_waiting(), 0);
    }

    #[test]
    fn a_call_for_one_who_leaves_goes_to_the_next() {
        let futexes = Futexes::default();
        let [first, mut second, mut third] = [(); 3].map(|()| futexes.enter(key(8)).unwrap());
        assert_eq!(futexes.wake(key(8), 1), 1);
        assert!(!is_called(&mut second));
        drop(first);
        assert!(is_called(&mut second) && !is_called(&mut third));
        // One who took note of his call keeps it.
        drop(second);
        assert!(!is_called(&mut third));
    }

    #[test]
    fn one_who_leaves_uncalled_takes_nothing_along() {
        let futexes = Futexes::default();
        let [first, mut second] = [(); 2].map(|()| futexes.enter(key(8)).unwrap());
        drop(first);
        assert!(!is_called(&mut second));
        assert_eq!(futexes.wake(key(8), 5), 1);
        assert!(is_called(&mut second));
    }

    /// Comes back as soon as he is called.
    struct ComesBack(&'static Futexes, AtomicU32);

    impl Wake for ComesBack {
        fn wake(self: Arc<Self>) {
            assert!(
                self.1.fetch_add(1, Ordering::SeqCst) < 10,
                "called again and again"
            );
            let mut queued = std::boxed::Box::pin(self.0.enter(key(8)).unwrap());
            let waker = Waker::from(self);
            assert!(
                queued
                    .as_mut()
                    .poll(&mut Context::from_waker(&waker))
                    .is_pending()
            );
            std::mem::forget(queued);
        }
    }

    #[test]
    fn one_who_comes_back_while_others_are_called_is_not_called_by_the_same_call() {
        let futexes: &'static Futexes = std::boxed::Box::leak(std::boxed::Box::default());
        for _ in 0..2 {
            Arc::new(ComesBack(futexes, AtomicU32::new(0))).wake();
        }
        assert_eq!((futexes.wake(key(8), u32::MAX), futexes.nr_waiting()), (2, 2));
        assert_eq!((futexes.wake(key(8), 3), futexes.nr_waiting()), (2, 2));
    }

    /// Wakes the thread that polls.
    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Waits as a program does: enters, looks, and sleeps if the word is as expected.
    fn wait(futexes: &Futexes, word: &AtomicU32, expected: u32) {
        let mut queued = futexes.enter(key(8)).unwrap();
        if word.load(Ordering::SeqCst) != expected {
            return;
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut queued = pin!(&mut queued);
        while queued
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            thread::park();
        }
    }

    /// Three threads count together, whose turn it is being the word modulo 3: a call that is lost stops them for ever.
    #[test]
    fn no_call_is_lost_between_a_look_and_a_wait() {
        const ROUNDS: u32 = 3_000;
        let (futexes, word) = (Futexes::default(), AtomicU32::new(0));
        thread::scope(|scope| {
            for me in 0..3 {
                let (futexes, word) = (&futexes, &word);
                scope.spawn(move || {
                    for _ in 0..ROUNDS {
                        loop {
                            let now = word.load(Ordering::SeqCst);
                            if now % 3 == me {
                                break;
                            }
                            wait(futexes, word, now);
                        }
                        word.fetch_add(1, Ordering::SeqCst);
                        futexes.wake(key(8), u32::MAX);
                    }
                });
            }
        });
        assert_eq!(word.load(Ordering::SeqCst), 3 * ROUNDS);
        assert_eq!(futexes.nr_waiting(), 0);
    }
}
