//! The two file systems of simulated machines, as the same calls: one that remembers in a map where its pages are, and the real one.

use core::cell::Cell;
use std::boxed::Box;
use std::rc::Rc;
use std::sync::Arc;
use std::vec::Vec;

use super::disk;
use super::executor::pause;
use super::files::{NAMES, SimFile};
use super::memory::{Doomed, Process};
use super::pagefs::PageFs;
use super::{Sim, count};
use crate::disk::{BlockNr, Fault};
use crate::fs::RamPages;
use crate::fs::mounted::{File, Missing, WriteAt};
use crate::fs::pagefs::FsError;
use crate::mm::mapping::{FileError, FileSystem, ReadAhead};
use crate::mm::{FilePlace, MappingId};
use crate::pfn::{PAGE_BYTES, PAGE_SIZE};
use crate::tests::test_fs::TestFs;

/// See the module.
pub(super) enum Fs<'m> {
    Map(Box<TestFs<'m, 'm>>),
    Page(Box<PageFs<'m>>),
}

/// A file that is open.
pub(super) struct Open {
    pub(super) id: MappingId,
    pub(super) file: Option<Arc<File>>,
    ram: Option<Arc<RamPages>>,
}

type Copied = Result<(), FileError>;

impl Sim<'_> {
    /// Opens a file; the disk works in the end.
    pub(super) async fn open(&self, file: &SimFile) -> Open {
        match (&self.fs, file.mapping) {
            (_, Some(id)) => Open {
                id,
                file: None,
                ram: file.ram.clone(),
            },
            (Fs::Map(_), None) => unreachable!("its files have mappings of their own"),
            (Fs::Page(fs), None) => loop {
                let opened = fs.mounted.open(NAMES[file.nr], Missing::Fail);
                match self.failing(opened).await {
                    Ok(file) => {
                        return Open {
                            id: file.mapping(),
                            file: Some(file),
                            ram: None,
                        };
                    }
                    Err(FsError::Io) => {
                        self.io_error(self.has_failed(file));
                        self.mend();
                    }
                    Err(error) => panic!("{error}"),
                }
                pause().await;
            },
        }
    }

    /// Whether a disk has failed that the file needs: for one of its own pages, where that can be told from metadata.
    pub(super) fn has_failed(&self, file: &SimFile) -> bool {
        match (&self.fs, file.mapping) {
            _ if file.has_lost() => true,
            _ if !file.is_on_disk() => file.ram.is_none() && self.swap_failed.get(),
            (Fs::Map(fs), Some(id)) => fs.failed.borrow().contains(&id),
            (Fs::Map(_), None) => false,
            (Fs::Page(fs), _) => fs.has_failed.get(),
        }
    }

    /// Somebody was told of an error, for which there must be a cause.
    pub(super) fn io_error(&self, has_cause: bool) {
        assert!(has_cause, "an error of a disk that has not failed");
        count(&self.seen.io_errors, 1);
    }

    pub(super) async fn close(&self, open: Open) {
        if let (Fs::Page(fs), Some(file)) = (&self.fs, open.file) {
            fs.mounted.close(&file).await;
        }
    }

    pub(super) async fn read_open(
        &self,
        open: &Open,
        ahead: &mut ReadAhead,
        range: (u64, usize),
        to: impl FnMut(usize, &[u8]) -> Copied,
    ) -> Result<usize, FileError> {
        if let Some(ram) = &open.ram {
            return ram.read((self.mm, self.cpu), open.id, range, to).await;
        }
        match (&self.fs, &open.file) {
            (Fs::Page(fs), Some(file)) => fs.mounted.read(file, ahead, range, to).await,
            _ => self.mm.read_file(self.cpu, open.id, ahead, range, to).await,
        }
    }

    pub(super) async fn write_open(
        &self,
        open: &Open,
        (at, len): (u64, usize),
        from: impl FnMut(usize, &mut [u8]) -> Copied,
    ) -> Result<usize, FileError> {
        if let Some(ram) = &open.ram {
            let range = (at, len);
            return ram.write((self.mm, self.cpu), open.id, range, from).await;
        }
        match (&self.fs, &open.file) {
            (Fs::Page(fs), Some(file)) => {
                let written = fs.mounted.write(file, (WriteAt::Offset(at), len), from);
                written.await.map(|(_, written)| written)
            }
            (Fs::Page(fs), None) => {
                let written = self
                    .mm
                    .write_file(self.cpu, open.id, &fs.mounted, (at, len), from);
                written.await
            }
            (Fs::Map(fs), _) => {
                self.mm
                    .write_file(self.cpu, open.id, &**fs, (at, len), from)
                    .await
            }
        }
    }

    pub(super) async fn truncate_open(&self, open: &Open, size: u64) -> Result<(), FileError> {
        if let (Fs::Page(fs), Some(file)) = (&self.fs, &open.file) {
            return fs.mounted.set_size(file, size).await;
        }
        self.mm.truncate(self.cpu, open.id, size).await?;
        if let Fs::Map(fs) = &self.fs {
            let first = u32::try_from(size.div_ceil(PAGE_SIZE)).unwrap();
            fs.forget(open.id, first);
        }
        Ok(())
    }

    /// Has all of a file on the disk; given up halfway when the program is to end.
    pub(super) async fn sync_open(
        &self,
        process: &Process,
        open: &Open,
    ) -> Result<Result<(), FileError>, Doomed> {
        let data = self.failing(self.mm.sync(self.cpu, open.id));
        let written = process.interruptible(data).await?;
        match &self.fs {
            Fs::Map(fs) => {
                let is_done: Rc<Cell<bool>> = fs.flush();
                while !is_done.get() {
                    pause().await;
                }
                Ok(written)
            }
            Fs::Page(fs) => {
                let committed = self.failing(fs.mounted.commit_of(open.id)).await;
                Ok(committed.map_err(|_| FileError::Io).and(written))
            }
        }
    }

    pub(super) async fn prepare_write(&self, place: FilePlace) -> Result<(), FileError> {
        let FilePlace { mapping, index } = place;
        match &self.fs {
            Fs::Map(fs) => fs.prepare_write(mapping, index).await,
            Fs::Page(fs) => fs.mounted.prepare_write(mapping, index).await,
        }
    }

    /// The file system takes requests, its disk does one, and now and then a block breaks. False if there was nothing to do.
    pub(super) fn files_turn(&self) -> bool {
        let mut has_worked = false;
        if self.mm.is_too_dirty() || self.one_in(12) {
            let nr = u32::try_from(1 + self.below(64)).unwrap();
            has_worked |= self.mm.write_back(self.cpu, nr) > 0;
        }
        let fs = match &self.fs {
            Fs::Map(fs) => fs,
            Fs::Page(fs) => return has_worked | fs.turn(self),
        };
        has_worked |= fs.take_requests();
        if !self.is_ending.get() && self.one_in(10) {
            let block = BlockNr(1 + self.below(200));
            let fault = if self.one_in(2) { Fault::Read } else { Fault::Write };
            fs.disk.break_block(fault, block);
        }
        if self.is_ending.get() || self.one_in(60) {
            fs.disk.mend();
        }
        let choice = usize::try_from(self.below(64)).unwrap();
        has_worked |= fs.disk.step(&self.mm.frames, choice);
        has_worked |= fs.end_requests();
        self.note_lost();
        has_worked
    }

    /// No block works any more that may break.
    pub(super) fn break_disks(&self) {
        let swap_blocks = disk::BLOCKS.iter().copied().map(u64::from).sum();
        for fault in [Fault::Read, Fault::Write] {
            (0..swap_blocks).for_each(|block| self.disk.break_block(fault, BlockNr(block)));
            match &self.fs {
                Fs::Map(fs) => (1..=200).for_each(|block| fs.disk.break_block(fault, BlockNr(block))),
                Fs::Page(fs) => fs.break_all(fault),
            }
        }
    }

    pub(super) fn mend(&self) {
        self.disk.mend();
        match &self.fs {
            Fs::Map(fs) => fs.disk.mend(),
            Fs::Page(fs) => fs.mend(),
        }
    }

    /// The power goes and comes back: what was synced is on the disk, or something newer.
    pub(super) fn lose_power(&self) {
        match &self.fs {
            Fs::Map(fs) => fs.disk.lose_power(|| self.one_in(2)),
            Fs::Page(fs) => fs.lose_power(|| self.one_in(2)),
        }
        count(&self.seen.words_after_power, self.compare_disk());
    }

    /// Compares what is on the disk with what may be there; how many words.
    pub(super) fn compare_disk(&self) -> u32 {
        let contents: Vec<Vec<u8>> = match &self.fs {
            Fs::Map(_) => Vec::new(),
            Fs::Page(fs) => fs.on_disk(),
        };
        let word_at = |file: &SimFile, (page, word): (u32, u64)| {
            let within = usize::try_from(word * 8).unwrap();
            let bytes: Option<[u8; 8]> = match &self.fs {
                Fs::Map(fs) => fs.block(file.mapping?, page).map(|block| {
                    let block = fs.disk.contents(block);
                    block[within..within + 8].try_into().unwrap()
                }),
                Fs::Page(_) => {
                    let at = usize::try_from(page).unwrap() * PAGE_BYTES + within;
                    let bytes = contents[file.nr].get(at..at + 8);
                    bytes.map(|bytes| bytes.try_into().unwrap())
                }
            };
            bytes.map(u64::from_ne_bytes)
        };
        let mut nr = 0;
        for file in self.files.iter().filter(|file| file.is_on_disk()) {
            for (place, durable) in file.model.borrow().durable() {
                let on_disk = word_at(file, place).unwrap_or(0);
                assert!(
                    durable.contains(&on_disk),
                    "word {place:?} of file {} is {on_disk:#x} on the disk, and should be {durable:#x?}",
                    file.nr
                );
                nr += 1;
            }
        }
        nr
    }

    /// A file that nobody uses any more goes, with its name.
    pub(super) async fn remove(&self, file: &SimFile) {
        let Some(id) = file.mapping else {
            let Fs::Page(fs) = &self.fs else {
                unreachable!("its files have mappings of their own")
            };
            fs.mounted.remove(NAMES[file.nr]).await.unwrap();
            return fs.mounted.commit().await.unwrap();
        };
        self.mm.remove_mapping(id).unwrap();
    }
}
