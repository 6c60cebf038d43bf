//! Pages that leave memory for the swap area and come back: to whom they belong, and what errors of the disk do.

use std::vec::Vec;

use guest_sync::Cpu;

use crate::disk::{BlockDevice, BlockNr, Fault, SimulatedDisk};
use crate::mm::{FaultError, FaultOutcome, IoChoice, MmapError, PageIo};
use crate::pagetable::VaRange;
use crate::swap::AreaHeader;
use crate::tests::machine::{MIB, TestMm, anonymous, empty_block, load, machine, remove, store};
use crate::{Access, Entry, HugeAdvice, LruList, SpaceId};

pub(super) const PAGES: u64 = 64;

/// A program with so many small pages, page n of which holds n + 1, on a machine with a swap area.
pub(super) fn program(mm: &TestMm<'_>, cpu: &Cpu) -> (SimulatedDisk<PageIo>, SpaceId, u64) {
    mm.swap_on(&AreaHeader::new(1024), 0).unwrap();
    let id = mm.create_space(cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(PAGES * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..PAGES {
        store(mm, cpu, id, va + page * 4096, page + 1).unwrap();
    }
    (SimulatedDisk::new(1024, 64), id, va)
}

/// The disk does all that is asked of it.
pub(super) fn work(mm: &TestMm<'_>, cpu: &Cpu, disk: &SimulatedDisk<PageIo>) {
    loop {
        while let Some((request, io)) = mm.next_io(IoChoice::All, 8) {
            if let Err((_, io)) = disk.submit(request, io) {
                mm.io_refused(io);
                break;
            }
        }
        if !disk.step(&mm.frames, 0) {
            return;
        }
        while let Some((io, result)) = disk.completed() {
            mm.end_io(cpu, io, result);
        }
        mm.validate().unwrap();
    }
}

/// Has every zone looked at several times, as when memory is short for long.
fn shrink(mm: &TestMm<'_>, cpu: &Cpu) -> u32 {
    let mut gone = 0;
    for _ in 0..8 {
        for zone in mm.phys.populated_zones() {
            let shrunk = mm.shrink_zone(cpu, zone, 32);
            gone += shrunk.freed + shrunk.written;
            mm.validate().unwrap();
        }
    }
    gone
}

/// Has all pages leave memory that can.
fn swap_out(mm: &TestMm<'_>, cpu: &Cpu, disk: &SimulatedDisk<PageIo>) {
    for _ in 0..16 {
        shrink(mm, cpu);
        work(mm, cpu, disk);
    }
}

/// A load that waits for the disk as long as it takes.
pub(super) fn load_swapped(
    mm: &TestMm<'_>,
    cpu: &Cpu,
    disk: &SimulatedDisk<PageIo>,
    id: SpaceId,
    va: u64,
) -> Result<u64, FaultError> {
    loop {
        if let Ok(value) = mm.cpu_load(id, va) {
            return Ok(value);
        }
        if let FaultOutcome::Locked(_) = mm.fault(cpu, id, va, Access::Read)? {
            work(mm, cpu, disk);
        }
    }
}

#[test]
fn pages_that_nobody_uses_go_to_the_disk_and_come_back_as_they_were() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    let free = mm.phys.memory_stats().free_pages;
    assert!(shrink(&mm, &cpu) > 0);
    swap_out(&mm, &cpu, &disk);
    let space = mm.space(id).unwrap();
    assert_eq!((space.rss_pages(), space.swap_pages()), (0, PAGES));
    let usage = mm.swap_usage();
    assert_eq!((usage.total - usage.free, usage.cached), (64, 0));
    assert_eq!(mm.phys.memory_stats().free_pages, free + PAGES);
    for page in 0..PAGES {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
    let stats = mm.phys.stats();
    assert_eq!((stats.pswpout, stats.pswpin), (PAGES, PAGES));
    assert_eq!(stats.pgmajfault, 5, "slots 1 to 7, then 8, 16, 32 more, and 64");
    mm.destroy_space(&cpu, id).unwrap();
    mm.validate().unwrap();
    assert_eq!(mm.swap_usage().free, usage.total);
}

#[test]
fn pages_that_were_read_with_the_wanted_one_are_mapped_with_it_as_if_nobody_had_used_them() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    swap_out(&mm, &cpu, &disk);
    let faults = mm.phys.stats().pgfault;
    assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + 9 * 4096), Ok(10));
    let space = mm.space(id).unwrap();
    assert_eq!(
        (space.rss_pages(), space.swap_pages()),
        (8, PAGES - 8),
        "slots 8 to 15"
    );
    let locked = space.lock();
    let is_used = |page: u64| {
        let found = locked.table.find(&mm.frames, va + page * 4096);
        found.entry.is_present().then(|| found.entry.has(Entry::ACCESSED))
    };
    let used: Vec<_> = (6..16).map(is_used).collect();
    let read = [false, false, true, false, false, false, false, false].map(Some);
    assert_eq!((used[0], &used[1..9], used[9]), (None, &read[..], None));
    drop(locked);
    mm.validate().unwrap();
    let after = mm.phys.stats();
    for page in 7..15 {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
    assert_eq!(mm.phys.stats().pgfault, after.pgfault, "they need no fault");
    assert_eq!(after.pgfault - faults, 2, "one to ask, one when it had come");
    // A store to one of them is its own affair.
    store(&mm, &cpu, id, va + 10 * 4096, 77).unwrap();
    assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + 10 * 4096), Ok(77));
    mm.validate().unwrap();
}

#[test]
fn a_page_that_is_used_between_two_looks_stays() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    let used = |mm: &TestMm<'_>| {
        // Hardware sets the accessed bit when it has no translation at hand.
        mm.fault(&cpu, id, va, Access::Read).unwrap();
        load(mm, &cpu, id, va).unwrap();
    };
    for _ in 0..40 {
        used(&mm);
        for zone in mm.phys.populated_zones() {
            mm.shrink_zone(&cpu, zone, 8);
        }
        work(&mm, &cpu, &disk);
        mm.validate().unwrap();
    }
    let space = mm.space(id).unwrap();
    assert!(
        space.swap_pages() > PAGES / 2,
        "{} pages left memory",
        space.swap_pages()
    );
    assert_eq!(mm.cpu_load(id, va), Ok(1), "this one did not");
}

#[test]
fn a_swapped_page_is_read_once_for_a_whole_family_and_copied_for_who_writes() {
    machine!(mm, cpu, 512, 2);
    let (disk, parent, va) = program(&mm, &cpu);
    let before = mm.fork(&cpu, parent).unwrap();
    swap_out(&mm, &cpu, &disk);
    let after = mm.fork(&cpu, parent).unwrap();
    mm.validate().unwrap();
    assert_eq!(mm.space(after).unwrap().swap_pages(), PAGES);
    for id in [before, parent, after] {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va), Ok(1));
    }
    assert_eq!(mm.phys.stats().pgmajfault, 1);
    store(&mm, &cpu, before, va, 100).unwrap();
    assert_eq!(
        (load(&mm, &cpu, parent, va), load(&mm, &cpu, after, va)),
        (Ok(1), Ok(1))
    );
    mm.validate().unwrap();
    for id in [parent, before, after] {
        mm.destroy_space(&cpu, id).unwrap();
        mm.validate().unwrap();
    }
    let usage = mm.swap_usage();
    assert_eq!((usage.free, usage.cached), (usage.total, 0));
}

#[test]
fn a_page_that_cannot_be_read_is_an_error_of_its_reader_alone_and_another_try_reads_again() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    swap_out(&mm, &cpu, &disk);
    for block in 1..9 {
        disk.break_block(Fault::Read, BlockNr(block));
    }
    let lost: Vec<u64> = (0..PAGES)
        .filter(|page| load_swapped(&mm, &cpu, &disk, id, va + page * 4096).is_err())
        .collect();
    mm.validate().unwrap();
    assert_eq!(lost.len(), 8, "the pages in those slots, and no other");
    let again = va + lost[0] * 4096;
    assert_eq!(
        load_swapped(&mm, &cpu, &disk, id, again),
        Err(FaultError::Io { va: again })
    );
    disk.mend();
    for page in 0..PAGES {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
}

#[test]
fn a_page_that_cannot_be_written_stays_in_memory() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    for block in 1..1024 {
        disk.break_block(Fault::Write, BlockNr(block));
    }
    shrink(&mm, &cpu);
    work(&mm, &cpu, &disk);
    let stats = mm.phys.stats();
    assert!(stats.pswpout_error > 0 && stats.pswpout == 0, "{stats:?}");
    for page in 0..PAGES {
        assert_eq!(
            load(&mm, &cpu, id, va + page * 4096),
            Ok(page + 1),
            "without the disk"
        );
    }
    disk.mend();
    shrink(&mm, &cpu);
    work(&mm, &cpu, &disk);
    assert!(mm.phys.stats().pswpout > 0);
    for page in 0..PAGES {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
}

#[test]
fn pages_of_the_swap_cache_move_off_a_block_mapped_or_not() {
    machine!(mm, cpu, 512, 3);
    let (disk, id, va) = program(&mm, &cpu);
    swap_out(&mm, &cpu, &disk);
    // Slots 1 to 7 are read, one of them is mapped.
    let first = (0..PAGES).find(|page| load_swapped(&mm, &cpu, &disk, id, va + page * 4096) == Ok(page + 1));
    assert_eq!((first, mm.swap_usage().cached), (Some(0), 7));
    let stats = mm.phys.stats();
    for block in 0..3 {
        let (token, report) = empty_block(&mm, &cpu, block);
        assert_eq!(report.refused, []);
        mm.validate().unwrap();
        if mm.phys.used_pages(&token) == 0 && block == 0 {
            remove(&mut mm, token);
        } else {
            mm.phys.undo(token);
        }
    }
    let moved = mm.phys.stats().pgmigrate_success - stats.pgmigrate_success;
    assert!(moved >= 7, "{moved} pages moved");
    let mut without_disk = 0;
    for page in 0..PAGES {
        let at = va + page * 4096;
        let outcome = mm.fault(&cpu, id, at, Access::Read);
        if !matches!(outcome, Ok(FaultOutcome::Locked(_))) {
            assert_eq!(load(&mm, &cpu, id, at), Ok(page + 1));
            without_disk += 1;
        }
        work(&mm, &cpu, &disk);
    }
    assert!(without_disk >= 7, "{without_disk} pages were still in memory");
    mm.validate().unwrap();
}

#[test]
fn a_huge_page_goes_in_pieces() {
    machine!(mm, cpu, 512, 4);
    let (disk, _, _) = program(&mm, &cpu);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mm, &cpu, id, va + page * 4096, !page).unwrap();
    }
    swap_out(&mm, &cpu, &disk);
    swap_out(&mm, &cpu, &disk);
    assert_eq!(mm.phys.stats().thp_split_page, 1);
    assert_eq!(mm.space(id).unwrap().swap_pages(), 512);
    for page in 0..512 {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(!page));
    }
    mm.validate().unwrap();
}

#[test]
fn without_a_swap_area_everything_stays() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(PAGES * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..PAGES {
        store(&mm, &cpu, id, va + page * 4096, page).unwrap();
    }
    assert_eq!(shrink(&mm, &cpu), 0);
    assert_eq!(mm.space(id).unwrap().rss_pages(), PAGES);
    let listed = |list| {
        mm.phys
            .populated_zones()
            .map(|zone| zone.lru_len(list))
            .sum::<u64>()
    };
    assert_eq!(listed(LruList::Active) + listed(LruList::Inactive), PAGES);
}

/// What waits for the disks: direction, area, first block and pages of each request, none of which is carried out.
fn requests(mm: &TestMm<'_>, most_pages: usize) -> Vec<(bool, u8, u64, usize)> {
    let mut taken = Vec::new();
    while let Some((request, io)) = mm.next_io(IoChoice::All, most_pages) {
        let (first, pages) = request.transfer().unwrap();
        assert_eq!(pages.len(), io.nr_pages());
        let what = (io.is_write(), io.area().number(), first.0, pages.len());
        taken.push((what, io));
    }
    let seen = taken.iter().map(|(what, _)| *what).collect();
    taken.into_iter().rev().for_each(|(_, io)| mm.io_refused(io));
    seen
}

#[test]
fn neighbours_on_the_disk_are_one_request_and_reads_go_before_writes() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    for zone in mm.phys.populated_zones() {
        mm.shrink_zone(&cpu, zone, 64);
        mm.shrink_zone(&cpu, zone, 64);
    }
    // Slots 1 to 64: at most 16 at a time.
    let writes = requests(&mm, 16);
    assert_eq!(
        writes,
        [
            (true, 0, 1, 16),
            (true, 0, 17, 16),
            (true, 0, 33, 16),
            (true, 0, 49, 16)
        ]
    );
    assert_eq!(requests(&mm, 1).len(), 64);
    work(&mm, &cpu, &disk);
    // A slot is read with the others of its aligned eight, which are joined to it on both sides.
    let wanted = (0..PAGES).find(|page| {
        let at = va + page * 4096;
        matches!(mm.fault(&cpu, id, at, Access::Read), Ok(FaultOutcome::Locked(_)))
    });
    assert!(wanted.is_some());
    let reads = requests(&mm, 16);
    assert_eq!(reads.len(), 1, "{reads:?}");
    assert!(!reads[0].0 && reads[0].3 >= 7, "{reads:?}");
    for page in 0..PAGES {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(page + 1));
    }
}

#[test]
fn one_bad_block_of_a_request_is_an_error_of_its_own_page_alone() {
    machine!(mm, cpu, 512, 2);
    let (disk, id, va) = program(&mm, &cpu);
    disk.break_block(Fault::Write, BlockNr(3));
    shrink(&mm, &cpu);
    work(&mm, &cpu, &disk);
    assert_eq!(
        mm.phys.stats().pswpout_error,
        1,
        "and not those written together with it"
    );
    disk.mend();
    swap_out(&mm, &cpu, &disk);
    disk.break_block(Fault::Read, BlockNr(20));
    let lost: Vec<u64> = (0..PAGES)
        .filter(|page| load_swapped(&mm, &cpu, &disk, id, va + page * 4096) != Ok(page + 1))
        .collect();
    assert_eq!(lost.len(), 1, "the pages {lost:?}");
    mm.validate().unwrap();
}

#[test]
fn pages_go_to_several_areas_and_come_back_each_from_its_own() {
    machine!(mm, cpu, 512, 2);
    let (first, id, va) = program(&mm, &cpu);
    // The same priority, and a last resort that is not needed.
    let area = mm.swap_on(&AreaHeader::new(512), 0).unwrap();
    mm.swap_on(&AreaHeader::new(512), -1).unwrap();
    let second = SimulatedDisk::new(512, 64);
    let work = |mm: &TestMm<'_>| {
        loop {
            while let Some((request, io)) = mm.next_io(IoChoice::All, 8) {
                let disk = if io.area() == area { &second } else { &first };
                disk.submit(request, io).unwrap();
            }
            if !first.step(&mm.frames, 0) && !second.step(&mm.frames, 0) {
                break;
            }
            for (io, result) in [&first, &second].iter().filter_map(|disk| disk.completed()) {
                mm.end_io(&cpu, io, result);
            }
            mm.validate().unwrap();
        }
    };
    for _ in 0..16 {
        shrink(&mm, &cpu);
        work(&mm);
    }
    let used: Vec<u32> = mm
        .swap_areas()
        .iter()
        .map(|area| area.total - area.free)
        .collect();
    assert_eq!(used, [33, 31, 0]);
    for page in 0..PAGES {
        let at = va + page * 4096;
        while mm.cpu_load(id, at) != Ok(page + 1) {
            if let FaultOutcome::Locked(_) = mm.fault(&cpu, id, at, Access::Read).unwrap() {
                work(&mm);
            }
        }
    }
    mm.destroy_space(&cpu, id).unwrap();
    assert!(mm.swap_areas().iter().all(|area| area.total == area.free));
}

#[test]
fn locked_memory_stays_moves_with_its_block_and_may_leave_once_it_is_let_go() {
    machine!(mm, cpu, 512, 3);
    let (disk, id, va) = program(&mm, &cpu);
    let locked = 16 * 4096;
    let whole = PAGES * 4096;
    let too_much = mm.mlock(&cpu, id, (va, whole), 63);
    assert_eq!(too_much, Err(MmapError::LockLimit { limit: 63 }));
    let hole = mm.mlock(&cpu, id, (va + whole, 4096), 64);
    assert!(matches!(hole, Err(MmapError::BadRange { .. })), "{hole:?}");
    mm.mlock(&cpu, id, (va, locked), 64).unwrap();
    // Half of it is marked at once, the rest when reclaim comes upon it.
    mm.mark_locked(id, VaRange::new(va, locked / 2).unwrap());
    mm.validate().unwrap();
    swap_out(&mm, &cpu, &disk);
    let space = mm.space(id).unwrap();
    assert_eq!((space.rss_pages(), space.swap_pages()), (16, PAGES - 16));
    let unevictable = |mm: &TestMm<'_>| -> u64 {
        let zones = mm.phys.populated_zones();
        zones.map(|zone| zone.lru_len(LruList::Unevictable)).sum()
    };
    assert_eq!(unevictable(&mm), 16);
    // A child's memory is not kept, and what it shares with its parent is.
    let child = mm.fork(&cpu, id).unwrap();
    swap_out(&mm, &cpu, &disk);
    assert_eq!(mm.space(child).unwrap().rss_pages(), 16);
    mm.destroy_space(&cpu, child).unwrap();
    for block in 0..3 {
        let (token, report) = empty_block(&mm, &cpu, block);
        assert_eq!(report.refused, []);
        mm.validate().unwrap();
        mm.phys.undo(token);
    }
    swap_out(&mm, &cpu, &disk);
    assert_eq!((space.rss_pages(), unevictable(&mm)), (16, 16));
    for page in 0..16 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    mm.munlock(&cpu, id, va, locked).unwrap();
    assert_eq!(unevictable(&mm), 0);
    swap_out(&mm, &cpu, &disk);
    assert_eq!(space.rss_pages(), 0);
    mm.mlock(&cpu, id, (va, whole), 64).unwrap();
    mm.destroy_space(&cpu, id).unwrap();
    mm.validate().unwrap();
}
