//! A disk for tests: all that a disk may do, chosen by whoever runs it.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec;
use alloc::vec::Vec;

use guest_sync::SpinLock;

use super::{BlockDevice, BlockNr, IoError, Refused, Request};
use crate::frames::Frames;
use crate::pfn::{PAGE_BYTES, Pfn};

/// What fails at a block, until it is mended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Reading it.
    Read,
    /// Writing it: what it holds stays.
    Write,
}

/// A disk with a volatile write cache, as most have.
///
/// Nothing happens by itself: [`Self::step`] does one of the requests under way, and the caller says which. A write is in the
/// cache from then on, and durable only after a [`Request::Flush`] that was submitted later.
#[derive(Debug)]
pub struct SimulatedDisk<T> {
    nr_blocks: u64,
    depth: usize,
    state: SpinLock<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    durable: BTreeMap<BlockNr, Vec<u8>>,
    /// Every write since the last flush, in order.
    cache: Vec<(BlockNr, Vec<u8>)>,
    /// In the order of their submission, each with the length of the cache at that time.
    under_way: Vec<(Request, usize, T)>,
    done: VecDeque<(T, Result<(), IoError>)>,
    faults: BTreeSet<(Fault, BlockNr)>,
}

impl<T> SimulatedDisk<T> {
    /// A disk of zeroes that holds up to `depth` requests at a time.
    pub fn new(nr_blocks: u64, depth: usize) -> Self {
        Self {
            nr_blocks,
            depth,
            state: SpinLock::new(State {
                durable: BTreeMap::new(),
                cache: Vec::new(),
                under_way: Vec::new(),
                done: VecDeque::new(),
                faults: BTreeSet::new(),
            }),
        }
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> usize {
        self.state.lock().under_way.len()
    }

    /// Does one of the requests under way: `choice` modulo their number, counted from the one submitted first.
    /// False if there is none.
    pub fn step(&self, frames: &impl Frames, choice: usize) -> bool {
        let mut state = self.state.lock();
        let Some(index) = choice.checked_rem(state.under_way.len()) else {
            return false;
        };
        let (request, cached, token) = state.under_way.remove(index);
        let result = state.perform(frames, &request, cached);
        state.done.push_back((token, result));
        true
    }

    /// From now on `fault` happens at `block`.
    pub fn break_block(&self, fault: Fault, block: BlockNr) {
        self.state.lock().faults.insert((fault, block));
    }

    /// All blocks work again.
    pub fn mend(&self) {
        self.state.lock().faults.clear();
    }

    /// What a reader would find in a block now.
    pub fn contents(&self, block: BlockNr) -> Vec<u8> {
        self.state.lock().contents(block)
    }

    /// Puts something on the disk, durably: its contents before anything began.
    pub fn preset(&self, block: BlockNr, bytes: &[u8]) {
        let mut state = self.state.lock();
        state.durable.insert(block, bytes.to_vec());
    }

    /// Takes the power away, and gives it back. Requests under way, and those done that nobody has asked for, are lost; of
    /// the writes since the last flush those stay that `kept` chooses, in any order between different blocks.
    pub fn lose_power(&self, mut kept: impl FnMut() -> bool) {
        let mut state = self.state.lock();
        state.under_way.clear();
        state.done.clear();
        let cache = core::mem::take(&mut state.cache);
        for (block, bytes) in cache {
            if kept() {
                state.durable.insert(block, bytes);
            }
        }
    }
}

impl<T> State<T> {
    fn perform(&mut self, frames: &impl Frames, request: &Request, cached: usize) -> Result<(), IoError> {
        match request {
            Request::Read(first, pages) => self.each(Fault::Read, *first, pages, |state, block, pfn| {
                frames.write_bytes(pfn, 0, &state.contents(block));
            }),
            Request::Write(first, pages) => self.each(Fault::Write, *first, pages, |state, block, pfn| {
                let mut bytes = vec![0; PAGE_BYTES];
                frames.read_bytes(pfn, 0, &mut bytes);
                state.cache.push((block, bytes));
            }),
            Request::Flush => {
                let durable = self
                    .cache
                    .drain(..cached.min(self.cache.len()))
                    .collect::<Vec<_>>();
                let nr_durable = durable.len();
                self.durable.extend(durable);
                for (_, at_submission, _) in &mut self.under_way {
                    *at_submission = at_submission.saturating_sub(nr_durable);
                }
                Ok(())
            }
        }
    }

    /// One page after the other, up to the first that fails.
    fn each(
        &mut self,
        fault: Fault,
        first: BlockNr,
        pages: &[Pfn],
        mut page: impl FnMut(&mut Self, BlockNr, Pfn),
    ) -> Result<(), IoError> {
        for (block, pfn) in (first.0..).map(BlockNr).zip(pages) {
            if self.faults.contains(&(fault, block)) {
                return Err(IoError);
            }
            page(self, block, *pfn);
        }
        Ok(())
    }

    fn contents(&self, block: BlockNr) -> Vec<u8> {
        let cached = self.cache.iter().rev().find(|(at, _)| *at == block);
        let bytes = cached
            .map(|(_, bytes)| bytes)
            .or_else(|| self.durable.get(&block));
        bytes.cloned().unwrap_or_else(|| vec![0; PAGE_BYTES])
    }
}

impl<T> BlockDevice<T> for SimulatedDisk<T> {
    fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    fn submit(&self, request: Request, token: T) -> Result<(), (Refused, T)> {
        if let Some((first, pages)) = request.transfer() {
            let end = first.0.checked_add(pages.len() as u64);
            if pages.is_empty() || end.is_none_or(|end| end > self.nr_blocks) {
                return Err((Refused::OutOfRange, token));
            }
        }
        let mut state = self.state.lock();
        if state.under_way.len() >= self.depth {
            return Err((Refused::Full, token));
        }
        let cached = state.cache.len();
        state.under_way.push((request, cached, token));
        Ok(())
    }

    fn completed(&self) -> Option<(T, Result<(), IoError>)> {
        self.state.lock().done.pop_front()
    }
}
