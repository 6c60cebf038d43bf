//! Allocation failure at every place in turn.

use std::vec::Vec;

use crate::migrate::BatchEnd;
use crate::mm::FaultError;
use crate::tests::inject::Then;
use crate::tests::machine::{MIB, anonymous, load, machine, remove, store};
use crate::{Access, HugeAdvice};

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
                assert_eq!(error, FaultError::OutOfMemory);
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
    let used = mm.phys.rank_blocks().last().unwrap().block;
    let mut token = mm.phys.isolate(used).unwrap();
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
