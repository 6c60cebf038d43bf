//! The policy by itself, and together with a guest that follows it as far as its memory in use lets it.

use proptest::prelude::*;

use super::*;
use crate::machine::layout::MIB;
use crate::machine::split::{Share, cover, split};

const BLOCK: u64 = 2 * MIB;
const BOOT: u64 = 64 * MIB;
const REGION: u64 = 64 * MIB;

const LIMITS: Limits = Limits { boot_memory: BOOT };

/// One region of blocks, and what it is to have for a total.
fn target(total: u64) -> Target {
    let share = Share {
        size: REGION,
        block_size: BLOCK,
        requested: 0,
    };
    let blocks = cover(total.saturating_sub(BOOT), &[share]);
    Target { total, blocks }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn view(plugged: u64, held: u64) -> View {
    View {
        plugged,
        held,
        surplus_block: if held >= BLOCK { BLOCK } else { 0 },
    }
}

/// A machine that was asked for `target` at time 0 when `plugged` bytes were.
fn asked(total: u64, plugged: u64) -> Sizing {
    let mut sizing = Sizing::new(LIMITS, target(BOOT + plugged), seconds(0));
    let _ = sizing.step(view(plugged, 0), seconds(0));
    sizing.ask(target(total), seconds(0));
    sizing
}

fn orders(requested: u64, balloon: u64) -> (u64, u64) {
    (requested, balloon)
}

fn step(sizing: &mut Sizing, view: View, now: Duration) -> (u64, u64) {
    let Orders {
        requested, balloon, ..
    } = sizing.step(view, now);
    (requested, balloon)
}

#[test]
fn growing_takes_blocks_and_empties_the_balloon_at_once() {
    let mut sizing = asked(BOOT + 8 * MIB, 0);
    assert_eq!(
        step(&mut sizing, view(0, 4 * MIB), seconds(0)),
        orders(8 * MIB, 0)
    );
    assert_eq!(
        step(&mut sizing, view(8 * MIB, 0), seconds(9)),
        orders(8 * MIB, 0)
    );
}

#[test]
fn what_is_no_whole_block_is_plugged_and_ballooned() {
    let mut sizing = asked(BOOT + 3 * MIB, 0);
    assert_eq!(step(&mut sizing, view(0, 0), seconds(0)), orders(4 * MIB, 0));
    assert_eq!(
        step(&mut sizing, view(4 * MIB, 0), seconds(0)),
        orders(4 * MIB, MIB)
    );
}

#[test]
fn below_boot_memory_there_is_only_the_balloon() {
    let mut sizing = asked(BOOT - 10 * MIB, 0);
    assert_eq!(step(&mut sizing, view(0, 0), seconds(0)), orders(0, 10 * MIB));
}

#[test]
fn beyond_the_region_there_is_no_more() {
    let mut sizing = asked(u64::MAX, 0);
    assert_eq!(step(&mut sizing, view(0, 0), seconds(0)), orders(REGION, 0));
}

#[test]
fn the_balloon_waits_for_blocks_as_long_as_they_move() {
    let mut sizing = asked(BOOT - 4 * MIB, 20 * MIB);
    for (plugged, now) in [(20, 0), (18, 1), (16, 2), (14, 3), (14, 4)] {
        let stands = view(plugged * MIB, 0);
        assert_eq!(step(&mut sizing, stands, seconds(now)), orders(0, 0), "{now} s");
    }
    // Two seconds without a block: 14 MiB of blocks and 4 MiB of boot memory.
    assert_eq!(
        step(&mut sizing, view(14 * MIB, 0), seconds(5)),
        orders(0, 18 * MIB)
    );
}

#[test]
fn when_all_blocks_are_gone_the_balloon_takes_the_rest_at_once() {
    let mut sizing = asked(BOOT - 4 * MIB, 4 * MIB);
    assert_eq!(step(&mut sizing, view(2 * MIB, 0), seconds(0)), orders(0, 0));
    assert_eq!(step(&mut sizing, view(0, 0), seconds(0)), orders(0, 4 * MIB));
}

#[test]
fn a_balloon_that_is_in_the_way_of_nothing_stays_while_blocks_move() {
    let mut sizing = asked(BOOT, 20 * MIB);
    assert_eq!(
        step(&mut sizing, view(20 * MIB, 5 * MIB), seconds(0)),
        orders(0, 5 * MIB)
    );
    assert_eq!(
        step(&mut sizing, view(2 * MIB, 5 * MIB), seconds(0)),
        orders(0, 2 * MIB)
    );
}

#[test]
fn a_block_that_goes_later_lets_the_balloon_shrink() {
    let mut sizing = asked(BOOT, 8 * MIB);
    assert_eq!(
        step(&mut sizing, view(8 * MIB, 0), seconds(2)),
        orders(0, 8 * MIB)
    );
    assert_eq!(
        step(&mut sizing, view(6 * MIB, 8 * MIB), seconds(3)),
        orders(0, 6 * MIB)
    );
}

#[test]
fn a_blocks_worth_is_lent_and_called_back() {
    let mut sizing = asked(BOOT, 8 * MIB);
    let held = view(8 * MIB, 8 * MIB);
    let begun = sizing.step(held, seconds(2));
    assert_eq!(begun.wake, Some(seconds(7)));
    let loan = sizing.step(held, seconds(7));
    assert_eq!(
        (loan.balloon, loan.try_again, loan.wake),
        (6 * MIB, true, Some(seconds(9)))
    );
    let lent = sizing.step(view(8 * MIB, 6 * MIB), seconds(8));
    assert_eq!((lent.balloon, lent.try_again), (6 * MIB, false), "asked once");
    let back = sizing.step(view(8 * MIB, 6 * MIB), seconds(9));
    assert_eq!(
        (back.balloon, back.try_again, back.wake),
        (8 * MIB, false, Some(seconds(19)))
    );
}

#[test]
fn a_loan_that_frees_a_block_is_followed_by_the_next_and_one_that_does_not_by_a_longer_pause() {
    let mut sizing = asked(BOOT, 8 * MIB);
    let _ = sizing.step(view(8 * MIB, 8 * MIB), seconds(2));
    let _ = sizing.step(view(8 * MIB, 8 * MIB), seconds(7));
    let next = sizing.step(view(6 * MIB, 6 * MIB), seconds(8));
    assert_eq!(
        (next.balloon, next.try_again, next.wake),
        (4 * MIB, true, Some(seconds(10)))
    );
    let mut pauses = Vec::new();
    let mut now = seconds(10);
    for _ in 0..7 {
        let back = sizing.step(view(6 * MIB, 6 * MIB), now);
        let wake = back.wake.unwrap();
        pauses.push((wake - now).as_secs());
        now = sizing.step(view(6 * MIB, 6 * MIB), wake).wake.unwrap();
    }
    assert_eq!(pauses, [10, 20, 40, 80, 160, 160, 160]);
}

#[test]
fn nothing_is_lent_by_a_balloon_that_holds_no_block() {
    let mut sizing = asked(BOOT, 8 * MIB);
    let _ = sizing.step(view(8 * MIB, 0), seconds(2));
    let orders = sizing.step(view(8 * MIB, MIB), seconds(7));
    assert_eq!((orders.balloon, orders.try_again), (8 * MIB, false));
}

#[test]
fn asking_again_begins_with_blocks_again() {
    let mut sizing = asked(BOOT, 8 * MIB);
    assert_eq!(
        step(&mut sizing, view(8 * MIB, 0), seconds(2)),
        orders(0, 8 * MIB)
    );
    sizing.ask(target(BOOT), seconds(3));
    assert_eq!(
        step(&mut sizing, view(8 * MIB, 8 * MIB), seconds(3)),
        orders(0, 8 * MIB)
    );
    assert_eq!(
        step(&mut sizing, view(8 * MIB, 2 * MIB), seconds(3)),
        orders(0, 2 * MIB)
    );
}

/// A guest with memory in use that can move, and blocks that cannot be emptied.
#[derive(Debug)]
struct Guest {
    plugged: Vec<bool>,
    pinned: Vec<bool>,
    in_use: u64,
    held: u64,
    /// The driver of the blocks has not given up since it was last told.
    tries: bool,
    requested: u64,
}

impl Guest {
    fn view(&self) -> View {
        let plugged = self.plugged.iter().filter(|plugged| **plugged).count() as u64;
        view(plugged * BLOCK, self.held)
    }

    fn total(&self) -> u64 {
        BOOT + self.view().plugged - self.held
    }

    fn free(&self) -> u64 {
        self.total() - self.in_use
    }

    /// A tenth of a second: one block at most, and 4 MiB of the balloon.
    fn follow(&mut self, orders: Orders) {
        if orders.requested != self.requested || orders.try_again {
            (self.requested, self.tries) = (orders.requested, true);
        }
        let plugged = self.view().plugged;
        if plugged < self.requested {
            if let Some(block) = self.plugged.iter_mut().find(|plugged| !**plugged) {
                *block = true;
            }
        } else if plugged > self.requested && self.tries {
            let movable = (0..self.plugged.len()).find(|&at| self.plugged[at] && !self.pinned[at]);
            match movable.filter(|_| self.free() >= BLOCK) {
                Some(block) => self.plugged[block] = false,
                None => self.tries = false,
            }
        }
        let rate = 4 * MIB;
        if orders.balloon > self.held {
            self.held += (orders.balloon - self.held).min(self.free()).min(rate);
        } else {
            self.held -= (self.held - orders.balloon).min(rate);
        }
    }
}

/// Runs guest and policy for so long; every order keeps the rules.
fn run(sizing: &mut Sizing, guest: &mut Guest, from: Duration, tenths: u32) -> Duration {
    let mut now = from;
    for _ in 0..tenths {
        let before = guest.view();
        let orders = sizing.step(before, now);
        assert!(orders.requested <= REGION && orders.requested.is_multiple_of(BLOCK));
        // Never below the target: what the guest is to keep stays out of the balloon.
        let least = BOOT + before.plugged - orders.balloon.min(BOOT + before.plugged);
        assert!(
            least >= sizing.target() || orders.balloon == 0,
            "{orders:?} leaves {least} of {}",
            sizing.target()
        );
        if let Some(wake) = orders.wake {
            assert!(wake > now, "no order asks to be looked at in the past");
        }
        guest.follow(orders);
        now += Duration::from_millis(100);
    }
    now
}

fn guest(pinned: Vec<bool>, in_use: u64) -> Guest {
    Guest {
        plugged: vec![false; pinned.len()],
        pinned,
        in_use,
        held: 0,
        tries: false,
        requested: 0,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_guest_reaches_every_target_that_its_memory_in_use_allows(
        pinned in prop::collection::vec(prop::bool::weighted(0.2), 32),
        in_use in 8u64..40,
        targets in prop::collection::vec(40u64..=128, 1..5),
    ) {
        let in_use = in_use * MIB;
        let mut guest = guest(pinned, in_use);
        let mut sizing = Sizing::new(LIMITS, target(BOOT), seconds(0));
        let mut now = seconds(0);
        for total in targets {
            let total = total * MIB - 512 * 1024;
            sizing.ask(target(total), now);
            now = run(&mut sizing, &mut guest, now, 400);
            // A loan may be out: it is called back after two seconds.
            let mut turns = 0;
            while guest.total() != total {
                now = run(&mut sizing, &mut guest, now, 1);
                turns += 1;
                prop_assert!(turns < 60, "{} instead of {total}", guest.total());
            }
        }
    }

    #[test]
    fn the_balloon_gives_blocks_back_once_they_can_go(
        pinned in prop::collection::vec(prop::bool::weighted(0.4), 32),
        total in 56u64..=120,
    ) {
        let total = total * MIB;
        let mut guest = guest(pinned, 16 * MIB);
        let mut sizing = Sizing::new(LIMITS, target(BOOT + REGION), seconds(0));
        let now = run(&mut sizing, &mut guest, seconds(0), 100);
        sizing.ask(target(total), now);
        let now = run(&mut sizing, &mut guest, now, 600);
        // Whoever pinned the blocks lets go of them, and nobody asks for anything.
        guest.pinned.fill(false);
        let _ = run(&mut sizing, &mut guest, now, 4000);
        prop_assert_eq!(guest.view().plugged, sizing.wanted_plugged());
        prop_assert_eq!(guest.total(), total);
        let least = (BOOT + sizing.wanted_plugged()).saturating_sub(total);
        prop_assert_eq!(guest.held, least, "the balloon holds what no block can give, and no more");
    }
}

/// Up to four regions with blocks of 2 to 128 MiB, each with some of its blocks requested.
fn regions() -> impl Strategy<Value = Vec<Share>> {
    let region = (0u32..=6, 1u64..=8, any::<prop::sample::Index>()).prop_map(|(order, blocks, requested)| {
        let block_size = BLOCK << order;
        Share {
            size: blocks * block_size,
            block_size,
            requested: requested.index(usize::try_from(blocks).unwrap() + 1) as u64 * block_size,
        }
    });
    prop::collection::vec(region, 1..=4)
}

proptest! {
    #[test]
    fn a_total_that_blocks_add_up_to_leaves_the_balloon_nothing(shares in regions(), units in 0u64..2048) {
        let all: u64 = shares.iter().map(|share| share.size).sum();
        let above = (units * MIB).min(all);
        let blocks = cover(above, &shares);
        let plugged = blocks.iter().sum();
        let total = BOOT + above;
        let mut sizing = Sizing::new(LIMITS, Target { total, blocks }, seconds(0));
        let now = View { plugged, held: 0, surplus_block: 0 };
        let orders = sizing.step(now, seconds(0));
        prop_assert_eq!(orders.requested, plugged);
        prop_assert_eq!(BOOT + plugged - orders.balloon, total);
        prop_assert_eq!(orders.balloon == 0, split(above, &shares).is_ok());
        let smallest = shares.iter().map(|share| share.block_size).max().unwrap();
        prop_assert!(orders.balloon < smallest, "no block is taken for the balloon's sake");
    }
}
