//! Demand paging: a page comes when it is first touched, and is copied when it is first written to.

use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Frames, Mmu, SpaceId};
use crate::gfp::Gfp;
use crate::mm::huge::{SplitError, ToSplit};
use crate::mm::{AnonPlace, Backing, FilePlace, HugeAdvice, Locked, Mm, PageWait, Vma};
use crate::pagetable::{Access, Entry, Found, Level, Slot, VaRange};
use crate::pfn::{Order, PAGE_BYTES, PAGE_SIZE, PAGEBLOCK_SIZE, Pfn};

/// What a fault led to. The access can be tried again, but for `Locked`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// A 2 MiB page was mapped.
    MappedHuge,
    /// So many 4 KiB pages were mapped, the one asked for among them.
    Mapped {
        /// 1 to 512.
        nr_pages: u32,
    },
    /// The zero page was mapped at so many places, the one asked for among them.
    MappedZero {
        /// 1 to 512.
        nr_pages: u32,
    },
    /// A page that others see too, or the zero page, was replaced by a page of the program's own.
    Copied,
    /// A page was shared and is not any more: it can be written to.
    Reused,
    /// The page was there with the rights asked for: a stale translation.
    AlreadyMapped,
    /// Somebody has the page lock, to move the page or change where it is mapped: try again after
    /// [`Mm::until_unlocked`].
    Locked(PageWait),
    /// A store to a page of a file that has no block yet: the file system finds one
    /// ([`FileSystem::prepare_write`](crate::mm::mapping::FileSystem::prepare_write)), and then the access is tried again.
    NeedsBlock(FilePlace),
}

/// Why a fault cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// No such address space.
    UnknownSpace(SpaceId),
    /// No area there (SIGSEGV, `SEGV_MAPERR`).
    NoArea {
        /// The address.
        va: u64,
    },
    /// The area does not permit it (SIGSEGV, `SEGV_ACCERR`).
    Protection {
        /// The address.
        va: u64,
        /// What was tried.
        access: Access,
    },
    /// No frame for this request, on whose behalf memory is to be reclaimed: [`Gfp::USER`] for a page, [`Gfp::KERNEL`] for a page table, which
    /// nothing that is free among the movable frames helps.
    OutOfMemory(Gfp),
    /// The pool of reserved huge pages has none to spare for a page that was not reserved: a child's, or a copy (SIGBUS).
    NoHugePage {
        /// The address.
        va: u64,
    },
    /// The page is beyond the end of the file (SIGBUS, `BUS_ADRERR`).
    BeyondEnd {
        /// The address.
        va: u64,
    },
    /// The page was lost when the memory that it was in failed (SIGBUS, `BUS_MCEERR_AR`).
    Poisoned {
        /// The address.
        va: u64,
    },
    /// The page could not be read from its file or from the swap area (SIGBUS). Another try reads again.
    Io {
        /// The address.
        va: u64,
    },
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSpace(id) => write!(f, "no address space {}", id.number()),
            Self::NoArea { va } => write!(f, "nothing is mapped at {va:#x}"),
            Self::Protection { va, access } => write!(f, "{access:?} of {va:#x} is not permitted"),
            Self::OutOfMemory(gfp) => write!(f, "out of memory for a {gfp:?} request"),
            Self::NoHugePage { va } => write!(f, "no reserved huge page is left for {va:#x}"),
            Self::BeyondEnd { va } => write!(f, "{va:#x} is beyond the end of the file that is mapped there"),
            Self::Poisoned { va } => write!(f, "the page at {va:#x} was lost when its memory failed"),
            Self::Io { va } => write!(f, "the page at {va:#x} could not be read from the disk"),
        }
    }
}

impl core::error::Error for FaultError {}

/// What a look at an entry led to, with the address space locked.
pub(crate) enum Step {
    /// Done, or there is something to wait for.
    Done(FaultOutcome),
    /// This huge page must be split first, without the lock.
    Split(ToSplit),
    /// There was no pageblock: memory is to be compacted, without the lock.
    Compact,
}

/// What the page is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    /// Its contents.
    Look,
    /// A page of the program's own, whose contents will change.
    Own,
}

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// Serves a page fault of a program.
    ///
    /// Anonymous memory: a zeroed 2 MiB page where the area permits it, nothing is mapped in those 2 MiB yet and a
    /// pageblock is to spare; otherwise zeroed 4 KiB pages for the neighbourhood ([`Mm::set_fault_around`]), or the zero page
    /// ([`Mm::set_zero_page`]) when it was a load. A store to what is shared since a fork gets a copy. An address below a stack lets it
    /// grow.
    ///
    /// A page of a mapping: mapped as it is, with those around it that are in memory, or read in first; a store to a private area gets
    /// a copy, one to a shared area makes the page dirty.
    ///
    /// # Errors
    /// When the program had no right to the access, or memory is out. Nothing was changed then.
    pub fn fault(&self, cpu: &Cpu, id: SpaceId, va: u64, access: Access) -> Result<FaultOutcome, FaultError> {
        let found = self.spaces.find(id).ok_or(FaultError::UnknownSpace(id))?;
        let want = match access {
            Access::Write => Want::Own,
            Access::Read | Access::Execute => Want::Look,
        };
        let mut is_counted = false;
        let mut has_compacted = false;
        loop {
            let mut space = found.lock();
            space.may_compact = !has_compacted && self.compacts_for_fault();
            let vma = area_for(&mut space, va)?;
            if !vma.prot.permits(access) {
                return Err(FaultError::Protection { va, access });
            }
            if !is_counted {
                self.phys.counts.pgfault.add(1);
                is_counted = true;
            }
            match self.fault_in(cpu, &mut space, va, &vma, want)? {
                Step::Done(outcome) => return Ok(outcome),
                Step::Split(page) => {
                    drop(space);
                    if let Some(wait) = self.split_for_fault(cpu, page)? {
                        return Ok(FaultOutcome::Locked(wait));
                    }
                }
                Step::Compact => {
                    drop(space);
                    self.compact_direct(cpu, Gfp::SPARE, Order::PAGEBLOCK);
                    has_compacted = true;
                }
            }
        }
    }

    /// Splits a huge page that stands in the way of a fault; `Some` when that has to wait.
    pub(crate) fn split_for_fault(&self, cpu: &Cpu, page: ToSplit) -> Result<Option<PageWait>, FaultError> {
        match self.split_page(cpu, page) {
            Ok(()) => Ok(None),
            Err(SplitError::Busy(wait)) => Ok(Some(wait)),
            Err(SplitError::NoMemory) => Err(FaultError::OutOfMemory(Gfp::KERNEL)),
            // A pinned page that is shared can only be copied whole.
            Err(SplitError::Pinned(_)) => Err(FaultError::OutOfMemory(Gfp::USER)),
        }
    }

    /// Maps what belongs at an address of an area, whatever its rights.
    pub(crate) fn fault_in(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        va: u64,
        vma: &Vma,
        want: Want,
    ) -> Result<Step, FaultError> {
        let va = va / PAGE_SIZE * PAGE_SIZE;
        let found = space.table.find(&self.frames, va);
        if found.entry.is_migration() {
            return Ok(Step::Done(FaultOutcome::Locked(PageWait::lock(
                found.entry.pfn(),
            ))));
        }
        if found.entry.is_poisoned() {
            return Err(FaultError::Poisoned { va });
        }
        if let Some(slot) = found.entry.swap_slot() {
            return self.swap_in(cpu, space, (va, &found), (vma, want), slot);
        }
        if found.entry.is_present() && want == Want::Own {
            return self.make_own(cpu, space, vma, va, &found);
        }
        if found.entry.is_present() {
            self.flush_one(space.table, va, Order::ZERO);
            return Ok(Step::Done(FaultOutcome::AlreadyMapped));
        }
        if let Backing::File(area) = vma.backing {
            return self.fault_file(cpu, space, (va, &found), (vma, area), want);
        }
        if let Backing::HugeTlb(reserve) = vma.backing {
            return self.fault_hugetlb(cpu, space, (va, vma), reserve);
        }
        if huge_possible(vma, va, &found) {
            if self.map_huge(cpu, space, va, vma) {
                self.phys.counts.thp_fault_alloc.add(1);
                return Ok(Step::Done(FaultOutcome::MappedHuge));
            }
            if space.may_compact {
                return Ok(Step::Compact);
            }
            self.phys.counts.thp_fault_fallback.add(1);
        }
        if want == Want::Look
            && vma.backing.is_anonymous()
            && let Some(zero_page) = self.zero_page
        {
            let nr_pages = self.map_zero_around(cpu, space, va, vma, zero_page)?;
            return Ok(Step::Done(FaultOutcome::MappedZero { nr_pages }));
        }
        let nr_pages = self.map_around(cpu, space, va, vma)?;
        Ok(Step::Done(FaultOutcome::Mapped { nr_pages }))
    }

    /// Maps a zeroed 2 MiB page; false when there is no frame for it or for a table.
    fn map_huge(&self, cpu: &Cpu, space: &mut Locked<'_>, va: u64, vma: &Vma) -> bool {
        let va = va / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE;
        let Ok(pfn) = self.phys.alloc_pages(cpu, Gfp::SPARE, Order::PAGEBLOCK) else {
            return false;
        };
        let Ok(slot) = self.tables(cpu).ensure(space.table, va, Level::HUGE) else {
            self.phys.put_page(cpu, pfn);
            return false;
        };
        self.frames.zero(pfn, Order::PAGEBLOCK);
        let anon_vma = space.anon_vma_at(va, &self.anon_vmas);
        self.set_anon(pfn, AnonPlace { anon_vma, va });
        self.tables(cpu)
            .set(slot, Entry::new(pfn, vma.prot.leaf_bits() | Entry::HUGE));
        self.adopt(pfn, Order::PAGEBLOCK);
        space.rss_pages += u64::from(Order::PAGEBLOCK.nr_pages());
        true
    }

    /// Maps the page and those of its neighbours that are missing and for which there is memory to spare.
    fn map_around(&self, cpu: &Cpu, space: &mut Locked<'_>, va: u64, vma: &Vma) -> Result<u32, FaultError> {
        let frame = match vma.backing {
            Backing::Physical(_) | Backing::File(_) | Backing::HugeTlb(_) => None,
            Backing::Anonymous(_) | Backing::Stack { .. } => {
                let frame = self.phys.alloc_pages(cpu, Gfp::USER, Order::ZERO);
                Some(frame.map_err(|error| FaultError::OutOfMemory(error.gfp))?)
            }
        };
        let Ok(wanted) = self.tables(cpu).ensure(space.table, va, Level::PAGE) else {
            if let Some(pfn) = frame {
                self.phys.put_page(cpu, pfn);
            }
            return Err(FaultError::OutOfMemory(Gfp::KERNEL));
        };
        self.map_one(cpu, space, (wanted, va), vma, frame);
        let mut mapped = 1;
        for (slot, page) in self.missing_around(wanted, va, vma) {
            let frame = match frame {
                None => None,
                Some(_) => match self.phys.alloc_pages(cpu, Gfp::SPARE, Order::ZERO) {
                    Ok(pfn) => Some(pfn),
                    Err(_) => break,
                },
            };
            self.map_one(cpu, space, (slot, page), vma, frame);
            mapped += 1;
        }
        Ok(mapped)
    }

    /// Maps the zero page at the address and at those of its neighbours where nothing is yet.
    fn map_zero_around(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        va: u64,
        vma: &Vma,
        zero_page: Pfn,
    ) -> Result<u32, FaultError> {
        let wanted = self.tables(cpu).ensure(space.table, va, Level::PAGE);
        let wanted = wanted.map_err(|_| FaultError::OutOfMemory(Gfp::KERNEL))?;
        let bits = vma.prot.leaf_bits() & !(Entry::WRITABLE | Entry::DIRTY);
        let entry = Entry::new(zero_page, bits | Entry::FIXED);
        self.tables(cpu).set(wanted, entry);
        let mut mapped = 1;
        for (slot, _) in self.missing_around(wanted, va, vma) {
            self.tables(cpu).set(slot, entry);
            mapped += 1;
        }
        Ok(mapped)
    }

    /// Fills an empty entry: with the frame, or with the physical page that the area stands for.
    fn map_one(&self, cpu: &Cpu, space: &mut Locked<'_>, place: (Slot, u64), vma: &Vma, frame: Option<Pfn>) {
        let (slot, va) = place;
        match (frame, vma.backing) {
            (None, Backing::Physical(base)) => {
                let entry = Entry::new(base + vma.page_offset(va), vma.prot.leaf_bits() | Entry::FIXED);
                self.tables(cpu).set(slot, entry);
            }
            (Some(pfn), _) => self.map_new(cpu, space, place, vma, pfn),
            (None, _) => unreachable!("anonymous pages come with their frame"),
        }
    }

    /// Maps a frame that was just allocated as a page of zeroes.
    pub(crate) fn map_new(
        &self,
        cpu: &Cpu,
        space: &mut Locked<'_>,
        (slot, va): (Slot, u64),
        vma: &Vma,
        pfn: Pfn,
    ) {
        self.frames.zero(pfn, Order::ZERO);
        let anon_vma = space.anon_vma_at(va, &self.anon_vmas);
        self.set_anon(pfn, AnonPlace { anon_vma, va });
        self.adopt(pfn, Order::ZERO);
        space.rss_pages += 1;
        self.tables(cpu).set(slot, Entry::new(pfn, vma.prot.leaf_bits()));
    }

    /// The empty entries around the one in `wanted`, which is at `va`, that may be filled with it: in an aligned window, in the area, and in the
    /// same page table.
    pub(crate) fn missing_around(
        &self,
        wanted: Slot,
        va: u64,
        vma: &Vma,
    ) -> impl Iterator<Item = (Slot, u64)> + use<'_, 'm, F, M> {
        let slots = self.slots_around(wanted, va, vma, self.fault_around.bytes());
        slots.filter(|(slot, _)| self.frames.read(slot.table, slot.index) == 0)
    }

    /// All entries there, that one among them, in an aligned window of so many bytes, a power of two from 4 KiB to 2 MiB.
    pub(crate) fn slots_around(
        &self,
        wanted: Slot,
        va: u64,
        vma: &Vma,
        bytes: u64,
    ) -> impl Iterator<Item = (Slot, u64)> + use<F, M> {
        let start = va / bytes * bytes;
        let window = vma
            .range
            .intersection(VaRange::between(start, start + bytes))
            .unwrap_or_default();
        let pages = (window.start()..window.end()).step_by(PAGE_BYTES);
        pages.map(move |page| {
            let index = Level::PAGE.index(page);
            (Slot { index, ..wanted }, page)
        })
    }
}

/// The area at an address; a stack above it grows.
pub(crate) fn area_for(space: &mut Locked<'_>, va: u64) -> Result<Vma, FaultError> {
    if space.vma_at(va).is_none() && !space.expand_stack(va) {
        return Err(FaultError::NoArea { va });
    }
    space.vma_at(va).copied().ok_or(FaultError::NoArea { va })
}

/// Whether a huge page may be mapped at the address: permitted, wholly inside the area, and no page table there yet.
fn huge_possible(vma: &Vma, va: u64, found: &Found) -> bool {
    let start = va / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE;
    vma.backing == Backing::Anonymous(HugeAdvice::Huge)
        && vma.range.covers(VaRange::between(start, start + PAGEBLOCK_SIZE))
        && found.level >= Level::HUGE
        && found.entry.is_empty()
}
