//! `/shm` and `/ram`: the directories of the file systems without a disk. Their calls are the same as for files of the disk, and need none. What
//! is in `/shm` goes to swap areas when memory is short, what is in `/ram` stays in memory.

use super::call::mend;
use super::descriptors::OpenShm;
use super::steps;
use crate::fault;
use crate::kernel::Kernel;
use crate::machine::activity::AllCpus;
use crate::machine::cpu::this_cpu;
use crate::machine::high_memory::AllFrames;
use crate::machine::nucleus::Context;
use crate::machine::quiet;
use crate::oom;
use crate::process::{Doomed, Program};
use crate::syscall::copy_error;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::sync::atomic::Ordering::Relaxed;
use guest_kernel::physical::to_usize;
use guest_mm::fs::mounted::{Missing, WriteAt};
use guest_mm::fs::{NameError, TmpFile, Tmpfs};
use guest_mm::mm::mapping::FileError;
use guest_mm::mm::{FileArea, Sharing};
use guest_mm::{Backing, PAGE_SIZE, SpaceId};
use guest_programs::abi::Error;
use guest_programs::files::{AT_POSITION, FileCall, MAX_PATH, Stat, open};
use guest_sync::Cpu;

/// Files without a disk.
pub(crate) type Shm = Tmpfs<'static, 'static, AllFrames, AllCpus, fn() -> &'static Cpu>;

/// Where a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Directory {
    Shm,
    Ram,
}

impl Directory {
    const ALL: [Self; 2] = [Self::Shm, Self::Ram];

    const fn path(self) -> &'static [u8] {
        match self {
            Self::Shm => b"/shm",
            Self::Ram => b"/ram",
        }
    }

    pub(super) const fn of(self, kernel: &'static Kernel) -> &'static Shm {
        match self {
            Self::Shm => &kernel.shm,
            Self::Ram => &kernel.ram,
        }
    }

    /// Bytes that all files here may have: half of memory and swap, as `tmpfs` by default has half of memory; a quarter of memory where nothing
    /// leaves it. What is here cannot be got back by ending a program.
    fn limit(self, kernel: &Kernel) -> u64 {
        let pages = match self {
            Self::Shm => oom::total_pages(kernel) / 2,
            Self::Ram => kernel.phys.memory_stats().total_pages / 4,
        };
        pages * PAGE_SIZE
    }
}

/// Who calls.
pub(super) struct Caller<'a> {
    pub(super) kernel: &'static Kernel,
    pub(super) program: &'a Program,
    pub(super) space: SpaceId,
}

/// Carries out a call if it is one for a file here; `None` if it is for another.
pub(super) async fn serve(
    kernel: &'static Kernel,
    program: &Program,
    space: SpaceId,
    (call, context): (FileCall, &Context),
) -> Option<Result<u64, Error>> {
    let caller = Caller {
        kernel,
        program,
        space,
    };
    let Context {
        rdi: first,
        rsi: second,
        rdx: third,
        r10: fourth,
        ..
    } = *context;
    match call {
        FileCall::Open
        | FileCall::Remove
        | FileCall::MakeDirectory
        | FileCall::ReadDirectory
        | FileCall::Stat => {
            let (directory, name) = caller.name(first, second).await?;
            let arguments = (third, fourth);
            Some(caller.with_name(call, (directory, &name), arguments).await)
        }
        FileCall::SyncMapping => caller.is_mapped_at(first).then_some(Ok(0)),
        FileCall::SyncAll => None,
        _ => {
            let open = program.files.find_shm(first)?;
            Some(
                caller
                    .with_file(call, &open, (first, second, third, fourth))
                    .await,
            )
        }
    }
}

impl Caller<'_> {
    /// What follows the directory in a path; empty for the directory itself. `None` if the path is another, or cannot be read: the caller reads it
    /// again then, and says so.
    async fn name(&self, address: u64, len: u64) -> Option<(Directory, Vec<u8>)> {
        let len = usize::try_from(len).ok().filter(|len| *len <= MAX_PATH)?;
        let mut path = alloc::vec![0; len];
        let copied = fault::copy(self.kernel, self.program, |mm| {
            mm.read_user(this_cpu(), self.space, address, &mut path)
        });
        copied.await.ok()?;
        Directory::ALL.into_iter().find_map(|directory| {
            let rest = path.strip_prefix(directory.path())?;
            match rest.split_first() {
                None => Some((directory, Vec::new())),
                Some((b'/', name)) => Some((directory, name.to_vec())),
                Some(_) => None,
            }
        })
    }

    async fn with_name(
        &self,
        call: FileCall,
        (directory, name): (Directory, &[u8]),
        (third, nth): (u64, u64),
    ) -> Result<u64, Error> {
        let shm = directory.of(self.kernel);
        match call {
            FileCall::Open if name.is_empty() => Err(Error::IsADirectory),
            FileCall::Open => self.open((directory, name), third).await,
            FileCall::Remove => {
                shm.remove(name).map_err(name_error)?;
                self.kernel.memory_came.raise();
                Ok(0)
            }
            FileCall::ReadDirectory => {
                let names = shm.list();
                let Some(name) = names.get(to_usize(nth)) else {
                    return Ok(0);
                };
                self.copy_out(third, name).await?;
                Ok(name.len() as u64)
            }
            FileCall::Stat => self.stat((directory, name), third).await,
            // There is one directory, and it is there.
            _ if name.is_empty() => Err(Error::Exists),
            _ => Err(Error::Invalid),
        }
    }

    async fn with_file(
        &self,
        call: FileCall,
        open: &OpenShm,
        (descriptor, second, third, fourth): (u64, u64, u64, u64),
    ) -> Result<u64, Error> {
        match call {
            FileCall::Close => {
                self.program.files.remove_shm(descriptor);
                self.kernel.memory_came.raise();
                Ok(0)
            }
            FileCall::Read => self.read(open, (second, third), fourth).await,
            FileCall::Write => self.write(open, (second, third), fourth).await,
            FileCall::Seek => {
                let position = match second {
                    AT_POSITION => open.directory.of(self.kernel).size(&open.file),
                    position => position,
                };
                open.position.store(position, Relaxed);
                Ok(position)
            }
            FileCall::SetSize => self.set_size((open.directory, &open.file), second).await,
            FileCall::Map => {
                let mapping = open.file.mapping();
                super::call::map_file(self.kernel, self.space, mapping, (second, third), fourth)
            }
            // There is nothing behind the pages.
            FileCall::Sync => Ok(0),
            _ => Err(Error::Invalid),
        }
    }

    async fn open(&self, (directory, name): (Directory, &[u8]), flags: u64) -> Result<u64, Error> {
        if flags & !(open::CREATE | open::TRUNCATE | open::APPEND) != 0 {
            return Err(Error::Invalid);
        }
        let missing = match flags & open::CREATE {
            0 => Missing::Fail,
            _ => Missing::Create,
        };
        let file = directory
            .of(self.kernel)
            .open(name, missing)
            .map_err(name_error)?;
        if flags & open::TRUNCATE != 0 {
            self.set_size((directory, &file), 0).await?;
        }
        let opened = OpenShm::new((directory, file), flags & open::APPEND != 0);
        let added = self.program.files.add_shm(opened);
        added.ok_or(Error::TooManyFiles)
    }

    pub(super) async fn read(
        &self,
        open: &OpenShm,
        (address, len): (u64, u64),
        offset: u64,
    ) -> Result<u64, Error> {
        let start = open.start(offset);
        let shm = open.directory.of(self.kernel);
        let (len, mut done) = (to_usize(len), 0);
        let outcome = loop {
            let range = (start.saturating_add(done as u64), len - done);
            let to = (self.space, address.wrapping_add(done as u64));
            match self.wait_for(shm.read_to_user(&open.file, range, to)).await? {
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
        open.has_moved(offset, start.saturating_add(done as u64));
        // What was read before an error counts.
        if done > 0 {
            Ok(done as u64)
        } else {
            outcome.map(|()| 0)
        }
    }

    async fn write(&self, open: &OpenShm, (address, len): (u64, u64), offset: u64) -> Result<u64, Error> {
        let start = open.start(offset);
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
            let (shm, limit) = (open.directory.of(self.kernel), open.directory.limit(self.kernel));
            let write = shm.write_from_user(&open.file, (at, len - done), from, limit);
            match self.wait_for(write).await? {
                Ok((now, written)) => (end, done) = (now, done + written),
                Err(error) => match self.mend(error).await {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
            }
        };
        open.has_moved(offset, end);
        if done > 0 {
            Ok(done as u64)
        } else {
            outcome.map(|()| 0)
        }
    }

    async fn set_size(&self, (directory, file): (Directory, &TmpFile), size: u64) -> Result<u64, Error> {
        loop {
            let limit = directory.limit(self.kernel);
            let set = directory.of(self.kernel).set_size(file, size, limit);
            match self.wait_for(set).await? {
                Ok(()) => return Ok(0),
                Err(error) => self.mend(error).await?,
            }
        }
    }

    async fn stat(&self, (directory, name): (Directory, &[u8]), address: u64) -> Result<u64, Error> {
        let shm = directory.of(self.kernel);
        let stat = if name.is_empty() {
            Stat {
                is_directory: 1,
                nr_links: 1,
                ..Stat::default()
            }
        } else {
            let file = shm.open(name, Missing::Fail).map_err(name_error)?;
            Stat {
                size: shm.size(&file),
                is_directory: 0,
                nr_links: 1,
                inode: file.mapping().number().into(),
            }
        };
        let words = stat.to_words().map(u64::to_le_bytes);
        self.copy_out(address, words.as_flattened()).await.map(|()| 0)
    }

    fn is_mapped_at(&self, address: u64) -> bool {
        let space = self.kernel.mm().space(self.space);
        let area = space.and_then(|space| space.vma_at(address));
        let mapping = area.and_then(|vma| vma.backing.file()).map(|area| area.mapping);
        let mut directories = Directory::ALL.into_iter();
        mapping.is_some_and(|mapping| directories.any(|directory| directory.of(self.kernel).has(mapping)))
    }

    async fn wait_for<T>(&self, what: impl Future<Output = T>) -> Result<T, Error> {
        let waited = self.program.interruptible(steps(what)).await;
        waited.map_err(|Doomed| Error::Interrupted)
    }

    async fn copy_out(&self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let copied = fault::copy(self.kernel, self.program, |mm| {
            mm.write_user(this_cpu(), self.space, address, bytes)
        });
        copied.await.map_err(copy_error)
    }

    async fn mend(&self, error: FileError) -> Result<(), Error> {
        mend(self.kernel, self.program, error).await
    }
}

fn name_error(error: NameError) -> Error {
    match error {
        NameError::NotFound => Error::NotFound,
        NameError::Invalid => Error::Invalid,
    }
}

/// Memory that a program shares with the children that it will have: what is behind the area, and the file to be let go once that is there.
pub(crate) fn anonymous(kernel: &Kernel, len: u64) -> (Backing, alloc::sync::Arc<TmpFile>) {
    let _visit = quiet::visit(this_cpu());
    let file = kernel.shm.anonymous(len.next_multiple_of(PAGE_SIZE));
    let area = FileArea::new(file.mapping(), 0, Sharing::Shared);
    (Backing::File(area), file)
}

/// Frees the files that nobody can reach any more, for ever.
pub(crate) async fn reap(kernel: &'static Kernel) {
    loop {
        let seen = kernel.memory_came.count();
        for directory in Directory::ALL {
            if steps(directory.of(kernel).reap()).await > 0 {
                kernel.memory_came.raise();
            }
        }
        kernel.memory_came.after(seen).await;
    }
}

/// Files without a disk, as lines of `/proc/vmstat`.
pub(crate) fn vmstat(out: &mut alloc::string::String, kernel: &Kernel) -> fmt::Result {
    let (named, nameless) = kernel.shm.nr_files();
    writeln!(out, "shm_files {named}")?;
    writeln!(out, "shm_files_nameless {nameless}")?;
    let (named, nameless) = kernel.ram.nr_files();
    writeln!(out, "ram_files {named}")?;
    writeln!(out, "ram_files_nameless {nameless}")
}
