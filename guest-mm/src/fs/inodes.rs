//! The cache of inodes: what a file system keeps in memory of a file while somebody has it open, and afterwards until
//! the memory is wanted (Linux' `inode` cache, `fs/inode.c`).
//!
//! An inode that somebody *holds* stays. One that nobody holds stays for the next, and goes in the order of last use; what
//! belongs to it goes with it, and whoever has that decides whether it can.

use core::fmt;

use guest_sync::{Cpu, SpinLock};

use super::lru_table::{Keyed, LruTable};
use super::names::MOVED_AT_A_TIME;
use super::pagefs::InodeNr;
use super::store::{self, Store};
use crate::reclaim::Shrinker;
use crate::slab::{IsLeaving, NoObject};

/// An inode in memory, with what the file system keeps of it.
#[derive(Debug)]
pub struct Node<T> {
    number: InodeNr,
    holders: u32,
    kept: T,
}

impl<T> Keyed for Node<T> {
    type Key = InodeNr;

    fn key(&self) -> InodeNr {
        self.number
    }

    /// Knuth's multiplicative hash, its upper half.
    fn hash(key: &InodeNr) -> u32 {
        key.number().wrapping_mul(0x9e37_79b1) >> 12
    }
}

/// Who can let go of what belongs to an inode.
pub trait Evict<T> {
    /// Lets go of what belongs to an inode that nobody holds, if that is possible without waiting: nothing is to be written, and
    /// nobody uses it. The cache is locked meanwhile.
    fn evict(&self, cpu: &Cpu, number: InodeNr, kept: &T) -> bool;
}

/// What happened since boot, and how many inodes there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct InodeStat {
    /// Inodes in memory.
    pub inodes: u64,
    /// Of these, such that somebody holds.
    pub held: u64,
    /// Times that an inode was wanted and there.
    pub hits: u64,
    /// Times that it was not.
    pub misses: u64,
    /// Inodes given up for memory.
    pub reclaimed: u64,
}

/// See the module.
pub struct InodeCache<T, S: Store<Node<T>>> {
    store: S,
    state: SpinLock<State<S::Box>>,
}

struct State<B> {
    table: LruTable<B>,
    stat: InodeStat,
}

impl<T: Clone, S: Store<Node<T>>> InodeCache<T, S> {
    /// An empty cache, with objects out of `store`.
    pub fn new(store: S) -> Self {
        let stat = InodeStat {
            inodes: 0,
            held: 0,
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

    /// Holds an inode that is in memory, once more; `None` if it is not there.
    pub fn hold(&self, number: InodeNr) -> Option<T> {
        let mut state = self.state.lock();
        let State { table, stat } = &mut *state;
        let Some(node) = table.touch(&number) else {
            stat.misses += 1;
            return None;
        };
        stat.hits += 1;
        stat.held += u64::from(node.holders == 0);
        node.holders += 1;
        Some(node.kept.clone())
    }

    /// Adds an inode that is not in memory, held once. False when there is no memory.
    pub fn add(&self, number: InodeNr, kept: T) -> bool {
        let node = Node {
            number,
            holders: 1,
            kept,
        };
        let Some(object) = self.store.store(node) else {
            return false;
        };
        let mut state = self.state.lock();
        let rest = state.table.insert(object).err();
        let added = rest.is_none();
        state.stat.inodes += u64::from(added);
        state.stat.held += u64::from(added);
        drop(state);
        drop(rest);
        added
    }

    /// Lets go of it once. How often it is held still; `None` if it was not.
    pub fn let_go(&self, number: InodeNr) -> Option<u32> {
        let mut state = self.state.lock();
        let State { table, stat } = &mut *state;
        let node = table.touch(&number)?;
        node.holders = node.holders.checked_sub(1)?;
        stat.held -= u64::from(node.holders == 0);
        Some(node.holders)
    }

    /// What is kept of an inode, as far as it is in memory.
    pub fn peek(&self, number: InodeNr) -> Option<T> {
        self.state
            .lock()
            .table
            .peek(&number)
            .map(|node| node.kept.clone())
    }

    /// How often an inode is held.
    pub fn holders(&self, number: InodeNr) -> u32 {
        let state = self.state.lock();
        state.table.peek(&number).map_or(0, |node| node.holders)
    }

    /// Takes an inode out that does not exist any more.
    pub fn remove(&self, number: InodeNr) -> Option<T> {
        let mut state = self.state.lock();
        let removed = state.table.remove(&number)?;
        state.stat.inodes -= 1;
        state.stat.held -= u64::from(removed.holders > 0);
        drop(state);
        Some(removed.kept.clone())
    }

    /// What is kept of all inodes, in no order.
    pub fn for_each(&self, mut each: impl FnMut(InodeNr, &T)) {
        let state = self.state.lock();
        state.table.iter().for_each(|node| each(node.number, &node.kept));
    }

    /// Moves the objects of inodes elsewhere that are leaving, held or not: what leads to them is this cache alone.
    ///
    /// # Errors
    /// When there is no memory for the next one.
    pub fn move_objects(&self, cpu: &Cpu, is_leaving: IsLeaving<'_>) -> Result<(), NoObject> {
        let mut at = 0;
        loop {
            let mut state = self.state.lock();
            let mut looked_at = 0;
            for object in state.table.boxes(at, MOVED_AT_A_TIME) {
                self.store.relocate(cpu, object, is_leaving)?;
                looked_at += 1;
            }
            if looked_at == 0 {
                return Ok(());
            }
            at += looked_at;
        }
    }

    /// Where its objects live.
    #[cfg(test)]
    pub(crate) const fn store(&self) -> &S {
        &self.store
    }

    /// What there is.
    pub fn stat(&self) -> InodeStat {
        self.state.lock().stat
    }

    /// Looks at up to `nr` inodes, the oldest first, and gives up those that nobody holds and that `evict` lets go of. Returns
    /// how many.
    pub fn give_up(&self, cpu: &Cpu, nr: u64, evict: &impl Evict<T>) -> u64 {
        let looks = nr.min(self.stat().inodes);
        let mut given_up = 0;
        for _ in 0..looks {
            let Some(mut state) = self.state.try_lock() else {
                break;
            };
            let Some(number) = state.table.oldest() else {
                break;
            };
            let can_go = |node: &Node<T>| node.holders == 0 && evict.evict(cpu, number, &node.kept);
            if !state.table.peek(&number).is_some_and(can_go) {
                // Its turn comes again after all others.
                state.table.touch(&number);
                continue;
            }
            let gone = state.table.remove(&number);
            state.stat.inodes -= 1;
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

/// An inode cache as reclaim sees it.
pub struct InodeShrinker<'a, T, S: Store<Node<T>>, E> {
    /// The cache.
    pub cache: &'a InodeCache<T, S>,
    /// Who lets go of what belongs to its inodes.
    pub evict: E,
}

impl<T: Clone + Send + Sync, S: Store<Node<T>>, E: Evict<T> + Sync> Shrinker for InodeShrinker<'_, T, S, E> {
    fn name(&self) -> &'static str {
        "inode"
    }

    fn freeable_pages(&self) -> u64 {
        let stat = self.cache.stat();
        (stat.inodes - stat.held) / u64::from(self.cache.store.per_frame())
    }

    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        store::shrink(&self.cache.store, cpu, nr_pages, |nr| {
            self.cache.give_up(cpu, nr, &self.evict)
        })
    }
}

impl<T, S: Store<Node<T>>> fmt::Debug for InodeCache<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InodeCache").finish_non_exhaustive()
    }
}

impl<T, S: Store<Node<T>>, E> fmt::Debug for InodeShrinker<'_, T, S, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InodeShrinker").finish_non_exhaustive()
    }
}
