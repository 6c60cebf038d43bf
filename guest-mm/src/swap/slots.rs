//! Which slots of an area are in use, and by how many.

use alloc::vec::Vec;

use super::{AreaHeader, AreaNr, SlotNr};

/// Slots of a cluster (Linux: `SWAPFILE_CLUSTER`): 1 MiB.
pub const CLUSTER_SLOTS: u32 = 256;

/// A slot that cannot be used.
const BAD: u16 = u16::MAX;
/// Beside a number of users: the slot could not be written when it was last tried. It is bad when nobody uses it any more.
const FAILED: u16 = 1 << 15;
/// Users that one slot can have.
const MAX_USERS: u16 = FAILED - 2;
const _: () = assert!(MAX_USERS | FAILED != BAD);

/// Why the number of a slot's users cannot change so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotError {
    /// There is no such slot, or it is bad, or nobody uses it.
    NotInUse(SlotNr),
    /// It has 32766 users, and no more can be counted.
    TooManyUsers(SlotNr),
}

/// The slots of one area.
///
/// Slots are given out one after the other within a cluster. When it is full the next one is a free cluster, and only when
/// there is none a cluster with gaps.
#[derive(Debug)]
pub struct SlotMap {
    area: AreaNr,
    /// Users of each block, and [`FAILED`]; block 0 is bad.
    users: Vec<u16>,
    /// Free slots of each cluster.
    free: Vec<u16>,
    /// Where the search begins.
    next: usize,
    nr_free: u32,
    nr_slots: u32,
}

impl SlotMap {
    /// All slots of an area of that number free. `None` if there is no memory for the map: two bytes a slot.
    pub fn new(area: AreaNr, header: &AreaHeader) -> Option<Self> {
        let blocks = header.nr_blocks as usize;
        let mut users = Vec::new();
        users.try_reserve_exact(blocks).ok()?;
        users.resize(blocks, 0);
        users[0] = BAD;
        for block in &header.bad {
            users[*block as usize] = BAD;
        }
        let mut free = Vec::new();
        free.try_reserve_exact(blocks.div_ceil(CLUSTER_SLOTS as usize))
            .ok()?;
        let count = |cluster: &[u16]| u16::try_from(cluster.iter().filter(|users| **users == 0).count());
        free.extend(
            users
                .chunks(CLUSTER_SLOTS as usize)
                .map(|cluster| count(cluster).expect("at most 256")),
        );
        let nr_slots = free.iter().copied().map(u32::from).sum();
        Some(Self {
            area,
            users,
            free,
            next: 1,
            nr_free: nr_slots,
            nr_slots,
        })
    }

    /// Its area. Whoever asks about a slot makes sure that it is in it.
    pub const fn area(&self) -> AreaNr {
        self.area
    }

    /// Slots that can be used: fewer when some turned out to be bad.
    pub const fn nr_slots(&self) -> u32 {
        self.nr_slots
    }

    /// Slots that nobody uses.
    pub const fn nr_free(&self) -> u32 {
        self.nr_free
    }

    /// Users of a slot; 0 for one that there is not.
    pub fn users(&self, slot: SlotNr) -> u16 {
        match self.users.get(slot.index()) {
            None | Some(&BAD) => 0,
            Some(users) => *users & !FAILED,
        }
    }

    /// Gives out a free slot, with one user. `None` if there is none.
    pub fn allocate(&mut self) -> Option<SlotNr> {
        let cluster = self.next / CLUSTER_SLOTS as usize;
        let found = self.free_slot(self.next, cluster).or_else(|| {
            let chosen = self.next_cluster(cluster)?;
            self.free_slot(chosen * CLUSTER_SLOTS as usize, chosen)
        })?;
        self.users[found] = 1;
        self.free[found / CLUSTER_SLOTS as usize] -= 1;
        self.nr_free -= 1;
        self.next = found + 1;
        let block = u32::try_from(found).ok()?;
        SlotNr::at(self.area, block)
    }

    /// One more user: a fork copied an entry.
    ///
    /// # Errors
    /// Nobody uses it, or too many do.
    pub fn add_user(&mut self, slot: SlotNr) -> Result<(), SlotError> {
        match self.users.get_mut(slot.index()) {
            None | Some(&mut (0 | BAD)) => Err(SlotError::NotInUse(slot)),
            Some(users) if *users & !FAILED == MAX_USERS => Err(SlotError::TooManyUsers(slot)),
            Some(users) => {
                *users += 1;
                Ok(())
            }
        }
    }

    /// Takes note of how a write to a slot in use went. One that failed last is not given out again: pages that went there would come back to
    /// memory, and a disk that takes nothing any more would look as if it had room for ever.
    pub fn written(&mut self, slot: SlotNr, has_arrived: bool) {
        match self.users.get_mut(slot.index()) {
            None | Some(&mut (0 | BAD)) => {}
            Some(users) if has_arrived => *users &= !FAILED,
            Some(users) => *users |= FAILED,
        }
    }

    /// One user less; returns how many are left. Without any the slot is free, or bad if it could not be written.
    ///
    /// # Errors
    /// Nobody uses it.
    pub fn drop_user(&mut self, slot: SlotNr) -> Result<u16, SlotError> {
        match self.users.get_mut(slot.index()) {
            None | Some(&mut (0 | BAD)) => Err(SlotError::NotInUse(slot)),
            Some(users) => {
                *users -= 1;
                if *users == 0 {
                    self.free[slot.index() / CLUSTER_SLOTS as usize] += 1;
                    self.nr_free += 1;
                } else if *users == FAILED {
                    *users = BAD;
                    self.nr_slots -= 1;
                    return Ok(0);
                }
                Ok(*users & !FAILED)
            }
        }
    }

    /// The slots in use, with their users.
    pub fn in_use(&self) -> impl Iterator<Item = (SlotNr, u16)> {
        (0..).zip(&self.users).filter_map(|(block, users)| {
            let used = !matches!(*users, 0 | BAD);
            SlotNr::at(self.area, block)
                .filter(|_| used)
                .map(|slot| (slot, *users & !FAILED))
        })
    }

    /// The first free slot of `cluster` at `from` or behind it.
    fn free_slot(&self, from: usize, cluster: usize) -> Option<usize> {
        let end = ((cluster + 1) * CLUSTER_SLOTS as usize).min(self.users.len());
        let slots = self.users.get(from..end)?;
        slots.iter().position(|users| *users == 0).map(|at| from + at)
    }

    /// Where to go on when `cluster` has nothing more behind the last slot that was given out: the next wholly free cluster, or the
    /// next with a free slot, itself in the end.
    fn next_cluster(&self, cluster: usize) -> Option<usize> {
        let nr = self.free.len();
        let others = || (1..=nr).map(|step| (cluster + step) % nr);
        let whole = |index: &usize| u32::from(self.free[*index]) == CLUSTER_SLOTS;
        others()
            .find(whole)
            .or_else(|| others().find(|index| self.free[*index] > 0))
    }
}
