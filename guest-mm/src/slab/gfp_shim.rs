//! Flags of a request for frames (Linux `gfp_t`), as far as slabs have to do with them.

/// Flags of a request for frames.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Gfp(u16);

impl Gfp {
    /// Nothing special.
    pub const NONE: Self = Self(0);
    /// Memory that old devices reach.
    pub const DMA: Self = Self(1 << 0);
    /// Memory below 4 GiB.
    pub const DMA32: Self = Self(1 << 1);
    /// Memory that is not mapped: never for slabs.
    pub const HIGHMEM: Self = Self(1 << 2);
    /// Memory that moves: never for slabs.
    pub const MOVABLE: Self = Self(1 << 3);
    /// Memory that a shrinker gives back.
    pub const RECLAIMABLE: Self = Self(1 << 4);
    /// May use the reserve.
    pub const HIGH: Self = Self(1 << 5);
    /// May wait.
    pub const WAIT: Self = Self(1 << 6);
    /// This node or none.
    pub const THIS_NODE: Self = Self(1 << 9);
    /// The kernel's own data.
    pub const KERNEL: Self = Self::WAIT;
    /// The same, for a caller that cannot wait.
    pub const ATOMIC: Self = Self::HIGH;

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
}
