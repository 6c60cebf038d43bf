//! Frames for kernel mappings in tests: each is either here or taken, and taking can be made to fail.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::vec::Vec;

use crate::host::HostFrames;
use crate::kernel_map::FrameSource;
use crate::pfn::{Order, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};

/// Pageblocks of frames, the first whole one at frame 0.
pub(crate) struct TestSource {
    /// Free frames by number; whole pageblocks are only given while `huge` allows it.
    free: RefCell<Vec<u32>>,
    free_blocks: RefCell<Vec<u32>>,
    /// What is out, with its order.
    taken: RefCell<BTreeMap<u32, Order>>,
    /// Requests served so far.
    pub(crate) requests: Cell<u32>,
    /// The request, counted from 0, that finds nothing, and all after it.
    pub(crate) fails_at: Cell<u32>,
}

/// A machine with pageblocks `0 .. 1 + nr_blocks`, and a source with the first one as single frames and the others
/// whole.
pub(crate) fn machine(nr_blocks: u32) -> (HostFrames, TestSource) {
    let mut frames = HostFrames::new();
    let all = PfnRange::new(Pfn::new(0), (1 + nr_blocks) * PAGEBLOCK_NR_PAGES).unwrap();
    frames.plug(all);
    // What was in a frame before must not matter.
    for pfn in 0..PAGEBLOCK_NR_PAGES {
        crate::Frames::write(&frames, Pfn::new(pfn), 0, u64::MAX);
    }
    let source = TestSource {
        free: RefCell::new((0..PAGEBLOCK_NR_PAGES).rev().collect()),
        free_blocks: RefCell::new(
            (1..=nr_blocks)
                .rev()
                .map(|block| block * PAGEBLOCK_NR_PAGES)
                .collect(),
        ),
        taken: RefCell::default(),
        requests: Cell::new(0),
        fails_at: Cell::new(u32::MAX),
    };
    (frames, source)
}

impl TestSource {
    /// Frames that are out.
    pub(crate) fn taken_pages(&self) -> u32 {
        self.taken.borrow().values().map(|order| order.nr_pages()).sum()
    }

    /// Whether the frame is part of a chunk that is out.
    pub(crate) fn is_taken(&self, pfn: Pfn) -> bool {
        let taken = self.taken.borrow();
        let below = taken.range(..=pfn.number()).next_back();
        below.is_some_and(|(&head, order)| pfn.number() - head < order.nr_pages())
    }
}

impl FrameSource for TestSource {
    fn take(&self, order: Order) -> Option<Pfn> {
        let request = self.requests.replace(self.requests.get() + 1);
        if request >= self.fails_at.get() {
            return None;
        }
        let list = if order == Order::ZERO {
            &self.free
        } else {
            &self.free_blocks
        };
        assert!(order == Order::ZERO || order == Order::PAGEBLOCK, "{order:?}");
        let pfn = list.borrow_mut().pop()?;
        self.taken.borrow_mut().insert(pfn, order);
        Some(Pfn::new(pfn))
    }

    fn give(&self, pfn: Pfn, order: Order) {
        let taken = self.taken.borrow_mut().remove(&pfn.number());
        assert_eq!(taken, Some(order), "{pfn} was not taken as such");
        let list = if order == Order::ZERO {
            &self.free
        } else {
            &self.free_blocks
        };
        list.borrow_mut().push(pfn.number());
    }
}
