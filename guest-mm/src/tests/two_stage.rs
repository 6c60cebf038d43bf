//! Huge pages that leave a block while no free huge page is left elsewhere: one is made for them, and they move whole.

use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::vec::Vec;

use guest_sync::Cpu;

use crate::compact::CompactResult;
use crate::migrate::{BatchEnd, BusyPages, BusyWith, PageKind, RefusalReason};
use crate::mm::Reserve;
use crate::pagetable::translate;
use crate::tests::compaction::Scattered;
use crate::tests::machine::{MIB, RW, TestMm, anonymous, isolate_fullest, load, machine, remove, store};
use crate::{Access, Backing, BlockIndex, Gfp, HugeAdvice, MapRequest, Order, Pfn, Place, SpaceId, Zone};

/// A program with one huge page.
struct Huge {
    id: SpaceId,
    va: u64,
}

impl Huge {
    fn new(mm: &TestMm<'_>, cpu: &Cpu, backing: Backing) -> Self {
        let id = mm.create_space(cpu, &[]).unwrap();
        let request = MapRequest {
            len: 2 * MIB,
            place: Place::Anywhere,
            prot: RW,
            backing,
        };
        let va = mm.mmap(id, &request).unwrap();
        for page in 0..512 {
            store(mm, cpu, id, va + page * 4096, !page).unwrap();
        }
        Self { id, va }
    }

    fn transparent(mm: &TestMm<'_>, cpu: &Cpu) -> Self {
        Self::new(mm, cpu, Backing::Anonymous(HugeAdvice::Huge))
    }

    fn reserved(mm: &TestMm<'_>, cpu: &Cpu) -> Self {
        assert_eq!(mm.set_nr_huge_pages(cpu, 1), 1);
        Self::new(mm, cpu, Backing::HugeTlb(Reserve::Held))
    }

    fn pfn(&self, mm: &TestMm<'_>) -> Pfn {
        let root = mm.space(self.id).unwrap().root();
        Pfn::containing(translate(&mm.frames, root, self.va, Access::Read).unwrap().gpa).unwrap()
    }

    fn is_huge(&self, mm: &TestMm<'_>) -> bool {
        mm.phys.page(self.pfn(mm)).unwrap().order() == Order::PAGEBLOCK
    }

    fn block(&self, mm: &TestMm<'_>) -> BlockIndex {
        mm.phys.block_of(self.pfn(mm)).expect("huge pages are on blocks")
    }

    fn check(&self, mm: &TestMm<'_>, cpu: &Cpu) {
        for page in 0..512 {
            assert_eq!(load(mm, cpu, self.id, self.va + page * 4096), Ok(!page));
        }
    }
}

fn assert_no_huge_page_is_free(mm: &TestMm<'_>, cpu: &Cpu) {
    assert!(mm.phys.alloc_pages(cpu, Gfp::SPARE, Order::PAGEBLOCK).is_err());
}

#[test]
fn without_a_free_huge_page_elsewhere_one_is_made_and_the_page_moves_whole() {
    for new in [Huge::transparent, Huge::reserved] {
        machine!(mm, cpu, 512, 8);
        let huge = new(&mm, &cpu);
        let small = Scattered::new(&mm, &cpu);
        assert_no_huge_page_is_free(&mm, &cpu);
        let mut token = mm.phys.isolate(huge.block(&mm)).unwrap();
        let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
        mm.validate().unwrap();
        assert_eq!(
            (
                report.end,
                report.moved_huge,
                report.moved_small,
                report.refused.len()
            ),
            (BatchEnd::PassDone, 1, 0, 0)
        );
        let stats = mm.phys.stats();
        assert_eq!((stats.thp_migration_compacted, stats.thp_migration_split), (1, 0));
        // About half of a pageblock's pages moved together for it.
        assert!((1..400).contains(&stats.compact_isolated), "{stats:?}");
        assert_eq!(stats.compact_daemon_migrate_scanned, 0);
        assert!(huge.is_huge(&mm));
        remove(&mut mm, token);
        assert_eq!(mm.phys.stats().blocks_unplug_pass1, 1);
        huge.check(&mm, &cpu);
        small.check(&mm, &cpu);
        mm.validate().unwrap();
    }
}

#[test]
fn what_is_made_lies_outside_of_all_isolated_blocks_and_so_do_the_pages_that_made_room() {
    machine!(mm, cpu, 512, 16);
    let huge = Huge::transparent(&mm, &cpu);
    let small = Scattered::new(&mm, &cpu);
    let mut token = mm.phys.isolate(huge.block(&mm)).unwrap();
    // Half of the blocks go at the same time.
    let others = (0..16).map(BlockIndex).filter(|&block| block != token.block());
    let isolated: Vec<_> = others
        .take(7)
        .map(|block| mm.phys.isolate(block).unwrap())
        .collect();
    let used = |mm: &TestMm<'_>| {
        isolated
            .iter()
            .map(|block| mm.phys.used_pages(block))
            .collect::<Vec<_>>()
    };
    let before = used(&mm);
    assert_eq!(mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_huge, 1);
    mm.validate().unwrap();
    assert_eq!(used(&mm), before, "nothing moved onto them or off them");
    let to = huge.block(&mm);
    assert!(isolated.iter().all(|block| block.block() != to));
    isolated.into_iter().for_each(|block| mm.phys.undo(block));
    remove(&mut mm, token);
    huge.check(&mm, &cpu);
    small.check(&mm, &cpu);
}

#[test]
fn a_batch_ends_where_a_huge_page_is_to_be_made_with_nothing_unmapped() {
    machine!(mm, cpu, 512, 16);
    let huge = Huge::transparent(&mm, &cpu);
    let _small = Scattered::new(&mm, &cpu);
    let mut token = mm.phys.isolate(huge.block(&mm)).unwrap();
    let batch = mm.begin_migration(&cpu, &mut token, 128);
    assert!(batch.is_empty());
    huge.check(&mm, &cpu);
    let report = mm.finish_migration(&cpu, &mut token, batch);
    assert_eq!(report.end, BatchEnd::NoHugePage);
    // Others take what was made, each time.
    let mut taken = Vec::new();
    for _ in 0..3 {
        assert_eq!(mm.make_huge_page(&cpu, &mut token), CompactResult::Success);
        taken.push(mm.phys.alloc_pages(&cpu, Gfp::SPARE, Order::PAGEBLOCK).unwrap());
        let batch = mm.begin_migration(&cpu, &mut token, 128);
        let is_last = taken.len() == 3;
        assert_eq!(batch.is_empty(), !is_last, "in pieces after the third");
        let report = mm.finish_migration(&cpu, &mut token, batch);
        let expected = if is_last {
            BatchEnd::Budget
        } else {
            BatchEnd::NoHugePage
        };
        assert_eq!(report.end, expected);
    }
    let stats = mm.phys.stats();
    assert_eq!((stats.thp_migration_split, stats.thp_migration_compacted), (1, 0));
    huge.check(&mm, &cpu);
    for pfn in taken {
        mm.phys.free_pages(&cpu, pfn).unwrap();
    }
    mm.phys.undo(token);
    mm.validate().unwrap();
}

/// Pins a page of every pageblock, so that none can be emptied.
fn pin_all(mm: &TestMm<'_>, small: &Scattered) -> Vec<crate::phys::Pin> {
    let mut blocks = Vec::new();
    let mut pins = Vec::new();
    for &va in &small.kept {
        let pfn = small.pfn_at(mm, va);
        let block = pfn.align_down(Order::PAGEBLOCK);
        if !blocks.contains(&block) {
            blocks.push(block);
            pins.push(mm.phys.pin(pfn, "device").unwrap());
        }
    }
    pins
}

#[test]
fn only_when_none_can_be_made_a_transparent_one_goes_in_pieces() {
    machine!(mm, cpu, 512, 8);
    let huge = Huge::transparent(&mm, &cpu);
    let small = Scattered::new(&mm, &cpu);
    let pins = pin_all(&mm, &small);
    let mut token = mm.phys.isolate(huge.block(&mm)).unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!(
        (report.end, report.moved_huge, report.moved_small),
        (BatchEnd::PassDone, 0, 512)
    );
    let stats = mm.phys.stats();
    assert_eq!((stats.thp_migration_split, stats.thp_migration_compacted), (1, 0));
    remove(&mut mm, token);
    huge.check(&mm, &cpu);
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
    mm.validate().unwrap();
}

#[test]
fn a_reserved_one_stays_while_none_can_be_made_and_moves_whole_as_soon_as_one_can() {
    machine!(mm, cpu, 512, 8);
    let huge = Huge::reserved(&mm, &cpu);
    let small = Scattered::new(&mm, &cpu);
    let pins = pin_all(&mm, &small);
    let mut token = mm.phys.isolate(huge.block(&mm)).unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((report.end, report.moved_pages()), (BatchEnd::NoMemory, 0));
    huge.check(&mm, &cpu);
    pins.into_iter().for_each(|pin| mm.phys.unpin(&cpu, pin));
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((report.end, report.moved_huge), (BatchEnd::PassDone, 1));
    assert_eq!(mm.phys.huge_pool().total, 1);
    assert_eq!(mm.phys.stats().thp_migration_compacted, 1);
    remove(&mut mm, token);
    huge.check(&mm, &cpu);
    mm.validate().unwrap();
}

#[test]
fn a_page_of_the_pool_that_nobody_has_is_replaced_by_one_that_is_made_before_the_pool_shrinks() {
    machine!(mm, cpu, 512, 8);
    assert_eq!(mm.set_nr_huge_pages(&cpu, 1), 1);
    let pooled = (0..8).map(BlockIndex).find(|&block| {
        let range = mm.phys.hotplug_region().block_range(block).unwrap();
        let page = mm.phys.page(range.start());
        page.is_some_and(|page| page.flags().has(crate::PageFlags::HUGETLB))
    });
    let small = Scattered::new(&mm, &cpu);
    assert_no_huge_page_is_free(&mm, &cpu);
    let mut token = mm.phys.isolate(pooled.unwrap()).unwrap();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((report.end, report.refused.len()), (BatchEnd::PassDone, 0));
    remove(&mut mm, token);
    let pool = mm.phys.huge_pool();
    assert_eq!((pool.total, pool.free), (1, 1));
    assert_eq!(mm.phys.stats().thp_migration_compacted, 1);
    small.check(&mm, &cpu);
    mm.validate().unwrap();
}

#[test]
fn pages_that_somebody_is_using_are_put_off_in_the_first_pass_and_waited_for_in_the_second() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(16 * 4096, HugeAdvice::NoHuge)).unwrap();
    for page in 0..16 {
        store(&mm, &cpu, id, va + page * 4096, page).unwrap();
    }
    let mut token = isolate_fullest(&mm);
    let busy = mm.begin_migration(&cpu, &mut token, 1);
    token.rewind();
    let first = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!(
        (first.end, first.moved_small, first.refused.len()),
        (BatchEnd::PassDone, 15, 1)
    );
    let pfn = first.refused[0].pfn;
    assert_eq!(
        (first.refused[0].reason, first.refused[0].kind),
        (RefusalReason::Busy(BusyWith::Locked), PageKind::Anonymous)
    );
    assert_eq!(token.passes(), 1);
    let mut token = mm.phys.offline(token).unwrap_err().block;

    token.rewind_with(BusyPages::Await);
    let second = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((second.end, second.refused.len()), (BatchEnd::Busy(pfn), 0));
    assert!(!mm.is_idle(pfn));
    {
        let mut idle = pin!(mm.until_idle(pfn));
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(idle.as_mut().poll(&mut context), Poll::Pending);
        mm.abort_migration(&cpu, busy);
        assert_eq!(idle.as_mut().poll(&mut context), Poll::Ready(()));
    }
    // The pass goes on with that very page.
    let second = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!((second.end, second.moved_small), (BatchEnd::PassDone, 1));
    assert_eq!(token.passes(), 2);
    // Whoever asks for more at the end has not looked again.
    assert_eq!(mm.migrate_batch(&cpu, &mut token, 1).end, BatchEnd::PassDone);
    assert_eq!(token.passes(), 2);
    remove(&mut mm, token);
    let stats = mm.phys.stats();
    assert_eq!((stats.blocks_unplug_pass1, stats.blocks_unplug_pass2), (0, 1));
    for page in 0..16 {
        assert_eq!(load(&mm, &cpu, id, va + page * 4096), Ok(page));
    }
    mm.validate().unwrap();
}

#[test]
fn who_does_not_wait_any_longer_puts_busy_pages_off_again() {
    machine!(mm, cpu, 512, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = mm.mmap(id, &anonymous(16 * 4096, HugeAdvice::NoHuge)).unwrap();
    store(&mm, &cpu, id, va, 42).unwrap();
    let mut token = isolate_fullest(&mm);
    let busy = mm.begin_migration(&cpu, &mut token, 1);
    token.rewind_with(BusyPages::Await);
    assert!(matches!(
        mm.migrate_batch(&cpu, &mut token, u32::MAX).end,
        BatchEnd::Busy(_)
    ));
    token.put_off_busy();
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    assert_eq!(
        (report.end, report.refused.len(), report.moved_small),
        (BatchEnd::PassDone, 1, 15)
    );
    mm.abort_migration(&cpu, busy);
    mm.phys.undo(token);
    assert_eq!(mm.phys.stats().blocks_put_back, 1);
    assert_eq!(load(&mm, &cpu, id, va), Ok(42));
    mm.validate().unwrap();
}

#[test]
fn the_zones_where_places_are_made_are_those_that_programs_may_use() {
    machine!(mm, cpu, 512, 2);
    let kinds: Vec<_> = mm.phys.zones_for_moves(&cpu).map(Zone::kind).collect();
    assert_eq!(kinds.first(), Some(&crate::ZoneKind::Movable));
}
