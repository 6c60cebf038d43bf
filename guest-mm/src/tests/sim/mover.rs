//! Blocks that are emptied, taken away and brought back under the programs, or packed; as often as not it is given up halfway.

use std::vec::Vec;

use super::executor::{GivenUp, give_up_after};
use super::leaving::{Emptied, Leaving};
use super::{BLOCKS, Sim, count};
use crate::ZoneKind;
use crate::blocks::{BlockIndex, BlockState, IsolatedBlock};
use crate::migrate::Method;
use crate::tests::phys_model::plug;

/// Most waits before something is given up.
const MOST_WAITS: u64 = 25;

pub(super) async fn live(sim: &Sim<'_>) {
    while !sim.is_ending.get() {
        sim.clock.sleep(1 + sim.below(100)).await;
        if sim.one_in(5) {
            pack(sim).await;
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
                remove(sim, isolate(sim, block)).await;
            }
            state => panic!("{block:?} is {state:?}"),
        }
    }
    for block in (0..BLOCKS).map(BlockIndex) {
        if sim.mm.phys.hotplug_region().state(block) == Some(BlockState::Unplugged) {
            plug(sim.mm.phys, block, ZoneKind::Movable);
        }
    }
}

/// Nobody pins for longer than a transfer takes, so every block can be isolated.
fn isolate(sim: &Sim<'_>, block: BlockIndex) -> IsolatedBlock {
    let isolated = sim.mm.phys.isolate(block);
    isolated.unwrap_or_else(|error| panic!("{error}"))
}

/// Does something to its end, or gives it up where it waits.
async fn perhaps(sim: &Sim<'_>, work: impl Future<Output = Emptied>) -> Emptied {
    let waits = if sim.one_in(2) {
        1 + sim.below(MOST_WAITS)
    } else {
        u64::MAX
    };
    let when = [GivenUp::AtOnce, GivenUp::Later][usize::from(sim.one_in(2))];
    let emptied = give_up_after((waits, when), work).await;
    count(&sim.seen.given_up, u32::from(emptied.is_none()));
    emptied.unwrap_or(Emptied::No(None))
}

/// Has everything leave a block and takes it away, or puts it back.
async fn remove(sim: &Sim<'_>, block: IsolatedBlock) {
    let method = Method::ALL[usize::try_from(sim.below(3)).unwrap()];
    let leaving = Leaving::new(sim, block).empty(method);
    if let Emptied::Yes(block) = perhaps(sim, leaving).await {
        sim.take_away(block);
    }
}

/// Gathers what is in use in as few blocks as it needs, as the command of that name does.
async fn pack(sim: &Sim<'_>) {
    let mut tried: Vec<BlockIndex> = Vec::new();
    while let Some(next) = sim.mm.phys.next_to_pack(&tried) {
        tried.push(next.block);
        let leaving = Leaving::new(sim, isolate(sim, next.block)).move_off();
        if let Emptied::Yes(block) = perhaps(sim, leaving).await {
            sim.bring_online(block);
            count(&sim.seen.packed, 1);
        }
    }
}
