//! One node, and all below it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::Tag;

/// Bits of the index that choose a slot.
const BITS: u32 = 6;
/// Slots of a node: as many as a tag word has bits.
const SLOTS: usize = 1 << BITS;

/// Which bits of the index a node looks at: its level, 0 for leaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Fanout(u8);

impl Fanout {
    const LEAF: Self = Self(0);

    /// Of the lowest tree in which `index` has a place.
    pub(super) const fn for_index(index: u32) -> Self {
        let mut level = Self::LEAF;
        while !level.covers(index) {
            level = level.above();
        }
        level
    }

    const fn above(self) -> Self {
        Self(self.0 + 1)
    }

    const fn below(self) -> Self {
        Self(self.0 - 1)
    }

    const fn shift(self) -> u32 {
        self.0 as u32 * BITS
    }

    /// Whether a tree whose top is at this level has a place for `index`.
    const fn covers(self, index: u32) -> bool {
        (index as u64) < 1 << (self.shift() + BITS)
    }

    const fn slot(self, index: u32) -> usize {
        (index >> self.shift()) as usize % SLOTS
    }

    /// `index` with `slot` at this level, and zeroes below.
    fn first_of(self, index: u32, slot: usize) -> u32 {
        let above = u64::from(index) >> (self.shift() + BITS) << (self.shift() + BITS);
        let first = above | (slot as u64) << self.shift();
        u32::try_from(first).expect("a slot in use stands for indices that exist")
    }
}

/// Slots with at least one in use, but while it is being built or taken apart.
#[derive(Debug)]
pub(super) struct Node<T> {
    level: Fanout,
    /// Which slots are in use.
    used: u64,
    /// For each tag, in which slots there is a value with it.
    tags: [u64; Tag::COUNT],
    slots: Slots<T>,
}

#[derive(Debug)]
enum Slots<T> {
    Values(Box<[Option<T>]>),
    Nodes(Box<[Option<Node<T>>]>),
}

impl<T: Copy> Node<T> {
    /// A node without values. `None` if there is no memory.
    fn empty(level: Fanout) -> Option<Self> {
        let slots = if level == Fanout::LEAF {
            Slots::Values(boxed()?)
        } else {
            Slots::Nodes(boxed()?)
        };
        Some(Self {
            level,
            used: 0,
            tags: [0; Tag::COUNT],
            slots,
        })
    }

    /// A node with one value. `None` if there is no memory.
    pub(super) fn chain(level: Fanout, index: u32, value: T) -> Option<Self> {
        let mut node = Self::empty(level)?;
        node.insert(index, value)?;
        Some(node)
    }

    /// A tree of one more level with `root` as its first part; `root` again if there is no memory.
    pub(super) fn above(root: Self) -> Result<Self, Self> {
        let Some(mut higher) = Self::empty(root.level.above()) else {
            return Err(root);
        };
        higher.used = 1;
        for (above, below) in higher.tags.iter_mut().zip(root.tags) {
            *above = u64::from(below != 0);
        }
        if let Slots::Nodes(nodes) = &mut higher.slots {
            nodes[0] = Some(root);
        }
        Ok(higher)
    }

    /// What is left without this node: nothing if it is empty, and its first child if that is all it has; the node
    /// itself if it is needed.
    pub(super) fn without_top(mut self) -> Result<Option<Self>, Self> {
        match &mut self.slots {
            _ if self.used == 0 => Ok(None),
            Slots::Nodes(nodes) if self.used == 1 => Ok(nodes[0].take()),
            _ => Err(self),
        }
    }

    /// Levels from here to the values.
    #[cfg(test)]
    pub(super) fn height(&self) -> u8 {
        self.level.0 + 1
    }

    pub(super) fn covers(&self, index: u32) -> bool {
        self.level.covers(index)
    }

    pub(super) fn get(&self, index: u32) -> Option<T> {
        let slot = self.level.slot(index);
        match &self.slots {
            Slots::Values(values) => values[slot],
            Slots::Nodes(nodes) => nodes[slot].as_ref()?.get(index),
        }
    }

    pub(super) fn value_at(&mut self, index: u32) -> Option<&mut T> {
        let slot = self.level.slot(index);
        match &mut self.slots {
            Slots::Values(values) => values[slot].as_mut(),
            Slots::Nodes(nodes) => nodes[slot].as_mut()?.value_at(index),
        }
    }

    /// Puts a value where there is none. `None` if there is no memory; nothing has changed then.
    pub(super) fn insert(&mut self, index: u32, value: T) -> Option<()> {
        let slot = self.level.slot(index);
        match &mut self.slots {
            Slots::Values(values) => values[slot] = Some(value),
            Slots::Nodes(nodes) => match &mut nodes[slot] {
                Some(node) => node.insert(index, value)?,
                none => *none = Some(Self::chain(self.level.below(), index, value)?),
            },
        }
        self.used |= 1 << slot;
        Some(())
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<T> {
        let slot = self.level.slot(index);
        let (removed, is_empty) = match &mut self.slots {
            Slots::Values(values) => (values[slot].take()?, true),
            Slots::Nodes(nodes) => {
                let node = nodes[slot].as_mut()?;
                let removed = node.remove(index)?;
                let is_empty = node.used == 0;
                if is_empty {
                    nodes[slot] = None;
                }
                (removed, is_empty)
            }
        };
        if is_empty {
            self.used &= !(1 << slot);
        }
        self.sum_up(slot);
        Some(removed)
    }

    /// Gives a value a tag; there is one.
    pub(super) fn set_tag(&mut self, index: u32, tag: Tag) {
        let slot = self.level.slot(index);
        self.tags[tag as usize] |= 1 << slot;
        if let Slots::Nodes(nodes) = &mut self.slots
            && let Some(node) = &mut nodes[slot]
        {
            node.set_tag(index, tag);
        }
    }

    /// Takes a tag from a value; it has it.
    pub(super) fn clear_tag(&mut self, index: u32, tag: Tag) {
        let slot = self.level.slot(index);
        match &mut self.slots {
            Slots::Values(_) => self.tags[tag as usize] &= !(1 << slot),
            Slots::Nodes(nodes) => {
                if let Some(node) = &mut nodes[slot] {
                    node.clear_tag(index, tag);
                }
                self.sum_up(slot);
            }
        }
    }

    pub(super) fn has_tag(&self, index: u32, tag: Tag) -> bool {
        let slot = self.level.slot(index);
        let here = self.tags[tag as usize] >> slot & 1 == 1;
        match &self.slots {
            Slots::Values(_) => here,
            Slots::Nodes(nodes) => here && nodes[slot].as_ref().is_some_and(|node| node.has_tag(index, tag)),
        }
    }

    pub(super) fn any_tagged(&self, tag: Tag) -> bool {
        self.tags[tag as usize] != 0
    }

    /// The first value, with the tag if one is asked for, at `index` or behind it.
    pub(super) fn first_from(&self, index: u32, tag: Option<Tag>) -> Option<(u32, T)> {
        let begin = self.level.slot(index);
        let mut left = tag.map_or(self.used, |tag| self.tags[tag as usize]) & (u64::MAX << begin);
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            let from = if slot == begin {
                index
            } else {
                self.level.first_of(index, slot)
            };
            let found = match &self.slots {
                Slots::Values(values) => values[slot].map(|value| (from, value)),
                Slots::Nodes(nodes) => nodes[slot].as_ref().and_then(|node| node.first_from(from, tag)),
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Brings the tags of a slot in line with what is below it now.
    fn sum_up(&mut self, slot: usize) {
        let below = match &self.slots {
            Slots::Values(_) => [0; Tag::COUNT],
            Slots::Nodes(nodes) => nodes[slot].as_ref().map_or([0; Tag::COUNT], |node| node.tags),
        };
        for (word, below) in self.tags.iter_mut().zip(below) {
            if below == 0 {
                *word &= !(1 << slot);
            }
        }
    }
}

/// Empty slots. `None` if there is no memory.
fn boxed<U>() -> Option<Box<[Option<U>]>> {
    #[cfg(test)]
    if super::tests::refuses() {
        return None;
    }
    let mut slots = Vec::new();
    slots.try_reserve_exact(SLOTS).ok()?;
    slots.resize_with(SLOTS, || None);
    Some(slots.into_boxed_slice())
}
