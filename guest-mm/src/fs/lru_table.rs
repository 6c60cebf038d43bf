//! Objects found by key and, where memory is short, given up in the order of their last use: what the caches of names and
//! of inodes are made of.
//!
//! The table is dense: what is taken out makes room for the last one, so that a table that has shrunk takes as little memory as one
//! that never was larger. Places are numbers of 32 bits, in chains of buckets by hash and in one list by age. Nothing that fails
//! for want of memory changes anything.

use alloc::vec::Vec;
use core::ops::DerefMut;

/// What can be found.
pub(super) trait Keyed {
    /// By what.
    type Key: Copy + Eq;

    /// Its own. Never changes.
    fn key(&self) -> Self::Key;

    /// Equal for equal keys, and spread over all 32 bits.
    fn hash(key: &Self::Key) -> u32;
}

/// No place.
const NONE: u32 = u32::MAX;
/// Buckets that an empty table grows to first.
const FIRST_BUCKETS: usize = 16;

/// Objects in boxes.
#[derive(Debug)]
pub(super) struct LruTable<B> {
    places: Vec<Place<B>>,
    /// First place of each chain; a power of two of them, or none.
    buckets: Vec<u32>,
    oldest: u32,
    newest: u32,
}

#[derive(Debug)]
struct Place<B> {
    object: B,
    next: u32,
    older: u32,
    newer: u32,
}

impl<B> LruTable<B> {
    pub(super) const fn new() -> Self {
        Self {
            places: Vec::new(),
            buckets: Vec::new(),
            oldest: NONE,
            newest: NONE,
        }
    }

    #[cfg(test)]
    const fn len(&self) -> usize {
        self.places.len()
    }
}

impl<K: Keyed, B: DerefMut<Target = K>> LruTable<B> {
    /// The object with a key, which is the newest from now on.
    pub(super) fn touch(&mut self, key: &K::Key) -> Option<&mut K> {
        let at = self.find(key)?;
        self.unlist(at);
        self.list(at);
        Some(&mut self.places[index(at)].object)
    }

    /// The object with a key.
    pub(super) fn peek(&self, key: &K::Key) -> Option<&K> {
        let at = self.find(key)?;
        Some(&self.places[index(at)].object)
    }

    /// Adds an object, as the newest one. Its key is not in the table.
    ///
    /// # Errors
    /// The object, when there is no memory.
    pub(super) fn insert(&mut self, object: B) -> Result<(), B> {
        debug_assert!(self.peek(&object.key()).is_none(), "it is there already");
        if self.places.try_reserve(1).is_err() || !self.grow() {
            return Err(object);
        }
        let Ok(at) = u32::try_from(self.places.len()) else {
            return Err(object);
        };
        let bucket = self.bucket(&object.key());
        let next = core::mem::replace(&mut self.buckets[bucket], at);
        self.places.push(Place {
            object,
            next,
            older: NONE,
            newer: NONE,
        });
        self.list(at);
        Ok(())
    }

    /// Takes an object out.
    pub(super) fn remove(&mut self, key: &K::Key) -> Option<B> {
        let at = self.find(key)?;
        Some(self.take(at))
    }

    /// The key of the object that was not used for longest.
    pub(super) fn oldest(&self) -> Option<K::Key> {
        self.places
            .get(index(self.oldest))
            .map(|place| place.object.key())
    }

    /// All objects, in no order.
    pub(super) fn iter<'a>(&'a self) -> impl Iterator<Item = &'a K>
    where
        K: 'a,
    {
        self.places.iter().map(|place| &*place.object)
    }

    /// The boxes of up to `most` objects from a place on, in no order. What is done with a box leaves its object's key as it is.
    pub(super) fn boxes(&mut self, from: usize, most: usize) -> impl Iterator<Item = &mut B> {
        let places = self.places.iter_mut().skip(from).take(most);
        places.map(|place| &mut place.object)
    }

    /// Gives back memory of the table itself that it does not need any more.
    pub(super) fn trim(&mut self) {
        if self.places.capacity() > 4 * self.places.len() + FIRST_BUCKETS {
            self.places.shrink_to(2 * self.places.len());
        }
        let wanted = self.places.len().next_power_of_two().max(FIRST_BUCKETS);
        if self.buckets.len() > 4 * wanted {
            self.buckets.truncate(wanted);
            self.buckets.shrink_to_fit();
            self.rehash();
        }
    }

    fn bucket(&self, key: &K::Key) -> usize {
        index(K::hash(key)) & (self.buckets.len() - 1)
    }

    fn find(&self, key: &K::Key) -> Option<u32> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut at = self.buckets[self.bucket(key)];
        while let Some(place) = self.places.get(index(at)) {
            if place.object.key() == *key {
                return Some(at);
            }
            at = place.next;
        }
        None
    }

    /// Makes sure that one more object has as many buckets as there are objects. False when there are none at all.
    fn grow(&mut self) -> bool {
        if self.places.len() < self.buckets.len() {
            return true;
        }
        let wanted = (2 * self.buckets.len()).max(FIRST_BUCKETS);
        if self
            .buckets
            .try_reserve_exact(wanted - self.buckets.len())
            .is_err()
        {
            // Longer chains, then.
            return !self.buckets.is_empty();
        }
        self.buckets.resize(wanted, NONE);
        self.rehash();
        true
    }

    fn rehash(&mut self) {
        self.buckets.fill(NONE);
        for at in 0..self.places.len() {
            let bucket = self.bucket(&self.places[at].object.key());
            let place = u32::try_from(at).unwrap_or(NONE);
            self.places[at].next = core::mem::replace(&mut self.buckets[bucket], place);
        }
    }

    /// Takes the object at a place out; the last one moves there.
    fn take(&mut self, at: u32) -> B {
        self.unlist(at);
        let next = self.places[index(at)].next;
        self.relink(at, next);
        let last = u32::try_from(self.places.len() - 1).unwrap_or(NONE);
        if last != at {
            self.relink(last, at);
            let (older, newer) = (self.places[index(last)].older, self.places[index(last)].newer);
            *self.newer_link(older) = at;
            *self.older_link(newer) = at;
        }
        self.places.swap_remove(index(at)).object
    }

    /// Lets whatever leads to a place in its chain lead to another.
    fn relink(&mut self, at: u32, to: u32) {
        let bucket = self.bucket(&self.places[index(at)].object.key());
        let mut before = self.buckets[bucket];
        if before == at {
            self.buckets[bucket] = to;
            return;
        }
        while self.places[index(before)].next != at {
            before = self.places[index(before)].next;
        }
        self.places[index(before)].next = to;
    }

    fn list(&mut self, at: u32) {
        let before = core::mem::replace(&mut self.newest, at);
        let place = &mut self.places[index(at)];
        (place.older, place.newer) = (before, NONE);
        if before == NONE {
            self.oldest = at;
        } else {
            self.places[index(before)].newer = at;
        }
    }

    fn unlist(&mut self, at: u32) {
        let (older, newer) = (self.places[index(at)].older, self.places[index(at)].newer);
        *self.newer_link(older) = newer;
        *self.older_link(newer) = older;
    }

    /// What leads from a place to the next newer one; from nowhere to the oldest.
    fn newer_link(&mut self, at: u32) -> &mut u32 {
        match self.places.get_mut(index(at)) {
            Some(place) => &mut place.newer,
            None => &mut self.oldest,
        }
    }

    /// What leads from a place to the next older one; from nowhere to the newest.
    fn older_link(&mut self, at: u32) -> &mut u32 {
        match self.places.get_mut(index(at)) {
            Some(place) => &mut place.older,
            None => &mut self.newest,
        }
    }
}

/// A place as an index. That of [`NONE`] is beyond every table.
const fn index(at: u32) -> usize {
    at as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::boxed::Box;
    use std::collections::VecDeque;

    struct Number(u32);

    impl Keyed for Number {
        type Key = u32;

        fn key(&self) -> u32 {
            self.0
        }

        /// Bad enough for chains.
        fn hash(key: &u32) -> u32 {
            key / 3
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Use(u32),
        Remove(u32),
        Evict,
        Trim,
    }

    fn ops() -> impl Strategy<Value = Op> {
        prop_oneof![
            8 => (0u32..120).prop_map(Op::Use),
            3 => (0u32..120).prop_map(Op::Remove),
            3 => Just(Op::Evict),
            1 => Just(Op::Trim),
        ]
    }

    proptest! {
        #[test]
        fn what_was_used_last_goes_last(ops in prop::collection::vec(ops(), 1..400)) {
            let mut table: LruTable<Box<Number>> = LruTable::new();
            let mut model = VecDeque::new();
            for op in ops {
                match op {
                    Op::Use(key) => {
                        let known = table.touch(&key).is_some();
                        prop_assert_eq!(known, model.contains(&key));
                        if !known {
                            prop_assert!(table.insert(Box::new(Number(key))).is_ok());
                        }
                        model.retain(|other| *other != key);
                        model.push_back(key);
                    }
                    Op::Remove(key) => {
                        let removed = table.remove(&key).map(|number| number.0);
                        prop_assert_eq!(removed, model.contains(&key).then_some(key));
                        model.retain(|other| *other != key);
                    }
                    Op::Evict => {
                        prop_assert_eq!(table.oldest(), model.front().copied());
                        if let Some(key) = model.pop_front() {
                            prop_assert!(table.remove(&key).is_some());
                        }
                    }
                    Op::Trim => table.trim(),
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert!(model.iter().all(|key| table.peek(key).is_some()));
            }
        }
    }
}
