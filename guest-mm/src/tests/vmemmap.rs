//! The descriptors' array: readable everywhere at all times, backed where it is to be, and no frame lost.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::kernel_frames::{TestSource, machine};
use crate::frames::Frames;
use crate::host::HostFrames;
use crate::kernel_map::{DESCRIPTOR_BYTES, FrameSource, KernelTables, Vmemmap};
use crate::pagetable::{Access, Entry, PageFault, translate};
use crate::pfn::{Order, PAGE_SIZE, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};

const BASE: u64 = 32 << 40;
/// Frames whose descriptors are 2 MiB.
const HUGE_SPAN: u32 = 128 * PAGEBLOCK_NR_PAGES;

struct Array {
    frames: HostFrames,
    source: TestSource,
    tables: KernelTables,
    vmemmap: Vmemmap,
}

fn array() -> Array {
    let (frames, source) = machine(4);
    let tables = KernelTables::new(&frames, &source).unwrap();
    let vmemmap = Vmemmap::new(tables, &frames, &source, BASE).unwrap();
    Array {
        frames,
        source,
        tables,
        vmemmap,
    }
}

fn pageblocks(first: u32, count: u32) -> PfnRange {
    PfnRange::new(Pfn::new(first * PAGEBLOCK_NR_PAGES), count * PAGEBLOCK_NR_PAGES).unwrap()
}

impl Array {
    /// The frame behind the descriptor of `pfn`, as the CPU finds it.
    fn behind(&self, pfn: u32, access: Access) -> Result<Pfn, PageFault> {
        let va = BASE + u64::from(pfn) * DESCRIPTOR_BYTES;
        let found = translate(&self.frames, self.tables.root(), va, access)?;
        Ok(Pfn::containing(found.gpa).unwrap())
    }

    fn unback(&self, range: PfnRange) {
        let unbacked = self.vmemmap.unback(&self.frames, range);
        assert_eq!(unbacked.range(), self.vmemmap.addresses(range));
        unbacked.release(&self.frames, &self.source);
    }
}

#[test]
fn four_frames_and_the_root_make_every_descriptor_there_is_readable_as_zeroes() {
    let array = array();
    assert_eq!(array.source.taken_pages(), 5);
    for pfn in [0, 1, 511, 512, 1 << 18, 1 << 31, u32::MAX - 1] {
        let zeroes = array.behind(pfn, Access::Read).unwrap();
        assert!((0..512).all(|word| array.frames.read(zeroes, word) == 0));
        assert_eq!(array.behind(pfn, Access::Write), Err(PageFault::Protection));
    }
}

#[test]
fn descriptors_of_256_mib_are_one_huge_page_when_there_is_one() {
    let array = array();
    let range = PfnRange::new(Pfn::new(HUGE_SPAN), HUGE_SPAN).unwrap();
    array.vmemmap.back(&array.frames, &array.source, range).unwrap();
    let (entry, size) = array
        .tables
        .lookup(&array.frames, array.vmemmap.addresses(range).start());
    assert!(entry.has(Entry::HUGE) && size == 2 << 20);
    array.unback(range);
    assert_eq!(array.behind(HUGE_SPAN, Access::Write), Err(PageFault::Protection));
}

#[test]
fn without_huge_pages_single_frames_do() {
    let array = array();
    while array.source.take(Order::PAGEBLOCK).is_some() {}
    let range = PfnRange::new(Pfn::new(HUGE_SPAN), HUGE_SPAN / 2).unwrap();
    let before = array.source.taken_pages();
    array.vmemmap.back(&array.frames, &array.source, range).unwrap();
    // 1 MiB of descriptors and two tables of their own.
    assert_eq!(array.source.taken_pages() - before, 256 + 2);
    array.unback(range);
    assert_eq!(array.source.taken_pages() - before, 2);
}

#[test]
fn whichever_frame_is_missing_what_was_taken_is_given_back() {
    // 2 MiB and 128 KiB of descriptors.
    let range = pageblocks(128, 136);
    let probe = array();
    let before = probe.source.requests.get();
    probe.vmemmap.back(&probe.frames, &probe.source, range).unwrap();
    let needed = probe.source.requests.get() - before;
    assert!(needed > 30, "{needed} requests");
    for index in 0..needed {
        let array = array();
        let first = array.source.requests.get();
        array.source.fails_at.set(first + index);
        let before = array.source.taken_pages();
        let failed = array.vmemmap.back(&array.frames, &array.source, range);
        failed.unwrap_err().release(&array.frames, &array.source);
        let tables = array.source.taken_pages() - before;
        assert!(tables <= 2, "request {index}: {tables} frames are gone");
        array.source.fails_at.set(u32::MAX);
        array.vmemmap.back(&array.frames, &array.source, range).unwrap();
        array.unback(range);
        assert!(array.source.taken_pages() - before <= 2, "request {index}");
    }
}

#[test]
#[should_panic(expected = "are there already")]
fn descriptors_cannot_be_backed_twice() {
    let array = array();
    let range = pageblocks(3, 1);
    array.vmemmap.back(&array.frames, &array.source, range).unwrap();
    let _ = array.vmemmap.back(&array.frames, &array.source, range);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Blocks of 16 MiB beside each other and in different page tables come and go in any order: each has frames of its
    /// own, filled with zeroes and writable, exactly while it is backed.
    #[test]
    fn blocks_have_descriptors_of_their_own_while_they_are_backed(
        toggles in prop::collection::vec((0_u32..24, any::<bool>()), 1..60),
    ) {
        let array = array();
        let mut backed = BTreeSet::new();
        for (block, with_huge) in toggles {
            // Every eighth is 256 MiB.
            // Apart from the frames that back it.
            let range = if block % 8 == 7 { pageblocks((block + 9) * 128, 128) } else { pageblocks(1024 + block * 8, 8) };
            if backed.remove(&block) {
                array.unback(range);
            } else {
                let hidden = (!with_huge).then(|| array.source.take(Order::PAGEBLOCK));
                if let Err(part) = array.vmemmap.back(&array.frames, &array.source, range) {
                    part.release(&array.frames, &array.source);
                } else {
                    backed.insert(block);
                }
                if let Some(pfn) = hidden.flatten() {
                    array.source.give(pfn, Order::PAGEBLOCK);
                }
            }
            let mut seen = BTreeSet::new();
            for block in 0..24 {
                let first = if block % 8 == 7 { (block + 9) * 128 } else { 1024 + block * 8 };
                let nr = if block % 8 == 7 { 128 } else { 8 };
                for pfn in (first * 512..(first + nr) * 512).step_by(128) {
                    let found = array.behind(pfn, Access::Write);
                    prop_assert_eq!(found.is_ok(), backed.contains(&block));
                    if let Ok(pfn) = found {
                        prop_assert!(seen.insert(pfn) && array.source.is_taken(pfn));
                        prop_assert!((0..512).all(|word| array.frames.read(pfn, word) == 0));
                    }
                }
            }
            let bytes = u64::from(array.source.taken_pages()) * PAGE_SIZE;
            prop_assert!(bytes <= (seen.len() as u64 + 5 + 12) * PAGE_SIZE);
        }
    }
}
