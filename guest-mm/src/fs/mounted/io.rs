//! Pages between memory and the disk: what the page cache asks of a file system.

use alloc::vec::Vec;

use super::super::pagefs::FsError;
use super::{File, Machine, Mounted};
use crate::disk::{BlockNr, IoError, Request};
use crate::frames::Frames;
use crate::mm::MappingId;
use crate::mm::mapping::{FileError, FileIo, FileSystem, IoDirection};
use crate::pfn::{Order, PAGE_SIZE, Pfn};

/// Where a page of a request is on the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere: it reads as zeroes.
    Hole,
    /// There will be its contents; what is there is somebody else's.
    Unwritten(u32),
    Block(u32),
}

impl<'m, X: Machine<'m>> Mounted<'m, X> {
    /// Carries out one request of the page cache after the other, for ever. Any number of tasks may do this.
    pub async fn serve(&self) {
        loop {
            let io = self.mm().until_file_io().await;
            self.serve_one(io).await;
        }
    }

    /// Carries out a request. If a part of it fails, its pages are tried one by one: a bad block is an error of its own page.
    pub async fn serve_one(&self, io: FileIo) {
        let result = self.carry_out(&io).await;
        if result.is_ok() || io.pages().len() == 1 {
            return self.mm().end_file_io(self.cpu(), io, result);
        }
        let mut rest = Some(io);
        while let Some(mut io) = rest {
            rest = io.split_off(1);
            let result = self.carry_out(&io).await;
            self.mm().end_file_io(self.cpu(), io, result);
        }
    }

    async fn carry_out(&self, io: &FileIo) -> Result<(), IoError> {
        match io.direction() {
            IoDirection::Read => self.readpage(io).await,
            IoDirection::Write => self.writepage(io).await,
        }
    }

    /// Where the pages of a request are, as the inode says.
    async fn places(&self, io: &FileIo) -> Result<Vec<Place>, IoError> {
        let file = self.file_of(io.mapping()).ok_or(IoError)?;
        self.places_of(&file, (io.index(), io.pages().len())).await
    }

    /// Where `nr` pages of a file from `index` on are.
    pub(super) async fn places_of(
        &self,
        file: &File,
        (index, nr): (u32, usize),
    ) -> Result<Vec<Place>, IoError> {
        let indices = (index..).take(nr);
        let mut volume = self.volume.lock().await;
        let inode = volume.inode(file.number()).await.map_err(|_| IoError)?;
        let place = |index: u32| match inode.block_of(index.into()) {
            None => Place::Hole,
            Some(block) if file.is_unwritten(index) => Place::Unwritten(block),
            Some(block) => Place::Block(block),
        };
        Ok(indices.map(place).collect())
    }

    /// Does something with runs of neighbouring blocks of pages, one after the other.
    pub(super) async fn transfer(
        &self,
        direction: IoDirection,
        pages: &[Pfn],
        places: &[Place],
    ) -> Result<(), IoError> {
        let mut nth = 0;
        while let Some(place) = places.get(nth) {
            let Place::Block(first) = *place else {
                nth += 1;
                continue;
            };
            let follows = (first..).map(Place::Block).zip(&places[nth..]);
            let len = follows.take_while(|(expected, place)| expected == *place).count();
            let pages = pages[nth..nth + len].to_vec();
            let request = match direction {
                IoDirection::Read => Request::Read(BlockNr(first.into()), pages),
                IoDirection::Write => Request::Write(BlockNr(first.into()), pages),
            };
            self.machine.request(request, None).await?;
            nth += len;
        }
        Ok(())
    }
}

impl<'m, X: Machine<'m>> FileSystem for Mounted<'m, X> {
    async fn readpage(&self, io: &FileIo) -> Result<(), IoError> {
        let places = self.places(io).await?;
        for (nth, place) in places.iter().enumerate() {
            if !matches!(place, Place::Block(_)) {
                self.mm().frames.zero(io.pages()[nth], Order::ZERO);
            }
            if let Place::Unwritten(block) | Place::Block(block) = place {
                self.mm().set_io_private(io, nth, *block);
            }
        }
        self.transfer(io.direction(), io.pages(), &places).await
    }

    async fn writepage(&self, io: &FileIo) -> Result<(), IoError> {
        let blocks = (0..io.pages().len()).map(|nth| self.mm().io_private(io, nth).map(Place::Block));
        let places: Vec<Place> = blocks.collect::<Option<_>>().ok_or(IoError)?;
        self.transfer(io.direction(), io.pages(), &places).await?;
        if let Some(file) = self.file_of(io.mapping()) {
            let indices = (io.index()..).take(places.len());
            indices.for_each(|index| file.written(index));
        }
        Ok(())
    }

    /// Nothing is done for a page that is no part of the file: whoever wants it sees that when he looks again.
    async fn prepare_write(&self, mapping: MappingId, index: u32) -> Result<(), FileError> {
        let file = self.file_of(mapping).ok_or(FileError::Unknown(mapping))?;
        let start = u64::from(index) * PAGE_SIZE;
        loop {
            let mut volume = self.volume.lock().await;
            // Under the gate: whoever makes the file shorter takes its blocks away under it, after the size has changed.
            if start >= self.end_of(&file) {
                return Ok(());
            }
            let allocated = volume.allocate(file.number(), index.into()).await;
            let (block, is_new) = allocated.map_err(file_error)?;
            if is_new {
                file.add_unwritten(index);
            }
            // Under the gate too: without it the block may be another file's by now. A page that is gone finds its block when it comes
            // back.
            let busy = self
                .mm()
                .set_private(self.here().this_cpu(), mapping, index, block)?;
            drop(volume);
            match busy {
                None => return Ok(()),
                // Whoever reads the page may need the gate.
                Some(wait) => self.mm().until_unlocked(wait).await,
            }
        }
    }
}

/// What an error of metadata is to one who reads or writes data.
pub(super) const fn file_error(error: FsError) -> FileError {
    match error {
        FsError::NoSpace => FileError::NoSpace,
        FsError::NoMemory => FileError::OutOfMemory,
        _ => FileError::Io,
    }
}
