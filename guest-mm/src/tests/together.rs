//! Blocks that are emptied together, with batches that have pages of more than one.

use std::vec::Vec;

use crate::IsolatedBlock;
use crate::blocks::BlockIndex;
use crate::migrate::{BatchEnd, RefusalReason};
use crate::mm::FaultOutcome;
use crate::tests::launder::pfn_at;
use crate::tests::machine::{TestMm, anonymous, load, machine, remove, store};
use crate::{Access, HugeAdvice};

/// More than one block has room for.
const PAGES: u64 = 700;

fn isolate_used(mm: &TestMm<'_>) -> Vec<IsolatedBlock> {
    let used = |&block: &BlockIndex| mm.phys.block_usage(block).unwrap().used_pages > 0;
    let blocks = (0..4).map(BlockIndex).filter(used);
    blocks.map(|block| mm.phys.isolate(block).unwrap()).collect()
}

#[test]
fn batches_go_on_from_block_to_block_with_a_flush_each() {
    machine!(mm, cpu, 512, 4);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(PAGES * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..PAGES {
        store(&mm, &cpu, id, va + page * 4096, !page).unwrap();
    }
    let mut blocks = isolate_used(&mm);
    let used: Vec<u32> = blocks.iter().map(|block| mm.phys.used_pages(block)).collect();
    assert!(
        used.len() == 2 && used[0] < 300,
        "{used:?}: the first batch has pages of both"
    );
    let mut moved = Vec::new();
    loop {
        let flushes = mm.mmu.flushes();
        let batch = mm.begin_migration_together(&cpu, &mut blocks, 300);
        assert_eq!(mm.mmu.flushes(), flushes + 1);
        // Whoever touches a page of either block waits.
        let away = (0..PAGES).map(|page| mm.fault(&cpu, id, va + page * 4096, Access::Read).unwrap());
        let away = away.filter(|outcome| matches!(outcome, FaultOutcome::Locked(_)));
        assert_eq!(away.count(), batch.len());
        let report = mm.finish_migration_together(&cpu, &mut blocks, batch);
        mm.validate().unwrap();
        assert_eq!(report.refused, []);
        moved.push(report.moved_small);
        if report.end == BatchEnd::PassDone {
            break;
        }
    }
    assert_eq!(moved, [300, 300, 100]);
    for (block, used) in blocks.into_iter().zip(used) {
        assert_eq!((block.moved_pages(), block.passes()), (used, 1));
        remove(&mut mm, block);
    }
    for page in 0..PAGES {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(!page));
    }
    mm.validate().unwrap();
}

#[test]
fn what_keeps_one_block_keeps_no_other() {
    machine!(mm, cpu, 512, 4);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(PAGES * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..PAGES {
        store(&mm, &cpu, id, va + page * 4096, page).unwrap();
    }
    let mut blocks = isolate_used(&mm);
    let pfn = pfn_at(&mm, id, va);
    let pin = mm.phys.pin(pfn, "direct I/O").unwrap();
    let batch = mm.begin_migration_together(&cpu, &mut blocks, u32::MAX);
    let report = mm.finish_migration_together(&cpu, &mut blocks, batch);
    assert_eq!(
        (u64::from(report.moved_small), report.end),
        (PAGES - 1, BatchEnd::PassDone)
    );
    let [refusal] = &report.refused[..] else {
        panic!("{report:?}");
    };
    let holder = "direct I/O";
    assert_eq!(
        (refusal.pfn, refusal.reason),
        (pfn, RefusalReason::Pinned { holder })
    );
    let pinned = mm.phys.block_of(pfn).unwrap();
    let (kept, others): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|block| block.block() == pinned);
    assert_eq!((kept.len(), others.len()), (1, 1));
    others.into_iter().for_each(|block| remove(&mut mm, block));
    mm.phys.unpin(&cpu, pin);
    // A pass of its own is enough for the rest.
    for block in kept {
        let mut left = mm.phys.offline(block).unwrap_err().block;
        left.rewind();
        assert_eq!(mm.migrate_batch(&cpu, &mut left, u32::MAX).moved_small, 1);
        assert_eq!(left.passes(), 2);
        remove(&mut mm, left);
    }
    assert_eq!(load(&mm, &cpu, id, va), Ok(0));
    mm.validate().unwrap();
}
