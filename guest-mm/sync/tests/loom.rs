//! Every interleaving, and every order of memory that the language permits, of small cases.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p guest-sync --release --test loom --target-dir target/loom` runs them. Without
//! `--cfg loom` there is nothing here.

#![cfg(loom)]
#![expect(unsafe_code, reason = "loom watches cells through raw pointers")]

use guest_sync::{CpuId, CpuSet, CpuStack, PerCpu, SpinLock};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

type Stacks = PerCpu<CpuStack<2>>;

fn one_cpu() -> (guest_sync::Cpu, Arc<Stacks>) {
    let cpus = CpuSet::new(1).expect("one is a number of CPUs");
    let cpu = cpus.claim(CpuId::ZERO).expect("nobody else is CPU 0");
    (cpu, Arc::new(PerCpu::new(1, |_| CpuStack::new())))
}

/// Everything in the stacks that a thief can have.
fn steal_all(stacks: &Stacks) -> Vec<u64> {
    let mut stolen = Vec::new();
    for (_, stack) in stacks.iter() {
        stack.steal(|_| true, |number| stolen.push(number));
    }
    stolen
}

fn assert_each_once(taken: &[Vec<u64>; 3], expected: &[u64]) {
    let mut all = taken.concat();
    all.sort_unstable();
    assert_eq!(all, expected);
}

#[test]
fn a_lock_lets_one_in_at_a_time_and_shows_what_the_last_one_wrote() {
    loom::model(|| {
        let lock = Arc::new(SpinLock::new(0));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || *lock.lock() += 1)
        };
        *lock.lock() += 1;
        other.join().unwrap();
        assert_eq!(*lock.lock(), 2);
    });
}

#[test]
fn a_lock_that_is_tried_is_taken_or_not_but_never_shared() {
    loom::model(|| {
        let lock = Arc::new(SpinLock::new(0));
        let other = {
            let lock = Arc::clone(&lock);
            thread::spawn(move || lock.try_lock().map(|mut value| *value += 1).is_some())
        };
        let mine = lock.try_lock().map(|mut value| *value += 1).is_some();
        let theirs = other.join().unwrap();
        assert_eq!(*lock.lock(), u32::from(mine) + u32::from(theirs));
        assert!(mine || theirs, "one of them found it free");
    });
}

#[test]
fn the_owner_and_a_thief_get_each_number_once() {
    loom::model(|| {
        let (cpu, stacks) = one_cpu();
        stacks.this(&cpu).push(1).unwrap();
        stacks.this(&cpu).push(2).unwrap();
        let thief = {
            let stacks = Arc::clone(&stacks);
            thread::spawn(move || steal_all(&stacks))
        };
        let own = stacks.this(&cpu);
        let popped: Vec<u64> = [own.pop(), own.pop_cold()].into_iter().flatten().collect();
        assert_each_once(&[popped, thief.join().unwrap(), steal_all(&stacks)], &[1, 2]);
    });
}

#[test]
fn a_number_that_comes_back_into_the_same_slot_is_still_taken_once() {
    loom::model(|| {
        let (cpu, stacks) = one_cpu();
        stacks.this(&cpu).push(1).unwrap();
        let thief = {
            let stacks = Arc::clone(&stacks);
            thread::spawn(move || steal_all(&stacks))
        };
        let own = stacks.this(&cpu);
        let back = own.pop();
        if let Some(number) = back {
            own.push(number).unwrap();
        }
        let popped = own.pop().into_iter().collect();
        assert_each_once(&[popped, thief.join().unwrap(), steal_all(&stacks)], &[1]);
    });
}

#[test]
fn two_thieves_get_each_number_once_while_the_owner_pushes() {
    loom::model(|| {
        let (cpu, stacks) = one_cpu();
        stacks.this(&cpu).push(1).unwrap();
        let thief = {
            let stacks = Arc::clone(&stacks);
            thread::spawn(move || steal_all(&stacks))
        };
        let other = {
            let stacks = Arc::clone(&stacks);
            thread::spawn(move || steal_all(&stacks))
        };
        stacks.this(&cpu).push(2).unwrap();
        let (first, second) = (thief.join().unwrap(), other.join().unwrap());
        assert_each_once(&[first, second, steal_all(&stacks)], &[1, 2]);
    });
}

#[test]
fn a_thief_sees_what_the_owner_wrote_about_a_number_before_it_pushed_it() {
    loom::model(|| {
        let (cpu, stacks) = one_cpu();
        let about = Arc::new(UnsafeCell::new(0));
        let thief = {
            let (stacks, about) = (Arc::clone(&stacks), Arc::clone(&about));
            thread::spawn(move || {
                if steal_all(&stacks) == [1] {
                    assert_eq!(read(&about), 7);
                }
            })
        };
        write(&about, 7);
        stacks.this(&cpu).push(1).unwrap();
        thief.join().unwrap();
    });
}

#[test]
fn the_same_holds_at_the_cold_end() {
    loom::model(|| {
        let (cpu, stacks) = one_cpu();
        let about = Arc::new(UnsafeCell::new(0));
        let thief = {
            let (stacks, about) = (Arc::clone(&stacks), Arc::clone(&about));
            thread::spawn(move || {
                if steal_all(&stacks) == [1] {
                    assert_eq!(read(&about), 7);
                }
            })
        };
        write(&about, 7);
        stacks.this(&cpu).push_cold(1).unwrap();
        thief.join().unwrap();
    });
}

/// How a block is closed: a flag, then the stealing. An owner who finds the flag down after popping has the number for
/// good; whoever raised the flag has, or sees, every other number.
#[test]
fn a_number_popped_before_the_flag_was_seen_is_missed_by_the_thief_and_no_other_is() {
    loom::model(|| {
        let (cpu, stacks) = one_cpu();
        let closed = Arc::new(AtomicBool::new(false));
        stacks.this(&cpu).push(1).unwrap();
        let thief = {
            let (stacks, closed) = (Arc::clone(&stacks), Arc::clone(&closed));
            thread::spawn(move || {
                closed.store(true, Ordering::SeqCst);
                steal_all(&stacks)
            })
        };
        let popped = stacks.this(&cpu).pop();
        let open = !closed.load(Ordering::SeqCst);
        let stolen = thief.join().unwrap();
        assert_eq!(popped.is_none(), stolen == [1]);
        assert!(popped.is_some() || !open, "taken away although the flag is down");
    });
}

#[test]
fn the_next_owner_of_a_cpu_sees_what_the_last_one_did_as_that_cpu() {
    loom::model(|| {
        let cpus = Arc::new(CpuSet::new(1).unwrap());
        let own = Arc::new(UnsafeCell::new(0));
        let work = |cpus: &CpuSet, own: &UnsafeCell<u32>| {
            let Some(cpu) = cpus.claim(CpuId::ZERO) else {
                return 0;
            };
            let value = read(own);
            write(own, value + 1);
            cpus.release(cpu);
            1
        };
        let other = {
            let (cpus, own) = (Arc::clone(&cpus), Arc::clone(&own));
            thread::spawn(move || work(&cpus, &own))
        };
        let times = work(&cpus, &own) + other.join().unwrap();
        assert_eq!(read(&own), times);
    });
}

fn read(cell: &UnsafeCell<u32>) -> u32 {
    // SAFETY: loom ends the model if another thread writes meanwhile, or wrote without happening before this.
    cell.with(|value| unsafe { *value })
}

fn write(cell: &UnsafeCell<u32>, value: u32) {
    // SAFETY: as for `read`.
    cell.with_mut(|place| unsafe { *place = value });
}
