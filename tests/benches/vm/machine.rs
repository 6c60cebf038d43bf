//! The machine that is measured: memory, a disk of memory for files, another for swap, and programs.

#![allow(dead_code, reason = "each bench uses its part")]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use guest_mm::disk::Request;
use guest_mm::mm::mapping::{DefaultOps, FileError, FileIo, FileSystem, IoDirection, MappingKind};
use guest_mm::mm::{FaultError, FaultOutcome, IoChoice, MappingId};
use guest_mm::swap::AreaHeader;
use guest_mm::{Access, Backing, MapRequest, Mm, Order, Pfn, Place, Prot, SpaceId};
use guest_sync::{Cpu, CpuId, CpuSet};

use crate::flat::{Flat, NoMmu, memory};

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;
/// Frames of boot memory, for page tables.
const BOOT: u32 = 1 << 12;
/// Frames of the one block: 64 MiB.
const BLOCK: u32 = 1 << 14;
/// Blocks of each disk: 128 MiB.
const BLOCKS: u32 = 1 << 15;

/// See the module.
pub(crate) struct Machine {
    pub(crate) mm: Mm<'static, Flat, NoMmu>,
    pub(crate) cpu: Cpu,
    /// Page n of any file is its block n + 1.
    disk: Flat,
    swap: Flat,
}

impl Machine {
    /// Faults map one page each; there is a swap area.
    pub(crate) fn new() -> Self {
        let mut machine = Self::with_neighbours();
        machine.mm.set_fault_around(Order::ZERO);
        machine
    }

    /// The same, but faults map the neighbours too.
    pub(crate) fn with_neighbours() -> Self {
        let phys = memory(BOOT, BLOCK, 1);
        let cpu = CpuSet::new(1)
            .and_then(|cpus| cpus.claim(CpuId::ZERO))
            .expect("the only CPU");
        let mm = Mm::new(phys, Flat::new(BOOT + BLOCK), NoMmu::default());
        mm.swap_on(&AreaHeader::new(BLOCKS), 0).expect("the first area");
        Self {
            mm,
            cpu,
            disk: Flat::new(BLOCKS),
            swap: Flat::new(BLOCKS),
        }
    }

    pub(crate) fn program(&self) -> SpaceId {
        self.mm
            .create_space(&self.cpu, &[])
            .expect("there is memory for a table")
    }

    pub(crate) fn map(&self, space: SpaceId, pages: u64, prot: Prot, backing: Backing) -> u64 {
        let request = MapRequest {
            len: pages * PAGE,
            place: Place::Anywhere,
            prot,
            backing,
        };
        self.mm.mmap(space, &request).expect("there is room")
    }

    /// One access, with all that it takes.
    pub(crate) fn touch(&self, space: SpaceId, va: u64, access: Access) {
        assert!(self.try_touch(space, va, access), "there is memory");
    }

    /// The same; false when memory is out.
    pub(crate) fn try_touch(&self, space: SpaceId, va: u64, access: Access) -> bool {
        loop {
            match self.mm.fault(&self.cpu, space, va, access) {
                Ok(FaultOutcome::Locked(_)) => self.serve(),
                Ok(FaultOutcome::NeedsBlock(_)) => panic!("files that are mapped here have all their blocks"),
                Ok(_) => return true,
                Err(FaultError::OutOfMemory(_)) => return false,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn end(&self, space: SpaceId) {
        self.mm
            .destroy_space(&self.cpu, space)
            .expect("nothing of it is on the move");
    }

    pub(crate) fn file(&self, pages: u64) -> MappingId {
        let kind = MappingKind::File(std::sync::Arc::new(DefaultOps));
        self.mm.create_mapping(kind, pages * PAGE)
    }

    pub(crate) fn remove(&self, file: MappingId) {
        self.run(self.mm.truncate(&self.cpu, file, 0))
            .expect("nothing has to be read for that");
        self.mm.remove_mapping(file).expect("it is empty");
    }

    /// Runs a future to its end; the disks do their work when it waits.
    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            match polled {
                Poll::Ready(value) => return value,
                Poll::Pending => self.serve(),
            }
        }
    }

    /// The disks do all that is asked of them.
    pub(crate) fn serve(&self) {
        while let Some(io) = self.mm.next_file_io() {
            self.serve_file(io);
        }
        while let Some((request, io)) = self.mm.next_io(IoChoice::All, 32) {
            if let Some((first, pages)) = request.transfer() {
                let first = u32::try_from(first.0).expect("a small disk");
                for (block, pfn) in (first..).map(Pfn::new).zip(pages) {
                    match request {
                        Request::Read(..) => self.swap.copy_to(block, &self.mm.frames, *pfn),
                        _ => self.mm.frames.copy_to(*pfn, &self.swap, block),
                    }
                }
            }
            self.mm.end_io(&self.cpu, io, Ok(()));
        }
    }

    fn serve_file(&self, io: FileIo) {
        for ((nth, pfn), block) in io.pages().iter().enumerate().zip(io.index() + 1..) {
            match io.direction() {
                IoDirection::Read => {
                    self.mm.set_io_private(&io, nth, block);
                    self.disk.copy_to(Pfn::new(block), &self.mm.frames, *pfn);
                }
                IoDirection::Write => self.mm.frames.copy_to(*pfn, &self.disk, Pfn::new(block)),
            }
        }
        self.mm.end_file_io(&self.cpu, io, Ok(()));
    }
}

impl FileSystem for Machine {
    async fn readpage(&self, _: &FileIo) -> Result<(), guest_mm::disk::IoError> {
        unreachable!("requests are taken from the queue")
    }

    async fn writepage(&self, _: &FileIo) -> Result<(), guest_mm::disk::IoError> {
        unreachable!("requests are taken from the queue")
    }

    async fn prepare_write(&self, mapping: MappingId, index: u32) -> Result<(), FileError> {
        let busy = self.mm.set_private(&self.cpu, mapping, index, index + 1)?;
        debug_assert!(busy.is_none());
        Ok(())
    }
}
