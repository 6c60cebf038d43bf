//! Rows that take a zone's or a node's last frames, to see who may still have some.

use super::hoard::Hoard;
use super::{Bench, Checks, Row, Step};
use alloc::format;
use alloc::vec::Vec;
use guest_mm::frames::Frames;
use guest_mm::node::NodeId;
use guest_mm::{Gfp, Order, Watermark, ZoneKind};

/// Frames taken or given back in one step.
const PAGES_A_STEP: u64 = 1024;
/// The requests that do.
const FALLING_BACK: Gfp = Gfp::HIGHMEM.with(Gfp::MOVABLE);
/// Frames that are asked for where the near node has none.
const FALLBACKS: usize = 16;

/// Takes chunks, the largest first, until there is not a single frame left for such a request, or about
/// [`PAGES_A_STEP`] frames were taken.
pub(super) fn exhaust<F: Frames>(
    hoard: &mut Hoard,
    bench: &Bench<'_, F>,
    (gfp, node): (Gfp, NodeId),
    checks: &mut Checks,
) -> Step {
    let end = hoard.nr_pages() + PAGES_A_STEP;
    let orders: Vec<Order> = Order::all().collect();
    for order in orders.into_iter().rev() {
        while hoard.nr_pages() < end {
            if hoard.take(bench, (gfp, order, Some(node)), checks).is_none() {
                break;
            }
        }
    }
    if hoard.nr_pages() < end {
        Step::Done
    } else {
        Step::More
    }
}

/// The zone DMA emptied by ever more privileged requests: ordinary ones end at the minimum, atomic ones at half of it, and
/// those of who frees memory at nothing (row P4).
///
/// That zone, because nobody else takes from it while there is anything left elsewhere.
#[derive(Debug)]
pub struct Atomic {
    hoard: Hoard,
    level: usize,
    /// Steps that it still looks at the empty zone.
    looks_left: u32,
}

impl Default for Atomic {
    fn default() -> Self {
        Self {
            hoard: Hoard::new(4),
            level: 0,
            looks_left: 0,
        }
    }
}

/// How many steps it looks at the empty zone.
const LOOKS: u32 = 64;

/// Kinds of requests, and what each leaves in the zone.
const LEVELS: [(Gfp, &str, Option<Watermark>); 3] = [
    (Gfp::DMA, "ordinary", Some(Watermark::Min)),
    (Gfp::DMA.with(Gfp::HIGH), "atomic", Some(Watermark::Critical)),
    (Gfp::DMA.with(Gfp::MEMALLOC), "memalloc", None),
];

impl<F: Frames> Row<F> for Atomic {
    fn begin(&mut self, seed: u64) {
        self.hoard = Hoard::new(seed);
        self.level = 0;
        self.looks_left = LOOKS;
    }

    fn step(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        let Some(&(gfp, name, mark)) = LEVELS.get(self.level) else {
            // For a while, so that it can be seen from outside too.
            if self.looks_left > 0 {
                self.looks_left -= 1;
                let found = bench.phys.alloc_pages_node(
                    bench.cpu,
                    NodeId::ZERO,
                    LEVELS[0].0.with(Gfp::THIS_NODE),
                    Order::ZERO,
                );
                checks.that(found.is_err(), || format!("{found:?} in an empty zone"));
                return Step::More;
            }
            return <Self as Row<F>>::end(self, bench, checks);
        };
        let zone = bench.phys.zone(NodeId::ZERO, ZoneKind::Dma);
        let before = self.hoard.nr_pages();
        let gfp = gfp.with(Gfp::THIS_NODE);
        if exhaust(&mut self.hoard, bench, (gfp, NodeId::ZERO), checks) == Step::More {
            return Step::More;
        }
        let free = zone.counters().free_pages;
        let left = mark.map_or(0, |mark| zone.watermark(mark));
        checks.that(free <= left, || {
            format!("{name} requests fail with {free} frames free, and may leave {left}")
        });
        // Below a mark only the more privileged got here: each of them has to have got something.
        let got = self.hoard.nr_pages() - before;
        checks.that(got > 0, || {
            format!("{name} requests got nothing below the level of those before")
        });
        self.level += 1;
        Step::More
    }

    fn end(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        if !self.hoard.give_some(bench, PAGES_A_STEP, checks) {
            return Step::More;
        }
        Step::Done
    }

    fn exhausts(&self) -> bool {
        true
    }
}

/// Each node asked for its own frames, and one of them emptied: requests near to it go to the nearest node that has some
/// (row P2).
#[derive(Debug)]
pub struct Nodes {
    hoard: Hoard,
    fallen_back: Hoard,
    seed: u64,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Near,
    Exhaust,
    Release,
}

impl Default for Nodes {
    fn default() -> Self {
        Self {
            hoard: Hoard::new(5),
            fallen_back: Hoard::new(6),
            seed: 0,
            phase: Phase::Near,
        }
    }
}

impl Nodes {
    /// The node that is emptied: any but the first, whose memory is the kernel's too.
    fn target<F>(&self, bench: &Bench<'_, F>) -> Option<NodeId> {
        let others = u64::from(bench.phys.topology().nr_nodes() - 1);
        let number = self.seed.checked_rem(others)? + 1;
        u8::try_from(number).ok().and_then(NodeId::new)
    }

    fn near<F: Frames>(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) {
        for node in bench.phys.topology().nodes() {
            for gfp in [Gfp::NONE, Gfp::HIGHMEM.with(Gfp::MOVABLE)] {
                let gfp = gfp.with(Gfp::THIS_NODE);
                let has_memory = free_of(bench, node, gfp) > 256;
                let pfn = self.hoard.take(bench, (gfp, Order::ZERO, Some(node)), checks);
                checks.that(pfn.is_some() || !has_memory, || {
                    format!("node {node} has memory, and none for a {gfp:?} request")
                });
            }
        }
        let own = bench.phys.topology().node_of(bench.cpu.id());
        let has_memory = free_of(bench, own, Gfp::NONE) > 256;
        let pfn = self.hoard.take(bench, (Gfp::NONE, Order::ZERO, None), checks);
        let found = pfn
            .and_then(|pfn| bench.phys.zone_of(pfn))
            .map(guest_mm::Zone::node);
        checks.that(found == Some(own) || !has_memory, || {
            format!(
                "a request of {} was served by {found:?}, and is near to node {own}",
                bench.cpu.id()
            )
        });
        self.hoard.give_some(bench, u64::MAX, checks);
    }

    /// With `target` empty: requests near to it go to the nearest other node with memory.
    fn fall_back<F: Frames>(&mut self, bench: &Bench<'_, F>, target: NodeId, checks: &mut Checks) {
        let topology = bench.phys.topology();
        let others = topology
            .nodes()
            .filter(|&node| node != target && free_of(bench, node, FALLING_BACK) > 1024);
        let nearest = others.map(|node| topology.distance(target, node)).min();
        let Some(nearest) = nearest.filter(|distance| *distance < u8::MAX) else {
            return;
        };
        let gfp = FALLING_BACK;
        for _ in 0..FALLBACKS {
            let pfn = self
                .fallen_back
                .take(bench, (gfp, Order::ZERO, Some(target)), checks);
            let found = pfn
                .and_then(|pfn| bench.phys.zone_of(pfn))
                .map(guest_mm::Zone::node);
            let distance = found.map(|node| topology.distance(target, node));
            checks.that(distance == Some(nearest), || {
                format!(
                    "node {target} is full: node {found:?} served, and there is one at distance {nearest}"
                )
            });
        }
    }
}

/// Free frames of a node for such a request, without what its watermarks and reserves keep.
fn free_of<F>(bench: &Bench<'_, F>, node: NodeId, gfp: Gfp) -> u64 {
    let kinds = ZoneKind::ALL
        .into_iter()
        .filter(|kind| *kind <= gfp.highest_zone());
    let zones = kinds.map(|kind| bench.phys.zone(node, kind));
    let available = zones.map(|zone| {
        let kept = zone.watermark(Watermark::High) + zone.reserve(ZoneKind::Movable);
        zone.counters().free_pages.saturating_sub(kept)
    });
    available.sum()
}

impl<F: Frames> Row<F> for Nodes {
    fn begin(&mut self, seed: u64) {
        self.seed = seed;
        self.hoard = Hoard::new(seed);
        self.fallen_back = Hoard::new(seed.rotate_left(1));
        self.phase = Phase::Near;
    }

    fn step(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        match (self.phase, self.target(bench)) {
            (Phase::Near, target) => {
                self.near(bench, checks);
                self.phase = Phase::Exhaust;
                if target.is_some() { Step::More } else { Step::Done }
            }
            (Phase::Exhaust, Some(target)) => {
                let gfp = Gfp::HIGHMEM.with(Gfp::MOVABLE).with(Gfp::THIS_NODE);
                if exhaust(&mut self.hoard, bench, (gfp, target), checks) == Step::Done {
                    self.fall_back(bench, target, checks);
                    self.phase = Phase::Release;
                }
                Step::More
            }
            (Phase::Exhaust, None) | (Phase::Release, _) => <Self as Row<F>>::end(self, bench, checks),
        }
    }

    fn end(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) -> Step {
        let is_empty = self.hoard.give_some(bench, PAGES_A_STEP, checks);
        if is_empty && self.fallen_back.give_some(bench, PAGES_A_STEP, checks) {
            Step::Done
        } else {
            Step::More
        }
    }

    fn exhausts(&self) -> bool {
        true
    }
}
