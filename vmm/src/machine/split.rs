//! Which region gives and which takes when the guest is to have another size: pure arithmetic over whole blocks.
//!
//! Growing begins with the first region, shrinking with the last: the order of the `--hotplug` options is an order of
//! preference. A region goes the other way only if blocks do not fit otherwise (128 MiB more where 2 MiB blocks have made up
//! 128 MiB for want of large ones). Block sizes are powers of two, so each divides all larger ones; that is what makes
//! taking the largest first right.

use thiserror::Error;

/// A region, in bytes; `size` and `requested` are multiples of `block_size`, a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// The most it can have.
    pub(super) size: u64,
    /// What it comes and goes in.
    pub(super) block_size: u64,
    /// What is requested of it now.
    pub(super) requested: u64,
}

/// No choice of whole blocks adds up to the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no blocks add up to it; those next below have {below} bytes")]
pub(super) struct NotInBlocks {
    /// The largest size below it that blocks add up to.
    pub(super) below: u64,
}

/// What to request of each region so that it is `total` bytes together.
///
/// # Errors
/// [`NotInBlocks`], also where the regions together are smaller.
pub(super) fn split(total: u64, shares: &[Share]) -> Result<Vec<u64>, NotInBlocks> {
    let now: u64 = shares.iter().map(|share| share.requested).sum();
    let moved = if total >= now {
        let rooms = shares
            .iter()
            .map(|share| Room::of(share, share.size - share.requested));
        let more = fill(total - now, &rooms.collect::<Vec<_>>());
        more.map(|more| {
            shares
                .iter()
                .zip(more)
                .map(|(share, more)| share.requested + more)
                .collect()
        })
    } else {
        let rooms = shares.iter().rev().map(|share| Room::of(share, share.requested));
        let less = fill(now - total, &rooms.collect::<Vec<_>>());
        less.map(|less| {
            let less = less.into_iter().rev();
            shares
                .iter()
                .zip(less)
                .map(|(share, less)| share.requested - less)
                .collect()
        })
    };
    let from_nothing: Vec<_> = shares.iter().map(|share| Room::of(share, share.size)).collect();
    let moved: Option<Vec<u64>> = moved.or_else(|| fill(total, &from_nothing));
    moved.ok_or_else(|| NotInBlocks {
        below: total - rest_of(total, &from_nothing),
    })
}

/// What to request of each region so that it is at least `total` bytes together and as few more as blocks allow; all of
/// them where they are smaller.
pub(super) fn cover(total: u64, shares: &[Share]) -> Vec<u64> {
    let all: u64 = shares.iter().map(|share| share.size).sum();
    let total = total.min(all);
    split(total, shares).unwrap_or_else(|_| {
        // What blocks add up to leaves what blocks add up to: the least above is what the most below leaves over.
        let left = match split(all - total, shares) {
            Ok(_) => all - total,
            Err(NotInBlocks { below }) => below,
        };
        let enough = split(all - left, shares);
        debug_assert!(enough.is_ok(), "{total} of {shares:?}: {enough:?}");
        enough.unwrap_or_else(|_| shares.iter().map(|share| share.size).collect())
    })
}

/// How much a region can take or give, in whole blocks.
#[derive(Debug, Clone, Copy)]
struct Room {
    size: u64,
    block_size: u64,
}

impl Room {
    fn of(share: &Share, size: u64) -> Self {
        Self {
            size,
            block_size: share.block_size,
        }
    }

    /// As much of `amount` as it can take.
    fn most_of(self, amount: u64) -> u64 {
        self.size.min(amount / self.block_size * self.block_size)
    }
}

/// Fills the rooms with `amount` bytes in all, the first ones first. `None` if it does not go into whole blocks.
fn fill(amount: u64, rooms: &[Room]) -> Option<Vec<u64>> {
    let mut left = amount;
    let mut filled = Vec::with_capacity(rooms.len());
    for (at, room) in rooms.iter().enumerate() {
        let others = &rooms[at + 1..];
        // What the others could take of more than their largest block, they could also take of that much less: so the
        // right share is at most that far below the most that goes in here.
        let largest = others.iter().map(|other| other.block_size).max().unwrap_or(0);
        let most = room.most_of(left);
        let tries =
            (0..=largest / room.block_size).map_while(|less| most.checked_sub(less * room.block_size));
        let share = tries
            .into_iter()
            .find(|share| rest_of(left - share, others) == 0)?;
        filled.push(share);
        left -= share;
    }
    (left == 0).then_some(filled)
}

/// What is left of `amount` when the rooms have taken as much as they can, in any order.
fn rest_of(amount: u64, rooms: &[Room]) -> u64 {
    let mut by_block = rooms.to_vec();
    by_block.sort_by_key(|room| std::cmp::Reverse(room.block_size));
    by_block
        .iter()
        .fold(amount, |left, room| left - room.most_of(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(size: u64, block_size: u64, requested: u64) -> Share {
        Share {
            size,
            block_size,
            requested,
        }
    }

    #[test]
    fn growing_fills_the_first_region_first_and_shrinking_empties_the_last_first() {
        let shares = |a, b| [share(8, 2, a), share(8, 2, b)];
        assert_eq!(split(6, &shares(2, 0)), Ok(vec![6, 0]));
        assert_eq!(split(12, &shares(2, 0)), Ok(vec![8, 4]));
        assert_eq!(split(10, &shares(8, 4)), Ok(vec![8, 2]));
        assert_eq!(split(2, &shares(4, 4)), Ok(vec![2, 0]));
        assert_eq!(
            split(8, &shares(2, 4)),
            Ok(vec![4, 4]),
            "nothing is moved without need"
        );
    }

    #[test]
    fn large_blocks_serve_what_they_can_and_small_ones_the_rest() {
        assert_eq!(
            split(130, &[share(100, 2, 0), share(1024, 128, 0)]),
            Ok(vec![2, 128])
        );
        assert_eq!(
            split(130, &[share(1024, 128, 0), share(64, 2, 0)]),
            Ok(vec![128, 2])
        );
        // 128 more: the small blocks are full, so the large one comes and they stay.
        assert_eq!(
            split(192, &[share(64, 2, 64), share(1024, 128, 0)]),
            Ok(vec![64, 128])
        );
        // 64 more: only if the small blocks go.
        assert_eq!(
            split(128, &[share(64, 2, 64), share(1024, 128, 0)]),
            Ok(vec![0, 128])
        );
    }

    #[test]
    fn what_blocks_do_not_add_up_to_is_refused_with_the_next_size_below() {
        let shares = [share(256, 128, 0), share(8, 2, 0)];
        assert_eq!(split(3, &shares), Err(NotInBlocks { below: 2 }));
        assert_eq!(split(64, &shares), Err(NotInBlocks { below: 8 }));
        assert_eq!(split(1000, &shares), Err(NotInBlocks { below: 264 }));
        assert_eq!(split(0, &[]), Ok(vec![]));
        assert_eq!(split(2, &[]), Err(NotInBlocks { below: 0 }));
    }

    /// Every way to request whole blocks of these regions.
    fn all_ways(shares: &[Share]) -> Vec<Vec<u64>> {
        shares.iter().fold(vec![vec![]], |ways, share| {
            let amounts = (0..=share.size / share.block_size).map(|blocks| blocks * share.block_size);
            let amounts: Vec<u64> = amounts.collect();
            let longer = |way: &Vec<u64>| {
                let way = way.clone();
                let longer = amounts.iter().map(move |amount| [&way[..], &[*amount]].concat());
                longer.collect::<Vec<_>>()
            };
            ways.iter().flat_map(longer).collect()
        })
    }

    /// All small worlds of three regions with blocks of 1, 2 and 4, from every state to every size.
    #[test]
    fn every_split_is_a_way_there_and_only_impossible_sizes_are_refused() {
        for kinds in 0..27 {
            let blocks = [kinds % 3, kinds / 3 % 3, kinds / 9].map(|kind: u64| 1 << kind);
            let empty = blocks
                .map(|block_size| share(block_size * if block_size == 1 { 3 } else { 2 }, block_size, 0));
            let ways = all_ways(&empty);
            for from in &ways {
                let mut shares = empty;
                shares
                    .iter_mut()
                    .zip(from)
                    .for_each(|(share, requested)| share.requested = *requested);
                let now: u64 = from.iter().sum();
                for total in 0..=20 {
                    let sums = || ways.iter().map(|way| way.iter().sum::<u64>());
                    match split(total, &shares) {
                        Ok(way) => {
                            assert_eq!(cover(total, &shares), way);
                            assert!(
                                ways.contains(&way) && way.iter().sum::<u64>() == total,
                                "{shares:?} {total}"
                            );
                            let same_way = |way: &[u64]| {
                                way.iter()
                                    .zip(from)
                                    .all(|(to, from)| if total >= now { to >= from } else { to <= from })
                            };
                            let needless = !same_way(&way)
                                && ways
                                    .iter()
                                    .any(|other| other.iter().sum::<u64>() == total && same_way(other));
                            assert!(
                                !needless,
                                "{shares:?} to {total}: {way:?} moves blocks to and fro"
                            );
                        }
                        Err(NotInBlocks { below }) => {
                            assert!(sums().all(|sum| sum != total), "{shares:?} can be {total}");
                            let covered: u64 = cover(total, &shares).iter().sum();
                            let least = sums().filter(|sum| *sum > total).min();
                            assert_eq!(Some(covered), least.or_else(|| sums().max()));
                            assert_eq!(Some(below), sums().filter(|sum| *sum < total).max());
                        }
                    }
                }
            }
        }
    }
}
