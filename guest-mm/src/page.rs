//! The page descriptor: what is known of each frame (Linux `struct page`).
//!
//! Descriptors live in one array per section and are linked by 32-bit numbers, not pointers. An all-zero
//! descriptor is a valid one ([`PageState::Tail`]), and only the first frame of a chunk says what the chunk is:
//! taking or freeing 2 MiB touches one descriptor, not 512.

use core::fmt;

use crate::frames::SpaceId;
use crate::pfn::Order;

/// End of a list of descriptors.
pub(crate) const NO_LINK: u32 = u32::MAX;

/// What a frame is; exactly one at any time.
///
/// Two more states are properties of the place and not of the descriptor: a free frame in a block that is going
/// offline is *isolated* (nobody can get it), and a frame without a descriptor is *offline*.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(u8)]
pub enum PageState {
    /// Not the first frame of its chunk: whatever the head of the chunk is. All other fields are zero.
    #[default]
    Tail = 0,
    /// First frame of a free chunk of `order`, on exactly one free list.
    Free = 1,
    /// First frame of an allocated chunk of `order`.
    Allocated = 2,
    /// Kernel image, boot data, firmware: exists, never given out, never freed.
    Reserved = 3,
    /// No memory here: a hole in a boot region.
    Hole = 4,
}

/// Properties of an allocated page, named like Linux' `PG_*` (table 8-2 of the seed text).
///
/// Legal combinations: none (the kernel's own); `TABLE`; `ANON`; `ANON | LOCKED`; each of those with `ANON` also
/// with `PINNED`. Everything but `Allocated` has none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageFlags(u16);

impl PageFlags {
    /// No property.
    pub const NONE: Self = Self(0);
    /// `PG_locked`: being migrated; its contents are copied right now and its translation is a migration entry.
    pub const LOCKED: Self = Self(1 << 0);
    /// Anonymous memory of a process: `mapping` and `index` say where it is mapped (Linux: bit 0 of `mapping`).
    pub const ANON: Self = Self(1 << 1);
    /// `PG_table`: a page table; `private` counts its used entries and `mapping` names its address space.
    pub const TABLE: Self = Self(1 << 2);
    /// Somebody holds the frame by its physical address (direct I/O, DMA): it cannot move until unpinned.
    pub const PINNED: Self = Self(1 << 3);

    const NAMES: [(Self, &'static str); 4] = [
        (Self::LOCKED, "locked"),
        (Self::ANON, "anon"),
        (Self::TABLE, "table"),
        (Self::PINNED, "pinned"),
    ];

    /// Whether all of `flags` are set.
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those of `flags`.
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// These without those of `flags`.
    #[must_use]
    pub const fn without(self, flags: Self) -> Self {
        Self(self.0 & !flags.0)
    }

    /// Whether the combination is one of the legal ones for an allocated page.
    pub const fn is_legal(self) -> bool {
        let rest = self.without(Self::PINNED);
        (rest.0 == Self::NONE.0 && !self.has(Self::PINNED))
            || (rest.0 == Self::TABLE.0 && !self.has(Self::PINNED))
            || rest.0 == Self::ANON.0
            || (rest.0 == Self::ANON.with(Self::LOCKED).0 && !self.has(Self::PINNED))
    }
}

impl fmt::Debug for PageFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = f.debug_set();
        for (flag, name) in Self::NAMES {
            if self.has(flag) {
                list.entry(&format_args!("{name}"));
            }
        }
        list.finish()
    }
}

/// Descriptor of one page frame.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// References to the chunk, at its head: 0 when free, reserved, hole or tail; else one for the owner (the kernel
    /// or the mapping), and one for each pin.
    pub(crate) _count: u32,
    /// Page-table entries that map the chunk, at its head: 0 for all but `ANON` pages; 1 for a mapped `ANON` page,
    /// also while a migration entry stands for it; 0 for one that was unmapped while pinned.
    pub(crate) _mapcount: u32,
    /// Properties; none unless `Allocated`.
    pub(crate) flags: PageFlags,
    /// What the frame is.
    pub(crate) state: PageState,
    /// Order of the chunk at the head of a free or allocated chunk; 0 otherwise.
    pub(crate) order: u8,
    /// `ANON` and `TABLE`: number of the address space. Otherwise 0.
    pub(crate) mapping: u32,
    /// `ANON`: virtual address divided by 4096; user addresses end at 16 TiB so that it fits. Otherwise 0.
    pub(crate) index: u32,
    /// `TABLE`: entries in use, 0..=512. Otherwise 0.
    pub(crate) private: u32,
    /// `Free`: next chunk of the free list as the frame's offset in its section, or [`NO_LINK`]. Otherwise 0.
    pub(crate) next: u32,
    /// `Free`: previous chunk of the free list, or [`NO_LINK`]. Otherwise 0.
    pub(crate) prev: u32,
}

const _: () = assert!(size_of::<Page>() <= 32, "goals.md: at most 32 bytes a page");

impl Page {
    /// What the frame is, as its own descriptor says (a tail is what its head is).
    pub const fn state(&self) -> PageState {
        self.state
    }

    /// Properties of an allocated page.
    pub const fn flags(&self) -> PageFlags {
        self.flags
    }

    /// Order of the chunk whose head this is.
    pub fn order(&self) -> Order {
        Order::new(self.order).expect("the field is only ever written from an Order")
    }

    /// References: 0 when nobody uses the frame.
    pub const fn count(&self) -> u32 {
        self._count
    }

    /// Page-table entries that map it.
    pub const fn mapcount(&self) -> u32 {
        self._mapcount
    }

    /// Where an anonymous page is mapped: its address space and virtual address. `None` for any other page.
    pub fn anon_mapping(&self) -> Option<(SpaceId, u64)> {
        if !self.flags.has(PageFlags::ANON) {
            return None;
        }
        let space = core::num::NonZeroU32::new(self.mapping)?;
        Some((SpaceId(space), u64::from(self.index) << crate::pfn::PAGE_SHIFT))
    }

    /// A descriptor with nothing but a state: `Tail`, `Reserved` or `Hole`.
    pub(crate) fn blank(state: PageState) -> Self {
        Self {
            state,
            ..Self::default()
        }
    }

    /// The head of a chunk just allocated: one reference, no properties.
    pub(crate) fn allocated(order: Order) -> Self {
        Self {
            state: PageState::Allocated,
            order: order.number(),
            _count: 1,
            ..Self::default()
        }
    }
}
