//! Claims about the planner, mostly against random devices, guests and targets.

use super::*;
use proptest::prelude::*;
use std::vec;

fn target(requested_blocks: u32, usable_blocks: u32) -> Target {
    Target {
        requested_blocks,
        usable_blocks,
    }
}

fn run(first: u32, count: u16) -> BlockRun {
    BlockRun::new(BlockIndex::new(first), NonZeroU16::new(count).unwrap()).unwrap()
}

#[test]
fn neighbours_are_plugged_in_one_request_up_to_the_target() {
    let mut planner = Planner::all_unplugged(16);
    assert_eq!(planner.step(target(0, 16)), Step::Done);
    assert_eq!(planner.step(target(5, 16)), Step::Plug(run(0, 5)));
    planner.plugged(run(0, 5));
    assert_eq!(planner.step(target(5, 16)), Step::Done);
    planner.unplugged(run(1, 2));
    assert_eq!(planner.step(target(5, 16)), Step::Plug(run(1, 2)));
    planner.plugged(run(1, 2));
    assert_eq!(planner.step(target(16, 16)), Step::Plug(run(5, 11)));
}

#[test]
fn only_the_usable_part_is_plugged() {
    let mut planner = Planner::all_unplugged(16);
    assert_eq!(planner.step(target(9, 4)), Step::Plug(run(0, 4)));
    planner.plugged(run(0, 4));
    assert_eq!(planner.step(target(9, 4)), Step::Stalled(StallReason::RegionFull));
    assert_eq!(planner.step(target(9, 8)), Step::Plug(run(4, 4)));
    assert_eq!(planner.step(target(u32::MAX, u32::MAX)), Step::Plug(run(4, 12)));
}

#[test]
fn a_request_names_at_most_what_fits_its_field() {
    let mut planner = Planner::all_unplugged(70_000);
    assert_eq!(planner.step(target(70_000, 70_000)), Step::Plug(run(0, 65_535)));
    planner.plugged(run(0, 65_535));
    assert_eq!(
        planner.step(target(70_000, 70_000)),
        Step::Plug(run(65_535, 4_465))
    );
}

#[test]
fn shrinking_asks_for_as_many_blocks_as_are_too_many() {
    let mut planner = Planner::all_unplugged(8);
    planner.plugged(run(0, 6));
    let step = |planner: &Planner, blocks| planner.step(target(blocks, 8));
    assert_eq!(step(&planner, 2), Step::Unplug(NonZeroU32::new(4).unwrap()));
    (0..4).for_each(|block| planner.stuck(BlockIndex::new(block), StuckReason::Pinned));
    assert_eq!(step(&planner, 2), Step::Unplug(NonZeroU32::new(2).unwrap()));
    assert_eq!(
        planner.candidates().map(BlockIndex::raw).collect::<Vec<_>>(),
        [4, 5]
    );
    planner.unplugged(run(4, 2));
    assert_eq!(step(&planner, 2), Step::Stalled(StallReason::Pinned));
    planner.retry();
    assert_eq!(step(&planner, 2), Step::Unplug(NonZeroU32::new(2).unwrap()));
}

#[test]
fn the_stall_reason_is_the_one_that_somebody_can_do_something_about() {
    let reasons = [
        (StuckReason::Pinned, StallReason::Pinned),
        (StuckReason::DeviceRefused, StallReason::DeviceRefused),
        (StuckReason::Busy, StallReason::Busy),
        (StuckReason::NoMemory, StallReason::NoMemory),
    ];
    let mut planner = Planner::all_unplugged(4);
    planner.plugged(run(0, 4));
    (0..4).for_each(|block| planner.stuck(BlockIndex::new(block), StuckReason::Pinned));
    for (block, (stuck, stall)) in (0..).zip(reasons) {
        planner.stuck(BlockIndex::new(block), stuck);
        assert_eq!(planner.step(target(0, 4)), Step::Stalled(stall));
    }
}

#[test]
fn blocks_that_stay_are_counted_by_reason_until_they_are_tried_again() {
    let mut planner = Planner::all_unplugged(6);
    planner.plugged(run(0, 5));
    assert_eq!(planner.stuck_blocks(), StuckBlocks::default());
    for (block, reason) in [
        (0, StuckReason::Busy),
        (1, StuckReason::Pinned),
        (4, StuckReason::Busy),
    ] {
        planner.stuck(BlockIndex::new(block), reason);
    }
    let text = std::format!("{}", planner.stuck_blocks());
    assert_eq!(text, "3 blocks stay: 1 pinned, 2 busy");
    planner.retry();
    assert_eq!(planner.stuck_blocks().total(), 0);
}

#[test]
fn a_busy_device_is_asked_for_less_and_at_last_left_alone() {
    let mut planner = Planner::all_unplugged(16);
    let mut asked = vec![];
    let stalled = loop {
        match planner.step(target(16, 16)) {
            Step::Plug(run) => {
                asked.push(run.count().get());
                planner.plug_failed(run, PlugFailure::Busy);
            }
            step => break step,
        }
    };
    assert_eq!(asked, [16, 8, 4, 2, 1]);
    assert_eq!(stalled, Step::Stalled(StallReason::Busy));
    planner.retry();
    assert_eq!(planner.step(target(16, 16)), Step::Plug(run(0, 16)));
}

#[test]
fn a_denied_or_unaffordable_plug_waits_for_news() {
    for (why, reason) in [
        (PlugFailure::Nack, StallReason::DeviceRefused),
        (PlugFailure::NoMemory, StallReason::NoMemory),
    ] {
        let mut planner = Planner::all_unplugged(4);
        planner.plug_failed(run(0, 2), why);
        assert_eq!(planner.step(target(2, 4)), Step::Stalled(reason));
        assert_eq!(
            planner.step(target(0, 4)),
            Step::Done,
            "a stall to grow does not keep it from being done"
        );
        planner.retry();
        assert_eq!(planner.step(target(2, 4)), Step::Plug(run(0, 2)));
    }
}

#[test]
fn a_block_that_the_device_finds_wrong_is_passed_over_and_asked_about_later() {
    let mut planner = Planner::all_unplugged(4);
    planner.plug_failed(run(0, 2), PlugFailure::Error);
    assert_eq!(planner.step(target(2, 4)), Step::Plug(run(0, 1)));
    planner.plug_failed(run(0, 1), PlugFailure::Error);
    assert_eq!(planner.step(target(2, 4)), Step::Plug(run(1, 1)));
    planner.plugged(run(1, 1));
    assert_eq!(planner.step(target(2, 4)), Step::Plug(run(2, 1)));
    planner.retry();
    assert_eq!(planner.step(target(2, 4)), Step::Query(run(0, 1)));
    planner.known(run(0, 1), RunState::Plugged);
    assert_eq!(planner.step(target(2, 4)), Step::Done);
}

#[test]
fn what_was_lost_track_of_is_found_again_by_halves() {
    let truth = [true, true, false, true, false, false, false, false, true];
    let mut planner = Planner::all_unknown(9);
    let mut queries = 0;
    while let Step::Query(run) = planner.step(target(0, 9)) {
        let known: Vec<bool> = run.blocks().map(|block| truth[block.as_usize()]).collect();
        planner.known(
            run,
            match (known.contains(&true), known.contains(&false)) {
                (true, true) => RunState::Mixed,
                (true, false) => RunState::Plugged,
                _ => RunState::Unplugged,
            },
        );
        planner.validate();
        queries += 1;
        assert!(queries < 40, "no progress");
    }
    for (block, &plugged) in (0..).zip(&truth) {
        let state = if plugged {
            BlockState::Plugged
        } else {
            BlockState::Unplugged
        };
        assert_eq!(planner.state(BlockIndex::new(block)), Some(state));
    }
}

#[test]
fn the_device_is_not_asked_about_blocks_that_are_not_usable() {
    let mut planner = Planner::all_unknown(8);
    assert_eq!(planner.step(target(0, 0)), Step::Done);
    assert_eq!(planner.step(target(2, 5)), Step::Query(run(0, 5)));
    planner.known(run(0, 5), RunState::Unplugged);
    assert_eq!(planner.step(target(2, 5)), Step::Plug(run(0, 2)));
    planner.plugged(run(0, 2));
    assert_eq!(planner.step(target(2, 8)), Step::Query(run(5, 3)));
}

#[test]
fn a_device_that_does_not_answer_is_asked_again_only_after_a_retry() {
    let mut planner = Planner::all_unknown(4);
    planner.unanswered(run(0, 4));
    assert_eq!(
        planner.step(target(1, 4)),
        Step::Stalled(StallReason::DeviceRefused)
    );
    planner.retry();
    assert_eq!(planner.step(target(1, 4)), Step::Query(run(0, 4)));
}

#[test]
fn one_block_in_a_mixed_state_does_not_keep_the_planner_busy() {
    let mut planner = Planner::all_unknown(1);
    planner.known(run(0, 1), RunState::Mixed);
    assert_eq!(
        planner.step(target(1, 1)),
        Step::Stalled(StallReason::DeviceRefused)
    );
}

/// A device and a guest of random mood, with the truth about every block.
struct World {
    plugged: Vec<bool>,
    pinned: Vec<bool>,
    moods: Vec<u8>,
    next_mood: usize,
}

impl World {
    fn mood(&mut self) -> u8 {
        self.next_mood += 1;
        self.moods[self.next_mood % self.moods.len()]
    }

    fn nr_plugged(&self) -> u32 {
        u32::try_from(self.plugged.iter().filter(|&&plugged| plugged).count()).unwrap()
    }

    fn set(&mut self, run: BlockRun, plugged: bool) {
        run.blocks().for_each(|block| {
            let slot = &mut self.plugged[block.as_usize()];
            assert_ne!(*slot, plugged, "block {block:?} is in that state already");
            *slot = plugged;
        });
    }

    /// Carries a step out as the kernel's worker does.
    fn carry_out(&mut self, planner: &mut Planner, step: Step, target: Target) {
        match step {
            Step::Done | Step::Stalled(_) => {}
            Step::Query(run) => {
                let mut states = run.blocks().map(|block| self.plugged[block.as_usize()]);
                let first = states.next().unwrap();
                let state = match (states.all(|state| state == first), first) {
                    (false, _) => RunState::Mixed,
                    (true, true) => RunState::Plugged,
                    (true, false) => RunState::Unplugged,
                };
                planner.known(run, state);
            }
            Step::Plug(run) => {
                assert!(run.last().raw() < target.usable_blocks);
                assert!(self.nr_plugged() + u32::from(run.count().get()) <= target.requested_blocks);
                match self.mood() {
                    0 => planner.plug_failed(run, PlugFailure::Busy),
                    1 => planner.plug_failed(run, PlugFailure::Error),
                    2 => planner.plug_failed(run, PlugFailure::NoMemory),
                    3 => planner.plug_failed(run, PlugFailure::Nack),
                    4 => {
                        self.set(run, true);
                        planner.lost_track(run);
                    }
                    _ => {
                        self.set(run, true);
                        planner.plugged(run);
                    }
                }
            }
            Step::Unplug(wanted) => self.shrink(planner, wanted),
        }
    }

    fn shrink(&mut self, planner: &mut Planner, wanted: NonZeroU32) {
        let candidates: Vec<BlockIndex> = planner.candidates().collect();
        let (pinned, movable): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|block| self.pinned[block.as_usize()]);
        pinned
            .into_iter()
            .for_each(|block| planner.stuck(block, StuckReason::Pinned));
        let emptied = movable.into_iter().take(wanted.get() as usize);
        for run in crate::mem::runs(emptied) {
            match self.mood() {
                0 => planner.unplug_failed(run, UnplugFailure::Busy),
                1 => planner.unplug_failed(run, UnplugFailure::Error),
                2 => {
                    self.set(run, false);
                    planner.lost_track(run);
                }
                _ => {
                    self.set(run, false);
                    planner.unplugged(run);
                }
            }
        }
    }

    /// Follows the planner until it has nothing more to do; how many steps that may take is bounded.
    fn settle(&mut self, planner: &mut Planner, target: Target) -> Step {
        for _ in 0..20 * self.plugged.len() + 100 {
            let step = planner.step(target);
            self.carry_out(planner, step, target);
            planner.validate();
            if matches!(step, Step::Done | Step::Stalled(_)) {
                return step;
            }
        }
        panic!("the planner does not come to an end");
    }
}

proptest! {
    #[test]
    fn following_the_planner_always_ends_and_ends_at_the_target_once_nothing_is_in_the_way(
        start in prop::collection::vec(any::<bool>(), 1..80),
        pinned in prop::collection::vec(prop::bool::weighted(0.1), 80),
        moods in prop::collection::vec(0..12u8, 1..40),
        targets in prop::collection::vec((0..90u32, 0..90u32), 1..6),
    ) {
        let nr_blocks = u32::try_from(start.len()).unwrap();
        let mut world = World { plugged: start, pinned, moods, next_mood: 0 };
        let mut planner = Planner::all_unknown(nr_blocks);
        for (requested, usable) in targets {
            // A device never makes plugged blocks unusable.
            let in_use = world.plugged.iter().rposition(|&plugged| plugged).map_or(0, |last| last + 1);
            let usable = usable.min(nr_blocks).max(u32::try_from(in_use).unwrap());
            let target = target(requested.min(nr_blocks), usable);
            planner.retry();
            if world.settle(&mut planner, target) == Step::Done {
                prop_assert_eq!(world.nr_plugged(), target.requested_blocks);
            }
        }
        // Now everybody is willing.
        world.moods = vec![11];
        world.pinned.fill(false);
        let last = target(nr_blocks / 3, nr_blocks);
        planner.retry();
        prop_assert_eq!(world.settle(&mut planner, last), Step::Done);
        prop_assert_eq!(world.nr_plugged(), last.requested_blocks);
        for (block, &plugged) in (0..).zip(&world.plugged) {
            let known = planner.state(BlockIndex::new(block)).unwrap();
            prop_assert_eq!(known == BlockState::Plugged, plugged);
        }
    }
}
