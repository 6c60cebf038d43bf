//! The cache of names: what a name in a directory leads to, and which names are known to lead nowhere (Linux' `dentry`
//! cache, `fs/dcache.c`).
//!
//! Nothing depends on an entry being here: whoever does not find it asks the file system. Entries are changed by who has
//! the file system to himself (its [`Gate`](super::Gate)), so what they say is what its directories say.

use core::fmt;

use guest_sync::{Cpu, SpinLock};

use super::lru_table::{Keyed, LruTable};
use super::pagefs::{InodeNr, Name};
use super::store::{self, Store};
use crate::reclaim::Shrinker;
use crate::slab::IsLeaving;

/// A name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct NameKey {
    directory: InodeNr,
    name: Name,
}

/// An entry: 72 bytes.
#[derive(Clone, Copy, Debug)]
pub struct Dentry {
    key: NameKey,
    target: Known,
}

/// What is known of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    /// It leads to this inode.
    Inode(InodeNr),
    /// There is no such name (a negative entry).
    Missing,
}

impl Keyed for Dentry {
    type Key = NameKey;

    fn key(&self) -> NameKey {
        self.key
    }

    /// FNV-1a (G. Fowler, L. Noll, K. Vo), then a multiplication that mixes its upper bits in.
    fn hash(key: &NameKey) -> u32 {
        let directory = key.directory.number().to_le_bytes();
        let bytes = directory.iter().chain(key.name.as_bytes());
        let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        (hash ^ hash >> 15).wrapping_mul(0x85eb_ca6b) ^ hash >> 16
    }
}

/// What happened since boot, and how many entries there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NameStat {
    /// Entries.
    pub entries: u64,
    /// Of these, such that say that there is nothing.
    pub negative: u64,
    /// Lookups that found an entry.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
    /// Entries given up for memory.
    pub reclaimed: u64,
}

/// Entries whose objects are looked at in one go, while nobody can look anything up.
pub(super) const MOVED_AT_A_TIME: usize = 256;

/// See the module.
pub struct NameCache<S: Store<Dentry>> {
    store: S,
    state: SpinLock<State<S::Box>>,
}

struct State<B> {
    table: LruTable<B>,
    stat: NameStat,
}

impl<S: Store<Dentry>> NameCache<S> {
    /// An empty cache, with objects out of `store`.
    pub fn new(store: S) -> Self {
        let stat = NameStat {
            entries: 0,
            negative: 0,
            hits: 0,
            misses: 0,
            reclaimed: 0,
        };
        Self {
            store,
            state: SpinLock::new(State {
                table: LruTable::new(),
                stat,
            }),
        }
    }

    /// What is known of a name; `None` if nothing is.
    pub fn lookup(&self, directory: InodeNr, name: &Name) -> Option<Known> {
        let key = NameKey {
            directory,
            name: *name,
        };
        let mut state = self.state.lock();
        let target = state.table.touch(&key).map(|entry| entry.target);
        match target {
            Some(_) => state.stat.hits += 1,
            None => state.stat.misses += 1,
        }
        target
    }

    /// From now on this is what is known of the name; or, when there is no memory for that, nothing is.
    pub fn enter(&self, directory: InodeNr, name: &Name, target: Known) {
        let key = NameKey {
            directory,
            name: *name,
        };
        // The object is made outside of the lock: a shrinker may be asked for memory meanwhile.
        let object = self.store.store(Dentry { key, target });
        let mut state = self.state.lock();
        let old = state.remove(&key);
        let rest = object.and_then(|object| state.insert(object).err());
        drop(state);
        drop((old, rest));
    }

    /// Forgets everything about a directory that does not exist any more: its number may come back.
    pub fn forget_directory(&self, directory: InodeNr) {
        loop {
            let mut state = self.state.lock();
            let of_it = |entry: &&Dentry| entry.key.directory == directory;
            let found = state.table.iter().find(of_it).map(|entry| entry.key);
            let Some(key) = found else {
                return;
            };
            let gone = state.remove(&key);
            drop(state);
            drop(gone);
        }
    }

    /// Moves the objects of entries elsewhere that are leaving; an entry for which there is no memory is given up.
    pub fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) {
        let mut at = 0;
        loop {
            let mut state = self.state.lock();
            let (mut looked_at, mut homeless) = (0, None);
            for object in state.table.boxes(at, MOVED_AT_A_TIME) {
                if self.store.relocate(cpu, object, is_leaving).is_err() {
                    homeless = Some(object.key);
                    break;
                }
                looked_at += 1;
            }
            let gone = homeless.and_then(|key| state.remove(&key));
            state.stat.reclaimed += u64::from(gone.is_some());
            drop(state);
            if looked_at == 0 && gone.is_none() {
                return;
            }
            drop(gone);
            at += looked_at;
        }
    }

    /// Where its objects live.
    #[cfg(test)]
    pub(crate) const fn store(&self) -> &S {
        &self.store
    }

    /// What there is.
    pub fn stat(&self) -> NameStat {
        self.state.lock().stat
    }

    /// Gives up the oldest entries, up to `nr` of them; returns how many.
    pub fn give_up(&self, nr: u64) -> u64 {
        let mut given_up = 0;
        while given_up < nr {
            // Freed one by one outside of the lock, so that a lookup elsewhere does not wait for long.
            let Some(mut state) = self.state.try_lock() else {
                break;
            };
            let oldest = state.table.oldest().and_then(|key| state.remove(&key));
            let Some(gone) = oldest else {
                break;
            };
            state.stat.reclaimed += 1;
            drop(state);
            drop(gone);
            given_up += 1;
        }
        if let Some(mut state) = self.state.try_lock() {
            state.table.trim();
        }
        given_up
    }
}

impl<B: core::ops::DerefMut<Target = Dentry>> State<B> {
    fn insert(&mut self, object: B) -> Result<(), B> {
        let is_negative = object.target == Known::Missing;
        self.table.insert(object)?;
        self.stat.entries += 1;
        self.stat.negative += u64::from(is_negative);
        Ok(())
    }

    fn remove(&mut self, key: &NameKey) -> Option<B> {
        let removed = self.table.remove(key)?;
        self.stat.entries -= 1;
        self.stat.negative -= u64::from(removed.target == Known::Missing);
        Some(removed)
    }
}

impl<S: Store<Dentry>> Shrinker for NameCache<S> {
    fn name(&self) -> &'static str {
        "dentry"
    }

    fn freeable_pages(&self) -> u64 {
        self.stat().entries / u64::from(self.store.per_frame())
    }

    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        store::shrink(&self.store, cpu, nr_pages, |nr| self.give_up(nr))
    }
}

impl<S: Store<Dentry>> fmt::Debug for NameCache<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NameCache").finish_non_exhaustive()
    }
}
