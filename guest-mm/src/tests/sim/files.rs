//! Files that programs share: read, written, mapped, cut off and made longer, written to a disk that fails, and shared memory.

use core::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use guest_sync::SpinLock;

use super::backing::{Fs, Open};
use super::executor::pause;
use super::memory::{Doomed, Process};
use super::model::{Model, Place, offset_of};
use super::program::WORDS;
use super::{Sim, count};
use crate::PAGE_SIZE;
use crate::fs::RamPages;
use crate::mm::mapping::{AddressSpaceOps, FileError, MappingKind, PrivatePage, ReadAhead};
use crate::mm::{FilePlace, MappingId};
use crate::tests::machine::TestMm;

/// Pages that a file may have.
pub(super) const MOST_PAGES: u64 = 260;
/// How often a write is tried that finds errors.
const PATIENCE: u32 = 8;

/// Takes note of pages that could not be written, for the models.
#[derive(Default)]
pub(super) struct LostPages(SpinLock<Vec<(MappingId, u32)>>);

impl LostPages {
    pub(super) fn note(&self, mapping: MappingId, index: u32) {
        self.0.lock().push((mapping, index));
    }
}

impl AddressSpaceOps for LostPages {
    fn write_lost(&self, page: PrivatePage) {
        self.note(page.mapping, page.index);
    }
}

/// What the files are called that are on a disk.
pub(super) const NAMES: [&[u8]; 3] = [b"file0", b"file1", b"file2"];
/// After those: shared memory, and a file whose pages have no place but memory.
const SHARED: usize = NAMES.len();
const RAM: usize = SHARED + 1;
/// Pages that the latter may have: nothing takes them away when memory is short.
const MOST_RAM_PAGES: u64 = 48;

/// See the module.
pub(super) struct SimFile {
    /// Which one.
    pub(super) nr: usize,
    /// Its pages; none for those that have some only while they are in memory.
    pub(super) mapping: Option<MappingId>,
    /// What knows them, of the one in memory alone.
    pub(super) ram: Option<Arc<RamPages>>,
    /// Pages of it that were lost with their frames, and are nowhere else.
    gone: RefCell<BTreeSet<u32>>,
    /// There were some.
    has_lost: Cell<bool>,
    pub(super) model: RefCell<Model>,
    /// Somebody writes to it or changes its length: the lock of its inode.
    is_busy: Cell<bool>,
    stamp: Cell<u64>,
    /// First pages that were cut off it, one time after the other, each twice: before it happened and after.
    cuts: RefCell<Vec<u32>>,
    /// Pages from this one on may be cut off again at any time.
    cut_soon: Cell<u64>,
}

impl SimFile {
    /// Files of a map, each with its mapping, or of the real file system; and those without a disk.
    pub(super) fn all(mm: &TestMm<'_>, lost: Option<&Arc<LostPages>>) -> Vec<Self> {
        let ram = Arc::new(RamPages::default());
        let kind = |nr| match lost {
            _ if nr == SHARED => Some(MappingKind::Shmem),
            _ if nr == RAM => Some(MappingKind::Ram(ram.clone())),
            Some(lost) => Some(MappingKind::File(lost.clone())),
            None => None,
        };
        let new = |nr| Self {
            nr,
            mapping: kind(nr).map(|kind| mm.create_mapping(kind, 0)),
            ram: (nr == RAM).then(|| ram.clone()),
            gone: RefCell::default(),
            has_lost: Cell::new(false),
            model: RefCell::new(match lost {
                Some(_) => Model::default(),
                None => Model::of_late_cuts(),
            }),
            is_busy: Cell::new(false),
            stamp: Cell::new((nr as u64 + 1) << 56),
            cuts: RefCell::default(),
            cut_soon: Cell::new(u64::MAX),
        };
        (0..=RAM).map(new).collect()
    }

    /// It is neither shared memory nor in memory alone.
    pub(super) fn is_on_disk(&self) -> bool {
        self.nr < NAMES.len()
    }

    fn most_pages(&self) -> u64 {
        match self.nr {
            RAM => MOST_RAM_PAGES,
            _ => MOST_PAGES,
        }
    }

    /// A page of it was lost that is nowhere else.
    pub(super) fn lose(&self, page: u32) {
        assert!(!self.is_on_disk(), "page {page} of file {} is on a disk", self.nr);
        self.gone.borrow_mut().insert(page);
        self.has_lost.set(true);
    }

    /// Whether a page of it may be missing for good.
    pub(super) fn has_lost(&self) -> bool {
        self.has_lost.get()
    }

    /// Somebody has just read or written a page, as far as it is part of the file.
    pub(super) fn check_is_there(&self, page: u32) {
        let is_gone = self.gone.borrow().contains(&page);
        assert!(!is_gone, "page {page} of file {} was lost", self.nr);
    }

    /// A value that was never stored anywhere.
    pub(super) fn next_stamp(&self) -> u64 {
        self.stamp.set(self.stamp.get() + 1);
        self.stamp.get()
    }

    pub(super) async fn lock(&self) {
        while self.is_busy.replace(true) {
            pause().await;
        }
    }

    pub(super) fn unlock(&self) {
        self.is_busy.set(false);
    }

    /// What is beyond so many bytes may be cut off by a write that makes the file longer and then fails.
    pub(super) fn may_be_cut(&self, size: u64) {
        self.cut_soon.set(size.div_ceil(PAGE_SIZE));
    }

    /// That has happened.
    pub(super) fn was_cut_to(&self, size: u64) {
        let first = u32::try_from(size.div_ceil(PAGE_SIZE)).unwrap();
        self.cuts.borrow_mut().push(first);
        self.gone.borrow_mut().retain(|page| *page < first);
    }

    /// How often it was cut off.
    pub(super) fn nr_cuts(&self) -> usize {
        self.cuts.borrow().len()
    }

    /// Whether a page was cut off it, or perhaps just is, since it had been so often.
    pub(super) fn was_cut(&self, page: u32, before: usize) -> bool {
        let cuts = self.cuts.borrow();
        u64::from(page) >= self.cut_soon.get() || cuts[before..].iter().any(|first| *first <= page)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.is_busy.get()
    }
}

impl Sim<'_> {
    pub(super) fn some_file(&self) -> usize {
        usize::try_from(self.below(self.files.len() as u64)).unwrap()
    }

    /// One operation on a file, as a system call.
    pub(super) async fn use_file(&self, process: &Process) {
        let file = &self.files[self.some_file()];
        let open = self.open(file).await;
        let what = (file, &open);
        match self.below(14) {
            0 => self.truncate(process, what).await,
            1 => {
                self.sync(process, what).await;
            }
            2..8 => self.write(process, what).await,
            _ => self.read(process, what).await,
        }
        self.close(open).await;
    }

    async fn read(&self, process: &Process, (file, open): (&SimFile, &Open)) {
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
            file.check_is_there(page);
            for (place, bytes) in Model::words_of(page).zip(piece.chunks_exact(8)) {
                let value = u64::from_ne_bytes(bytes.try_into().unwrap());
                file.model.borrow_mut().found(place, value);
                count(&self.seen.file_words, 1);
            }
            Ok(())
        };
        let read = self.read_open(open, &mut ahead, range, to);
        match process.interruptible(self.failing(read)).await {
            Ok(Ok(_)) | Err(Doomed) => {}
            Ok(Err(FileError::Io)) => self.io_error(self.has_failed(file)),
            Ok(Err(FileError::OutOfMemory)) => {
                let _ = self.until_a_page(process).await;
            }
            Ok(Err(error)) => panic!("{error}"),
        }
    }

    /// A page of one of those files without a disk was lost: whoever reads it is told, now and later.
    pub(super) async fn read_what_is_gone(&self, place: FilePlace) {
        let mut files = self.files.iter().filter(|file| !file.is_on_disk());
        let Some(file) = files.find(|file| file.mapping == Some(place.mapping)) else {
            return;
        };
        let open = self.open(file).await;
        let mut ahead = ReadAhead::default();
        let range = (u64::from(place.index) * PAGE_SIZE, 8);
        let to = |_: usize, _: &[u8]| {
            file.check_is_there(place.index);
            Ok(())
        };
        match self.read_open(&open, &mut ahead, range, to).await {
            Err(FileError::Io) => count(&self.seen.reads_of_gone, 1),
            // It was just being cut off.
            Ok(0) => assert!(self.mm.mapping_size(open.id).unwrap() <= range.0),
            read => panic!("page {place:?} was lost, and reading it is {read:?}"),
        }
        self.close(open).await;
    }

    async fn write(&self, process: &Process, (file, open): (&SimFile, &Open)) {
        file.lock().await;
        let most = file.most_pages();
        let (page, word, nr) = match self.below(3) {
            0 => (self.below(most), self.below(WORDS), 1),
            _ => (self.below(most - 20), 0, 1 + self.below(20)),
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
            let write = self.write_open(open, place, from);
            match process.interruptible(self.failing(write)).await {
                Ok(Ok(written)) => done += written,
                Ok(Err(FileError::OutOfMemory)) => {
                    let _ = self.until_a_page(process).await;
                }
                Ok(Err(FileError::Io)) => self.io_error(self.has_failed(file)),
                Ok(Err(error)) => panic!("{error}"),
                Err(Doomed) => break,
            }
            tries += 1;
            pause().await;
        }
        let size = self.mm.mapping_size(open.id).unwrap();
        if process.is_doomed() {
            file.model.borrow_mut().abandon_write(&places, size);
        } else {
            let end = if done == 0 { 0 } else { begin + done as u64 };
            file.model.borrow_mut().end_write(&places, end);
            assert_eq!(size, file.model.borrow().size);
        }
        file.unlock();
    }

    async fn truncate(&self, process: &Process, (file, open): (&SimFile, &Open)) {
        file.lock().await;
        let most = file.most_pages();
        let size = match self.below(3) {
            0 if self.one_in(3) => 0,
            0 | 1 => self.below(most) * PAGE_SIZE,
            _ => self.below(most) * PAGE_SIZE + 8 * self.below(WORDS),
        };
        self.truncate_to(process, (file, open), size).await;
        file.unlock();
    }

    /// Brings it to an end, whatever happens meanwhile: but if the last page was lost, or the program is to end and there is no memory for that
    /// page, the file ends before it.
    async fn truncate_to(&self, process: &Process, (file, open): (&SimFile, &Open), mut size: u64) {
        loop {
            file.was_cut_to(size);
            file.model.borrow_mut().begin_truncate(size);
            match self.failing(self.truncate_open(open, size)).await {
                Ok(()) => break,
                Err(FileError::OutOfMemory) => {
                    if self.until_a_page(process).await.is_err() {
                        size = self.whole_pages(open, size);
                    }
                }
                Err(FileError::Io) => {
                    self.io_error(self.has_failed(file));
                    self.mend();
                    if file.has_lost() {
                        size = self.whole_pages(open, size);
                    }
                }
                Err(error) => panic!("{error}"),
            }
            pause().await;
        }
        file.was_cut_to(size);
        file.model.borrow_mut().end_truncate(size);
        count(&self.seen.truncates, 1);
    }

    /// A size that cuts no page in two that the file has now.
    fn whole_pages(&self, open: &Open, size: u64) -> u64 {
        let now = self.mm.mapping_size(open.id).unwrap();
        size.min(now) / PAGE_SIZE * PAGE_SIZE
    }

    /// `fsync`: whether everything that was there when it began is on the disk for sure.
    async fn sync(&self, process: &Process, (file, open): (&SimFile, &Open)) -> bool {
        if !file.is_on_disk() || !file.model.borrow_mut().begin_sync() {
            return false;
        }
        let synced = self.sync_open(process, open).await;
        match synced {
            Ok(Ok(())) => count(&self.seen.syncs, 1),
            Ok(Err(FileError::Io)) => self.io_error(self.has_failed(file)),
            Ok(Err(error)) => panic!("{error}"),
            Err(Doomed) => {}
        }
        let has_succeeded = matches!(synced, Ok(Ok(())));
        file.model.borrow_mut().end_sync(has_succeeded);
        has_succeeded
    }

    /// Tells the models of pages that could not be written.
    pub(super) fn note_lost(&self) {
        if let Fs::Page(fs) = &self.fs {
            fs.note_lost(self);
        }
        for (id, page) in core::mem::take(&mut *self.lost.0.lock()) {
            let file = self.files.iter().find(|file| file.mapping == Some(id));
            file.expect("all files are models'").model.borrow_mut().lost(page);
            count(&self.seen.lost_pages, 1);
        }
    }

    /// Everything is written, compared, and given back.
    pub(super) async fn end_files(&self, process: &Process) {
        let mut all = Vec::new();
        for file in &self.files {
            let open = self.open(file).await;
            while file.is_on_disk() && !self.sync(process, (file, &open)).await {
                self.mend();
                pause().await;
            }
            all.push((file, open));
        }
        self.compare_disk();
        if let Fs::Page(fs) = &self.fs {
            self.remove_names(fs).await;
        }
        for (file, open) in all {
            self.mm.until_unmapped(open.id).await;
            self.truncate_to(process, (file, &open), 0).await;
            self.close(open).await;
            self.remove(file).await;
        }
    }
}
