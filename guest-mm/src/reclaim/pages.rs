//! One pass of reclaim over zones: some of the pages of programs and files, and what caches can give back, in proportion.

use core::future::poll_fn;
use core::task::Poll;

use guest_sync::Cpu;

use super::{CLUSTER, Reclaim};
use crate::frames::{Frames, Mmu};
use crate::mempool::ThisCpu;
use crate::mm::{Mm, Shrunk};
use crate::node::NodeId;
use crate::zone::{Zone, ZoneKind};

/// How hard reclaim tries: a pass looks at a 2^-n-th of each list (Linux `DEF_PRIORITY`: 12 at first, 0 is all of it).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Priority(u8);

impl Priority {
    /// How it begins.
    pub const FIRST: Self = Self(12);

    /// One harder; `None` after the hardest.
    pub const fn harder(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Pages of a list of `len` that a pass looks at.
    fn share(self, len: u64) -> u64 {
        (len >> self.0).max(CLUSTER).min(len)
    }
}

/// In which order pages go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Scheme {
    /// Linux 2.6: an active and an inactive list for each zone.
    #[default]
    TwoList,
    /// Linux 2.4: inactive pages are dirty or clean, pages age, and programs' are found through their page tables.
    Launder,
}

/// Who has the pages of programs and files.
pub trait PageReclaim: Sync {
    /// Looks at up to `nr` pages of a zone: as [`Mm::shrink_zone`].
    fn shrink_zone(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> Shrunk;

    /// The same in the order of 2.4: as [`Mm::launder_zone`].
    fn launder_zone(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> Shrunk;
}

impl<F: Frames + Sync, M: Mmu + Sync> PageReclaim for Mm<'_, F, M> {
    fn shrink_zone(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> Shrunk {
        Self::shrink_zone(self, cpu, zone, nr)
    }

    fn launder_zone(&self, cpu: &Cpu, zone: &Zone, nr: u32) -> Shrunk {
        Self::launder_zone(self, cpu, zone, nr)
    }
}

/// The zones that are to get memory.
#[derive(Clone, Copy)]
pub(super) enum Aim {
    /// Those that a request may use.
    Request(ZoneKind),
    /// Those of a node that are below `High`.
    Node(NodeId),
}

/// What a pass came to. Pages.
#[derive(Clone, Copy, Default)]
pub(super) struct Pass {
    /// That are free now.
    pub(super) freed: u64,
    /// That are on their way to a disk.
    pub(super) written: u64,
}

/// Pages of a list that are looked at between two turns of other tasks.
const TURN: u64 = 512;

impl Reclaim<'_> {
    /// Looks for `target` pages, of which more are found on the way now and then.
    pub(super) async fn pass(
        &self,
        cpu: impl ThisCpu + Copy,
        aim: Aim,
        priority: Priority,
        target: u64,
    ) -> Pass {
        let mut pass = Pass::default();
        let (mut scanned, mut listed) = (0, 0);
        if let Some(pages) = self.pages {
            for zone in self.zones_of(aim) {
                let len = zone.lru_total();
                let nr = priority.share(len);
                listed += len;
                scanned += nr;
                let scheme = (pages, self.scheme);
                look_at(scheme, cpu, zone, (nr, target), &mut pass).await;
            }
        }
        self.shrink_caches(cpu.this_cpu(), (scanned, listed), target, &mut pass);
        pass
    }

    fn zones_of(&self, aim: Aim) -> impl Iterator<Item = &Zone> {
        let zones = self.phys.populated_zones();
        zones.filter(move |zone| match aim {
            Aim::Request(highest) => zone.kind() <= highest,
            Aim::Node(node) => zone.node() == node && Self::missing_in(zone) > 0,
        })
    }

    /// Caches give back as large a part of what they have as pages were looked at, twice over (Linux `shrink_slab`); where there are no
    /// pages to be looked at they alone are asked.
    fn shrink_caches(&self, cpu: &Cpu, (scanned, listed): (u64, u64), target: u64, pass: &mut Pass) {
        for shrinker in self.shrinkers {
            let wanted = match listed {
                0 => target.saturating_sub(pass.freed),
                listed => (shrinker.freeable_pages() * 2 * scanned).div_ceil(listed),
            };
            if wanted > 0 {
                let freed = shrinker.shrink(cpu, wanted);
                self.events.slabs.add(freed);
                pass.freed += freed;
            }
        }
    }
}

/// Looks at `nr` pages of a zone's lists, a cluster at a time, as long as `target` is not reached.
async fn look_at(
    (pages, scheme): (&dyn PageReclaim, Scheme),
    cpu: impl ThisCpu + Copy,
    zone: &Zone,
    (nr, target): (u64, u64),
    pass: &mut Pass,
) {
    let mut looked_at = 0;
    while looked_at < nr && pass.freed + pass.written < target {
        let cluster = u32::try_from(CLUSTER).unwrap_or(u32::MAX);
        let shrunk = match scheme {
            Scheme::TwoList => pages.shrink_zone(cpu.this_cpu(), zone, cluster),
            Scheme::Launder => pages.launder_zone(cpu.this_cpu(), zone, cluster),
        };
        pass.freed += u64::from(shrunk.freed);
        pass.written += u64::from(shrunk.written);
        looked_at += CLUSTER;
        if looked_at.is_multiple_of(TURN) {
            others_turn().await;
        }
    }
}

/// Lets other tasks of this CPU run.
async fn others_turn() {
    let mut is_over = false;
    poll_fn(|context| {
        if is_over {
            return Poll::Ready(());
        }
        is_over = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
