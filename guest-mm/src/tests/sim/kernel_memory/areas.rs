//! Areas of vmalloc, whose pages move behind their addresses; two CPUs, which forget a translation only when they are told to, read and
//! write them.

use core::cell::{Cell, RefCell};
use std::vec::Vec;

use super::Source;
use crate::kernel_map::{KernelRange, KernelTables};
use crate::migrate::Refusal;
use crate::page::KernelUse;
use crate::tests::kernel_cpus::Cpus;
use crate::tests::machine::TestMm;
use crate::tests::sim::{Sim, count};
use crate::vmalloc::{KernelMoved, Tag, Vmalloc, VmallocError};
use crate::{Frames, PAGE_SIZE, Pfn};

const BASE: u64 = 64 << 40;
/// Pages of the window, and of all areas together at most.
const WINDOW: u64 = 512;
const MOST: u64 = 60;
/// The root of the tables, and those below it that lead to the window.
const TABLES: u32 = 4;
const NR_CPUS: usize = 2;
/// The word of each page that is used.
const WORD: usize = 5;

/// See the module.
pub(super) struct Areas<'m> {
    mm: &'m TestMm<'m>,
    vmalloc: Vmalloc,
    cpus: Cpus,
    /// Each with what its first page has in it; the others have the numbers after that.
    made: RefCell<Vec<(KernelRange, u64)>>,
    stamp: Cell<u64>,
}

impl<'m> Areas<'m> {
    pub(super) fn new(mm: &'m TestMm<'m>, source: &Source<'_>) -> Self {
        let tables = KernelTables::new(&mm.frames, source).unwrap();
        let window = KernelRange::new(BASE, WINDOW * PAGE_SIZE).unwrap();
        Self {
            mm,
            vmalloc: Vmalloc::new(tables, window),
            cpus: Cpus::new(tables, NR_CPUS),
            made: RefCell::default(),
            stamp: Cell::new(0),
        }
    }

    /// One call.
    pub(super) fn turn(&self, sim: &Sim<'_>, source: &Source<'_>) {
        let cpu = usize::try_from(sim.below(NR_CPUS as u64)).unwrap();
        self.cpus.current.set(cpu);
        match sim.below(8) {
            0..3 if self.make(sim, source) => {}
            0..4 => self.free(sim),
            4 => {
                self.vmalloc.purge(&self.mm.frames, source, &self.cpus);
            }
            5 => self.write(sim),
            _ => self.check(sim),
        }
    }

    fn frame(&self, va: u64) -> Pfn {
        self.cpus.reach(&self.mm.frames, va).unwrap()
    }

    /// Puts new numbers into all pages of a range; the first.
    fn fill(&self, range: KernelRange) -> u64 {
        let first = self.stamp.get() + 1;
        for (stamp, va) in (first..).zip(range.pages()) {
            self.mm.frames.write(self.frame(va), WORD, stamp);
            self.stamp.set(stamp);
        }
        first
    }

    fn some_place(&self, sim: &Sim<'_>) -> Option<usize> {
        let nr = self.made.borrow().len() as u64;
        (nr > 0).then(|| usize::try_from(sim.below(nr)).unwrap())
    }

    pub(super) fn fill_up(&self, sim: &Sim<'_>, source: &Source<'_>) {
        for _ in 0..MOST {
            self.make(sim, source);
        }
    }

    /// False if there are enough, or there is no memory.
    fn make(&self, sim: &Sim<'_>, source: &Source<'_>) -> bool {
        let nr_pages = 1 + sim.below(20);
        if self.vmalloc.stats().nr_pages + nr_pages > MOST {
            return false;
        }
        let bytes = nr_pages * PAGE_SIZE;
        let make = || {
            self.vmalloc
                .vmalloc(&self.mm.frames, source, bytes, Tag::new("sim"))
        };
        match sim.with_failures(make) {
            Ok(range) => {
                assert_eq!(range.bytes(), bytes);
                let first = self.fill(range);
                self.made.borrow_mut().push((range, first));
                return true;
            }
            Err(VmallocError::NoRoom { .. }) => {
                assert!(
                    self.vmalloc.stats().nr_lazy_pages > 0,
                    "there is room for all areas"
                );
                self.vmalloc.purge(&self.mm.frames, source, &self.cpus);
            }
            Err(VmallocError::NoFrames) => count(&sim.seen.no_memory, 1),
            Err(error @ VmallocError::Empty) => panic!("{error}"),
        }
        false
    }

    fn free(&self, sim: &Sim<'_>) {
        if let Some(place) = self.some_place(sim) {
            let area = self.made.borrow_mut().swap_remove(place);
            self.check_area(sim, area);
            self.vmalloc.vfree(&self.mm.frames, area.0.start()).unwrap();
        }
    }

    fn write(&self, sim: &Sim<'_>) {
        if let Some(place) = self.some_place(sim) {
            let (range, first) = &mut self.made.borrow_mut()[place];
            *first = self.fill(*range);
        }
    }

    fn check(&self, sim: &Sim<'_>) {
        if let Some(place) = self.some_place(sim) {
            let area = self.made.borrow()[place];
            self.check_area(sim, area);
        }
    }

    fn check_area(&self, sim: &Sim<'_>, (range, first): (KernelRange, u64)) {
        for (stamp, va) in (first..).zip(range.pages()) {
            let pfn = self.frame(va);
            let found = self.mm.frames.read(pfn, WORD);
            assert_eq!(found, stamp, "{va:#x} of an area, in {pfn}");
            // Whoever empties its block asks whom it says.
            let page = u32::try_from((va - BASE) / PAGE_SIZE).unwrap();
            let used_for = self.mm.phys.page(pfn).and_then(crate::Page::kernel_use);
            assert_eq!(used_for, Some(KernelUse::Vmalloc { page }), "{pfn}");
            count(&sim.seen.kernel_words, 1);
        }
    }

    /// Those pages leave that migration has refused.
    pub(super) fn move_off(
        &self,
        mm: &TestMm<'_>,
        source: &Source<'_>,
        refused: &mut Vec<Refusal>,
    ) -> KernelMoved {
        let frames = (&mm.frames, &mm.frames);
        self.vmalloc.move_off(frames, source, &self.cpus, refused)
    }

    /// Whether a frame was that of an area freed before, which has just been given back.
    pub(super) fn frame_was_given_back(&self, mm: &TestMm<'_>, pfn: Pfn) -> bool {
        let used_for = mm.phys.page(pfn).and_then(crate::Page::kernel_use);
        !matches!(used_for, Some(KernelUse::Vmalloc { .. }))
    }

    pub(super) fn validate(&self) {
        self.vmalloc.validate(&self.mm.frames).unwrap();
    }

    /// All go.
    pub(super) fn free_all(&self, sim: &Sim<'_>, source: &Source<'_>) {
        for area in self.made.take() {
            self.check_area(sim, area);
            self.vmalloc.vfree(&self.mm.frames, area.0.start()).unwrap();
        }
        self.vmalloc.purge(&self.mm.frames, source, &self.cpus);
    }

    /// Without areas, all frames that are left are tables, or nodes of the tree.
    pub(super) fn check_frames(&self, source: &Source<'_>) {
        let tables = source.taken.get() - self.vmalloc.stats().nr_node_frames;
        assert!(tables <= TABLES, "{tables} frames of areas are lost");
    }
}
