//! Blocks that are emptied, taken away and brought back under the programs; now and then it thinks better of it.

use super::executor::pause;
use super::{BLOCK, BLOCKS, Sim, count};
use crate::blocks::{BlockIndex, BlockState, IsolateError, IsolatedBlock};
use crate::migrate::{BatchEnd, Eviction, RefusalReason};
use crate::tests::phys_model::plug;
use crate::{Frames, ZoneKind};

/// What is in frames that are away: nobody may meet it.
const GONE: u64 = 0xdead_beef_dead_beef;
const WORDS: usize = 512;

pub(super) async fn live(sim: &Sim<'_>) {
    while !sim.is_ending.get() {
        for _ in 0..sim.below(20) {
            pause().await;
        }
        let block = BlockIndex(u32::try_from(sim.below(BLOCKS.into())).unwrap());
        match sim.mm.phys.hotplug_region().state(block) {
            Some(BlockState::Unplugged) => plug(sim.mm.phys, block, ZoneKind::Movable),
            Some(BlockState::Online) => match sim.mm.phys.isolate(block) {
                Ok(isolated) => remove(sim, isolated).await,
                Err(IsolateError::Pinned { holder, .. }) => {
                    let is_direct = holder == super::direct::HOLDER;
                    count(&sim.seen.direct_refusals, u32::from(is_direct));
                }
                Err(error) => panic!("{error}"),
            },
            state => panic!("{block:?} is {state:?}"),
        }
    }
    for block in (0..BLOCKS).map(BlockIndex) {
        if sim.mm.phys.hotplug_region().state(block) == Some(BlockState::Unplugged) {
            plug(sim.mm.phys, block, ZoneKind::Movable);
        }
    }
}

/// Moves everything off a block and takes it away, or puts it back.
async fn remove(sim: &Sim<'_>, mut block: IsolatedBlock) {
    let index = block.block();
    for _ in 0..200 {
        pause().await;
        if sim.one_in(40) {
            break;
        }
        match move_some(sim, &mut block).await {
            BatchEnd::Budget => {}
            BatchEnd::NoMemory if sim.one_in(2) => break,
            BatchEnd::NoMemory => {}
            // Nothing here waits for busy pages.
            BatchEnd::Busy(pfn) => panic!("{pfn} is waited for"),
            BatchEnd::NoHugePage => {
                sim.with_failures(|| sim.mm.make_huge_page(sim.cpu, &mut block));
            }
            BatchEnd::PassDone => match sim.mm.phys.offline(block) {
                Ok(()) => {
                    let range = sim.mm.phys.hotplug_region().block_range(index).unwrap();
                    for pfn in range.iter() {
                        (0..WORDS).for_each(|word| sim.mm.frames.write(pfn, word, GONE));
                    }
                    sim.mm.phys.unplugged(index).unwrap();
                    count(&sim.seen.blocks_removed, 1);
                    return;
                }
                Err(used) => {
                    block = used.block;
                    block.rewind();
                }
            },
        }
    }
    sim.mm.phys.undo(block);
}

/// One batch, with programs running between its steps.
async fn move_some(sim: &Sim<'_>, block: &mut IsolatedBlock) -> BatchEnd {
    let budget = u32::try_from(1 + sim.below(u64::from(BLOCK) / 4)).unwrap();
    let which = [None, Some(Eviction::Cold), Some(Eviction::All)][usize::try_from(sim.below(3)).unwrap()];
    if let Some(which) = which {
        let evicted = sim.with_failures(|| sim.mm.evict_batch(sim.cpu, block, which, budget));
        count(&sim.seen.evicted_pages, evicted.freed + evicted.written);
        if evicted.is_pass_done {
            block.rewind();
        }
        pause().await;
    }
    let mut batch = sim.with_failures(|| sim.mm.begin_migration(sim.cpu, block, budget));
    for _ in 0..sim.below(4) {
        pause().await;
    }
    if sim.one_in(8) {
        sim.mm.abort_migration(sim.cpu, batch);
        return BatchEnd::Budget;
    }
    batch.copy(&sim.mm.frames);
    for _ in 0..sim.below(2) {
        pause().await;
    }
    let report = sim.mm.finish_migration(sim.cpu, block, batch);
    let direct = RefusalReason::Pinned {
        holder: super::direct::HOLDER,
    };
    for refusal in &report.refused {
        // A page may be on its way to the disk.
        let pinned = [RefusalReason::Pinned { holder: "device" }, direct];
        let is_known = pinned.contains(&refusal.reason) || refusal.reason == RefusalReason::Busy;
        assert!(is_known, "{refusal}");
        count(&sim.seen.direct_refusals, u32::from(refusal.reason == direct));
    }
    count(
        &sim.seen.moved_pages,
        report.moved_small + 512 * report.moved_huge,
    );
    report.end
}
