//! A file system that remembers in a map which block is behind which page, over the simulated disk.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::vec::Vec;

use guest_sync::Cpu;

use crate::Frames;
use crate::Order;
use crate::disk::{BlockDevice, BlockNr, IoError, Request, SimulatedDisk};
use crate::mm::mapping::{FileError, FileIo, FileSystem, IoDirection};
use crate::mm::{IoChoice, MappingId, PageIo, Shrunk};
use crate::pfn::PAGE_BYTES;
use crate::tests::machine::TestMm;

/// What a request for the disk is for.
pub(crate) enum Token {
    Pages(FileIo),
    /// Tells whoever asked for a flush that it is done.
    Flush(Rc<Cell<bool>>),
}

/// See the module.
pub(crate) struct TestFs<'a, 'm> {
    pub(crate) mm: &'a TestMm<'m>,
    pub(crate) cpu: &'a Cpu,
    pub(crate) disk: SimulatedDisk<Token>,
    blocks: RefCell<BTreeMap<(MappingId, u32), u32>>,
    next: Cell<u32>,
    /// Blocks that may still be given out.
    pub(crate) free: Cell<u32>,
    /// Files of which a page could not be read or written.
    pub(crate) failed: RefCell<BTreeSet<MappingId>>,
    /// For what has no file.
    pub(crate) swap: SimulatedDisk<PageIo>,
}

impl<'a, 'm> TestFs<'a, 'm> {
    pub(crate) fn new(mm: &'a TestMm<'m>, cpu: &'a Cpu, nr_blocks: u32) -> Self {
        Self {
            mm,
            cpu,
            disk: SimulatedDisk::new(nr_blocks.into(), 256),
            blocks: RefCell::default(),
            next: Cell::new(1),
            free: Cell::new(nr_blocks - 1),
            failed: RefCell::default(),
            swap: SimulatedDisk::new(8 * 4096, 64),
        }
    }

    /// The block behind a page, if it has one.
    pub(crate) fn block(&self, mapping: MappingId, index: u32) -> Option<BlockNr> {
        let blocks = self.blocks.borrow();
        blocks
            .get(&(mapping, index))
            .map(|block| BlockNr((*block).into()))
    }

    /// Puts a file on the disk, a byte for each page.
    pub(crate) fn preset(&self, mapping: MappingId, pages: &[u8]) {
        for (index, byte) in (0..).zip(pages) {
            let block = self.allocate(mapping, index).unwrap();
            self.disk.preset(BlockNr(block.into()), &[*byte; PAGE_BYTES]);
        }
    }

    /// Gives up the blocks of pages from `first` on.
    pub(crate) fn forget(&self, mapping: MappingId, first: u32) {
        self.blocks
            .borrow_mut()
            .retain(|(of, index), _| *of != mapping || *index < first);
    }

    fn allocate(&self, mapping: MappingId, index: u32) -> Option<u32> {
        let mut blocks = self.blocks.borrow_mut();
        if let Some(block) = blocks.get(&(mapping, index)) {
            return Some(*block);
        }
        let free = self.free.get().checked_sub(1)?;
        self.free.set(free);
        let block = self.next.get();
        self.next.set(block + 1);
        blocks.insert((mapping, index), block);
        Some(block)
    }

    /// Takes requests, and gives the disk what it can hold. False if there is nothing to do.
    pub(crate) fn take_requests(&self) -> bool {
        let mut has_worked = false;
        while self.disk.under_way() < 128
            && let Some(io) = self.mm.next_file_io()
        {
            has_worked = true;
            self.begin(io);
        }
        has_worked
    }

    fn begin(&self, mut io: FileIo) {
        let indices = (io.index()..).zip(0..io.pages().len());
        let block_of = |io: &FileIo, (index, nth)| match io.direction() {
            IoDirection::Read => self.blocks.borrow().get(&(io.mapping(), index)).copied(),
            // Without a look at metadata.
            IoDirection::Write => Some(self.mm.io_private(io, nth).expect("a dirty page has its block")),
        };
        let blocks: Vec<Option<u32>> = indices.map(|page| block_of(&io, page)).collect();
        let follows = |nth: &usize| blocks[*nth] == blocks[*nth - 1].map(|block| block + 1);
        let run = (1..blocks.len())
            .find(|nth| !follows(nth))
            .unwrap_or(blocks.len());
        let rest = io.split_off(run);
        let Some(block) = blocks[0] else {
            for pfn in io.pages() {
                self.mm.frames.zero(*pfn, Order::ZERO);
            }
            self.mm.end_file_io(self.cpu, io, Ok(()));
            return rest.into_iter().for_each(|rest| self.begin(rest));
        };
        let pages = io.pages().to_vec();
        let request = match io.direction() {
            IoDirection::Write => Request::Write(BlockNr(block.into()), pages),
            IoDirection::Read => {
                for (nth, block) in (0..pages.len()).zip(block..) {
                    self.mm.set_io_private(&io, nth, block);
                }
                Request::Read(BlockNr(block.into()), pages)
            }
        };
        self.submit(request, Token::Pages(io));
        rest.into_iter().for_each(|rest| self.begin(rest));
    }

    /// Tells what became of requests. False if none is done.
    pub(crate) fn end_requests(&self) -> bool {
        let mut has_worked = false;
        while let Some((token, result)) = self.disk.completed() {
            has_worked = true;
            match token {
                Token::Pages(io) => {
                    if result.is_err() {
                        self.failed.borrow_mut().insert(io.mapping());
                    }
                    self.mm.end_file_io(self.cpu, io, result);
                }
                Token::Flush(is_done) => is_done.set(true),
            }
        }
        has_worked
    }

    /// Asks for a flush; what it gives becomes true when that is done.
    pub(crate) fn flush(&self) -> Rc<Cell<bool>> {
        let is_done = Rc::new(Cell::new(false));
        self.submit(Request::Flush, Token::Flush(is_done.clone()));
        is_done
    }

    fn submit(&self, request: Request, token: Token) {
        self.disk.submit(request, token).map_err(|(why, _)| why).unwrap();
    }

    /// The swap area's disk does one request. False if there is nothing to do.
    fn swap_work(&self) -> bool {
        while let Some((request, io)) = self.mm.next_io(IoChoice::All, 8) {
            // One area behind the other on the same disk.
            let at = |block: BlockNr| BlockNr(block.0 + 4096 * u64::from(io.area().number()));
            let request = match request {
                Request::Read(block, pages) => Request::Read(at(block), pages),
                Request::Write(block, pages) => Request::Write(at(block), pages),
                Request::Flush => Request::Flush,
            };
            if let Err((_, io)) = self.swap.submit(request, io) {
                self.mm.io_refused(io);
                break;
            }
        }
        let has_worked = self.swap.step(&self.mm.frames, 0);
        while let Some((io, result)) = self.swap.completed() {
            self.mm.end_io(self.cpu, io, result);
        }
        has_worked
    }

    /// Has every zone looked at so many times, as when memory is short for long, and lets the disks work.
    pub(crate) fn shrink(&self, times: u32) -> Shrunk {
        let mut all = Shrunk::default();
        for _ in 0..times {
            for zone in self.mm.phys.populated_zones() {
                let shrunk = self.mm.shrink_zone(self.cpu, zone, 32);
                all.freed += shrunk.freed;
                all.written += shrunk.written;
                all.activated += shrunk.activated;
                self.mm.validate().unwrap();
            }
            self.work();
        }
        all
    }

    /// Does all that is asked for; looks at every invariant after each step.
    pub(crate) fn work(&self) -> bool {
        let mut has_worked = false;
        loop {
            let taken = self.take_requests();
            let done = self.disk.step(&self.mm.frames, 0) | self.end_requests() | self.swap_work();
            self.mm.validate().unwrap();
            if !taken && !done {
                return has_worked;
            }
            has_worked = true;
        }
    }

    /// Runs a future to its end, the disk working whenever it waits.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            self.mm.validate().unwrap();
            match polled {
                Poll::Ready(value) => return value,
                Poll::Pending => assert!(self.work(), "it waits, and there is nothing to wait for"),
            }
        }
    }
}

impl FileSystem for TestFs<'_, '_> {
    async fn readpage(&self, _io: &FileIo) -> Result<(), IoError> {
        unreachable!("requests are taken from the queue")
    }

    async fn writepage(&self, _io: &FileIo) -> Result<(), IoError> {
        unreachable!("requests are taken from the queue")
    }

    async fn prepare_write(&self, mapping: MappingId, index: u32) -> Result<(), FileError> {
        loop {
            let block = self.allocate(mapping, index).ok_or(FileError::NoSpace)?;
            match self.mm.set_private(self.cpu, mapping, index, block)? {
                None => return Ok(()),
                Some(wait) => self.mm.until_unlocked(wait).await,
            }
        }
    }
}
