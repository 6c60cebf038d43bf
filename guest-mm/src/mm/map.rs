//! `mmap`, `munmap`, `mprotect`.

use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Flush, FlushBatch, Frames, Mmu, SpaceId};
use crate::mm::huge::{SplitError, ToSplit};
use crate::mm::{
    AddressSpace, Backing, HugeAdvice, Layout, Locked, MappingId, Mm, Prot, Reserve, Residence, Sharing, Vma,
};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level, Slot, VaRange};
use crate::pfn::{PAGE_SIZE, PAGEBLOCK_SIZE, PfnRange};
use crate::phys::PinnedBy;

/// Where an area is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Anywhere. Areas that may have huge pages are aligned to them.
    Anywhere,
    /// At this address if it is free, otherwise anywhere.
    Hint(u64),
    /// At this address or not at all (`MAP_FIXED_NOREPLACE`).
    Fixed(u64),
}

/// A new area.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapRequest {
    /// Bytes; rounded up to whole pages.
    pub len: u64,
    /// Where.
    pub place: Place,
    /// Rights.
    pub prot: Prot,
    /// What is behind it.
    pub backing: Backing,
}

/// Why areas cannot be changed; nothing was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MmapError {
    /// No such address space.
    UnknownSpace(SpaceId),
    /// No such mapping.
    UnknownMapping(MappingId),
    /// Unaligned address, no bytes, or beyond user memory, or beyond the pages that a file can have.
    BadRange {
        /// Address given.
        va: u64,
        /// Length given.
        len: u64,
    },
    /// The physical range leaves what 32-bit frame numbers can name.
    BadFrames,
    /// Something is there already.
    Occupied(VaRange),
    /// No gap of that size.
    NoRoom {
        /// Bytes asked for.
        bytes: u64,
    },
    /// A huge page must be split and there is no frame for its page table.
    NoMemory,
    /// There are not as many reserved huge pages that are free and not promised.
    NoHugePages {
        /// Pages of 2 MiB asked for.
        wanted: u64,
    },
    /// A huge page must be split and is pinned.
    Pinned {
        /// Who pinned it.
        holder: &'static str,
    },
    /// More would be locked in memory than the program may, which is so many pages.
    LockLimit {
        /// Pages.
        limit: u64,
    },
    /// Pages of the space are being migrated: try again after [`Mm::until_settled`].
    Migrating(SpaceId),
}

/// What a program says about its use of a range (`madvise`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Advice {
    /// `MADV_DONTNEED`: its pages may go; what is read there next is zero.
    DontNeed,
    /// `MADV_HUGEPAGE`, `MADV_NOHUGEPAGE`: what faults map from now on.
    Huge(HugeAdvice),
    /// `MADV_PAGEOUT`: its pages leave memory now, with their contents, unless others map them too.
    PageOut,
}

impl fmt::Display for MmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownSpace(id) => write!(f, "no address space {}", id.number()),
            Self::UnknownMapping(id) => write!(f, "no mapping {}", id.number()),
            Self::BadRange { va, len } => write!(f, "{len:#x} bytes at {va:#x} are no range of user pages"),
            Self::BadFrames => write!(f, "physical range beyond 16 TiB"),
            Self::Occupied(range) => write!(f, "{range} is in use"),
            Self::NoRoom { bytes } => write!(f, "no gap of {bytes:#x} bytes"),
            Self::NoMemory => write!(f, "no frame to split a huge page with"),
            Self::NoHugePages { wanted } => write!(f, "the pool does not have {wanted} huge pages to spare"),
            Self::Pinned { holder } => write!(f, "a huge page to be split is pinned by {holder}"),
            Self::LockLimit { limit } => write!(f, "more than {limit} pages would be locked in memory"),
            Self::Migrating(id) => write!(f, "pages of address space {} are being migrated", id.number()),
        }
    }
}

impl core::error::Error for MmapError {}

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// Adds an area; returns its address. Pages come when they are touched.
    ///
    /// # Errors
    /// When the request names no possible range, or there is no room for it.
    pub fn mmap(&self, id: SpaceId, request: &MapRequest) -> Result<u64, MmapError> {
        let found = self.spaces.find(id).ok_or(MmapError::UnknownSpace(id))?;
        let mut space = found.lock();
        if space.has_ended {
            return Err(MmapError::UnknownSpace(id));
        }
        let bad = |va| MmapError::BadRange { va, len: request.len };
        let size = VaRange::new(0, request.len).ok_or(bad(0))?.bytes();
        if let Backing::Physical(base) = request.backing {
            let nr_pages = u32::try_from(size / PAGE_SIZE).map_err(|_| MmapError::BadFrames)?;
            PfnRange::new(base, nr_pages).ok_or(MmapError::BadFrames)?;
        }
        if let Backing::File(area) = request.backing {
            let last = u64::from(area.first_page) + size / PAGE_SIZE;
            if last > u64::from(u32::MAX) {
                return Err(bad(0));
            }
        }
        let is_hugetlb = matches!(request.backing, Backing::HugeTlb(_));
        let unaligned = |va: u64| is_hugetlb && !va.is_multiple_of(PAGEBLOCK_SIZE);
        if unaligned(size) {
            return Err(bad(0));
        }
        let huge =
            request.backing == Backing::Anonymous(HugeAdvice::Huge) && size >= PAGEBLOCK_SIZE || is_hugetlb;
        let align = if huge { PAGEBLOCK_SIZE } else { PAGE_SIZE };
        let wish = match request.place {
            Place::Anywhere => None,
            Place::Hint(va) if unaligned(va) => None,
            Place::Hint(va) => VaRange::new(va, size).filter(|&range| space.is_free(range)),
            Place::Fixed(va) if unaligned(va) => return Err(bad(va)),
            Place::Fixed(va) => {
                let range = VaRange::new(va, size).ok_or(bad(va))?;
                Some(range)
                    .filter(|&range| space.is_free(range))
                    .ok_or(MmapError::Occupied(range))?
                    .into()
            }
        };
        let place = wish.or_else(|| space.find_place(size, align));
        let range = place.ok_or(MmapError::NoRoom { bytes: size })?;
        if let Backing::File(area) = request.backing
            && !space.mappings.contains_key(&area.mapping)
            && !self.mappings.join(area.mapping, id)
        {
            return Err(MmapError::UnknownMapping(area.mapping));
        }
        let reserved = match request.backing {
            Backing::HugeTlb(Reserve::Held) => size / PAGEBLOCK_SIZE,
            _ => 0,
        };
        if !self.phys.reserve_huge(reserved) {
            return Err(MmapError::NoHugePages { wanted: reserved });
        }
        space.insert(Vma {
            range,
            prot: request.prot,
            backing: request.backing,
            residence: Residence::Pageable,
            anon_vma: None,
        });
        Ok(range.start())
    }

    /// Removes what is in a range; holes in it are fine. Huge pages at the borders are split.
    ///
    /// # Errors
    /// When the range is none of user pages, a huge page at a border cannot be split, or a migration is under way.
    pub fn munmap(&self, cpu: &Cpu, id: SpaceId, va: u64, len: u64) -> Result<(), MmapError> {
        let found = self.spaces.find(id).ok_or(MmapError::UnknownSpace(id))?;
        let range = VaRange::new(va, len).ok_or(MmapError::BadRange { va, len })?;
        let mut space = self.begin_change(cpu, &found, range)?;
        for part in space.cut(range) {
            self.zap_area(cpu, &mut space, &part);
        }
        space.leave_unused(&self.anon_vmas, &self.mappings);
        Ok(())
    }

    /// Changes the rights of what is in a range; holes in it are fine.
    ///
    /// # Errors
    /// As [`Mm::munmap`].
    pub fn mprotect(&self, cpu: &Cpu, id: SpaceId, va: u64, len: u64, prot: Prot) -> Result<(), MmapError> {
        let found = self.spaces.find(id).ok_or(MmapError::UnknownSpace(id))?;
        let range = VaRange::new(va, len).ok_or(MmapError::BadRange { va, len })?;
        let mut space = self.begin_change(cpu, &found, range)?;
        let parts = space.cut(range);
        for part in &parts {
            space.insert(Vma { prot, ..*part });
        }
        space.leave_unused(&self.anon_vmas, &self.mappings);
        let mut flush = FlushBatch::new();
        for part in parts {
            self.protect_range(cpu, &space, &part, prot, &mut flush);
        }
        if !flush.is_empty() {
            self.mmu.flush(&flush);
        }
        Ok(())
    }

    /// Takes advice on what is in a range. Pages of files that may go ([`Advice::DontNeed`]) stay in memory, and are
    /// mapped again when they are touched; copies of them are lost.
    ///
    /// # Errors
    /// As [`Mm::munmap`].
    pub fn madvise(
        &self,
        cpu: &Cpu,
        id: SpaceId,
        va: u64,
        len: u64,
        advice: Advice,
    ) -> Result<(), MmapError> {
        let found = self.spaces.find(id).ok_or(MmapError::UnknownSpace(id))?;
        let range = VaRange::new(va, len).ok_or(MmapError::BadRange { va, len })?;
        if advice == Advice::PageOut {
            return self.page_out(cpu, &found, range).map(drop);
        }
        let mut space = self.begin_change(cpu, &found, range)?;
        let parts = space.cut(range);
        for part in &parts {
            let backing = match (advice, part.backing) {
                (Advice::Huge(advice), Backing::Anonymous(_)) => Backing::Anonymous(advice),
                (_, backing) => backing,
            };
            space.insert(Vma { backing, ..*part });
        }
        space.leave_unused(&self.anon_vmas, &self.mappings);
        for part in parts {
            // In a non-linear area the entries are all there is to tell which page is where.
            let is_linear = part
                .backing
                .file()
                .is_none_or(|area| area.layout == Layout::Linear);
            let may_go = is_linear && !matches!(part.backing, Backing::Physical(_));
            if advice == Advice::DontNeed && may_go {
                self.zap(cpu, &mut space, part.range);
            }
        }
        Ok(())
    }

    /// Everything about a change of a range that can fail; the address space is locked then, and no huge page crosses the
    /// range's borders.
    pub(crate) fn begin_change<'a>(
        &self,
        cpu: &Cpu,
        found: &'a AddressSpace,
        range: VaRange,
    ) -> Result<Locked<'a>, MmapError> {
        loop {
            let space = found.lock();
            if space.has_ended {
                return Err(MmapError::UnknownSpace(space.id()));
            }
            if space.migrating > 0 {
                return Err(MmapError::Migrating(space.id()));
            }
            let ends = [range.start(), range.end()];
            if let Some(&va) = ends.iter().find(|&&va| space.cuts_hugetlb(va)) {
                let len = range.bytes();
                return Err(MmapError::BadRange { va, len });
            }
            let Some(page) = ends.into_iter().find_map(|va| self.huge_across(&space, va)) else {
                return Ok(space);
            };
            drop(space);
            self.split_page(cpu, page).map_err(|error| match error {
                SplitError::NoMemory => MmapError::NoMemory,
                SplitError::Pinned(PinnedBy { holder, .. }) => MmapError::Pinned { holder },
                SplitError::Busy(_) => MmapError::Migrating(found.id()),
            })?;
        }
    }

    /// The huge page that an address lies inside of, unless the address is its first.
    fn huge_across(&self, space: &Locked<'_>, va: u64) -> Option<ToSplit> {
        if va.is_multiple_of(PAGEBLOCK_SIZE) {
            return None;
        }
        let found = space.table.find(&self.frames, va);
        let crosses = found.level == Level::HUGE && found.is_owned_leaf();
        crosses.then(|| self.to_split(found.entry.pfn()))
    }

    fn protect_range(&self, cpu: &Cpu, space: &Locked<'_>, vma: &Vma, prot: Prot, flush: &mut FlushBatch) {
        let range = vma.range;
        let mut va = range.start();
        while va < range.end() {
            let found = space.table.find(&self.frames, va);
            let end = if found.level == Level::PAGE {
                (va / PAGEBLOCK_SIZE + 1) * PAGEBLOCK_SIZE
            } else {
                found.end_of(va)
            }
            .min(range.end());
            let leaf_bytes = found.level.entry_bytes();
            let mut page = va;
            while found.level <= Level::HUGE && page < end {
                let slot = Slot {
                    index: found.level.index(page),
                    ..found.slot
                };
                if self.protect_leaf(cpu, slot, vma.backing, prot) {
                    flush.add(Flush {
                        space: space.id(),
                        root: space.table.root,
                        va: page,
                        nr_pages: leaf_bytes / PAGE_SIZE,
                    });
                }
                page += leaf_bytes;
            }
            va = end;
        }
    }

    /// Gives an entry the rights of its area, but for the right to write to what others see too, or what is not dirty yet. False where
    /// nothing is.
    fn protect_leaf(&self, cpu: &Cpu, slot: Slot, backing: Backing, prot: Prot) -> bool {
        let old = Entry::from_bits(self.frames.read(slot.table, slot.index));
        if !old.is_present() {
            return false;
        }
        let kept = Prot::LEAF_RIGHTS;
        let is_others = || {
            let page = self.mapped_page(old.pfn());
            if page.flags().has(PageFlags::FILE) {
                let is_shared = backing.file().is_some_and(|area| area.sharing == Sharing::Shared);
                return !(is_shared && old.has(Entry::WRITABLE));
            }
            page.mapcount() > 1 || page.flags().has(PageFlags::SWAPCACHE)
        };
        let is_shared = self.is_zero_page(old) || !old.has(Entry::FIXED) && is_others();
        let withheld = if is_shared { Entry::WRITABLE } else { 0 };
        let rights = old.without(kept).with(prot.leaf_bits() & kept & !withheld);
        let now = self.tables(cpu).set(slot, rights);
        // A dirty bit that hardware set after the read must survive.
        let late = now.bits() & (Entry::ACCESSED | Entry::DIRTY) & !rights.bits();
        if late != 0 {
            self.tables(cpu).set(slot, rights.with(late));
        }
        true
    }
}
