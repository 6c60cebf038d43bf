//! Pages that somebody has looked up and still has: what he does with them is not lost, so they stay where they are until he lets go.

use std::vec::Vec;

use guest_sync::Cpu;

use crate::frames::Frames;
use crate::migrate::{BatchEnd, BusyPages, BusyWith, MigrateReport, PageKind, RefusalReason};
use crate::mm::{FileArea, LongtermError, Sharing};
use crate::pagetable::{VaRange, translate};
use crate::tests::file_maps::{self, map};
use crate::tests::files::{file, read};
use crate::tests::machine::{MIB, RW, TestMm, anonymous, isolate_fullest, load, machine, remove, store};
use crate::tests::test_fs::TestFs;
use crate::{Access, BlockIndex, HugeAdvice, Pfn, SpaceId};

const HELD: RefusalReason = RefusalReason::Busy(BusyWith::LookUp);

fn frame_of(mm: &TestMm<'_>, id: SpaceId, va: u64) -> Pfn {
    let root = mm.space(id).unwrap().root();
    Pfn::containing(translate(&mm.frames, root, va, Access::Read).unwrap().gpa).unwrap()
}

/// Somebody looks a page up, as a transfer or another move does.
fn hold(mm: &TestMm<'_>, pfn: Pfn) {
    assert!(mm.phys.page(pfn).unwrap().try_reference());
}

fn refused(report: &MigrateReport) -> Vec<(Pfn, PageKind, RefusalReason)> {
    let refused = report.refused.iter();
    refused
        .map(|refusal| (refusal.pfn, refusal.kind, refusal.reason))
        .collect()
}

/// A program with small pages, page n of which holds n + 1.
fn program(mm: &TestMm<'_>, cpu: &Cpu, pages: u64) -> (SpaceId, u64) {
    let id = mm.create_space(cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(pages * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..pages {
        store(mm, cpu, id, va + page * 4096, page + 1).unwrap();
    }
    (id, va)
}

#[test]
fn what_is_stored_to_a_page_by_whoever_has_it_while_its_neighbours_move_is_what_its_programs_find() {
    const PAGES: u64 = 16;
    machine!(mm, cpu, 512, 2);
    let (parent, va) = program(&mm, &cpu, PAGES);
    let child = mm.fork(&cpu, parent).unwrap();
    let mut token = isolate_fullest(&mm);
    // The first, two neighbours, and the last, each mapped twice.
    let held = [0, 6, 7, 15].map(|page| (va + page * 4096, frame_of(&mm, parent, va + page * 4096)));
    held.iter().for_each(|(_, pfn)| hold(&mm, *pfn));
    let batch = mm.begin_migration(&cpu, &mut token, u32::MAX);
    assert_eq!(batch.len(), 12);
    for (va, pfn) in held {
        // He stores while the others are copied.
        mm.frames.write(pfn, 1, va);
        assert_eq!(load(&mm, &cpu, child, va + 8), Ok(va), "it is mapped as before");
    }
    let report = mm.finish_migration(&cpu, &mut token, batch);
    let mut expected = held.map(|(_, pfn)| (pfn, PageKind::Anonymous, HELD));
    expected.sort_unstable_by_key(|(pfn, ..)| *pfn);
    assert_eq!((report.moved_small, refused(&report)), (12, expected.to_vec()));
    for (va, pfn) in held {
        mm.frames.write(pfn, 2, !va);
        for id in [parent, child] {
            assert_eq!(frame_of(&mm, id, va), pfn);
            assert_eq!(
                (load(&mm, &cpu, id, va + 8), load(&mm, &cpu, id, va + 16)),
                (Ok(va), Ok(!va))
            );
        }
        mm.phys.put_page(&cpu, pfn);
    }
    token.rewind();
    assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_small, 4);
    remove(&mut mm, token);
    for id in [parent, child] {
        for page in 0..PAGES {
            assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
        }
        held.iter()
            .for_each(|(va, _)| assert_eq!(load(&mm, &cpu, id, va + 16), Ok(!va)));
    }
    mm.validate().unwrap();
}

#[test]
fn a_huge_page_that_somebody_has_stays_whole() {
    machine!(mm, cpu, 512, 3);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    store(&mm, &cpu, id, va, 42).unwrap();
    let pfn = frame_of(&mm, id, va);
    let mut token = mm.phys.isolate(mm.phys.block_of(pfn).unwrap()).unwrap();
    hold(&mm, pfn);
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((report.moved_pages(), report.refused.len()), (0, 1));
    assert_eq!((report.refused[0].pfn, report.refused[0].reason), (pfn, HELD));
    mm.frames.write(pfn + 300, 1, 43);
    assert_eq!(load(&mm, &cpu, id, va + 300 * 4096 + 8), Ok(43));
    mm.phys.put_page(&cpu, pfn);
    mm.validate().unwrap();
    token.rewind();
    assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_huge, 1);
    remove(&mut mm, token);
    assert_eq!(load(&mm, &cpu, id, va), Ok(42));
    assert_eq!(load(&mm, &cpu, id, va + 300 * 4096 + 8), Ok(43));
    mm.validate().unwrap();
}

#[test]
fn a_page_of_a_file_that_somebody_has_stays_in_its_file_whether_programs_map_it_or_not() {
    for is_mapped in [true, false] {
        machine!(mm, cpu, 512, 2);
        let fs = TestFs::new(&mm, &cpu, 64);
        let id = file(&mm, 8 * 4096);
        fs.preset(id, &[7; 8]);
        let space = mm.create_space(&cpu, &[]).unwrap();
        let va = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 8, RW);
        for page in 0..8 {
            file_maps::load(&fs, space, va + page * 4096).unwrap();
        }
        let pfn = frame_of(&mm, space, va + 5 * 4096);
        if !is_mapped {
            mm.munmap(&cpu, space, va, 8 * 4096).unwrap();
        }
        let mut token = mm.phys.isolate(mm.phys.block_of(pfn).unwrap()).unwrap();
        hold(&mm, pfn);
        let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
        assert_eq!(
            (report.moved_small, report.refused.len()),
            (7, 1),
            "mapped: {is_mapped}"
        );
        assert_eq!((report.refused[0].pfn, report.refused[0].reason), (pfn, HELD));
        mm.frames.write_bytes(pfn, 0, &[9; 4096]);
        mm.phys.put_page(&cpu, pfn);
        mm.validate().unwrap();
        assert_eq!(read(&fs, id, 5 * 4096, 4096).unwrap(), [9; 4096]);
        token.rewind();
        assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_small, 1);
        mm.phys.offline(token).unwrap();
        assert_eq!(read(&fs, id, 5 * 4096, 4096).unwrap(), [9; 4096]);
        mm.validate().unwrap();
    }
}

#[test]
fn a_pass_that_waits_ends_before_a_page_that_somebody_has_and_goes_on_with_it() {
    machine!(mm, cpu, 512, 2);
    let (id, va) = program(&mm, &cpu, 16);
    let mut token = isolate_fullest(&mm);
    let held = frame_of(&mm, id, va + 5 * 4096);
    hold(&mm, held);
    token.rewind_with(BusyPages::Await);
    let is_before = |page: &u64| frame_of(&mm, id, va + page * 4096) < held;
    let before = u32::try_from((0..16).filter(is_before).count()).unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((report.end, report.refused.len()), (BatchEnd::Busy(held), 0));
    assert_eq!(report.moved_small, before, "those in front of it");
    mm.frames.write(held, 1, 99);
    assert_eq!(load(&mm, &cpu, id, va + 5 * 4096 + 8), Ok(99));
    mm.phys.put_page(&cpu, held);
    mm.validate().unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!(
        (report.end, report.moved_small),
        (BatchEnd::PassDone, 16 - before)
    );
    remove(&mut mm, token);
    for page in 0..16 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    assert_eq!(load(&mm, &cpu, id, va + 5 * 4096 + 8), Ok(99));
    mm.validate().unwrap();
}

#[test]
fn a_page_that_somebody_has_is_busy_for_who_wants_it_pinned_for_long_or_for_a_transfer_elsewhere() {
    machine!(mm, cpu, 512, 2);
    let (id, va) = program(&mm, &cpu, 8);
    let held = frame_of(&mm, id, va + 3 * 4096);
    hold(&mm, held);
    let range = VaRange::new(va, 8 * 4096).unwrap();
    let longterm = || mm.pin_user_longterm(&cpu, id, range, "registered buffer");
    assert_eq!(longterm().unwrap_err(), LongtermError::Busy(held));
    mm.frames.write(held, 1, 99);
    assert_eq!(load(&mm, &cpu, id, va + 3 * 4096 + 8), Ok(99));
    // The others have left removable memory, and this one is pinned where it is when its block is about to leave.
    let token = mm.phys.isolate(mm.phys.block_of(held).unwrap()).unwrap();
    let pin = mm.pin_user(&cpu, id, va + 3 * 4096, "direct I/O").unwrap();
    assert_eq!(pin.pfn(), held);
    mm.phys.unpin(&cpu, pin);
    mm.phys.put_page(&cpu, held);
    mm.validate().unwrap();
    let pin = mm.pin_user(&cpu, id, va + 3 * 4096, "direct I/O").unwrap();
    assert_ne!(pin.pfn(), held, "nobody has it any more");
    mm.phys.unpin(&cpu, pin);
    mm.phys.undo(token);
    let pins = longterm().unwrap();
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
    for block in (0..2).map(BlockIndex) {
        let mut token = mm.phys.isolate(block).unwrap();
        assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).refused, []);
        remove(&mut mm, token);
    }
    assert_eq!(load(&mm, &cpu, id, va + 3 * 4096 + 8), Ok(99));
    mm.validate().unwrap();
}
