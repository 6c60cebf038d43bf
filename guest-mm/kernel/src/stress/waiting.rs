//! Requests that find nothing, and what they are served from (row P4).

use super::hoard::Hoard;
use super::pressure::exhaust;
use super::{Bench, Checks, Step};
use alloc::format;
use alloc::vec::Vec;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use guest_mm::frames::Frames;
use guest_mm::node::NodeId;
use guest_mm::phys::PhysicalMemory;
use guest_mm::reclaim::{Reclaim, Shrinker};
use guest_mm::{Gfp, Order, Pfn, ZoneKind};
use guest_sync::{Cpu, SpinLock};

/// Frames that are set aside for each of the two ways of being served.
const STOCK: usize = 64;
/// Frames given back in one step.
const PAGES_A_STEP: u64 = 1024;
/// The zone that is emptied: nobody else takes from it while there is anything left elsewhere.
const ORDINARY: Gfp = Gfp::DMA.with(Gfp::THIS_NODE);
/// What waits for it.
pub const WAITING: Gfp = Gfp::DMA.with(Gfp::WAIT);

/// Frames that are kept only to be given back when memory is short, like those of any cache.
#[derive(Debug)]
pub struct Pantry<'a> {
    phys: &'a PhysicalMemory<'a>,
    frames: SpinLock<Vec<Pfn>>,
}

impl<'a> Pantry<'a> {
    /// Nothing kept.
    pub const fn new(phys: &'a PhysicalMemory<'a>) -> Self {
        Self {
            phys,
            frames: SpinLock::new(Vec::new()),
        }
    }

    /// Keeps these too.
    fn stock(&self, more: Vec<Pfn>) {
        // Never both lists under the lock: what is too much is dropped outside of it.
        let before = core::mem::take(&mut *self.frames.lock());
        let all: Vec<Pfn> = before.into_iter().chain(more).collect();
        *self.frames.lock() = all;
    }
}

impl Shrinker for Pantry<'_> {
    fn name(&self) -> &str {
        "stress-pantry"
    }

    fn freeable_pages(&self) -> u64 {
        self.frames.lock().len() as u64
    }

    fn shrink(&self, cpu: &Cpu, nr_pages: u64) -> u64 {
        let mut freed = 0;
        while freed < nr_pages {
            let Some(pfn) = self.frames.lock().pop() else {
                break;
            };
            freed += u64::from(self.phys.free_pages(cpu, pfn).is_ok());
        }
        freed
    }
}

/// The zone DMA emptied, and requests for it that may wait: one that reclaim serves at once, and one that has to sleep.
#[derive(Debug)]
pub struct Wait<'s> {
    pantry: &'s Pantry<'s>,
    hoard: Hoard,
    reserve: Vec<Pfn>,
}

impl<'s> Wait<'s> {
    /// Nothing held; patterns follow from `seed`.
    pub fn new(pantry: &'s Pantry<'s>, seed: u64) -> Self {
        Self {
            pantry,
            hoard: Hoard::new(seed),
            reserve: Vec::new(),
        }
    }

    /// Sets frames of the zone aside, then takes the others, as far as ordinary requests get them; done when there are
    /// none left.
    pub fn empty_zone<F: Frames>(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        if self.reserve.is_empty() && self.reserve.try_reserve(STOCK).is_ok() {
            let take = || {
                bench
                    .phys
                    .alloc_pages_node(bench.cpu, NodeId::ZERO, ORDINARY, Order::ZERO)
                    .ok()
            };
            self.reserve.extend(core::iter::from_fn(take).take(STOCK));
            let found = self.reserve.len();
            checks.that(found == STOCK, || format!("only {found} frames for DMA"));
        }
        exhaust(&mut self.hoard, bench, (ORDINARY, NodeId::ZERO), checks)
    }

    /// What was set aside is from now on to be had by reclaim, and by nothing else.
    pub fn stock_pantry(&mut self) {
        self.pantry.stock(core::mem::take(&mut self.reserve));
    }

    /// With the pantry stocked: a request that may wait does not have to.
    pub fn served_at_once<F: Frames>(
        &self,
        bench: &Bench<'_, F>,
        reclaim: &Reclaim<'_>,
        checks: &mut Checks,
    ) {
        let kept = self.pantry.freeable_pages();
        let mut request = pin!(reclaim.alloc_pages(bench.cpu, WAITING, Order::ZERO));
        let polled = request.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // The daemon of the node may have been quicker.
        let left = self.pantry.freeable_pages();
        checks.that(left < kept || kept < STOCK as u64, || {
            format!("{left} frames of {kept} could be reclaimed, and were not")
        });
        match polled {
            Poll::Ready(Ok(pfn)) => Self::give_served(bench, pfn, checks),
            polled => {
                checks.that(false, || {
                    format!("{left} frames of {kept} are left, and the request has {polled:?}")
                });
            }
        }
    }

    /// With nothing in the pantry: a request that may wait does.
    pub fn has_to_wait<F: Frames>(
        &mut self,
        bench: &Bench<'_, F>,
        reclaim: &Reclaim<'_>,
        checks: &mut Checks,
    ) {
        let waiting = bench.phys.nr_waiting();
        let mut request = pin!(reclaim.alloc_pages(bench.cpu, WAITING, Order::ZERO));
        let mut context = Context::from_waker(Waker::noop());
        let is_pending = request.as_mut().poll(&mut context).is_pending();
        checks.that(is_pending && bench.phys.nr_waiting() > waiting, || {
            "a request in an empty zone does not wait".into()
        });
        if !is_pending {
            return;
        }
        self.hoard.give_last(bench, checks);
        match request.as_mut().poll(&mut context) {
            Poll::Ready(Ok(pfn)) => Self::give_served(bench, pfn, checks),
            polled => {
                checks.that(false, || {
                    format!("frames were freed, and who waited has {polled:?}")
                });
            }
        }
    }

    /// Checks what a request got that waited, and gives it back.
    pub fn give_served<F>(bench: &Bench<'_, F>, pfn: Pfn, checks: &mut Checks) {
        let is_right = bench
            .phys
            .zone_of(pfn)
            .is_some_and(|zone| zone.kind() == ZoneKind::Dma);
        checks.that(is_right, || format!("{pfn} is not of the zone DMA"));
        let freed = bench.phys.free_pages(bench.cpu, pfn);
        checks.that(freed.is_ok(), || format!("{freed:?}"));
    }

    /// Gives everything back.
    pub fn end<F: Frames>(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        self.pantry.shrink(bench.cpu, u64::MAX);
        for pfn in core::mem::take(&mut self.reserve) {
            let freed = bench.phys.free_pages(bench.cpu, pfn);
            checks.that(freed.is_ok(), || format!("{freed:?}"));
        }
        if self.hoard.give_some(bench, PAGES_A_STEP, checks) {
            Step::Done
        } else {
            Step::More
        }
    }
}
