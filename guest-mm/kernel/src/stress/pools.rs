//! A pool whose allocator has nothing left (row P11).

use super::hoard::Hoard;
use super::objects::Object;
use super::pressure::exhaust;
use super::{Bench, Checks, Row, Step};
use alloc::format;
use alloc::vec::Vec;
use core::num::NonZeroUsize;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use guest_mm::Gfp;
use guest_mm::frames::Frames;
use guest_mm::mempool::{KmallocSource, Mempool};
use guest_mm::node::NodeId;
use guest_mm::slab::{SlabAllocator, SlabSource};

/// Elements that the pool keeps.
const KEPT: NonZeroUsize = NonZeroUsize::new(12).expect("12 is not 0");
/// Bytes of an element.
const ELEMENT_SIZE: usize = 4096;
/// Most elements taken: what the pool keeps, and what slabs had left.
const MOST: usize = 512;
/// Frames given back in one step.
const PAGES_A_STEP: u64 = 1024;

/// Elements of the zone DMA, which is emptied: the allocator fails, the pool lends what it keeps, and who comes then waits
/// until an element is freed.
pub struct Pool<'s, F: Frames, P: SlabSource> {
    slabs: &'s SlabAllocator<F, P>,
    pool: Option<Mempool<KmallocSource<'s, F, P>>>,
    hoard: Hoard,
    is_done: bool,
}

impl<'s, F: Frames, P: SlabSource> Pool<'s, F, P> {
    /// Nothing yet.
    pub fn new(slabs: &'s SlabAllocator<F, P>) -> Self {
        Self {
            slabs,
            pool: None,
            hoard: Hoard::new(7),
            is_done: false,
        }
    }

    /// Takes all there is, waits, and gives it back.
    fn lend<G>(&self, bench: &Bench<'_, G>, checks: &mut Checks) {
        let Some(pool) = &self.pool else { return };
        let before = pool.stats();
        let mut elements: Vec<Object> = Vec::new();
        while elements.len() < MOST
            && elements.try_reserve(1).is_ok()
            && let Some(at) = pool.try_alloc(bench.cpu, Gfp::DMA)
        {
            let element = Object::new(at, ELEMENT_SIZE as u64, elements.len() as u64);
            element.fill(self.slabs.frames(), 0);
            elements.push(element);
        }
        let stats = pool.stats();
        let lent = stats.from_pool - before.from_pool;
        checks.that(lent == KEPT.get() as u64 && stats.curr_nr == 0, || {
            format!("{lent} elements of {KEPT} were lent when the allocator failed: {stats:?}")
        });
        let Some(last) = elements.pop() else {
            checks.that(false, || format!("the pool gave nothing: {stats:?}"));
            return;
        };
        let mut waiting = pin!(pool.alloc(bench.cpu, Gfp::DMA));
        let mut context = Context::from_waker(Waker::noop());
        let is_waiting = waiting.as_mut().poll(&mut context).is_pending();
        checks.that(is_waiting && pool.stats().waiting == 1, || {
            format!("a request of an empty pool does not wait: {:?}", pool.stats())
        });
        last.compare(self.slabs.frames(), 0, checks);
        pool.free(bench.cpu, last.at);
        match waiting.as_mut().poll(&mut context) {
            Poll::Ready(at) if is_waiting => {
                checks.that(at == last.at, || {
                    format!("{} was freed, and {at} came to who waited", last.at)
                });
                pool.free(bench.cpu, at);
            }
            polled => {
                checks.that(false, || {
                    format!("an element was freed, and who waited has {polled:?}")
                });
            }
        }
        for element in elements {
            element.compare(self.slabs.frames(), 0, checks);
            pool.free(bench.cpu, element.at);
        }
        let stats = pool.stats();
        checks.that(
            stats.curr_nr == KEPT.get() && stats.out == before.out && stats.waiting == 0,
            || format!("not as before: {before:?}, {stats:?}"),
        );
    }
}

impl<G: Frames, F: Frames + Sync, P: SlabSource + Sync> Row<G> for Pool<'_, F, P> {
    fn begin(&mut self, seed: u64) {
        self.hoard = Hoard::new(seed);
        self.is_done = false;
    }

    fn step(&mut self, bench: &Bench<'_, G>, checks: &mut Checks) -> Step {
        if self.is_done {
            return if self.hoard.give_some(bench, PAGES_A_STEP, checks) {
                Step::Done
            } else {
                Step::More
            };
        }
        if self.pool.is_none() {
            let source = KmallocSource {
                slabs: self.slabs,
                size: ELEMENT_SIZE,
            };
            let pool = Mempool::new(bench.cpu, source, KEPT, Gfp::DMA);
            checks.that(pool.is_ok(), || format!("{:?}", pool.as_ref().err()));
            self.pool = pool.ok();
        }
        // On every node there may be some.
        for node in bench.phys.topology().nodes().collect::<Vec<NodeId>>() {
            let gfp = Gfp::DMA.with(Gfp::THIS_NODE);
            if exhaust(&mut self.hoard, bench, (gfp, node), checks) == Step::More {
                return Step::More;
            }
        }
        self.lend(bench, checks);
        self.is_done = true;
        Step::More
    }

    fn end(&mut self, bench: &Bench<'_, G>, checks: &mut Checks) -> Step {
        if !self.hoard.give_some(bench, PAGES_A_STEP, checks) {
            return Step::More;
        }
        if let Some(pool) = self.pool.take() {
            let destroyed = pool.destroy(bench.cpu);
            checks.that(destroyed.is_ok(), || format!("{destroyed:?}"));
        }
        Step::Done
    }

    fn exhausts(&self) -> bool {
        true
    }
}
