//! The queues of a balloon device, and by which number a driver knows each.
//!
//! Section 5.5.2 gives each queue its number for good, but a driver that has no use for an optional queue may have
//! numbered the ones behind it without a gap, as Linux' virtio-mmio transport does (`vm_find_vqs`). Which way a driver counts
//! shows in the queues that it has set up when it sets DRIVER_OK.

use super::feature;

/// A queue of a balloon device. The discriminant is its number in section 5.5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Queue {
    /// Page numbers of pages that go into the balloon.
    Inflate = 0,
    /// Page numbers of pages that leave the balloon.
    Deflate = 1,
    /// Statistics; exists if [`feature::STATS_VQ`] was negotiated.
    Stats = 2,
    /// Command ids, and free pages as device-writable buffers; exists if [`feature::FREE_PAGE_HINT`] was negotiated.
    FreePage = 3,
    /// Free pages as device-writable buffers; exists if [`feature::PAGE_REPORTING`] was negotiated.
    Reporting = 4,
}

/// How a driver numbers the queues when it has not negotiated all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Numbering {
    /// Every queue has the number of section 5.5.2, and those that do not exist leave gaps.
    #[default]
    Fixed,
    /// The queues that exist are numbered from 0 without gaps.
    Dense,
}

impl Queue {
    /// All of them, by their numbers in section 5.5.2.
    pub const ALL: [Queue; 5] = [
        Queue::Inflate,
        Queue::Deflate,
        Queue::Stats,
        Queue::FreePage,
        Queue::Reporting,
    ];

    /// Whether the queue exists when these features were negotiated.
    pub const fn exists_with(self, features: u64) -> bool {
        let needed = match self {
            Queue::Inflate | Queue::Deflate => return true,
            Queue::Stats => feature::STATS_VQ,
            Queue::FreePage => feature::FREE_PAGE_HINT,
            Queue::Reporting => feature::PAGE_REPORTING,
        };
        features & needed != 0
    }
}

impl Numbering {
    /// The number of a queue with these features; `None` if there is no such queue.
    pub fn index_of(self, queue: Queue, features: u64) -> Option<u16> {
        if !queue.exists_with(features) {
            return None;
        }
        Some(match self {
            Numbering::Fixed => queue as u16,
            Numbering::Dense => (0..)
                .zip(existing(features))
                .find_map(|(index, other)| (other == queue).then_some(index))
                .unwrap_or(queue as u16),
        })
    }

    /// The queue that has this number with these features.
    pub fn queue_at(self, index: u16, features: u64) -> Option<Queue> {
        existing(features).find(|&queue| self.index_of(queue, features) == Some(index))
    }
}

fn existing(features: u64) -> impl Iterator<Item = Queue> {
    Queue::ALL
        .into_iter()
        .filter(move |queue| queue.exists_with(features))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONAL: u64 = feature::STATS_VQ | feature::FREE_PAGE_HINT | feature::PAGE_REPORTING;

    fn numbers(numbering: Numbering, features: u64) -> [Option<u16>; 5] {
        Queue::ALL.map(|queue| numbering.index_of(queue, features))
    }

    #[test]
    fn with_every_feature_both_ways_of_counting_are_the_same() {
        let all = [0, 1, 2, 3, 4].map(Some);
        assert_eq!(numbers(Numbering::Fixed, OPTIONAL), all);
        assert_eq!(numbers(Numbering::Dense, OPTIONAL), all);
    }

    #[test]
    fn a_queue_that_is_missing_leaves_a_gap_or_moves_the_others_up() {
        let features = feature::PAGE_REPORTING;
        let basic = [Some(0), Some(1), None, None];
        assert_eq!(numbers(Numbering::Fixed, features)[..4], basic);
        assert_eq!(numbers(Numbering::Dense, features)[..4], basic);
        assert_eq!(Numbering::Fixed.index_of(Queue::Reporting, features), Some(4));
        assert_eq!(Numbering::Dense.index_of(Queue::Reporting, features), Some(2));
        assert_eq!(Numbering::Fixed.queue_at(2, features), None);
        assert_eq!(Numbering::Dense.queue_at(2, features), Some(Queue::Reporting));
    }

    #[test]
    fn numbers_and_queues_are_one_to_one_with_any_features() {
        for features in 0..64 {
            for numbering in [Numbering::Fixed, Numbering::Dense] {
                for queue in Queue::ALL {
                    let index = numbering.index_of(queue, features);
                    assert_eq!(index.is_some(), queue.exists_with(features));
                    if let Some(index) = index {
                        assert_eq!(numbering.queue_at(index, features), Some(queue));
                    }
                }
                assert_eq!(numbering.queue_at(5, features), None);
            }
        }
    }
}
