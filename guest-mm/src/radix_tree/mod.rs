//! The tree in which a mapping finds its pages by index: the page tree of a page cache.
//!
//! Nodes have 64 slots, so that six bits of the index choose one at each level, and the tree is as high as its largest
//! index needs (Linux 2.6, `lib/radix-tree.c`). Each value can have [`Tag`]s; a node knows for each of its slots whether
//! there is the tag anywhere below, so that all dirty pages are found without a look at the clean ones.
//!
//! What fails for want of memory changes nothing. Nodes that become empty are given back at once.

mod node;
#[cfg(test)]
mod tests;

use node::{Fanout, Node};

/// A property of a value that can be searched for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tag {
    /// Newer than what is on the device.
    Dirty,
    /// On its way to the device.
    Writeback,
    /// Dirty when a write-back of all that is dirty began: whoever writes on meanwhile does not keep it from ending.
    ToWrite,
}

impl Tag {
    const COUNT: usize = 3;
}

/// Why a value was not inserted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InsertError<T> {
    /// There is this one already.
    Occupied(T),
    /// There is no memory for a node.
    NoMemory,
}

/// Values by index.
#[derive(Debug)]
pub struct RadixTree<T> {
    root: Option<Node<T>>,
    len: usize,
}

impl<T> Default for RadixTree<T> {
    fn default() -> Self {
        Self { root: None, len: 0 }
    }
}

impl<T: Copy> RadixTree<T> {
    /// No values, no memory used.
    pub const fn new() -> Self {
        Self { root: None, len: 0 }
    }

    /// How many values there are.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value at `index`.
    pub fn get(&self, index: u32) -> Option<T> {
        let root = self.root.as_ref()?;
        if root.covers(index) { root.get(index) } else { None }
    }

    /// Puts a value, without tags, where there is none.
    ///
    /// # Errors
    /// There is one, or no memory; nothing has changed then.
    pub fn insert(&mut self, index: u32, value: T) -> Result<(), InsertError<T>> {
        if let Some(there) = self.get(index) {
            return Err(InsertError::Occupied(there));
        }
        self.grow_to(index)?;
        let inserted = match &mut self.root {
            Some(root) => root.insert(index, value),
            None => Node::chain(Fanout::for_index(index), index, value).map(|root| self.root = Some(root)),
        };
        if inserted.is_none() {
            self.shrink();
            return Err(InsertError::NoMemory);
        }
        self.len += 1;
        Ok(())
    }

    /// Puts a value in the place of another, which is returned; the tags stay. `None` if there is none, and nothing has
    /// changed then.
    pub fn replace(&mut self, index: u32, value: T) -> Option<T> {
        self.value_at(index).map(|there| core::mem::replace(there, value))
    }

    /// Takes a value out, and its tags.
    pub fn remove(&mut self, index: u32) -> Option<T> {
        let root = self.root.as_mut().filter(|root| root.covers(index))?;
        let removed = root.remove(index)?;
        self.len -= 1;
        self.shrink();
        Some(removed)
    }

    /// Gives the value at `index` a tag. False if there is no value.
    pub fn set_tag(&mut self, index: u32, tag: Tag) -> bool {
        let found = self.get(index).is_some();
        if let Some(root) = self.root.as_mut().filter(|_| found) {
            root.set_tag(index, tag);
        }
        found
    }

    /// Takes a tag from the value at `index`. Whether it had it.
    pub fn clear_tag(&mut self, index: u32, tag: Tag) -> bool {
        let had = self.has_tag(index, tag);
        if let Some(root) = self.root.as_mut().filter(|_| had) {
            root.clear_tag(index, tag);
        }
        had
    }

    /// Whether there is a value at `index` and has the tag.
    pub fn has_tag(&self, index: u32, tag: Tag) -> bool {
        let root = self.root.as_ref().filter(|root| root.covers(index));
        root.is_some_and(|root| root.has_tag(index, tag))
    }

    /// Whether any value has the tag.
    pub fn any_tagged(&self, tag: Tag) -> bool {
        self.root.as_ref().is_some_and(|root| root.any_tagged(tag))
    }

    /// The first value at `index` or behind it.
    pub fn first_from(&self, index: u32) -> Option<(u32, T)> {
        let root = self.root.as_ref().filter(|root| root.covers(index))?;
        root.first_from(index, None)
    }

    /// The first value with the tag at `index` or behind it.
    pub fn first_tagged_from(&self, index: u32, tag: Tag) -> Option<(u32, T)> {
        let root = self.root.as_ref().filter(|root| root.covers(index))?;
        root.first_from(index, Some(tag))
    }

    /// All values, by index.
    pub fn iter(&self) -> impl Iterator<Item = (u32, T)> {
        let mut next = Some(0);
        core::iter::from_fn(move || {
            let (index, value) = self.first_from(next?)?;
            next = index.checked_add(1);
            Some((index, value))
        })
    }

    fn value_at(&mut self, index: u32) -> Option<&mut T> {
        let root = self.root.as_mut().filter(|root| root.covers(index))?;
        root.value_at(index)
    }

    /// Makes the tree high enough for `index`, if there is one.
    fn grow_to(&mut self, index: u32) -> Result<(), InsertError<T>> {
        while let Some(root) = self.root.take_if(|root| !root.covers(index)) {
            match Node::above(root) {
                Ok(higher) => self.root = Some(higher),
                Err(root) => {
                    self.root = Some(root);
                    self.shrink();
                    return Err(InsertError::NoMemory);
                }
            }
        }
        Ok(())
    }

    /// Makes the tree as low as it can be.
    fn shrink(&mut self) {
        while let Some(root) = self.root.take() {
            match root.without_top() {
                Ok(lower) => self.root = lower,
                Err(needed) => {
                    self.root = Some(needed);
                    return;
                }
            }
            if self.root.is_none() {
                return;
            }
        }
    }
}
