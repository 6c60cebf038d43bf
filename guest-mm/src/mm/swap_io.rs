//! Requests for the disks of the swap areas.
//!
//! The memory manager never touches a disk. A page that is to be read or written waits in a queue; whoever has the disks is woken
//! ([`Mm::swap_io_wanted`]), takes what waits ([`Mm::next_io`]) with neighbours on the disk joined to one request, and tells what it came to ([`Mm::end_io`]). A
//! request holds what it needs: a reference to each of its pages, which nobody unlocks or frees meanwhile, whatever becomes of those who
//! wait for it.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use crate::disk::{BlockNr, IoError, Request};
use crate::frames::{Frames, Mmu};
use crate::mm::Mm;
use crate::pfn::Pfn;
use crate::swap::{AreaNr, SlotNr};
use crate::wait::WaitQueue;

/// How far into the queue neighbours are looked for.
const LOOK_AT: usize = 128;
/// Requests for which there is room without allocating.
const ROOM: usize = 256;

/// A request on its way to a swap area: what comes back with the result.
#[must_use = "its pages stay locked, or on their way, for ever"]
#[derive(Debug, PartialEq, Eq)]
pub struct PageIo {
    /// Neighbours, in the order of their slots; at least one.
    pages: Vec<OnePage>,
}

/// A page that is to be read or written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OnePage {
    pub(crate) pfn: Pfn,
    pub(crate) slot: SlotNr,
    pub(crate) direction: Direction,
    company: Company,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// In: somebody waits for it, and is told of an error.
    In,
    /// In, and nobody has asked for it yet: its neighbour was wanted.
    Ahead,
    Out,
}

/// Whether a page goes together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    Welcome,
    /// It failed with others, and is tried by itself to see whether it was the cause.
    None,
}

/// Which requests are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoChoice {
    /// Reads, as somebody waits for most of them, and then writes.
    All,
    /// Reads only.
    Reads,
}

impl OnePage {
    pub(crate) const fn new(pfn: Pfn, slot: SlotNr, direction: Direction) -> Self {
        Self {
            pfn,
            slot,
            direction,
            company: Company::Welcome,
        }
    }

    /// Whether this one's slot is the next after that one's, and they may go together.
    fn follows(&self, before: &Self) -> bool {
        let welcome = self.company == Company::Welcome && before.company == Company::Welcome;
        let is_next = before.slot.number().checked_add(1) == Some(self.slot.number());
        welcome && is_next && self.slot.area() == before.slot.area()
    }
}

impl PageIo {
    /// The area whose disk it is for.
    pub fn area(&self) -> AreaNr {
        self.pages.first().map_or(AreaNr::FIRST, |page| page.slot.area())
    }

    /// Its pages, of 4 KiB.
    pub fn nr_pages(&self) -> usize {
        self.pages.len()
    }

    /// Whether pages leave memory by it.
    pub fn is_write(&self) -> bool {
        self.pages.iter().any(|page| page.direction == Direction::Out)
    }

    /// What the disk is to do. Blocks are those of the area.
    fn request(&self) -> Option<Request> {
        let first = self.pages.first()?;
        let block = BlockNr(first.slot.block().into());
        let pages = self.pages.iter().map(|page| page.pfn).collect();
        Some(match first.direction {
            Direction::In | Direction::Ahead => Request::Read(block, pages),
            Direction::Out => Request::Write(block, pages),
        })
    }
}

/// See the module. Its lock is taken under that of an address space, and guards a heap's room.
#[derive(Debug)]
pub(crate) struct IoQueue {
    waiting: SpinLock<Waiting>,
    /// Whoever has the disks.
    wanted: WaitQueue,
}

#[derive(Debug)]
struct Waiting {
    reads: VecDeque<OnePage>,
    writes: VecDeque<OnePage>,
}

impl Default for IoQueue {
    fn default() -> Self {
        let waiting = Waiting {
            reads: VecDeque::with_capacity(ROOM),
            writes: VecDeque::with_capacity(ROOM),
        };
        Self {
            waiting: SpinLock::new(waiting),
            wanted: WaitQueue::with_room(1),
        }
    }
}

impl Waiting {
    fn queue_of(&mut self, direction: Direction) -> &mut VecDeque<OnePage> {
        match direction {
            Direction::In | Direction::Ahead => &mut self.reads,
            Direction::Out => &mut self.writes,
        }
    }

    fn chosen(&mut self, choice: IoChoice) -> Option<&mut VecDeque<OnePage>> {
        match choice {
            _ if !self.reads.is_empty() => Some(&mut self.reads),
            IoChoice::All if !self.writes.is_empty() => Some(&mut self.writes),
            IoChoice::All | IoChoice::Reads => None,
        }
    }
}

impl IoQueue {
    pub(crate) fn push(&self, page: OnePage) {
        self.waiting.lock().queue_of(page.direction).push_back(page);
        self.wanted.wake_one();
    }

    /// The first that waits, with those of its neighbours that wait not far behind it.
    fn take(&self, choice: IoChoice, most: usize) -> Option<PageIo> {
        // Room is made before the lock is taken.
        let mut pages = Vec::with_capacity(most.clamp(1, LOOK_AT));
        let mut waiting = self.waiting.lock();
        let queue = waiting.chosen(choice)?;
        pages.push(queue.pop_front()?);
        while pages.len() < pages.capacity().min(most) {
            let (Some(first), Some(last)) = (pages.first().copied(), pages.last().copied()) else {
                break;
            };
            let near = |page: &OnePage| page.follows(&last) || first.follows(page);
            let Some(at) = queue.iter().take(LOOK_AT).position(near) else {
                break;
            };
            let Some(page) = queue.remove(at) else { break };
            if page.follows(&last) {
                pages.push(page);
            } else {
                pages.insert(0, page);
            }
        }
        Some(PageIo { pages })
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Sleeps until there is something for [`Self::next_io`]. For one task.
    pub async fn swap_io_wanted(&self, choice: IoChoice) {
        let queue = &self.swap.io;
        let is_there = || queue.waiting.lock().chosen(choice).map(|_| ());
        queue.wanted.until(is_there).await;
    }

    /// The next request for the disk of an area ([`PageIo::area`]), of up to `most_pages` pages (at least 1, at most 128), with the token
    /// that [`Self::end_io`] wants back.
    pub fn next_io(&self, choice: IoChoice, most_pages: usize) -> Option<(Request, PageIo)> {
        let io = self.swap.io.take(choice, most_pages)?;
        Some((io.request()?, io))
    }

    /// Puts a request back in the first place that the disk could not take just now.
    pub fn io_refused(&self, io: PageIo) {
        let mut waiting = self.swap.io.waiting.lock();
        for page in io.pages.into_iter().rev() {
            waiting.queue_of(page.direction).push_front(page);
        }
    }

    /// A request is done: what waits for its pages goes on. A page that left memory is freed if nobody has come for it
    /// meanwhile. When several pages failed together each is tried by itself, so that an error is that of the page whose block has it.
    pub fn end_io(&self, cpu: &Cpu, io: PageIo, result: Result<(), IoError>) {
        if result.is_err() && io.pages.len() > 1 {
            for page in io.pages {
                let company = Company::None;
                self.swap.io.push(OnePage { company, ..page });
            }
            return;
        }
        for page in io.pages {
            self.end_page(cpu, page, result);
        }
    }
}
