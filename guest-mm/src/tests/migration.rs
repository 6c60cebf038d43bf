//! Pages moved off isolated blocks under programs that go on using them.

use std::vec::Vec;

use crate::blocks::BlockIndex;
use crate::migrate::{BatchEnd, RefusalReason};
use crate::mm::{FaultOutcome, MmapError, PageWait};
use crate::pagetable::{PageFault, translate};
use crate::phys::PinError;
use crate::tests::machine::{
    MIB, RW, TestMm, anonymous, empty_block, isolate_fullest, load, machine, remove, store,
};
use crate::tests::phys_model::order;
use crate::{Access, Entry, FrameState, Gfp, HugeAdvice, MapRequest, NodeId, Order, Pfn, Prot, ZoneKind};

#[test]
fn a_huge_page_moves_whole_when_a_pageblock_is_free_elsewhere() {
    machine!(mm, cpu, 512, 3);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mm, &cpu, id, va + page * 4096, !page).unwrap();
    }
    let block = (0..3)
        .find(|&b| mm.phys.block_usage(BlockIndex(b)).unwrap().used_pages > 0)
        .unwrap();
    let flushes = mm.mmu.flushes();
    let (token, report) = empty_block(&mm, &cpu, block);
    assert_eq!(
        (report.moved_huge, report.moved_small, report.end),
        (1, 0, BatchEnd::PassDone)
    );
    assert_eq!(mm.mmu.flushes(), flushes + 1);
    remove(&mut mm, token);
    for page in 0..512 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(!page));
    }
    mm.validate().unwrap();
    assert_eq!(mm.phys.stats().thp_migration_success, 1);
}

#[test]
fn a_huge_page_is_split_when_only_small_frames_are_free_elsewhere() {
    machine!(mm, cpu, 512, 4);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mm, &cpu, id, va + page * 4096, page).unwrap();
    }
    let victim = mm.phys.rank_blocks().last().unwrap().block;
    // Each of the other three blocks loses a piece, and boot memory all its pageblocks.
    mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO).unwrap();
    let halves: Vec<Pfn> = (0..4)
        .map(|_| mm.phys.alloc_pages(&cpu, Gfp::USER, order(8)).unwrap())
        .collect();
    mm.phys.free_pages(&cpu, halves[0]).unwrap();
    mm.phys.free_pages(&cpu, halves[2]).unwrap();
    while mm.phys.alloc_pages(&cpu, Gfp::ATOMIC, order(9)).is_ok() {}
    assert_eq!(mm.phys.free_chunks(NodeId::ZERO, ZoneKind::Movable)[9..], [0, 0]);
    let (token, report) = empty_block(&mm, &cpu, victim.0);
    assert_eq!((report.moved_huge, report.moved_small), (0, 512), "{report:?}");
    assert_eq!(mm.phys.stats().thp_migration_split, 1);
    remove(&mut mm, token);
    mm.validate().unwrap();
    for page in 0..512 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page));
    }
}

#[test]
fn a_pinned_page_is_refused_by_name_and_moves_once_unpinned() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(16 * 4096, HugeAdvice::NoHuge)).unwrap();
    store(&mm, &cpu, id, va, 42).unwrap();
    let root = mm.space(id).unwrap().root();
    let gpa = translate(&mm.frames, root, va, Access::Read).unwrap().gpa;
    let pfn = Pfn::containing(gpa).unwrap();
    let block = mm.phys.block_of(pfn).unwrap();
    let mut token = mm.phys.isolate(block).unwrap();
    let pin = mm.phys.pin(pfn, "direct I/O").unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
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
    mm.phys.unpin(&cpu, pin);
    token.rewind();
    assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_small, 1);
    remove(&mut mm, token);
    assert_eq!(load(&mm, &cpu, id, va), Ok(42));
    mm.validate().unwrap();
}

#[test]
fn pinned_blocks_are_neither_ranked_nor_isolated() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(4096, HugeAdvice::NoHuge)).unwrap();
    store(&mm, &cpu, id, va, 42).unwrap();
    let root = mm.space(id).unwrap().root();
    let gpa = translate(&mm.frames, root, va, Access::Read).unwrap().gpa;
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
    mm.destroy_space(&cpu, id).unwrap();
    assert!(
        matches!(mm.phys.frame_state(pfn), FrameState::Allocated(_)),
        "the holder still uses it"
    );
    mm.validate().unwrap();
    mm.phys.unpin(&cpu, pin);
    assert_eq!(mm.phys.frame_state(pfn), FrameState::Cached(Order::ZERO));
    mm.validate().unwrap();
}

#[test]
fn an_unfinished_batch_makes_programs_wait_and_can_be_put_back() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(16 * 4096, HugeAdvice::NoHuge)).unwrap();
    store(&mm, &cpu, id, va, 42).unwrap();
    let root = mm.space(id).unwrap().root();
    let gpa = translate(&mm.frames, root, va, Access::Read).unwrap().gpa;
    let pfn = Pfn::containing(gpa).unwrap();
    let mut token = isolate_fullest(&mm);
    for finish in [false, true] {
        token.rewind();
        let batch = mm.begin_migration(&cpu, &mut token, 5);
        assert_eq!(batch.len(), 5);
        mm.validate().unwrap();
        assert_eq!(
            mm.cpu_load(id, va),
            Err(PageFault::NotPresent),
            "the cache was flushed"
        );
        assert_eq!(
            mm.fault(&cpu, id, va, Access::Read),
            Ok(FaultOutcome::Locked(PageWait::lock(pfn)))
        );
        assert_eq!(mm.munmap(&cpu, id, va, 4096), Err(MmapError::Migrating(id)));
        assert!(mm.destroy_space(&cpu, id).is_err());
        assert_eq!(mm.phys.pin(pfn, "too late"), Err(PinError::Migrating(pfn)));
        assert!(mm.read_user(&cpu, id, va, &mut [0]).is_err());
        if finish {
            assert_eq!(mm.finish_migration(&cpu, &mut token, batch).moved_small, 5);
        } else {
            mm.abort_migration(&cpu, batch);
        }
        mm.validate().unwrap();
        assert_eq!(load(&mm, &cpu, id, va), Ok(42));
    }
    mm.phys.undo(token);
    mm.validate().unwrap();
}

#[test]
fn a_page_on_the_move_is_busy_for_a_second_batch() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(16 * 4096, HugeAdvice::NoHuge)).unwrap();
    store(&mm, &cpu, id, va, 42).unwrap();
    let mut token = isolate_fullest(&mm);
    let first = mm.begin_migration(&cpu, &mut token, 100);
    token.rewind();
    let second = mm.migrate_batch(&cpu, &mut token, 100);
    assert_eq!((second.moved_small, second.refused.len()), (0, 16));
    assert!(second.refused.iter().all(|refusal| refusal.reason.is_busy()));
    assert_eq!(mm.finish_migration(&cpu, &mut token, first).moved_small, 16);
    assert_eq!(token.moved_pages(), 16);
    remove(&mut mm, token);
    assert_eq!(load(&mm, &cpu, id, va), Ok(42));
    mm.validate().unwrap();
}

#[test]
fn rights_and_dirty_bits_survive_a_move() {
    let code = Prot::READ.with(Prot::EXEC);
    for (prot, stored) in [
        (code, 0),
        (RW, Entry::DIRTY | Entry::WRITABLE | Entry::NO_EXECUTE),
    ] {
        machine!(mm, cpu, 512, 2);
        let id = mm.create_space(&cpu, &[]).unwrap();
        let request = MapRequest {
            prot,
            ..anonymous(4096, HugeAdvice::NoHuge)
        };
        let va = mm.mmap(id, &request).unwrap();
        load(&mm, &cpu, id, va).unwrap();
        let root = mm.space(id).unwrap().root();
        let leaf = |mm: &mut TestMm<'_>| translate(&mm.frames, root, va, Access::Read).unwrap();
        let before = leaf(&mut mm);
        assert!(before.entry.has(Entry::ACCESSED | stored));
        let block = mm.phys.rank_blocks().last().unwrap().block;
        let (token, _) = empty_block(&mm, &cpu, block.0);
        let after = leaf(&mut mm);
        assert_ne!(before.gpa, after.gpa);
        assert_eq!(before.entry.with_pfn(after.entry.pfn()), after.entry);
        remove(&mut mm, token);
    }
}

#[test]
fn without_memory_elsewhere_the_batch_stops_and_undo_restores_the_block() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(64 * MIB, HugeAdvice::NoHuge)).unwrap();
    let mut pages = 0;
    while store(&mm, &cpu, id, va + pages * 4096, pages).is_ok() {
        pages += 1;
    }
    assert!(pages > 1024, "{pages}");
    let (token, report) = empty_block(&mm, &cpu, 1);
    assert_eq!(report.end, BatchEnd::NoMemory);
    mm.phys.undo(token);
    mm.validate().unwrap();
    for page in 0..pages {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page));
    }
    assert!(
        mm.phys.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).is_ok(),
        "the kernel has its reserve"
    );
}

#[test]
fn a_block_needs_the_right_state_and_zone() {
    machine!(mm, cpu, 512, 1);
    let block = BlockIndex(0);
    let again = mm.phys.online(block, ZoneKind::Movable).unwrap_err();
    assert_eq!(std::format!("{again}"), "block 0 is online");
    let unknown = mm.phys.isolate(BlockIndex(7)).unwrap_err();
    assert_eq!(std::format!("{unknown}"), "no block 7");
    let token = mm.phys.isolate(block).unwrap();
    mm.phys.offline(token).unwrap();
    let dma = mm.phys.online(block, ZoneKind::Dma).unwrap_err();
    assert_eq!(std::format!("{dma}"), "no memory can be plugged into zone DMA");
    assert!(mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO).is_ok());
    mm.validate().unwrap();
}
