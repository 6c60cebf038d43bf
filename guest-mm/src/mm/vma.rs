//! Areas of an address space (Linux `vm_area_struct`): what may be there, before anything is.

use crate::mm::{AnonVmaId, MappingId};
use crate::pagetable::{Access, Entry, VaRange};
use crate::pfn::{PAGE_SHIFT, Pfn};

/// Rights of an area.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Prot(u8);

impl Prot {
    /// No access at all.
    pub const NONE: Self = Self(0);
    /// Loads.
    pub const READ: Self = Self(1);
    /// Stores; on x86 loads too.
    pub const WRITE: Self = Self(2);
    /// Instruction fetches; on x86 loads too.
    pub const EXEC: Self = Self(4);

    /// These rights and those.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` are in these.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the access is permitted.
    pub const fn permits(self, access: Access) -> bool {
        match access {
            Access::Read => self.0 != 0,
            Access::Write => self.has(Self::WRITE),
            Access::Execute => self.has(Self::EXEC),
        }
    }

    /// Bits of a leaf with these rights. Pages without any right are not mapped present to ring 3.
    ///
    /// Accessed and, where writes are allowed, dirty are set ahead: a KVM without nested paging maps neighbours
    /// ahead only where the guest says accessed, and would take one more fault for each bit it has to set itself.
    pub(crate) const fn leaf_bits(self) -> u64 {
        let user = if self.0 == 0 { 0 } else { Entry::USER };
        let write = if self.has(Self::WRITE) {
            Entry::WRITABLE | Entry::DIRTY
        } else {
            0
        };
        let exec = if self.has(Self::EXEC) {
            0
        } else {
            Entry::NO_EXECUTE
        };
        Entry::PRESENT | Entry::ACCESSED | user | write | exec
    }

    /// Bits of a leaf that rights decide.
    pub(crate) const LEAF_RIGHTS: u64 = Entry::USER | Entry::WRITABLE | Entry::NO_EXECUTE;
}

/// Whether an area may have 2 MiB pages (`madvise`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HugeAdvice {
    /// `MADV_HUGEPAGE`: where a free pageblock can be had.
    Huge,
    /// `MADV_NOHUGEPAGE`: never.
    NoHuge,
}

/// What is behind an area.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Backing {
    /// Zeroes at first, in memory of its own.
    Anonymous(HugeAdvice),
    /// The same, growing down when something below it is touched, to so many bytes in all.
    Stack {
        /// Most bytes.
        most_bytes: u64,
    },
    /// Physical memory from a frame on, as `/dev/mem`: neither counted nor owned, and there need not be any.
    Physical(Pfn),
    /// Pages of a mapping: a file, or shared memory.
    File(FileArea),
    /// Huge pages of the pool ([`Mm::set_nr_huge_pages`](crate::Mm::set_nr_huge_pages)): zeroes at first, in memory of its own.
    HugeTlb(Reserve),
}

/// Whether an area's huge pages are reserved.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reserve {
    /// Each of those that it has not touched yet.
    Held,
    /// None: what a child has after a fork.
    None,
}

/// Who sees what is stored to an area of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Sharing {
    /// `MAP_PRIVATE`: the program alone; a store copies the page.
    Private,
    /// `MAP_SHARED`: all who map or read the file, and the file.
    Shared,
}

/// Which page of a mapping is where in an area.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Layout {
    /// One after the other.
    Linear,
    /// Page-table entries say so ([`Mm::remap_file_pages`](crate::Mm::remap_file_pages)) where it is not what it would be otherwise.
    NonLinear,
}

/// Pages of a mapping that an area shows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FileArea {
    /// Of which mapping.
    pub mapping: MappingId,
    /// The page at the area's start.
    pub first_page: u32,
    /// Who sees stores.
    pub sharing: Sharing,
    /// Which page is where.
    pub layout: Layout,
}

impl FileArea {
    /// Pages from `first_page` on, one after the other.
    pub const fn new(mapping: MappingId, first_page: u32, sharing: Sharing) -> Self {
        Self {
            mapping,
            first_page,
            sharing,
            layout: Layout::Linear,
        }
    }

    /// The same, `pages` further.
    const fn skip(self, pages: u32) -> Self {
        Self {
            first_page: self.first_page + pages,
            ..self
        }
    }
}

impl Backing {
    /// Whether pages of it are the program's own.
    pub const fn is_anonymous(self) -> bool {
        matches!(self, Self::Anonymous(_) | Self::Stack { .. })
    }

    /// The pages of a mapping, if that is what is behind it.
    pub const fn file(self) -> Option<FileArea> {
        match self {
            Self::File(area) => Some(area),
            _ => None,
        }
    }
}

/// Whether pages of an area may leave memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Residence {
    /// When memory is short.
    Pageable,
    /// Never (`mlock`).
    Locked,
}

/// One area: addresses with the same rights and backing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vma {
    /// The addresses.
    pub range: VaRange,
    /// What programs may do there.
    pub prot: Prot,
    /// What is there.
    pub backing: Backing,
    /// Whether they may leave memory. A fork's child gets none that may not.
    pub residence: Residence,
    /// Leads from its anonymous pages to all who map them; it has none before it has such a page.
    pub anon_vma: Option<AnonVmaId>,
}

impl Vma {
    /// What a child gets of it: the same, without reservations.
    pub(crate) fn for_child(&self) -> Self {
        let backing = match self.backing {
            Backing::HugeTlb(_) => Backing::HugeTlb(Reserve::None),
            backing => backing,
        };
        let residence = Residence::Pageable;
        Self {
            backing,
            residence,
            ..*self
        }
    }

    /// The part of the area inside `range`, which overlaps it.
    pub(crate) fn part(&self, range: VaRange) -> Self {
        let range = self.range.intersection(range).unwrap_or(self.range);
        let backing = match self.backing {
            Backing::Physical(base) => Backing::Physical(base + self.page_offset(range.start())),
            Backing::File(area) => Backing::File(area.skip(self.page_offset(range.start()))),
            anonymous => anonymous,
        };
        Self {
            range,
            backing,
            ..*self
        }
    }

    /// The area joined with the one that starts at its end, when nothing tells them apart.
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let continues = match (self.backing, next.backing) {
            (Backing::Physical(base), Backing::Physical(other)) => {
                base.number() + self.page_offset(self.range.end()) == other.number()
            }
            (Backing::File(area), Backing::File(other)) => {
                area.skip(self.page_offset(self.range.end())) == other
            }
            (mine, other) => mine == other,
        };
        let kin = match (self.anon_vma, next.anon_vma) {
            (Some(mine), Some(other)) => mine == other,
            _ => true,
        };
        let alike = self.prot == next.prot && self.residence == next.residence && continues && kin;
        (self.range.end() == next.range.start() && alike).then(|| Self {
            range: VaRange::between(self.range.start(), next.range.end()),
            anon_vma: self.anon_vma.or(next.anon_vma),
            ..*self
        })
    }

    /// Where a linear area of a mapping shows a page, if it does.
    pub(crate) fn va_of_page(&self, area: FileArea, index: u32) -> Option<u64> {
        let pages = u64::from(index.checked_sub(area.first_page)?);
        let va = self.range.start() + (pages << PAGE_SHIFT);
        self.range.contains(va).then_some(va)
    }

    /// Pages from the area's start to an address in it.
    pub(crate) fn page_offset(&self, va: u64) -> u32 {
        u32::try_from((va - self.range.start()) >> PAGE_SHIFT).expect("user memory has 2^32 pages")
    }
}
