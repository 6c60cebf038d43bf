//! The state of every block of a guest, merged from what its device says (plugged or not) and what the guest says
//! (online, going offline, how full). This is what gets drawn, and nothing else is: a cell is a fact or it is not shown.
//!
//! The two views are read one after the other while blocks move, so they may disagree for a moment. The device is
//! believed about *whose* the block is, the guest about *what it does* with a block that it has; a block that only one of
//! them counts as there is on its way, in the direction in which it last changed.

use std::time::Duration;

use super::view::{BlockState, BlockView};

/// For how long a block that came or went is marked.
pub const MARK_FOR: Duration = Duration::from_millis(1000);

/// What one block is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// The host has it; touching it is a violation.
    Unplugged,
    /// On its way into the guest.
    Plugging,
    /// The guest uses it; so much of it is allocated.
    Online(Fill),
    /// Nothing may be allocated in it any more and pages in use are being moved out; so much is left.
    Leaving(Fill),
    /// Empty and offline, on its way out of the guest.
    Offline,
}

/// How much of a block is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fill {
    /// No page.
    Free,
    /// Up to half of the pages.
    Low,
    /// More than half of the pages.
    High,
    /// Every page.
    Full,
}

impl Fill {
    /// Classifies a block by its pages.
    #[must_use]
    pub fn of(used_pages: u64, free_pages: u64) -> Self {
        match (used_pages, free_pages) {
            (0, _) => Self::Free,
            (_, 0) => Self::Full,
            (used, free) if used <= free => Self::Low,
            _ => Self::High,
        }
    }
}

/// Whether a block changed hands a moment ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It has been where it is for a while.
    Settled,
    /// It was plugged just now.
    Arrived,
    /// It was unplugged just now.
    Left,
}

/// How a block is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// What it is doing.
    pub cell: Cell,
    /// Whether it just changed hands.
    pub mark: Mark,
}

/// The blocks of one guest over time.
#[derive(Debug, Clone, Default)]
pub struct BlockMap {
    blocks: Vec<Block>,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    plugged: bool,
    cell: Cell,
    changed: Option<Duration>,
}

impl BlockMap {
    /// A region of which nothing is plugged.
    #[must_use]
    pub fn new(nr_blocks: usize) -> Self {
        let nothing = Block {
            plugged: false,
            cell: Cell::Unplugged,
            changed: None,
        };
        Self {
            blocks: vec![nothing; nr_blocks],
        }
    }

    /// Takes in both views. `now` is the time since the start, `plugged` the device's word on each block, `guest` the
    /// guest's; blocks that a view does not mention count as unplugged.
    pub fn observe(&mut self, now: Duration, plugged: impl Fn(usize) -> bool, guest: &[BlockView]) {
        for (index, block) in self.blocks.iter_mut().enumerate() {
            let has = plugged(index);
            if has != block.plugged {
                block.changed = Some(now);
                block.plugged = has;
            }
            block.cell = merge(has, guest.get(index).copied(), block.cell);
        }
    }

    /// Each block in address order, as it is drawn at `now`.
    pub fn shown(&self, now: Duration) -> impl Iterator<Item = Shown> {
        self.blocks.iter().map(move |block| Shown {
            cell: block.cell,
            mark: match block.changed {
                Some(then) if now.saturating_sub(then) < MARK_FOR && block.plugged => Mark::Arrived,
                Some(then) if now.saturating_sub(then) < MARK_FOR => Mark::Left,
                _ => Mark::Settled,
            },
        })
    }

    /// How many blocks there are.
    #[must_use]
    pub fn nr_blocks(&self) -> usize {
        self.blocks.len()
    }
}

fn merge(plugged: bool, guest: Option<BlockView>, before: Cell) -> Cell {
    let state = guest.map_or(BlockState::Unplugged, |view| view.state);
    let fill = guest.map_or(Fill::Free, |view| Fill::of(view.used_pages, view.free_pages));
    match (plugged, state) {
        // The guest's answer is the older of the two when a block has just gone.
        (false, BlockState::Plugging) => Cell::Plugging,
        (false, _) => Cell::Unplugged,
        (true, BlockState::Online) => Cell::Online(fill),
        (true, BlockState::GoingOffline) => Cell::Leaving(fill),
        (true, BlockState::Plugging) => Cell::Plugging,
        (true, BlockState::Offline | BlockState::Unplugged) => match before {
            Cell::Unplugged | Cell::Plugging => Cell::Plugging,
            Cell::Online(_) | Cell::Leaving(_) | Cell::Offline => Cell::Offline,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn view(state: BlockState, used_pages: u64) -> BlockView {
        BlockView {
            state,
            used_pages,
            free_pages: 2048 - used_pages,
        }
    }

    fn one(map: &mut BlockMap, millis: u64, plugged: bool, state: BlockState, used: u64) -> Shown {
        let now = Duration::from_millis(millis);
        map.observe(now, |_| plugged, &[view(state, used)]);
        map.shown(now).next().expect("there is one block")
    }

    #[test]
    fn a_block_is_followed_on_its_whole_way_in_and_out() {
        let mut map = BlockMap::new(1);
        let mut step = |millis, plugged, state, used| one(&mut map, millis, plugged, state, used).cell;
        assert_eq!(step(0, false, BlockState::Unplugged, 0), Cell::Unplugged);
        assert_eq!(step(10, false, BlockState::Plugging, 0), Cell::Plugging);
        assert_eq!(step(20, true, BlockState::Plugging, 0), Cell::Plugging);
        assert_eq!(step(25, true, BlockState::Offline, 0), Cell::Plugging);
        assert_eq!(step(30, true, BlockState::Online, 0), Cell::Online(Fill::Free));
        assert_eq!(step(40, true, BlockState::Online, 2048), Cell::Online(Fill::Full));
        assert_eq!(
            step(50, true, BlockState::GoingOffline, 2000),
            Cell::Leaving(Fill::High)
        );
        assert_eq!(
            step(60, true, BlockState::GoingOffline, 0),
            Cell::Leaving(Fill::Free)
        );
        assert_eq!(step(70, true, BlockState::Offline, 0), Cell::Offline);
        assert_eq!(step(80, true, BlockState::Unplugged, 0), Cell::Offline);
        assert_eq!(step(90, false, BlockState::Unplugged, 0), Cell::Unplugged);
    }

    #[test]
    fn a_block_that_changed_hands_is_marked_for_a_while_and_no_other_is() {
        let mut map = BlockMap::new(1);
        assert_eq!(
            one(&mut map, 0, false, BlockState::Unplugged, 0).mark,
            Mark::Settled
        );
        assert_eq!(
            one(&mut map, 100, true, BlockState::Online, 0).mark,
            Mark::Arrived
        );
        assert_eq!(
            one(&mut map, 1099, true, BlockState::Online, 5).mark,
            Mark::Arrived
        );
        assert_eq!(
            one(&mut map, 1100, true, BlockState::Online, 5).mark,
            Mark::Settled
        );
        assert_eq!(
            one(&mut map, 2000, false, BlockState::Unplugged, 0).mark,
            Mark::Left
        );
        assert_eq!(
            one(&mut map, 3000, false, BlockState::Unplugged, 0).mark,
            Mark::Settled
        );
    }

    #[test]
    fn fill_separates_empty_and_full_from_everything_between() {
        for used in 0..=16 {
            let expected = match used {
                0 => Fill::Free,
                1..=8 => Fill::Low,
                9..=15 => Fill::High,
                _ => Fill::Full,
            };
            assert_eq!(Fill::of(used, 16 - used), expected, "{used}");
        }
        assert_eq!(Fill::of(0, 0), Fill::Free);
    }

    proptest! {
        /// Whatever the guest claims, and however many lines it sends: a block is drawn as unplugged exactly when the
        /// device does not count it as plugged, but for one that the guest is asking for.
        #[test]
        fn the_device_decides_whose_a_block_is(
            steps in prop::collection::vec((prop::collection::vec(any::<bool>(), 4), prop::collection::vec(0_usize..5, 0..8)), 1..20)
        ) {
            const STATES: [BlockState; 5] = [
                BlockState::Unplugged, BlockState::Plugging, BlockState::Offline, BlockState::Online, BlockState::GoingOffline,
            ];
            let mut map = BlockMap::new(4);
            for (plugged, states) in steps {
                let guest: Vec<BlockView> = states.iter().map(|state| view(STATES[*state], 7)).collect();
                map.observe(Duration::ZERO, |index| plugged[index], &guest);
                for (index, shown) in map.shown(Duration::ZERO).enumerate() {
                    let asked = guest.get(index).is_some_and(|view| view.state == BlockState::Plugging);
                    prop_assert_eq!(shown.cell == Cell::Unplugged, !plugged[index] && !asked);
                }
            }
        }
    }
}
