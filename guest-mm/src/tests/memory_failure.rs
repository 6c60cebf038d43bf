//! Frames that fail: whose contents move, whose are read again, who loses something, and that nobody gets them again.

use std::vec::Vec;

use guest_sync::Cpu;

use crate::memory_failure::{Contents, MemoryFailureError};
use crate::migrate::{BatchEnd, RefusalReason};
use crate::mm::mapping::{DefaultOps, FileError, MappingKind};
use crate::mm::{FaultError, FileArea, Reserve, Sharing};
use crate::pagetable::translate;
use crate::tests::file_maps::{self, map, word};
use crate::tests::machine::{
    MIB, RW, TestMm, anonymous, empty_block, load, machine, plug_block, remove, store,
};
use crate::tests::swap::{PAGES, load_swapped, program, work};
use crate::tests::test_fs::TestFs;
use crate::{
    Access, Backing, BlockIndex, FrameState, Gfp, HugeAdvice, KernelUse, MapRequest, Order, Pfn, Place,
    SpaceId, ZoneKind,
};

fn frame_at(mm: &TestMm<'_>, id: SpaceId, va: u64) -> Pfn {
    let root = mm.space(id).unwrap().root();
    Pfn::containing(translate(&mm.frames, root, va, Access::Read).unwrap().gpa).unwrap()
}

/// The frame has failed for good.
fn assert_poisoned(mm: &TestMm<'_>, cpu: &Cpu, pfn: Pfn) {
    assert_eq!(mm.phys.frame_state(pfn), FrameState::Poisoned);
    assert!(mm.phys.poisoned_frames().contains(&pfn));
    for result in [
        mm.soft_offline(cpu, pfn),
        mm.memory_failure(cpu, pfn, &mut Vec::new()),
    ] {
        assert_eq!(result, Err(MemoryFailureError::AlreadyPoisoned(pfn)));
    }
    mm.validate().unwrap();
}

/// Everything that can be had is had, and none of it is the frame.
fn assert_never_given_out(mm: &TestMm<'_>, cpu: &Cpu, pfn: Pfn) {
    let mut taken = Vec::new();
    while let Ok(frame) = mm.phys.alloc_pages(cpu, Gfp::USER, Order::ZERO) {
        assert_ne!(frame, pfn);
        taken.push(frame);
    }
    mm.phys.free_bulk(cpu, &taken).unwrap();
}

#[test]
fn free_frames_leave_their_chunk_whatever_its_size_and_are_never_given_out() {
    machine!(mm, cpu, 1024, 2);
    let start = mm
        .phys
        .hotplug_region()
        .block_range(BlockIndex(0))
        .unwrap()
        .start();
    let managed = || mm.phys.zone_of(start).unwrap().counters().managed_pages;
    let before = managed();
    // Both halves of a chunk of 4 MiB, and two frames of what is left of one of them.
    for offset in [700, 3, 4, 1023] {
        assert_eq!(mm.soft_offline(&cpu, start + offset), Ok(Contents::Nothing));
        assert_poisoned(&mm, &cpu, start + offset);
        assert_never_given_out(&mm, &cpu, start + offset);
        mm.validate().unwrap();
    }
    assert_eq!(
        (managed(), mm.phys.poisoned_pages(BlockIndex(0))),
        (before - 4, 4)
    );
    // One that a CPU keeps at hand.
    let frame = mm.phys.alloc_pages(&cpu, Gfp::USER, Order::ZERO).unwrap();
    mm.phys.free_pages(&cpu, frame).unwrap();
    assert!(matches!(mm.phys.frame_state(frame), FrameState::Cached(_)));
    assert_eq!(
        mm.memory_failure(&cpu, frame, &mut Vec::new()),
        Ok(Contents::Nothing)
    );
    assert_poisoned(&mm, &cpu, frame);
}

#[test]
fn what_is_in_a_suspect_frame_moves_and_its_block_can_still_go_and_come_back() {
    machine!(mm, cpu, 512, 3);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(16 * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..16 {
        store(&mm, &cpu, id, va + page * 4096, page + 1).unwrap();
    }
    let suspect = frame_at(&mm, id, va + 5 * 4096);
    assert_eq!(mm.soft_offline(&cpu, suspect), Ok(Contents::Moved));
    assert_poisoned(&mm, &cpu, suspect);
    assert_ne!(frame_at(&mm, id, va + 5 * 4096), suspect);
    for page in 0..16 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    assert_never_given_out(&mm, &cpu, suspect);
    let block = mm.phys.block_of(suspect).unwrap();
    let (token, _) = empty_block(&mm, &cpu, block.0);
    mm.phys.offline(token).unwrap();
    mm.validate().unwrap();
    // It is the same memory until the device has had it.
    mm.phys.online(block, ZoneKind::Movable).unwrap();
    assert_poisoned(&mm, &cpu, suspect);
    let (token, _) = empty_block(&mm, &cpu, block.0);
    remove(&mut mm, token);
    plug_block(&mut mm, block.0);
    assert!(mm.phys.poisoned_frames().is_empty());
    assert!(matches!(mm.phys.frame_state(suspect), FrameState::Free(_)));
    mm.validate().unwrap();
}

#[test]
fn a_huge_page_moves_whole_from_a_suspect_frame_and_is_split_around_a_failed_one() {
    machine!(mm, cpu, 512, 4);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mm, &cpu, id, va + page * 4096, page + 1).unwrap();
    }
    let suspect = frame_at(&mm, id, va + 99 * 4096);
    assert_eq!(mm.soft_offline(&cpu, suspect), Ok(Contents::Moved));
    assert_poisoned(&mm, &cpu, suspect);
    assert_eq!(mm.phys.stats().thp_migration_success, 1);
    let failed = frame_at(&mm, id, va + 99 * 4096);
    let mut losers = Vec::new();
    assert_eq!(mm.memory_failure(&cpu, failed, &mut losers), Ok(Contents::Lost));
    assert_poisoned(&mm, &cpu, failed);
    assert_eq!((losers, mm.phys.stats().thp_split_page), (Vec::from([id]), 1));
    for page in 0..512 {
        let va = va + page * 4096;
        let expected = match page {
            99 => Err(FaultError::Poisoned { va }),
            page => Ok(page + 1),
        };
        assert_eq!(load(&mm, &cpu, id, va), expected);
    }
    mm.destroy_space(&cpu, id).unwrap();
    mm.validate().unwrap();
}

#[test]
fn a_lost_page_is_lost_for_all_who_share_it_and_for_nobody_else() {
    machine!(mm, cpu, 512, 2);
    let parent = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(parent, &anonymous(4 * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..4 {
        store(&mm, &cpu, parent, va + page * 4096, page + 1).unwrap();
    }
    let child = mm.fork(&cpu, parent).unwrap();
    let other = mm.fork(&cpu, parent).unwrap();
    store(&mm, &cpu, other, va + 4096, 9).unwrap();
    let failed = frame_at(&mm, parent, va + 4096);
    let mut losers = Vec::new();
    assert_eq!(mm.memory_failure(&cpu, failed, &mut losers), Ok(Contents::Lost));
    assert_poisoned(&mm, &cpu, failed);
    losers.sort_unstable();
    assert_eq!(losers, [parent, child]);
    let poisoned = FaultError::Poisoned { va: va + 4096 };
    let grandchild = mm.fork(&cpu, child).unwrap();
    for id in [parent, child, grandchild] {
        assert_eq!(load(&mm, &cpu, id, va + 4096), Err(poisoned));
        assert_eq!(store(&mm, &cpu, id, va + 4096, 1), Err(poisoned));
        assert_eq!(load(&mm, &cpu, id, va + 2 * 4096), Ok(3));
    }
    assert_eq!(load(&mm, &cpu, other, va + 4096), Ok(9));
    mm.munmap(&cpu, child, va + 4096, 4096).unwrap();
    for id in [parent, child, other, grandchild] {
        mm.destroy_space(&cpu, id).unwrap();
        mm.validate().unwrap();
    }
}

#[test]
fn what_the_swap_area_has_is_read_again_and_what_it_has_not_is_lost_for_who_comes_later_too() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    let child = mm.fork(&cpu, id).unwrap();
    for _ in 0..16 {
        for zone in mm.phys.populated_zones() {
            mm.shrink_zone(&cpu, zone, 32);
        }
        work(&mm, &cpu, &disk);
    }
    assert_eq!(mm.space(id).unwrap().swap_pages(), PAGES);
    // In the swap cache for the parent, with a slot that has the same.
    assert_eq!(load_swapped(&mm, &cpu, &disk, id, va), Ok(1));
    let clean = frame_at(&mm, id, va);
    let mut losers = Vec::new();
    assert_eq!(mm.memory_failure(&cpu, clean, &mut losers), Ok(Contents::OnDisk));
    assert_poisoned(&mm, &cpu, clean);
    assert!(losers.is_empty());
    assert_eq!(load_swapped(&mm, &cpu, &disk, id, va), Ok(1));
    assert_eq!(load_swapped(&mm, &cpu, &disk, child, va), Ok(1));
    // The same page, but its slot has something older.
    let dirty = frame_at(&mm, id, va);
    mm.phys.page(dirty).unwrap().add_flags(crate::PageFlags::DIRTY);
    mm.madvise(&cpu, child, va, 4096, crate::mm::Advice::DontNeed)
        .unwrap();
    let late = va + 7 * 4096;
    assert_eq!(load_swapped(&mm, &cpu, &disk, id, late), Ok(8));
    let lost = frame_at(&mm, id, late);
    mm.phys.page(lost).unwrap().add_flags(crate::PageFlags::DIRTY);
    assert_eq!(mm.memory_failure(&cpu, lost, &mut losers), Ok(Contents::Lost));
    assert_poisoned(&mm, &cpu, lost);
    assert_eq!(losers, [id], "the child has no entry for the frame");
    let poisoned = Err(FaultError::Poisoned { va: late });
    assert_eq!(load_swapped(&mm, &cpu, &disk, id, late), poisoned);
    assert_eq!(
        load_swapped(&mm, &cpu, &disk, child, late),
        poisoned,
        "but for its slot"
    );
    for id in [id, child] {
        mm.destroy_space(&cpu, id).unwrap();
        mm.validate().unwrap();
    }
    let usage = mm.swap_usage();
    assert_eq!((usage.free, usage.cached), (usage.total, 0));
}

#[test]
fn a_page_of_a_file_is_read_again_or_an_error_that_fsync_tells() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 64);
    let file = mm.create_mapping(MappingKind::File(std::sync::Arc::new(DefaultOps)), 4 * 4096);
    fs.preset(file, &[1, 2, 3, 4]);
    let one = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, one, FileArea::new(file, 0, Sharing::Shared), 4, RW);
    assert_eq!(file_maps::load(&fs, one, va), Ok(word(1)));
    let mut losers = Vec::new();
    let clean = frame_at(&mm, one, va);
    assert_eq!(mm.memory_failure(&cpu, clean, &mut losers), Ok(Contents::OnDisk));
    assert_poisoned(&mm, &cpu, clean);
    assert_eq!(file_maps::load(&fs, one, va), Ok(word(1)), "from the disk");
    file_maps::store(&fs, one, va, 77).unwrap();
    let moved = frame_at(&mm, one, va);
    assert_eq!(mm.soft_offline(&cpu, moved), Ok(Contents::Moved));
    assert_eq!(file_maps::load(&fs, one, va), Ok(77), "dirty pages move as well");
    let cursor = mm.error_cursor(file);
    let dirty = frame_at(&mm, one, va);
    assert_eq!(mm.memory_failure(&cpu, dirty, &mut losers), Ok(Contents::Lost));
    assert_poisoned(&mm, &cpu, dirty);
    assert_eq!(losers, [one]);
    assert_eq!(file_maps::load(&fs, one, va), Err(FaultError::Poisoned { va }));
    assert_eq!(mm.tell_errors(file, &cursor), Err(FileError::Io));
    let other = mm.create_space(&cpu, &[]).unwrap();
    let there = map(&mm, other, FileArea::new(file, 0, Sharing::Shared), 4, RW);
    assert_eq!(
        file_maps::load(&fs, other, there),
        Ok(word(1)),
        "what the disk has"
    );
    assert_eq!(mm.phys.stats().nr_dirty, 0);
    mm.validate().unwrap();
}

#[test]
fn a_page_of_shared_memory_cannot_be_read_again_until_it_is_cut_off() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 8);
    let shared = mm.create_mapping(MappingKind::Shmem, 4 * 4096);
    let one = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, one, FileArea::new(shared, 0, Sharing::Shared), 4, RW);
    file_maps::store(&fs, one, va + 4096, 5).unwrap();
    let failed = frame_at(&mm, one, va + 4096);
    let mut losers = Vec::new();
    assert_eq!(mm.memory_failure(&cpu, failed, &mut losers), Ok(Contents::Lost));
    assert_poisoned(&mm, &cpu, failed);
    assert_eq!(losers, [one]);
    let other = mm.create_space(&cpu, &[]).unwrap();
    let there = map(&mm, other, FileArea::new(shared, 0, Sharing::Shared), 4, RW);
    let lost = FaultError::Io { va: there + 4096 };
    assert_eq!(file_maps::load(&fs, other, there + 4096), Err(lost));
    assert_eq!(file_maps::load(&fs, other, there), Ok(0));
    fs.run(mm.truncate(&cpu, shared, 4096)).unwrap();
    fs.run(mm.truncate(&cpu, shared, 4 * 4096)).unwrap();
    assert_eq!(file_maps::load(&fs, other, there + 4096), Ok(0), "a new page");
    mm.validate().unwrap();
}

#[test]
fn reserved_huge_pages_are_replaced_in_the_pool() {
    machine!(mm, cpu, 512, 6);
    assert_eq!(mm.set_nr_huge_pages(&cpu, 2), 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let reserved = MapRequest {
        len: 2 * 2 * MIB,
        place: Place::Anywhere,
        prot: RW,
        backing: Backing::HugeTlb(Reserve::Held),
    };
    let va = mm.mmap(id, &reserved).unwrap();
    store(&mm, &cpu, id, va + 4096, 7).unwrap();
    let used = frame_at(&mm, id, va + 4096);
    assert_eq!(mm.soft_offline(&cpu, used), Ok(Contents::Moved));
    assert_poisoned(&mm, &cpu, used);
    assert_eq!(load(&mm, &cpu, id, va + 4096), Ok(7));
    let mut free = None;
    mm.phys.look_at_free_huge(|pfn| free = Some(pfn + 8));
    assert_eq!(
        mm.memory_failure(&cpu, free.unwrap(), &mut Vec::new()),
        Ok(Contents::Nothing)
    );
    assert_poisoned(&mm, &cpu, free.unwrap());
    let used = frame_at(&mm, id, va + 4096);
    let mut losers = Vec::new();
    assert_eq!(mm.memory_failure(&cpu, used, &mut losers), Ok(Contents::Lost));
    assert_poisoned(&mm, &cpu, used);
    assert_eq!(losers, [id]);
    assert_eq!(load(&mm, &cpu, id, va), Err(FaultError::Poisoned { va }));
    assert_eq!(load(&mm, &cpu, id, va + 2 * MIB), Ok(0));
    assert_eq!(mm.phys.huge_pool().total, 2);
    mm.destroy_space(&cpu, id).unwrap();
    mm.validate().unwrap();
}

#[test]
fn what_nobody_can_do_without_is_refused_and_stays() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(4096, HugeAdvice::NoHuge)).unwrap();
    store(&mm, &cpu, id, va, 42).unwrap();
    let pfn = frame_at(&mm, id, va);
    let own = mm.phys.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).unwrap();
    let holder = "a disk";
    let pin = mm.phys.pin(pfn, holder).unwrap();
    let mut losers = Vec::new();
    for (frame, expected) in [
        (pfn, MemoryFailureError::Pinned { pfn, holder }),
        (
            own,
            MemoryFailureError::Unmovable {
                pfn: own,
                used_for: KernelUse::Other,
            },
        ),
        (
            Pfn::new(1 << 30),
            MemoryFailureError::NoMemoryThere(Pfn::new(1 << 30)),
        ),
    ] {
        assert_eq!(mm.soft_offline(&cpu, frame), Err(expected));
        assert_eq!(mm.memory_failure(&cpu, frame, &mut losers), Err(expected));
        mm.validate().unwrap();
    }
    assert!(losers.is_empty());
    mm.phys.unpin(&cpu, pin);
    assert_eq!(mm.soft_offline(&cpu, pfn), Ok(Contents::Moved));
    assert_eq!(load(&mm, &cpu, id, va), Ok(42));
    // A page table can be read as long as its memory has not failed altogether.
    let table = mm.space(id).unwrap().root();
    let lost = mm.memory_failure(&cpu, table, &mut losers);
    let used_for = KernelUse::PageTable;
    let pfn = table;
    assert_eq!(lost, Err(MemoryFailureError::Unmovable { pfn, used_for }));
    assert_eq!(mm.soft_offline(&cpu, table), Ok(Contents::Moved));
    assert_poisoned(&mm, &cpu, table);
    assert_eq!(load(&mm, &cpu, id, va), Ok(42));
    mm.validate().unwrap();
}

#[test]
fn a_suspect_frame_of_the_kernels_own_leaves_when_its_owner_moves_it_away_from_its_surroundings() {
    machine!(mm, cpu, 512, 2);
    let own = mm.phys.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).unwrap();
    let used_for = KernelUse::Vmalloc { page: 7 };
    mm.phys.set_kernel_use(own, used_for);
    let refused = Err(MemoryFailureError::Unmovable { pfn: own, used_for });
    // An owner that has no memory for it, and one that does not know it.
    let starved = mm.soft_offline_with(&cpu, own, |report| report.end = BatchEnd::NoMemory);
    assert_eq!(starved, Err(MemoryFailureError::NoMemory(own)));
    assert_eq!(mm.soft_offline(&cpu, own), refused);
    mm.validate().unwrap();
    let mut elsewhere = None;
    let moved = mm.soft_offline_with(&cpu, own, |report| {
        let [refusal] = report.refused[..] else {
            panic!("{report:?}");
        };
        assert_eq!(
            (refusal.pfn, refusal.reason),
            (own, RefusalReason::Unmovable(used_for))
        );
        let to = mm.phys.alloc_pages(&cpu, Gfp::KERNEL, Order::ZERO).unwrap();
        let pageblock = |pfn: Pfn| pfn.align_down(Order::PAGEBLOCK);
        assert_ne!(pageblock(to), pageblock(own), "its surroundings give out nothing");
        elsewhere = Some(to);
        mm.phys.set_kernel_use(own, KernelUse::Other);
        mm.phys.free_pages(&cpu, own).unwrap();
        report.refused.clear();
    });
    assert_eq!(moved, Ok(Contents::Moved));
    assert_poisoned(&mm, &cpu, own);
    mm.phys.free_pages(&cpu, elsewhere.unwrap()).unwrap();
    assert_never_given_out(&mm, &cpu, own);
}
