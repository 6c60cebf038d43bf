//! Fork, copy-on-write, the zero page, stacks, `brk` and `madvise`; and pages of several programs on the move.

use std::vec::Vec;

use crate::blocks::BlockIndex;
use crate::migrate::{BusyWith, PageKind, RefusalReason};
use crate::mm::{Advice, BrkError, FaultError, FaultOutcome, ForkError, MmapError};
use crate::pagetable::{PageFault, translate};
use crate::tests::inject::Then;
use crate::tests::machine::{MIB, RW, TestMm, anonymous, empty_block, load, machine, remove, store};
use crate::tests::phys_model::order;
use crate::{Access, Backing, Frames, Gfp, HugeAdvice, MapRequest, Order, Pfn, Place, Prot, SpaceId};

/// A frame that is reserved on the test machine.
const ZERO_PAGE: Pfn = Pfn::new(300);

fn frame_of(mm: &TestMm<'_>, id: SpaceId, va: u64) -> Pfn {
    let root = mm.space(id).unwrap().root();
    let found = translate(&mm.frames, root, va, Access::Read).unwrap();
    Pfn::containing(found.gpa).unwrap()
}

/// A program with so many small pages, page n of which holds n.
pub(super) fn program(mm: &TestMm<'_>, cpu: &guest_sync::Cpu, pages: u64) -> (SpaceId, u64) {
    let id = mm.create_space(cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(pages * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..pages {
        store(mm, cpu, id, va + page * 4096, page).unwrap();
    }
    (id, va)
}

#[test]
fn a_fork_shares_pages_until_one_of_the_two_writes() {
    machine!(mm, cpu, 512, 2);
    let (parent, va) = program(&mm, &cpu, 16);
    let used = mm.phys.memory_stats().free_pages;
    let child = mm.fork(&cpu, parent).unwrap();
    mm.validate().unwrap();
    assert_eq!(
        used - mm.phys.memory_stats().free_pages,
        4,
        "four tables and no page"
    );
    let shared = frame_of(&mm, parent, va);
    assert_eq!(frame_of(&mm, child, va), shared);
    let page = mm.phys.page(shared).unwrap();
    assert_eq!((page.mapcount(), page.count()), (2, 2));

    assert_eq!(mm.cpu_store(parent, va, 100), Err(PageFault::Protection));
    assert_eq!(
        mm.fault(&cpu, parent, va, Access::Write),
        Ok(FaultOutcome::Copied)
    );
    mm.cpu_store(parent, va, 100).unwrap();
    assert_eq!(
        load(&mm, &cpu, child, va),
        Ok(0),
        "the child has what was there at the fork"
    );
    assert_ne!(frame_of(&mm, parent, va), shared);
    assert_eq!((page.mapcount(), page.count()), (1, 1));
    mm.validate().unwrap();

    assert_eq!(mm.fault(&cpu, child, va, Access::Write), Ok(FaultOutcome::Reused));
    assert_eq!(frame_of(&mm, child, va), shared, "nobody else has it any more");
    store(&mm, &cpu, child, va, 200).unwrap();
    assert_eq!(load(&mm, &cpu, parent, va), Ok(100));
    assert_eq!(mm.phys.stats().pgcow, 1);
    mm.validate().unwrap();
}

#[test]
fn what_a_fork_shares_lives_until_the_last_of_a_family_ends() {
    machine!(mm, cpu, 512, 2);
    let all_free = mm.phys.memory_stats().free_pages;
    let (first, va) = program(&mm, &cpu, 16);
    let mut family = std::vec![first];
    for _ in 0..4 {
        let parent = family[family.len() / 2];
        family.push(mm.fork(&cpu, parent).unwrap());
    }
    let page = mm.phys.page(frame_of(&mm, first, va)).unwrap();
    assert_eq!((page.mapcount(), page.count()), (5, 5));
    for (left, id) in (0..5).rev().zip(family) {
        assert_eq!(load(&mm, &cpu, id, va + 15 * 4096), Ok(15));
        mm.destroy_space(&cpu, id).unwrap();
        assert_eq!(page.mapcount(), left);
        mm.validate().unwrap();
    }
    assert_eq!(mm.phys.memory_stats().free_pages, all_free);
}

#[test]
fn a_load_gets_the_zero_page_and_a_store_a_page() {
    machine!(mm, cpu, 512, 2);
    mm.set_zero_page(ZERO_PAGE);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(40 * 4096, HugeAdvice::NoHuge)).unwrap();
    let outcome = mm.fault(&cpu, id, va + 4096, Access::Read);
    assert_eq!(outcome, Ok(FaultOutcome::MappedZero { nr_pages: 16 }));
    assert_eq!(frame_of(&mm, id, va), ZERO_PAGE);
    assert_eq!(
        (mm.space(id).unwrap().rss_pages(), mm.cpu_load(id, va)),
        (0, Ok(0))
    );
    assert_eq!(mm.cpu_store(id, va, 1), Err(PageFault::Protection));
    assert_eq!(mm.fault(&cpu, id, va, Access::Write), Ok(FaultOutcome::Copied));
    mm.cpu_store(id, va, 1).unwrap();
    assert_eq!(mm.cpu_load(id, va + 4096), Ok(0), "only that page");
    assert_eq!(mm.space(id).unwrap().rss_pages(), 1);
    mm.validate().unwrap();
    mm.mprotect(&cpu, id, va, 40 * 4096, Prot::READ).unwrap();
    mm.mprotect(&cpu, id, va, 40 * 4096, RW).unwrap();
    mm.validate().unwrap();
    let child = mm.fork(&cpu, id).unwrap();
    assert_eq!(frame_of(&mm, child, va + 4096), ZERO_PAGE);
    store(&mm, &cpu, child, va + 4096, 2).unwrap();
    mm.write_user(&cpu, id, va + 8192, &[3]).unwrap();
    assert!((0..512).all(|word| mm.frames.read(ZERO_PAGE, word) == 0));
    assert_eq!(load(&mm, &cpu, id, va + 4096), Ok(0));
    mm.validate().unwrap();
}

#[test]
fn a_right_to_write_that_comes_back_does_not_reach_what_others_see() {
    machine!(mm, cpu, 512, 2);
    let (parent, va) = program(&mm, &cpu, 4);
    let child = mm.fork(&cpu, parent).unwrap();
    mm.mprotect(&cpu, child, va, 4 * 4096, Prot::READ).unwrap();
    mm.mprotect(&cpu, child, va, 4 * 4096, RW).unwrap();
    mm.validate().unwrap();
    store(&mm, &cpu, child, va, 77).unwrap();
    assert_eq!(
        (load(&mm, &cpu, parent, va), load(&mm, &cpu, child, va)),
        (Ok(0), Ok(77))
    );
    mm.validate().unwrap();
}

#[test]
fn a_shared_huge_page_is_copied_whole_or_else_split_for_all() {
    for pageblocks_to_spare in [true, false] {
        machine!(mm, cpu, 1024, 2);
        let parent = mm.create_space(&cpu, &[]).unwrap();
        let va = mm.mmap(parent, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
        for page in 0..512 {
            store(&mm, &cpu, parent, va + page * 4096, page).unwrap();
        }
        let child = mm.fork(&cpu, parent).unwrap();
        let grandchild = mm.fork(&cpu, child).unwrap();
        assert_eq!(mm.phys.page(frame_of(&mm, parent, va)).unwrap().mapcount(), 3);
        mm.validate().unwrap();
        if !pageblocks_to_spare {
            while mm.phys.alloc_pages(&cpu, Gfp::USER, order(9)).is_ok() {}
            while mm.phys.alloc_pages(&cpu, Gfp::ATOMIC, order(9)).is_ok() {}
        }
        store(&mm, &cpu, child, va + 3 * 4096, 1000).unwrap();
        mm.validate().unwrap();
        let stats = mm.phys.stats();
        assert_eq!(stats.thp_split_page, u64::from(!pageblocks_to_spare));
        assert_eq!(
            stats.nr_anon_transparent_hugepages,
            2 * u64::from(pageblocks_to_spare)
        );
        for page in 0..512 {
            let own = if page == 3 { 1000 } else { page };
            assert_eq!(load(&mm, &cpu, child, va + page * 4096), Ok(own));
            assert_eq!(load(&mm, &cpu, parent, va + page * 4096), Ok(page));
            assert_eq!(load(&mm, &cpu, grandchild, va + page * 4096), Ok(page));
        }
        mm.munmap(&cpu, parent, va + 4096, 4096).unwrap();
        assert_eq!(load(&mm, &cpu, grandchild, va + 4096), Ok(1));
        mm.validate().unwrap();
    }
}

#[test]
fn a_fork_that_finds_no_memory_leaves_everything_as_it_was() {
    for pass in 0..40 {
        machine!(mm, cpu, 1024, 2);
        let (parent, va) = program(&mm, &cpu, 40);
        let huge = mm.mmap(parent, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
        store(&mm, &cpu, parent, huge, 8).unwrap();
        let pins = [
            mm.pin_user(&cpu, parent, va, "ring"),
            mm.pin_user(&cpu, parent, huge, "disk"),
        ];
        let free = mm.phys.memory_stats().free_pages;
        mm.phys.injected.lock().fail_after(pass, Then::Serve);
        let outcome = mm.fork(&cpu, parent);
        let reached = !mm.phys.injected.lock().clear();
        mm.validate().unwrap();
        if reached {
            assert_eq!(outcome, Err(ForkError::NoMemory));
            assert_eq!(mm.phys.memory_stats().free_pages, free, "request {pass} leaked");
            assert_eq!(mm.space_ids().count(), 1);
        }
        store(&mm, &cpu, parent, va + 4096, 9).unwrap();
        pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin.unwrap()));
        if !reached {
            assert!(pass >= 6, "tables, and copies of what is pinned");
            return;
        }
    }
    panic!("a fork takes fewer requests than that");
}

#[test]
fn a_pinned_page_stays_the_parents_and_the_child_gets_a_copy() {
    machine!(mm, cpu, 512, 2);
    let (parent, va) = program(&mm, &cpu, 4);
    let pin = mm.pin_user(&cpu, parent, va, "direct I/O").unwrap();
    let child = mm.fork(&cpu, parent).unwrap();
    mm.validate().unwrap();
    mm.frames.write(pin.pfn(), 0, 555);
    store(&mm, &cpu, parent, va + 8, 1).unwrap();
    assert_eq!(
        load(&mm, &cpu, parent, va),
        Ok(555),
        "the device and the parent see the same page"
    );
    assert_eq!(load(&mm, &cpu, child, va), Ok(0));
    // One that is shared becomes the program's own when it is pinned.
    let shared = mm.pin_user(&cpu, child, va + 4096, "direct I/O").unwrap();
    mm.frames.write(shared.pfn(), 0, 556);
    assert_eq!(load(&mm, &cpu, child, va + 4096), Ok(556));
    assert_eq!(load(&mm, &cpu, parent, va + 4096), Ok(1));
    mm.validate().unwrap();
    mm.phys.unpin(&cpu, pin);
    mm.phys.unpin(&cpu, shared);
    mm.validate().unwrap();
}

#[test]
fn a_page_of_a_whole_family_moves_once_and_all_find_it() {
    for advice in [HugeAdvice::NoHuge, HugeAdvice::Huge] {
        machine!(mm, cpu, 1024, 3);
        let first = mm.create_space(&cpu, &[]).unwrap();
        let va = mm.mmap(first, &anonymous(2 * MIB, advice)).unwrap();
        for page in 0..512 {
            store(&mm, &cpu, first, va + page * 4096, page).unwrap();
        }
        let second = mm.fork(&cpu, first).unwrap();
        let third = mm.fork(&cpu, second).unwrap();
        let shared = frame_of(&mm, third, va);
        let block = mm.phys.block_of(shared).unwrap();
        let (token, report) = empty_block(&mm, &cpu, block.0);
        assert_eq!(report.refused, []);
        assert_eq!(
            (report.moved_huge, report.moved_small),
            if advice == HugeAdvice::Huge {
                (1, 0)
            } else {
                (0, 512)
            }
        );
        mm.validate().unwrap();
        remove(&mut mm, token);
        let moved = frame_of(&mm, first, va);
        assert_ne!(moved, shared);
        assert_eq!(
            (frame_of(&mm, second, va), frame_of(&mm, third, va)),
            (moved, moved)
        );
        store(&mm, &cpu, second, va, 99).unwrap();
        assert_eq!(
            (load(&mm, &cpu, first, va), load(&mm, &cpu, third, va)),
            (Ok(0), Ok(0))
        );
        mm.validate().unwrap();
    }
}

#[test]
fn a_shared_huge_page_without_a_pageblock_elsewhere_is_split_for_all_and_moves() {
    machine!(mm, cpu, 512, 4);
    let parent = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(parent, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mm, &cpu, parent, va + page * 4096, page).unwrap();
    }
    let child = mm.fork(&cpu, parent).unwrap();
    let victim = mm.phys.block_of(frame_of(&mm, child, va)).unwrap();
    mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO).unwrap();
    let halves: Vec<Pfn> = (0..4)
        .map(|_| mm.phys.alloc_pages(&cpu, Gfp::USER, order(8)).unwrap())
        .collect();
    mm.phys.free_pages(&cpu, halves[0]).unwrap();
    mm.phys.free_pages(&cpu, halves[2]).unwrap();
    while mm.phys.alloc_pages(&cpu, Gfp::ATOMIC, order(9)).is_ok() {}
    let (token, report) = empty_block(&mm, &cpu, victim.0);
    assert_eq!((report.moved_huge, report.moved_small), (0, 512), "{report:?}");
    remove(&mut mm, token);
    mm.validate().unwrap();
    for page in 0..512 {
        assert_eq!(load(&mm, &cpu, parent, va + page * 4096), Ok(page));
        assert_eq!(load(&mm, &cpu, child, va + page * 4096), Ok(page));
    }
}

#[test]
fn nobody_forks_while_a_page_of_his_is_on_the_move() {
    machine!(mm, cpu, 512, 2);
    let (parent, va) = program(&mm, &cpu, 16);
    let child = mm.fork(&cpu, parent).unwrap();
    let block = mm.phys.block_of(frame_of(&mm, parent, va)).unwrap();
    let mut token = mm.phys.isolate(BlockIndex(block.0)).unwrap();
    let batch = mm.begin_migration(&cpu, &mut token, 5);
    mm.validate().unwrap();
    for id in [parent, child] {
        assert_eq!(mm.fork(&cpu, id), Err(ForkError::Migrating(id)));
        assert_eq!(
            mm.madvise(&cpu, id, va, 4096, Advice::DontNeed),
            Err(MmapError::Migrating(id))
        );
        assert!(matches!(
            mm.fault(&cpu, id, va, Access::Write),
            Ok(FaultOutcome::Locked(_))
        ));
    }
    mm.abort_migration(&cpu, batch);
    mm.validate().unwrap();
    assert!(mm.fork(&cpu, child).is_ok());
    mm.phys.undo(token);
}

#[test]
fn a_page_that_somebody_holds_a_reference_to_stays() {
    machine!(mm, cpu, 512, 2);
    let (id, va) = program(&mm, &cpu, 16);
    let pfn = frame_of(&mm, id, va);
    let mut token = mm.phys.isolate(mm.phys.block_of(pfn).unwrap()).unwrap();
    assert!(mm.phys.page(pfn).unwrap().try_reference());
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    let refused: Vec<_> = report
        .refused
        .iter()
        .map(|refusal| (refusal.pfn, refusal.kind, refusal.reason))
        .collect();
    let held = RefusalReason::Busy(BusyWith::LookUp);
    assert_eq!(refused, [(pfn, PageKind::Anonymous, held)]);
    assert_eq!(mm.awaited(pfn), report.refused[0]);
    let text = std::format!("{}", report.refused[0]);
    let expected = "(order 0, anonymous) was looked up by somebody who still has it";
    assert!(text.ends_with(expected), "{text}");
    mm.phys.put_page(&cpu, pfn);
    mm.validate().unwrap();
    token.rewind();
    assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_small, 1);
    assert_eq!(load(&mm, &cpu, id, va), Ok(0));
    mm.phys.undo(token);
}

#[test]
fn a_stack_grows_to_its_limit_and_keeps_its_distance() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let top = 64 * MIB;
    let stack = MapRequest {
        len: 4096,
        place: Place::Fixed(top - 4096),
        prot: RW,
        backing: Backing::Stack {
            most_bytes: 64 * 4096,
        },
    };
    mm.mmap(id, &stack).unwrap();
    store(&mm, &cpu, id, top - 10 * 4096, 1).unwrap();
    store(&mm, &cpu, id, top - 64 * 4096, 2).unwrap();
    let beyond = top - 65 * 4096;
    assert_eq!(
        store(&mm, &cpu, id, beyond, 3),
        Err(FaultError::NoArea { va: beyond })
    );
    assert_eq!(
        mm.space(id).unwrap().vmas().next().unwrap().range.start(),
        top - 64 * 4096
    );
    mm.validate().unwrap();
    let below = MapRequest {
        place: Place::Fixed(top + 8 * MIB),
        ..anonymous(4096, HugeAdvice::NoHuge)
    };
    mm.mmap(id, &below).unwrap();
    let near = MapRequest {
        place: Place::Fixed(top + 10 * MIB),
        backing: Backing::Stack { most_bytes: 16 * MIB },
        ..stack
    };
    mm.mmap(id, &near).unwrap();
    store(&mm, &cpu, id, top + 9 * MIB + 4096, 4).unwrap();
    assert!(
        store(&mm, &cpu, id, top + 9 * MIB, 4).is_err(),
        "a mebibyte stays free below"
    );
    mm.validate().unwrap();
    let child = mm.fork(&cpu, id).unwrap();
    store(&mm, &cpu, child, top - 64 * 4096, 5).unwrap();
    assert_eq!(load(&mm, &cpu, id, top - 64 * 4096), Ok(2));
    mm.validate().unwrap();
}

#[test]
fn the_end_of_the_heap_moves_both_ways_until_something_is_there() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    assert!(
        matches!(mm.brk(&cpu, id, 4096), Err(BrkError::OutOfRange { .. })),
        "no heap was set"
    );
    mm.set_heap(id, 0x50_0010);
    assert_eq!(mm.brk(&cpu, id, 0), Ok(0x50_0010));
    assert_eq!(mm.brk(&cpu, id, 0x50_9123), Ok(0x50_9123));
    store(&mm, &cpu, id, 0x50_9000, 7).unwrap();
    assert!(store(&mm, &cpu, id, 0x50_a000, 7).is_err());
    assert_eq!(mm.brk(&cpu, id, 0x50_4001), Ok(0x50_4001));
    assert!(store(&mm, &cpu, id, 0x50_5000, 7).is_err());
    mm.validate().unwrap();
    assert_eq!(mm.brk(&cpu, id, 0x50_9123), Ok(0x50_9123));
    assert_eq!(load(&mm, &cpu, id, 0x50_9000), Ok(0), "it came back as zeroes");
    let above = MapRequest {
        place: Place::Fixed(0x51_0000),
        ..anonymous(4096, HugeAdvice::NoHuge)
    };
    mm.mmap(id, &above).unwrap();
    assert!(matches!(mm.brk(&cpu, id, 0x51_0001), Err(BrkError::Occupied(_))));
    assert_eq!(mm.brk(&cpu, id, 0x51_0000), Ok(0x51_0000));
    assert!(mm.brk(&cpu, id, 0x50_000f).is_err());
    mm.validate().unwrap();
}

#[test]
fn what_is_not_needed_any_more_reads_as_zero_and_others_keep_it() {
    machine!(mm, cpu, 512, 2);
    let (id, va) = program(&mm, &cpu, 16);
    let child = mm.fork(&cpu, id).unwrap();
    mm.madvise(&cpu, id, va + 4096, 3 * 4096, Advice::DontNeed)
        .unwrap();
    mm.validate().unwrap();
    assert_eq!(load(&mm, &cpu, id, va + 3 * 4096), Ok(0));
    assert_eq!(load(&mm, &cpu, id, va + 4 * 4096), Ok(4));
    assert_eq!(load(&mm, &cpu, child, va + 3 * 4096), Ok(3));
    assert_eq!(mm.space(id).unwrap().vmas().count(), 1);
    mm.madvise(&cpu, id, va, 4096, Advice::Huge(HugeAdvice::Huge))
        .unwrap();
    assert_eq!(mm.space(id).unwrap().vmas().count(), 2);
    mm.madvise(&cpu, id, va, 4096, Advice::Huge(HugeAdvice::NoHuge))
        .unwrap();
    assert_eq!(mm.space(id).unwrap().vmas().count(), 1);
    mm.validate().unwrap();
}
