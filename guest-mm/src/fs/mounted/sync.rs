//! Data and metadata on their way to the disk: when a program asks, by age, and before the machine is switched off.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::super::pagefs::FsError;
use super::io::file_error;
use super::{File, Machine, Mounted};
use crate::mm::MappingId;
use crate::mm::mapping::{ErrorCursor, FileError, index_of};
use crate::pfn::PAGE_SIZE;

/// How long changes may stay in memory alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Age {
    /// What time it is, in any unit.
    pub now: u64,
    /// How old dirty pages may get (Linux `dirty_expire_interval`).
    pub expire: u64,
    /// Most pages to begin with.
    pub nr_pages: u32,
}

/// Whose data was written just before a commit.
#[derive(Clone, Copy)]
enum Whose {
    Nobodys,
    One(MappingId),
    All,
}

impl Whose {
    fn is(self, mapping: MappingId) -> bool {
        match self {
            Self::Nobodys => false,
            Self::One(one) => one == mapping,
            Self::All => true,
        }
    }
}

/// What a round of write-back came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Round {
    /// Pages that are on their way.
    pub pages: u32,
    /// Whether there was metadata to be committed, and it is.
    pub committed: bool,
}

impl<'m, X: Machine<'m>> Mounted<'m, X> {
    /// Has all of a file on the disk: its data, and what leads to them. Tells, once, of data that could not be written since this was
    /// last asked.
    ///
    /// # Errors
    /// [`FileError::Io`] when the disk failed; what could not be written is tried once more.
    pub async fn fsync(&self, file: &File) -> Result<(), FileError> {
        let written = self.mm().sync(self.here(), file.mapping()).await;
        self.commit_of(file.mapping()).await.map_err(file_error)?;
        written
    }

    /// The first part of an `fsync` by one who has the file open: the data. It can be given up at any time; the second part
    /// is [`Self::commit_of`].
    ///
    /// # Errors
    /// [`FileError::Io`] when pages could not be written since he was last told; or there is no such file.
    pub async fn write_data(&self, mapping: MappingId, errors: &ErrorCursor) -> Result<(), FileError> {
        self.mm().write_and_wait(self.here(), mapping).await?;
        self.mm().tell_errors(mapping, errors)
    }

    /// For one who opens a file, to be told of errors.
    pub fn error_cursor(&self, file: &File) -> ErrorCursor {
        self.mm().error_cursor(file.mapping())
    }

    /// Makes the state of the metadata that of the disk. Sizes are those of now; data that is on the disk is part of its files.
    ///
    /// # Errors
    /// As [`super::super::pagefs::Volume::commit`].
    pub async fn commit(&self) -> Result<(), FsError> {
        self.commit_for(Whose::All).await
    }

    /// The second part of [`Self::fsync`]: the same for one who wants the file of a mapping on the disk. That another file's inode cannot
    /// be read is no error of his.
    ///
    /// # Errors
    /// As there.
    pub async fn commit_of(&self, mapping: MappingId) -> Result<(), FsError> {
        self.commit_for(Whose::One(mapping)).await
    }

    async fn commit_for(&self, whose: Whose) -> Result<(), FsError> {
        let mut outcome = Ok(());
        let mut volume = self.volume.lock().await;
        let mut files: Vec<Arc<File>> = Vec::new();
        self.inodes.for_each(|_, file| files.push(file.clone()));
        for file in files {
            // One that was deleted meanwhile has no size.
            let Some(size) = self.mm().mapping_size(file.mapping()) else {
                continue;
            };
            // Behind the end, the file's last block has what was cut off there, or lost with the power, until its page is written: the file does
            // not grow before, but for one whose data was just written.
            let end = volume.known_size(file.number()).unwrap_or(0);
            let is_old = index_of(end).is_some_and(|last| self.mm().is_page_dirty(file.mapping(), last));
            if !whose.is(file.mapping()) && !end.is_multiple_of(PAGE_SIZE) && is_old {
                continue;
            }
            match volume.grow(file.number(), size).await {
                Ok(()) | Err(FsError::NoInode(_)) => {}
                Err(FsError::ReadOnly) => return Err(FsError::ReadOnly),
                // Its inode cannot be read: that is nobody's error but of those who want this file.
                Err(error) if whose.is(file.mapping()) => outcome = Err(error),
                Err(_) => {}
            }
        }
        let hidden = |number| self.inodes.peek(number).map(|file| file.unwritten());
        volume
            .commit_hiding(|number| hidden(number).unwrap_or_default())
            .await?;
        outcome
    }

    /// Writes everything, and waits for it: before the machine is switched off.
    ///
    /// # Errors
    /// The first thing that could not be written; everything else is.
    pub async fn sync(&self) -> Result<(), FileError> {
        let written = self.write_all_data().await;
        let committed = self.commit().await.map_err(file_error);
        written.and(committed)
    }

    /// The data of all files.
    ///
    /// # Errors
    /// [`FileError::Io`] when a page could not be written just now; everything else is. Those who have its file open are told of it all the same.
    pub async fn write_all_data(&self) -> Result<(), FileError> {
        let mut files: Vec<Arc<File>> = Vec::new();
        self.inodes.for_each(|_, file| files.push(file.clone()));
        let mut outcome = Ok(());
        for file in files {
            outcome = outcome.and(self.write_now(&file).await);
        }
        outcome
    }

    /// The data of a file, with the errors of just now, which nobody was told of by that.
    ///
    /// # Errors
    /// [`FileError::Io`] when a page could not be written.
    pub(super) async fn write_now(&self, file: &File) -> Result<(), FileError> {
        let (mm, id) = (self.mm(), file.mapping());
        let before = mm.nr_write_errors(id);
        // One that was deleted meanwhile has nothing to be written.
        let _ = mm.write_and_wait(self.here(), id).await;
        if mm.nr_write_errors(id) > before {
            Err(FileError::Io)
        } else {
            Ok(())
        }
    }

    /// A round of the daemon that writes back what is old (Linux `kupdate`): begins to write dirty pages, deletes files that nobody
    /// uses any more, and commits what has changed. To be called every few seconds.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub async fn write_back_old(&self, age: Age) -> Result<Round, FsError> {
        let mm = self.mm();
        mm.set_time(age.now);
        // Nothing is older than the clock.
        let oldest = age.now.checked_sub(age.expire);
        let pages = oldest.map_or(0, |oldest| mm.write_back_old(self.cpu(), oldest, age.nr_pages));
        self.delete_orphans().await;
        let mut files: Vec<Arc<File>> = Vec::new();
        self.inodes.for_each(|_, file| files.push(file.clone()));
        let is_dirty = {
            let volume = self.volume.lock().await;
            let known = |file: &File| volume.known_size(file.number());
            let has_grown = |file: &Arc<File>| known(file).is_some_and(|known| known < self.size(file));
            volume.cached().1 > 0 || files.iter().any(has_grown)
        };
        if is_dirty {
            self.commit_for(Whose::Nobodys).await?;
        }
        Ok(Round {
            pages,
            committed: is_dirty,
        })
    }

    /// Writes back until no more pages are dirty than may be in the background (Linux `pdflush`), once that is so.
    pub async fn write_back_many(&self, nr_pages: u32) -> u32 {
        self.mm().until_write_back_wanted().await;
        self.mm().write_back(self.cpu(), nr_pages)
    }
}
