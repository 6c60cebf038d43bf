//! What to do next so that the plugged size becomes the requested size: pure logic, no device, no clock.
//!
//! The kernel's resize worker owns a [`Planner`], asks it for a [`Step`], carries the step out (with the driver
//! and the memory manager), reports how it went, and asks again. The planner remembers which blocks refused, so
//! a worker that does nothing but follow it never tries the same hopeless thing twice: it ends in
//! [`Step::Done`] or [`Step::Stalled`], and starts afresh with [`Planner::retry`] when the target changes or
//! after a pause.
//!
//! ```text
//! step() -> Query(run)   => driver.state(run)   => known(run, state) | unanswered(run)
//!        -> Plug(run)    => driver.plug(run)    => plugged(run)    | plug_failed(run, why)
//!        -> Unplug(n)    => choose and empty up to n of candidates(): stuck(block, why) for what cannot move,
//!                           driver.unplug(run)  => unplugged(run)  | unplug_failed(run, why)
//!        -> Done / Stalled(why): wait for a new target or a while, then retry()
//! ```

mod stall;
#[cfg(test)]
mod tests;

pub use stall::{PlugFailure, StallReason, StuckBlocks, StuckReason, UnplugFailure};

use crate::mem::{BlockIndex, BlockRun, RunState};
use alloc::vec::Vec;
use core::num::{NonZeroU16, NonZeroU32};

/// How far the guest is to get, in blocks: taken from the device's configuration by
/// [`Region::target`](crate::mem::Region::target).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// `requested_size` in whole blocks.
    pub requested_blocks: u32,
    /// `usable_region_size` in whole blocks: only blocks below this number may be plugged.
    pub usable_blocks: u32,
}

/// What the worker is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Plugged is requested: wait for a new target.
    Done,
    /// Ask the device what is plugged in this run: the planner lost track of it.
    Query(BlockRun),
    /// Plug these neighbours, none of which is plugged.
    Plug(BlockRun),
    /// Empty and unplug up to so many blocks, chosen freely among [`Planner::candidates`].
    Unplug(NonZeroU32),
    /// The target is not reached, and nothing is left to try until something changes.
    Stalled(StallReason),
}

/// What the planner knows of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Not known: the device must be asked.
    Unknown,
    /// Not plugged.
    Unplugged,
    /// Not plugged, and the device refused to plug it since the last [`Planner::retry`].
    Refused,
    /// Plugged.
    Plugged,
    /// Plugged, and could not be given up since the last [`Planner::retry`].
    Stuck(StuckReason),
}

impl BlockState {
    const fn is_plugged(self) -> bool {
        matches!(self, Self::Plugged | Self::Stuck(_))
    }
}

/// The longest run one request can name.
const LONGEST_RUN: NonZeroU16 = NonZeroU16::MAX;

/// The state of every block of one region, and what was tried on them.
#[derive(Clone, Debug)]
pub struct Planner {
    states: Vec<BlockState>,
    /// Number of blocks for which `is_plugged` holds; `validate` checks it.
    plugged_blocks: u32,
    /// Number of blocks in `Unknown`; `validate` checks it.
    unknown_blocks: u32,
    /// Halved when the device was busy, doubled when it plugged: a busy host may still have a little.
    longest_plug: NonZeroU16,
    /// Halved when the state of a run was mixed, doubled when it was not.
    longest_query: NonZeroU16,
    /// Why no plug request is worth sending until `retry`.
    plug_stall: Option<StallReason>,
}

impl Planner {
    /// A region of `nr_blocks` blocks that are all unplugged (right after boot, when `plugged_size` is 0 or an
    /// UNPLUG_ALL was acknowledged).
    pub fn all_unplugged(nr_blocks: u32) -> Self {
        Self::with_state(nr_blocks, BlockState::Unplugged)
    }

    /// A region of which nothing is known: the first steps will be queries.
    pub fn all_unknown(nr_blocks: u32) -> Self {
        Self::with_state(nr_blocks, BlockState::Unknown)
    }

    fn with_state(nr_blocks: u32, state: BlockState) -> Self {
        Self {
            states: alloc::vec![state; nr_blocks as usize],
            plugged_blocks: 0,
            unknown_blocks: if state == BlockState::Unknown {
                nr_blocks
            } else {
                0
            },
            longest_plug: LONGEST_RUN,
            longest_query: LONGEST_RUN,
            plug_stall: None,
        }
    }

    /// What to do next to get to `target`.
    pub fn step(&self, target: Target) -> Step {
        // A block beyond the usable region is not plugged, and the device does not answer for it (section 5.15.6.6).
        let usable = self.states.len().min(target.usable_blocks as usize);
        if self.unknown_blocks > 0
            && let Some(run) = self.first_run(usable, self.longest_query, BlockState::Unknown)
        {
            return Step::Query(run);
        }
        let missing = target.requested_blocks.checked_sub(self.plugged_blocks);
        match missing {
            Some(0) => Step::Done,
            Some(missing) => self.step_up(usable, missing),
            None => self.step_down(self.plugged_blocks - target.requested_blocks),
        }
    }

    fn step_up(&self, usable: usize, missing: u32) -> Step {
        if let Some(reason) = self.plug_stall {
            return Step::Stalled(reason);
        }
        let missing = u16::try_from(missing)
            .ok()
            .and_then(NonZeroU16::new)
            .unwrap_or(LONGEST_RUN);
        match self.first_run(usable, missing.min(self.longest_plug), BlockState::Unplugged) {
            Some(run) => Step::Plug(run),
            None if self.states[..usable].contains(&BlockState::Refused) => {
                Step::Stalled(StallReason::DeviceRefused)
            }
            None => Step::Stalled(StallReason::RegionFull),
        }
    }

    fn step_down(&self, excess: u32) -> Step {
        let candidates = self.candidates().count();
        let wanted = u32::try_from(candidates).unwrap_or(u32::MAX).min(excess);
        match NonZeroU32::new(wanted) {
            Some(wanted) => Step::Unplug(wanted),
            None => Step::Stalled(self.why_stuck()),
        }
    }

    fn why_stuck(&self) -> StallReason {
        stall::strongest(self.stuck_reasons())
    }

    fn stuck_reasons(&self) -> impl Iterator<Item = StuckReason> + '_ {
        self.states.iter().filter_map(|state| match state {
            BlockState::Stuck(reason) => Some(*reason),
            BlockState::Unknown | BlockState::Unplugged | BlockState::Refused | BlockState::Plugged => None,
        })
    }

    /// How many blocks could not be given up since the last [`Planner::retry`].
    pub fn stuck_blocks(&self) -> StuckBlocks {
        let mut blocks = StuckBlocks::default();
        self.stuck_reasons().for_each(|reason| blocks.add(reason));
        blocks
    }

    /// The lowest run of blocks in `state` among the first `limit`, at most `longest` long.
    fn first_run(&self, limit: usize, longest: NonZeroU16, state: BlockState) -> Option<BlockRun> {
        let first = self.states[..limit].iter().position(|&known| known == state)?;
        let count = self.states[first..limit]
            .iter()
            .take(usize::from(longest.get()))
            .take_while(|&&known| known == state)
            .count();
        let count = NonZeroU16::new(u16::try_from(count).ok()?)?;
        BlockRun::new(BlockIndex::new(u32::try_from(first).ok()?), count)
    }

    /// The blocks worth trying to unplug, lowest first: plugged, and not found stuck since the last retry.
    pub fn candidates(&self) -> impl DoubleEndedIterator<Item = BlockIndex> + '_ {
        let plugged = self
            .states
            .iter()
            .enumerate()
            .filter(|(_, state)| **state == BlockState::Plugged);
        plugged.filter_map(|(block, _)| u32::try_from(block).ok().map(BlockIndex::new))
    }

    /// What is known of `block`; `None` outside the region.
    pub fn state(&self, block: BlockIndex) -> Option<BlockState> {
        self.states.get(block.as_usize()).copied()
    }

    /// Number of blocks known to be plugged.
    pub fn plugged_blocks(&self) -> u32 {
        self.plugged_blocks
    }

    /// The device plugged `run`.
    pub fn plugged(&mut self, run: BlockRun) {
        self.set(run, BlockState::Plugged);
        self.longest_plug = self.longest_plug.saturating_mul(TWO);
    }

    /// Plugging `run` did not happen (or was undone again), because of `why`.
    pub fn plug_failed(&mut self, run: BlockRun, why: PlugFailure) {
        self.set(run, BlockState::Unplugged);
        let is_single = run.count() == NonZeroU16::MIN;
        match why {
            // The target in the device's configuration is not the one we used, or never could be met.
            PlugFailure::Nack => self.plug_stall = Some(StallReason::DeviceRefused),
            PlugFailure::NoMemory => self.plug_stall = Some(StallReason::NoMemory),
            PlugFailure::Busy if is_single => self.plug_stall = Some(StallReason::Busy),
            PlugFailure::Error if is_single => self.set(run, BlockState::Refused),
            PlugFailure::Busy | PlugFailure::Error => self.longest_plug = run.lower_half().count(),
        }
    }

    /// The device unplugged `run`.
    pub fn unplugged(&mut self, run: BlockRun) {
        self.set(run, BlockState::Unplugged);
    }

    /// The device did not unplug `run`, which the guest had emptied; it is in use again.
    pub fn unplug_failed(&mut self, run: BlockRun, why: UnplugFailure) {
        self.set(run, BlockState::Stuck(why.into()));
    }

    /// The guest could not empty `block`, which stays plugged.
    pub fn stuck(&mut self, block: BlockIndex, reason: StuckReason) {
        self.set(BlockRun::single(block), BlockState::Stuck(reason));
    }

    /// The device said what is plugged in `run`.
    pub fn known(&mut self, run: BlockRun, state: RunState) {
        match state {
            RunState::Plugged => self.set(run, BlockState::Plugged),
            RunState::Unplugged => self.set(run, BlockState::Unplugged),
            // Ask about fewer. One block cannot be mixed: whoever says so cannot be asked about it again.
            RunState::Mixed if run.count() == NonZeroU16::MIN => self.set(run, BlockState::Refused),
            RunState::Mixed => {
                self.longest_query = run.lower_half().count();
                return;
            }
        }
        self.longest_query = self.longest_query.saturating_mul(TWO);
    }

    /// The device would not say what is plugged in `run`: its blocks are left alone until the next retry.
    pub fn unanswered(&mut self, run: BlockRun) {
        self.set(run, BlockState::Refused);
    }

    /// A request on `run` was given up half-way: only the device knows what became of it.
    pub fn lost_track(&mut self, run: BlockRun) {
        self.set(run, BlockState::Unknown);
    }

    /// Everything is worth trying again: the target changed, or some time passed.
    pub fn retry(&mut self) {
        self.plug_stall = None;
        self.longest_plug = LONGEST_RUN;
        for block in 0..self.states.len() {
            match self.states[block] {
                BlockState::Stuck(_) => self.states[block] = BlockState::Plugged,
                // The device may have refused because the block is plugged already.
                BlockState::Refused => {
                    self.states[block] = BlockState::Unknown;
                    self.unknown_blocks += 1;
                }
                BlockState::Unknown | BlockState::Unplugged | BlockState::Plugged => {}
            }
        }
    }

    /// Blocks of `run` beyond the region are ignored: they are nobody's.
    fn set(&mut self, run: BlockRun, state: BlockState) {
        for block in run.blocks() {
            let Some(known) = self.states.get_mut(block.as_usize()) else {
                break;
            };
            self.plugged_blocks -= u32::from(known.is_plugged());
            self.unknown_blocks -= u32::from(*known == BlockState::Unknown);
            *known = state;
            self.plugged_blocks += u32::from(state.is_plugged());
            self.unknown_blocks += u32::from(state == BlockState::Unknown);
        }
    }

    /// Checks that the counters agree with the states; for tests.
    ///
    /// # Panics
    /// If they do not.
    pub fn validate(&self) {
        let plugged = self.states.iter().filter(|state| state.is_plugged()).count();
        let unknown = self
            .states
            .iter()
            .filter(|&&state| state == BlockState::Unknown)
            .count();
        assert_eq!(
            self.plugged_blocks as usize, plugged,
            "plugged_blocks counts something else"
        );
        assert_eq!(
            self.unknown_blocks as usize, unknown,
            "unknown_blocks counts something else"
        );
    }
}

const TWO: NonZeroU16 = NonZeroU16::MIN.saturating_add(1);
