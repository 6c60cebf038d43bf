//! Address spaces, demand paging and migration against a plain model: what each program wrote where.
//!
//! Programs reach their memory through a CPU with a translation cache that forgets only what it is told to, over
//! frames that panic when they are touched after they were unplugged.

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use crate::blocks::{BlockIndex, BlockState};
use crate::host::{HostFrames, HostMmu};
use crate::migrate::{BatchEnd, MigrateReport, RefusalReason};
use crate::mm::{FaultError, FaultOutcome, MmapError};
use crate::pagetable::PageFault;
use crate::tests::phys_model::{order, plug, range, small_memory};
use crate::{
    Access, Backing, Descriptors, Entry, FixedMapping, FrameState, Gfp, HugeAdvice, IsolatedBlock,
    MapRequest, Mm, Order, Pfn, Place, Prot, SpaceId, VaRange, ZoneKind,
};

type TestMm = Mm<HostFrames, HostMmu>;

const RW: Prot = Prot::READ.with(Prot::WRITE);
const MIB: u64 = 1 << 20;

/// Memory with boot memory of 8 MiB and blocks plugged, frames that exist exactly where memory is plugged.
fn machine(block_nr_pages: u32, nr_blocks: u32) -> TestMm {
    let mut frames = HostFrames::new();
    frames.plug(range(0, 2048));
    let mut mm = Mm::new(small_memory(block_nr_pages, nr_blocks), frames, HostMmu::new());
    for block in 0..nr_blocks {
        plug_block(&mut mm, block);
    }
    mm
}

fn plug_block(mm: &mut TestMm, block: u32) {
    let range = mm.phys.hotplug_region().block_range(BlockIndex(block)).unwrap();
    mm.frames.plug(range);
    plug(&mut mm.phys, BlockIndex(block), ZoneKind::Movable);
}

fn anonymous(len: u64, advice: HugeAdvice) -> MapRequest {
    MapRequest {
        len,
        place: Place::Anywhere,
        prot: RW,
        backing: Backing::Anonymous(advice),
    }
}

/// A store by a program, with the faults it takes.
fn store(mm: &mut TestMm, id: SpaceId, va: u64, value: u64) -> Result<(), FaultError> {
    while mm.cpu_store(id, va, value).is_err() {
        let outcome = mm.fault(id, va, Access::Write)?;
        assert_ne!(outcome, FaultOutcome::Migrating);
    }
    Ok(())
}

fn load(mm: &mut TestMm, id: SpaceId, va: u64) -> Result<u64, FaultError> {
    loop {
        if let Ok(value) = mm.cpu_load(id, va) {
            return Ok(value);
        }
        let outcome = mm.fault(id, va, Access::Read)?;
        assert_ne!(outcome, FaultOutcome::Migrating);
    }
}

/// Isolates a block and moves everything off it.
fn empty_block(mm: &mut TestMm, block: u32) -> (IsolatedBlock, MigrateReport) {
    let mut token = mm.phys.isolate(BlockIndex(block)).unwrap();
    let report = mm.migrate_batch(&mut token, u32::MAX);
    (token, report)
}

/// Hot remove to the end: the frames are gone afterwards.
fn remove(mm: &mut TestMm, token: IsolatedBlock) {
    let block = token.block();
    mm.phys.offline(token).unwrap();
    mm.phys.unplugged(block).unwrap();
    let range = mm.phys.hotplug_region().block_range(block).unwrap();
    mm.frames.unplug(range);
}

#[test]
fn a_touch_of_a_large_area_maps_a_huge_page_of_zeroes() {
    let mut mm = machine(1024, 2);
    let id = mm.create_space(&[]).unwrap();
    let va = mm.mmap(id, &anonymous(4 * MIB, HugeAdvice::Huge)).unwrap();
    assert_eq!(
        mm.fault(id, va + 5000, Access::Write),
        Ok(FaultOutcome::MappedHuge)
    );
    assert_eq!(load(&mut mm, id, va + 2 * MIB - 8), Ok(0));
    assert_eq!(mm.space(id).unwrap().rss_pages(), 512);
    assert_eq!(mm.phys.stats().pgfault, 1);
    mm.validate().unwrap();
}

#[test]
fn a_touch_maps_the_neighbourhood_within_the_area() {
    let mut mm = machine(1024, 2);
    let id = mm.create_space(&[]).unwrap();
    let va = mm.mmap(id, &anonymous(40 * 4096, HugeAdvice::NoHuge)).unwrap();
    assert_eq!(
        mm.fault(id, va + 4096, Access::Read),
        Ok(FaultOutcome::Mapped { nr_pages: 16 })
    );
    assert_eq!(
        mm.fault(id, va + 4096, Access::Read),
        Ok(FaultOutcome::AlreadyMapped)
    );
    assert_eq!(
        mm.fault(id, va + 39 * 4096, Access::Read),
        Ok(FaultOutcome::Mapped { nr_pages: 8 })
    );
    mm.set_fault_around(Order::ZERO);
    assert_eq!(
        mm.fault(id, va + 20 * 4096, Access::Read),
        Ok(FaultOutcome::Mapped { nr_pages: 1 })
    );
    assert_eq!(mm.space(id).unwrap().rss_pages(), 25);
    mm.validate().unwrap();
}

#[test]
fn accesses_without_a_right_are_refused_with_the_reason() {
    let mut mm = machine(512, 1);
    let id = mm.create_space(&[]).unwrap();
    let request = MapRequest {
        prot: Prot::READ,
        ..anonymous(4096, HugeAdvice::NoHuge)
    };
    let va = mm.mmap(id, &request).unwrap();
    let refused = Err(FaultError::Protection {
        va,
        access: Access::Write,
    });
    assert_eq!(mm.fault(id, va, Access::Write), refused);
    assert_eq!(
        mm.fault(id, va + 4096, Access::Read),
        Err(FaultError::NoArea { va: va + 4096 })
    );
    load(&mut mm, id, va).unwrap();
    assert_eq!(mm.cpu_store(id, va, 1), Err(PageFault::Protection));
    mm.mprotect(id, va, 4096, RW).unwrap();
    store(&mut mm, id, va, 1).unwrap();
    mm.mprotect(id, va, 4096, Prot::NONE).unwrap();
    assert_eq!(
        mm.cpu_load(id, va),
        Err(PageFault::Protection),
        "the cached translation is gone too"
    );
    mm.mprotect(id, va, 4096, RW).unwrap();
    assert_eq!(load(&mut mm, id, va), Ok(1));
    mm.validate().unwrap();
}

#[test]
fn the_kernel_loads_segments_and_copies_with_the_programs_rights() {
    let mut mm = machine(512, 1);
    let id = mm.create_space(&[]).unwrap();
    let text = MapRequest {
        len: 8192,
        place: Place::Fixed(0x40_0000),
        prot: Prot::READ.with(Prot::EXEC),
        backing: Backing::Anonymous(HugeAdvice::Huge),
    };
    mm.mmap(id, &text).unwrap();
    let bytes: Vec<u8> = (0..=255).cycle().take(5000).collect();
    mm.load(id, 0x40_0123, &bytes).unwrap();
    let mut back = vec![0; 5000];
    mm.read_user(id, 0x40_0123, &mut back).unwrap();
    assert_eq!(back, bytes);
    assert!(mm.write_user(id, 0x40_0000, &bytes).is_err());
    assert!(mm.read_user(id, 0x40_1ff0, &mut back).is_err());
    assert!(mm.read_user(id, u64::MAX - 3, &mut [0; 8]).is_err());
    mm.populate(id, VaRange::new(0x40_0000, 8192).unwrap()).unwrap();
    mm.validate().unwrap();
}

#[test]
fn fixed_mappings_are_there_and_belong_to_nobody() {
    let mut mm = machine(512, 1);
    let free = mm.phys.memory_stats().free_pages;
    let nucleus = Entry::new(Pfn::new(0), Entry::PRESENT | Entry::HUGE);
    let shared = mm.phys.alloc_pages(Gfp::Kernel, Order::ZERO).unwrap();
    let fixed = [
        FixedMapping::Leaf {
            va: 0x20_0000,
            entry: nucleus,
        },
        FixedMapping::Root {
            index: 200,
            entry: Entry::new(shared, Entry::PRESENT | Entry::WRITABLE),
        },
    ];
    let id = mm.create_space(&fixed).unwrap();
    assert_eq!(
        mm.cpu_load(id, 0x20_0000),
        Err(PageFault::Protection),
        "supervisor only"
    );
    let over = MapRequest {
        place: Place::Fixed(0x3f_f000),
        ..anonymous(8192, HugeAdvice::NoHuge)
    };
    assert!(matches!(mm.mmap(id, &over), Err(MmapError::Occupied(_))));
    let beside = MapRequest {
        place: Place::Fixed(0x40_0000),
        ..anonymous(8192, HugeAdvice::NoHuge)
    };
    let va = mm.mmap(id, &beside).unwrap();
    store(&mut mm, id, va, 3).unwrap();
    mm.validate().unwrap();
    mm.munmap(id, va, 8192).unwrap();
    mm.validate().unwrap();
    mm.destroy_space(id).unwrap();
    mm.validate().unwrap();
    mm.phys.free_pages(shared, Order::ZERO).unwrap();
    assert_eq!(mm.phys.memory_stats().free_pages, free);
    let twice = [
        fixed[0],
        FixedMapping::Leaf {
            va: 0x20_1000,
            entry: Entry::new(Pfn::new(1), Entry::PRESENT),
        },
    ];
    assert!(mm.create_space(&twice).is_err());
    mm.validate().unwrap();
    assert_eq!(mm.phys.memory_stats().free_pages, free);
}

#[test]
fn a_physical_area_leads_where_it_was_told_even_without_memory_there() {
    let mut mm = machine(512, 1);
    let id = mm.create_space(&[]).unwrap();
    let request = MapRequest {
        backing: Backing::Physical(Pfn::new(0x4_0000)),
        ..anonymous(8192, HugeAdvice::Huge)
    };
    let va = mm.mmap(id, &request).unwrap();
    assert_eq!(
        mm.fault(id, va + 4096, Access::Write),
        Ok(FaultOutcome::Mapped { nr_pages: 2 })
    );
    let root = mm.space(id).unwrap().root();
    let found = crate::pagetable::translate(&mut mm.frames, root, va + 4100, Access::Write).unwrap();
    assert_eq!(found.gpa, 0x4000_1004);
    assert!(
        mm.write_user(id, va, &[1]).is_err(),
        "the kernel does not touch what may not be there"
    );
    mm.validate().unwrap();
    mm.munmap(id, va, 4096).unwrap();
    mm.validate().unwrap();
    mm.destroy_space(id).unwrap();
    mm.validate().unwrap();
}

#[test]
fn unmapping_part_of_a_huge_page_keeps_the_rest() {
    let mut mm = machine(1024, 1);
    let id = mm.create_space(&[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mut mm, id, va + page * 4096, page).unwrap();
    }
    mm.munmap(id, va + 100 * 4096, 300 * 4096).unwrap();
    mm.validate().unwrap();
    assert_eq!(mm.phys.stats().thp_split_page, 1);
    assert_eq!(mm.space(id).unwrap().rss_pages(), 212);
    for page in (0..100).chain(400..512) {
        assert_eq!(load(&mut mm, id, va + page * 4096), Ok(page));
    }
    assert!(load(&mut mm, id, va + 100 * 4096).is_err());
}

#[test]
fn a_huge_page_moves_whole_when_a_pageblock_is_free_elsewhere() {
    let mut mm = machine(512, 3);
    let id = mm.create_space(&[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mut mm, id, va + page * 4096, !page).unwrap();
    }
    let block = (0..3)
        .find(|&b| mm.phys.block_usage(BlockIndex(b)).unwrap().used_pages > 0)
        .unwrap();
    let flushes = mm.mmu.flushes();
    let (token, report) = empty_block(&mut mm, block);
    assert_eq!(
        (report.moved_huge, report.moved_small, report.end),
        (1, 0, BatchEnd::PassDone)
    );
    assert_eq!(mm.mmu.flushes(), flushes + 1);
    remove(&mut mm, token);
    for page in 0..512 {
        assert_eq!(load(&mut mm, id, va + page * 4096), Ok(!page));
    }
    mm.validate().unwrap();
    assert_eq!(mm.phys.stats().thp_migration_success, 1);
}

#[test]
fn a_huge_page_is_split_when_only_small_frames_are_free_elsewhere() {
    let mut mm = machine(512, 3);
    let id = mm.create_space(&[]).unwrap();
    // Every pageblock outside block 2 loses a frame to a small page.
    let small = mm.mmap(id, &anonymous(512 * 4096, HugeAdvice::NoHuge)).unwrap();
    let huge = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    mm.fault(id, huge, Access::Write).unwrap();
    let victim = (0..3)
        .find(|&b| mm.phys.block_usage(BlockIndex(b)).unwrap().used_pages == 512)
        .unwrap();
    while mm.phys.free_chunks(ZoneKind::Movable)[9..].iter().sum::<u64>() > 0 {
        let taken = mm.phys.alloc_pages(Gfp::User, order(9)).unwrap();
        mm.phys.free_pages(taken, order(9)).unwrap();
        mm.set_fault_around(Order::ZERO);
        let page = mm.space(id).unwrap().rss_pages() - 512;
        store(&mut mm, id, small + page * 4096, 7).unwrap();
        // Fullest first would fill one block before it breaks the next.
        if mm.phys.free_chunks(ZoneKind::Movable)[9] > 0 {
            let rest = mm.phys.alloc_pages(Gfp::User, order(8)).unwrap();
            mm.phys.alloc_pages(Gfp::User, order(7)).unwrap();
            assert_ne!(mm.phys.block_of(rest), None);
        }
    }
    while mm.phys.free_chunks(ZoneKind::Normal)[9..].iter().sum::<u64>() > 0 {
        mm.phys.alloc_pages(Gfp::Kernel, order(8)).unwrap();
    }
    for page in 0..512 {
        store(&mut mm, id, huge + page * 4096, page).unwrap();
    }
    let (token, report) = empty_block(&mut mm, victim);
    assert_eq!(
        (report.moved_huge, mm.phys.stats().thp_migration_split),
        (0, 1),
        "{report:?}"
    );
    mm.validate().unwrap();
    for page in 0..512 {
        assert_eq!(load(&mut mm, id, huge + page * 4096), Ok(page));
    }
    mm.phys.undo(token);
    mm.validate().unwrap();
}

#[test]
fn a_pinned_page_is_refused_by_name_and_moves_once_unpinned() {
    let mut mm = machine(512, 2);
    let id = mm.create_space(&[]).unwrap();
    let va = mm.mmap(id, &anonymous(16 * 4096, HugeAdvice::NoHuge)).unwrap();
    store(&mut mm, id, va, 42).unwrap();
    let root = mm.space(id).unwrap().root();
    let gpa = crate::pagetable::translate(&mut mm.frames, root, va, Access::Read)
        .unwrap()
        .gpa;
    let pfn = Pfn::containing(gpa).unwrap();
    let block = mm.phys.block_of(pfn).unwrap();
    let (mut token, _) = (mm.phys.isolate(block).unwrap(), ());
    let pin = mm.phys.pin(pfn, "direct I/O").unwrap();
    let report = mm.migrate_batch(&mut token, u32::MAX);
    assert_eq!(report.refused.len(), 1);
    assert_eq!(
        report.refused[0].reason,
        RefusalReason::Pinned { holder: "direct I/O" }
    );
    assert_eq!((report.refused[0].pfn, report.moved_small), (pfn, 15));
    mm.validate().unwrap();
    let refused = mm.phys.offline(token).unwrap_err();
    assert_eq!(refused.used_pages, 1);
    let mut token = refused.block;
    mm.phys.unpin(pin);
    token.rewind();
    assert_eq!(mm.migrate_batch(&mut token, u32::MAX).moved_small, 1);
    remove(&mut mm, token);
    assert_eq!(load(&mut mm, id, va), Ok(42));
    mm.validate().unwrap();
}

#[test]
fn pinned_blocks_are_neither_ranked_nor_isolated() {
    let mut mm = machine(512, 2);
    let id = mm.create_space(&[]).unwrap();
    let va = mm.mmap(id, &anonymous(4096, HugeAdvice::NoHuge)).unwrap();
    store(&mut mm, id, va, 42).unwrap();
    let root = mm.space(id).unwrap().root();
    let gpa = crate::pagetable::translate(&mut mm.frames, root, va, Access::Read)
        .unwrap()
        .gpa;
    let pfn = Pfn::containing(gpa).unwrap();
    let block = mm.phys.block_of(pfn).unwrap();
    assert_eq!(mm.phys.rank_blocks().last().unwrap().block, block);
    let pin = mm.phys.pin(pfn, "ring").unwrap();
    assert!(mm.phys.rank_blocks().iter().all(|cost| cost.block != block));
    let refused = mm.phys.isolate(block).unwrap_err();
    assert_eq!(
        refused,
        crate::blocks::IsolateError::Pinned { pfn, holder: "ring" }
    );
    mm.destroy_space(id).unwrap();
    assert!(
        matches!(mm.phys.frame_state(pfn), FrameState::Allocated(_)),
        "the holder still uses it"
    );
    mm.validate().unwrap();
    mm.phys.unpin(pin);
    assert!(matches!(mm.phys.frame_state(pfn), FrameState::Free(_)));
    mm.validate().unwrap();
}

#[test]
fn an_unfinished_batch_makes_programs_wait_and_can_be_put_back() {
    let mut mm = machine(512, 2);
    let id = mm.create_space(&[]).unwrap();
    let va = mm.mmap(id, &anonymous(16 * 4096, HugeAdvice::NoHuge)).unwrap();
    store(&mut mm, id, va, 42).unwrap();
    let used = mm.phys.rank_blocks().last().unwrap().block;
    let mut token = mm.phys.isolate(used).unwrap();
    for finish in [false, true] {
        token.rewind();
        let batch = mm.begin_migration(&mut token, 5);
        assert_eq!(batch.len(), 5);
        mm.validate().unwrap();
        assert_eq!(
            mm.cpu_load(id, va),
            Err(PageFault::NotPresent),
            "the cache was flushed"
        );
        assert_eq!(mm.fault(id, va, Access::Read), Ok(FaultOutcome::Migrating));
        assert_eq!(mm.munmap(id, va, 4096), Err(MmapError::Migrating(id)));
        assert!(mm.destroy_space(id).is_err());
        assert!(mm.read_user(id, va, &mut [0]).is_err());
        if finish {
            assert_eq!(mm.finish_migration(&mut token, batch).moved_small, 5);
        } else {
            mm.abort_migration(batch);
        }
        mm.validate().unwrap();
        assert_eq!(load(&mut mm, id, va), Ok(42));
    }
    mm.phys.undo(token);
    mm.validate().unwrap();
}

#[test]
fn rights_and_dirty_bits_survive_a_move() {
    let mut mm = machine(512, 2);
    let id = mm.create_space(&[]).unwrap();
    let request = MapRequest {
        prot: Prot::READ.with(Prot::EXEC),
        ..anonymous(4096, HugeAdvice::NoHuge)
    };
    let va = mm.mmap(id, &request).unwrap();
    load(&mut mm, id, va).unwrap();
    let root = mm.space(id).unwrap().root();
    let leaf =
        |mm: &mut TestMm| crate::pagetable::translate(&mut mm.frames, root, va, Access::Execute).unwrap();
    let before = leaf(&mut mm);
    let block = mm.phys.rank_blocks().last().unwrap().block;
    let (token, _) = empty_block(&mut mm, block.0);
    let after = leaf(&mut mm);
    assert_ne!(before.gpa, after.gpa);
    assert_eq!(before.entry.with_pfn(after.entry.pfn()), after.entry);
    remove(&mut mm, token);
}

#[test]
fn without_memory_elsewhere_the_batch_stops_and_undo_restores_the_block() {
    let mut mm = machine(512, 2);
    let id = mm.create_space(&[]).unwrap();
    let va = mm.mmap(id, &anonymous(64 * MIB, HugeAdvice::NoHuge)).unwrap();
    let mut pages = 0;
    while store(&mut mm, id, va + pages * 4096, pages).is_ok() {
        pages += 1;
    }
    assert!(pages > 1024, "{pages}");
    let (token, report) = empty_block(&mut mm, 1);
    assert_eq!(report.end, BatchEnd::NoMemory);
    mm.phys.undo(token);
    mm.validate().unwrap();
    for page in 0..pages {
        assert_eq!(load(&mut mm, id, va + page * 4096), Ok(page));
    }
    assert!(
        mm.phys.alloc_pages(Gfp::Kernel, Order::ZERO).is_ok(),
        "the kernel has its reserve"
    );
}

/// Every request for a frame is refused once, in turn; nothing may leak or change then, and the next try succeeds.
#[test]
fn a_failed_allocation_anywhere_in_a_fault_changes_nothing() {
    for advice in [HugeAdvice::Huge, HugeAdvice::NoHuge] {
        for pass in 0..40 {
            let mut mm = machine(512, 2);
            let id = mm.create_space(&[]).unwrap();
            let va = mm.mmap(id, &anonymous(4 * MIB, advice)).unwrap();
            let free = mm.phys.memory_stats().free_pages;
            mm.phys.injected.fail_after(pass);
            let outcome = mm.fault(id, va, Access::Write);
            let reached = !mm.phys.injected.clear();
            mm.validate().unwrap();
            if let Err(error) = outcome {
                assert_eq!(error, FaultError::OutOfMemory);
                assert_eq!(mm.phys.memory_stats().free_pages, free, "request {pass} leaked");
            }
            store(&mut mm, id, va, 9).unwrap();
            assert_eq!(load(&mut mm, id, va), Ok(9));
            mm.destroy_space(id).unwrap();
            mm.validate().unwrap();
            if !reached {
                assert!(pass >= 3, "a fault takes at least a page and two tables");
                break;
            }
        }
    }
}

#[test]
fn a_failed_allocation_anywhere_in_a_migration_loses_nothing() {
    let mut last = 0;
    for pass in 0..600 {
        let mut mm = machine(1024, 2);
        let id = mm.create_space(&[]).unwrap();
        let small = mm.mmap(id, &anonymous(20 * 4096, HugeAdvice::NoHuge)).unwrap();
        let huge = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
        let words: Vec<u64> = (0..20)
            .map(|p| small + p * 4096)
            .chain((0..512).map(|p| huge + p * 4096))
            .collect();
        for &va in &words {
            store(&mut mm, id, va, va).unwrap();
        }
        let used = mm.phys.rank_blocks().last().unwrap().block;
        let mut token = mm.phys.isolate(used).unwrap();
        mm.phys.injected.fail_after(pass);
        let report = mm.migrate_batch(&mut token, u32::MAX);
        let reached = !mm.phys.injected.clear();
        mm.validate().unwrap();
        if report.end == BatchEnd::NoMemory {
            let rest = mm.migrate_batch(&mut token, u32::MAX);
            assert_eq!(rest.end, BatchEnd::PassDone);
        }
        remove(&mut mm, token);
        for &va in &words {
            assert_eq!(load(&mut mm, id, va), Ok(va), "request {pass}");
        }
        mm.validate().unwrap();
        last = pass;
        if !reached {
            break;
        }
    }
    assert!((20..599).contains(&last), "{last} requests");
}

#[derive(Clone, Debug)]
enum Op {
    Map {
        space: usize,
        pages: u64,
        advice: HugeAdvice,
    },
    Unmap {
        space: usize,
        area: prop::sample::Index,
        from: u64,
        pages: u64,
    },
    Protect {
        space: usize,
        area: prop::sample::Index,
        from: u64,
        pages: u64,
        prot: Prot,
    },
    Store {
        space: usize,
        area: prop::sample::Index,
        page: u64,
    },
    Replace {
        space: usize,
    },
    Plug(u32),
    Isolate(u32),
    Migrate {
        block: u32,
        budget: u32,
    },
    BeginAndAbort {
        block: u32,
        budget: u32,
    },
    Undo(u32),
    Remove(u32),
    Pin {
        space: usize,
        area: prop::sample::Index,
        page: u64,
    },
    Unpin,
}

fn ops() -> impl Strategy<Value = Op> {
    let space = || 0usize..2;
    let area = any::<prop::sample::Index>;
    let advice = prop::sample::select(vec![HugeAdvice::Huge, HugeAdvice::NoHuge]);
    let prot = prop::sample::select(vec![Prot::READ, RW, Prot::NONE]);
    prop_oneof![
        3 => (space(), prop_oneof![1u64..40, 400u64..1200], advice)
            .prop_map(|(space, pages, advice)| Op::Map { space, pages, advice }),
        2 => (space(), area(), 0u64..600, prop_oneof![1u64..20, 300u64..900])
            .prop_map(|(space, area, from, pages)| Op::Unmap { space, area, from, pages }),
        1 => (space(), area(), 0u64..600, 1u64..600, prot)
            .prop_map(|(space, area, from, pages, prot)| Op::Protect { space, area, from, pages, prot }),
        12 => (space(), area(), 0u64..1200).prop_map(|(space, area, page)| Op::Store { space, area, page }),
        1 => space().prop_map(|space| Op::Replace { space }),
        3 => (0u32..3).prop_map(Op::Plug),
        3 => (0u32..3).prop_map(Op::Isolate),
        4 => (0u32..3, 1u32..700).prop_map(|(block, budget)| Op::Migrate { block, budget }),
        1 => (0u32..3, 1u32..700).prop_map(|(block, budget)| Op::BeginAndAbort { block, budget }),
        1 => (0u32..3).prop_map(Op::Undo),
        3 => (0u32..3).prop_map(Op::Remove),
        1 => (space(), area(), 0u64..1200).prop_map(|(space, area, page)| Op::Pin { space, area, page }),
        1 => Just(Op::Unpin),
    ]
}

/// Programs as the model knows them: pages by number, with rights, and what was stored last.
#[derive(Default)]
struct Program {
    pages: BTreeMap<u64, Prot>,
    words: BTreeMap<u64, u64>,
}

struct World {
    mm: TestMm,
    ids: [SpaceId; 2],
    programs: [Program; 2],
    isolated: BTreeMap<u32, IsolatedBlock>,
    pins: Vec<crate::phys::Pin>,
    stamp: u64,
}

impl World {
    fn new(block_nr_pages: u32) -> Self {
        let mut mm = machine(block_nr_pages, 3);
        let ids = [mm.create_space(&[]).unwrap(), mm.create_space(&[]).unwrap()];
        Self {
            mm,
            ids,
            programs: Default::default(),
            isolated: BTreeMap::new(),
            pins: Vec::new(),
            stamp: 0,
        }
    }

    /// An address of the program that some area has, `page` pages into it or its last.
    fn pick(&self, space: usize, area: &prop::sample::Index, page: u64) -> Option<(u64, u64)> {
        let areas: Vec<_> = self.mm.space(self.ids[space]).unwrap().vmas().collect();
        let vma = areas.get(area.index(areas.len().max(1)))?;
        Some((
            vma.range.start() + page.min(vma.range.nr_pages() - 1) * 4096,
            vma.range.end(),
        ))
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Map { space, pages, advice } => {
                let va = self
                    .mm
                    .mmap(self.ids[*space], &anonymous(pages * 4096, *advice))
                    .unwrap();
                for page in va / 4096..va / 4096 + pages {
                    assert_eq!(
                        self.programs[*space].pages.insert(page, RW),
                        None,
                        "{page:#x} was in use"
                    );
                }
            }
            Op::Unmap {
                space,
                area,
                from,
                pages,
            } => {
                let Some((va, _)) = self.pick(*space, area, *from) else {
                    return;
                };
                if self.mm.munmap(self.ids[*space], va, pages * 4096).is_ok() {
                    let gone = va / 4096..va / 4096 + pages;
                    self.programs[*space].pages.retain(|page, _| !gone.contains(page));
                    self.programs[*space]
                        .words
                        .retain(|va, _| !gone.contains(&(va / 4096)));
                }
            }
            Op::Protect {
                space,
                area,
                from,
                pages,
                prot,
            } => {
                let Some((va, _)) = self.pick(*space, area, *from) else {
                    return;
                };
                if self
                    .mm
                    .mprotect(self.ids[*space], va, pages * 4096, *prot)
                    .is_ok()
                {
                    for (_, rights) in self.programs[*space]
                        .pages
                        .range_mut(va / 4096..va / 4096 + pages)
                    {
                        *rights = *prot;
                    }
                }
            }
            Op::Store { space, area, page } => self.store(*space, area, *page),
            Op::Replace { space } => {
                self.mm.destroy_space(self.ids[*space]).unwrap();
                self.ids[*space] = self.mm.create_space(&[]).unwrap();
                self.programs[*space] = Program::default();
            }
            Op::Pin { space, area, page } => self.pin(*space, area, *page),
            Op::Unpin => {
                if let Some(pin) = self.pins.pop() {
                    self.mm.phys.unpin(pin);
                }
            }
            _ => self.step_block(op),
        }
    }

    fn store(&mut self, space: usize, area: &prop::sample::Index, page: u64) {
        let Some((va, _)) = self.pick(space, area, page) else {
            return;
        };
        self.stamp += 1;
        let va = va + self.stamp % 512 * 8;
        match store(&mut self.mm, self.ids[space], va, self.stamp) {
            Ok(()) => {
                assert!(self.programs[space].pages[&(va / 4096)].permits(Access::Write));
                self.programs[space].words.insert(va, self.stamp);
            }
            Err(FaultError::Protection { .. }) => {
                assert!(!self.programs[space].pages[&(va / 4096)].permits(Access::Write));
            }
            Err(error) => assert_eq!(error, FaultError::OutOfMemory),
        }
    }

    fn pin(&mut self, space: usize, area: &prop::sample::Index, page: u64) {
        let Some((va, _)) = self.pick(space, area, page) else {
            return;
        };
        let root = self.mm.space(self.ids[space]).unwrap().root();
        if let Ok(found) = crate::pagetable::translate(&mut self.mm.frames, root, va, Access::Read) {
            let pfn = Pfn::containing(found.gpa).unwrap();
            self.pins.push(self.mm.phys.pin(pfn, "model").unwrap());
        }
    }

    fn step_block(&mut self, op: &Op) {
        match *op {
            Op::Plug(block) => {
                if self.mm.phys.hotplug_region().state(BlockIndex(block)) == Some(BlockState::Unplugged) {
                    plug_block(&mut self.mm, block);
                }
            }
            Op::Isolate(block) => {
                if let Ok(token) = self.mm.phys.isolate(BlockIndex(block)) {
                    self.isolated.insert(block, token);
                }
            }
            Op::Migrate { block, budget } => {
                let Some(token) = self.isolated.get_mut(&block) else {
                    return;
                };
                let report = self.mm.migrate_batch(token, budget);
                for refusal in &report.refused {
                    assert_eq!(refusal.reason, RefusalReason::Pinned { holder: "model" });
                }
                if report.end == BatchEnd::PassDone {
                    token.rewind();
                }
            }
            Op::BeginAndAbort { block, budget } => {
                let Some(token) = self.isolated.get_mut(&block) else {
                    return;
                };
                let batch = self.mm.begin_migration(token, budget);
                self.mm.validate().unwrap();
                self.mm.abort_migration(batch);
                token.rewind();
            }
            Op::Undo(block) => {
                if let Some(token) = self.isolated.remove(&block) {
                    self.mm.phys.undo(token);
                }
            }
            Op::Remove(block) => {
                let Some(token) = self.isolated.remove(&block) else {
                    return;
                };
                match self.mm.phys.offline(token) {
                    Ok(_) => {
                        self.mm.phys.unplugged(BlockIndex(block)).unwrap();
                        let range = self
                            .mm
                            .phys
                            .hotplug_region()
                            .block_range(BlockIndex(block))
                            .unwrap();
                        self.mm.frames.unplug(range);
                    }
                    Err(refused) => {
                        self.isolated.insert(block, refused.block);
                    }
                }
            }
            _ => unreachable!("handled by step"),
        }
    }

    /// Everything that programs stored is still there, as the CPU sees it, and nothing else is.
    fn check_contents(&mut self) {
        for (space, program) in self.programs.iter().enumerate() {
            for (&va, &word) in &program.words {
                if program.pages[&(va / 4096)].permits(Access::Read) {
                    assert_eq!(load(&mut self.mm, self.ids[space], va), Ok(word), "{va:#x}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn programs_keep_what_they_wrote_while_blocks_come_and_go(
        shift in 0u32..2,
        ops in prop::collection::vec(ops(), 1..100),
    ) {
        let mut world = World::new(512 << shift);
        for op in &ops {
            world.step(op);
            world.mm.validate().unwrap();
        }
        world.check_contents();
        for pin in core::mem::take(&mut world.pins) {
            world.mm.phys.unpin(pin);
        }
        for id in world.ids {
            world.mm.destroy_space(id).unwrap();
        }
        world.mm.validate().unwrap();
        let stats = world.mm.phys.memory_stats();
        prop_assert_eq!(stats.free_pages + stats.isolated_pages, stats.total_pages);
    }
}

#[test]
fn a_block_needs_the_right_descriptors_and_state() {
    let mut mm = machine(512, 1);
    let wrong = mm.phys.online(
        BlockIndex(0),
        Descriptors::try_new(512).unwrap(),
        ZoneKind::Movable,
    );
    assert_eq!(
        std::format!("{}", wrong.unwrap_err()),
        "block not online: block 0 is online"
    );
    let unknown = mm.phys.isolate(BlockIndex(7)).unwrap_err();
    assert_eq!(std::format!("{unknown}"), "no block 7");
}
