//! The blocks of a disk that is asked for whole frames, for a file system's metadata.

use alloc::boxed::Box;
use core::marker::PhantomData;

use super::super::gate::{Gate, GateGuard};
use super::super::pagefs::{Block, Blocks};
use super::Machine;
use crate::disk::{BlockNr, IoError, Request};
use crate::frames::Frames;
use crate::gfp::Gfp;
use crate::pfn::{Order, PAGE_BYTES, Pfn};
use crate::phys::AllocError;

/// See the module.
pub struct FrameBlocks<'m, X: Machine<'m>> {
    machine: X,
    /// For when there is no other: memory comes back only if metadata can be written.
    spare: Gate<Pfn>,
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
            spare: Gate::new(spare),
            memory: PhantomData,
        })
    }

    async fn frame(&self) -> Frame<'_, 'm, X> {
        let phys = self.machine.mm().phys;
        let own = phys.alloc_pages(self.machine.this_cpu(), Gfp::KERNEL, Order::ZERO);
        let spare = match own {
            Ok(_) => None,
            Err(_) => Some(self.spare.lock().await),
        };
        Frame {
            machine: &self.machine,
            own: own.ok(),
            spare,
            is_under_way: false,
            memory: PhantomData,
        }
    }
}

impl<'m, X: Machine<'m>> Blocks for FrameBlocks<'m, X> {
    fn nr_blocks(&self) -> u64 {
        self.machine.nr_blocks()
    }

    async fn read(&self, block: u32) -> Result<Box<Block>, IoError> {
        let mut frame = self.frame().await;
        let pages = alloc::vec![frame.pfn()];
        frame.request(Request::Read(BlockNr(block.into()), pages)).await?;
        let mut contents = Box::new([0; PAGE_BYTES]);
        let frames = &self.machine.mm().frames;
        frames.read_bytes(frame.pfn(), 0, &mut contents[..]);
        Ok(contents)
    }

    async fn write(&self, block: u32, contents: &Block) -> Result<(), IoError> {
        let mut frame = self.frame().await;
        self.machine.mm().frames.write_bytes(frame.pfn(), 0, contents);
        let pages = alloc::vec![frame.pfn()];
        frame.request(Request::Write(BlockNr(block.into()), pages)).await
    }

    async fn flush(&self) -> Result<(), IoError> {
        self.machine.request(Request::Flush).await
    }
}

/// A frame for one request.
struct Frame<'a, 'm, X: Machine<'m>> {
    machine: &'a X,
    own: Option<Pfn>,
    /// If there is no own one.
    spare: Option<GateGuard<'a, Pfn>>,
    is_under_way: bool,
    memory: PhantomData<fn(&'m ())>,
}

impl<'m, X: Machine<'m>> Frame<'_, 'm, X> {
    fn pfn(&self) -> Pfn {
        let spare = self.spare.as_deref().copied();
        self.own.or(spare).expect("it is one of the two")
    }

    async fn request(&mut self, request: Request) -> Result<(), IoError> {
        self.is_under_way = true;
        let result = self.machine.request(request).await;
        self.is_under_way = false;
        result
    }
}

impl<'m, X: Machine<'m>> Drop for Frame<'_, 'm, X> {
    fn drop(&mut self) {
        if self.is_under_way {
            // Nobody waits for the disk any more, which has the frame still: it is nobody's from now on.
            self.own = None;
            core::mem::forget(self.spare.take());
        }
        if let Some(pfn) = self.own {
            self.machine.mm().phys.put_page(self.machine.this_cpu(), pfn);
        }
    }
}
