//! The three ways in which pages of files move: without what the file system has on them, with it, and by the file system itself.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::Arc;
use std::vec::Vec;

use guest_sync::{Cpu, SpinLock};

use crate::mm::mapping::{AddressSpaceOps, MappingKind, Migration, PageLookup, PrivatePage};
use crate::mm::{FileArea, MappingId, Sharing};
use crate::tests::file_maps::{load as load_word, map, word};
use crate::tests::files::{read, write};
use crate::tests::machine::{RW, TestMm, machine};
use crate::tests::test_fs::TestFs;
use crate::{BlockIndex, IsolatedBlock, Pfn};

const PAGE: usize = 4096;
const PAGES: u8 = 8;

fn isolate_used(mm: &TestMm<'_>) -> Vec<IsolatedBlock> {
    let used = |&block: &BlockIndex| mm.phys.block_usage(block).unwrap().used_pages > 0;
    let blocks = (0..mm.phys.hotplug_region().nr_blocks()).map(BlockIndex);
    let used = blocks.filter(used);
    used.map(|block| mm.phys.isolate(block).unwrap()).collect()
}

/// What one pass over the blocks comes to: pages moved and put off.
fn pass(mm: &TestMm<'_>, cpu: &Cpu, blocks: &mut [IsolatedBlock]) -> (u32, usize) {
    let mut all = (0, 0);
    for block in blocks {
        block.rewind();
        let report = mm.migrate_batch(cpu, block, 1024);
        assert!(report.refused.iter().all(|refusal| refusal.reason.is_busy()));
        all = (all.0 + report.moved_small, all.1 + report.refused.len());
        mm.validate().unwrap();
    }
    all
}

fn has_private(mm: &TestMm<'_>, cpu: &Cpu, id: MappingId, index: u32) -> bool {
    match mm.lock_page(cpu, id, index).unwrap() {
        PageLookup::Locked(page) => page.private().is_some(),
        _ => panic!("it is there"),
    }
}

/// A file system without a method of its own; counts what it is asked to let go of.
#[derive(Default)]
struct Plain {
    released: AtomicU32,
}

impl AddressSpaceOps for Plain {
    fn releasepage(&self, _: PrivatePage) -> bool {
        self.released.fetch_add(1, Relaxed);
        true
    }
}

#[test]
fn without_a_method_dirty_pages_are_written_first_and_all_move_without_private_data() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 64);
    let ops = Arc::new(Plain::default());
    let id = mm.create_mapping(MappingKind::File(ops.clone()), 0);
    fs.preset(id, &[1; PAGES as usize]);
    write(&fs, id, 0, &[2; 4 * PAGE]).unwrap();
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 4, RW);
    load_word(&fs, space, va).unwrap();
    let mut blocks = isolate_used(&mm);
    assert_eq!(pass(&mm, &cpu, &mut blocks).1, 4, "they are dirty");
    let stats = mm.phys.stats();
    assert_eq!(
        (
            stats.migrate_written_first,
            stats.nr_writeback,
            ops.released.load(Relaxed)
        ),
        (4, 4, 0)
    );
    assert_eq!(pass(&mm, &cpu, &mut blocks), (0, 4), "they are on their way");
    fs.work();
    assert_eq!(pass(&mm, &cpu, &mut blocks), (4, 0));
    assert_eq!((mm.phys.stats().pgpgout, ops.released.load(Relaxed)), (4, 4));
    assert!((0..4).all(|index| !has_private(&mm, &cpu, id, index)));
    for block in blocks {
        mm.phys.offline(block).unwrap();
    }
    // The file system finds the block again for what is written next.
    write(&fs, id, 0, &[5; PAGE]).unwrap();
    assert!(has_private(&mm, &cpu, id, 0));
    assert_eq!(fs.run(mm.sync(&cpu, id)), Ok(()));
    for (index, byte) in (0..4).zip([5, 2, 2, 2]) {
        assert_eq!(fs.disk.contents(fs.block(id, index).unwrap())[77], byte);
    }
    assert_eq!(read(&fs, id, 0, PAGE).unwrap(), [5; PAGE]);
    mm.validate().unwrap();
}

/// Says no to the release of private data for as long as it likes.
#[derive(Default)]
struct Tenacious {
    lets_go: AtomicU32,
}

impl AddressSpaceOps for Tenacious {
    fn releasepage(&self, _: PrivatePage) -> bool {
        self.lets_go.load(Relaxed) > 0
    }
}

#[test]
fn a_page_whose_private_data_are_not_let_go_of_stays_where_it_is() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 64);
    let ops = Arc::new(Tenacious::default());
    let id = mm.create_mapping(MappingKind::File(ops.clone()), 0);
    write(&fs, id, 0, &[2; 3 * PAGE]).unwrap();
    fs.run(mm.sync(&cpu, id)).unwrap();
    let mut blocks = isolate_used(&mm);
    assert_eq!(pass(&mm, &cpu, &mut blocks), (0, 3));
    assert!((0..3).all(|index| has_private(&mm, &cpu, id, index)));
    ops.lets_go.store(1, Relaxed);
    assert_eq!(pass(&mm, &cpu, &mut blocks), (3, 0));
    assert_eq!(read(&fs, id, 0, 3 * PAGE).unwrap(), [2; 3 * PAGE]);
}

/// Moves its pages itself, or not.
#[derive(Default)]
struct Mover {
    is_willing: AtomicU32,
    /// From where to where.
    moved: SpinLock<Vec<(Pfn, Pfn)>>,
}

impl AddressSpaceOps for Mover {
    fn migration(&self) -> Migration {
        Migration::Whole
    }

    fn migrate_page(&self, _: PrivatePage, _: Pfn) -> u32 {
        unreachable!("it moves its pages as a whole")
    }

    fn take_over(&self, page: PrivatePage, to: Pfn, copy: &mut dyn FnMut()) -> Option<u32> {
        if self.is_willing.load(Relaxed) == 0 {
            return None;
        }
        copy();
        self.moved.lock().push((page.pfn, to));
        Some(page.private)
    }
}

#[test]
fn a_file_system_that_takes_its_pages_over_copies_them_itself_and_can_refuse() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 64);
    let ops = Arc::new(Mover::default());
    let id = mm.create_mapping(MappingKind::File(ops.clone()), 0);
    write(&fs, id, 0, &[6; 5 * PAGE]).unwrap();
    let space = mm.create_space(&cpu, &[]).unwrap();
    let va = map(&mm, space, FileArea::new(id, 0, Sharing::Shared), 5, RW);
    assert_eq!(load_word(&fs, space, va), Ok(word(6)));
    let mut blocks = isolate_used(&mm);
    let free = mm.phys.memory_stats().free_pages;
    assert_eq!(pass(&mm, &cpu, &mut blocks).1, 5);
    assert_eq!(mm.phys.memory_stats().free_pages, free, "no new frame is kept");
    assert_eq!(load_word(&fs, space, va + 4096), Ok(word(6)), "mapped as before");
    ops.is_willing.store(1, Relaxed);
    assert_eq!(pass(&mm, &cpu, &mut blocks), (5, 0));
    assert_eq!(mm.phys.stats().migrate_taken_over, 5);
    let moved = ops.moved.lock().clone();
    assert!(
        moved
            .iter()
            .all(|(from, to)| mm.phys.block_of(*from).is_some() && from != to)
    );
    for block in blocks {
        mm.phys.offline(block).unwrap();
    }
    for page in 0..5 {
        assert_eq!(load_word(&fs, space, va + page * 4096), Ok(word(6)));
    }
    // Its private data are there: what is dirty still knows its block.
    assert_eq!(fs.run(mm.sync(&cpu, id)), Ok(()));
    assert_eq!(fs.disk.contents(fs.block(id, 4).unwrap())[9], 6);
    mm.validate().unwrap();
}
