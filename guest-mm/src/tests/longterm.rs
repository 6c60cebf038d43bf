//! Pages that are pinned for long: out of removable memory first, and a clear answer where that cannot be.

use std::vec::Vec;

use guest_sync::Cpu;

use crate::frames::Frames;
use crate::mm::{CopyError, LongtermError, PageWait};
use crate::page::PageFlags;
use crate::pagetable::{VaRange, translate};
use crate::phys::Pin;
use crate::tests::inject::Then;
use crate::tests::machine::{MIB, TestMm, anonymous, empty_block, load, machine, remove, store};
use crate::tests::phys_model::order;
use crate::{Access, BlockIndex, Gfp, HugeAdvice, MapRequest, Order, Pfn, Place, SpaceId, ZoneKind};

const PAGES: u64 = 24;

fn program(mm: &TestMm<'_>, cpu: &Cpu) -> (SpaceId, u64) {
    let id = mm.create_space(cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(PAGES * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..PAGES {
        store(mm, cpu, id, va + page * 4096, page + 1).unwrap();
    }
    (id, va)
}

fn pin(mm: &TestMm<'_>, cpu: &Cpu, id: SpaceId, va: u64, pages: u64) -> Result<Vec<Pin>, LongtermError> {
    let range = VaRange::new(va, pages * 4096).unwrap();
    mm.pin_user_longterm(cpu, id, range, "registered buffer")
}

fn is_movable(mm: &TestMm<'_>, pin: &Pin) -> bool {
    mm.phys.zone_of(pin.pfn()).unwrap().kind() == ZoneKind::Movable
}

#[test]
fn pages_leave_removable_memory_before_they_are_pinned_for_long_so_that_every_block_can_go() {
    machine!(mm, cpu, 512, 2);
    let (id, va) = program(&mm, &cpu);
    let used: u32 = (0..2)
        .map(|block| mm.phys.block_usage(BlockIndex(block)).unwrap().used_pages)
        .sum();
    assert!(u64::from(used) >= PAGES, "a test of nothing");
    let pins = pin(&mm, &cpu, id, va, PAGES).unwrap();
    mm.validate().unwrap();
    assert!(pins.iter().all(|pin| !is_movable(&mm, pin)));
    let stats = mm.phys.stats();
    assert_eq!((stats.longterm_pinned, stats.longterm_moved), (PAGES, PAGES));
    assert_eq!(mm.phys.pinned_for(pins[0].pfn()), Some(id));
    // What the holder puts there is the program's.
    mm.frames.write(pins[3].pfn(), 1, 77);
    assert_eq!(load(&mm, &cpu, id, va + 3 * 4096 + 8), Ok(77));
    for block in 0..2 {
        let (token, report) = empty_block(&mm, &cpu, block);
        assert_eq!(report.refused, []);
        remove(&mut mm, token);
    }
    for page in 0..PAGES {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    let free = mm.phys.memory_stats().free_pages;
    mm.destroy_space(&cpu, id).unwrap();
    let freed_by_end = mm.phys.memory_stats().free_pages - free;
    for pin in pins {
        mm.phys.unpin(&cpu, pin);
    }
    mm.validate().unwrap();
    assert_eq!(mm.phys.memory_stats().free_pages - free - freed_by_end, PAGES);
}

#[test]
fn pinning_again_what_is_where_it_stays_moves_nothing() {
    machine!(mm, cpu, 512, 2);
    let (id, va) = program(&mm, &cpu);
    let first = pin(&mm, &cpu, id, va, 4).unwrap();
    let second = pin(&mm, &cpu, id, va, 8).unwrap();
    assert_eq!(
        first.iter().map(Pin::pfn).collect::<Vec<_>>(),
        second[..4].iter().map(Pin::pfn).collect::<Vec<_>>()
    );
    assert_eq!(mm.phys.stats().longterm_moved, 8);
    first
        .into_iter()
        .chain(second)
        .for_each(|pin| mm.phys.unpin(&cpu, pin));
    mm.validate().unwrap();
}

#[test]
fn what_a_fork_shares_and_what_is_huge_becomes_the_programs_own_and_leaves_removable_memory_too() {
    machine!(mm, cpu, 512, 3);
    let (id, va) = program(&mm, &cpu);
    let child = mm.fork(&cpu, id).unwrap();
    let pins = pin(&mm, &cpu, id, va, PAGES).unwrap();
    assert!(pins.iter().all(|pin| !is_movable(&mm, pin)));
    store(&mm, &cpu, id, va, 99).unwrap();
    assert_eq!(load(&mm, &cpu, child, va), Ok(1));
    mm.validate().unwrap();
    let huge = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mm, &cpu, id, huge + page * 4096, !page).unwrap();
    }
    assert_eq!(mm.phys.stats().nr_anon_transparent_hugepages, 1);
    let of_huge = pin(&mm, &cpu, id, huge + 5 * 4096, 3).unwrap();
    assert!(of_huge.iter().all(|pin| !is_movable(&mm, pin)));
    for (page, pin) in (5..).zip(&of_huge) {
        assert_eq!(mm.frames.read(pin.pfn(), 0), !page);
    }
    for page in 0..512 {
        assert_eq!(load(&mm, &cpu, id, huge + page * 4096), Ok(!page));
    }
    pins.into_iter()
        .chain(of_huge)
        .for_each(|pin| mm.phys.unpin(&cpu, pin));
    mm.validate().unwrap();
}

#[test]
fn without_other_memory_the_pin_is_refused_and_nothing_stays_pinned() {
    machine!(mm, cpu, 512, 2);
    let (id, va) = program(&mm, &cpu);
    let mut taken = Vec::new();
    while let Ok(pfn) = mm.phys.alloc_pages(&cpu, Gfp::HIGHUSER, Order::ZERO) {
        taken.push(pfn);
    }
    assert_eq!(
        pin(&mm, &cpu, id, va, PAGES).unwrap_err(),
        LongtermError::NoOtherMemory
    );
    mm.validate().unwrap();
    for page in 0..PAGES {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    for block in 0..2 {
        let (token, report) = empty_block(&mm, &cpu, block);
        let is_pinned = |refusal: &crate::migrate::Refusal| {
            matches!(refusal.reason, crate::migrate::RefusalReason::Pinned { .. })
        };
        assert!(!report.refused.iter().any(is_pinned));
        mm.phys.undo(token);
    }
    // Room for half of them is not enough either, and as much as is needed is.
    let nr = usize::try_from(PAGES).unwrap();
    let half = taken.split_off(taken.len() - nr / 2);
    half.into_iter()
        .for_each(|pfn| mm.phys.free_pages(&cpu, pfn).unwrap());
    assert_eq!(
        pin(&mm, &cpu, id, va, PAGES).unwrap_err(),
        LongtermError::NoOtherMemory
    );
    let rest = taken.split_off(taken.len() - nr);
    rest.into_iter()
        .for_each(|pfn| mm.phys.free_pages(&cpu, pfn).unwrap());
    let pins = pin(&mm, &cpu, id, va, PAGES).unwrap();
    mm.validate().unwrap();
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
}

#[test]
fn a_page_that_a_transfer_has_pinned_is_busy_and_one_that_is_not_there_is_a_fault() {
    machine!(mm, cpu, 512, 2);
    let (id, va) = program(&mm, &cpu);
    let transfer = mm.pin_user(&cpu, id, va + 4096, "direct I/O").unwrap();
    let busy = pin(&mm, &cpu, id, va, 4).unwrap_err();
    assert_eq!(busy, LongtermError::Busy(transfer.pfn()));
    mm.validate().unwrap();
    mm.phys.unpin(&cpu, transfer);
    let pins = pin(&mm, &cpu, id, va, 4).unwrap();
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
    let beyond = pin(&mm, &cpu, id, va + (PAGES - 1) * 4096, 2).unwrap_err();
    assert!(
        matches!(beyond, LongtermError::Copy(CopyError::Fault { .. })),
        "{beyond:?}"
    );
    mm.validate().unwrap();
}

fn frame_of(mm: &TestMm<'_>, id: SpaceId, va: u64) -> Pfn {
    let root = mm.space(id).unwrap().root();
    Pfn::containing(translate(&mm.frames, root, va, Access::Read).unwrap().gpa).unwrap()
}

/// Nobody has any of the pages but the program.
fn assert_not_pinned(mm: &TestMm<'_>, id: SpaceId, va: u64, pages: u64) {
    for page in 0..pages {
        let pfn = frame_of(mm, id, va + page * 4096);
        let page = mm.phys.page(mm.phys.table.head_of(pfn).unwrap()).unwrap();
        assert!(!page.flags().has(PageFlags::PINNED), "{pfn} is pinned");
        assert_eq!(page.count(), page.mapcount(), "{pfn} is held");
    }
    assert_eq!(mm.phys.pins.lock().held, []);
    mm.validate().unwrap();
}

#[test]
fn when_one_page_is_locked_those_before_it_are_not_pinned_any_more_and_their_block_leaves() {
    machine!(mm, cpu, 512, 3);
    let (id, va) = program(&mm, &cpu);
    // A block where the kernel's own may be, and no other memory like that.
    let (token, _) = empty_block(&mm, &cpu, 0);
    mm.phys.offline(token).unwrap();
    mm.phys.online(BlockIndex(0), ZoneKind::Normal).unwrap();
    let mut taken = Vec::new();
    let first = loop {
        let pfn = mm.phys.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).unwrap();
        match mm.phys.block_of(pfn) {
            Some(_) => break pfn,
            None => taken.push(pfn),
        }
    };
    mm.phys.free_pages(&cpu, first).unwrap();
    let pins = pin(&mm, &cpu, id, va, PAGES).unwrap();
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
    let on_block = |page| mm.phys.block_of(frame_of(&mm, id, va + page * 4096)) == Some(BlockIndex(0));
    assert!(
        (0..PAGES).filter(|&page| on_block(page)).count() > 8,
        "a test of nothing"
    );
    assert_not_pinned(&mm, id, va, PAGES);
    let pinned = mm.phys.stats().longterm_pinned;
    for locked in [0, 1, PAGES / 2, PAGES - 1] {
        let pfn = frame_of(&mm, id, va + locked * 4096);
        let page = mm.phys.page(pfn).unwrap();
        assert!(page.try_lock());
        let expected = CopyError::Locked {
            va: va + locked * 4096,
            page: PageWait::lock(pfn),
        };
        for _ in 0..2 {
            let error = pin(&mm, &cpu, id, va, PAGES).unwrap_err();
            assert_eq!(error, LongtermError::Copy(expected));
        }
        mm.unlock_page(pfn, page);
        assert_not_pinned(&mm, id, va, PAGES);
    }
    assert_eq!(mm.phys.stats().longterm_pinned, pinned, "none of them counts");
    let (token, report) = empty_block(&mm, &cpu, 0);
    assert_eq!(report.refused, []);
    remove(&mut mm, token);
    for page in 0..PAGES {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    mm.phys.free_bulk(&cpu, &taken).unwrap();
    let pins = pin(&mm, &cpu, id, va, PAGES).unwrap();
    mm.destroy_space(&cpu, id).unwrap();
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
    mm.validate().unwrap();
    let stats = mm.phys.memory_stats();
    assert_eq!(stats.free_pages, stats.total_pages, "something leaked");
}

#[test]
fn small_pages_in_front_of_a_huge_one_that_goes_in_pieces_are_pinned_once() {
    machine!(mm, cpu, 512, 3);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let huge = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    let small = huge - PAGES * 4096;
    let request = MapRequest {
        place: Place::Fixed(small),
        ..anonymous(PAGES * 4096, HugeAdvice::NoHuge)
    };
    assert_eq!(mm.mmap(id, &request), Ok(small));
    for page in 0..PAGES + 512 {
        store(&mm, &cpu, id, small + page * 4096, page + 1).unwrap();
    }
    assert_eq!(mm.phys.stats().nr_anon_transparent_hugepages, 1);
    // The kernel's memory has no huge page left.
    let taken: Vec<Pfn> =
        core::iter::from_fn(|| mm.phys.alloc_pages(&cpu, Gfp::ATOMIC, order(9)).ok()).collect();
    let pins = pin(&mm, &cpu, id, small, PAGES + 4).unwrap();
    assert_eq!(mm.phys.stats().thp_migration_split, 1, "a test of nothing");
    assert_eq!(mm.phys.stats().longterm_pinned, PAGES + 4);
    assert_eq!(mm.phys.pins.lock().held.len() as u64, PAGES + 4);
    assert!(pins.iter().all(|pin| !is_movable(&mm, pin)));
    mm.validate().unwrap();
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
    assert_not_pinned(&mm, id, small, PAGES + 512);
    for page in 0..PAGES + 512 {
        assert_eq!(load(&mm, &cpu, id, small + page * 4096), Ok(page + 1));
    }
    mm.destroy_space(&cpu, id).unwrap();
    mm.phys.free_bulk(&cpu, &taken).unwrap();
    let stats = mm.phys.memory_stats();
    assert_eq!(stats.free_pages, stats.total_pages, "something leaked");
}

/// Every request for a frame is refused in turn: pages that are the program's own only once they are copied, and those that leave removable memory.
#[test]
fn without_memory_for_any_of_its_pages_nothing_of_a_buffer_is_pinned() {
    for then in [Then::Serve, Then::Refuse] {
        let refused_at = |pass: &u32| {
            machine!(mm, cpu, 512, 2);
            let (id, va) = program(&mm, &cpu);
            let child = mm.fork(&cpu, id).unwrap();
            mm.phys.injected.lock().fail_after(*pass, then);
            let outcome = pin(&mm, &cpu, id, va, PAGES);
            let reached = !mm.phys.injected.lock().clear();
            assert_eq!(outcome.is_err(), reached, "request {pass}");
            match outcome {
                Ok(pins) => pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin)),
                Err(_) => assert_eq!(mm.phys.stats().longterm_pinned, 0),
            }
            for id in [id, child] {
                for page in 0..PAGES {
                    assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
                }
            }
            assert_eq!(mm.phys.pins.lock().held, []);
            for id in [id, child] {
                mm.destroy_space(&cpu, id).unwrap();
            }
            mm.validate().unwrap();
            let stats = mm.phys.memory_stats();
            assert_eq!(stats.free_pages, stats.total_pages, "request {pass} leaked");
            reached
        };
        let requests = (0..200).take_while(refused_at).count() as u64;
        assert!((2 * PAGES..200).contains(&requests), "{requests} requests");
    }
}
