//! Which pages are in the balloon, as far as the driver has told: the host's own account.
//!
//! The driver's `actual` is a number that anybody can write. This set knows each page, so that a page is never counted twice,
//! a huge page of the host is known to be empty when the last of its pages has come, and a block that is unplugged takes
//! its pages out of the count.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::run::PageRun;

/// Pages in one chunk: as many as 2 MiB have.
const CHUNK: u64 = 512;
const WORD: u64 = u64::BITS as u64;
const WORDS: usize = (CHUNK / WORD) as usize;

/// A set of page numbers. Costs about 80 bytes for each 2 MiB of guest memory that has a page in it.
#[derive(Debug, Default)]
pub(super) struct PageSet {
    /// By page number divided by [`CHUNK`]; no chunk is empty.
    chunks: BTreeMap<u64, [u64; WORDS]>,
    len: u64,
}

/// The part of a run that lies in one word of one chunk.
#[derive(Clone, Copy)]
struct Part {
    chunk: u64,
    word: usize,
    mask: u64,
}

impl PageSet {
    /// Number of pages.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Adds pages; returns how many were not in the set before.
    pub(super) fn insert(&mut self, run: PageRun) -> u64 {
        let before = self.len;
        for Part { chunk, word, mask } in parts(run) {
            let bits = &mut self.chunks.entry(chunk).or_default()[word];
            self.len += u64::from((mask & !*bits).count_ones());
            *bits |= mask;
        }
        self.len - before
    }

    /// Takes pages out; returns how many were in the set.
    pub(super) fn remove(&mut self, run: PageRun) -> u64 {
        let before = self.len;
        let mut next = run.first / CHUNK;
        // Only chunks that exist are visited: a run of a whole block costs what is in the balloon of it.
        while let Some((&chunk, _)) = self.chunks.range(next..).next() {
            let start = (chunk * CHUNK).max(run.first);
            let end = ((chunk + 1) * CHUNK).min(run.end());
            if start >= end {
                break;
            }
            self.remove_from_chunk(PageRun {
                first: start,
                count: end - start,
            });
            next = chunk + 1;
        }
        before - self.len
    }

    fn remove_from_chunk(&mut self, run: PageRun) {
        let chunk = run.first / CHUNK;
        let Some(words) = self.chunks.get_mut(&chunk) else {
            return;
        };
        for Part { word, mask, .. } in parts(run) {
            let bits = &mut words[word];
            self.len -= u64::from((mask & *bits).count_ones());
            *bits &= !mask;
        }
        if words.iter().all(|&bits| bits == 0) {
            self.chunks.remove(&chunk);
        }
    }

    /// Whether every page of the run is in the set.
    pub(super) fn contains_all(&self, run: PageRun) -> bool {
        parts(run).all(|Part { chunk, word, mask }| {
            self.chunks
                .get(&chunk)
                .is_some_and(|words| words[word] & mask == mask)
        })
    }

    /// How many pages of the run are in the set.
    pub(super) fn count_in(&self, run: PageRun) -> u64 {
        let chunks = (
            Bound::Included(run.first / CHUNK),
            Bound::Excluded(run.end().div_ceil(CHUNK)),
        );
        self.chunks
            .range(chunks)
            .flat_map(|(&chunk, words)| {
                (0..)
                    .zip(words)
                    .map(move |(at, &bits)| (chunk * CHUNK + at * WORD, bits))
            })
            .map(|(first, bits)| u64::from((bits & overlap(first, run)).count_ones()))
            .sum()
    }

    /// Takes out everything.
    pub(super) fn clear(&mut self) {
        *self = PageSet::default();
    }
}

/// The bits of the word that starts at page `first` whose pages are in `run`.
fn overlap(first: u64, run: PageRun) -> u64 {
    let start = run.first.clamp(first, first + WORD) - first;
    let end = run.end().clamp(first, first + WORD) - first;
    if start >= end {
        return 0;
    }
    (u64::MAX >> (WORD - (end - start))) << start
}

/// A run, word by word.
fn parts(run: PageRun) -> impl Iterator<Item = Part> {
    let mut next = run.first;
    std::iter::from_fn(move || {
        if next >= run.end() {
            return None;
        }
        let word_start = next - next % WORD;
        let part = Part {
            chunk: next / CHUNK,
            word: usize::try_from(next % CHUNK / WORD).expect("a chunk has a few words"),
            mask: overlap(word_start, run),
        };
        next = word_start + WORD;
        Some(part)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn a_huge_page_is_whole_when_its_last_page_has_come() {
        let mut set = PageSet::default();
        let huge = run(1024, 512);
        assert_eq!(set.insert(run(1024, 200)), 200);
        assert_eq!(set.insert(run(1225, 311)), 311);
        assert!(!set.contains_all(huge));
        assert_eq!(set.insert(run(1200, 100)), 1, "all but one were there");
        assert!(set.contains_all(huge) && !set.contains_all(run(1024, 513)));
        assert_eq!(set.len(), 512);
    }

    #[test]
    fn taking_out_what_is_not_there_takes_nothing() {
        let mut set = PageSet::default();
        set.insert(run(10, 5));
        assert_eq!(set.remove(run(0, 10)), 0);
        assert_eq!(set.remove(run(12, 1 << 40)), 3);
        assert_eq!(set.len(), 2);
        assert_eq!(set.remove(run(0, 1 << 40)), 2);
        assert!(set.chunks.is_empty(), "nothing is kept for nothing");
    }

    #[test]
    fn the_last_page_number_of_all_can_be_kept() {
        let mut set = PageSet::default();
        let top = run(u64::from(u32::MAX), 1);
        assert_eq!(set.insert(top), 1);
        assert!(set.contains_all(top));
        assert_eq!(set.count_in(run(0, 1 << 32)), 1);
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_numbers(steps in prop::collection::vec((any::<bool>(), 0u64..2000, 1u64..900), 1..40)) {
            let mut set = PageSet::default();
            let mut model = BTreeSet::new();
            for (insert, first, count) in steps {
                let (step, before) = (run(first, count), model.len());
                if insert {
                    model.extend(first..first + count);
                    prop_assert_eq!(set.insert(step), (model.len() - before) as u64);
                } else {
                    model.retain(|page| !(first..first + count).contains(page));
                    prop_assert_eq!(set.remove(step), (before - model.len()) as u64);
                }
                prop_assert_eq!(set.len(), model.len() as u64);
                for probe in [run(first, count), run(first.saturating_sub(3), 7), run(first + count, 70), run(512, 512)] {
                    let inside = model.range(probe.first..probe.end()).count() as u64;
                    prop_assert_eq!(set.count_in(probe), inside);
                    prop_assert_eq!(set.contains_all(probe), inside == probe.count);
                }
            }
        }
    }
}
