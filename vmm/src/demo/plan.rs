//! The script of the demo: how large both guests are, which moves are made, and the budget that follows from it.
//!
//! A plan is pure arithmetic and is checked as a whole before any guest starts: every move stays inside both hot-plug
//! regions, is made of whole blocks, and is large enough to count. All sizes are bytes.

use std::fmt;
use std::ops::{Index, IndexMut};

use thiserror::Error;

use crate::spec::MIB;

/// Fewest moves that show memory going back and forth.
pub const FEWEST_MOVES: usize = 4;
/// Most moves that a run accepts.
pub const MOST_MOVES: usize = 1000;
/// Moves of a run that does not say how many.
pub const DEFAULT_MOVES: usize = 6;
/// No move is smaller than this.
pub const SMALLEST_MOVE: u64 = 256 * MIB;

/// One of the two guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The guest that starts large.
    A,
    /// The guest that starts small.
    B,
}

impl Side {
    /// Both guests, in the order in which they are shown.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other guest.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// Its letter in lower case, for names of VMs and files.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// One value for each guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pair<T> {
    /// Guest A's.
    pub a: T,
    /// Guest B's.
    pub b: T,
}

impl<T> Pair<T> {
    /// Makes both values.
    pub fn each(mut make: impl FnMut(Side) -> T) -> Self {
        Self {
            a: make(Side::A),
            b: make(Side::B),
        }
    }

    /// Both values, A's first.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [&self.a, &self.b].into_iter()
    }
}

impl<T> Index<Side> for Pair<T> {
    type Output = T;
    fn index(&self, side: Side) -> &T {
        match side {
            Side::A => &self.a,
            Side::B => &self.b,
        }
    }
}

impl<T> IndexMut<Side> for Pair<T> {
    fn index_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::A => &mut self.a,
            Side::B => &mut self.b,
        }
    }
}

/// One move: `from` shrinks, the host has the memory back, `to` grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Who gives.
    pub from: Side,
    /// How much, in bytes.
    pub bytes: u64,
}

impl Move {
    /// Who takes.
    #[must_use]
    pub fn to(self) -> Side {
        self.from.other()
    }
}

/// What both guests are like. They differ only in what they start with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Boot memory of each guest.
    pub boot: u64,
    /// Hot-plug region of each guest.
    pub region: u64,
    /// Block size of both.
    pub block: u64,
    /// How much of the region each is asked to take at boot.
    pub start: Pair<u64>,
    /// What each VMM process may hold beyond its guest's memory: its program text, heap, stacks and page buffers.
    pub allowance: u64,
}

/// The sizes that the demo runs with: 128 cells to draw for each guest.
pub const SIZES: Sizes = Sizes {
    boot: 128 * MIB,
    region: 1024 * MIB,
    block: 8 * MIB,
    start: Pair {
        a: 768 * MIB,
        b: 256 * MIB,
    },
    allowance: 24 * MIB,
};

/// The moves that are repeated, by donor: each pair of them returns to the start, so that any number of moves fits.
const CYCLE: [Move; 4] = [
    Move {
        from: Side::A,
        bytes: 256 * MIB,
    },
    Move {
        from: Side::B,
        bytes: 256 * MIB,
    },
    Move {
        from: Side::A,
        bytes: 512 * MIB,
    },
    Move {
        from: Side::B,
        bytes: 512 * MIB,
    },
];

/// A checked script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    sizes: Sizes,
    moves: Vec<Move>,
}

/// Why a script cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// Too few or too many moves.
    #[error("--moves {asked}: a demo makes {FEWEST_MOVES} to {MOST_MOVES} moves")]
    NrMoves {
        /// What was asked for.
        asked: usize,
    },
    /// A move does not fit the guests as they are at that point.
    #[error("move {number}: {bytes} bytes from {from} do not fit: {rule}")]
    Misfit {
        /// Number of the move, from 1.
        number: usize,
        /// Who gives.
        from: Side,
        /// How much.
        bytes: u64,
        /// What it breaks.
        rule: &'static str,
    },
}

impl Plan {
    /// The script of the demo with `nr_moves` moves.
    ///
    /// # Errors
    /// The number is out of [`FEWEST_MOVES`]`..=`[`MOST_MOVES`].
    pub fn new(nr_moves: usize) -> Result<Self, PlanError> {
        if !(FEWEST_MOVES..=MOST_MOVES).contains(&nr_moves) {
            return Err(PlanError::NrMoves { asked: nr_moves });
        }
        Self::check(SIZES, CYCLE.iter().copied().cycle().take(nr_moves).collect())
    }

    /// Makes a plan of these moves if each of them fits.
    ///
    /// # Errors
    /// The first move that does not, and why.
    pub fn check(sizes: Sizes, moves: Vec<Move>) -> Result<Self, PlanError> {
        let mut plugged = sizes.start;
        for (number, one) in (1..).zip(&moves) {
            let misfit = |rule| PlanError::Misfit {
                number,
                from: one.from,
                bytes: one.bytes,
                rule,
            };
            if one.bytes < SMALLEST_MOVE {
                return Err(misfit("a move is at least 256 MiB"));
            }
            if one.bytes % sizes.block != 0 {
                return Err(misfit("memory moves in whole blocks"));
            }
            if plugged[one.from] < one.bytes {
                return Err(misfit("the donor has less plugged"));
            }
            if sizes.region - plugged[one.to()] < one.bytes {
                return Err(misfit("the receiver's region has less room"));
            }
            plugged[one.from] -= one.bytes;
            plugged[one.to()] += one.bytes;
        }
        Ok(Self { sizes, moves })
    }

    /// What both guests are like.
    #[must_use]
    pub fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// The moves, in order.
    #[must_use]
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// What a guest holds at the start: boot memory and what is plugged.
    #[must_use]
    pub fn start_total(&self, side: Side) -> u64 {
        self.sizes.boot + self.sizes.start[side]
    }

    /// What both VMs together may hold on the host at any moment: exactly what both hold at the start. Without memory
    /// to spare, nothing can be granted that has not come back first.
    #[must_use]
    pub fn budget(&self) -> u64 {
        Side::BOTH
            .map(|side| self.start_total(side) + self.sizes.allowance)
            .iter()
            .sum()
    }

    /// Blocks of each guest's region.
    #[must_use]
    pub fn nr_blocks(&self) -> usize {
        usize::try_from(self.sizes.region / self.sizes.block).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_number_of_moves_in_range_makes_a_plan_whose_moves_count() {
        for nr_moves in FEWEST_MOVES..=64 {
            let plan = Plan::new(nr_moves).expect("the cycle returns to its start");
            assert_eq!(plan.moves().len(), nr_moves);
            assert!(plan.moves().iter().all(|one| one.bytes >= SMALLEST_MOVE));
            for side in Side::BOTH {
                assert!(plan.moves().iter().any(|one| one.from == side));
            }
        }
    }

    #[test]
    fn too_few_and_too_many_moves_are_refused_with_the_number() {
        for asked in [0, 3, MOST_MOVES + 1] {
            assert_eq!(Plan::new(asked), Err(PlanError::NrMoves { asked }));
        }
        assert_eq!(
            PlanError::NrMoves { asked: 3 }.to_string(),
            "--moves 3: a demo makes 4 to 1000 moves"
        );
    }

    #[test]
    fn the_budget_leaves_no_room_for_a_move_that_has_not_come_back() {
        let plan = Plan::new(DEFAULT_MOVES).expect("the default is in range");
        let spare = plan.budget() - plan.start_total(Side::A) - plan.start_total(Side::B);
        assert_eq!(spare, 2 * plan.sizes().allowance);
        assert!(spare < SMALLEST_MOVE);
    }

    #[test]
    fn a_move_that_does_not_fit_is_named_with_its_rule() {
        let of =
            |from, bytes| Plan::check(SIZES, vec![Move { from, bytes }]).map_err(|error| error.to_string());
        assert!(of(Side::A, 128 * MIB).is_err_and(|text| text.contains("at least 256 MiB")));
        assert!(of(Side::A, 257 * MIB).is_err_and(|text| text.contains("whole blocks")));
        assert!(of(Side::B, 512 * MIB).is_err_and(|text| text.contains("donor has less")));
        let mut small = SIZES;
        small.region = 768 * MIB;
        let text = Plan::check(
            small,
            vec![Move {
                from: Side::B,
                bytes: 256 * MIB,
            }],
        )
        .map_err(|error| error.to_string());
        assert_eq!(
            text,
            Err("move 1: 268435456 bytes from B do not fit: the receiver's region has less room".into())
        );
    }

    proptest! {
        #[test]
        fn a_checked_plan_never_leaves_either_region(script in prop::collection::vec((any::<bool>(), 30_u64..100), 0..40)) {
            let moves: Vec<Move> = script
                .into_iter()
                .map(|(a_gives, blocks)| Move { from: if a_gives { Side::A } else { Side::B }, bytes: blocks * SIZES.block })
                .collect();
            let mut plugged = SIZES.start;
            let mut fits = true;
            for one in &moves {
                fits &= one.bytes >= SMALLEST_MOVE
                    && plugged[one.from] >= one.bytes
                    && plugged[one.to()] + one.bytes <= SIZES.region;
                if !fits {
                    break;
                }
                plugged[one.from] -= one.bytes;
                plugged[one.to()] += one.bytes;
            }
            prop_assert_eq!(Plan::check(SIZES, moves).is_ok(), fits);
        }
    }
}
