//! The kernel's access to a program's memory.

use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::fault::{Step, Want, area_for};
use crate::mm::{Backing, FaultError, FaultOutcome, FilePlace, Mm, PageWait, Vma};
use crate::pagetable::{Access, Found, VaRange};
use crate::pfn::{PAGE_SIZE, Pfn};

/// Why a copy stopped. What came before the address was copied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyError {
    /// The program has nothing there, or may not do that, or memory is out.
    Fault {
        /// Address of the page.
        va: u64,
        /// As a fault at that address would report.
        error: FaultError,
    },
    /// Somebody has the page, by its lock or, where it is to be pinned, by a pin: go on after [`Mm::until_unlocked`].
    Locked {
        /// Address of the page.
        va: u64,
        /// What to wait for.
        page: PageWait,
    },
    /// A page of a file there has no block yet: go on when the file system has found one
    /// ([`FileSystem::prepare_write`](crate::mm::mapping::FileSystem::prepare_write)).
    NeedsBlock {
        /// Address of the page.
        va: u64,
        /// Which page it is.
        place: FilePlace,
    },
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault { va, error } => write!(f, "copy stopped at {va:#x}: {error}"),
            Self::Locked { va, .. } => write!(f, "copy stopped at {va:#x}: the page is being moved"),
            Self::NeedsBlock { va, .. } => write!(f, "copy stopped at {va:#x}: the page has no block yet"),
        }
    }
}

impl core::error::Error for CopyError {}

/// With which rights the kernel reaches for a page.
#[derive(Clone, Copy)]
enum Rights {
    /// Those of the program.
    Program(Access),
    /// Any: it puts something into an area that the program itself may not write.
    Kernel,
    /// None: the page is mapped and not accessed.
    Map,
}

impl Rights {
    /// What of the program's is changed.
    const fn want(self) -> Want {
        match self {
            Self::Program(Access::Read | Access::Execute) => Want::Look,
            Self::Program(Access::Write) | Self::Kernel | Self::Map => Want::Own,
        }
    }
}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Copies out of a program's memory what the program itself could read.
    ///
    /// # Errors
    /// Where the program's own access would fail.
    pub fn read_user(&self, cpu: &Cpu, id: SpaceId, va: u64, bytes: &mut [u8]) -> Result<(), CopyError> {
        let rights = Rights::Program(Access::Read);
        let mut done = 0;
        while done < bytes.len() {
            let piece = piece(va, done, bytes.len());
            let part = &mut bytes[done..done + piece.len];
            self.with_page(cpu, id, piece.va, rights, |frames, pfn| {
                frames.read_bytes(pfn, piece.offset, part);
            })?;
            done += piece.len;
        }
        Ok(())
    }

    /// Copies into a program's memory where the program itself could write.
    ///
    /// # Errors
    /// Where the program's own access would fail.
    pub fn write_user(&self, cpu: &Cpu, id: SpaceId, va: u64, bytes: &[u8]) -> Result<(), CopyError> {
        self.write_with(cpu, id, va, bytes, Rights::Program(Access::Write))
    }

    /// Copies into a program's areas whatever their rights: the segments of its executable file.
    ///
    /// # Errors
    /// Where there is no area, or no memory.
    pub fn load(&self, cpu: &Cpu, id: SpaceId, va: u64, bytes: &[u8]) -> Result<(), CopyError> {
        self.write_with(cpu, id, va, bytes, Rights::Kernel)
    }

    /// Maps all pages of a range ahead of their use (`MAP_POPULATE`), each one of the program's own.
    ///
    /// # Errors
    /// Where there is no area, or no memory. Pages before that remain mapped.
    pub fn populate(&self, cpu: &Cpu, id: SpaceId, range: VaRange) -> Result<(), CopyError> {
        let mut va = range.start();
        while va < range.end() {
            let mut next = range.end();
            self.with_entry(cpu, id, va, Rights::Map, |_, found| next = found.end_of(va))?;
            va = next;
        }
        Ok(())
    }

    /// Does something with the frame at an address, to which the program itself could store: it is its own then. The address space is locked
    /// meanwhile.
    ///
    /// # Errors
    /// Where the program's own store would fail.
    pub(crate) fn with_own_page(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        mut work: impl FnMut(Pfn),
    ) -> Result<(), CopyError> {
        let rights = Rights::Program(Access::Write);
        self.with_page(cpu, id, va, rights, |_, pfn| work(pfn))
    }

    fn write_with(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        bytes: &[u8],
        rights: Rights,
    ) -> Result<(), CopyError> {
        let mut done = 0;
        while done < bytes.len() {
            let piece = piece(va, done, bytes.len());
            let part = &bytes[done..done + piece.len];
            self.with_page(cpu, id, piece.va, rights, |frames, pfn| {
                frames.write_bytes(pfn, piece.offset, part);
            })?;
            done += piece.len;
        }
        Ok(())
    }

    /// Does something with the frame behind an address, brought in if it is missing.
    fn with_page(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        rights: Rights,
        mut work: impl FnMut(&F, Pfn),
    ) -> Result<(), CopyError> {
        self.with_entry(cpu, id, va, rights, |frames, found| {
            let page = (va - found.start_of(va)) / PAGE_SIZE;
            let page = u32::try_from(page).expect("a leaf maps at most 512 pages");
            work(frames, found.entry.pfn() + page);
        })
    }

    /// Does something with the entry for an address, which maps a page by then, while the address space is locked.
    fn with_entry(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        rights: Rights,
        mut work: impl FnMut(&F, &Found),
    ) -> Result<(), CopyError> {
        let fault = |error| CopyError::Fault { va, error };
        let unknown = fault(FaultError::UnknownSpace(id));
        let space = self.spaces.find(id).ok_or(unknown)?;
        loop {
            let mut space = space.lock();
            let vma = area_for(&mut space, va).map_err(fault)?;
            permit(rights, &vma, va).map_err(fault)?;
            let found = space.table.find(&self.frames, va);
            let want = match (rights, vma.backing) {
                // Pages of files are brought in as they are: nothing is stored to them.
                (Rights::Map, Backing::File(_)) => Want::Look,
                _ => rights.want(),
            };
            let is_there = found.entry.is_present() && want == Want::Look;
            let step = match is_there {
                true => Step::Done(FaultOutcome::AlreadyMapped),
                false => self.fault_in(cpu, &mut space, va, &vma, want).map_err(fault)?,
            };
            match step {
                Step::Done(FaultOutcome::Locked(page)) => return Err(CopyError::Locked { va, page }),
                Step::Done(FaultOutcome::NeedsBlock(place)) => {
                    return Err(CopyError::NeedsBlock { va, place });
                }
                Step::Done(_) => {
                    work(&self.frames, &space.table.find(&self.frames, va));
                    return Ok(());
                }
                Step::Compact => unreachable!("who copies does not let go of the address space for that"),
                Step::Split(page) => {
                    drop(space);
                    if let Some(page) = self.split_for_fault(cpu, page).map_err(fault)? {
                        return Err(CopyError::Locked { va, page });
                    }
                }
            }
        }
    }
}

fn permit(rights: Rights, vma: &Vma, va: u64) -> Result<(), FaultError> {
    let permitted = match (rights, vma.backing) {
        (Rights::Map, _) => true,
        // There need not be memory behind a physical area, and the kernel must not touch what is not there.
        (_, Backing::Physical(_)) => false,
        (Rights::Program(access), _) => vma.prot.permits(access),
        (Rights::Kernel, _) => true,
    };
    if permitted {
        return Ok(());
    }
    let access = match rights {
        Rights::Program(access) => access,
        Rights::Kernel | Rights::Map => Access::Write,
    };
    Err(FaultError::Protection { va, access })
}

/// A piece of a copy within one frame.
struct Piece {
    va: u64,
    /// In the frame.
    offset: usize,
    len: usize,
}

/// The piece that starts `done` bytes after `va` of `total`.
fn piece(va: u64, done: usize, total: usize) -> Piece {
    // Wrapping leads to an address without an area, like any other that is out of bounds.
    let va = va.wrapping_add(done as u64);
    #[expect(clippy::cast_possible_truncation, reason = "below the size of a page")]
    let (offset, room) = ((va % PAGE_SIZE) as usize, (PAGE_SIZE - va % PAGE_SIZE) as usize);
    let len = room.min(total - done);
    Piece { va, offset, len }
}
