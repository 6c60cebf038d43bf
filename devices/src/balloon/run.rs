//! Neighbouring pages, and how they are found among page numbers in any order.
//!
//! Drivers send page numbers one by one, and in what order their allocator gave them out: Linux often downwards. The host
//! discards a range at a time, a hundred times faster than page by page.

use virtio_wire::balloon::PAGE_SHIFT;

/// Pages `first .. first + count`, by number; `count` is at least 1. Numbers come from an le32 or from addresses inside
/// guest memory, so neither the sum nor the addresses overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRun {
    pub(super) first: u64,
    pub(super) count: u64,
}

impl PageRun {
    /// The number behind the last page.
    pub(super) fn end(self) -> u64 {
        self.first + self.count
    }

    /// Guest-physical address of the first byte.
    pub(super) fn gpa(self) -> u64 {
        self.first << PAGE_SHIFT
    }

    /// Guest-physical address behind the last byte.
    pub(super) fn end_gpa(self) -> u64 {
        self.end() << PAGE_SHIFT
    }

    /// Length in bytes.
    pub(super) fn len(self) -> u64 {
        self.count << PAGE_SHIFT
    }

    /// The whole pages between two addresses, if there are any.
    pub(super) fn inside(gpa: u64, end: u64) -> Option<PageRun> {
        let first = gpa.div_ceil(1 << PAGE_SHIFT);
        let end = end >> PAGE_SHIFT;
        let count = end.checked_sub(first).filter(|&count| count > 0)?;
        Some(PageRun { first, count })
    }
}

/// The pages of `pfns`, each once, as runs from the lowest up that do not touch. Sorts what it is given.
pub(super) fn join(pfns: &mut [u32]) -> impl Iterator<Item = PageRun> {
    pfns.sort_unstable();
    let mut rest = pfns.iter().map(|&pfn| u64::from(pfn)).peekable();
    std::iter::from_fn(move || {
        let first = rest.next()?;
        let mut count = 1;
        while let Some(pfn) = rest.next_if(|&pfn| pfn <= first + count) {
            // A number that comes twice is the last one of the run again.
            count = pfn - first + 1;
        }
        Some(PageRun { first, count })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(first: u64, count: u64) -> PageRun {
        PageRun { first, count }
    }

    #[test]
    fn neighbours_are_joined_in_whatever_order_they_come() {
        for pfns in [[3, 4, 5, 9, 10, 0], [10, 9, 0, 5, 4, 3], [5, 3, 10, 4, 0, 9]] {
            let joined: Vec<_> = join(&mut pfns.clone()).collect();
            assert_eq!(joined, [run(0, 1), run(3, 3), run(9, 2)]);
        }
    }

    #[test]
    fn a_page_that_comes_twice_counts_once() {
        assert_eq!(join(&mut [7, 8, 7, 7, 8]).collect::<Vec<_>>(), [run(7, 2)]);
    }

    #[test]
    fn the_highest_page_number_has_an_end() {
        let top = u64::from(u32::MAX);
        let joined: Vec<_> = join(&mut [u32::MAX, u32::MAX - 1]).collect();
        assert_eq!(joined, [run(top - 1, 2)]);
        assert_eq!(joined[0].end_gpa(), 1 << 44);
    }

    #[test]
    fn only_whole_pages_lie_between_two_addresses() {
        assert_eq!(PageRun::inside(0x1000, 0x3000), Some(run(1, 2)));
        assert_eq!(PageRun::inside(0x1001, 0x3fff), Some(run(2, 1)));
        assert_eq!(PageRun::inside(0x1001, 0x2fff), None);
        assert_eq!(PageRun::inside(0x3000, 0x3000), None);
        assert_eq!(PageRun::inside(u64::MAX, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn runs_hold_exactly_the_pages_they_were_made_of(mut pfns in prop::collection::vec(0..300u32, 0..200)) {
            let mut expected = pfns.clone();
            expected.sort_unstable();
            expected.dedup();
            let runs: Vec<_> = join(&mut pfns).collect();
            let pages: Vec<u64> = runs.iter().flat_map(|run| run.first..run.end()).collect();
            prop_assert_eq!(pages, expected.into_iter().map(u64::from).collect::<Vec<_>>());
            prop_assert!(runs.windows(2).all(|pair| pair[0].end() < pair[1].first));
        }
    }
}
