//! Reserved huge pages: promised ahead of time, shared over a fork, moved whole.

use guest_sync::Cpu;

use crate::migrate::BatchEnd;
use crate::mm::{FaultError, FaultOutcome, MmapError, Reserve};
use crate::phys::HugePoolStat;
use crate::tests::machine::{MIB, RW, TestMm, anonymous, empty_block, load, machine, remove, store};
use crate::{Access, Backing, BlockIndex, Gfp, HugeAdvice, MapRequest, Order, Place, SpaceId};

fn reserved(chunks: u64) -> MapRequest {
    MapRequest {
        len: chunks * 2 * MIB,
        place: Place::Anywhere,
        prot: RW,
        backing: Backing::HugeTlb(Reserve::Held),
    }
}

fn stat(total: u64, free: u64, reserved: u64) -> HugePoolStat {
    HugePoolStat {
        total,
        free,
        reserved,
    }
}

/// Takes every frame that a program could get.
fn exhaust(mm: &TestMm<'_>, cpu: &Cpu) -> SpaceId {
    let id = mm.create_space(cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(64 * MIB, HugeAdvice::NoHuge)).unwrap();
    let mut pages = 0;
    while store(mm, cpu, id, va + pages * 4096, pages).is_ok() {
        pages += 1;
    }
    id
}

#[test]
fn what_is_mapped_is_promised_and_its_faults_find_a_page_however_full_memory_is() {
    machine!(mm, cpu, 512, 8);
    assert_eq!(mm.set_nr_huge_pages(&cpu, 4), 4);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &reserved(3)).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(4, 4, 3));
    let refused = mm.mmap(id, &reserved(2));
    assert_eq!(refused, Err(MmapError::NoHugePages { wanted: 2 }));
    // Memory is full, and the pool does not get smaller than what it has promised.
    let other = exhaust(&mm, &cpu);
    assert_eq!(mm.set_nr_huge_pages(&cpu, 0), 3);
    for page in 0..3 * 512 {
        store(&mm, &cpu, id, va + page * 4096, !page).unwrap();
    }
    mm.validate().unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(3, 0, 0));
    for page in 0..3 * 512 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(!page));
    }
    // Half of it goes: one that was touched; the rest stays.
    mm.munmap(&cpu, id, va, 2 * MIB).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(3, 1, 0));
    assert_eq!(load(&mm, &cpu, id, va + 2 * MIB), Ok(!512));
    mm.destroy_space(&cpu, id).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(3, 3, 0));
    assert_eq!(mm.set_nr_huge_pages(&cpu, 0), 0);
    mm.destroy_space(&cpu, other).unwrap();
    mm.validate().unwrap();
}

#[test]
fn what_was_promised_and_not_used_can_be_promised_again() {
    machine!(mm, cpu, 512, 8);
    mm.set_nr_huge_pages(&cpu, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &reserved(2)).unwrap();
    store(&mm, &cpu, id, va + 2 * MIB, 5).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(2, 1, 1));
    mm.munmap(&cpu, id, va, 2 * MIB).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(2, 1, 0));
    mm.mmap(id, &reserved(1)).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(2, 1, 1));
    mm.destroy_space(&cpu, id).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(2, 2, 0));
    mm.validate().unwrap();
}

#[test]
fn a_fork_shares_them_and_who_cannot_copy_is_refused_while_the_other_keeps_its_own() {
    machine!(mm, cpu, 512, 8);
    mm.set_nr_huge_pages(&cpu, 3);
    let parent = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(parent, &reserved(2)).unwrap();
    store(&mm, &cpu, parent, va, 1).unwrap();
    let child = mm.fork(&cpu, parent).unwrap();
    mm.validate().unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(3, 2, 1), "shared");
    // One page is neither in use nor promised to the parent: the child's copy.
    store(&mm, &cpu, child, va, 2).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(3, 1, 1));
    assert_eq!(
        (load(&mm, &cpu, parent, va), load(&mm, &cpu, child, va)),
        (Ok(1), Ok(2))
    );
    // What the parent has reserved, the child cannot have.
    let second = va + 2 * MIB;
    let refused = mm.fault(&cpu, child, second, Access::Read);
    assert_eq!(refused, Err(FaultError::NoHugePage { va: second }));
    assert_eq!(
        mm.fault(&cpu, parent, second, Access::Write),
        Ok(FaultOutcome::MappedHuge)
    );
    mm.validate().unwrap();
    // No page is left for a copy.
    let grandchild = mm.fork(&cpu, child).unwrap();
    let refused = mm.fault(&cpu, grandchild, va, Access::Write);
    assert_eq!(refused, Err(FaultError::NoHugePage { va }));
    assert_eq!(load(&mm, &cpu, grandchild, va), Ok(2));
    for id in [parent, child, grandchild] {
        mm.destroy_space(&cpu, id).unwrap();
    }
    assert_eq!(mm.phys.huge_pool(), stat(3, 3, 0));
    mm.validate().unwrap();
}

#[test]
fn they_leave_a_block_whole_in_use_or_not_and_the_pool_keeps_its_size() {
    machine!(mm, cpu, 1024, 6);
    assert_eq!(mm.set_nr_huge_pages(&cpu, 4), 4);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &reserved(3)).unwrap();
    for page in 0..1024 {
        store(&mm, &cpu, id, va + page * 4096, page).unwrap();
    }
    let child = mm.fork(&cpu, id).unwrap();
    let mut moved = 0;
    for block in 0..6 {
        if mm.phys.block_usage(BlockIndex(block)).unwrap().used_pages == 0 {
            continue;
        }
        let (token, report) = empty_block(&mm, &cpu, block);
        assert_eq!(
            (report.end, report.refused.len()),
            (BatchEnd::PassDone, 0),
            "{report:?}"
        );
        moved += report.moved_huge;
        remove(&mut mm, token);
        mm.validate().unwrap();
        if moved >= 2 {
            break;
        }
    }
    assert!(moved >= 2, "{moved} moved");
    assert_eq!(mm.phys.stats().thp_migration_split, 0);
    assert_eq!(mm.phys.huge_pool(), stat(4, 2, 1));
    for page in 0..1024 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page));
        assert_eq!(load(&mm, &cpu, child, va + page * 4096), Ok(page));
    }
    assert_eq!(
        mm.fault(&cpu, id, va + 4 * MIB, Access::Write),
        Ok(FaultOutcome::MappedHuge)
    );
    mm.validate().unwrap();
}

#[test]
fn one_is_never_split_nor_reclaimed() {
    machine!(mm, cpu, 512, 8);
    mm.set_nr_huge_pages(&cpu, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &reserved(2)).unwrap();
    store(&mm, &cpu, id, va, 7).unwrap();
    for (start, len) in [(va, 4096), (va + 4096, 2 * MIB - 4096), (va + MIB, 2 * MIB)] {
        let refused = mm.munmap(&cpu, id, start, len);
        assert!(matches!(refused, Err(MmapError::BadRange { .. })), "{refused:?}");
    }
    for zone in mm.phys.populated_zones() {
        assert_eq!(mm.shrink_zone(&cpu, zone, 64).freed, 0);
    }
    // No pageblock is free elsewhere: it stays, rather than going in pieces.
    exhaust(&mm, &cpu);
    let block = (0..8)
        .find(|&block| {
            let range = mm.phys.hotplug_region().block_range(BlockIndex(block)).unwrap();
            mm.phys
                .page(range.start())
                .unwrap()
                .flags()
                .has(crate::PageFlags::ANON.with(crate::PageFlags::HUGETLB))
        })
        .unwrap();
    let (token, report) = empty_block(&mm, &cpu, block);
    assert_eq!((report.end, report.moved_small), (BatchEnd::NoMemory, 0));
    mm.phys.undo(token);
    assert_eq!(mm.phys.stats().thp_split_page, 0);
    assert_eq!(load(&mm, &cpu, id, va), Ok(7));
    mm.validate().unwrap();
}

#[test]
fn the_pool_grows_from_scattered_memory_by_compaction() {
    machine!(mm, cpu, 512, 8);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(64 * MIB, HugeAdvice::NoHuge)).unwrap();
    let mut pages = 0;
    while store(&mm, &cpu, id, va + pages * 4096, pages).is_ok() {
        pages += 1;
    }
    for page in (0..pages).filter(|page| page % 4 > 1) {
        mm.munmap(&cpu, id, va + page * 4096, 4096).unwrap();
    }
    mm.phys.drain_all();
    assert!(mm.phys.alloc_pages(&cpu, Gfp::SPARE, Order::PAGEBLOCK).is_err());
    assert_eq!(mm.set_nr_huge_pages(&cpu, 2), 2);
    mm.validate().unwrap();
    for page in (0..pages).filter(|page| page % 4 < 2) {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page));
    }
}

#[test]
fn one_that_nobody_has_is_replaced_by_another_when_its_block_leaves() {
    machine!(mm, cpu, 512, 4);
    mm.set_nr_huge_pages(&cpu, 1);
    let is_of_pool = |block: u32| {
        let range = mm.phys.hotplug_region().block_range(BlockIndex(block)).unwrap();
        let page = mm.phys.page(range.start());
        page.is_some_and(|page| page.flags().has(crate::PageFlags::HUGETLB))
    };
    let block = (0..4).find(|&block| is_of_pool(block)).unwrap();
    let (token, report) = empty_block(&mm, &cpu, block);
    assert_eq!(
        (report.end, report.refused.len()),
        (BatchEnd::PassDone, 0),
        "{report:?}"
    );
    mm.validate().unwrap();
    mm.phys.offline(token).unwrap();
    assert_eq!(mm.phys.huge_pool(), stat(1, 1, 0));
    mm.validate().unwrap();
}
