//! When memory is out ([`Patience`]), and who has to go then: the out-of-memory killer's choice (Linux `mm/oom_kill.c`, `oom_badness`).
//!
//! Memory is out when ten direct reclaims, one after the other, brought nothing for anybody ([`Reclaimed::has_progress`]).
//!
//! A program's *points* are the pages that its end brings back: those it has in memory, those it has in swap areas, and its page tables. To these its
//! `oom_score_adj` is added, in thousandths of all memory and swap there is: at 0 it is nothing, at 1000 the program goes before any other, at -1000 it never
//! does. The program with the most points goes; of two with as many the younger, which has less work to lose. Its *score* is the
//! points in thousandths of memory and swap, 0 to 2000.

use super::Reclaimed;

/// How often direct reclaim may come to nothing, one time after the other: others may be about to give memory back.
const MOST_FRUITLESS: u32 = 10;

/// How often a request that waits for memory has found nothing to reclaim.
#[derive(Debug, Default)]
pub struct Patience {
    fruitless: u32,
}

impl Patience {
    /// What a direct reclaim came to, after which the request still found no memory. Whether memory is out: it begins to count anew then.
    pub const fn is_over(&mut self, reclaimed: Reclaimed) -> bool {
        self.fruitless = if reclaimed.has_progress {
            0
        } else {
            self.fruitless + 1
        };
        let is_over = self.fruitless == MOST_FRUITLESS;
        if is_over {
            self.fruitless = 0;
        }
        is_over
    }
}

/// The least adjustment: such a program is never chosen.
pub const OOM_SCORE_ADJ_MIN: i16 = -1000;
/// The greatest.
pub const OOM_SCORE_ADJ_MAX: i16 = 1000;

/// A program, as far as this is concerned. Pages are of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its number.
    pub pid: u32,
    /// Pages in memory.
    pub rss_pages: u64,
    /// Pages in swap areas.
    pub swap_pages: u64,
    /// Page tables.
    pub table_pages: u64,
    /// From [`OOM_SCORE_ADJ_MIN`] to [`OOM_SCORE_ADJ_MAX`].
    pub score_adj: i16,
}

impl Candidate {
    /// What it weighs where memory and swap have `total_pages`; `None` if it must not be chosen.
    pub fn points(&self, total_pages: u64) -> Option<i64> {
        if self.score_adj <= OOM_SCORE_ADJ_MIN {
            return None;
        }
        let pages = self.rss_pages + self.swap_pages + self.table_pages;
        let thousandth = i64::try_from(total_pages).unwrap_or(i64::MAX) / 1000;
        let adjustment = thousandth.saturating_mul(self.score_adj.min(OOM_SCORE_ADJ_MAX).into());
        Some(
            i64::try_from(pages)
                .unwrap_or(i64::MAX)
                .saturating_add(adjustment),
        )
    }

    /// The points in thousandths of memory and swap, 0 if it must not be chosen.
    pub fn score(&self, total_pages: u64) -> u64 {
        let points = self.points(total_pages).unwrap_or(0);
        u64::try_from(points).unwrap_or(0).saturating_mul(1000) / total_pages.max(1)
    }
}

/// The one that has to go.
pub fn choose(candidates: impl Iterator<Item = Candidate>, total_pages: u64) -> Option<Candidate> {
    let weighed = candidates.filter_map(|one| Some((one.points(total_pages)?, one)));
    let heaviest = weighed.max_by_key(|(points, one)| (*points, one.pid));
    heaviest.map(|(_, one)| one)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOTAL: u64 = 100_000;

    fn program(pid: u32, rss_pages: u64, swap_pages: u64, score_adj: i16) -> Candidate {
        Candidate {
            pid,
            rss_pages,
            swap_pages,
            table_pages: 10,
            score_adj,
        }
    }

    fn chosen(candidates: &[Candidate]) -> Option<u32> {
        choose(candidates.iter().copied(), TOTAL).map(|one| one.pid)
    }

    #[test]
    fn memory_is_out_when_nothing_was_found_ten_times_in_a_row() {
        let found = |has_progress| Reclaimed {
            freed_pages: 0,
            has_progress,
        };
        let mut patience = Patience::default();
        let mut asked = |times, has_progress| {
            let over = (0..times).filter(|_| patience.is_over(found(has_progress)));
            over.count()
        };
        assert_eq!((asked(9, false), asked(1, true), asked(9, false)), (0, 0, 0));
        assert_eq!((asked(1, false), asked(9, false), asked(1, false)), (1, 0, 1));
    }

    #[test]
    fn memory_swap_and_tables_count_alike() {
        assert_eq!(chosen(&[program(1, 500, 0, 0), program(2, 100, 401, 0)]), Some(2));
        let tables = Candidate {
            table_pages: 900,
            ..program(3, 0, 0, 0)
        };
        assert_eq!(chosen(&[program(1, 500, 0, 0), tables]), Some(3));
        assert_eq!(program(1, 25_000, 24_990, 0).score(TOTAL), 500);
    }

    #[test]
    fn an_adjustment_is_thousandths_of_everything() {
        // 10 % of all memory outweighs 9 % more use, and not 11 % more.
        assert_eq!(chosen(&[program(1, 9_000, 0, 0), program(2, 0, 0, 100)]), Some(2));
        assert_eq!(
            chosen(&[program(1, 11_000, 0, 0), program(2, 0, 0, 100)]),
            Some(1)
        );
        assert_eq!(
            chosen(&[program(1, 90_000, 0, 0), program(2, 1, 0, 1000)]),
            Some(2)
        );
        assert_eq!(chosen(&[program(1, 900, 0, -50), program(2, 1, 0, 0)]), Some(2));
        assert_eq!(program(1, 900, 0, -50).score(TOTAL), 0);
    }

    #[test]
    fn the_lowest_adjustment_protects_whatever_there_is() {
        assert_eq!(
            chosen(&[program(1, 90_000, 0, -1000), program(2, 0, 0, -999)]),
            Some(2)
        );
        assert_eq!(chosen(&[program(1, 90_000, 0, -1000)]), None);
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn of_two_alike_the_younger_goes() {
        let both = [program(4, 50, 0, 0), program(9, 50, 0, 0), program(7, 50, 0, 0)];
        assert_eq!(chosen(&both), Some(9));
    }
}
