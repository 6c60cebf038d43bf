//! Address spaces made and taken down.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use guest_sync::Cpu;

use crate::frames::{Flush, Frames, Mmu, SpaceId};
use crate::mm::gather::Gather;
use crate::mm::{AddressSpace, Locked, Mm, Vma};
use crate::pagetable::{Entry, Level, MapError, TablePlace, VaRange};

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
    /// A page of it is being migrated: try again after [`Mm::until_settled`].
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

impl<F: Frames, M: Mmu> Mm<'_, F, M> {
    /// A new address space with nothing in it but the fixed mappings.
    ///
    /// # Errors
    /// When a table cannot be had, or two fixed mappings meet.
    pub fn create_space(&self, cpu: &Cpu, fixed: &[FixedMapping]) -> Result<SpaceId, MapError> {
        let space = self.empty_space(cpu)?;
        let id = space.id();
        let mut locked = space.lock();
        for mapping in fixed {
            if let Err(error) = self.add_fixed(cpu, &mut locked, mapping) {
                self.discard_space(cpu, &mut locked);
                return Err(error);
            }
        }
        drop(locked);
        self.spaces.insert(Arc::new(space));
        Ok(id)
    }

    /// An address space that nobody can find yet.
    pub(crate) fn empty_space(&self, cpu: &Cpu) -> Result<AddressSpace, MapError> {
        let space = self.spaces.reserve();
        match self.tables(cpu).new_table(space, TablePlace::ROOT) {
            Ok(root) => Ok(AddressSpace::new(space, root)),
            Err(error) => {
                self.spaces.release(space);
                Err(error)
            }
        }
    }

    /// Frees an address space with all its pages and tables. No CPU may be using it.
    ///
    /// # Errors
    /// When there is none, or a page of it is being migrated.
    pub fn destroy_space(&self, cpu: &Cpu, id: SpaceId) -> Result<(), SpaceError> {
        let found = self.spaces.find(id).ok_or(SpaceError::Unknown(id))?;
        let mut space = found.lock();
        if space.migrating > 0 {
            return Err(SpaceError::Migrating(id));
        }
        space.has_ended = true;
        self.empty(cpu, &mut space);
        self.free_space(cpu, &mut space);
        drop(space);
        self.spaces.release(id);
        Ok(())
    }

    /// Takes all areas and pages out.
    fn empty(&self, cpu: &Cpu, space: &mut Locked<'_>) {
        let areas: Vec<Vma> = space.vmas.values().copied().collect();
        for area in areas {
            space.cut(area.range);
            self.zap_area(cpu, space, &area);
        }
        space.leave_unused(&self.anon_vmas, &self.mappings);
    }

    /// Frees what is left of a space without pages: fixed leaves are forgotten, tables freed.
    fn free_space(&self, cpu: &Cpu, space: &mut Locked<'_>) {
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
        gather.finish(self.tables(cpu), &self.mmu);
    }

    fn add_fixed(&self, cpu: &Cpu, space: &mut Locked<'_>, mapping: &FixedMapping) -> Result<(), MapError> {
        let (va, level, entry) = match *mapping {
            FixedMapping::Root { index, entry } => {
                (u64::from(index) * Level::ROOT.entry_bytes(), Level::ROOT, entry)
            }
            FixedMapping::Leaf { va, entry } if entry.has(Entry::HUGE) => (va, Level::HUGE, entry),
            FixedMapping::Leaf { va, entry } => (va, Level::PAGE, entry),
        };
        let slot = self.tables(cpu).ensure(space.table, va, level)?;
        if !Entry::from_bits(self.frames.read(slot.table, slot.index)).is_empty() {
            return Err(MapError::Occupied { va });
        }
        self.tables(cpu)
            .set(slot, entry.with(Entry::FIXED | Entry::PRESENT));
        let va = va / level.entry_bytes() * level.entry_bytes();
        space.fixed.push(VaRange::between(va, va + level.entry_bytes()));
        Ok(())
    }

    /// The fixed mappings of an address space, as they would be asked for.
    pub(crate) fn fixed_mappings(&self, space: &Locked<'_>) -> Vec<FixedMapping> {
        let mapping = |range: &VaRange| {
            let va = range.start();
            if range.bytes() < Level::ROOT.entry_bytes() {
                let entry = space.table.find(&self.frames, va).entry;
                return FixedMapping::Leaf { va, entry };
            }
            let index = Level::ROOT.index(va);
            let entry = Entry::from_bits(self.frames.read(space.table.root, index));
            let index = u16::try_from(index).expect("a table has 512 entries");
            FixedMapping::Root { index, entry }
        };
        space.fixed.iter().map(mapping).collect()
    }

    /// Gives an address space the fixed mappings of another one.
    pub(crate) fn copy_fixed(
        &self,
        cpu: &Cpu,
        from: &Locked<'_>,
        to: &mut Locked<'_>,
    ) -> Result<(), MapError> {
        let mappings = self.fixed_mappings(from);
        mappings
            .iter()
            .try_for_each(|mapping| self.add_fixed(cpu, to, mapping))
    }

    /// Takes an address space down that was found wanting while it was made: nobody has run in it, and its lock was
    /// never let go.
    pub(crate) fn discard_space(&self, cpu: &Cpu, space: &mut Locked<'_>) {
        space.has_ended = true;
        self.empty(cpu, space);
        self.free_space(cpu, space);
        self.spaces.release(space.id());
    }
}
