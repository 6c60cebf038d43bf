//! Files that programs share: read, written, mapped, cut off and made longer, written to a disk that fails, and shared memory.

use core::cell::{Cell, RefCell};
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use guest_sync::SpinLock;

use super::executor::pause;
use super::memory::{Doomed, Process};
use super::model::{Model, Place, offset_of};
use super::program::WORDS;
use super::{Sim, count};
use crate::PAGE_SIZE;
use crate::disk::{BlockNr, Fault};
use crate::mm::MappingId;
use crate::mm::mapping::{AddressSpaceOps, FileError, MappingKind, PrivatePage, ReadAhead};
use crate::tests::machine::TestMm;

/// Pages that a file may have.
pub(super) const MOST_PAGES: u64 = 260;
/// How often a write is tried that finds errors.
const PATIENCE: u32 = 8;

/// Takes note of pages that could not be written, for the models.
#[derive(Default)]
pub(super) struct LostPages(SpinLock<Vec<(MappingId, u32)>>);

impl AddressSpaceOps for LostPages {
    fn write_lost(&self, page: PrivatePage) {
        self.0.lock().push((page.mapping, page.index));
    }
}

/// See the module.
pub(super) struct SimFile {
    pub(super) id: MappingId,
    is_shmem: bool,
    pub(super) model: RefCell<Model>,
    /// Somebody writes to it or changes its length: the lock of its inode.
    is_busy: Cell<bool>,
    stamp: Cell<u64>,
}

impl SimFile {
    pub(super) fn all(mm: &TestMm<'_>, lost: &Arc<LostPages>) -> Vec<Self> {
        let new = |(nr, kind): (u64, MappingKind)| Self {
            is_shmem: matches!(kind, MappingKind::Shmem),
            id: mm.create_mapping(kind, 0),
            model: RefCell::default(),
            is_busy: Cell::new(false),
            stamp: Cell::new((nr + 1) << 56),
        };
        let file = || MappingKind::File(lost.clone());
        (0..)
            .zip([file(), file(), file(), MappingKind::Shmem])
            .map(new)
            .collect()
    }

    /// A value that was never stored anywhere.
    pub(super) fn next_stamp(&self) -> u64 {
        self.stamp.set(self.stamp.get() + 1);
        self.stamp.get()
    }

    async fn lock(&self) {
        while self.is_busy.replace(true) {
            pause().await;
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.is_busy.get()
    }
}

/// An `fsync` under way; dropped before its end it has made nothing durable.
struct Syncing<'a>(&'a SimFile);

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        self.0.model.borrow_mut().end_sync(false);
    }
}

impl Sim<'_> {
    pub(super) fn some_file(&self) -> usize {
        usize::try_from(self.below(self.files.len() as u64)).unwrap()
    }

    /// One operation on a file, as a system call.
    pub(super) async fn use_file(&self, process: &Process) {
        let file = &self.files[self.some_file()];
        match self.below(14) {
            0 => self.truncate(process, file).await,
            1 => {
                let _ = process.interruptible(self.sync(file)).await;
            }
            2..8 => self.write(process, file).await,
            _ => self.read(process, file).await,
        }
    }

    async fn read(&self, process: &Process, file: &SimFile) {
        let pages = file.model.borrow().nr_pages();
        let page = u32::try_from(self.below(u64::from(pages) + 2)).unwrap();
        let nr = 1 + self.below(24);
        let mut ahead = ReadAhead::default();
        let range = (
            u64::from(page) * PAGE_SIZE,
            usize::try_from(nr * PAGE_SIZE).unwrap(),
        );
        let to = |done: usize, piece: &[u8]| {
            // The file may have ended in this page, and grown before the next piece, which begins there then.
            if !(done as u64).is_multiple_of(PAGE_SIZE) {
                return Ok(());
            }
            let page = page + u32::try_from(done as u64 / PAGE_SIZE).unwrap();
            for (place, bytes) in Model::words_of(page).zip(piece.chunks_exact(8)) {
                let value = u64::from_ne_bytes(bytes.try_into().unwrap());
                file.model.borrow_mut().found(place, value);
                count(&self.seen.file_words, 1);
            }
            Ok(())
        };
        let read = self.mm.read_file(self.cpu, file.id, &mut ahead, range, to);
        match process.interruptible(self.failing(read)).await {
            Ok(Ok(_)) | Err(Doomed) => {}
            Ok(Err(FileError::Io)) => count(&self.seen.io_errors, 1),
            Ok(Err(FileError::OutOfMemory)) => {
                let _ = self.until_a_page(process).await;
            }
            Ok(Err(error)) => panic!("{error}"),
        }
    }

    async fn write(&self, process: &Process, file: &SimFile) {
        file.lock().await;
        let (page, word, nr) = match self.below(3) {
            0 => (self.below(MOST_PAGES), self.below(WORDS), 1),
            _ => (self.below(MOST_PAGES - 20), 0, 1 + self.below(20)),
        };
        let begin = page * PAGE_SIZE + word * 8;
        let end = (page + nr - 1) * PAGE_SIZE + WORDS * 8;
        let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
        let mut places: Vec<(Place, u64)> = Vec::new();
        for place in (page..page + nr).flat_map(|page| Model::words_of(u32::try_from(page).unwrap())) {
            if let Some(at) = offset_of(place).checked_sub(begin) {
                let (at, value) = (usize::try_from(at).unwrap(), file.next_stamp());
                bytes[at..at + 8].copy_from_slice(&value.to_ne_bytes());
                places.push((place, value));
            }
        }
        file.model.borrow_mut().begin_write(&places);
        let (mut done, mut tries) = (0, 0);
        while done < bytes.len() && tries < PATIENCE {
            let rest = &bytes[done..];
            let from = |at: usize, piece: &mut [u8]| {
                piece.copy_from_slice(&rest[at..at + piece.len()]);
                Ok(())
            };
            let place = (begin + done as u64, rest.len());
            let write = self.mm.write_file(self.cpu, file.id, &self.fs, place, from);
            match process.interruptible(self.failing(write)).await {
                Ok(Ok(written)) => done += written,
                Ok(Err(FileError::OutOfMemory)) => {
                    let _ = self.until_a_page(process).await;
                }
                Ok(Err(FileError::Io)) => count(&self.seen.io_errors, 1),
                Ok(Err(error)) => panic!("{error}"),
                Err(Doomed) => break,
            }
            tries += 1;
            pause().await;
        }
        let size = self.mm.mapping_size(file.id).unwrap();
        if process.is_doomed() {
            file.model.borrow_mut().abandon_write(&places, size);
        } else {
            let end = if done == 0 { 0 } else { begin + done as u64 };
            file.model.borrow_mut().end_write(&places, end);
            assert_eq!(size, file.model.borrow().size);
        }
        file.is_busy.set(false);
    }

    async fn truncate(&self, process: &Process, file: &SimFile) {
        file.lock().await;
        let size = match self.below(3) {
            0 if self.one_in(3) => 0,
            0 | 1 => self.below(MOST_PAGES) * PAGE_SIZE,
            _ => self.below(MOST_PAGES) * PAGE_SIZE + 8 * self.below(WORDS),
        };
        self.truncate_to(process, file, size).await;
        file.is_busy.set(false);
    }

    /// Brings it to an end, whatever happens meanwhile: but if the program is to end, and there is no memory for the last page, the file ends
    /// before that page.
    async fn truncate_to(&self, process: &Process, file: &SimFile, mut size: u64) {
        loop {
            file.model.borrow_mut().begin_truncate(size);
            match self.failing(self.mm.truncate(self.cpu, file.id, size)).await {
                Ok(()) => break,
                Err(FileError::OutOfMemory) => {
                    if self.until_a_page(process).await.is_err() {
                        let now = self.mm.mapping_size(file.id).unwrap();
                        size = size.min(now) / PAGE_SIZE * PAGE_SIZE;
                    }
                }
                Err(FileError::Io) => {
                    count(&self.seen.io_errors, 1);
                    self.mend();
                }
                Err(error) => panic!("{error}"),
            }
            pause().await;
        }
        self.fs
            .forget(file.id, u32::try_from(size.div_ceil(PAGE_SIZE)).unwrap());
        file.model.borrow_mut().end_truncate(size);
        count(&self.seen.truncates, 1);
    }

    /// `fsync`: whether everything that was there when it began is on the disk for sure.
    pub(super) async fn sync(&self, file: &SimFile) -> bool {
        if file.is_shmem || !file.model.borrow_mut().begin_sync() {
            return false;
        }
        let syncing = Syncing(file);
        let synced = self.failing(self.mm.sync(self.cpu, file.id)).await;
        let done = self.fs.flush();
        while !done.get() {
            pause().await;
        }
        match synced {
            Ok(()) => count(&self.seen.syncs, 1),
            Err(FileError::Io) => count(&self.seen.io_errors, 1),
            Err(error) => panic!("{error}"),
        }
        syncing.0.model.borrow_mut().end_sync(synced.is_ok());
        synced.is_ok()
    }

    /// The file system takes requests, its disk does one, and now and then a block breaks. False if there was nothing to do.
    pub(super) fn files_turn(&self) -> bool {
        let mut has_worked = self.fs.take_requests();
        if self.mm.is_too_dirty() || self.one_in(12) {
            let nr = u32::try_from(1 + self.below(64)).unwrap();
            has_worked |= self.mm.write_back(self.cpu, nr) > 0;
        }
        if !self.is_ending.get() && self.one_in(10) {
            let block = BlockNr(1 + self.below(200));
            let fault = if self.one_in(2) { Fault::Read } else { Fault::Write };
            self.fs.disk.break_block(fault, block);
        }
        if self.is_ending.get() || self.one_in(60) {
            self.fs.disk.mend();
        }
        let choice = usize::try_from(self.below(64)).unwrap();
        has_worked |= self.fs.disk.step(&self.mm.frames, choice);
        has_worked |= self.fs.end_requests();
        self.note_lost();
        has_worked
    }

    /// Tells the models of pages that could not be written.
    fn note_lost(&self) {
        for (id, page) in core::mem::take(&mut *self.lost.0.lock()) {
            let file = self.files.iter().find(|file| file.id == id);
            file.expect("all files are models'").model.borrow_mut().lost(page);
            count(&self.seen.lost_pages, 1);
        }
    }

    pub(super) fn mend(&self) {
        self.disk.mend();
        self.fs.disk.mend();
    }

    /// The power goes and comes back: what was synced is on the disk, or something newer.
    pub(super) fn lose_power(&self) {
        self.fs.disk.lose_power(|| self.one_in(2));
        for file in self.files.iter().filter(|file| !file.is_shmem) {
            count(&self.seen.words_after_power, self.compare_disk(file));
        }
    }

    /// Compares what is on the disk with what may be there; how many words.
    fn compare_disk(&self, file: &SimFile) -> u32 {
        let mut nr = 0;
        for ((page, word), durable) in file.model.borrow().durable() {
            let on_disk = self.fs.block(file.id, page).map_or(0, |block| {
                let at = usize::try_from(word * 8).unwrap();
                u64::from_ne_bytes(self.fs.disk.contents(block)[at..at + 8].try_into().unwrap())
            });
            assert!(
                durable.contains(&on_disk),
                "word {word} of page {page} is {on_disk:#x} on the disk, and should be {durable:#x?}"
            );
            nr += 1;
        }
        nr
    }

    /// Everything is written, compared, and given back.
    pub(super) async fn end_files(&self, process: &Process) {
        for file in &self.files {
            while !file.is_shmem && !self.sync(file).await {
                self.mend();
            }
            if !file.is_shmem {
                self.compare_disk(file);
            }
            self.mm.until_unmapped(file.id).await;
            self.truncate_to(process, file, 0).await;
            self.mm.remove_mapping(file.id).unwrap();
        }
    }
}
