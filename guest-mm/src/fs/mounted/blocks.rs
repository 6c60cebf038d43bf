//! The blocks of a disk that is asked for whole frames, for a file system's metadata; those that were used last stay in memory.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::marker::PhantomData;

use guest_sync::SpinLock;

use super::super::pagefs::{Block, Blocks};
use super::Machine;
use super::block_cache::BlockCache;
use crate::disk::{BlockNr, IoError, Request};
use crate::frames::Frames;
use crate::gfp::Gfp;
use crate::pfn::{Order, PAGE_BYTES, Pfn};
use crate::phys::AllocError;
use crate::wait::WaitQueue;

/// Abandoned frames for which there is room: metadata is asked for by one task at a time.
const ROOM: usize = 16;

/// See the module.
pub struct FrameBlocks<'m, X: Machine<'m>> {
    machine: X,
    pool: Arc<Pool>,
    cache: BlockCache,
    memory: PhantomData<fn(&'m ())>,
}

impl<'m, X: Machine<'m>> FrameBlocks<'m, X> {
    /// The blocks of the machine's disk.
    ///
    /// # Errors
    /// There is no memory for the one frame that is kept.
    pub(super) fn new(machine: X) -> Result<Self, AllocError> {
        let phys = machine.mm().phys;
        let spare = phys.alloc_pages(machine.this_cpu(), Gfp::KERNEL, Order::ZERO)?;
        Ok(Self {
            machine,
            pool: Arc::new(Pool::new(spare)),
            cache: BlockCache::default(),
            memory: PhantomData,
        })
    }

    /// A frame for one request: a new one, or the spare one when there is no other and it is the caller's turn.
    async fn frame(&self) -> Arc<Lent> {
        self.free_left();
        let (phys, cpu) = (self.machine.mm().phys, self.machine.this_cpu());
        let (pfn, is_spare) = match phys.alloc_pages(cpu, Gfp::KERNEL, Order::ZERO) {
            Ok(own) => (own, false),
            Err(_) => (self.pool.spare().await, true),
        };
        Arc::new(Lent {
            pool: self.pool.clone(),
            pfn,
            is_spare,
        })
    }

    /// Frees frames that the disk and those who asked are done with.
    fn free_left(&self) {
        // Not the lock's holder while frames are freed.
        let mut left = Vec::with_capacity(ROOM);
        core::mem::swap(&mut left, &mut *self.pool.left.lock());
        for pfn in left {
            self.machine.mm().phys.put_page(self.machine.this_cpu(), pfn);
        }
    }
}

impl<'m, X: Machine<'m>> Drop for FrameBlocks<'m, X> {
    fn drop(&mut self) {
        self.free_left();
        if let Some(spare) = self.pool.spare.lock().take() {
            self.machine.mm().phys.put_page(self.machine.this_cpu(), spare);
        }
    }
}

impl<'m, X: Machine<'m>> Blocks for FrameBlocks<'m, X> {
    fn nr_blocks(&self) -> u64 {
        self.machine.nr_blocks()
    }

    async fn read(&self, block: u32) -> Result<Box<Block>, IoError> {
        if let Some(contents) = self.cache.find(block) {
            return Ok(contents);
        }
        let frame = self.frame().await;
        let request = Request::Read(BlockNr(block.into()), alloc::vec![frame.pfn]);
        self.machine.request(request, Some(frame.clone())).await?;
        let mut contents = Box::new([0; PAGE_BYTES]);
        let frames = &self.machine.mm().frames;
        frames.read_bytes(frame.pfn, 0, &mut contents[..]);
        drop(frame);
        self.free_left();
        self.cache.enter(block, &contents);
        Ok(contents)
    }

    async fn write(&self, block: u32, contents: &Block) -> Result<(), IoError> {
        let frame = self.frame().await;
        self.machine.mm().frames.write_bytes(frame.pfn, 0, contents);
        let request = Request::Write(BlockNr(block.into()), alloc::vec![frame.pfn]);
        // Until it is known to be there, nobody knows what is.
        self.cache.forget(block);
        self.machine.request(request, Some(frame.clone())).await?;
        drop(frame);
        self.free_left();
        self.cache.enter(block, contents);
        Ok(())
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.machine.request(Request::Flush, None).await
    }
}

/// Frames that come back.
#[derive(Debug)]
struct Pool {
    /// For when there is no other: memory comes back only if metadata can be written. `None` while it is lent. Nothing else is locked
    /// under either lock.
    spare: SpinLock<Option<Pfn>>,
    /// Those who wait for it.
    waiting: WaitQueue,
    /// Others, to be freed.
    left: SpinLock<Vec<Pfn>>,
}

impl Pool {
    fn new(spare: Pfn) -> Self {
        Self {
            spare: SpinLock::new(Some(spare)),
            waiting: WaitQueue::new(),
            left: SpinLock::new(Vec::with_capacity(ROOM)),
        }
    }

    async fn spare(&self) -> Pfn {
        self.waiting.until(|| self.spare.lock().take()).await
    }
}

/// A frame for one request. Who asked has it, and so has the disk, as long as it works on it: it comes back when the last of the two is done,
/// whether or not anybody waited for the result.
#[derive(Debug)]
struct Lent {
    pool: Arc<Pool>,
    pfn: Pfn,
    is_spare: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if self.is_spare {
            *self.pool.spare.lock() = Some(self.pfn);
            self.pool.waiting.wake_one();
        } else {
            self.pool.left.lock().push(self.pfn);
        }
    }
}
