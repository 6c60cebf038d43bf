//! Pages of files and of shared memory under pressure: which of them go, where to, and that they come back as they were.

use std::sync::Arc;
use std::vec;

use crate::LruList;
use crate::disk::Fault;
use crate::mm::mapping::{AddressSpaceOps, FileError, MappingKind, Migration, PrivatePage};
use crate::mm::{FaultError, FileArea, MappingId, Sharing};
use crate::swap::AreaHeader;
use crate::tests::file_maps::{load, map, store, word};
use crate::tests::files::{file, read, write};
use crate::tests::machine::{RW, TestMm, empty_block, machine};
use crate::tests::test_fs::TestFs;
use crate::{Access, Prot, SpaceId};

const PAGE: u64 = 4096;
const PAGE_LEN: usize = 4096;

fn listed(mm: &TestMm<'_>, list: LruList) -> u64 {
    mm.phys.populated_zones().map(|zone| zone.lru_len(list)).sum()
}

#[test]
fn clean_pages_are_dropped_and_read_again_and_those_read_twice_stay_longest() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 512);
    let id = file(&mm, 200 * PAGE);
    fs.preset(id, &[9; 200]);
    for _ in 0..3 {
        read(&fs, id, 0, 20 * PAGE_LEN).unwrap();
    }
    assert_eq!(listed(&mm, LruList::Active), 20, "used more than once");
    read(&fs, id, 20 * PAGE, 180 * PAGE_LEN).unwrap();
    let free = mm.phys.memory_stats().free_pages;
    let mut freed = 0;
    while mm.cached_pages(id) > 40 {
        freed += fs.shrink(1).freed;
    }
    assert!(freed >= 160 && mm.phys.memory_stats().free_pages == free + u64::from(freed));
    assert_eq!(mm.phys.stats().pgpgout, 0, "nothing to write");
    let before = mm.phys.stats().pgpgin;
    assert_eq!(read(&fs, id, 0, 20 * PAGE_LEN).unwrap(), vec![9; 20 * PAGE_LEN]);
    assert_eq!(mm.phys.stats().pgpgin, before, "what is used stays");
    assert_eq!(read(&fs, id, 0, 200 * PAGE_LEN).unwrap(), vec![9; 200 * PAGE_LEN]);
}

#[test]
fn dirty_pages_are_written_before_they_go_and_what_cannot_be_written_is_tried_once_more() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 512);
    let id = file(&mm, 0);
    write(&fs, id, 0, &vec![5; 60 * PAGE_LEN]).unwrap();
    fs.disk.break_block(Fault::Write, fs.block(id, 7).unwrap());
    assert_eq!(fs.run(mm.sync(&cpu, id)), Err(FileError::Io));
    write(&fs, id, 40 * PAGE, &[5; PAGE_LEN]).unwrap();
    assert!(mm.is_dirty(id));
    fs.disk.mend();
    assert!(fs.shrink(12).written > 1);
    assert_eq!((mm.cached_pages(id), mm.is_dirty(id)), (0, false));
    assert_eq!(read(&fs, id, 0, 60 * PAGE_LEN).unwrap(), vec![5; 60 * PAGE_LEN]);
}

#[test]
fn mapped_pages_that_nobody_uses_are_unmapped_and_what_was_stored_to_them_is_kept() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 512);
    mm.swap_on(&AreaHeader::new(1024), 0).unwrap();
    let id = file(&mm, 64 * PAGE);
    fs.preset(id, &[3; 64]);
    let space = mm.create_space(&cpu, &[]).unwrap();
    let child = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 64, RW);
    let text = map(&mm, child, FileArea::new(id, 0, Sharing::Private), 64, Prot::READ);
    for page in 0..64 {
        load(&fs, child, text + page * PAGE).unwrap();
        if page % 2 == 0 {
            store(&fs, space, va + page * PAGE, page).unwrap();
        }
    }
    fs.shrink(16);
    assert_eq!(
        (mm.cached_pages(id), mm.space(child).unwrap().file_pages()),
        (0, 0)
    );
    for page in 0..64 {
        let expected = if page % 2 == 0 { page } else { word(3) };
        assert_eq!(load(&fs, child, text + page * PAGE), Ok(expected));
    }
    mm.destroy_space(&cpu, child).unwrap();
    mm.destroy_space(&cpu, space).unwrap();
    mm.validate().unwrap();
}

/// Shared memory with a word in each page, mapped by two programs.
fn shared_memory(fs: &TestFs<'_, '_>, pages: u64) -> (MappingId, [(SpaceId, u64); 2]) {
    let id = fs.mm.create_mapping(MappingKind::Shmem, pages * PAGE);
    let users = [(); 2].map(|()| {
        let space = fs.mm.create_space(fs.cpu, &[]).unwrap();
        (
            space,
            map(fs.mm, space, FileArea::new(id, 0, Sharing::Shared), pages, RW),
        )
    });
    for page in 0..pages {
        let (space, va) = users[usize::from(page % 2 == 0)];
        store(fs, space, va + page * PAGE, page + 100).unwrap();
    }
    (id, users)
}

#[test]
fn shared_memory_goes_to_the_swap_areas_and_all_who_map_it_get_it_back() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    // Most of it goes to the second area.
    mm.swap_on(&AreaHeader::new(24), 1).unwrap();
    mm.swap_on(&AreaHeader::new(1024), 0).unwrap();
    let (id, users) = shared_memory(&fs, 64);
    fs.shrink(16);
    assert_eq!((mm.cached_pages(id), mm.phys.stats().nr_shmem), (0, 0));
    let usage = mm.swap_usage();
    assert_eq!((usage.total - usage.free, usage.cached), (64, 0));
    for page in (0..64).rev() {
        let (space, va) = users[usize::try_from(page / 3 % 2).unwrap()];
        assert_eq!(load(&fs, space, va + page * PAGE), Ok(page + 100));
    }
    store(&fs, users[0].0, users[0].1, 1).unwrap();
    assert_eq!(load(&fs, users[1].0, users[1].1), Ok(1));
    assert_eq!(mm.swap_usage().free, usage.total, "what is back needs no slot");
    fs.shrink(16);
    for (space, _) in users {
        mm.destroy_space(&cpu, space).unwrap();
    }
    assert!(
        mm.swap_usage().free < usage.total,
        "it is there as long as the mapping is"
    );
    fs.run(mm.truncate(&cpu, id, 10 * PAGE + 8)).unwrap();
    assert_eq!(usage.total - mm.swap_usage().free, 10);
    fs.run(mm.truncate(&cpu, id, 0)).unwrap();
    mm.remove_mapping(id).unwrap();
    assert_eq!((mm.swap_usage().free, mm.phys.stats().nr_shmem), (usage.total, 0));
}

#[test]
fn shared_memory_that_cannot_be_read_back_is_an_error_and_the_next_try_reads_again() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    mm.swap_on(&AreaHeader::new(1024), 0).unwrap();
    let (_, [(space, va), _]) = shared_memory(&fs, 16);
    fs.shrink(16);
    for block in 1..20 {
        fs.swap.break_block(Fault::Read, crate::disk::BlockNr(block));
    }
    assert_eq!(load(&fs, space, va), Err(FaultError::Io { va }));
    fs.swap.mend();
    for page in 0..16 {
        assert_eq!(load(&fs, space, va + page * PAGE), Ok(page + 100));
    }
}

#[test]
fn without_a_swap_area_shared_memory_stays() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    let (id, [(space, va), _]) = shared_memory(&fs, 16);
    fs.shrink(16);
    assert_eq!((mm.cached_pages(id), load(&fs, space, va)), (16, Ok(100)));
}

/// Does not let go of what it has on a page, and puts something else on one that moves.
struct Stubborn;

impl AddressSpaceOps for Stubborn {
    fn migration(&self) -> Migration {
        Migration::Data
    }

    fn releasepage(&self, _page: PrivatePage) -> bool {
        false
    }

    fn migrate_page(&self, page: PrivatePage, to: crate::Pfn) -> u32 {
        assert_ne!(page.pfn, to);
        page.private + 1000
    }

    fn is_movable(&self, page: PrivatePage) -> bool {
        page.index < 4
    }
}

#[test]
fn a_file_system_decides_what_becomes_of_its_data_on_a_page() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 64);
    let id = mm.create_mapping(MappingKind::File(Arc::new(Stubborn)), 8 * PAGE);
    fs.preset(id, &[1; 8]);
    read(&fs, id, 0, 8 * PAGE_LEN).unwrap();
    fs.shrink(12);
    assert_eq!(mm.cached_pages(id), 8, "none is let go");
    let private = |index| match mm.lock_page(&cpu, id, index).unwrap() {
        crate::mm::mapping::PageLookup::Locked(page) => page.private().unwrap(),
        _ => panic!("it is there"),
    };
    let before: u32 = (0..8).map(private).sum();
    let (mut moved, mut refused) = (0, 0);
    for block in 0..2 {
        let (token, report) = empty_block(&mm, &cpu, block);
        moved += report.moved_small;
        refused += report.refused.len();
        mm.phys.undo(token);
        mm.validate().unwrap();
    }
    assert!(moved >= 4 && refused >= 4, "{moved} moved, {refused} refused");
    assert_eq!((0..8).map(private).sum::<u32>(), before + 1000 * moved);
}

#[test]
fn pages_in_an_order_of_their_own_are_found_unmapped_moved_and_mapped_again_in_it() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 32 * PAGE);
    fs.preset(id, &(1..=32).collect::<std::vec::Vec<u8>>());
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 16, RW);
    load(&fs, space, va).unwrap();
    // Pages 31, 30, ... at the beginning, page 31 a second time, the last ones as they were.
    for page in 0..12u32 {
        mm.remap_file_pages(&cpu, space, va + u64::from(page) * PAGE, PAGE, 31 - page)
            .unwrap();
        mm.validate().unwrap();
    }
    mm.remap_file_pages(&cpu, space, va + 12 * PAGE, PAGE, 31)
        .unwrap();
    let order = |page: u64| match page {
        0..12 => 32 - u8::try_from(page).unwrap(),
        12 => 32,
        _ => u8::try_from(page).unwrap() + 1,
    };
    let check = |space| {
        for page in 0..16 {
            assert_eq!(
                load(&fs, space, va + page * PAGE),
                Ok(word(order(page))),
                "page {page}"
            );
        }
    };
    check(space);
    let child = mm.fork(&cpu, space).unwrap();
    check(child);
    let (mut moved, entries) = (0, mm.phys.stats().nr_mapped);
    for block in 0..2 {
        let (token, report) = empty_block(&mm, &cpu, block);
        assert_eq!(report.refused, []);
        moved += report.moved_small;
        mm.phys.undo(token);
        mm.validate().unwrap();
    }
    assert!(moved >= 16 && mm.phys.stats().nr_mapped == entries);
    check(child);
    fs.shrink(16);
    assert_eq!(
        (mm.cached_pages(id), mm.phys.stats().nr_mapped),
        (0, 0),
        "every entry was found"
    );
    check(space);
    check(child);
    store(&fs, child, va, 5).unwrap();
    assert_eq!(load(&fs, space, va + 12 * PAGE), Ok(5), "page 31, twice");
    fs.run(mm.sync(&cpu, id)).unwrap();
    assert_eq!(fs.disk.contents(fs.block(id, 31).unwrap())[0], 5);
    fs.run(mm.truncate(&cpu, id, 31 * PAGE)).unwrap();
    assert_eq!(load(&fs, child, va), Err(FaultError::BeyondEnd { va }));
    assert_eq!(load(&fs, child, va + PAGE), Ok(word(31)));
    let private = map(&mm, space, FileArea::new(id, 0, Sharing::Private), 4, RW);
    assert!(
        mm.remap_file_pages(&cpu, space, private, PAGE, 3).is_err(),
        "only shared ones"
    );
    assert!(mm.fault(&cpu, space, private, Access::Read).is_ok());
}
