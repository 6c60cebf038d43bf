//! Demand paging: a page comes when it is first touched.

use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Flush, FlushBatch, Frames, Mmu, SpaceId};
use crate::gfp::Gfp;
use crate::mm::{Backing, HugeAdvice, Mm, Prot, Vma};
use crate::pagetable::{Access, Entry, Found, Level, Slot, VaRange};
use crate::pfn::{Order, PAGE_BYTES, PAGE_SIZE, PAGEBLOCK_SIZE, Pfn};

/// What a fault led to. The access can be tried again, but for `Migrating`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// A 2 MiB page was mapped.
    MappedHuge,
    /// So many 4 KiB pages were mapped, the one asked for among them.
    Mapped {
        /// 1 to 512.
        nr_pages: u32,
    },
    /// The page was there with the rights asked for: a stale translation.
    AlreadyMapped,
    /// The page is being moved: try again when the batch of migration is finished.
    Migrating,
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
    /// No frame for the page or for a table.
    OutOfMemory,
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSpace(id) => write!(f, "no address space {}", id.number()),
            Self::NoArea { va } => write!(f, "nothing is mapped at {va:#x}"),
            Self::Protection { va, access } => write!(f, "{access:?} of {va:#x} is not permitted"),
            Self::OutOfMemory => write!(f, "out of memory"),
        }
    }
}

impl core::error::Error for FaultError {}

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// Serves a page fault of a program.
    ///
    /// Anonymous memory: a zeroed 2 MiB page where the area permits it, nothing is mapped in those 2 MiB yet and a
    /// pageblock is to spare; otherwise zeroed 4 KiB pages for the neighbourhood ([`Mm::set_fault_around`]).
    ///
    /// # Errors
    /// When the program had no right to the access, or memory is out. Nothing was changed then.
    pub fn fault(
        &mut self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        access: Access,
    ) -> Result<FaultOutcome, FaultError> {
        let space = self.spaces.space(id).ok_or(FaultError::UnknownSpace(id))?;
        let vma = *space.vma_at(va).ok_or(FaultError::NoArea { va })?;
        if !vma.prot.permits(access) {
            return Err(FaultError::Protection { va, access });
        }
        self.phys.counts.pgfault.add(1);
        self.fault_in(cpu, id, va, &vma)
    }

    /// Maps what belongs at an address of an area, whatever its rights.
    pub(crate) fn fault_in(
        &mut self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        vma: &Vma,
    ) -> Result<FaultOutcome, FaultError> {
        let table = self.spaces.space(id).ok_or(FaultError::UnknownSpace(id))?.table;
        let va = va / PAGE_SIZE * PAGE_SIZE;
        let found = table.find(&self.frames, va);
        if found.entry.is_migration() {
            return Ok(FaultOutcome::Migrating);
        }
        if found.entry.is_present() {
            let mut flush = FlushBatch::new();
            flush.add(Flush {
                space: id,
                root: table.root,
                va,
                nr_pages: 1,
            });
            self.mmu.flush(&flush);
            return Ok(FaultOutcome::AlreadyMapped);
        }
        if huge_possible(vma, va, &found) {
            if self.map_huge(cpu, id, va, vma.prot) {
                self.phys.counts.thp_fault_alloc.add(1);
                return Ok(FaultOutcome::MappedHuge);
            }
            self.phys.counts.thp_fault_fallback.add(1);
        }
        let nr_pages = self.map_around(cpu, id, va, vma)?;
        Ok(FaultOutcome::Mapped { nr_pages })
    }

    /// Maps a zeroed 2 MiB page; false when there is no frame for it or for a table.
    fn map_huge(&mut self, cpu: &Cpu, id: SpaceId, va: u64, prot: Prot) -> bool {
        let va = va / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE;
        let Some(table) = self.spaces.space(id).map(|space| space.table) else {
            return false;
        };
        let Ok(pfn) = self.phys.alloc_pages(cpu, Gfp::SPARE, Order::PAGEBLOCK) else {
            return false;
        };
        let Ok(slot) = self.tables(cpu).ensure(table, va, Level::HUGE) else {
            self.phys.put_page(cpu, pfn);
            return false;
        };
        self.frames.zero(pfn, Order::PAGEBLOCK);
        self.set_anon(pfn, id, va);
        self.tables(cpu)
            .set(slot, Entry::new(pfn, prot.leaf_bits() | Entry::HUGE));
        self.phys.counts.nr_anon_transparent_hugepages.add(1);
        self.count_anon(id, Order::PAGEBLOCK);
        true
    }

    /// Maps the page and those of its neighbours that are missing and for which there is memory to spare.
    fn map_around(&mut self, cpu: &Cpu, id: SpaceId, va: u64, vma: &Vma) -> Result<u32, FaultError> {
        let table = self.spaces.space(id).ok_or(FaultError::UnknownSpace(id))?.table;
        let frame = match vma.backing {
            Backing::Physical(_) => None,
            Backing::Anonymous(_) => {
                let frame = self.phys.alloc_pages(cpu, Gfp::USER, Order::ZERO);
                Some(frame.map_err(|_| FaultError::OutOfMemory)?)
            }
        };
        let Ok(wanted) = self.tables(cpu).ensure(table, va, Level::PAGE) else {
            if let Some(pfn) = frame {
                self.phys.put_page(cpu, pfn);
            }
            return Err(FaultError::OutOfMemory);
        };
        self.map_one(cpu, id, (wanted, va), vma, frame);
        let mut mapped = 1;
        for page in self.window(va, vma) {
            let slot = Slot {
                index: Level::PAGE.index(page),
                ..wanted
            };
            if self.frames.read(slot.table, slot.index) != 0 {
                continue;
            }
            let frame = match vma.backing {
                Backing::Physical(_) => None,
                Backing::Anonymous(_) => match self.phys.alloc_pages(cpu, Gfp::SPARE, Order::ZERO) {
                    Ok(pfn) => Some(pfn),
                    Err(_) => break,
                },
            };
            self.map_one(cpu, id, (slot, page), vma, frame);
            mapped += 1;
        }
        Ok(mapped)
    }

    /// Fills an empty entry: with the frame, or with the physical page that the area stands for.
    fn map_one(&mut self, cpu: &Cpu, id: SpaceId, (slot, va): (Slot, u64), vma: &Vma, frame: Option<Pfn>) {
        let entry = match (frame, vma.backing) {
            (None, Backing::Physical(base)) => {
                Entry::new(base + vma.page_offset(va), vma.prot.leaf_bits() | Entry::FIXED)
            }
            (Some(pfn), _) => {
                self.frames.zero(pfn, Order::ZERO);
                self.set_anon(pfn, id, va);
                self.count_anon(id, Order::ZERO);
                Entry::new(pfn, vma.prot.leaf_bits())
            }
            (None, Backing::Anonymous(_)) => unreachable!("anonymous pages come with their frame"),
        };
        self.tables(cpu).set(slot, entry);
    }

    /// Pages around an address that may be mapped with it: aligned, within the area and within one page table.
    fn window(&self, va: u64, vma: &Vma) -> impl Iterator<Item = u64> + use<'m, F, M> {
        let bytes = self.fault_around.bytes();
        let start = va / bytes * bytes;
        let window = vma
            .range
            .intersection(VaRange::between(start, start + bytes))
            .unwrap_or_default();
        (window.start()..window.end())
            .step_by(PAGE_BYTES)
            .filter(move |&page| page != va)
    }

    fn count_anon(&mut self, id: SpaceId, order: Order) {
        let nr_pages = u64::from(order.nr_pages());
        self.phys.counts.nr_anon_pages.add(nr_pages);
        if let Some(space) = self.spaces.space_mut(id) {
            space.rss_pages += nr_pages;
        }
    }
}

/// Whether a huge page may be mapped at the address: permitted, wholly inside the area, and no page table there yet.
fn huge_possible(vma: &Vma, va: u64, found: &Found) -> bool {
    let start = va / PAGEBLOCK_SIZE * PAGEBLOCK_SIZE;
    vma.backing == Backing::Anonymous(HugeAdvice::Huge)
        && vma.range.covers(VaRange::between(start, start + PAGEBLOCK_SIZE))
        && found.level >= Level::HUGE
        && found.entry.is_empty()
}
