//! A file system without a disk (Linux `mm/shmem.c`, `tmpfs`): one directory of files whose pages are shared memory, and go to the swap area
//! when memory is short. Shared anonymous memory is a file of it that never had a name.
//!
//! The same with pages that have no place but memory ([`Tmpfs::in_ram`], Linux `ramfs`) is a file system of its own: no swap area takes them.
//!
//! A file exists as long as a name leads to it, somebody has it open, or an area maps it. Who gives up one of these does not wait for what
//! that frees: [`Tmpfs::reap`] does, in a task of its own.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use guest_sync::SpinLock;

use super::gate::Gate;
use super::mounted::{Missing, WriteAt};
use super::ram_pages::RamPages;
use crate::frames::{Frames, Mmu, SpaceId};
use crate::mempool::ThisCpu;
use crate::mm::mapping::{AddressSpaceOps, FileError, MappingKind, MemoryOnly, ReadAhead};
use crate::mm::{MappingId, Mm};

/// Most bytes of a name.
const MAX_NAME: usize = 59;

/// A file, which is what its mapping is.
#[derive(Debug)]
pub struct TmpFile {
    mapping: MappingId,
    /// Its pages, if no swap area takes them.
    ram: Option<Arc<RamPages>>,
    origin: Origin,
    /// Whoever writes, or changes the size, has this.
    writing: Gate<()>,
}

/// Where a file comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// It was made by name, and counts for the limit, whether it still has one or not.
    Name,
    /// Shared anonymous memory: goes with the programs that map it.
    Anonymous,
}

impl TmpFile {
    /// Its pages.
    pub const fn mapping(&self) -> MappingId {
        self.mapping
    }
}

/// Why a name is not found, made or removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NameError {
    /// There is none.
    NotFound,
    /// It is empty, too long, or has a slash in it: there is one directory only.
    Invalid,
}

/// See the module. `C` tells on which CPU a future is being polled.
pub struct Tmpfs<'a, 'm, F: Frames, M: Mmu, C> {
    mm: &'a Mm<'m, F, M>,
    here: C,
    pages: Pages,
    files: SpinLock<Files>,
}

/// Where pages can be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// In memory or in a swap area.
    Swappable,
    /// In memory.
    Ram,
}

/// All files. The heap is used under its lock, and mappings are looked at.
#[derive(Default)]
struct Files {
    names: BTreeMap<Box<[u8]>, Arc<TmpFile>>,
    nameless: Vec<Arc<TmpFile>>,
}

impl Files {
    fn all(&self) -> impl Iterator<Item = &Arc<TmpFile>> {
        self.names.values().chain(&self.nameless)
    }
}

impl<F: Frames, M: Mmu, C> fmt::Debug for Tmpfs<'_, '_, F, M, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tmpfs").finish_non_exhaustive()
    }
}

impl<'a, 'm, F: Frames, M: Mmu, C: ThisCpu + Copy> Tmpfs<'a, 'm, F, M, C> {
    /// One without files.
    pub fn new(mm: &'a Mm<'m, F, M>, here: C) -> Self {
        Self::of(Pages::Swappable, mm, here)
    }

    /// One without files, and whose pages never leave memory.
    pub fn in_ram(mm: &'a Mm<'m, F, M>, here: C) -> Self {
        Self::of(Pages::Ram, mm, here)
    }

    fn of(pages: Pages, mm: &'a Mm<'m, F, M>, here: C) -> Self {
        Self {
            mm,
            here,
            pages,
            files: SpinLock::default(),
        }
    }

    fn create(&self, origin: Origin, size: u64) -> Arc<TmpFile> {
        let ram = (self.pages == Pages::Ram).then(|| Arc::new(RamPages::default()));
        let kind = match &ram {
            Some(pages) => MappingKind::Ram(pages.clone()),
            None => MappingKind::Shmem,
        };
        Arc::new(TmpFile {
            mapping: self.mm.create_mapping(kind, size),
            ram,
            origin,
            writing: Gate::new(()),
        })
    }

    /// The file of a name.
    ///
    /// # Errors
    /// It is no name, or that of no file and none is to be made.
    pub fn open(&self, name: &[u8], missing: Missing) -> Result<Arc<TmpFile>, NameError> {
        if name.is_empty() || name.len() > MAX_NAME || name.contains(&b'/') {
            return Err(NameError::Invalid);
        }
        if let Some(file) = self.files.lock().names.get(name) {
            return Ok(file.clone());
        }
        if missing == Missing::Fail {
            return Err(NameError::NotFound);
        }
        let made = self.create(Origin::Name, 0);
        let mut files = self.files.lock();
        // Somebody else may have been first; then that is the file, and this one is reaped.
        match files.names.get(name).cloned() {
            Some(file) => {
                files.nameless.push(made);
                Ok(file)
            }
            None => {
                files.names.insert(name.into(), made.clone());
                Ok(made)
            }
        }
    }

    /// A file of so many bytes that never has a name: shared anonymous memory, once it is mapped.
    pub fn anonymous(&self, size: u64) -> Arc<TmpFile> {
        let file = self.create(Origin::Anonymous, size);
        self.files.lock().nameless.push(file.clone());
        file
    }

    /// A file of so many bytes that never has a name, and whose pages never leave memory: `ops` say what else holds for them. It is freed when
    /// nobody has it any more.
    pub fn kept(&self, ops: Arc<dyn AddressSpaceOps>, size: u64) -> Arc<TmpFile> {
        let file = Arc::new(TmpFile {
            mapping: self.mm.create_mapping(MappingKind::Ram(ops), size),
            ram: None,
            origin: Origin::Anonymous,
            writing: Gate::new(()),
        });
        self.files.lock().nameless.push(file.clone());
        file
    }

    /// Takes a name away.
    ///
    /// # Errors
    /// There is no such name.
    pub fn remove(&self, name: &[u8]) -> Result<(), NameError> {
        let mut files = self.files.lock();
        let file = files.names.remove(name).ok_or(NameError::NotFound)?;
        files.nameless.push(file);
        Ok(())
    }

    /// The names, in order.
    pub fn list(&self) -> Vec<Box<[u8]>> {
        self.files.lock().names.keys().cloned().collect()
    }

    /// Whether a mapping is that of a file here.
    pub fn has(&self, mapping: MappingId) -> bool {
        self.files.lock().all().any(|file| file.mapping == mapping)
    }

    /// Files that exist: with a name, and without.
    pub fn nr_files(&self) -> (usize, usize) {
        let files = self.files.lock();
        (files.names.len(), files.nameless.len())
    }

    /// Bytes of a file.
    pub fn size(&self, file: &TmpFile) -> u64 {
        self.mm.mapping_size(file.mapping).unwrap_or(0)
    }

    /// Whether a file may have `size` bytes, when all that were made by name may have `limit` between them (Linux counts pages, so
    /// that holes are free there).
    fn permit(&self, file: &TmpFile, size: u64, limit: u64) -> Result<(), FileError> {
        if size <= self.size(file) {
            return Ok(());
        }
        let files = self.files.lock();
        let others = files
            .all()
            .filter(|other| other.origin == Origin::Name && other.mapping != file.mapping);
        let total: u64 = others.map(|other| self.size(other)).sum();
        match total.checked_add(size) {
            Some(total) if total <= limit => Ok(()),
            _ => Err(FileError::NoSpace),
        }
    }

    /// Reads `(offset, bytes)` of a file into a program's memory; how many bytes it read.
    ///
    /// # Errors
    /// What stopped it before the first byte.
    pub async fn read_to_user(
        &self,
        file: &TmpFile,
        range: (u64, usize),
        to: (SpaceId, u64),
    ) -> Result<usize, FileError> {
        if let Some(pages) = &file.ram {
            let here = self.here;
            let to = |done: usize, bytes: &[u8]| {
                let va = to.1.wrapping_add(done as u64);
                let written = self.mm.write_user(here.this_cpu(), to.0, va, bytes);
                written.map_err(FileError::from)
            };
            return pages.read((self.mm, here), file.mapping, range, to).await;
        }
        let mut ahead = ReadAhead::default();
        self.mm
            .read_file_to_user(self.here, file.mapping, &mut ahead, range, to)
            .await
    }

    /// Writes to a file what a program has in its memory, where all files may have `limit` bytes. Returns where it ends now, and how many bytes
    /// were written.
    ///
    /// # Errors
    /// What stopped it before the first byte; [`FileError::NoSpace`] if it would pass the limit.
    pub async fn write_from_user(
        &self,
        file: &TmpFile,
        (at, len): (WriteAt, usize),
        from: (SpaceId, u64),
        limit: u64,
    ) -> Result<(u64, usize), FileError> {
        let _writing = file.writing.lock().await;
        let offset = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => self.size(file),
        };
        self.permit(file, offset.saturating_add(len as u64), limit)?;
        let written = match &file.ram {
            Some(pages) => {
                let here = self.here;
                let from = |done: usize, bytes: &mut [u8]| {
                    let va = from.1.wrapping_add(done as u64);
                    let read = self.mm.read_user(here.this_cpu(), from.0, va, bytes);
                    read.map_err(FileError::from)
                };
                pages
                    .write((self.mm, here), file.mapping, (offset, len), from)
                    .await
            }
            None => {
                self.mm
                    .write_file_from_user(self.here, file.mapping, &MemoryOnly, (offset, len), from)
                    .await
            }
        };
        written.map(|written| (offset + written as u64, written))
    }

    /// Makes a file so many bytes long, where all may have `limit`: what is beyond is lost, what is added is zero.
    ///
    /// # Errors
    /// There is no memory for its last page, or it would pass the limit.
    pub async fn set_size(&self, file: &TmpFile, size: u64, limit: u64) -> Result<(), FileError> {
        let _writing = file.writing.lock().await;
        self.permit(file, size, limit)?;
        self.mm.truncate(self.here, file.mapping, size).await
    }

    /// Frees the files that nobody can reach any more; how many those were. To be called by one task, when somebody has closed, unmapped
    /// or removed something.
    pub async fn reap(&self) -> usize {
        let mut reaped = 0;
        while let Some(file) = self.next_unused() {
            // A size of 0 needs no memory.
            let emptied = self.mm.truncate(self.here, file.mapping, 0).await;
            let removed = emptied.and_then(|()| self.mm.remove_mapping(file.mapping));
            debug_assert_eq!(removed, Ok(()), "nobody can reach it");
            reaped += 1;
        }
        reaped
    }

    /// A file that has no name, that nobody has open and no area maps, so that nobody ever will.
    fn next_unused(&self) -> Option<Arc<TmpFile>> {
        let mut files = self.files.lock();
        let is_unused =
            |file: &Arc<TmpFile>| Arc::strong_count(file) == 1 && !self.mm.is_mapped(file.mapping);
        let place = files.nameless.iter().position(is_unused)?;
        Some(files.nameless.swap_remove(place))
    }
}
