//! Reads and writes between programs' own pages and files, past the page cache (`O_DIRECT`): the pages are pinned meanwhile, and neither reclaim, nor who
//! empties a block, nor who gathers free memory may take them from under the disk.

use std::vec::Vec;

use super::backing::{Fs, Open};
use super::files::{MOST_PAGES, SimFile};
use super::memory::Doomed;
use super::model::{Model, Place, offset_of};
use super::pagefs::PageFs;
use super::program::{Program, WORDS, touch};
use super::{Sim, count};
use crate::mm::mapping::FileError;
use crate::mm::{CopyError, FaultError};
use crate::phys::Pin;
use crate::{Access, Frames, PAGE_SIZE};

/// Who has the pins.
pub(super) const HOLDER: &str = "direct I/O";
/// Most pages of a transfer.
const MOST: u64 = 8;

impl Program {
    /// One read or write of a file that was opened for this.
    pub(super) async fn direct(&mut self, sim: &Sim<'_>) {
        let Fs::Page(fs) = &sim.fs else { return };
        let file = &sim.files[sim.some_file()];
        let Some(first) = self.some_page(sim).filter(|_| file.is_on_disk()) else {
            return;
        };
        let most = 1 + sim.below(MOST);
        let is_mine = |page: &u64| {
            self.pages
                .get(page)
                .is_some_and(|prot| prot.permits(Access::Write))
        };
        let pages: Vec<u64> = (first..first + most).take_while(is_mine).collect();
        let index = u32::try_from(sim.below(MOST_PAGES - MOST)).unwrap();
        let open = sim.open(file).await;
        if sim.one_in(2) {
            self.read_direct(sim, fs, (file, &open), (index, &pages)).await;
        } else {
            self.write_direct(sim, fs, (file, &open), (index, &pages)).await;
        }
        sim.close(open).await;
    }

    /// Pins pages of the program: all, or none.
    async fn pin_all(&self, sim: &Sim<'_>, pages: &[u64]) -> Vec<Pin> {
        let (cpu, space) = (sim.cpu, self.process.space);
        let addresses: Vec<u64> = pages.iter().map(|page| page * PAGE_SIZE).collect();
        let pin = || match sim.with_failures(|| sim.mm.pin_user_pages(cpu, space, &addresses, HOLDER)) {
            Err(CopyError::Fault {
                error: FaultError::OutOfMemory(gfp),
                ..
            }) => Err(gfp),
            outcome => Ok(outcome),
        };
        loop {
            match sim.until_memory(&self.process, pin).await {
                Ok(Ok(pins)) => return pins,
                Ok(Err(CopyError::Locked { page, .. })) => {
                    let wait = sim.mm.until_unlocked(page);
                    if self.process.interruptible(wait).await.is_err() {
                        return Vec::new();
                    }
                }
                Ok(Err(CopyError::Fault { va, error })) => {
                    self.check_refusal(sim, va, error);
                    return Vec::new();
                }
                Ok(Err(error)) => panic!("{error}"),
                Err(Doomed) => return Vec::new(),
            }
        }
    }

    /// The disk is done with the pages, which are where they were.
    fn unpin_all(&self, sim: &Sim<'_>, pages: &[u64], pins: Vec<Pin>) {
        let root = sim.mm.space(self.process.space).unwrap().root();
        for (pin, page) in pins.into_iter().zip(pages) {
            let found = crate::pagetable::translate(&sim.mm.frames, root, page * PAGE_SIZE, Access::Write);
            assert_eq!(
                found.map(|found| found.gpa),
                Ok(pin.pfn().gpa()),
                "page {page:#x} was taken from under the disk"
            );
            sim.mm.phys.unpin(sim.cpu, pin);
        }
    }

    async fn read_direct(
        &mut self,
        sim: &Sim<'_>,
        fs: &PageFs<'_>,
        (file, open): (&SimFile, &Open),
        (index, pages): (u32, &[u64]),
    ) {
        let pins = self.pin_all(sim, pages).await;
        let frames: Vec<_> = pins.iter().map(Pin::pfn).collect();
        file.lock().await;
        let indices = index..index + u32::try_from(frames.len()).unwrap();
        file.model.borrow_mut().begin_look(indices.clone());
        let opened = open.file.as_ref().expect("a file of the real file system");
        // Not to be given up: the disk is at the frames.
        let read = sim.failing(fs.mounted.read_direct(opened, index, &frames)).await;
        let mut found: Vec<(Place, u64)> = Vec::new();
        for (at, (pfn, page)) in frames.iter().zip(pages).enumerate() {
            for word in 0..WORDS {
                let value = sim.mm.frames.read(*pfn, usize::try_from(word).unwrap());
                self.words.insert(page * PAGE_SIZE + word * 8, value);
                found.push(((index + u32::try_from(at).unwrap(), word), value));
            }
        }
        let end = u64::from(index) * PAGE_SIZE + read.unwrap_or(0);
        found.retain(|(place, _)| offset_of(*place) < end);
        file.model.borrow_mut().end_look(indices, &found);
        file.unlock();
        match read {
            Ok(_) => count(&sim.seen.direct_words, u32::try_from(found.len()).unwrap()),
            Err(FileError::Io) => sim.io_error(sim.has_failed(file)),
            Err(FileError::OutOfMemory) => {}
            Err(error) => panic!("{error}"),
        }
        self.unpin_all(sim, pages, pins);
    }

    async fn write_direct(
        &mut self,
        sim: &Sim<'_>,
        fs: &PageFs<'_>,
        (file, open): (&SimFile, &Open),
        (index, pages): (u32, &[u64]),
    ) {
        let mut places: Vec<(Place, u64)> = Vec::new();
        for (at, page) in (index..).zip(pages) {
            for place in Model::words_of(at) {
                let (va, value) = (page * PAGE_SIZE + place.1 * 8, file.next_stamp());
                let store = || sim.mm.cpu_store(self.process.space, va, value);
                match touch(sim, &self.process, va, Access::Write, store).await {
                    Ok(()) => self.words.insert(va, value),
                    Err(error) => return self.check_refusal(sim, va, error),
                };
                places.push((place, value));
            }
        }
        let pins = self.pin_all(sim, pages).await;
        let frames: Vec<_> = pins.iter().map(Pin::pfn).collect();
        places.truncate(frames.len() * usize::try_from(WORDS).unwrap());
        file.lock().await;
        let before = sim.mm.mapping_size(open.id).unwrap();
        let end = u64::from(index) * PAGE_SIZE + frames.len() as u64 * PAGE_SIZE;
        file.model.borrow_mut().begin_write(&places);
        file.may_be_cut(before);
        let opened = open.file.as_ref().expect("a file of the real file system");
        let written = match frames.is_empty() {
            true => Ok(()),
            false => sim.failing(fs.mounted.write_direct(opened, index, &frames)).await,
        };
        let size = sim.mm.mapping_size(open.id).unwrap();
        match written {
            Ok(()) => {
                count(&sim.seen.direct_words, u32::try_from(places.len()).unwrap());
                let end = if frames.is_empty() { 0 } else { end };
                file.model.borrow_mut().end_write(&places, end);
                assert_eq!(size, file.model.borrow().size);
            }
            Err(error) => {
                assert!(size >= before, "{size} bytes are left of {before}");
                let mut model = file.model.borrow_mut();
                model.abandon_write(&places, size);
                if size < end && before < end {
                    file.was_cut_to(size);
                    model.end_truncate(size);
                }
                match error {
                    FileError::Io => sim.io_error(sim.has_failed(file)),
                    FileError::OutOfMemory => {}
                    error => panic!("{error}"),
                }
            }
        }
        file.may_be_cut(u64::MAX);
        file.unlock();
        self.unpin_all(sim, pages, pins);
    }
}
