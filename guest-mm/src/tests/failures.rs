//! Allocation failure at every place in turn, and of one kind of memory while there is plenty of the other.

use std::sync::Arc;
use std::vec::Vec;

use guest_sync::Cpu;

use crate::migrate::BatchEnd;
use crate::mm::mapping::{DefaultOps, MappingKind};
use crate::mm::{FaultError, FileArea, Sharing};
use crate::tests::file_maps;
use crate::tests::inject::Then;
use crate::tests::machine::{MIB, RW, TestMm, anonymous, isolate_fullest, load, machine, remove, store};
use crate::tests::test_fs::TestFs;
use crate::{Access, Gfp, HugeAdvice, Order, Pfn};

/// Every request for a frame is refused once, in turn; nothing may leak or change then, and the next try succeeds.
#[test]
fn a_failed_allocation_anywhere_in_a_fault_changes_nothing() {
    let cases =
        [HugeAdvice::Huge, HugeAdvice::NoHuge].map(|advice| [(advice, Then::Serve), (advice, Then::Refuse)]);
    for (advice, then) in cases.into_iter().flatten() {
        for pass in 0..40 {
            machine!(mm, cpu, 512, 2);
            let all_free = mm.phys.memory_stats().free_pages;
            let id = mm.create_space(&cpu, &[]).unwrap();
            let va = mm.mmap(id, &anonymous(4 * MIB, advice)).unwrap();
            let free = mm.phys.memory_stats().free_pages;
            mm.phys.injected.lock().fail_after(pass, then);
            let outcome = mm.fault(&cpu, id, va, Access::Write);
            let reached = !mm.phys.injected.lock().clear();
            mm.validate().unwrap();
            if let Err(error) = outcome {
                assert!(matches!(error, FaultError::OutOfMemory(_)), "{error}");
                assert_eq!(mm.phys.memory_stats().free_pages, free, "request {pass} leaked");
            }
            store(&mm, &cpu, id, va, 9).unwrap();
            assert_eq!(load(&mm, &cpu, id, va), Ok(9));
            mm.destroy_space(&cpu, id).unwrap();
            mm.validate().unwrap();
            assert_eq!(
                mm.phys.memory_stats().free_pages,
                all_free,
                "request {pass} leaked"
            );
            if !reached {
                assert!(pass >= 3, "a fault takes at least a page and two tables");
                break;
            }
        }
    }
}

#[test]
fn a_failed_allocation_anywhere_in_a_migration_loses_nothing() {
    for then in [Then::Serve, Then::Refuse] {
        let requests = (0..600)
            .take_while(|&pass| migrate_with_failure(pass, then))
            .count();
        assert!((20..599).contains(&requests), "{requests} requests");
    }
}

/// Empties a block with small pages and a huge one; returns whether there was a request to refuse.
fn migrate_with_failure(pass: u32, then: Then) -> bool {
    machine!(mm, cpu, 1024, 2);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let small = mm.mmap(id, &anonymous(20 * 4096, HugeAdvice::NoHuge)).unwrap();
    let huge = mm.mmap(id, &anonymous(2 * MIB, HugeAdvice::Huge)).unwrap();
    let pages = (0..20)
        .map(|p| small + p * 4096)
        .chain((0..512).map(|p| huge + p * 4096));
    let words: Vec<u64> = pages.collect();
    for &va in &words {
        store(&mm, &cpu, id, va, va).unwrap();
    }
    let mut token = isolate_fullest(&mm);
    mm.phys.injected.lock().fail_after(pass, then);
    let report = mm.migrate_batch(&cpu, &mut token, u32::MAX);
    let reached = !mm.phys.injected.lock().clear();
    mm.validate().unwrap();
    assert_eq!(report.refused, []);
    if report.end == BatchEnd::NoMemory {
        let rest = mm.migrate_batch(&cpu, &mut token, u32::MAX);
        assert_eq!(rest.end, BatchEnd::PassDone);
    }
    remove(&mut mm, token);
    for &va in &words {
        assert_eq!(load(&mm, &cpu, id, va), Ok(va), "request {pass}");
    }
    mm.validate().unwrap();
    mm.destroy_space(&cpu, id).unwrap();
    let stats = mm.phys.memory_stats();
    assert_eq!(stats.free_pages, stats.total_pages, "request {pass} leaked");
    reached
}

/// All frames that such requests get.
fn take_all(mm: &TestMm<'_>, cpu: &Cpu, gfp: Gfp) -> Vec<Pfn> {
    core::iter::from_fn(|| mm.phys.alloc_pages(cpu, gfp, Order::ZERO).ok()).collect()
}

/// A program that finds no table reclaims for one, and nothing of what it reads in meanwhile may count as reclaimed for it.
#[test]
fn a_fault_without_a_frame_for_its_table_names_the_kernels_memory_and_reads_nothing() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let file = mm.create_mapping(MappingKind::File(Arc::new(DefaultOps)), 4096);
    fs.preset(file, &[7]);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let shown = file_maps::map(&mm, id, FileArea::new(file, 0, Sharing::Shared), 1, RW);
    let own = mm.mmap(id, &anonymous(4096, HugeAdvice::NoHuge)).unwrap();
    // Tables may lie anywhere.
    let mut taken = take_all(&mm, &cpu, Gfp::KERNEL);
    taken.extend(take_all(&mm, &cpu, Gfp::USER));
    for (va, access, wanted) in [
        (shown, Access::Read, Gfp::KERNEL),
        (shown, Access::Write, Gfp::KERNEL),
        (own, Access::Read, Gfp::USER),
        (own, Access::Write, Gfp::USER),
    ] {
        let outcome = mm.fault(&cpu, id, va, access);
        let expected = Err(FaultError::OutOfMemory(wanted));
        assert_eq!(outcome, expected, "{access:?} of {va:#x}");
        mm.validate().unwrap();
    }
    assert_eq!(
        mm.phys.stats().nr_file_pages,
        0,
        "a page that cannot be mapped is read"
    );
    assert!(mm.next_file_io().is_none());
    taken
        .into_iter()
        .for_each(|pfn| mm.phys.free_pages(&cpu, pfn).unwrap());
    assert_eq!(file_maps::load(&fs, id, shown), Ok(file_maps::word(7)));
}

#[test]
fn a_store_to_a_private_page_of_a_file_takes_the_frame_for_its_copy_before_it_reads() {
    machine!(mm, cpu, 512, 2);
    let fs = TestFs::new(&mm, &cpu, 256);
    let file = mm.create_mapping(MappingKind::File(Arc::new(DefaultOps)), 64 * 4096);
    fs.preset(file, &[7; 64]);
    let id = mm.create_space(&cpu, &[]).unwrap();
    let va = file_maps::map(&mm, id, FileArea::new(file, 0, Sharing::Private), 64, RW);
    assert_eq!(
        file_maps::load(&fs, id, va),
        Ok(file_maps::word(7)),
        "its table is there"
    );
    let mut taken = take_all(&mm, &cpu, Gfp::USER);
    let last = va + 63 * 4096;
    let cached = mm.phys.stats().nr_file_pages;
    for frames in [0, 1] {
        let outcome = mm.fault(&cpu, id, last, Access::Write);
        assert_eq!(
            outcome,
            Err(FaultError::OutOfMemory(Gfp::USER)),
            "with {frames} frames"
        );
        assert_eq!(mm.phys.stats().nr_file_pages, cached, "with {frames} frames");
        mm.validate().unwrap();
        mm.phys.free_pages(&cpu, taken.pop().unwrap()).unwrap();
    }
    assert_eq!(file_maps::store(&fs, id, last, 9), Ok(()), "two are enough");
    assert_eq!(file_maps::load(&fs, id, last), Ok(9));
}
