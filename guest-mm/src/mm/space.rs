//! An address space (Linux `mm_struct`): its areas and its page tables.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::num::NonZeroU32;

use crate::frames::SpaceId;
use crate::mm::Vma;
use crate::pagetable::{PageTable, VaRange};
use crate::pfn::PAGE_SIZE;

/// Lowest address of user memory: the first 64 KiB stay unmapped, so that a null pointer with an offset faults.
pub const USER_START: u64 = 0x1_0000;

/// Where areas without a wish are placed first.
const MMAP_BASE: u64 = 1 << 32;

/// Areas and tables of one program.
#[derive(Debug)]
pub struct AddressSpace {
    pub(crate) table: PageTable,
    /// Areas by their first address; they do not overlap, and neighbours that could be one are one.
    pub(crate) vmas: BTreeMap<u64, Vma>,
    /// Addresses in user memory that belong to the kernel.
    pub(crate) fixed: Vec<VaRange>,
    /// Anonymous frames mapped.
    pub(crate) rss_pages: u64,
    /// Migration entries in the tables.
    pub(crate) migrating: u32,
    /// Where the search for room goes on.
    next_place: u64,
}

impl AddressSpace {
    pub(crate) fn new(table: PageTable) -> Self {
        Self {
            table,
            vmas: BTreeMap::new(),
            fixed: Vec::new(),
            rss_pages: 0,
            migrating: 0,
            next_place: MMAP_BASE,
        }
    }

    /// The frame of the root table, for CR3.
    pub const fn root(&self) -> crate::Pfn {
        self.table.root
    }

    /// Anonymous frames mapped; a huge page counts 512.
    pub const fn rss_pages(&self) -> u64 {
        self.rss_pages
    }

    /// The area that contains the address, or the first one after it (Linux `find_vma`).
    pub fn find_vma(&self, va: u64) -> Option<&Vma> {
        let below = self.vmas.range(..=va).next_back().map(|(_, vma)| vma);
        below
            .filter(|vma| vma.range.contains(va))
            .or_else(|| Some(self.vmas.range(va..).next()?.1))
    }

    /// The area that contains the address.
    pub fn vma_at(&self, va: u64) -> Option<&Vma> {
        self.find_vma(va).filter(|vma| vma.range.contains(va))
    }

    /// The areas, lowest address first.
    pub fn vmas(&self) -> impl Iterator<Item = &Vma> {
        self.vmas.values()
    }

    /// Whether nothing is in the range.
    pub(crate) fn is_free(&self, range: VaRange) -> bool {
        range.start() >= USER_START
            && self.fixed.iter().all(|fixed| fixed.intersection(range).is_none())
            && self
                .find_vma(range.start())
                .is_none_or(|vma| vma.range.start() >= range.end())
    }

    /// A free place for `bytes`, aligned to `align`: after the last one, or else from the bottom.
    pub(crate) fn find_place(&mut self, bytes: u64, align: u64) -> Option<VaRange> {
        let place = self.place_from(self.next_place, bytes, align);
        let place = place.or_else(|| self.place_from(USER_START, bytes, align))?;
        self.next_place = place.end();
        Some(place)
    }

    fn place_from(&self, mut va: u64, bytes: u64, align: u64) -> Option<VaRange> {
        loop {
            va = va.checked_next_multiple_of(align)?;
            let range = VaRange::new(va, bytes)?;
            let fixed = self
                .fixed
                .iter()
                .filter_map(|fixed| Some((fixed, fixed.intersection(range)?)));
            let vma = self.find_vma(va).filter(|vma| vma.range.start() < range.end());
            let blocked = fixed
                .map(|(fixed, _)| fixed.end())
                .chain(vma.map(|vma| vma.range.end()))
                .max();
            match blocked {
                None => return Some(range),
                Some(end) => va = end,
            }
        }
    }

    /// Adds an area where nothing is, joined with its neighbours where possible.
    pub(crate) fn insert(&mut self, mut vma: Vma) {
        if let Some((&start, below)) = self.vmas.range(..vma.range.start()).next_back()
            && let Some(joined) = below.joined(&vma)
        {
            self.vmas.remove(&start);
            vma = joined;
        }
        if let Some(above) = self.vmas.get(&vma.range.end())
            && let Some(joined) = vma.joined(above)
        {
            self.vmas.remove(&vma.range.end());
            vma = joined;
        }
        self.vmas.insert(vma.range.start(), vma);
    }

    /// Takes everything inside the range out of the areas; returns what was there.
    pub(crate) fn cut(&mut self, range: VaRange) -> Vec<Vma> {
        let mut parts = Vec::new();
        while let Some(&vma) = self
            .find_vma(range.start())
            .filter(|vma| vma.range.start() < range.end())
        {
            self.vmas.remove(&vma.range.start());
            for rest in [
                VaRange::between(vma.range.start(), range.start()),
                VaRange::between(range.end(), vma.range.end()),
            ] {
                if rest.start() < rest.end() {
                    let part = vma.part(rest);
                    self.vmas.insert(part.range.start(), part);
                }
            }
            parts.push(vma.part(range));
        }
        parts
    }
}

/// All address spaces by number.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    places: Vec<Option<Box<AddressSpace>>>,
}

impl Spaces {
    /// The address space, if it exists.
    pub(crate) fn space(&self, id: SpaceId) -> Option<&AddressSpace> {
        self.places.get(place(id))?.as_deref()
    }

    pub(crate) fn space_mut(&mut self, id: SpaceId) -> Option<&mut AddressSpace> {
        self.places.get_mut(place(id))?.as_deref_mut()
    }

    /// The number that the next space gets.
    pub(crate) fn vacant(&mut self) -> SpaceId {
        let free = self.places.iter().position(Option::is_none).unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        let number = u32::try_from(free + 1).ok().and_then(NonZeroU32::new);
        SpaceId(number.expect("every space holds a frame of its own, and frames are counted in 32 bits"))
    }

    pub(crate) fn insert(&mut self, space: AddressSpace) {
        let id = space.table.space;
        self.places[place(id)] = Some(Box::new(space));
    }

    pub(crate) fn remove(&mut self, id: SpaceId) -> Option<Box<AddressSpace>> {
        self.places.get_mut(place(id))?.take()
    }

    /// Numbers of all address spaces.
    pub(crate) fn ids(&self) -> impl Iterator<Item = SpaceId> {
        self.places.iter().flatten().map(|space| space.table.space)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &AddressSpace> {
        self.places.iter().flatten().map(|space| &**space)
    }
}

const fn place(id: SpaceId) -> usize {
    id.number() as usize - 1
}

const _: () = assert!(USER_START.is_multiple_of(PAGE_SIZE));
