//! Blocks that are emptied, taken away and brought back under the programs, or packed; as often as not it is given up halfway.

use std::vec::Vec;

use super::executor::{GivenUp, give_up_after};
use super::leaving::{Emptied, Leaving};
use super::together::Together;
use super::{BLOCK, BLOCKS, Sim, count};
use crate::blocks::{BlockIndex, BlockState, IsolatedBlock};
use crate::migrate::Method;
use crate::tests::phys_model::plug;
use crate::{Gfp, Order, Pfn, ZoneKind};

/// Turns that programs have at most to use another block.
const MOST_TURNS: u64 = 60;
/// Most waits before something is given up.
const MOST_WAITS: u64 = 25;

pub(super) async fn live(sim: &Sim<'_>) {
    while !sim.is_ending.get() {
        sim.clock.sleep(1 + sim.below(100)).await;
        if sim.one_in(5) {
            pack(sim).await;
            continue;
        }
        if sim.one_in(4) {
            let used = use_all(sim).await;
            remove(sim, &used).await;
            continue;
        }
        let block = BlockIndex(u32::try_from(sim.below(BLOCKS.into())).unwrap());
        match sim.mm.phys.hotplug_region().state(block) {
            Some(BlockState::Unplugged) => plug(sim.mm.phys, block, ZoneKind::Movable),
            Some(BlockState::Online) => {
                let used = sim.mm.phys.block_usage(block).map(|usage| usage.used_pages);
                if used == Some(0) && !sim.one_in(4) {
                    continue;
                }
                remove(sim, &[block]).await;
            }
            state => panic!("{block:?} is {state:?}"),
        }
    }
    plug_all(sim);
}

fn plug_all(sim: &Sim<'_>) {
    for block in (0..BLOCKS).map(BlockIndex) {
        if sim.mm.phys.hotplug_region().state(block) == Some(BlockState::Unplugged) {
            plug(sim.mm.phys, block, ZoneKind::Movable);
        }
    }
}

/// Plugs all blocks and has programs use as many of them as they do: pages are on the fullest one as long as it is not full, so somebody else has what
/// is free there, for some time.
async fn use_all(sim: &Sim<'_>) -> Vec<BlockIndex> {
    plug_all(sim);
    let usage = |block| sim.mm.phys.block_usage(block).map(|usage| usage.used_pages);
    let most_used = (0..BLOCKS).map(BlockIndex).filter_map(usage).max();
    let free = BLOCK - most_used.unwrap_or(BLOCK);
    let take = |_| sim.mm.phys.alloc_pages(sim.cpu, Gfp::USER, Order::ZERO).ok();
    let taken: Vec<Pfn> = (0..free).map_while(take).collect();
    sim.clock.sleep(sim.below(MOST_TURNS)).await;
    for pfn in taken {
        sim.mm.phys.free_pages(sim.cpu, pfn).unwrap();
    }
    all_used(sim)
}

/// All blocks that somebody uses, in one order or the other.
fn all_used(sim: &Sim<'_>) -> Vec<BlockIndex> {
    let usage = |block: &BlockIndex| sim.mm.phys.block_usage(*block);
    let is_used = |block: &BlockIndex| usage(block).is_some_and(|usage| usage.used_pages > 0);
    let mut blocks: Vec<_> = (0..BLOCKS).map(BlockIndex).filter(is_used).collect();
    if sim.one_in(2) {
        blocks.reverse();
    }
    blocks
}

/// Nobody pins for longer than a transfer takes, so every block can be isolated.
fn isolate(sim: &Sim<'_>, block: BlockIndex) -> IsolatedBlock {
    let isolated = sim.mm.phys.isolate(block);
    isolated.unwrap_or_else(|error| panic!("{error}"))
}

/// Does something to its end, or gives it up where it waits.
async fn perhaps<T>(sim: &Sim<'_>, work: impl Future<Output = T>) -> Option<T> {
    let waits = if sim.one_in(2) {
        1 + sim.below(MOST_WAITS)
    } else {
        u64::MAX
    };
    let when = [GivenUp::AtOnce, GivenUp::Later][usize::from(sim.one_in(2))];
    let done = give_up_after((waits, when), work).await;
    count(&sim.seen.given_up, u32::from(done.is_none()));
    done
}

/// Has everything leave blocks and takes them away, or puts them back.
async fn remove(sim: &Sim<'_>, blocks: &[BlockIndex]) {
    let method = Method::ALL[usize::try_from(sim.below(3)).unwrap()];
    let isolated = blocks.iter().map(|&block| isolate(sim, block)).collect();
    let leaving = Together::new(sim, isolated).empty(method);
    for block in perhaps(sim, leaving).await.unwrap_or_default() {
        sim.take_away(block);
    }
}

/// Gathers what is in use in as few blocks as it needs, as the command of that name does.
async fn pack(sim: &Sim<'_>) {
    let mut tried: Vec<BlockIndex> = Vec::new();
    while let Some(next) = sim.mm.phys.next_to_pack(&tried) {
        tried.push(next.block);
        let leaving = Leaving::new(sim, isolate(sim, next.block)).move_off();
        if let Some(Emptied::Yes(block)) = perhaps(sim, leaving).await {
            sim.bring_online(block);
            count(&sim.seen.packed, 1);
        }
    }
}
