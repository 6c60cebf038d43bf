//! Scattered free memory gathered into pageblocks, under programs that go on using theirs.

use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::vec::Vec;

use guest_sync::Cpu;

use crate::blocks::BlockIndex;
use crate::compact::{CompactResult, Defrag, Goal};
use crate::mm::FaultOutcome;
use crate::pagetable::translate;
use crate::tests::machine::{MIB, TestMm, anonymous, empty_block, load, machine, remove, store};
use crate::{Access, Gfp, HugeAdvice, NodeId, Order, Pfn, SpaceId, Zone, ZoneKind};

/// A program that has filled all memory but a little with small pages and given every second one back.
pub(super) struct Scattered {
    id: SpaceId,
    pub(super) kept: Vec<u64>,
}

impl Scattered {
    pub(super) fn new(mm: &TestMm<'_>, cpu: &Cpu) -> Self {
        let id = mm.create_space(cpu, &[]).unwrap();
        let va = mm.mmap(id, &anonymous(64 * MIB, HugeAdvice::NoHuge)).unwrap();
        let pages: Vec<u64> = (0..64 * MIB / 4096).map(|page| va + page * 4096).collect();
        let touched = pages
            .iter()
            .take_while(|&&va| store(mm, cpu, id, va, va).is_ok())
            .count();
        assert!(touched > 1024, "{touched} pages");
        let (mut kept, mut gone) = (Vec::new(), Vec::new());
        for (number, &va) in pages[..touched].iter().enumerate() {
            if number.is_multiple_of(2) {
                kept.push(va);
            } else {
                gone.push(va);
            }
        }
        for va in gone {
            mm.munmap(cpu, id, va, 4096).unwrap();
        }
        mm.phys.drain_all();
        Self { id, kept }
    }

    pub(super) fn check(&self, mm: &TestMm<'_>, cpu: &Cpu) {
        for &va in &self.kept {
            assert_eq!(load(mm, cpu, self.id, va), Ok(va));
        }
    }

    pub(super) fn pfn_at(&self, mm: &TestMm<'_>, va: u64) -> Pfn {
        let root = mm.space(self.id).unwrap().root();
        Pfn::containing(translate(&mm.frames, root, va, Access::Read).unwrap().gpa).unwrap()
    }
}

fn movable<'a>(mm: &'a TestMm<'_>) -> &'a Zone {
    mm.phys.zone(NodeId::ZERO, ZoneKind::Movable)
}

/// A fault that would like a huge page.
fn huge_fault(mm: &TestMm<'_>, cpu: &Cpu) -> FaultOutcome {
    let id = mm.create_space(cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    let outcome = mm.fault(cpu, id, va, Access::Write).unwrap();
    mm.validate().unwrap();
    outcome
}

#[test]
fn a_huge_page_can_be_had_from_scattered_memory_and_only_by_compaction() {
    for defrag in [Defrag::Always, Defrag::Defer, Defrag::Never] {
        machine!(mm, cpu, 512, 8);
        mm.set_defrag(defrag);
        let program = Scattered::new(&mm, &cpu);
        let zone = movable(&mm);
        assert_eq!(mm.phys.free_chunks(NodeId::ZERO, ZoneKind::Movable)[9..], [0, 0]);
        assert!(mm.phys.fragmentation_index(zone, Order::PAGEBLOCK) > 900);
        assert_eq!(mm.phys.external_fragmentation(zone), 100);
        let outcome = huge_fault(&mm, &cpu);
        let stats = mm.phys.stats();
        if defrag == Defrag::Always {
            assert_eq!(outcome, FaultOutcome::MappedHuge);
            assert_eq!(
                (
                    stats.thp_fault_alloc,
                    stats.compact_stall,
                    stats.compact_success,
                    stats.compact_fail
                ),
                (1, 1, 1, 0)
            );
            // The emptiest pageblock was emptied, into the fullest: about half of one.
            assert!((1..400).contains(&stats.compact_isolated), "{stats:?}");
            assert_eq!(stats.compact_isolated, stats.pgmigrate_success);
            assert!(stats.compact_free_scanned >= stats.compact_isolated, "{stats:?}");
            assert!(
                stats.compact_migrate_scanned >= stats.compact_isolated,
                "{stats:?}"
            );
        } else {
            assert!(matches!(outcome, FaultOutcome::Mapped { .. }), "{outcome:?}");
            assert_eq!((stats.thp_fault_fallback, stats.compact_stall), (1, 0));
        }
        program.check(&mm, &cpu);
    }
}

#[test]
fn pageblocks_with_a_pinned_page_are_left_alone_before_anything_moves() {
    machine!(mm, cpu, 512, 8);
    let program = Scattered::new(&mm, &cpu);
    let zone = movable(&mm);
    let mut pins = Vec::new();
    let mut pinned = Vec::new();
    for &va in &program.kept {
        let pfn = program.pfn_at(&mm, va);
        let block = pfn.align_down(Order::PAGEBLOCK);
        if !pinned.contains(&block) {
            pinned.push(block);
            pins.push(mm.phys.pin(pfn, "device").unwrap());
        }
    }
    let outcome = mm.compact_direct(&cpu, Gfp::SPARE, Order::PAGEBLOCK);
    assert_eq!(outcome, CompactResult::Complete);
    let stats = mm.phys.stats();
    assert_eq!(
        (stats.compact_stall, stats.compact_fail, stats.compact_isolated),
        (1, 1, 0),
        "{stats:?}"
    );
    mm.validate().unwrap();
    // Passed by once, as the last run came to nothing.
    assert_eq!(
        mm.compact_direct(&cpu, Gfp::SPARE, Order::PAGEBLOCK),
        CompactResult::Deferred
    );
    // One of them is let go of: that pageblock, and no other, is emptied.
    let free = pinned
        .iter()
        .position(|&block| mm.phys.zone_of(block).map(Zone::kind) == Some(ZoneKind::Movable));
    mm.phys.unpin(&cpu, pins.swap_remove(free.unwrap()));
    let freed = pinned.swap_remove(free.unwrap());
    assert_eq!(
        mm.compact_direct(&cpu, Gfp::SPARE, Order::PAGEBLOCK),
        CompactResult::Success
    );
    assert_eq!(mm.phys.free_chunks(NodeId::ZERO, ZoneKind::Movable)[9], 1);
    assert_eq!(mm.phys.alloc_pages(&cpu, Gfp::SPARE, Order::PAGEBLOCK), Ok(freed));
    assert_eq!(mm.phys.external_fragmentation(zone), 100);
    program.check(&mm, &cpu);
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
    mm.validate().unwrap();
}

#[test]
fn memory_of_the_kernel_is_left_alone() {
    machine!(mm, cpu, 512, 8);
    let mut held = Vec::new();
    while let Ok(pfn) = mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO) {
        held.push(pfn);
    }
    for pfn in held.into_iter().step_by(2) {
        mm.phys.free_pages(&cpu, pfn).unwrap();
    }
    mm.phys.drain_all();
    assert_eq!(
        mm.compact_direct(&cpu, Gfp::SPARE, Order::PAGEBLOCK),
        CompactResult::Complete
    );
    let stats = mm.phys.stats();
    assert!(stats.compact_migrate_scanned > 0);
    assert_eq!((stats.compact_isolated, stats.pgmigrate_fail), (0, 0));
    mm.validate().unwrap();
}

#[test]
fn a_run_that_is_given_up_leaves_every_page_where_it_is() {
    machine!(mm, cpu, 512, 8);
    let program = Scattered::new(&mm, &cpu);
    let free = movable(&mm).counters().free_pages;
    for steps in 0..3 {
        let mut run = mm
            .begin_compaction(movable(&mm), Goal::Chunk(Order::PAGEBLOCK))
            .unwrap();
        for _ in 0..steps {
            assert_eq!(mm.compaction_step(&cpu, &mut run), None);
            // What is emptied cannot be had meanwhile.
            mm.validate().unwrap();
        }
        drop(run);
        mm.validate().unwrap();
        program.check(&mm, &cpu);
    }
    assert_eq!(mm.phys.stats().pgmigrate_success, 3 * 64);
    assert_eq!(movable(&mm).counters().free_pages, free);
    // And its frames can be had again: all of them.
    let mut taken = 0;
    let gfp = Gfp::SPARE.with(Gfp::MEMALLOC);
    while mm
        .phys
        .alloc_pages(&cpu, gfp, Order::ZERO)
        .is_ok_and(|pfn| mm.phys.block_of(pfn).is_some())
    {
        taken += 1;
    }
    assert_eq!(taken, free);
}

#[test]
fn a_pageblock_that_is_emptied_is_taken_by_nobody_and_its_block_can_leave_meanwhile() {
    machine!(mm, cpu, 512, 8);
    let program = Scattered::new(&mm, &cpu);
    let mut run = mm
        .begin_compaction(movable(&mm), Goal::Chunk(Order::PAGEBLOCK))
        .unwrap();
    assert_eq!(mm.compaction_step(&cpu, &mut run), None);
    let withdrawn = (0..8)
        .find(|&block| {
            let range = mm.phys.hotplug_region().block_range(BlockIndex(block)).unwrap();
            mm.phys.migrate_type(range.start()) == Some(crate::MigrateType::Isolate)
        })
        .expect("the pageblock that is emptied shows");
    let range = mm
        .phys
        .hotplug_region()
        .block_range(BlockIndex(withdrawn))
        .unwrap();
    for _ in 0..200 {
        let pfn = mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO).unwrap();
        assert!(!range.contains(pfn), "{pfn} was handed out");
    }
    let (token, _) = empty_block(&mm, &cpu, withdrawn);
    mm.validate().unwrap();
    mm.phys.offline(token).unwrap();
    mm.validate().unwrap();
    // Nothing is left of what the run was at.
    assert_eq!(mm.compaction_step(&cpu, &mut run), None);
    drop(run);
    mm.validate().unwrap();
    program.check(&mm, &cpu);
}

#[test]
fn blocks_that_were_compacted_leave_without_a_page_being_moved() {
    machine!(mm, cpu, 512, 8);
    let program = Scattered::new(&mm, &cpu);
    let mut run = mm
        .begin_compaction(movable(&mm), Goal::Fragmentation(80))
        .unwrap();
    let result = loop {
        if let Some(result) = mm.compaction_step(&cpu, &mut run) {
            break result;
        }
    };
    assert_eq!(result, CompactResult::Success);
    assert!(run.freed_pageblocks() >= 1);
    drop(run);
    let moved = mm.phys.stats().pgmigrate_success;
    let block = mm.phys.rank_blocks()[0];
    assert_eq!(block.used_pages, 0);
    let (token, _) = empty_block(&mm, &cpu, block.block.0);
    remove(&mut mm, token);
    assert_eq!(mm.phys.stats().pgmigrate_success, moved);
    program.check(&mm, &cpu);
}

#[test]
fn the_daemon_is_woken_by_a_request_for_a_chunk_that_there_is_not() {
    machine!(mm, cpu, 512, 8);
    mm.set_defrag(Defrag::Defer);
    let _program = Scattered::new(&mm, &cpu);
    let mut wanted = pin!(mm.phys.compaction_wanted(NodeId::ZERO));
    let mut context = Context::from_waker(Waker::noop());
    while wanted.as_mut().poll(&mut context).is_ready() {
        wanted.set(mm.phys.compaction_wanted(NodeId::ZERO));
    }
    huge_fault(&mm, &cpu);
    assert_eq!(
        wanted.as_mut().poll(&mut context),
        Poll::Ready(Some(Order::PAGEBLOCK))
    );
    assert!(mm.phys.stats().compact_daemon_wake > 0);
    for (zone, goal) in mm.phys.compaction_goals(NodeId::ZERO, Some(Order::PAGEBLOCK)) {
        let Ok(mut run) = mm.begin_compaction(zone, goal) else {
            continue;
        };
        let result = loop {
            if let Some(result) = mm.compaction_step(&cpu, &mut run) {
                break result;
            }
        };
        drop(run);
        mm.phys.compaction_ended(zone, goal, result);
    }
    assert_eq!(huge_fault(&mm, &cpu), FaultOutcome::MappedHuge);
    assert!(mm.phys.stats().compact_daemon_migrate_scanned > 0);
}

#[test]
fn too_little_memory_is_no_reason_to_compact() {
    machine!(mm, cpu, 512, 3);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(64 * MIB, HugeAdvice::NoHuge)).unwrap();
    let mut pages = 0;
    while store(&mm, &cpu, id, va + pages * 4096, pages).is_ok() {
        pages += 1;
    }
    mm.munmap(&cpu, id, va + 4096, 4096).unwrap();
    assert_eq!(
        mm.compact_direct(&cpu, Gfp::SPARE, Order::PAGEBLOCK),
        CompactResult::Skipped
    );
    assert_eq!(mm.phys.stats().compact_stall, 0);
}
