//! Virtual memory: all address spaces over all physical memory.
//!
//! [`Mm`] owns everything, so that a page found in a block can be followed to the address space that maps it. Its
//! methods do a bounded piece of work and return; whoever must wait does so between two calls.

mod fault;
mod gather;
mod huge;
mod map;
mod space;
mod user;
mod vma;

use alloc::vec::Vec;
use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Flush, Frames, Mmu, SpaceId};
use crate::page::PageFlags;
use crate::pagetable::{Entry, Level, MapError, PageTable, Tables, VaRange};
use crate::pfn::{Order, PAGE_BYTES, PAGE_SHIFT, PAGE_SIZE, PAGEBLOCK_SIZE, Pfn};
use crate::phys::PhysicalMemory;
use gather::Gather;

pub use fault::{FaultError, FaultOutcome};
pub use map::{MapRequest, MmapError, Place};
pub(crate) use space::Spaces;
pub use space::{AddressSpace, USER_START};
pub use user::CopyError;
pub use vma::{Backing, HugeAdvice, Prot, Vma};

/// Physical and virtual memory of the guest, over the machine's frames `F` and translation caches `M`.
#[derive(Debug)]
pub struct Mm<'m, F, M> {
    /// Frames and blocks.
    pub phys: &'m PhysicalMemory<'m>,
    /// Contents of frames.
    pub frames: F,
    /// Translation caches.
    pub mmu: M,
    pub(crate) spaces: Spaces,
    pub(crate) fault_around: Order,
}

/// Something of the kernel's that every program's address space contains: the nucleus, above all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FixedMapping {
    /// An entry of the root table as it is: it leads to tables that several spaces share.
    Root {
        /// Index in the root table, 0 to 511.
        index: u16,
        /// Present entry.
        entry: Entry,
    },
    /// A leaf of 4 KiB or (with [`Entry::HUGE`]) 2 MiB.
    Leaf {
        /// Virtual address; the leaf is the one that covers it.
        va: u64,
        /// Present entry; without [`Entry::USER`] programs cannot reach it.
        entry: Entry,
    },
}

/// There is no such address space, or it cannot go yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpaceError {
    /// No address space has that number.
    Unknown(SpaceId),
    /// A page of it is being migrated: try again when the batch is finished.
    Migrating(SpaceId),
}

impl fmt::Display for SpaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(id) => write!(f, "no address space {}", id.number()),
            Self::Migrating(id) => write!(f, "a page of address space {} is being migrated", id.number()),
        }
    }
}

impl core::error::Error for SpaceError {}

impl<'m, F: Frames, M: Mmu> Mm<'m, F, M> {
    /// No address spaces yet, over memory that may already be in use by the kernel.
    pub fn new(phys: &'m PhysicalMemory<'m>, frames: F, mmu: M) -> Self {
        let fault_around = Order::new(4).expect("16 pages");
        Self {
            phys,
            frames,
            mmu,
            spaces: Spaces::default(),
            fault_around,
        }
    }

    /// How much one fault maps where no huge page is possible: the aligned 2^order pages around the address, as far
    /// as the area goes. 4 (64 KiB) at first; at most 9.
    pub fn set_fault_around(&mut self, order: Order) {
        self.fault_around = order.min(Order::PAGEBLOCK);
    }

    /// The address space, if it exists.
    pub fn space(&self, id: SpaceId) -> Option<&AddressSpace> {
        self.spaces.space(id)
    }

    /// Numbers of all address spaces.
    pub fn space_ids(&self) -> impl Iterator<Item = SpaceId> {
        self.spaces.ids()
    }

    /// A new address space with nothing in it but the fixed mappings.
    ///
    /// # Errors
    /// When a table cannot be had, or two fixed mappings meet.
    pub fn create_space(&mut self, cpu: &Cpu, fixed: &[FixedMapping]) -> Result<SpaceId, MapError> {
        let id = self.spaces.vacant();
        let root = self.tables(cpu).new_table(id)?;
        let mut space = AddressSpace::new(PageTable { root, space: id });
        for mapping in fixed {
            if let Err(error) = self.add_fixed(cpu, &mut space, mapping) {
                self.free_space(cpu, &space);
                return Err(error);
            }
        }
        self.spaces.insert(space);
        Ok(id)
    }

    /// Frees an address space with all its pages and tables. No CPU may be using it.
    ///
    /// # Errors
    /// When there is none, or a page of it is being migrated.
    pub fn destroy_space(&mut self, cpu: &Cpu, id: SpaceId) -> Result<(), SpaceError> {
        let space = self.spaces.space(id).ok_or(SpaceError::Unknown(id))?;
        if space.migrating > 0 {
            return Err(SpaceError::Migrating(id));
        }
        let ranges: Vec<VaRange> = space.vmas().map(|vma| vma.range).collect();
        for range in ranges {
            self.zap(cpu, id, range);
        }
        let space = self.spaces.remove(id).expect("looked up above");
        self.free_space(cpu, &space);
        Ok(())
    }

    /// Frees what is left of a space without pages: fixed leaves are forgotten, tables freed.
    fn free_space(&mut self, cpu: &Cpu, space: &AddressSpace) {
        let table = space.table;
        let mut gather = Gather::default();
        for fixed in &space.fixed {
            let mut va = fixed.start();
            while va < fixed.end() {
                let found = table.find(&self.frames, va);
                va = found.end_of(va);
                if found.entry.has(Entry::FIXED) && found.level < Level::ROOT {
                    self.tables(cpu).set(found.slot, Entry::EMPTY);
                    self.prune_later(cpu, table, va - 1, &mut gather);
                }
            }
        }
        gather.flush_later(Flush {
            space: table.space,
            root: table.root,
            va: 0,
            nr_pages: 1 << 36,
        });
        gather.free_table_later(table.root);
        gather.finish(
            Tables {
                frames: &self.frames,
                phys: self.phys,
                cpu,
            },
            &mut self.mmu,
        );
    }

    fn add_fixed(
        &mut self,
        cpu: &Cpu,
        space: &mut AddressSpace,
        mapping: &FixedMapping,
    ) -> Result<(), MapError> {
        let (va, level, entry) = match *mapping {
            FixedMapping::Root { index, entry } => {
                (u64::from(index) * Level::ROOT.entry_bytes(), Level::ROOT, entry)
            }
            FixedMapping::Leaf { va, entry } if entry.has(Entry::HUGE) => (va, Level::HUGE, entry),
            FixedMapping::Leaf { va, entry } => (va, Level::PAGE, entry),
        };
        let mut tables = self.tables(cpu);
        let slot = tables.ensure(space.table, va, level)?;
        if !Entry::from_bits(tables.frames.read(slot.table, slot.index)).is_empty() {
            return Err(MapError::Occupied { va });
        }
        tables.set(slot, entry.with(Entry::FIXED | Entry::PRESENT));
        space.fixed.push(VaRange::between(va, va + level.entry_bytes()));
        Ok(())
    }

    /// Unmaps everything in a range: pages are freed after one flush for many.
    fn zap(&mut self, cpu: &Cpu, id: SpaceId, range: VaRange) {
        let Some(table) = self.spaces.space(id).map(|space| space.table) else {
            return;
        };
        let mut gather = Gather::default();
        let mut va = range.start();
        while va < range.end() {
            let found = table.find(&self.frames, va);
            let next = found.end_of(va).min(range.end());
            if found.level > Level::HUGE || found.entry.is_empty() && found.level == Level::HUGE {
                va = next;
                continue;
            }
            if found.level == Level::HUGE {
                self.zap_leaf(cpu, id, found.slot, va, &mut gather);
            } else {
                // The rest of this page table without walking down to it again for each entry.
                let end = ((va / PAGEBLOCK_SIZE + 1) * PAGEBLOCK_SIZE).min(range.end());
                for page in (va..end).step_by(PAGE_BYTES) {
                    let slot = crate::pagetable::Slot {
                        index: Level::PAGE.index(page),
                        ..found.slot
                    };
                    self.zap_leaf(cpu, id, slot, page, &mut gather);
                }
                va = end - PAGE_SIZE;
            }
            self.prune_later(cpu, table, va, &mut gather);
            va = if found.level == Level::HUGE {
                next
            } else {
                va + PAGE_SIZE
            };
            if gather.is_full() {
                gather.finish(
                    Tables {
                        frames: &self.frames,
                        phys: self.phys,
                        cpu,
                    },
                    &mut self.mmu,
                );
            }
        }
        gather.finish(
            Tables {
                frames: &self.frames,
                phys: self.phys,
                cpu,
            },
            &mut self.mmu,
        );
    }

    fn zap_leaf(
        &mut self,
        cpu: &Cpu,
        id: SpaceId,
        slot: crate::pagetable::Slot,
        va: u64,
        gather: &mut Gather,
    ) {
        if self.frames.read(slot.table, slot.index) == 0 {
            return;
        }
        let old = self.tables(cpu).set(slot, Entry::EMPTY);
        let nr_pages = if old.has(Entry::HUGE) {
            Order::PAGEBLOCK.nr_pages()
        } else {
            1
        };
        let space = self.spaces.space_mut(id).expect("zap looked it up");
        let root = space.table.root;
        gather.flush_later(Flush {
            space: id,
            root,
            va,
            nr_pages: u64::from(nr_pages),
        });
        if old.has(Entry::FIXED) {
            return;
        }
        space.rss_pages -= u64::from(nr_pages);
        let page = self.phys.page(old.pfn()).expect("a mapped page is online");
        debug_assert!(page.flags().has(PageFlags::ANON) && page.mapcount() == 1);
        page.set_mapcount(0);
        gather.put_later(old.pfn());
    }

    fn prune_later(&mut self, cpu: &Cpu, table: PageTable, va: u64, gather: &mut Gather) {
        for emptied in self.tables(cpu).prune(table, va).iter() {
            gather.free_table_later(emptied);
        }
    }

    /// Makes a frame that was just allocated the page of a process at an address.
    pub(crate) fn set_anon(&mut self, pfn: Pfn, id: SpaceId, va: u64) {
        let page = self.phys.page(pfn).expect("just allocated");
        page.set_mapcount(1);
        page.set_mapping(id.number());
        page.set_index(u32::try_from(va >> PAGE_SHIFT).expect("user memory has 2^32 pages"));
        page.add_flags(PageFlags::ANON);
    }

    pub(crate) fn tables<'a>(&'a mut self, cpu: &'a Cpu) -> Tables<'a, F> {
        Tables {
            frames: &self.frames,
            phys: self.phys,
            cpu,
        }
    }
}
