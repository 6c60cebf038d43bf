//! Blocks that carry their own descriptors: counted, given to nobody, the first to come and the last to go.

use std::vec::Vec;

use super::kernel_frames::{TestSource, machine as frames_of};
use super::phys_model::{descriptors, one_cpu, plug_with, small_memory};
use crate::frames::Frames;
use crate::host::HostFrames;
use crate::kernel_map::{DESCRIPTOR_BYTES, KernelTables, OutOfFrames, Vmemmap};
use crate::memory_failure::Contents;
use crate::page::Head;
use crate::pagetable::{Access, PageFault, translate};
use crate::pfn::{Order, PAGE_SIZE, PAGEBLOCK_NR_PAGES, Pfn, PfnRange};
use crate::phys::AddError;
use crate::tests::machine::{anonymous, empty_block, load, machine, plug_block, remove, store};
use crate::{BlockIndex, FrameState, Gfp, HugeAdvice, Memmap, NodeId, ZoneKind};

const BLOCK: BlockIndex = BlockIndex(1);

#[test]
fn a_128th_of_a_block_holds_its_descriptors_and_nobody_gets_it() {
    for block_nr_pages in [512, 2048, 65536, 262_144] {
        let (pages, cpu) = (descriptors(2 * block_nr_pages), one_cpu());
        let memory = small_memory(&pages, block_nr_pages, 2);
        plug_with(&memory, BLOCK, ZoneKind::Movable, Memmap::OnBlock);
        memory.validate().unwrap();
        let range = memory.hotplug_region().block_range(BLOCK).unwrap();
        let own = Memmap::OnBlock.frames_of(range);
        assert_eq!(
            u64::from(own.nr_pages()) * PAGE_SIZE,
            u64::from(block_nr_pages) * DESCRIPTOR_BYTES
        );
        let counters = memory.zone(NodeId::ZERO, ZoneKind::Movable).counters();
        assert_eq!(counters.present_pages, u64::from(block_nr_pages));
        assert_eq!(counters.managed_pages, u64::from(block_nr_pages - own.nr_pages()));
        assert_eq!(counters.free_pages, counters.managed_pages);
        let usage = memory.block_usage(BLOCK).unwrap();
        assert_eq!(
            (usage.memmap_pages, usage.used_pages, memory.memmap(BLOCK)),
            (own.nr_pages(), 0, Some(Memmap::OnBlock))
        );
        assert_eq!(memory.stats().nr_memmap_pages, u64::from(own.nr_pages()));

        let mut taken = Vec::new();
        while let Ok(pfn) = memory.alloc_pages(&cpu, Gfp::USER, Order::ZERO) {
            assert!(!own.contains(pfn), "{pfn} holds descriptors");
            taken.push(pfn);
        }
        let here = taken.iter().filter(|pfn| range.contains(**pfn)).count();
        let kept = memory.zone(NodeId::ZERO, ZoneKind::Movable).counters();
        assert_eq!(here as u64 + kept.free_pages, kept.managed_pages);
        assert_eq!(memory.frame_state(own.start()), FrameState::Reserved);
        memory.free_bulk(&cpu, &taken).unwrap();

        let token = memory.isolate(BLOCK).unwrap();
        memory.validate().unwrap();
        memory.offline(token).unwrap();
        // Whatever is put there next finds what it must: blank descriptors.
        let blank = |pfn: Pfn| pages[pfn.number() as usize].head() == Head::BLANK;
        assert!(range.iter().all(blank));
        assert_eq!((memory.stats().nr_memmap_pages, memory.memmap(BLOCK)), (0, None));
        memory.online(BLOCK, ZoneKind::Movable).unwrap();
        assert_eq!(memory.memmap(BLOCK), Some(Memmap::BootMemory));
        memory.validate().unwrap();
    }
}

#[test]
fn descriptors_are_not_put_on_a_frame_that_has_failed() {
    machine!(mm, cpu, 512, 2);
    let range = mm.phys.hotplug_region().block_range(BLOCK).unwrap();
    let failed = range.start() + 3;
    assert_eq!(mm.soft_offline(&cpu, failed), Ok(Contents::Nothing));
    let (token, _) = empty_block(&mm, &cpu, BLOCK.0);
    mm.phys.offline(token).unwrap();
    let refused = mm.phys.online_with(BLOCK, ZoneKind::Movable, Memmap::OnBlock);
    assert_eq!(refused, Err(AddError::Poisoned(failed)));
    mm.validate().unwrap();
    mm.phys.online(BLOCK, ZoneKind::Movable).unwrap();
    assert_eq!(mm.phys.frame_state(failed), FrameState::Poisoned);
    mm.validate().unwrap();
}

#[test]
fn what_is_on_such_a_block_moves_and_the_block_leaves() {
    machine!(mm, cpu, 512, 2);
    let (token, _) = empty_block(&mm, &cpu, 1);
    remove(&mut mm, token);
    let (token, _) = empty_block(&mm, &cpu, 0);
    remove(&mut mm, token);
    let range = mm.phys.hotplug_region().block_range(BLOCK).unwrap();
    mm.frames.plug(range);
    plug_with(mm.phys, BLOCK, ZoneKind::Movable, Memmap::OnBlock);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm
        .mmap(id, &anonymous(400 * PAGE_SIZE, HugeAdvice::NoHuge))
        .unwrap();
    for page in 0..400 {
        store(&mm, &cpu, id, va + page * PAGE_SIZE, page + 1).unwrap();
    }
    plug_block(&mut mm, 0);
    let (token, report) = empty_block(&mm, &cpu, 1);
    assert!(report.moved_small > 0 && report.refused.is_empty(), "{report:?}");
    remove(&mut mm, token);
    for page in 0..400 {
        assert_eq!(load(&mm, &cpu, id, va + page * PAGE_SIZE), Ok(page + 1));
    }
    mm.validate().unwrap();
}

const BASE: u64 = 32 << 40;

/// The array of descriptors, and a block that is plugged.
struct Array {
    frames: HostFrames,
    source: TestSource,
    tables: KernelTables,
    vmemmap: Vmemmap,
    block: PfnRange,
}

fn array(first_pageblock: u32, nr_pageblocks: u32) -> Array {
    let (mut frames, source) = frames_of(2);
    let pages = |pageblocks: u32| pageblocks * PAGEBLOCK_NR_PAGES;
    let block = PfnRange::new(Pfn::new(pages(first_pageblock)), pages(nr_pageblocks)).unwrap();
    frames.plug(block);
    for pfn in Memmap::OnBlock.frames_of(block).iter() {
        // What was there before must not matter.
        frames.write(pfn, 7, u64::MAX);
    }
    let tables = KernelTables::new(&frames, &source).unwrap();
    let vmemmap = Vmemmap::new(tables, &frames, &source, BASE).unwrap();
    Array {
        frames,
        source,
        tables,
        vmemmap,
        block,
    }
}

impl Array {
    /// The frame behind the descriptor of a frame of the block, as the CPU finds it.
    fn behind(&self, offset: u32, access: Access) -> Result<Pfn, PageFault> {
        let va = BASE + u64::from(self.block.start().number() + offset) * DESCRIPTOR_BYTES;
        let found = translate(&self.frames, self.tables.root(), va, access)?;
        Ok(Pfn::containing(found.gpa).unwrap())
    }
}

#[test]
fn the_array_shows_the_blocks_own_frames_while_it_is_in_use_and_zeroes_once_it_is_to_go() {
    // A block of 2 MiB, one whose descriptors are 2 MiB and mapped as one, and one in between.
    for (first, count, tables) in [(1024, 1, 2), (1024, 128, 1), (1032, 8, 2)] {
        let mut array = array(first, count);
        let before = array.source.taken_pages();
        array
            .vmemmap
            .prepare(&array.frames, &array.source, array.block)
            .unwrap();
        assert_eq!(array.source.taken_pages() - before, tables, "tables");
        assert!(!array.vmemmap.is_on_block(&array.frames, array.block));
        let changed = array.vmemmap.back_on_block(&array.frames, array.block).unwrap();
        assert_eq!(changed, array.vmemmap.addresses(array.block));
        assert!(array.vmemmap.is_on_block(&array.frames, array.block));
        assert_eq!(array.source.taken_pages() - before, tables, "and nothing else");
        let own = Memmap::OnBlock.frames_of(array.block);
        for (index, pfn) in (0..).zip(own.iter()) {
            assert_eq!(array.behind(index * 128, Access::Write), Ok(pfn));
            assert!((0..512).all(|word| array.frames.read(pfn, word) == 0));
        }

        let unbacked = array.vmemmap.unback(&array.frames, array.block);
        unbacked.release(&array.frames, &array.source);
        assert!(!array.vmemmap.is_on_block(&array.frames, array.block));
        assert_eq!(array.source.taken_pages() - before, tables);
        // From now on an access to one of these frames panics.
        array.frames.unplug(array.block);
        for offset in (0..array.block.nr_pages()).step_by(128) {
            let zeroes = array.behind(offset, Access::Read).unwrap();
            assert!((0..512).all(|word| array.frames.read(zeroes, word) == 0));
            assert_eq!(array.behind(offset, Access::Write), Err(PageFault::Protection));
        }
    }
}

#[test]
fn without_tables_there_are_no_descriptors_and_what_came_before_goes_again() {
    let array = array(1024, 8);
    let nothing = array.vmemmap.back_on_block(&array.frames, array.block);
    assert_eq!(nothing, Err(OutOfFrames));
    array.source.fails_at.set(array.source.requests.get());
    let refused = array.vmemmap.prepare(&array.frames, &array.source, array.block);
    assert_eq!(refused, Err(OutOfFrames));
    let unbacked = array.vmemmap.unback(&array.frames, array.block);
    unbacked.release(&array.frames, &array.source);
    assert_eq!(array.behind(0, Access::Write), Err(PageFault::Protection));
}
