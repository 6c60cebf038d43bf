//! Getting memory back: shrinkers, requests that wait, and the daemon that works before anybody has to.
//!
//! A request that may wait ([`Gfp::WAIT`]) and finds nothing asks the shrinkers itself (direct reclaim), and then sleeps
//! until frames are freed. When a zone falls below its `Low` watermark the daemon of its node (Linux: `kswapd`) is
//! woken; it asks the shrinkers until every zone of the node that they can give to is above `High`, or nothing more is
//! to be had.

mod shortage;

#[cfg(test)]
mod tests;

use core::fmt;

use guest_sync::Cpu;

use crate::gfp::Gfp;
use crate::mempool::ThisCpu;
use crate::node::NodeId;
use crate::pfn::{Order, Pfn};
use crate::phys::{AllocError, PhysicalMemory};
use crate::stats::Count;
use crate::zone::{Watermark, ZoneKind};

pub(crate) use shortage::Shortage;

/// Frames that are asked of the shrinkers at a time (Linux `SWAP_CLUSTER_MAX`).
const CLUSTER: u64 = 32;
/// Orders above this one are given up when reclaim did not bring them (Linux `PAGE_ALLOC_COSTLY_ORDER`).
pub(crate) const COSTLY_ORDER: u8 = 3;

/// Something that keeps memory it could do without (Linux `struct shrinker`).
pub trait Shrinker: Sync {
    /// Its name in reports.
    fn name(&self) -> &str;

    /// Frames that it could give back at least.
    fn freeable_pages(&self) -> u64;

    /// Gives back `nr_pages` frames or, if it has less or cannot go on just now, fewer; returns how many. It must not wait
    /// and must not ask for memory that may wait.
    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64;
}

/// Physical memory, with those who can give some back.
pub struct Reclaim<'a> {
    phys: &'a PhysicalMemory<'a>,
    shrinkers: &'a [&'a dyn Shrinker],
    events: Events,
}

/// What reclaim did.
#[derive(Debug, Default)]
struct Events {
    pgsteal_direct: Count,
    pgsteal_kswapd: Count,
    pageoutrun: Count,
}

/// What reclaim did since boot, in Linux' words (`/proc/vmstat`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReclaimStat {
    /// Frames that shrinkers gave back for a request that was about to wait.
    pub pgsteal_direct: u64,
    /// Frames that shrinkers gave back to a daemon.
    pub pgsteal_kswapd: u64,
    /// Runs of daemons.
    pub pageoutrun: u64,
}

/// What a daemon's run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Balance {
    /// Frames that shrinkers gave back.
    pub freed_pages: u64,
    /// Whether every zone of the node is above its `High` watermark now.
    pub is_balanced: bool,
}

impl<'a> Reclaim<'a> {
    /// Reclaim by these shrinkers, asked in this order.
    pub fn new(phys: &'a PhysicalMemory<'a>, shrinkers: &'a [&'a dyn Shrinker]) -> Self {
        Self {
            phys,
            shrinkers,
            events: Events::default(),
        }
    }

    /// Who can give memory back.
    pub const fn shrinkers(&self) -> &'a [&'a dyn Shrinker] {
        self.shrinkers
    }

    /// Takes a chunk as [`PhysicalMemory::alloc_pages`] does. A request with [`Gfp::WAIT`] that finds none has memory
    /// reclaimed, and then waits for frees, in the order of those who wait; it can be given up by dropping the future.
    ///
    /// # Errors
    /// When the request may not wait; or when it wants more than 8 frames in one piece and reclaim did not bring them,
    /// which frees alone may never do.
    pub async fn alloc_pages(&self, cpu: impl ThisCpu, gfp: Gfp, order: Order) -> Result<Pfn, AllocError> {
        match self.phys.alloc_pages(cpu.this_cpu(), gfp, order) {
            Err(_) if gfp.has(Gfp::WAIT) => {}
            outcome => return outcome,
        }
        if order.number() > COSTLY_ORDER {
            self.direct(cpu.this_cpu(), order);
            return self.phys.alloc_pages(cpu.this_cpu(), gfp, order);
        }
        let attempt = || {
            let reclaimed = self.direct(cpu.this_cpu(), order);
            let chunk = self.phys.alloc_pages(cpu.this_cpu(), gfp, order);
            // What was reclaimed and not needed is for the next.
            if reclaimed > order.nr_pages().into() {
                self.phys.shortage.memory_came();
            }
            chunk.ok()
        };
        Ok(self.phys.until_memory(gfp, order, attempt).await)
    }

    /// Direct reclaim: asks the shrinkers for what a request of `order` needs; returns the frames that they gave back.
    pub fn direct(&self, cpu: &Cpu, order: Order) -> u64 {
        let freed = self.ask(cpu, CLUSTER.max(order.nr_pages().into()));
        self.events.pgsteal_direct.add(freed);
        freed
    }

    /// One run of a node's daemon: asks the shrinkers until every zone of the node is above `High`, or they have
    /// nothing left; and lets those who wait look again.
    pub fn balance(&self, cpu: &Cpu, node: NodeId) -> Balance {
        self.events.pageoutrun.add(1);
        let mut freed_pages = 0;
        let is_balanced = loop {
            let missing = self.missing(node);
            if missing == 0 {
                break true;
            }
            let freed = self.ask(cpu, missing.min(8 * CLUSTER));
            if freed == 0 {
                break false;
            }
            freed_pages += freed;
            self.events.pgsteal_kswapd.add(freed);
        };
        self.phys.look_again();
        Balance {
            freed_pages,
            is_balanced,
        }
    }

    /// What was done since boot.
    pub fn stat(&self) -> ReclaimStat {
        ReclaimStat {
            pgsteal_direct: self.events.pgsteal_direct.value(),
            pgsteal_kswapd: self.events.pgsteal_kswapd.value(),
            pageoutrun: self.events.pageoutrun.value(),
        }
    }

    /// Frames by which the node's zones are below their `High` watermarks, those zones that shrinkers can give frames
    /// back to: what they keep is the kernel's own. Frames that CPUs keep at hand are counted as free: they are drained
    /// before anybody goes without.
    fn missing(&self, node: NodeId) -> u64 {
        let zones = self.phys.populated_zones();
        let zones = zones.filter(|zone| zone.node() == node && zone.kind() <= ZoneKind::Normal);
        zones
            .map(|zone| {
                let counters = zone.counters();
                let free = counters.free_pages + counters.cached_pages;
                zone.watermark(Watermark::High).saturating_sub(free)
            })
            .sum()
    }

    fn ask(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        let mut freed = 0;
        for shrinker in self.shrinkers {
            if freed < nr_pages {
                freed += shrinker.shrink(cpu, nr_pages - freed);
            }
        }
        freed
    }
}

impl fmt::Debug for Reclaim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.shrinkers.iter().map(|shrinker| shrinker.name());
        f.debug_list().entries(names).finish()
    }
}
