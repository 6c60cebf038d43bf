//! A disk for tests of the file system: it forgets what was not flushed when its power goes, and fails when it is told to.

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use crate::disk::IoError;
use crate::fs::pagefs::{Block, Blocks};
use crate::pfn::PAGE_BYTES;

/// A disk whose writes are kept one by one, so that any number of them can be taken back.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) nr_blocks: u64,
    pub(super) durable: Rc<RefCell<BTreeMap<u32, Block>>>,
    pub(super) cache: Rc<RefCell<Vec<(u32, Block)>>>,
    /// Writes and flushes until one fails.
    pub(super) good: Rc<Cell<Option<u32>>>,
    /// Nothing can be read.
    pub(super) is_unreadable: Rc<Cell<bool>>,
}

impl Disk {
    pub(super) fn new(nr_blocks: u64) -> Self {
        Self {
            nr_blocks,
            durable: Rc::default(),
            cache: Rc::default(),
            good: Rc::default(),
            is_unreadable: Rc::default(),
        }
    }

    /// What the disk has when the power goes now: of the writes that were not flushed, those that `kept` chooses.
    pub(super) fn after_power_loss(&self, mut kept: impl FnMut() -> bool) -> Self {
        let mut durable = self.durable.borrow().clone();
        let cache = self.cache.borrow();
        durable.extend(cache.iter().filter(|_| kept()).copied());
        let disk = Self::new(self.nr_blocks);
        *disk.durable.borrow_mut() = durable;
        disk
    }

    fn fails(&self) -> Result<(), IoError> {
        match self.good.get() {
            Some(0) => Err(IoError),
            left => {
                self.good.set(left.map(|left| left - 1));
                Ok(())
            }
        }
    }
}

impl Blocks for Disk {
    fn nr_blocks(&self) -> u64 {
        self.nr_blocks
    }

    async fn read(&self, block: u32) -> Result<Box<Block>, IoError> {
        if self.is_unreadable.get() {
            return Err(IoError);
        }
        let cache = self.cache.borrow();
        let cached = cache
            .iter()
            .rev()
            .find(|(at, _)| *at == block)
            .map(|(_, bytes)| *bytes);
        Ok(Box::new(cached.unwrap_or_else(|| {
            self.durable
                .borrow()
                .get(&block)
                .copied()
                .unwrap_or([0; PAGE_BYTES])
        })))
    }

    async fn write(&self, block: u32, contents: &Block) -> Result<(), IoError> {
        self.fails()?;
        self.cache.borrow_mut().push((block, *contents));
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.fails()?;
        self.durable
            .borrow_mut()
            .extend(self.cache.borrow_mut().drain(..));
        Ok(())
    }
}
