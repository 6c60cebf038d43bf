//! Which descriptors are free and which belong to a request: the driver's own book, in private memory.
//!
//! The descriptor table itself is shared and never read back. A chain is a value: it is taken from the book, kept
//! with the request, and given back once, so no descriptor can be in two requests.

use alloc::vec::Vec;

/// Some descriptors, linked in the order of the request.
#[derive(Debug)]
pub(super) struct Chain {
    head: u16,
    count: u16,
}

impl Chain {
    /// The first descriptor: the number under which the device returns the chain.
    pub(super) fn head(&self) -> u16 {
        self.head
    }
}

/// The free descriptors of one queue, as a list through `next`.
#[derive(Debug)]
pub(super) struct Chains {
    next: Vec<u16>,
    first_free: u16,
    nr_free: u16,
}

impl Chains {
    /// All `size` descriptors, free.
    pub(super) fn new(size: u16) -> Self {
        // The link of the last one is never followed: `nr_free` ends the list.
        Self {
            next: (1..=size).collect(),
            first_free: 0,
            nr_free: size,
        }
    }

    pub(super) fn nr_free(&self) -> u16 {
        self.nr_free
    }

    /// `count` descriptors (at least one), or `None` when fewer are free.
    pub(super) fn take(&mut self, count: u16) -> Option<Chain> {
        if count == 0 || count > self.nr_free {
            return None;
        }
        let chain = Chain {
            head: self.first_free,
            count,
        };
        let last = self.descriptors(&chain).last()?;
        self.first_free = self.next[usize::from(last)];
        self.nr_free -= count;
        Some(chain)
    }

    /// Takes the descriptors of `chain` back.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "consumed: nobody may use these descriptors any more"
    )]
    pub(super) fn give_back(&mut self, chain: Chain) {
        if let Some(last) = self.descriptors(&chain).last() {
            self.next[usize::from(last)] = self.first_free;
        }
        self.first_free = chain.head;
        self.nr_free += chain.count;
    }

    /// The descriptors of `chain`, in order.
    pub(super) fn descriptors<'a>(&'a self, chain: &Chain) -> impl Iterator<Item = u16> + use<'a> {
        let links = core::iter::successors(Some(chain.head), |&at| self.next.get(usize::from(at)).copied());
        links.take(usize::from(chain.count))
    }
}
