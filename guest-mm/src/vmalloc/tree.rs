//! Areas by address, and the lowest hole that is large enough, both in a logarithmic number of steps.
//!
//! A search tree over start addresses that is also a heap over a hash of them (R. Seidel, C. Aragon, "Randomized search
//! trees", 1996): its shape depends on nothing but which areas there are. Every node knows how many pages are free right
//! below its area and the largest such number in its subtree, so a search for room goes straight to the lowest.
//!
//! Nodes live in frames from the [`FrameSource`], 64 of them in one, and are named by their physical addresses: this
//! never calls the heap, so the heap may call vmalloc. Frames of nodes are kept for further nodes.

use crate::frames::Frames;
use crate::kernel_map::{FrameSource, OutOfFrames};
use crate::pfn::{Order, PAGE_SHIFT, PAGE_SIZE, Pfn};
use crate::vmalloc::WrongArea;

/// Words of a node.
const NODE_WORDS: usize = 8;
const NODE_BYTES: u64 = NODE_WORDS as u64 * 8;

/// A word of a node.
#[derive(Clone, Copy)]
pub(super) enum Field {
    /// First address of the area.
    Start = 0,
    /// Pages that the area takes of the window, its guard page among them.
    Pages = 1,
    /// Lower areas. Of a vacant node: the next one.
    Left = 2,
    /// Higher areas.
    Right = 3,
    /// Free pages between the area below (or the window's start) and this one.
    Gap = 4,
    /// The largest `Gap` of this subtree.
    MaxGap = 5,
    /// What the area is; the tree does not look at it.
    Kind = 6,
    /// Who asked for the area, or what is done with it next; the tree does not look at it.
    Note = 7,
}

/// Physical address of a node, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link(u64);

impl Link {
    pub(super) const NONE: Self = Self(u64::MAX);

    /// As a number, to be kept in a [`Field`].
    pub(super) const fn raw(self) -> u64 {
        self.0
    }

    /// The link that [`raw`](Self::raw) is of.
    pub(super) const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    pub(super) fn get(self, frames: &impl Frames, field: Field) -> u64 {
        let (pfn, word) = self.place(field);
        frames.read(pfn, word)
    }

    pub(super) fn set(self, frames: &impl Frames, field: Field, value: u64) {
        let (pfn, word) = self.place(field);
        frames.write(pfn, word, value);
    }

    fn link(self, frames: &impl Frames, field: Field) -> Self {
        Self(self.get(frames, field))
    }

    fn start(self, frames: &impl Frames) -> u64 {
        self.get(frames, Field::Start)
    }

    /// First address that is not the area's, nor its guard page's.
    fn end(self, frames: &impl Frames) -> u64 {
        self.start(frames) + (self.get(frames, Field::Pages) << PAGE_SHIFT)
    }

    /// The largest gap of the subtree; 0 for no tree.
    fn max_gap(self, frames: &impl Frames) -> u64 {
        if self == Self::NONE {
            0
        } else {
            self.get(frames, Field::MaxGap)
        }
    }

    fn place(self, field: Field) -> (Pfn, usize) {
        let pfn = Pfn::containing(self.0).expect("links that are followed were made from frame numbers");
        let word = (self.0 % PAGE_SIZE) >> 3;
        (pfn, word as usize + field as usize)
    }
}

/// The areas of a window.
#[derive(Debug)]
pub(super) struct Tree {
    window: (u64, u64),
    root: Link,
    /// Nodes of no area.
    vacant: Link,
    /// End of the highest area, or the window's start.
    top: u64,
    /// Number of areas.
    pub(super) nr_areas: u32,
    /// Frames that hold nodes.
    pub(super) nr_frames: u32,
}

impl Tree {
    /// No areas between two addresses.
    pub(super) const fn new(start: u64, end: u64) -> Self {
        Self {
            window: (start, end),
            root: Link::NONE,
            vacant: Link::NONE,
            top: start,
            nr_areas: 0,
            nr_frames: 0,
        }
    }

    /// Makes sure that the next [`insert`](Self::insert) finds a node.
    pub(super) fn reserve(
        &mut self,
        frames: &impl Frames,
        source: &impl FrameSource,
    ) -> Result<(), OutOfFrames> {
        if self.vacant != Link::NONE {
            return Ok(());
        }
        let frame = source.take(Order::ZERO).ok_or(OutOfFrames)?;
        for node in (0..PAGE_SIZE / NODE_BYTES).rev() {
            self.retire(frames, Link(frame.gpa() + node * NODE_BYTES));
        }
        self.nr_frames += 1;
        Ok(())
    }

    /// Adds an area of so many pages, guard page included, where the lowest hole is that holds it. A node must have
    /// been reserved. `None` when there is no such hole.
    pub(super) fn insert(&mut self, frames: &impl Frames, nr_pages: u64) -> Option<Link> {
        let (start, above) = self.lowest_hole(frames, nr_pages)?;
        let node = self.vacant;
        assert!(node != Link::NONE, "a node for the area is reserved before");
        self.vacant = node.link(frames, Field::Left);
        node.set(frames, Field::Start, start);
        node.set(frames, Field::Pages, nr_pages);
        node.set(frames, Field::Gap, 0);
        node.set(frames, Field::Left, Link::NONE.0);
        node.set(frames, Field::Right, Link::NONE.0);
        pull(frames, node);
        match above {
            Some(above) => change_gap(frames, self.root, above, |gap| gap - nr_pages),
            None => self.top = node.end(frames),
        }
        let (lower, higher) = split(frames, self.root, start);
        let lower = merge(frames, lower, node);
        self.root = merge(frames, lower, higher);
        self.nr_areas += 1;
        Some(node)
    }

    /// Takes an area out; its node is vacant then.
    pub(super) fn remove(&mut self, frames: &impl Frames, node: Link) {
        let start = node.start(frames);
        let freed = node.get(frames, Field::Pages) + node.get(frames, Field::Gap);
        match self.first_from(frames, node.end(frames)) {
            Some(above) => change_gap(frames, self.root, above.start(frames), |gap| gap + freed),
            None => self.top = start - (node.get(frames, Field::Gap) << PAGE_SHIFT),
        }
        self.root = erase(frames, self.root, start);
        self.nr_areas -= 1;
        self.retire(frames, node);
    }

    /// The area that starts at `va`.
    pub(super) fn find(&self, frames: &impl Frames, va: u64) -> Option<Link> {
        self.first_from(frames, va)
            .filter(|node| node.start(frames) == va)
    }

    /// The lowest area that starts at or above `va`.
    pub(super) fn first_from(&self, frames: &impl Frames, va: u64) -> Option<Link> {
        let mut best = None;
        let mut node = self.root;
        while node != Link::NONE {
            if node.start(frames) >= va {
                best = Some(node);
                node = node.link(frames, Field::Left);
            } else {
                node = node.link(frames, Field::Right);
            }
        }
        best
    }

    /// The highest area that starts at or below `va`.
    pub(super) fn last_up_to(&self, frames: &impl Frames, va: u64) -> Option<Link> {
        let mut best = None;
        let mut node = self.root;
        while node != Link::NONE {
            if node.start(frames) <= va {
                best = Some(node);
                node = node.link(frames, Field::Right);
            } else {
                node = node.link(frames, Field::Left);
            }
        }
        best
    }

    /// Start of the lowest hole of so many pages, and start of the area above it, if there is one.
    fn lowest_hole(&self, frames: &impl Frames, nr_pages: u64) -> Option<(u64, Option<u64>)> {
        let mut node = self.root;
        if node.max_gap(frames) < nr_pages {
            let room = (self.window.1 - self.top) >> PAGE_SHIFT;
            return (room >= nr_pages).then_some((self.top, None));
        }
        loop {
            let left = node.link(frames, Field::Left);
            let gap = node.get(frames, Field::Gap);
            if left.max_gap(frames) >= nr_pages {
                node = left;
            } else if gap >= nr_pages {
                let start = node.start(frames);
                return Some((start - (gap << PAGE_SHIFT), Some(start)));
            } else {
                node = node.link(frames, Field::Right);
            }
        }
    }

    fn retire(&mut self, frames: &impl Frames, node: Link) {
        node.set(frames, Field::Left, self.vacant.0);
        self.vacant = node;
    }

    /// Checks order, shape, gaps and the count of the areas, all derived again.
    pub(super) fn validate(&self, frames: &impl Frames) -> Result<(), WrongArea> {
        let mut seen = Seen {
            end: self.window.0,
            count: 0,
        };
        check(frames, self.root, &mut seen)?;
        if seen.end != self.top || seen.count != self.nr_areas {
            return Err(wrong("the last area, or their number, is another", seen.end));
        }
        Ok(())
    }
}

/// What a check has passed.
struct Seen {
    end: u64,
    count: u32,
}

/// Checks a subtree whose areas follow what was seen. Returns its largest gap.
fn check(frames: &impl Frames, node: Link, seen: &mut Seen) -> Result<u64, WrongArea> {
    if node == Link::NONE {
        return Ok(0);
    }
    let start = node.start(frames);
    let children = [Field::Left, Field::Right].map(|side| node.link(frames, side));
    let is_higher = |child: Link| child != Link::NONE && rank(child.start(frames)) > rank(start);
    if children.into_iter().any(is_higher) {
        return Err(wrong("a child has a higher rank", start));
    }
    let left = check(frames, children[0], seen)?;
    let gap = start.checked_sub(seen.end).map(|bytes| bytes >> PAGE_SHIFT);
    if gap != Some(node.get(frames, Field::Gap)) {
        return Err(wrong("the gap below is wrong, or areas overlap", start));
    }
    seen.end = node.end(frames);
    seen.count += 1;
    let right = check(frames, children[1], seen)?;
    let max = left.max(right).max(node.get(frames, Field::Gap));
    if max != node.max_gap(frames) {
        return Err(wrong("the largest gap around is wrong", start));
    }
    Ok(max)
}

const fn wrong(what: &'static str, va: u64) -> WrongArea {
    WrongArea { what, va }
}

/// A node's place in the heap order: the start address, well mixed (Steele, Lea, Flood, "Fast splittable pseudorandom
/// number generators", 2014, the finaliser of SplitMix64).
fn rank(start: u64) -> u64 {
    let mixed = (start ^ (start >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Derives a node's largest gap from its children's.
fn pull(frames: &impl Frames, node: Link) {
    let sides = [Field::Left, Field::Right].map(|side| node.link(frames, side).max_gap(frames));
    let max = node.get(frames, Field::Gap).max(sides[0]).max(sides[1]);
    node.set(frames, Field::MaxGap, max);
}

/// The areas below `va`, and the others.
fn split(frames: &impl Frames, node: Link, va: u64) -> (Link, Link) {
    if node == Link::NONE {
        return (Link::NONE, Link::NONE);
    }
    if node.start(frames) < va {
        let (lower, higher) = split(frames, node.link(frames, Field::Right), va);
        node.set(frames, Field::Right, lower.0);
        pull(frames, node);
        (node, higher)
    } else {
        let (lower, higher) = split(frames, node.link(frames, Field::Left), va);
        node.set(frames, Field::Left, higher.0);
        pull(frames, node);
        (lower, node)
    }
}

/// One tree of two, all areas of the first being lower.
fn merge(frames: &impl Frames, lower: Link, higher: Link) -> Link {
    if lower == Link::NONE {
        return higher;
    }
    if higher == Link::NONE {
        return lower;
    }
    let root = if rank(lower.start(frames)) > rank(higher.start(frames)) {
        lower.set(
            frames,
            Field::Right,
            merge(frames, lower.link(frames, Field::Right), higher).0,
        );
        lower
    } else {
        higher.set(
            frames,
            Field::Left,
            merge(frames, lower, higher.link(frames, Field::Left)).0,
        );
        higher
    };
    pull(frames, root);
    root
}

/// The tree without the area at `start`.
fn erase(frames: &impl Frames, node: Link, start: u64) -> Link {
    let here = node.start(frames);
    let (left, right) = (node.link(frames, Field::Left), node.link(frames, Field::Right));
    if start == here {
        return merge(frames, left, right);
    }
    if start < here {
        node.set(frames, Field::Left, erase(frames, left, start).0);
    } else {
        node.set(frames, Field::Right, erase(frames, right, start).0);
    }
    pull(frames, node);
    node
}

/// Changes the gap below the area at `start`.
fn change_gap(frames: &impl Frames, node: Link, start: u64, change: impl FnOnce(u64) -> u64) {
    let here = node.start(frames);
    if start == here {
        node.set(frames, Field::Gap, change(node.get(frames, Field::Gap)));
    } else {
        let side = if start < here { Field::Left } else { Field::Right };
        change_gap(frames, node.link(frames, side), start, change);
    }
    pull(frames, node);
}
