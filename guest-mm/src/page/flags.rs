//! What is known of an allocated page, a bit for each thing.

use core::fmt;

/// Properties of an allocated page, named like Linux' `PG_*` (Bovet & Cesati, "Understanding the Linux Kernel", 3rd ed., table 8-2).
///
/// Legal combinations: none (the kernel's own); `TABLE`; `SLAB`; `ANON` with `LOCKED` or `PINNED` or neither, with any of `LRU`,
/// `ACTIVE` or `CLEAN`, `REFERENCED` and `MLOCKED`, and with `SWAPCACHE` and the four of the disk (`DIRTY`, `UPTODATE`, `WRITEBACK`, `ERROR`);
/// `FILE` with any of those lists', `LOCKED`, `PRIVATE` and the four of the disk, but `DIRTY` and `WRITEBACK` only with `UPTODATE`.
/// `HUGETLB` alone, or with `ANON` and `LOCKED` or `PINNED` or neither. Everything but `Allocated` has none. There are 18 bits for them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PageFlags(pub(super) u32);

impl PageFlags {
    /// No property.
    pub const NONE: Self = Self(0);
    /// `PG_locked`: somebody has the page lock, and is taking its mappings away or putting others in their place.
    pub const LOCKED: Self = Self(1 << 0);
    /// Anonymous memory of processes: `mapping` and `index` lead to where it is mapped (Linux: bit 0 of `mapping`).
    pub const ANON: Self = Self(1 << 1);
    /// `PG_table`: a page table; `private` counts its used entries and `mapping` names its address space.
    pub const TABLE: Self = Self(1 << 2);
    /// Somebody holds the frame by its physical address (direct I/O, DMA): it cannot move until unpinned.
    pub const PINNED: Self = Self(1 << 3);
    /// `PG_slab`: a slab; `mapping`, `index`, `private` and the links are the slab allocator's.
    pub const SLAB: Self = Self(1 << 4);

    /// On a list of its zone, by `next` and `prev`.
    pub const LRU: Self = Self(1 << 5);
    /// On the active list, or was on it before it was isolated.
    pub const ACTIVE: Self = Self(1 << 6);
    /// In the swap cache: `private` is its slot, and the cache has a reference.
    pub const SWAPCACHE: Self = Self(1 << 7);
    /// `PG_dirty`, with `SWAPCACHE` or `FILE`: newer than what is on the disk.
    pub const DIRTY: Self = Self(1 << 8);
    /// `PG_uptodate`, with `SWAPCACHE` or `FILE`: it has its contents; without, they are being read, or could not be.
    pub const UPTODATE: Self = Self(1 << 9);
    /// `PG_writeback`, with `SWAPCACHE` or `FILE`: on its way to the disk.
    pub const WRITEBACK: Self = Self(1 << 10);
    /// `PG_error`, with `SWAPCACHE` or `FILE`: its contents could not be read, or not be written.
    pub const ERROR: Self = Self(1 << 11);

    /// A page of a mapping (Linux: `page->mapping` without its bit 0): `mapping` is the mapping's number, `index` the page of the
    /// file, and the mapping's tree has a reference.
    pub const FILE: Self = Self(1 << 12);
    /// `PG_private`, with `FILE`: `private` is the file system's, and there is one more reference for it.
    pub const PRIVATE: Self = Self(1 << 13);
    /// `PG_referenced`: used since somebody last asked; a second use makes the page an active one.
    pub const REFERENCED: Self = Self(1 << 14);
    /// `PG_mlocked`: an area that is locked in memory maps it, or it has no place but memory (ramfs), so reclaim leaves it alone.
    pub const MLOCKED: Self = Self(1 << 15);

    /// `PG_hugetlb`: of the pool of reserved huge pages, whether a program has it or not.
    pub const HUGETLB: Self = Self(1 << 16);

    /// On the list of inactive clean pages, or was on it before it was isolated (Linux 2.4, `PG_inactive_clean`).
    pub const CLEAN: Self = Self(1 << 17);

    /// All that there is room for.
    pub(super) const ALL: Self = Self((1 << 18) - 1);

    const NAMES: [(Self, &'static str); 18] = [
        (Self::LOCKED, "locked"),
        (Self::ANON, "anon"),
        (Self::TABLE, "table"),
        (Self::PINNED, "pinned"),
        (Self::SLAB, "slab"),
        (Self::LRU, "lru"),
        (Self::ACTIVE, "active"),
        (Self::SWAPCACHE, "swapcache"),
        (Self::DIRTY, "dirty"),
        (Self::UPTODATE, "uptodate"),
        (Self::WRITEBACK, "writeback"),
        (Self::ERROR, "error"),
        (Self::FILE, "file"),
        (Self::PRIVATE, "private"),
        (Self::REFERENCED, "referenced"),
        (Self::MLOCKED, "mlocked"),
        (Self::HUGETLB, "hugetlb"),
        (Self::CLEAN, "clean"),
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
        let listed = Self::LRU
            .with(if self.has(Self::ACTIVE) {
                Self::ACTIVE
            } else {
                Self::CLEAN
            })
            .with(Self::REFERENCED)
            .with(Self::MLOCKED);
        let on_disk = Self::DIRTY
            .with(Self::UPTODATE)
            .with(Self::WRITEBACK)
            .with(Self::ERROR);
        if self.has(Self::HUGETLB) {
            let other = Self::ANON.with(Self::HUGETLB);
            return self.0 == Self::HUGETLB.0
                || self.0 == other.0
                || self.0 == other.with(Self::LOCKED).0
                || self.0 == other.with(Self::PINNED).0;
        }
        if self.has(Self::FILE) {
            let other = listed.with(on_disk).with(Self::LOCKED).with(Self::PRIVATE);
            let is_newer = self.has(Self::DIRTY) || self.has(Self::WRITEBACK);
            return self.without(other).0 == Self::FILE.0 && (self.has(Self::UPTODATE) || !is_newer);
        }
        let cached = if self.has(Self::SWAPCACHE) {
            on_disk.with(Self::SWAPCACHE)
        } else {
            Self::NONE
        };
        let other = Self::PINNED.with(Self::LOCKED).with(listed).with(cached);
        let anon = self.without(other).0 == Self::ANON.0;
        self.0 == Self::NONE.0
            || self.0 == Self::TABLE.0
            || self.0 == Self::SLAB.0
            || (anon && !self.has(Self::PINNED.with(Self::LOCKED)))
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
