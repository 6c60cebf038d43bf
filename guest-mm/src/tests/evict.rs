//! Pages that leave an isolated block for the disk instead of moving: which do, which stay for remap, and what comes back.

use std::vec::Vec;

use guest_sync::Cpu;

use crate::IsolatedBlock;
use crate::blocks::BlockIndex;
use crate::disk::SimulatedDisk;
use crate::migrate::{BatchEnd, EvictReport, Eviction};
use crate::mm::PageIo;
use crate::tests::launder::pfn_at;
use crate::tests::machine::{MIB, TestMm, anonymous, load, machine, store};
use crate::tests::swap::{PAGES, load_swapped, program, work};
use crate::{Access, HugeAdvice, SpaceId};

/// Isolates all blocks that are in use.
fn isolate_used(mm: &TestMm<'_>, nr_blocks: u32) -> Vec<IsolatedBlock> {
    let used = |&block: &BlockIndex| mm.phys.block_usage(block).unwrap().used_pages > 0;
    let blocks = (0..nr_blocks).map(BlockIndex).filter(used);
    blocks.map(|block| mm.phys.isolate(block).unwrap()).collect()
}

/// One pass over the blocks, and all that the disk has to do then.
fn evict(
    (mm, cpu, disk): (&TestMm<'_>, &Cpu, &SimulatedDisk<PageIo>),
    blocks: &mut [IsolatedBlock],
    which: Eviction,
) -> EvictReport {
    let mut all = EvictReport::default();
    for block in blocks {
        block.rewind();
        loop {
            let report = mm.evict_batch(cpu, block, which, 5);
            mm.validate().unwrap();
            all.freed += report.freed;
            all.written += report.written;
            all.kept += report.kept;
            if report.is_pass_done {
                break;
            }
        }
    }
    work(mm, cpu, disk);
    all
}

fn used_pages(mm: &TestMm<'_>, blocks: &[IsolatedBlock]) -> u32 {
    blocks.iter().map(|block| mm.phys.used_pages(block)).sum()
}

fn assert_contents(mm: &TestMm<'_>, cpu: &Cpu, disk: &SimulatedDisk<PageIo>, (id, va): (SpaceId, u64)) {
    for page in 0..PAGES {
        assert_eq!(load_swapped(mm, cpu, disk, id, va + page * 4096), Ok(page + 1));
    }
}

#[test]
fn by_swapout_pages_leave_however_much_they_are_used() {
    machine!(mm, cpu, 512, 3);
    let (disk, id, va) = program(&mm, &cpu);
    let mut blocks = isolate_used(&mm, 3);
    let report = evict((&mm, &cpu, &disk), &mut blocks, Eviction::All);
    assert_eq!((report.freed, report.written), (0, 64), "{report:?}");
    assert_eq!(used_pages(&mm, &blocks), 0);
    let (space, stats) = (mm.space(id).unwrap(), mm.phys.stats());
    assert_eq!((space.rss_pages(), space.swap_pages()), (0, PAGES));
    assert_eq!((stats.pgmigrate_success, stats.pswpout), (0, PAGES));
    assert_eq!((stats.block_pages_dropped, stats.block_pages_written), (0, 64));
    for block in blocks {
        mm.phys.offline(block).unwrap();
    }
    assert_contents(&mm, &cpu, &disk, (id, va));
    mm.validate().unwrap();
}

#[test]
fn combined_those_that_were_used_lately_stay_and_move() {
    machine!(mm, cpu, 512, 3);
    let (disk, id, va) = program(&mm, &cpu);
    let mut blocks = isolate_used(&mm, 3);
    let report = evict((&mm, &cpu, &disk), &mut blocks, Eviction::Cold);
    assert_eq!(
        (report.freed, report.written),
        (0, 0),
        "all were just written: {report:?}"
    );
    let report = evict((&mm, &cpu, &disk), &mut blocks, Eviction::Cold);
    assert_eq!(
        (report.freed, report.written),
        (0, 0),
        "all are active, and only a look older now: {report:?}"
    );
    for page in (0..PAGES).step_by(4) {
        // Hardware sets the accessed bit when it has no translation at hand.
        mm.fault(&cpu, id, va + page * 4096, Access::Read).unwrap();
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page + 1));
    }
    let report = evict((&mm, &cpu, &disk), &mut blocks, Eviction::Cold);
    assert_eq!((report.written, report.kept), (48, 16), "{report:?}");
    for block in &mut blocks {
        block.rewind();
        let report = mm.migrate_batch(&cpu, block, 1024);
        assert_eq!((&report.refused[..], report.end), (&[][..], BatchEnd::PassDone));
    }
    assert_eq!(
        (used_pages(&mm, &blocks), mm.phys.stats().pgmigrate_success),
        (0, 16)
    );
    let space = mm.space(id).unwrap();
    assert_eq!((space.rss_pages(), space.swap_pages()), (16, 48));
    assert_contents(&mm, &cpu, &disk, (id, va));
    mm.validate().unwrap();
}

#[test]
fn combined_a_page_that_has_an_age_left_is_not_cold_before_it_has_none() {
    machine!(mm, cpu, 512, 3);
    let (disk, id, va) = program(&mm, &cpu);
    let mut blocks = isolate_used(&mm, 3);
    mm.phys.page(pfn_at(&mm, id, va)).unwrap().set_age(7);
    let mut look = || evict((&mm, &cpu, &disk), &mut blocks, Eviction::Cold).written;
    // All were just written, then all are active; the one is 3 looks older before it counts as the others do: at an age of 3, of 1, of 0.
    assert_eq!((look(), look(), look()), (0, 0, 63));
    assert_eq!((look(), look()), (0, 1));
    assert_eq!(used_pages(&mm, &blocks), 0);
    mm.validate().unwrap();
}

#[test]
fn a_huge_page_leaves_in_pieces_each_of_which_comes_up() {
    machine!(mm, cpu, 512, 4);
    let (disk, _, _) = program(&mm, &cpu);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    for page in 0..512 {
        store(&mm, &cpu, id, va + page * 4096, !page).unwrap();
    }
    let mut blocks = isolate_used(&mm, 4);
    evict((&mm, &cpu, &disk), &mut blocks, Eviction::All);
    assert_eq!(mm.phys.stats().thp_split_page, 1);
    assert_eq!(
        (used_pages(&mm, &blocks), mm.space(id).unwrap().swap_pages()),
        (0, 512)
    );
    for page in 0..512 {
        assert_eq!(load_swapped(&mm, &cpu, &disk, id, va + page * 4096), Ok(!page));
    }
    mm.validate().unwrap();
}

#[test]
fn locked_and_pinned_pages_and_those_without_a_swap_area_are_left_for_remap() {
    machine!(mm, cpu, 512, 3);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(PAGES * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..PAGES {
        store(&mm, &cpu, id, va + page * 4096, page + 1).unwrap();
    }
    let disk = SimulatedDisk::new(1024, 64);
    let mut blocks = isolate_used(&mm, 3);
    let report = evict((&mm, &cpu, &disk), &mut blocks, Eviction::All);
    assert_eq!(
        (report.freed, report.written, report.kept),
        (0, 0, 64),
        "no swap area"
    );

    mm.swap_on(&crate::swap::AreaHeader::new(1024), 0).unwrap();
    mm.mlock(&cpu, id, (va, 16 * 4096), 64).unwrap();
    let report = evict((&mm, &cpu, &disk), &mut blocks, Eviction::All);
    assert_eq!((report.written, report.kept), (48, 16), "{report:?}");
    assert_eq!(used_pages(&mm, &blocks), 16);
    for block in &mut blocks {
        block.rewind();
        assert_eq!(mm.migrate_batch(&cpu, block, 1024).refused, []);
    }
    assert_eq!(used_pages(&mm, &blocks), 0);
    assert_contents(&mm, &cpu, &disk, (id, va));
    mm.validate().unwrap();
}
