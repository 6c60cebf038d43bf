//! Pages of areas that lie on memory which is to leave: another frame is put behind the same address.
//!
//! Whoever uses an area knows addresses and no frames, so the entry of the page table is all there is to change; but nobody may write to the
//! page between its copy and the last CPU's forgetting of the old frame, and the kernel takes no page faults. So all other CPUs stand still
//! for as long as a batch takes ([`KernelTlb::exchange`]).

use alloc::vec::Vec;

use super::{Areas, Kind, State, Vmalloc, kind_of, range_of, state_of};
use crate::frames::Frames;
use crate::kernel_map::{FrameSource, KernelRange, KernelTlb};
use crate::migrate::{Refusal, RefusalReason};
use crate::page::KernelUse;
use crate::pfn::{Order, PAGE_SHIFT, PAGE_SIZE, Pfn};

/// Pages for which all CPUs stand still together.
const BATCH: usize = 64;

/// What came of moving pages of the kernel's own.
#[must_use = "without memory the block cannot be emptied"]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KernelMoved {
    /// Frames that were left.
    pub pages: u32,
    /// There was no frame for the next one.
    pub lacks_memory: bool,
}

/// A page on its way.
struct Move {
    va: u64,
    from: Pfn,
    to: Pfn,
    /// It cannot be moved now.
    stays: bool,
}

impl Vmalloc {
    /// Moves those pages off isolated blocks that a batch of migration has refused because they are ours, and takes them out of the list.
    /// Pages of areas that are just being made or freed stay, and those of freed ones are given back.
    ///
    /// `frames` are those of page tables, `contents` all of them.
    pub fn move_off(
        &self,
        (frames, contents): (&impl Frames, &impl Frames),
        source: &impl FrameSource,
        tlb: &impl KernelTlb,
        refused: &mut Vec<Refusal>,
    ) -> KernelMoved {
        let mut moved = KernelMoved::default();
        let is_ours = |refusal: &Refusal| page_of(refusal).is_some();
        if refused.iter().any(is_ours) && self.stats().nr_lazy_pages > 0 {
            // Freed areas may be among them: their frames go back to the block.
            self.purge(frames, source, tlb);
        }
        let mut wanted: Vec<(u32, Pfn)> = Vec::new();
        wanted.extend(
            refused
                .iter()
                .filter_map(|refusal| Some((page_of(refusal)?, refusal.pfn))),
        );
        let mut gone = Vec::with_capacity(wanted.len());
        for batch in wanted.chunks(BATCH) {
            let mut moves = Vec::with_capacity(batch.len());
            for &(page, from) in batch {
                let Some(to) = source.take_spare_page() else {
                    moved.lacks_memory = true;
                    break;
                };
                // Before it has the address: whoever frees the area from then on takes the note back.
                source.note_page(to, Some(page));
                let va = self.window.start() + (u64::from(page) << PAGE_SHIFT);
                let stays = false;
                moves.push(Move { va, from, to, stays });
            }
            self.exchange((frames, contents), tlb, &mut moves);
            for Move { from, .. } in moves.extract_if(.., |moving| !moving.stays) {
                source.note_page(from, None);
                source.give(from, Order::ZERO);
                gone.push(from);
                moved.pages += 1;
            }
            for Move { to, .. } in moves {
                source.note_page(to, None);
                source.give(to, Order::ZERO);
            }
            if moved.lacks_memory {
                break;
            }
        }
        refused.retain(|refusal| !gone.contains(&refusal.pfn));
        moved
    }

    /// Puts the new frames behind the addresses of `moves`, or notes that a page stays.
    fn exchange(
        &self,
        (frames, contents): (&impl Frames, &impl Frames),
        tlb: &impl KernelTlb,
        moves: &mut [Move],
    ) {
        // Held until all is done: an area that is in use now stays so.
        let areas = self.areas.lock();
        for wanted in moves.iter_mut() {
            let in_use = is_in_use(&areas, frames, wanted.va);
            wanted.stays = !in_use || self.frame_at(frames, wanted.va) != Some(wanted.from);
        }
        let addresses = || {
            moves
                .iter()
                .filter(|moving| !moving.stays)
                .map(|moving| moving.va)
        };
        let lowest = addresses().min();
        let highest = addresses().map(|va| va + PAGE_SIZE).max();
        if let (Some(lowest), Some(highest)) = (lowest, highest)
            && let Some(range) = KernelRange::new(lowest, highest - lowest)
        {
            tlb.exchange(range, &mut || {
                for Move { va, from, to, .. } in moves.iter().filter(|moving| !moving.stays) {
                    contents.copy(*from, *to, Order::ZERO);
                    let (entry, _) = self.tables.lookup(frames, *va);
                    self.tables.set_page(frames, *va, entry.with_pfn(*to));
                }
            });
        }
        drop(areas);
    }
}

/// The page of ours that was refused.
const fn page_of(refusal: &Refusal) -> Option<u32> {
    match refusal.reason {
        RefusalReason::Unmovable(KernelUse::Vmalloc { page }) => Some(page),
        _ => None,
    }
}

/// Whether an address lies in an area in use, with frames of its own.
fn is_in_use(areas: &Areas, frames: &impl Frames, va: u64) -> bool {
    areas.tree.last_up_to(frames, va).is_some_and(|node| {
        let is_used = (kind_of(frames, node), state_of(frames, node)) == (Kind::Vmalloc, State::Used);
        is_used && range_of(frames, node).contains(va)
    })
}
