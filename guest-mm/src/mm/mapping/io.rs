//! Requests of mappings for their files: pages to be filled, pages to be written.
//!
//! As with swap, the memory manager touches no disk. Requests wait in a queue ([`Mm::next_file_io`]); a task of the kernel has them
//! carried out by the file system, which may take several disk requests for one, and tells how it went ([`Mm::end_file_io`]). A
//! request has a reference to each of its pages. Those to be read are locked until they are there; those to be written are `WRITEBACK`.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use super::{FileSystem, Mapping, MappingId, MappingKind, MappingState, private_page};
use crate::disk::IoError;
use crate::frames::{Frames, Mmu};
use crate::mempool::ThisCpu;
use crate::mm::Mm;
use crate::page::{Page, PageFlags};
use crate::pfn::{PAGE_BYTES, PAGE_SIZE, Pfn};
use crate::radix_tree::Tag;
use crate::wait::WaitQueue;

/// Why pages are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WhyRead {
    /// Somebody waits, and is told of an error.
    Wanted,
    /// Their neighbours were wanted.
    Ahead,
}

/// Why pages are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WhyWrite {
    /// They are to be on the disk.
    Sync,
    /// Their memory is wanted.
    Reclaim,
}

/// What is to be done with the pages of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoDirection {
    /// Fill them ([`FileSystem::readpage`]).
    Read,
    /// Write them ([`FileSystem::writepage`]).
    Write,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Why {
    Read(WhyRead),
    Write(WhyWrite),
}

/// Pages of one file to be read or written: a run of neighbours. Give it to [`Mm::end_file_io`].
#[must_use = "its pages stay locked, or on their way, for ever"]
#[derive(Debug)]
pub struct FileIo {
    mapping: Arc<Mapping>,
    index: u32,
    pages: Vec<Pfn>,
    why: Why,
}

impl FileIo {
    pub(crate) const fn read(mapping: Arc<Mapping>, index: u32, pages: Vec<Pfn>, why: WhyRead) -> Self {
        Self {
            mapping,
            index,
            pages,
            why: Why::Read(why),
        }
    }

    pub(crate) const fn write(mapping: Arc<Mapping>, index: u32, pages: Vec<Pfn>, why: WhyWrite) -> Self {
        Self {
            mapping,
            index,
            pages,
            why: Why::Write(why),
        }
    }

    /// Of which file.
    pub fn mapping(&self) -> MappingId {
        self.mapping.id
    }

    /// Which page of the file the first one is; the others follow it.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// Where the pages are: at least one.
    pub fn pages(&self) -> &[Pfn] {
        &self.pages
    }

    /// What is to be done.
    pub const fn direction(&self) -> IoDirection {
        match self.why {
            Why::Read(_) => IoDirection::Read,
            Why::Write(_) => IoDirection::Write,
        }
    }

    /// Cuts the request in two that end separately: this one keeps the first `nr` pages. `None` if it has no more than that, or `nr` is 0.
    pub fn split_off(&mut self, nr: usize) -> Option<Self> {
        if nr == 0 || nr >= self.pages.len() {
            return None;
        }
        let pages = self.pages.split_off(nr);
        let skipped = u32::try_from(nr).expect("pages of a file are counted in 32 bits");
        Some(Self {
            mapping: self.mapping.clone(),
            index: self.index + skipped,
            pages,
            why: self.why,
        })
    }
}

static ZEROES: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// Requests that nobody has taken yet.
#[derive(Debug, Default)]
pub(crate) struct FileIoQueue {
    queue: SpinLock<VecDeque<FileIo>>,
    arrivals: WaitQueue,
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// The next request for a file system.
    pub fn next_file_io(&self) -> Option<FileIo> {
        self.file_io.queue.lock().pop_front()
    }

    /// Sleeps until there is a request for a file system, and takes it.
    pub async fn until_file_io(&self) -> FileIo {
        self.file_io.arrivals.until(|| self.next_file_io()).await
    }

    /// Has a file system carry out a request, and ends it.
    pub async fn serve_file_io(&self, cpu: impl ThisCpu + Copy, io: FileIo, fs: &impl FileSystem) {
        let result = match io.direction() {
            IoDirection::Read => fs.readpage(&io).await,
            IoDirection::Write => fs.writepage(&io).await,
        };
        self.end_file_io(cpu.this_cpu(), io, result);
    }

    /// What the file system has on a page of a request, counted from 0: its block.
    pub fn io_private(&self, io: &FileIo, nth: usize) -> Option<u32> {
        let page = self.mapped_page(*io.pages.get(nth)?);
        page.flags().has(PageFlags::PRIVATE).then(|| page.private())
    }

    /// Hangs something of the file system's on a page of a request to read, counted from 0, whose lock is the request's.
    ///
    /// # Panics
    /// If there is no such page in it.
    pub fn set_io_private(&self, io: &FileIo, nth: usize, private: u32) {
        debug_assert_eq!(io.direction(), IoDirection::Read);
        self.set_page_private(self.mapped_page(io.pages[nth]), private);
    }

    /// A request is done: pages that were read are there, or are an error of who asked for them; pages that were written are clean. One
    /// that could not be written is dirty again the first time. The second time it is clean all the same, or a disk that takes nothing
    /// any more would keep memory, and those who write, for ever (Linux `end_buffer_async_write`, which does not try again);
    /// [`AddressSpaceOps::write_lost`](super::AddressSpaceOps::write_lost). Whoever asks the mapping next is told of either ([`Mm::sync`]).
    #[expect(clippy::needless_pass_by_value, reason = "the token is used up")]
    pub fn end_file_io(&self, cpu: &Cpu, io: FileIo, result: Result<(), IoError>) {
        for (index, &pfn) in (io.index..).zip(&io.pages) {
            match io.why {
                Why::Read(why) => self.page_read(&io.mapping, (index, pfn), why, result),
                Why::Write(why) => self.page_written(cpu, &io.mapping, (index, pfn), why, result),
            }
            self.phys.put_page(cpu, pfn);
        }
        if io.direction() == IoDirection::Write {
            self.dirty.wake_throttled();
        }
    }

    pub(crate) fn submit_file_io(&self, io: FileIo) {
        self.file_io.queue.lock().push_back(io);
        self.file_io.arrivals.wake_one();
    }

    fn page_read(
        &self,
        mapping: &Mapping,
        (index, pfn): (u32, Pfn),
        why: WhyRead,
        result: Result<(), IoError>,
    ) {
        let page = self.mapped_page(pfn);
        match result {
            Ok(()) => {
                let size = mapping.lock().size;
                self.zero_beyond(pfn, index, size);
                page.add_flags(PageFlags::UPTODATE);
                self.phys.counts.pgpgin.add(1);
            }
            Err(IoError) if why == WhyRead::Wanted => page.add_flags(PageFlags::ERROR),
            // Whoever wants it reads it himself, and has an error of his own.
            Err(IoError) => {}
        }
        self.unlock_page(pfn, page);
    }

    fn page_written(
        &self,
        cpu: &Cpu,
        mapping: &Arc<Mapping>,
        (index, pfn): (u32, Pfn),
        why: WhyWrite,
        result: Result<(), IoError>,
    ) {
        let page = self.mapped_page(pfn);
        let mut state = mapping.lock();
        page.remove_flags(PageFlags::WRITEBACK);
        state.tree.clear_tag(index, Tag::Writeback);
        self.phys.counts.nr_writeback.sub(1);
        if result.is_ok() {
            page.remove_flags(PageFlags::ERROR);
            self.phys.counts.pgpgout.add(1);
        } else {
            self.not_written(mapping, &mut state, (pfn, page));
        }
        drop(state);
        self.wake_waiters(pfn);
        if why == WhyWrite::Reclaim && page.try_lock() {
            // The tree's reference, and the request's.
            let is_free = self.free_clean(cpu, mapping, (pfn, page), 2);
            self.phys.counts.pgsteal.add(is_free.into());
            self.unlock_page(pfn, page);
        }
        self.phys.write_ends(result.is_ok());
    }

    /// A page is not on the disk, and so still newer than that.
    fn not_written(&self, mapping: &Mapping, state: &mut MappingState, (pfn, page): (Pfn, &Page)) {
        state.errors.note();
        let is_second = page.flags().has(PageFlags::ERROR);
        if page.flags().has(PageFlags::DIRTY) {
            // Somebody has stored to it meanwhile: that is to be written anyhow.
        } else if is_second {
            page.remove_flags(PageFlags::ERROR);
            if let (MappingKind::File(ops), Some(lost)) = (&mapping.kind, private_page(mapping.id, pfn, page))
            {
                ops.write_lost(lost);
            }
        } else {
            page.add_flags(PageFlags::DIRTY.with(PageFlags::ERROR));
            state.tree.set_tag(page.index(), Tag::Dirty);
            let now = self.dirty.now();
            state.dirtied_at.get_or_insert(now);
            self.phys.counts.nr_dirty.add(1);
        }
    }

    /// Zeroes what of a page is beyond the end of its file.
    pub(crate) fn zero_beyond(&self, pfn: Pfn, index: u32, size: u64) {
        let start = u64::from(index) * PAGE_SIZE;
        let used = size.saturating_sub(start);
        if used >= PAGE_SIZE {
            return;
        }
        let used = usize::try_from(used).expect("below the size of a page");
        self.frames.write_bytes(pfn, used, &ZEROES[used..]);
    }
}
