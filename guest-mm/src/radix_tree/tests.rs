//! Against a map of the standard library.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::thread_local;
use std::vec::Vec;

use super::{InsertError, RadixTree, Tag};

const TAGS: [Tag; 3] = [Tag::Dirty, Tag::Writeback, Tag::ToWrite];

thread_local! {
    /// Nodes that there is memory for, if it is bounded.
    static NODES_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Whether there is no memory for a node.
pub(super) fn refuses() -> bool {
    let left = NODES_LEFT.get();
    NODES_LEFT.set(left.map(|left| left.saturating_sub(1)));
    left == Some(0)
}

/// A generator of numbers that repeat with the seed (xorshift64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        u32::try_from(self.0 % u64::from(limit)).unwrap()
    }

    /// Near each other, near powers of 64, and anywhere.
    fn index(&mut self) -> u32 {
        match self.below(4) {
            0 => self.below(200),
            1 => 64_u32.pow(self.below(5) + 1) - 2 + self.below(4),
            2 => u32::MAX - self.below(3),
            _ => self.below(u32::MAX),
        }
    }
}

type Model = BTreeMap<u32, (u32, [bool; 3])>;

fn check(tree: &RadixTree<u32>, model: &Model) {
    assert_eq!(tree.len(), model.len());
    assert_eq!(tree.is_empty(), model.is_empty());
    let all: Vec<(u32, u32)> = tree.iter().collect();
    let expected: Vec<(u32, u32)> = model.iter().map(|(index, (value, _))| (*index, *value)).collect();
    assert_eq!(all, expected);
    for tag in TAGS {
        let tagged = |tags: &[bool; 3]| tags[tag as usize];
        assert_eq!(tree.any_tagged(tag), model.values().any(|(_, tags)| tagged(tags)));
    }
}

#[test]
fn random_changes_leave_it_as_a_map_would_be() {
    for seed in 1..=40 {
        let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed));
        let (mut tree, mut model) = (RadixTree::new(), Model::new());
        for step in 0..400 {
            let keys: Vec<u32> = model.keys().copied().collect();
            let known = (!keys.is_empty() && numbers.below(3) > 0)
                .then(|| keys[numbers.below(u32::try_from(keys.len()).unwrap()) as usize]);
            let index = known.unwrap_or_else(|| numbers.index());
            let tag = TAGS[numbers.below(3) as usize];
            change(&mut tree, &mut model, (numbers.below(7), index, step, tag));
            let (from, tag) = (numbers.index(), TAGS[numbers.below(3) as usize]);
            let first = model
                .range(from..)
                .next()
                .map(|(index, (value, _))| (*index, *value));
            assert_eq!(tree.first_from(from), first);
            let tagged = model.range(from..).find(|(_, (_, tags))| tags[tag as usize]);
            let tagged = tagged.map(|(index, (value, _))| (*index, *value));
            assert_eq!(
                tree.first_tagged_from(from, tag),
                tagged,
                "seed {seed}, step {step}"
            );
            if step % 20 == 0 {
                check(&tree, &model);
            }
        }
        for index in model.keys().copied().collect::<Vec<_>>() {
            assert_eq!(tree.remove(index), model.remove(&index).map(|(value, _)| value));
        }
        check(&tree, &model);
        assert!(tree.root.is_none(), "nodes are left of an empty tree");
    }
}

fn change(tree: &mut RadixTree<u32>, model: &mut Model, (what, index, value, tag): (u32, u32, u32, Tag)) {
    let there = model.get(&index).copied();
    match what {
        0 | 1 => match there {
            Some((value_there, _)) => {
                assert_eq!(tree.insert(index, value), Err(InsertError::Occupied(value_there)));
            }
            None => {
                assert_eq!(tree.insert(index, value), Ok(()));
                model.insert(index, (value, [false; 3]));
            }
        },
        2 => {
            assert_eq!(tree.replace(index, value), there.map(|(value, _)| value));
            model.entry(index).and_modify(|known| known.0 = value);
        }
        3 => {
            assert_eq!(tree.remove(index), there.map(|(value, _)| value));
            model.remove(&index);
        }
        4 | 5 => {
            assert_eq!(tree.set_tag(index, tag), there.is_some());
            model
                .entry(index)
                .and_modify(|known| known.1[tag as usize] = true);
        }
        _ => {
            let had = there.is_some_and(|(_, tags)| tags[tag as usize]);
            assert_eq!(tree.has_tag(index, tag), had);
            assert_eq!(tree.clear_tag(index, tag), had);
            model
                .entry(index)
                .and_modify(|known| known.1[tag as usize] = false);
        }
    }
    assert_eq!(tree.get(index), model.get(&index).map(|(value, _)| *value));
}

#[test]
fn the_tree_is_as_high_as_its_largest_index_needs() {
    let mut tree = RadixTree::new();
    let height = |tree: &RadixTree<u32>| tree.root.as_ref().map(super::node::Node::height);
    for (index, levels) in [(0, 1), (63, 1), (64, 2), (4095, 2), (4096, 3), (u32::MAX, 6)] {
        tree.insert(index, index).unwrap();
        assert_eq!(height(&tree), Some(levels), "with {index}");
    }
    for (index, levels) in [(u32::MAX, 3), (4096, 2), (4095, 2), (64, 1)] {
        tree.remove(index);
        assert_eq!(height(&tree), Some(levels), "without {index}");
    }
}

#[test]
fn a_value_for_which_there_is_no_memory_leaves_everything_as_it_was() {
    for nodes in 0..9 {
        let mut tree = RadixTree::new();
        for index in [3, 70] {
            tree.insert(index, index).unwrap();
        }
        tree.set_tag(70, Tag::Dirty);
        NODES_LEFT.set(Some(nodes));
        let inserted = tree.insert(u32::MAX, 1);
        NODES_LEFT.set(None);
        // Four nodes above those of 70, and five to the value.
        assert_eq!(inserted, Err(InsertError::NoMemory), "with {nodes} nodes");
        let height = tree.root.as_ref().map(super::node::Node::height);
        assert_eq!(height, Some(2), "nodes are left over");
        assert_eq!(tree.iter().collect::<Vec<_>>(), [(3, 3), (70, 70)]);
        assert_eq!(tree.first_tagged_from(0, Tag::Dirty), Some((70, 70)));
        tree.insert(u32::MAX, 1).unwrap();
    }
}
