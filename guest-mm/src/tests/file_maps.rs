//! Areas of files and of shared memory: what programs see, what the file sees, and that every entry of a page is found.

use std::sync::Arc;
use std::vec::Vec;

use guest_sync::Cpu;

use crate::disk::Fault;
use crate::mm::mapping::{DefaultOps, MappingKind};
use crate::mm::{Advice, FaultError, FaultOutcome, FileArea, MappingId, Sharing};
use crate::tests::machine::{RW, TestMm, empty_block, machine, remove};
use crate::tests::test_fs::TestFs;
use crate::{Access, Backing, MapRequest, Place, Prot, SpaceId};

const PAGE: u64 = 4096;

fn file(mm: &TestMm<'_>, pages: u64) -> MappingId {
    mm.create_mapping(MappingKind::File(Arc::new(DefaultOps)), pages * PAGE)
}

pub(crate) fn map(mm: &TestMm<'_>, space: SpaceId, area: FileArea, pages: u64, prot: Prot) -> u64 {
    let request = MapRequest {
        len: pages * PAGE,
        place: Place::Anywhere,
        prot,
        backing: Backing::File(area),
    };
    mm.mmap(space, &request).unwrap()
}

/// Repeats an access with the faults it takes, the disk and the file system working meanwhile.
pub(crate) fn touch<T, E>(
    fs: &TestFs<'_, '_>,
    (space, va): (SpaceId, u64),
    access: Access,
    attempt: impl Fn() -> Result<T, E>,
) -> Result<T, FaultError> {
    loop {
        if let Ok(value) = attempt() {
            return Ok(value);
        }
        match fs.mm.fault(fs.cpu, space, va, access)? {
            FaultOutcome::Locked(wait) => fs.run(fs.mm.until_unlocked(wait)),
            FaultOutcome::NeedsBlock(place) => {
                use crate::mm::mapping::FileSystem as _;
                fs.run(fs.prepare_write(place.mapping, place.index)).unwrap();
            }
            _ => {}
        }
        fs.mm.validate().unwrap();
    }
}

pub(crate) fn load(fs: &TestFs<'_, '_>, space: SpaceId, va: u64) -> Result<u64, FaultError> {
    touch(fs, (space, va), Access::Read, || fs.mm.cpu_load(space, va))
}

pub(crate) fn store(fs: &TestFs<'_, '_>, space: SpaceId, va: u64, value: u64) -> Result<(), FaultError> {
    touch(fs, (space, va), Access::Write, || {
        fs.mm.cpu_store(space, va, value)
    })
}

pub(crate) fn word(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

fn bytes(pages: u8) -> Vec<u8> {
    (1..=pages).collect()
}

#[test]
fn a_mapped_file_is_read_in_once_for_all_and_what_is_in_memory_is_mapped_around() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 32);
    fs.preset(id, &bytes(32));
    let spaces = [(); 2].map(|()| mm.create_space(&cpu, &[]).unwrap());
    for space in spaces {
        let va = map(&mm, space, FileArea::new(id, 0, Sharing::Private), 32, Prot::READ);
        for page in (0..32).rev() {
            assert_eq!(
                load(&fs, space, va + page * PAGE),
                Ok(word(u8::try_from(page).unwrap() + 1))
            );
        }
    }
    let stats = mm.phys.stats();
    assert_eq!((stats.pgpgin, stats.nr_file_pages, stats.nr_mapped), (32, 32, 64));
    assert_eq!(
        stats.pgmajfault, 4,
        "eight pages at a time, and none for the second program"
    );
    assert_eq!(mm.space(spaces[1]).unwrap().file_pages(), 32);
    for space in spaces {
        mm.destroy_space(&cpu, space).unwrap();
    }
    mm.validate().unwrap();
    assert!(!mm.is_mapped(id) && mm.cached_pages(id) == 32);
}

#[test]
fn a_program_that_goes_through_a_mapped_file_waits_for_the_disk_less_and_less_often() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 200);
    fs.preset(id, &bytes(200));
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(
        &mm,
        space,
        FileArea::new(id, 0, Sharing::Private),
        200,
        Prot::READ,
    );
    for page in 0..200 {
        let expected = word(u8::try_from(page).unwrap() + 1);
        assert_eq!(load(&fs, space, va + page * PAGE), Ok(expected));
    }
    let stats = mm.phys.stats();
    assert_eq!(stats.pgpgin, 200);
    assert_eq!(stats.pgmajfault, 6, "8 pages, then to 16, 32, 64, 128 and 200");
}

#[test]
fn a_store_to_a_private_area_is_the_programs_own_and_the_file_never_sees_it() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 4);
    fs.preset(id, &bytes(4));
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, FileArea::new(id, 1, Sharing::Private), 3, RW);
    assert_eq!(store(&fs, space, va, 77), Ok(()), "not mapped before");
    assert_eq!(load(&fs, space, va + PAGE), Ok(word(3)));
    assert_eq!(store(&fs, space, va + PAGE, 78), Ok(()), "mapped before");
    let child = mm.fork(&cpu, space).unwrap();
    assert_eq!(store(&fs, child, va, 99), Ok(()));
    assert_eq!((load(&fs, space, va), load(&fs, child, va)), (Ok(77), Ok(99)));
    assert_eq!(load(&fs, child, va + PAGE), Ok(78));
    assert_eq!(load(&fs, child, va + 2 * PAGE), Ok(word(4)));
    assert_eq!((mm.phys.stats().nr_dirty, mm.phys.stats().nr_anon_pages), (0, 3));
    mm.madvise(&cpu, space, va, PAGE, Advice::DontNeed).unwrap();
    assert_eq!(
        load(&fs, space, va),
        Ok(word(2)),
        "the copy is lost, the file is there"
    );
}

#[test]
fn a_store_to_a_shared_area_is_seen_by_all_and_reaches_the_disk() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 4);
    fs.preset(id, &bytes(2));
    let (one, other) = (
        mm.create_space(&cpu, &[]).unwrap(),
        mm.create_space(&cpu, &[]).unwrap(),
    );
    let at = map(&mm, one, FileArea::new(id, 0, Sharing::Shared), 4, RW);
    let there = map(&mm, other, FileArea::new(id, 0, Sharing::Shared), 4, RW);
    assert_eq!(
        (load(&fs, one, at), load(&fs, other, there + 2 * PAGE)),
        (Ok(word(1)), Ok(0))
    );
    assert_eq!(store(&fs, one, at, 5), Ok(()));
    assert_eq!(fs.block(id, 2), None, "a hole");
    assert_eq!(store(&fs, one, at + 2 * PAGE, 6), Ok(()));
    assert_eq!(
        (load(&fs, other, there), load(&fs, other, there + 2 * PAGE)),
        (Ok(5), Ok(6))
    );
    assert_eq!(mm.phys.stats().nr_dirty, 2);
    fs.run(mm.sync(&cpu, id)).unwrap();
    let on_disk = |index| fs.disk.contents(fs.block(id, index).unwrap())[0];
    assert_eq!((on_disk(0), on_disk(2), mm.phys.stats().nr_dirty), (5, 6, 0));
    // It is clean, so the next store is noticed.
    assert_eq!(store(&fs, other, there, 9), Ok(()));
    assert_eq!(mm.phys.stats().nr_dirty, 1);
    fs.run(mm.sync(&cpu, id)).unwrap();
    assert_eq!((on_disk(0), load(&fs, one, at)), (9, Ok(9)));
}

#[test]
fn beyond_the_end_there_is_nothing_and_what_is_cut_off_is_unmapped() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 4);
    fs.preset(id, &bytes(4));
    let space = mm.create_space(&cpu, &[]).unwrap();
    let shared = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 8, RW);
    let private = map(&mm, space, FileArea::new(id, 0, Sharing::Private), 8, RW);
    let beyond = shared + 4 * PAGE;
    assert_eq!(
        load(&fs, space, beyond),
        Err(FaultError::BeyondEnd { va: beyond })
    );
    for page in 0..4 {
        load(&fs, space, shared + page * PAGE).unwrap();
    }
    for page in [1, 3] {
        store(&fs, space, private + page * PAGE, 1).unwrap();
    }
    let child = mm.fork(&cpu, space).unwrap();
    store(&fs, space, shared + 2 * PAGE, 2).unwrap();
    fs.run(mm.truncate(&cpu, id, PAGE + 8)).unwrap();
    mm.validate().unwrap();
    let gone = shared + 2 * PAGE;
    assert_eq!(load(&fs, space, gone), Err(FaultError::BeyondEnd { va: gone }));
    assert_eq!(load(&fs, space, shared + PAGE), Ok(word(2)));
    assert_eq!(load(&fs, space, shared + PAGE + 8), Ok(0));
    for id in [space, child] {
        let va = private + 3 * PAGE;
        assert_eq!(
            load(&fs, id, va),
            Err(FaultError::BeyondEnd { va }),
            "a copy goes too"
        );
        assert_eq!(
            load(&fs, id, private + PAGE),
            Ok(1),
            "but for that of the last page"
        );
    }
    assert_eq!((mm.cached_pages(id), mm.is_dirty(id)), (2, true));
}

#[test]
fn a_page_that_cannot_be_read_is_an_error_of_who_touches_it() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let id = file(&mm, 8);
    fs.preset(id, &bytes(8));
    fs.disk.break_block(Fault::Read, fs.block(id, 5).unwrap());
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, FileArea::new(id, 0, Sharing::Private), 8, Prot::READ);
    let bad = va + 5 * PAGE;
    assert_eq!(load(&fs, space, bad), Err(FaultError::Io { va: bad }));
    assert_eq!(load(&fs, space, va + 6 * PAGE), Ok(word(7)));
    fs.disk.mend();
    assert_eq!(load(&fs, space, bad), Ok(word(6)));
}

#[test]
fn shared_memory_is_zero_at_first_and_the_same_for_all_who_map_it() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 16);
    let id = mm.create_mapping(MappingKind::Shmem, 6 * PAGE);
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 6, RW);
    let child = mm.fork(&cpu, space).unwrap();
    assert_eq!(load(&fs, space, va + PAGE), Ok(0));
    assert_eq!(store(&fs, space, va, 3), Ok(()));
    assert_eq!(store(&fs, child, va + PAGE, 4), Ok(()));
    assert_eq!(
        (load(&fs, child, va), load(&fs, space, va + PAGE)),
        (Ok(3), Ok(4))
    );
    mm.mprotect(&cpu, space, va, PAGE, Prot::READ).unwrap();
    let refused = FaultError::Protection {
        va,
        access: Access::Write,
    };
    assert_eq!(store(&fs, space, va, 9), Err(refused));
    let stats = mm.phys.stats();
    assert_eq!(
        (stats.nr_shmem, stats.nr_dirty, mm.next_file_io().is_none()),
        (2, 0, true)
    );
}

#[test]
fn pages_of_files_move_off_a_block_with_their_blocks_and_what_was_stored_to_them() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 1024);
    let id = file(&mm, 300);
    fs.preset(id, &[7; 200]);
    let shm = mm.create_mapping(MappingKind::Shmem, 100 * PAGE);
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 300, RW);
    let twice = map(&mm, space, FileArea::new(id, 10, Sharing::Shared), 50, Prot::READ);
    let own = map(&mm, space, FileArea::new(id, 0, Sharing::Private), 300, RW);
    let mem = map(&mm, space, FileArea::new(shm, 0, Sharing::Shared), 100, RW);
    let child = mm.fork(&cpu, space).unwrap();
    for page in 0..300 {
        store(&fs, space, va + page * PAGE, page).unwrap();
        store(&fs, space, own + page / 3 * PAGE, page + 1).unwrap();
        store(&fs, child, mem + page / 3 * PAGE, page + 2).unwrap();
    }
    for page in 0..50 {
        load(&fs, child, twice + page * PAGE).unwrap();
    }
    let (mut moved, mut written) = (0, mm.phys.stats().pgpgout);
    for block in 0..2 {
        let (token, report) = empty_block(&mm, &cpu, block);
        mm.validate().unwrap();
        assert_eq!(report.refused, []);
        moved += report.moved_small;
        mm.phys.undo(token);
    }
    assert!(moved > 400, "{moved} pages moved");
    written = mm.phys.stats().pgpgout - written;
    assert_eq!(
        (written, mm.phys.stats().nr_dirty),
        (0, 300),
        "nothing is written for a move"
    );
    fs.run(mm.sync(&cpu, id)).unwrap();
    for page in 0..300u32 {
        let (nth, on_disk) = (u64::from(page), fs.disk.contents(fs.block(id, page).unwrap()));
        assert_eq!(u64::from_ne_bytes(on_disk[..8].try_into().unwrap()), nth);
        assert_eq!(load(&fs, space, va + nth * PAGE), Ok(nth));
    }
    for page in 0..100 {
        assert_eq!(load(&fs, space, own + page * PAGE), Ok(page * 3 + 3));
        assert_eq!(load(&fs, space, mem + page * PAGE), Ok(page * 3 + 4));
    }
}

#[test]
fn a_page_that_is_being_read_is_busy_for_a_block_that_is_emptied_and_then_moves() {
    machine!(mm, cpu, 512, 2);
    let cpu: &Cpu = &cpu;
    {
        let fs = TestFs::new(&mm, cpu, 64);
        let id = file(&mm, 8);
        fs.preset(id, &bytes(8));
        let space = mm.create_space(cpu, &[]).unwrap();
        let va = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 8, Prot::READ);
        let outcome = mm.fault(cpu, space, va, Access::Read).unwrap();
        assert!(matches!(outcome, FaultOutcome::Locked(_)));
        let block = (0..2).find(|&block| {
            let (token, report) = empty_block(&mm, cpu, block);
            let is_busy = !report.refused.is_empty();
            mm.phys.undo(token);
            is_busy
        });
        let block = block.expect("eight pages are somewhere");
        fs.work();
        let (token, report) = empty_block(&mm, cpu, block);
        assert_eq!((report.moved_small, report.refused.len()), (8, 0));
        mm.phys.undo(token);
        assert_eq!(load(&fs, space, va + 7 * PAGE), Ok(word(8)));
    }
    let (token, _) = empty_block(&mm, cpu, 1);
    remove(&mut mm, token);
}
