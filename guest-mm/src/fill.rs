//! Lists ordered by fullness: the structure behind *fullest block first*.
//!
//! Items (pageblocks of a section, sections of a zone) stand in one of 16 buckets by their share of free frames,
//! bucket 0 being the fullest. Finding the fullest is one bit scan, and an item changes its bucket only when its
//! fill crosses a sixteenth. Links are numbers inside the items; the list owns nothing.

/// End of a list of items.
const NONE: u32 = u32::MAX;
/// Number of buckets.
pub(crate) const NR_BUCKETS: u8 = 16;

/// An item's place in a [`FillList`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FillLink {
    next: u32,
    prev: u32,
    bucket: Option<u8>,
}

impl FillLink {
    pub(crate) const UNLINKED: Self = Self {
        next: NONE,
        prev: NONE,
        bucket: None,
    };

    /// The bucket in which the item stands.
    #[inline]
    pub(crate) const fn bucket(self) -> Option<u8> {
        self.bucket
    }
}

/// Where the links of numbered items are kept.
pub(crate) trait FillLinks {
    fn link(&self, item: u32) -> FillLink;
    fn link_mut(&mut self, item: u32) -> &mut FillLink;
}

/// Heads of the 16 buckets.
#[derive(Clone, Debug)]
pub(crate) struct FillList {
    heads: [u32; NR_BUCKETS as usize],
    /// Bit b is set when bucket b has an item.
    nonempty: u16,
}

impl FillList {
    pub(crate) const fn new() -> Self {
        Self {
            heads: [NONE; NR_BUCKETS as usize],
            nonempty: 0,
        }
    }

    /// Puts the item in the wanted bucket, from wherever it stands; `None` takes it out.
    pub(crate) fn place(&mut self, links: &mut impl FillLinks, item: u32, want: Option<u8>) {
        let link = links.link(item);
        if link.bucket == want {
            return;
        }
        if let Some(bucket) = link.bucket {
            self.unlink(links, item, link, bucket);
        }
        if let Some(bucket) = want {
            self.push(links, item, bucket);
        }
    }

    /// An item of the fullest bucket in use.
    #[inline]
    pub(crate) fn fullest(&self) -> Option<u32> {
        (self.nonempty != 0).then(|| self.heads[self.nonempty.trailing_zeros() as usize])
    }

    /// An item of the emptiest bucket in use.
    pub(crate) fn emptiest(&self) -> Option<u32> {
        (self.nonempty != 0).then(|| self.heads[15 - self.nonempty.leading_zeros() as usize])
    }

    /// The first item of a bucket; those after it in the same bucket follow with [`FillList::next`].
    pub(crate) fn first_of(&self, bucket: u8) -> Option<u32> {
        Some(self.heads[usize::from(bucket)]).filter(|&head| head != NONE)
    }

    /// The item after `item`, on the way from the fullest bucket to the emptiest.
    pub(crate) fn next(&self, links: &impl FillLinks, item: u32) -> Option<u32> {
        let link = links.link(item);
        if link.next != NONE {
            return Some(link.next);
        }
        let emptier = u32::from(self.nonempty) >> (link.bucket? + 1);
        let skip = usize::from(link.bucket? + 1);
        (emptier != 0).then(|| self.heads[skip + emptier.trailing_zeros() as usize])
    }

    fn push(&mut self, links: &mut impl FillLinks, item: u32, bucket: u8) {
        let head = self.heads[usize::from(bucket)];
        *links.link_mut(item) = FillLink {
            next: head,
            prev: NONE,
            bucket: Some(bucket),
        };
        if head != NONE {
            links.link_mut(head).prev = item;
        }
        self.heads[usize::from(bucket)] = item;
        self.nonempty |= 1 << bucket;
    }

    fn unlink(&mut self, links: &mut impl FillLinks, item: u32, link: FillLink, bucket: u8) {
        if link.next != NONE {
            links.link_mut(link.next).prev = link.prev;
        }
        if link.prev != NONE {
            links.link_mut(link.prev).next = link.next;
        } else {
            self.heads[usize::from(bucket)] = link.next;
            if link.next == NONE {
                self.nonempty &= !(1 << bucket);
            }
        }
        *links.link_mut(item) = FillLink::UNLINKED;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    struct Plain(Vec<FillLink>);

    impl FillLinks for Plain {
        fn link(&self, item: u32) -> FillLink {
            self.0[item as usize]
        }
        fn link_mut(&mut self, item: u32) -> &mut FillLink {
            &mut self.0[item as usize]
        }
    }

    proptest! {
        #[test]
        fn walks_visit_every_item_once_from_the_fullest_bucket(
            moves in prop::collection::vec((0u32..12, prop::option::of(0u8..16)), 0..80)
        ) {
            let mut links = Plain(std::vec![FillLink::UNLINKED; 12]);
            let mut list = FillList::new();
            let mut model = [None; 12];
            for (item, bucket) in moves {
                list.place(&mut links, item, bucket);
                model[item as usize] = bucket;
                let mut seen = Vec::new();
                let mut at = list.fullest();
                while let Some(item) = at {
                    seen.push(item);
                    at = list.next(&links, item);
                }
                let buckets: Vec<_> = seen.iter().map(|&i| model[i as usize]).collect();
                prop_assert!(buckets.is_sorted() && buckets.iter().all(Option::is_some));
                prop_assert_eq!(list.emptiest().map(|i| model[i as usize]), buckets.last().copied());
                seen.sort_unstable();
                let want: Vec<u32> = (0..12).filter(|&i| model[i as usize].is_some()).collect();
                prop_assert_eq!(seen, want);
            }
        }
    }
}
