//! Forks that find no memory on the way: they keep what they have got, and go on.

use crate::blocks::BlockIndex;
use crate::mm::ForkError;
use crate::tests::fork::program;
use crate::tests::inject::Then;
use crate::tests::machine::{MIB, anonymous, load, machine, store};
use crate::{HugeAdvice, MapRequest, Place};

/// Each step is refused the fifth frame that it asks for; in between pages move.
#[test]
fn a_fork_that_finds_no_memory_goes_on_from_there_and_comes_to_its_end() {
    machine!(mm, cpu, 512, 4);
    let all_free = mm.phys.memory_stats().free_pages;
    let (parent, va) = program(&mm, &cpu, 600);
    let far_apart = (1..24).map(|area| 0x40_0000_0000 + area * 2 * MIB);
    for at in far_apart.clone() {
        let request = MapRequest {
            place: Place::Fixed(at),
            ..anonymous(4096, HugeAdvice::NoHuge)
        };
        mm.mmap(parent, &request).unwrap();
        store(&mm, &cpu, parent, at, at).unwrap();
    }
    let pin = mm.pin_user(&cpu, parent, va, "ring").unwrap();
    let mut fork = mm.begin_fork(&cpu, parent).unwrap();
    let (mut steps, mut moved) = (0, 0);
    loop {
        mm.phys.injected.lock().fail_after(4, Then::Serve);
        let outcome = mm.fork_on(&cpu, &mut fork);
        mm.phys.injected.lock().clear();
        mm.validate().unwrap();
        if outcome == Ok(()) {
            break;
        }
        assert_eq!(outcome, Err(ForkError::NoMemory));
        // A block with a pinned page does not let it go.
        if let Ok(mut token) = mm.phys.isolate(BlockIndex(steps % 4)) {
            moved += mm.migrate_batch(&cpu, &mut token, u32::MAX).moved_small;
            mm.phys.undo(token);
            mm.validate().unwrap();
        }
        steps += 1;
        assert!(steps < 40, "each step brings a table, or a copy");
    }
    assert!(steps >= 4 && moved > 0, "{steps} steps, {moved} pages moved");
    let child = fork.child();
    for page in 0..600 {
        store(&mm, &cpu, parent, va + page * 4096, page + 1).unwrap();
        assert_eq!(load(&mm, &cpu, child, va + page * 4096), Ok(page));
    }
    for at in far_apart {
        store(&mm, &cpu, child, at, 1).unwrap();
        assert_eq!(load(&mm, &cpu, parent, at), Ok(at));
    }
    mm.phys.unpin(&cpu, pin);
    for id in [parent, child] {
        mm.destroy_space(&cpu, id).unwrap();
    }
    mm.validate().unwrap();
    assert_eq!(mm.phys.memory_stats().free_pages, all_free);
}

#[test]
fn a_fork_that_is_given_up_on_the_way_leaves_nothing_behind() {
    for pass in 0..10 {
        machine!(mm, cpu, 512, 2);
        let (parent, va) = program(&mm, &cpu, 1500);
        let free = mm.phys.memory_stats().free_pages;
        let mut fork = mm.begin_fork(&cpu, parent).unwrap();
        mm.phys.injected.lock().fail_after(pass, Then::Serve);
        let outcome = mm.fork_on(&cpu, &mut fork);
        let reached = !mm.phys.injected.lock().clear();
        mm.validate().unwrap();
        assert_eq!(outcome.is_err(), reached);
        mm.destroy_space(&cpu, fork.child()).unwrap();
        mm.validate().unwrap();
        assert_eq!(mm.phys.memory_stats().free_pages, free);
        store(&mm, &cpu, parent, va, 7).unwrap();
        if !reached {
            assert!(pass >= 3, "{pass} requests");
            return;
        }
    }
    panic!("a fork takes fewer requests than that");
}
