//! Getting memory back: pages of programs and files, caches that shrink, requests that wait, and the daemon that works before anybody
//! has to.
//!
//! A request that may wait ([`Gfp::WAIT`]) and finds nothing reclaims by itself ([`Reclaim::try_to_free_pages`], direct reclaim), and then sleeps
//! until frames are freed. When a zone falls below its `Low` watermark the daemon of its node (Linux: `kswapd`) is woken; it
//! reclaims until every zone of the node is above `High`, or nothing more is to be had. Both make passes ([`Priority`]) over the zones, each harder than the one
//! before; and both are slowed down to the speed of the disks, which is why they are futures: a page that is written is free when it has
//! arrived, and until then there is nothing to do but wait ([`PhysicalMemory::throttle`]).

pub mod oom;
mod pages;
mod shortage;
mod write_back;

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
use crate::zone::{Watermark, Zone, ZoneKind};

pub use pages::{PageReclaim, Priority, Scheme};
pub(crate) use shortage::Shortage;
pub(crate) use write_back::WriteBack;

use pages::{Aim, Pass};

/// Frames that are reclaimed at a time (Linux `SWAP_CLUSTER_MAX`).
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
    pages: Option<&'a dyn PageReclaim>,
    scheme: Scheme,
    shrinkers: &'a [&'a dyn Shrinker],
    events: Events,
}

/// What reclaim did.
#[derive(Debug, Default)]
struct Events {
    pgsteal_direct: Count,
    pgsteal_kswapd: Count,
    pageoutrun: Count,
    direct_reclaims: Count,
    throttled: Count,
    /// Frames that shrinkers gave back.
    slabs: Count,
}

/// What reclaim did since boot, in Linux' words (`/proc/vmstat`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReclaimStat {
    /// Frames that became free while requests that were about to wait reclaimed, by them or by what they had written.
    pub pgsteal_direct: u64,
    /// Frames that became free in runs of daemons.
    pub pgsteal_kswapd: u64,
    /// Runs of daemons.
    pub pageoutrun: u64,
    /// Direct reclaims (no such counter in Linux).
    pub direct_reclaims: u64,
    /// Waits for disks, of either (no such counter in Linux).
    pub reclaim_throttled: u64,
    /// Frames that caches gave back.
    pub slabs_freed: u64,
}

/// What a daemon's run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Balance {
    /// Frames that became free.
    pub freed_pages: u64,
    /// Whether every zone of the node is above its `High` watermark now.
    pub is_balanced: bool,
}

/// What a direct reclaim came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reclaimed {
    /// Frames that became free meanwhile: whose they are now is another question.
    pub freed_pages: u64,
    /// Whether it was of any use to somebody: a page was freed, or has arrived on a disk. If not, there is nothing more to be had. A write
    /// that fails is none; nor are frames of the kernel's caches alone, which the next request to a disk may take back: the one who waits has them,
    /// if they were of use.
    pub has_progress: bool,
}

impl<'a> Reclaim<'a> {
    /// Reclaim by these shrinkers, asked in this order.
    pub fn new(phys: &'a PhysicalMemory<'a>, shrinkers: &'a [&'a dyn Shrinker]) -> Self {
        Self {
            phys,
            pages: None,
            scheme: Scheme::default(),
            shrinkers,
            events: Events::default(),
        }
    }

    /// The same, and of pages of programs and files.
    #[must_use]
    pub fn with_pages(self, pages: &'a dyn PageReclaim, scheme: Scheme) -> Self {
        Self {
            pages: Some(pages),
            scheme,
            ..self
        }
    }

    /// Who can give memory back.
    pub const fn shrinkers(&self) -> &'a [&'a dyn Shrinker] {
        self.shrinkers
    }

    /// Takes a chunk as [`PhysicalMemory::alloc_pages`] does. A request with [`Gfp::WAIT`] that finds none reclaims memory,
    /// and then waits for frees, in the order of those who wait; it can be given up by dropping the future.
    ///
    /// # Errors
    /// When the request may not wait; or when it wants more than 8 frames in one piece and reclaim did not bring them,
    /// which frees alone may never do.
    pub async fn alloc_pages(
        &self,
        cpu: impl ThisCpu + Copy,
        gfp: Gfp,
        order: Order,
    ) -> Result<Pfn, AllocError> {
        match self.phys.alloc_pages(cpu.this_cpu(), gfp, order) {
            Err(_) if gfp.has(Gfp::WAIT) => {}
            outcome => return outcome,
        }
        let reclaimed = self.try_to_free_pages(cpu, gfp, order).await;
        match self.phys.alloc_pages(cpu.this_cpu(), gfp, order) {
            Err(_) if order.number() <= COSTLY_ORDER => {}
            outcome => {
                // What was reclaimed and not needed is for the next.
                if reclaimed.freed_pages > order.nr_pages().into() {
                    self.phys.shortage.memory_came();
                }
                return outcome;
            }
        }
        let attempt = || self.phys.alloc_pages(cpu.this_cpu(), gfp, order).ok();
        Ok(self.phys.until_memory(gfp, order, attempt).await)
    }

    /// Direct reclaim: frees what a request of `order` needs, in passes that are harder and harder, and waits for the disks in between
    /// if pages are on their way there.
    pub async fn try_to_free_pages(&self, cpu: impl ThisCpu + Copy, gfp: Gfp, order: Order) -> Reclaimed {
        self.events.direct_reclaims.add(1);
        let target = CLUSTER.max(order.nr_pages().into());
        let is_served = || self.phys.could_serve(gfp, order);
        self.free(cpu, gfp.highest_zone(), target, is_served).await
    }

    /// Frees about so many pages, for one who is going to need them, or to take the memory away that they are in (Linux
    /// `shrink_all_memory`).
    pub async fn reclaim_pages(&self, cpu: impl ThisCpu + Copy, nr_pages: u64) -> Reclaimed {
        self.free(cpu, ZoneKind::Movable, nr_pages, || false).await
    }

    async fn free(
        &self,
        cpu: impl ThisCpu + Copy,
        highest: ZoneKind,
        target: u64,
        is_enough: impl Fn() -> bool,
    ) -> Reclaimed {
        let before = self.progress();
        let mut next = Some(Priority::FIRST);
        while let Some(priority) = next {
            let aim = Aim::Request(highest);
            let Pass { freed, .. } = self.pass(cpu, aim, priority, target).await;
            if freed == 0 && self.phys.nr_being_written() > 0 {
                self.events.throttled.add(1);
                self.phys.throttle().await;
            }
            if self.progress().freed_since(&before) >= target || is_enough() {
                break;
            }
            next = priority.harder();
        }
        if self.progress() == before {
            // The last hope is what is being written: it may arrive, or fail as all before it.
            self.phys.throttle().await;
        }
        let progress = self.progress();
        let freed_pages = progress.freed_since(&before);
        self.events.pgsteal_direct.add(freed_pages);
        let has_progress = match self.pages {
            Some(_) => (progress.stolen, progress.written) != (before.stolen, before.written),
            None => progress != before,
        };
        Reclaimed {
            freed_pages,
            has_progress,
        }
    }

    /// One run of a node's daemon: reclaims until every zone of the node is above `High`, or there is nothing left; and lets those
    /// who wait look again.
    pub async fn balance(&self, cpu: impl ThisCpu + Copy, node: NodeId) -> Balance {
        self.events.pageoutrun.add(1);
        let start = self.progress();
        let mut priority = Priority::FIRST;
        let is_balanced = loop {
            let missing = self.missing(node);
            if missing == 0 {
                break true;
            }
            let before = self.progress();
            // What is on its way is as good as free: more is not taken from programs before it is known what that brings.
            let coming = u64::from(self.phys.nr_being_written());
            if coming >= missing {
                self.events.throttled.add(1);
                self.phys.throttle().await;
            } else {
                let target = (missing - coming).min(8 * CLUSTER);
                self.pass(cpu, Aim::Node(node), priority, target).await;
            }
            let progress = self.progress();
            self.events.pgsteal_kswapd.add(progress.freed_since(&before));
            if progress != before {
                self.phys.shortage.memory_came();
                continue;
            }
            let Some(harder) = priority.harder() else {
                // The last hope is what is being written.
                self.phys.throttle().await;
                if self.progress() != before {
                    continue;
                }
                break false;
            };
            priority = harder;
        };
        self.phys.look_again();
        let freed_pages = self.progress().freed_since(&start);
        Balance {
            freed_pages,
            is_balanced,
        }
    }

    /// How much reclaim has achieved since boot.
    fn progress(&self) -> Progress {
        Progress {
            stolen: self.phys.counts.pgsteal.value(),
            slabs: self.events.slabs.value(),
            written: self.phys.nr_written(),
        }
    }

    /// What was done since boot.
    pub fn stat(&self) -> ReclaimStat {
        ReclaimStat {
            pgsteal_direct: self.events.pgsteal_direct.value(),
            pgsteal_kswapd: self.events.pgsteal_kswapd.value(),
            pageoutrun: self.events.pageoutrun.value(),
            direct_reclaims: self.events.direct_reclaims.value(),
            reclaim_throttled: self.events.throttled.value(),
            slabs_freed: self.events.slabs.value(),
        }
    }

    /// Frames by which the node's zones are below their `High` watermarks, those zones that somebody can give frames back
    /// to: what shrinkers keep is the kernel's own.
    fn missing(&self, node: NodeId) -> u64 {
        let highest = match self.pages {
            Some(_) => ZoneKind::Movable,
            None => ZoneKind::Normal,
        };
        let zones = self.phys.populated_zones();
        let zones = zones.filter(|zone| zone.node() == node && zone.kind() <= highest);
        zones.map(Self::missing_in).sum()
    }

    /// Frames by which a zone is below `High`, and below what it keeps from programs besides if it has pages of theirs: who wants one is sent
    /// here only above that. Those that CPUs keep at hand are counted as free: they are drained before anybody goes without.
    fn missing_in(zone: &Zone) -> u64 {
        let counters = zone.counters();
        let free = counters.free_pages + counters.cached_pages;
        let wanted = match zone.lru_total() {
            0 => zone.watermark(Watermark::High),
            _ => zone.floor_at(Watermark::High, Gfp::USER),
        };
        wanted.saturating_sub(free)
    }
}

/// What all of reclaim has achieved so far.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Frames of programs' and files' pages.
    stolen: u64,
    /// Frames of caches.
    slabs: u64,
    /// Pages that have arrived on disks.
    written: u64,
}

impl Progress {
    const fn freed_since(&self, before: &Self) -> u64 {
        (self.stolen + self.slabs).saturating_sub(before.stolen + before.slabs)
    }
}

impl fmt::Debug for Reclaim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.shrinkers.iter().map(|shrinker| shrinker.name());
        f.debug_list().entries(names).finish()
    }
}
