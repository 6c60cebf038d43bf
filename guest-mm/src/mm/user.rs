//! The kernel's access to a program's memory.

use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::mm::{Backing, FaultError, FaultOutcome, Mm};
use crate::pagetable::{Access, VaRange};
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
    /// The page is being migrated: go on when the batch is finished.
    Migrating {
        /// Address of the page.
        va: u64,
    },
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault { va, error } => write!(f, "copy stopped at {va:#x}: {error}"),
            Self::Migrating { va } => write!(f, "copy stopped at {va:#x}: the page is being migrated"),
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

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Copies out of a program's memory what the program itself could read.
    ///
    /// # Errors
    /// Where the program's own access would fail.
    pub fn read_user(&mut self, cpu: &Cpu, id: SpaceId, va: u64, bytes: &mut [u8]) -> Result<(), CopyError> {
        let mut done = 0;
        while done < bytes.len() {
            let (pfn, offset, len) =
                self.chunk(cpu, id, (va, done, bytes.len()), Rights::Program(Access::Read))?;
            self.frames.read_bytes(pfn, offset, &mut bytes[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Copies into a program's memory where the program itself could write.
    ///
    /// # Errors
    /// Where the program's own access would fail.
    pub fn write_user(&mut self, cpu: &Cpu, id: SpaceId, va: u64, bytes: &[u8]) -> Result<(), CopyError> {
        self.write_with(cpu, id, va, bytes, Rights::Program(Access::Write))
    }

    /// Copies into a program's areas whatever their rights: the segments of its executable file.
    ///
    /// # Errors
    /// Where there is no area, or no memory.
    pub fn load(&mut self, cpu: &Cpu, id: SpaceId, va: u64, bytes: &[u8]) -> Result<(), CopyError> {
        self.write_with(cpu, id, va, bytes, Rights::Kernel)
    }

    /// Maps all pages of a range ahead of their use (`MAP_POPULATE`).
    ///
    /// # Errors
    /// Where there is no area, or no memory. Pages before that remain mapped.
    pub fn populate(&mut self, cpu: &Cpu, id: SpaceId, range: VaRange) -> Result<(), CopyError> {
        let mut va = range.start();
        while va < range.end() {
            self.page_at(cpu, id, va, Rights::Map)?;
            let table = self.spaces.space(id).map(|space| space.table);
            va = table.map_or(range.end(), |table| table.find(&self.frames, va).end_of(va));
        }
        Ok(())
    }

    fn write_with(
        &mut self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        bytes: &[u8],
        rights: Rights,
    ) -> Result<(), CopyError> {
        let mut done = 0;
        while done < bytes.len() {
            let (pfn, offset, len) = self.chunk(cpu, id, (va, done, bytes.len()), rights)?;
            self.frames.write_bytes(pfn, offset, &bytes[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Frame, offset in it and length of the piece of a copy that starts `done` bytes after `va`.
    fn chunk(
        &mut self,
        cpu: &Cpu,
        id: SpaceId,
        (va, done, total): (u64, usize, usize),
        rights: Rights,
    ) -> Result<(Pfn, usize, usize), CopyError> {
        // Wrapping leads to an address without an area, like any other that is out of bounds.
        let va = va.wrapping_add(done as u64);
        let pfn = self.page_at(cpu, id, va, rights)?;
        #[expect(clippy::cast_possible_truncation, reason = "below the size of a page")]
        let (offset, room) = ((va % PAGE_SIZE) as usize, (PAGE_SIZE - va % PAGE_SIZE) as usize);
        Ok((pfn, offset, room.min(total - done)))
    }

    /// The frame behind an address, brought in if it is missing.
    fn page_at(&mut self, cpu: &Cpu, id: SpaceId, va: u64, rights: Rights) -> Result<Pfn, CopyError> {
        let fault = |error| CopyError::Fault { va, error };
        let space = self.spaces.space(id).ok_or(fault(FaultError::UnknownSpace(id)))?;
        let vma = *space.vma_at(va).ok_or(fault(FaultError::NoArea { va }))?;
        let table = space.table;
        let permitted = match (rights, vma.backing) {
            (Rights::Map, _) => true,
            // There need not be memory behind a physical area, and the kernel must not touch what is not there.
            (_, Backing::Physical(_)) => false,
            (Rights::Program(access), _) => vma.prot.permits(access),
            (Rights::Kernel, _) => true,
        };
        if !permitted {
            let access = if let Rights::Program(access) = rights {
                access
            } else {
                Access::Write
            };
            return Err(fault(FaultError::Protection { va, access }));
        }
        let mut found = table.find(&self.frames, va);
        if found.entry.is_empty() {
            let outcome = self.fault_in(cpu, id, va, &vma).map_err(fault)?;
            debug_assert_ne!(outcome, FaultOutcome::AlreadyMapped);
            found = table.find(&self.frames, va);
        }
        if found.entry.is_migration() {
            return Err(CopyError::Migrating { va });
        }
        let page = (va - found.start_of(va)) / PAGE_SIZE;
        Ok(found.entry.pfn() + u32::try_from(page).expect("a leaf maps at most 512 pages"))
    }
}
