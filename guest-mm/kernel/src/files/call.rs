//! System calls for files (`guest_programs::files`).

use super::descriptors::{OpenFile, close};
use super::direct::{self, Direction};
use super::{RootFs, aio, find_block, shm, steps, until_memory};
use crate::fault;
use crate::kernel::Kernel;
use crate::machine::cpu::this_cpu;
use crate::machine::nucleus::Context;
use crate::process::{Doomed, Program};
use crate::syscall::copy_error;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;
use guest_kernel::physical::to_usize;
use guest_mm::fs::mounted::{Missing, WriteAt};
use guest_mm::fs::pagefs::{FsError, Kind};
use guest_mm::mm::mapping::FileError;
use guest_mm::mm::{CopyError, FaultError, FileArea, MappingId, Sharing};
use guest_mm::{Backing, Gfp, MapRequest, PAGE_SIZE, Place, Prot, SpaceId};
use guest_programs::abi::Error;
use guest_programs::aio::AioCall;
use guest_programs::files::{AT_POSITION, FileCall, MAX_PATH, Stat, map, open};

/// Who calls.
struct Caller<'a> {
    kernel: &'static Kernel,
    root: &'static RootFs,
    program: &'a Program,
    space: SpaceId,
}

/// Carries out a call for files.
///
/// # Errors
/// Why it was not.
pub(crate) async fn serve(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    context: &Context,
) -> Result<u64, Error> {
    if let Some(call) = AioCall::from_number(context.rax) {
        return steps(aio::serve(kernel, program, space, (call, context))).await;
    }
    let call = FileCall::from_number(context.rax).ok_or(Error::NoCall)?;
    // What is needed for a moment is not room that each program has all the time.
    if let Some(result) = steps(shm::serve(kernel, program, space, (call, context))).await {
        return result;
    }
    let root = kernel.files.root().ok_or(Error::NotFound)?;
    let caller = Caller {
        kernel,
        root,
        program,
        space,
    };
    let arguments = (context.rdi, context.rsi, context.rdx, context.r10);
    // Metadata is read and written a block at a time: too much for each program to have room for all the time.
    steps(caller.carry_out(call, arguments)).await
}

impl Caller<'_> {
    async fn carry_out(
        &self,
        call: FileCall,
        (first, second, third, fourth): (u64, u64, u64, u64),
    ) -> Result<u64, Error> {
        match call {
            FileCall::Open => self.open((first, second), third).await,
            FileCall::Close => {
                let open = self.program.files.remove(first)?;
                close(self.root, open).await;
                Ok(0)
            }
            FileCall::Read => {
                let open = self.program.files.find(first)?;
                self.read(&open, (second, third), fourth).await
            }
            FileCall::Write => self.write(first, (second, third), fourth).await,
            FileCall::Seek => self.seek(first, second),
            FileCall::Sync => {
                let open = self.program.files.find(first)?;
                let id = open.file.mapping();
                let data = self.root.write_data(id, &open.errors);
                self.sync(data, self.root.commit_of(id)).await
            }
            FileCall::Remove => {
                let path = self.path(first, second).await?;
                self.wait_for(self.root.remove(&path)).await.map_err(fs_error)?;
                Ok(0)
            }
            FileCall::MakeDirectory => {
                let path = self.path(first, second).await?;
                let made = self.wait_for(self.root.make_directory(&path)).await;
                made.map(|()| 0).map_err(fs_error)
            }
            FileCall::ReadDirectory => self.read_directory((first, second), third, fourth).await,
            FileCall::Stat => self.stat((first, second), third).await,
            FileCall::SetSize => self.set_size(first, second).await,
            FileCall::Map => self.map(first, (second, third), fourth),
            FileCall::SyncMapping => self.sync_mapping(first).await,
            FileCall::SyncAll => self.sync(self.root.write_all_data(), self.root.commit()).await,
        }
    }

    /// Waits for what can be given up at any time: nothing is half changed then. Whoever has to end, does not wait for a disk.
    async fn killable<T>(&self, what: impl Future<Output = T>) -> Result<T, Error> {
        let result = self.program.interruptible(steps(what)).await;
        result.map_err(|Doomed| Error::Interrupted)
    }

    /// Waits for what is to be brought to its end: a change of metadata. It waits for the disk alone, which always answers, and for
    /// others who do the same.
    async fn wait_for<T>(&self, what: impl Future<Output = T>) -> T {
        self.program.wait_for(steps(what)).await
    }

    async fn path(&self, address: u64, len: u64) -> Result<Vec<u8>, Error> {
        let len = usize::try_from(len).ok().filter(|len| *len <= MAX_PATH);
        let mut path = alloc::vec![0; len.ok_or(Error::Invalid)?];
        let copied = fault::copy(self.kernel, self.program, |mm| {
            mm.read_user(this_cpu(), self.space, address, &mut path)
        });
        copied.await.map_err(copy_error)?;
        Ok(path)
    }

    async fn copy_out(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let copied = fault::copy(self.kernel, self.program, |mm| {
            mm.write_user(this_cpu(), self.space, address, bytes)
        });
        copied.await.map_err(copy_error)
    }

    async fn open(&self, path: (u64, u64), flags: u64) -> Result<u64, Error> {
        if flags & !(open::CREATE | open::TRUNCATE | open::APPEND | open::DIRECT) != 0 {
            return Err(Error::Invalid);
        }
        let path = self.path(path.0, path.1).await?;
        let missing = match flags & open::CREATE {
            0 => Missing::Fail,
            _ => Missing::Create,
        };
        let file = self.wait_for(self.root.open(&path, missing)).await;
        let opened = OpenFile::new(
            self.root,
            file.map_err(fs_error)?,
            flags & open::APPEND != 0,
            flags & open::DIRECT != 0,
        );
        if flags & open::TRUNCATE != 0
            && let Err(error) = self.cut(&opened, 0).await
        {
            close(self.root, opened).await;
            return Err(error);
        }
        match self.program.files.add(opened) {
            Ok(descriptor) => Ok(descriptor),
            Err(opened) => {
                close(self.root, opened).await;
                Err(Error::TooManyFiles)
            }
        }
    }

    async fn read(&self, open: &OpenFile, (address, len): (u64, u64), offset: u64) -> Result<u64, Error> {
        let at_position = offset == AT_POSITION;
        let start = if at_position {
            open.position.load(Relaxed)
        } else {
            offset
        };
        if open.is_direct {
            return self
                .direct(open, (Direction::Read, start), (address, len), at_position)
                .await;
        }
        let (len, mut done, mut ahead) = (to_usize(len), 0, open.read_ahead());
        let outcome = loop {
            let range = (start.saturating_add(done as u64), len - done);
            let to = (self.space, address.wrapping_add(done as u64));
            let read = self.root.read_to_user(&open.file, &mut ahead, range, to);
            match self.killable(read).await? {
                Ok(0) => break Ok(()),
                Ok(read) => done += read,
                Err(error) => match self.mend(error).await {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
            if done == len {
                break Ok(());
            }
        };
        open.has_read(ahead, at_position.then_some(start.saturating_add(done as u64)));
        // What was read before an error counts.
        if done > 0 {
            Ok(done as u64)
        } else {
            outcome.map(|()| 0)
        }
    }

    async fn write(&self, descriptor: u64, (address, len): (u64, u64), offset: u64) -> Result<u64, Error> {
        let open = self.program.files.find(descriptor)?;
        let at_position = offset == AT_POSITION;
        let start = if at_position {
            open.position.load(Relaxed)
        } else {
            offset
        };
        if open.is_direct {
            let start = if open.appends {
                self.root.size(&open.file)
            } else {
                start
            };
            return self
                .direct(&open, (Direction::Write, start), (address, len), at_position)
                .await;
        }
        let (len, mut done, mut end) = (to_usize(len), 0, start);
        let outcome = loop {
            if done == len {
                break Ok(());
            }
            let at = match open.appends {
                true => WriteAt::End,
                false => WriteAt::Offset(start.saturating_add(done as u64)),
            };
            let from = (self.space, address.wrapping_add(done as u64));
            let write = self.root.write_from_user(&open.file, (at, len - done), from);
            match self.killable(write).await? {
                Ok((now, written)) => (end, done) = (now, done + written),
                Err(error) => match self.mend(error).await {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
        };
        if at_position && done > 0 {
            open.position.store(end, Relaxed);
        }
        if done > 0 {
            Ok(done as u64)
        } else {
            outcome.map(|()| 0)
        }
    }

    /// A read or write past the page cache.
    async fn direct(
        &self,
        open: &OpenFile,
        (direction, start): (Direction, u64),
        memory: (u64, u64),
        at_position: bool,
    ) -> Result<u64, Error> {
        let of = direct::Of {
            kernel: self.kernel,
            root: self.root,
            program: self.program,
            space: self.space,
        };
        let done = direct::transfer(of, &open.file, (direction, start), memory).await?;
        if at_position {
            open.position.store(start + done, Relaxed);
        }
        Ok(done)
    }

    async fn mend(&self, error: FileError) -> Result<(), Error> {
        mend(self.kernel, self.program, error).await
    }

    fn seek(&self, descriptor: u64, position: u64) -> Result<u64, Error> {
        let open = self.program.files.find(descriptor)?;
        let position = match position {
            AT_POSITION => self.root.size(&open.file),
            position => position,
        };
        open.position.store(position, Relaxed);
        Ok(position)
    }

    async fn set_size(&self, descriptor: u64, size: u64) -> Result<u64, Error> {
        let open = self.program.files.find(descriptor)?;
        self.cut(&open, size).await.map(|()| 0)
    }

    async fn cut(&self, open: &OpenFile, size: u64) -> Result<(), Error> {
        loop {
            match self.wait_for(self.root.set_size(&open.file, size)).await {
                Ok(()) => return Ok(()),
                Err(error) => self.mend(error).await?,
            }
        }
    }

    async fn read_directory(&self, path: (u64, u64), address: u64, nth: u64) -> Result<u64, Error> {
        let path = self.path(path.0, path.1).await?;
        let mut names = self.wait_for(self.root.list(&path)).await.map_err(fs_error)?;
        names.sort_unstable_by_key(|(name, _)| *name);
        let Some((name, _)) = names.get(to_usize(nth)) else {
            return Ok(0);
        };
        self.copy_out(address, name.as_bytes()).await?;
        Ok(name.as_bytes().len() as u64)
    }

    async fn stat(&self, path: (u64, u64), address: u64) -> Result<u64, Error> {
        let path = self.path(path.0, path.1).await?;
        let entry = self.wait_for(self.root.stat(&path)).await.map_err(fs_error)?;
        let stat = Stat {
            size: entry.size,
            is_directory: u64::from(entry.kind == Kind::Directory),
            nr_links: entry.nr_links.into(),
            inode: entry.number.number().into(),
        };
        let words = stat.to_words().map(u64::to_le_bytes);
        self.copy_out(address, words.as_flattened()).await.map(|()| 0)
    }

    fn map(&self, descriptor: u64, (offset, len): (u64, u64), flags: u64) -> Result<u64, Error> {
        let open = self.program.files.find(descriptor)?;
        map_file(self.kernel, self.space, open.file.mapping(), (offset, len), flags)
    }

    /// The data first, and what leads to them then.
    async fn sync(
        &self,
        data: impl Future<Output = Result<(), FileError>>,
        commit: impl Future<Output = Result<(), FsError>>,
    ) -> Result<u64, Error> {
        let written = self.killable(data).await?;
        self.wait_for(commit).await.map_err(fs_error)?;
        written.map(|()| 0).map_err(file_error)
    }

    async fn sync_mapping(&self, address: u64) -> Result<u64, Error> {
        let area = {
            let space = self.kernel.mm().space(self.space).ok_or(Error::Fault)?;
            space.vmas().into_iter().find(|vma| vma.range.contains(address))
        };
        let Some(Backing::File(area)) = area.map(|vma| vma.backing) else {
            return Err(Error::Invalid);
        };
        let (id, commit) = (area.mapping, self.root.commit_of(area.mapping));
        // Who has closed the file is told of what nobody was told of.
        let open = self.program.files.of_mapping(id);
        let anew = self.kernel.mm().error_cursor(id);
        let errors = open.as_ref().map_or(&anew, |open| &open.errors);
        self.sync(self.root.write_data(id, errors), commit).await
    }
}

/// A read for a program that goes on meanwhile.
pub(super) async fn read_for(
    kernel: &'static Kernel,
    root: &'static RootFs,
    (program, space): (&Program, SpaceId),
    open: &OpenFile,
    (memory, offset): ((u64, u64), u64),
) -> Result<u64, Error> {
    let caller = Caller {
        kernel,
        root,
        program,
        space,
    };
    caller.read(open, memory, offset).await
}

/// Maps a part of a file.
pub(super) fn map_file(
    kernel: &Kernel,
    space: SpaceId,
    mapping: MappingId,
    (offset, len): (u64, u64),
    flags: u64,
) -> Result<u64, Error> {
    let first_page = u32::try_from(offset / PAGE_SIZE).map_err(|_| Error::Invalid)?;
    if flags & !(map::SHARED | map::WRITE) != 0 || !offset.is_multiple_of(PAGE_SIZE) {
        return Err(Error::Invalid);
    }
    let sharing = match flags & map::SHARED {
        0 => Sharing::Private,
        _ => Sharing::Shared,
    };
    let write = match flags & map::WRITE {
        0 => Prot::NONE,
        _ => Prot::WRITE,
    };
    let request = MapRequest {
        len,
        place: Place::Anywhere,
        prot: Prot::READ.with(write),
        backing: Backing::File(FileArea::new(mapping, first_page, sharing)),
    };
    let mapped = kernel.mm().mmap(space, &request);
    mapped.map_err(crate::syscall::map_error)
}

pub(super) fn fs_error(error: FsError) -> Error {
    match error {
        FsError::Io | FsError::Format(_) | FsError::DoubleUse(_) => Error::Io,
        FsError::NoSpace | FsError::NoInodes => Error::NoSpace,
        FsError::NoMemory => Error::NoMemory,
        FsError::NoInode(_) | FsError::NotFound => Error::NotFound,
        FsError::NotADirectory(_) => Error::NotADirectory,
        FsError::Exists(_) => Error::Exists,
        FsError::NotEmpty(_) => Error::NotEmpty,
        FsError::IsADirectory(_) => Error::IsADirectory,
        FsError::Name(_) => Error::Invalid,
        FsError::ReadOnly => Error::ReadOnly,
    }
}

pub(super) fn file_error(error: FileError) -> Error {
    match error {
        FileError::Io => Error::Io,
        FileError::NoSpace => Error::NoSpace,
        FileError::OutOfMemory => Error::NoMemory,
        FileError::Copy(error) => copy_error(error),
        FileError::Unknown(_) | FileError::InUse(_) => Error::NotFound,
        FileError::TooLarge => Error::Invalid,
    }
}

/// Does what a read or write of a file cannot do itself, so that it can be tried again: waits for memory, or has a block found for the page of a file that
/// is mapped where the bytes come from or go to.
pub(super) async fn mend(kernel: &'static Kernel, program: &Program, error: FileError) -> Result<(), Error> {
    let gfp = match error {
        FileError::OutOfMemory => Gfp::USER,
        FileError::Copy(CopyError::Fault {
            error: FaultError::OutOfMemory(gfp),
            ..
        }) => gfp,
        FileError::Copy(CopyError::NeedsBlock { place, .. }) => {
            let found = find_block(kernel, program, place).await;
            return found.map_err(file_error);
        }
        error => return Err(file_error(error)),
    };
    until_memory(kernel, program, gfp).await.map_err(file_error)
}
