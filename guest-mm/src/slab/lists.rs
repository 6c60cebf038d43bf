//! A cache's slabs on one node: three lists by how full they are (Linux `struct kmem_list3`), linked through the slab
//! descriptors.

use super::head::{Fill, head};
use super::source::SlabSource;
use crate::pfn::Pfn;

/// Which list a slab is on; its fill decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fullness {
    /// All objects taken.
    Full,
    /// Some taken, some free.
    Partial,
    /// No object taken.
    Free,
}

impl Fullness {
    pub(crate) const ALL: [Self; 3] = [Self::Full, Self::Partial, Self::Free];

    pub(crate) const fn of(fill: Fill, nr_objects: u16) -> Self {
        match fill.taken {
            0 => Self::Free,
            taken if taken == nr_objects => Self::Full,
            _ => Self::Partial,
        }
    }
}

/// First and number of the slabs on a list.
#[derive(Clone, Copy, Default, Debug)]
struct List {
    first: Option<Pfn>,
    nr_slabs: u32,
}

/// The slabs of one cache on one node.
#[derive(Default, Debug)]
pub(crate) struct NodeLists {
    lists: [List; 3],
    /// Objects in all these slabs that are not taken.
    pub(crate) free_objects: u64,
    /// Colour of the next slab.
    next_colour: u32,
    /// A free slab was put to use since the last look: the cache is growing, and its free slabs are spared.
    pub(crate) free_touched: bool,
}

impl NodeLists {
    /// The first slab of a list.
    pub(crate) fn first(&self, list: Fullness) -> Option<Pfn> {
        self.lists[list as usize].first
    }

    /// Slabs on a list.
    pub(crate) fn nr_slabs(&self, list: Fullness) -> u32 {
        self.lists[list as usize].nr_slabs
    }

    /// Puts a slab at the head of a list.
    pub(crate) fn insert(&mut self, source: &impl SlabSource, list: Fullness, slab: Pfn) {
        let list = &mut self.lists[list as usize];
        let fields = head(source, slab);
        fields.set_listed();
        fields.set_prev(None);
        fields.set_next(list.first);
        if let Some(next) = list.first {
            head(source, next).set_prev(Some(slab));
        }
        list.first = Some(slab);
        list.nr_slabs += 1;
    }

    /// Takes a slab off the list that it is on.
    pub(crate) fn remove(&mut self, source: &impl SlabSource, list: Fullness, slab: Pfn) {
        let list = &mut self.lists[list as usize];
        let fields = head(source, slab);
        let (next, prev) = (fields.next(), fields.prev());
        fields.set_unlisted();
        match prev {
            Some(prev) => head(source, prev).set_next(next),
            None => {
                assert!(
                    list.first == Some(slab),
                    "slab at {slab} is not on the list of its fill"
                );
                list.first = next;
            }
        }
        if let Some(next) = next {
            head(source, next).set_prev(prev);
        }
        list.nr_slabs -= 1;
    }

    /// The colour of a new slab: they take turns.
    pub(crate) fn take_colour(&mut self, nr_colours: u32) -> u32 {
        let colour = self.next_colour;
        self.next_colour = (colour + 1) % nr_colours;
        colour
    }
}

/// Slabs that are on no list any more and to be destroyed when no lock is held, linked by `next`.
#[derive(Default, Debug)]
pub(crate) struct Doomed(Option<Pfn>);

impl Doomed {
    pub(crate) fn add(&mut self, source: &impl SlabSource, slab: Pfn) {
        head(source, slab).set_next(self.0);
        self.0 = Some(slab);
    }

    pub(crate) fn pop(&mut self, source: &impl SlabSource) -> Option<Pfn> {
        let slab = self.0?;
        self.0 = head(source, slab).next();
        Some(slab)
    }
}
