//! Page tables on blocks that leave: exchanged under programs that go on, by hardware that remembers where tables were until it is told.

use std::vec::Vec;

use crate::blocks::BlockIndex;
use crate::host::HostFrames;
use crate::migrate::{BatchEnd, BusyWith, PageKind, RefusalReason};
use crate::page::PageFlags;
use crate::slab::{Debugging, SlabAllocator};
use crate::tests::inject::Then;
use crate::tests::machine::{MIB, TestMm, anonymous, empty_block, load, machine, machine_of, remove, store};
use crate::tests::phys_model::{descriptors, one_cpu, range, small_memory_of};
use crate::{Gfp, HugeAdvice, KernelUse, NodeId, Order, Pfn, SpaceId, Topology, ZoneLimits};
use guest_sync::{Cpu, CpuId};

/// Frames of the kernel's own until none is left outside removable memory.
fn exhaust(mm: &TestMm<'_>, cpu: &Cpu) -> Vec<Pfn> {
    core::iter::from_fn(|| mm.phys.alloc_pages(cpu, Gfp::KERNEL, Order::ZERO).ok()).collect()
}

fn give_back(mm: &TestMm<'_>, cpu: &Cpu, frames: &[Pfn]) {
    mm.phys.free_bulk(cpu, frames).unwrap();
}

/// Page tables on a block.
fn tables_on(mm: &TestMm<'_>, block: u32) -> usize {
    let range = mm.phys.hotplug_region().block_range(BlockIndex(block)).unwrap();
    let is_table = |pfn: &Pfn| {
        mm.phys
            .page(*pfn)
            .is_some_and(|page| page.flags().has(PageFlags::TABLE))
    };
    range.iter().filter(is_table).count()
}

/// Stores a word into one page of every 2 MiB: a table for each.
fn sparse(mm: &TestMm<'_>, cpu: &Cpu, id: SpaceId, nr_tables: u64) -> u64 {
    let va = mm
        .mmap(id, &anonymous(nr_tables * 2 * MIB, HugeAdvice::NoHuge))
        .unwrap();
    for at in 0..nr_tables {
        store(mm, cpu, id, va + at * 2 * MIB, at ^ 0x5a).unwrap();
    }
    va
}

fn check_sparse(mm: &TestMm<'_>, cpu: &Cpu, id: SpaceId, va: u64, nr_tables: u64) {
    for at in 0..nr_tables {
        assert_eq!(load(mm, cpu, id, va + at * 2 * MIB), Ok(at ^ 0x5a), "page {at}");
    }
}

#[test]
fn tables_come_from_removable_memory_when_there_is_no_other_and_leave_with_their_block() {
    machine!(mm, cpu, 1024, 3);
    let others = exhaust(&mm, &cpu);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = sparse(&mm, &cpu, id, 24);
    mm.validate().unwrap();
    let block = (0..3).max_by_key(|&block| tables_on(&mm, block)).unwrap();
    let nr_tables = tables_on(&mm, block);
    assert!(nr_tables > 20, "{nr_tables}");
    for round in 0..2 {
        let block = (0..3).max_by_key(|&block| tables_on(&mm, block)).unwrap();
        let (token, report) = empty_block(&mm, &cpu, block);
        assert_eq!((&report.refused[..], report.end), (&[][..], BatchEnd::PassDone));
        assert!(report.moved_kernel as usize >= nr_tables.min(20), "{report:?}");
        mm.validate().unwrap();
        // What was there panics from now on when it is touched.
        remove(&mut mm, token);
        check_sparse(&mm, &cpu, id, va, 24);
        for at in 0..24 {
            store(&mm, &cpu, id, va + at * 2 * MIB, at ^ 0x5a).unwrap();
        }
        mm.validate().unwrap();
        if round == 0 {
            assert!(
                (0..3).any(|block| tables_on(&mm, block) > 20),
                "there is no other memory yet"
            );
        }
        crate::tests::machine::plug_block(&mut mm, block);
    }
    give_back(&mm, &cpu, &others);
    let used: Vec<u32> = (0..3).filter(|&block| tables_on(&mm, block) > 0).collect();
    for block in used {
        let (token, _) = empty_block(&mm, &cpu, block);
        mm.phys.undo(token);
    }
    assert!(
        (0..3).all(|block| tables_on(&mm, block) == 0),
        "tables go back to where the kernel's memory is"
    );
    check_sparse(&mm, &cpu, id, va, 24);
    mm.destroy_space(&cpu, id).unwrap();
    mm.validate().unwrap();
}

#[test]
fn a_root_moves_under_a_running_program_and_a_batch_of_tables_takes_one_flush_besides() {
    machine!(mm, cpu, 1024, 2);
    let others = exhaust(&mm, &cpu);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = sparse(&mm, &cpu, id, 16);
    let root = mm.space(id).unwrap().root();
    let block = mm.phys.block_of(root).expect("there was no other memory").0;
    let before = mm.mmu.flushes();
    let (token, report) = empty_block(&mm, &cpu, block);
    assert!(report.moved_kernel >= 17, "{report:?}");
    assert_ne!(mm.space(id).unwrap().root(), root);
    // Pages; the root; all other tables.
    assert_eq!(mm.mmu.flushes() - before, 3);
    remove(&mut mm, token);
    check_sparse(&mm, &cpu, id, va, 16);
    give_back(&mm, &cpu, &others);
    mm.destroy_space(&cpu, id).unwrap();
    mm.validate().unwrap();
}

#[test]
fn a_table_stays_while_an_entry_of_its_space_is_away_and_goes_in_the_next_pass() {
    machine!(mm, cpu, 1024, 2);
    let free = mm.phys.memory_stats().free_pages;
    let others = exhaust(&mm, &cpu);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = sparse(&mm, &cpu, id, 8);
    let block = mm.phys.block_of(mm.space(id).unwrap().root()).unwrap();
    let mut token = mm.phys.isolate(block).unwrap();
    // Somebody else has begun with pages of the same program.
    let first = mm.begin_migration(&cpu, &mut token, 40);
    assert!(!first.is_empty());
    token.rewind();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!(report.moved_kernel, 0);
    assert!(report.refused.iter().all(|refusal| refusal.reason.is_busy()));
    let is_table = |kind| kind == PageKind::Kernel(KernelUse::PageTable);
    let mut tables = report.refused.iter().filter(|refusal| is_table(refusal.kind));
    let away = RefusalReason::Busy(BusyWith::AddressSpace);
    assert!(tables.clone().count() >= 8 && tables.all(|refusal| refusal.reason == away));
    mm.validate().unwrap();
    mm.abort_migration(&cpu, first);
    token.rewind();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert!(
        report.refused.is_empty() && report.moved_kernel >= 8,
        "{report:?}"
    );
    let block = token.block();
    remove(&mut mm, token);
    check_sparse(&mm, &cpu, id, va, 8);
    give_back(&mm, &cpu, &others);
    mm.destroy_space(&cpu, id).unwrap();
    crate::tests::machine::plug_block(&mut mm, block.0);
    mm.validate().unwrap();
    let left = mm.phys.memory_stats().free_pages;
    assert_eq!(left, free, "frames for copies that were not made");
}

#[test]
fn without_a_frame_for_the_copy_a_table_stays_in_use() {
    for pass in 0..30 {
        machine!(mm, cpu, 1024, 2);
        let others = exhaust(&mm, &cpu);
        let id = mm.create_space(&cpu, &[]).unwrap();
        let va = sparse(&mm, &cpu, id, 4);
        let block = mm.phys.block_of(mm.space(id).unwrap().root()).unwrap();
        let mut token = mm.phys.isolate(block).unwrap();
        mm.phys.injected.lock().fail_after(pass, Then::Refuse);
        let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
        let reached = !mm.phys.injected.lock().clear();
        assert_eq!(report.end == BatchEnd::NoMemory, reached, "{report:?}");
        mm.validate().unwrap();
        mm.phys.undo(token);
        check_sparse(&mm, &cpu, id, va, 4);
        mm.destroy_space(&cpu, id).unwrap();
        give_back(&mm, &cpu, &others);
        mm.validate().unwrap();
    }
}

#[test]
fn the_kernels_own_is_named_by_what_it_is_used_for() {
    machine!(mm, cpu, 1024, 1);
    let name = |used_for| {
        let reason = RefusalReason::Unmovable(used_for);
        let (pfn, order, kind) = (Pfn::new(7), Order::ZERO, PageKind::Kernel(used_for));
        let refusal = crate::migrate::Refusal {
            pfn,
            order,
            kind,
            reason,
        };
        std::format!("{refusal}")
    };
    assert!(name(KernelUse::Slab).ends_with("is a slab of kernel objects, which cannot move"));
    assert!(name(KernelUse::Other).ends_with("is the kernel's own, which cannot move"));
    let block = mm.phys.hotplug_region().block_range(BlockIndex(0)).unwrap();
    let (token, _) = empty_block(&mm, &cpu, 0);
    mm.phys.offline(token).unwrap();
    mm.phys.online(BlockIndex(0), crate::ZoneKind::Normal).unwrap();
    let others = exhaust(&mm, &cpu);
    let inside: Vec<Pfn> = others
        .iter()
        .copied()
        .filter(|pfn| block.contains(*pfn))
        .collect();
    let (first, second) = (inside[0], inside[1]);
    mm.phys.set_kernel_use(first, KernelUse::Vmalloc { page: 9 });
    mm.phys.set_kernel_use(second, KernelUse::Dma { driver: 2 });
    mm.validate().unwrap();
    let (token, report) = empty_block(&mm, &cpu, 0);
    let reason_of = |pfn: Pfn| {
        report
            .refused
            .iter()
            .find(|refusal| refusal.pfn == pfn)
            .unwrap()
            .reason
    };
    assert_eq!(
        reason_of(first),
        RefusalReason::Unmovable(KernelUse::Vmalloc { page: 9 })
    );
    assert_eq!(
        reason_of(second),
        RefusalReason::Unmovable(KernelUse::Dma { driver: 2 })
    );
    assert_eq!(reason_of(inside[2]), RefusalReason::Unmovable(KernelUse::Other));
    mm.phys.undo(token);
    for pfn in [first, second] {
        mm.phys.set_kernel_use(pfn, KernelUse::Other);
    }
    give_back(&mm, &cpu, &others);
    mm.validate().unwrap();
}

#[test]
fn what_stays_for_good_comes_from_boot_memory_first_and_what_can_move_from_the_kernels_blocks() {
    // Blocks are above what the machine has at boot, as they are where that is less than 3 GiB.
    let mut topology = Topology::one_node(1);
    let limits = ZoneLimits {
        dma32: Pfn::new(2048),
        ..ZoneLimits::NORMAL
    };
    topology.set_limits(limits).unwrap();
    let pages = descriptors(1024);
    let memory = small_memory_of((topology, NodeId::ZERO), &pages, 1024, 1);
    let (cpu, mm) = (one_cpu(), machine_of(&memory));
    let (token, _) = empty_block(&mm, &cpu, 0);
    mm.phys.offline(token).unwrap();
    mm.phys.online(BlockIndex(0), crate::ZoneKind::Normal).unwrap();
    for (gfp, expected) in [
        (Gfp::KERNEL, None),
        (Gfp::KERNEL.with(Gfp::RECLAIMABLE), None),
        (Gfp::ATOMIC, None),
        (Gfp::HIGHUSER, None),
        (Gfp::KERNEL_RELOCATABLE, Some(BlockIndex(0))),
        (Gfp::USER, Some(BlockIndex(0))),
    ] {
        for order in [Order::ZERO, Order::new(3).unwrap()] {
            let pfn = mm.phys.alloc_pages(&cpu, gfp, order).unwrap();
            assert_eq!(mm.phys.block_of(pfn), expected, "{gfp:?} of order {order:?}");
            mm.phys.free_pages(&cpu, pfn).unwrap();
        }
    }
    // Better there than nowhere.
    let all = exhaust(&mm, &cpu);
    let on_block = all.iter().filter(|&&pfn| mm.phys.block_of(pfn).is_some());
    assert!(on_block.count() > 900);
    assert!(all.iter().take(1000).all(|&pfn| mm.phys.block_of(pfn).is_none()));
    give_back(&mm, &cpu, &all);
    mm.validate().unwrap();
}

#[test]
fn what_stays_for_good_is_rather_far_away_than_on_a_block_of_its_own_node() {
    let node = NodeId::new(1).unwrap();
    let mut topology = Topology::new(1, 2).unwrap();
    topology.set_cpu_node(CpuId::ZERO, node).unwrap();
    let pages = descriptors(1024);
    let memory = small_memory_of((topology, node), &pages, 1024, 1);
    let (cpu, mm) = (one_cpu(), machine_of(&memory));
    let (token, _) = empty_block(&mm, &cpu, 0);
    mm.phys.offline(token).unwrap();
    mm.phys.online(BlockIndex(0), crate::ZoneKind::Normal).unwrap();
    let block_of = |gfp| {
        let taken = mm.phys.alloc_pages(&cpu, gfp, Order::ZERO);
        taken.ok().map(|pfn| {
            let block = mm.phys.block_of(pfn);
            mm.phys.free_pages(&cpu, pfn).unwrap();
            block
        })
    };
    assert_eq!(block_of(Gfp::KERNEL.with(Gfp::THIS_NODE)), None);
    assert_eq!(block_of(Gfp::KERNEL), Some(None));
    let movable = Gfp::KERNEL_RELOCATABLE.with(Gfp::THIS_NODE);
    assert_eq!(block_of(movable), Some(Some(BlockIndex(0))));
    // So a slab for this CPU comes from boot memory, of the other node.
    let mut frames = HostFrames::new();
    frames.plug(range(0, 2048));
    let slabs = SlabAllocator::new(frames, &memory, Debugging::Off);
    let object = slabs.kmalloc(&cpu, 100, Gfp::KERNEL).unwrap();
    assert_eq!(mm.phys.block_of(object.pfn().unwrap()), None);
    slabs.kfree(&cpu, object).unwrap();
}
