//! Chunks of frames that a row holds: each filled with a pattern of its own, compared before it is given back.

use super::{Bench, Checks};
use alloc::format;
use alloc::vec::Vec;
use guest_mm::frames::Frames;
use guest_mm::node::NodeId;
use guest_mm::phys::FrameState;
use guest_mm::{Gfp, Order, Pfn};
use guest_programs::pattern::{Page, Pattern, Random, WORDS, mix};

/// A chunk that is held.
#[derive(Clone, Copy, Debug)]
struct Held {
    pfn: Pfn,
    order: Order,
    /// How many chunks the hoard had taken before: its pattern differs from that of whoever had the frames earlier.
    stamp: u32,
}

/// Chunks of one owner.
#[derive(Debug, Default)]
pub(super) struct Hoard {
    held: Vec<Held>,
    nr_pages: u64,
    nr_taken: u32,
    seed: u64,
}

impl Hoard {
    /// Nothing held; patterns follow from `seed`.
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed: mix(seed),
            ..Self::default()
        }
    }

    /// Chunks held.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Frames held.
    pub(super) fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Takes a chunk, near to `node` if one is named, checks where it lies, and fills it. `None` if there is none.
    pub(super) fn take<F: Frames>(
        &mut self,
        bench: &Bench<'_, F>,
        (gfp, order, node): (Gfp, Order, Option<NodeId>),
        checks: &mut Checks,
    ) -> Option<Pfn> {
        // Before frames are taken: afterwards there may be no memory for the list.
        self.held.try_reserve(1).ok()?;
        let Bench { phys, cpu, .. } = *bench;
        let pfn = match node {
            Some(node) => phys.alloc_pages_node(cpu, node, gfp, order),
            None => phys.alloc_pages(cpu, gfp, order),
        };
        let pfn = pfn.ok()?;
        checks.that(pfn.is_aligned(order), || {
            format!("{pfn} is not aligned to order {}", order.number())
        });
        let zone = phys.zone_of(pfn);
        checks.that(zone.is_some_and(|zone| zone.kind() <= gfp.highest_zone()), || {
            let zone = zone.map_or("none", |zone| zone.kind().name());
            format!("{pfn} of zone {zone} for a {gfp:?} request")
        });
        if gfp.has(Gfp::THIS_NODE) {
            let wanted = node.unwrap_or_else(|| phys.topology().node_of(cpu.id()));
            checks.that(zone.is_some_and(|zone| zone.node() == wanted), || {
                format!("{pfn} is not of node {wanted}, as asked for")
            });
        }
        let state = phys.frame_state(pfn);
        checks.that(state == FrameState::Allocated(order), || {
            format!(
                "{pfn} was handed out with order {}, and is {state:?}",
                order.number()
            )
        });
        let held = Held {
            pfn,
            order,
            stamp: self.nr_taken,
        };
        self.fill(bench.frames, held);
        self.held.push(held);
        self.nr_taken = self.nr_taken.wrapping_add(1);
        self.nr_pages += u64::from(order.nr_pages());
        Some(pfn)
    }

    /// Compares the chunk at a place in the list and gives it back; the last one takes its place. Nothing happens
    /// beyond the end.
    pub(super) fn give<F: Frames>(&mut self, bench: &Bench<'_, F>, index: usize, checks: &mut Checks) {
        if index >= self.held.len() {
            return;
        }
        let held = self.held.swap_remove(index);
        self.nr_pages -= u64::from(held.order.nr_pages());
        self.compare(bench.frames, held, checks);
        let freed = bench.phys.free_pages(bench.cpu, held.pfn);
        checks.that(freed.is_ok(), || {
            format!("{} cannot be freed: {freed:?}", held.pfn)
        });
    }

    /// Gives the chunk back that was taken last.
    pub(super) fn give_last<F: Frames>(&mut self, bench: &Bench<'_, F>, checks: &mut Checks) {
        if let Some(last) = self.held.len().checked_sub(1) {
            self.give(bench, last, checks);
        }
    }

    /// Gives any one back.
    pub(super) fn give_any<F: Frames>(
        &mut self,
        bench: &Bench<'_, F>,
        random: &mut Random,
        checks: &mut Checks,
    ) {
        let index = random.below(self.held.len() as u64);
        self.give(bench, usize::try_from(index).unwrap_or(0), checks);
    }

    /// Gives chunks back until nothing is left or about `nr_pages` are gone. True when nothing is left.
    pub(super) fn give_some<F: Frames>(
        &mut self,
        bench: &Bench<'_, F>,
        nr_pages: u64,
        checks: &mut Checks,
    ) -> bool {
        let left = self.nr_pages.saturating_sub(nr_pages);
        while self.nr_pages > left {
            self.give_last(bench, checks);
        }
        self.held.is_empty()
    }

    fn pattern(&self, held: Held, pfn: Pfn) -> Pattern {
        Pattern::new(self.seed, pfn.gpa(), held.stamp)
    }

    fn fill(&self, frames: &impl Frames, held: Held) {
        for pfn in frames_of(held) {
            let mut page: Page = [0; WORDS];
            self.pattern(held, pfn).fill(&mut page);
            write_page(frames, pfn, &page);
        }
    }

    /// One check a frame.
    fn compare(&self, frames: &impl Frames, held: Held, checks: &mut Checks) {
        for pfn in frames_of(held) {
            let page = read_page(frames, pfn);
            let compared = self.pattern(held, pfn).check(&page);
            checks.that(compared.is_ok(), || {
                format!(
                    "{pfn} of the chunk {} of order {}: {compared:?}",
                    held.pfn,
                    held.order.number()
                )
            });
        }
    }
}

/// Writes all of a frame at once: one that is not in the direct map has to be mapped for every access.
pub(super) fn write_page(frames: &impl Frames, pfn: Pfn, page: &Page) {
    frames.write_bytes(pfn, 0, page.map(u64::to_le_bytes).as_flattened());
}

/// Reads all of a frame at once.
pub(super) fn read_page(frames: &impl Frames, pfn: Pfn) -> Page {
    let mut words = [[0; 8]; WORDS];
    frames.read_bytes(pfn, 0, words.as_flattened_mut());
    words.map(u64::from_le_bytes)
}

fn frames_of(held: Held) -> impl Iterator<Item = Pfn> {
    (0..held.order.nr_pages()).filter_map(move |frame| Some(Pfn::new(held.pfn.number().checked_add(frame)?)))
}
