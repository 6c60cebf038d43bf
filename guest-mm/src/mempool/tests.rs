//! Pools over a source with a budget, and over slabs.

use core::num::NonZeroUsize;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use std::boxed::Box;
use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Wake;
use std::vec::Vec;

use guest_sync::{Cpu, CpuId, CpuSet, SpinLock};
use proptest::prelude::*;

use super::{
    Allocation, CannotFill, KmallocSource, MAX_WAITING, Mempool, ObjectSource, PoolLeak, PoolSource,
};
use crate::gfp::Gfp;
use crate::slab::CacheSpec;
use crate::slab::tests::world::small_machine;

/// Numbers, a new one each time, as long as there is budget.
#[derive(Default)]
struct Numbers(SpinLock<Account>);

#[derive(Default)]
struct Account {
    budget: usize,
    next: u64,
    out: BTreeSet<u64>,
    /// Requests that were allowed to wait.
    patient: usize,
}

impl Numbers {
    fn with_budget(budget: usize) -> Self {
        let numbers = Self::default();
        numbers.set_budget(budget);
        numbers
    }

    fn set_budget(&self, budget: usize) {
        self.0.lock().budget = budget;
    }

    fn nr_out(&self) -> usize {
        self.0.lock().out.len()
    }
}

impl PoolSource for Numbers {
    type Element = u64;

    fn take(&self, _: &Cpu, gfp: Gfp) -> Option<u64> {
        let mut account = self.0.lock();
        account.patient += usize::from(gfp.has(Gfp::WAIT));
        account.budget = account.budget.checked_sub(1)?;
        account.next += 1;
        let number = account.next;
        account.out.insert(number);
        Some(number)
    }

    fn put(&self, _: &Cpu, element: u64) {
        let mut account = self.0.lock();
        assert!(account.out.remove(&element), "{element} is given back twice");
        account.budget += 1;
    }
}

fn cpu() -> Cpu {
    CpuSet::new(1).unwrap().claim(CpuId::ZERO).unwrap()
}

fn at_least(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap()
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

type Waiting<'a, S> = Pin<Box<Allocation<'a, S, &'a Cpu>>>;

fn poll<S: PoolSource>(waiting: &mut Waiting<'_, S>, woken: &Arc<Woken>) -> Poll<S::Element> {
    let waker = Waker::from(woken.clone());
    waiting.as_mut().poll(&mut Context::from_waker(&waker))
}

#[test]
fn the_allocator_comes_first_and_the_pool_only_when_that_fails() {
    let (cpu, numbers) = (cpu(), Numbers::with_budget(5));
    let pool = Mempool::new(&cpu, &numbers, at_least(2), Gfp::KERNEL).unwrap();
    let taken: Vec<u64> = (0..5)
        .map(|_| pool.try_alloc(&cpu, Gfp::KERNEL).unwrap())
        .collect();
    // Three from the allocator, then what was kept; then nothing.
    assert_eq!(taken[..3], [3, 4, 5]);
    assert_eq!((pool.stats().from_pool, pool.stats().curr_nr), (2, 0));
    assert_eq!(pool.try_alloc(&cpu, Gfp::KERNEL), None);
    // While there is a pool the allocator is not asked to wait; only the two that fill it are.
    assert_eq!(numbers.0.lock().patient, 2);
    // What is freed fills the pool first.
    pool.free(&cpu, taken[0]);
    assert_eq!(
        (pool.stats().curr_nr, pool.stats().out, numbers.nr_out()),
        (1, 4, 5)
    );
    taken[1..].iter().for_each(|&number| pool.free(&cpu, number));
    assert_eq!((pool.stats().curr_nr, numbers.nr_out()), (2, 2));
    assert_eq!(pool.destroy(&cpu), Ok(()));
    assert_eq!(numbers.nr_out(), 0);
}

#[test]
fn who_finds_the_pool_empty_waits_and_is_woken_by_a_free_in_order() {
    let (cpu, numbers) = (cpu(), Numbers::with_budget(1));
    let pool = Mempool::new(&cpu, &numbers, at_least(1), Gfp::KERNEL).unwrap();
    let number = pool.try_alloc(&cpu, Gfp::ATOMIC).unwrap();
    let (first_woken, second_woken) = (Arc::<Woken>::default(), Arc::<Woken>::default());
    let mut first = Box::pin(pool.alloc(&cpu, Gfp::KERNEL));
    let mut second = Box::pin(pool.alloc(&cpu, Gfp::KERNEL));
    assert_eq!(poll(&mut first, &first_woken), Poll::Pending);
    assert_eq!(poll(&mut second, &second_woken), Poll::Pending);
    pool.free(&cpu, number);
    assert_eq!((first_woken.0.load(SeqCst), second_woken.0.load(SeqCst)), (1, 0));
    // Neither who comes now nor who waits behind can take what was given to the first.
    assert_eq!(pool.try_alloc(&cpu, Gfp::KERNEL), None);
    assert_eq!(poll(&mut second, &second_woken), Poll::Pending);
    assert_eq!(poll(&mut first, &first_woken), Poll::Ready(number));
    pool.free(&cpu, number);
    assert_eq!(second_woken.0.load(SeqCst), 1);
    assert_eq!(poll(&mut second, &second_woken), Poll::Ready(number));
    assert_eq!((pool.stats().waited, pool.stats().out), (2, 1));
    drop((first, second));
    assert_eq!(pool.destroy(&cpu), Err(PoolLeak { nr_elements: 1 }));
}

#[test]
fn who_gives_up_passes_on_what_he_was_given() {
    let (cpu, numbers) = (cpu(), Numbers::with_budget(1));
    let pool = Mempool::new(&cpu, &numbers, at_least(1), Gfp::KERNEL).unwrap();
    let number = pool.try_alloc(&cpu, Gfp::KERNEL).unwrap();
    let woken: [Arc<Woken>; 3] = Default::default();
    let mut waiting: VecDeque<_> = (0..3).map(|_| Box::pin(pool.alloc(&cpu, Gfp::KERNEL))).collect();
    for (waiting, woken) in waiting.iter_mut().zip(&woken) {
        assert!(poll(waiting, woken).is_pending());
    }
    // The second leaves the queue; the first leaves with the element in his hands.
    drop(waiting.remove(1));
    pool.free(&cpu, number);
    drop(waiting.pop_front());
    assert_eq!(woken.each_ref().map(|woken| woken.0.load(SeqCst)), [1, 0, 1]);
    assert_eq!(poll(&mut waiting[0], &woken[2]), Poll::Ready(number));
    drop(waiting);
    // One that was never polled leaves nothing.
    drop(pool.alloc(&cpu, Gfp::KERNEL));
    pool.free(&cpu, number);
    assert_eq!((pool.stats().curr_nr, pool.stats().waiting), (1, 0));
    pool.destroy(&cpu).unwrap();
}

#[test]
fn memory_that_came_back_elsewhere_serves_those_who_wait() {
    let (cpu, numbers) = (cpu(), Numbers::with_budget(1));
    let pool = Mempool::new(&cpu, &numbers, at_least(1), Gfp::KERNEL).unwrap();
    let number = pool.try_alloc(&cpu, Gfp::KERNEL).unwrap();
    let woken = Arc::<Woken>::default();
    let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(pool.alloc(&cpu, Gfp::KERNEL))).collect();
    for waiting in &mut waiting {
        assert!(poll(waiting, &woken).is_pending());
    }
    numbers.set_budget(2);
    pool.memory_came();
    assert_eq!(woken.0.load(SeqCst), 2);
    let served: Vec<_> = waiting.iter_mut().map(|waiting| poll(waiting, &woken)).collect();
    assert_eq!(served, [Poll::Ready(2), Poll::Ready(3)]);
    assert_eq!(pool.stats().waiting, 0);
    for number in [number, 2, 3] {
        pool.free(&cpu, number);
    }
    drop(waiting);
    pool.destroy(&cpu).unwrap();
    assert_eq!(numbers.nr_out(), 0);
}

#[test]
fn a_full_queue_polls_instead() {
    let (cpu, numbers) = (cpu(), Numbers::with_budget(1));
    let pool = Mempool::new(&cpu, &numbers, at_least(1), Gfp::KERNEL).unwrap();
    let number = pool.try_alloc(&cpu, Gfp::KERNEL).unwrap();
    let woken = Arc::<Woken>::default();
    let mut waiting: Vec<_> = (0..=MAX_WAITING)
        .map(|_| Box::pin(pool.alloc(&cpu, Gfp::KERNEL)))
        .collect();
    for waiting in &mut waiting {
        assert!(poll(waiting, &woken).is_pending());
    }
    // The last one woke himself.
    assert_eq!((pool.stats().waiting, woken.0.load(SeqCst)), (MAX_WAITING, 1));
    pool.free(&cpu, number);
    for waiting in &mut waiting {
        let Poll::Ready(number) = poll(waiting, &woken) else {
            panic!("nothing was granted")
        };
        pool.free(&cpu, number);
    }
    assert_eq!((pool.stats().curr_nr, pool.stats().out), (1, 0));
}

#[test]
fn a_pool_that_cannot_be_filled_or_grown_changes_nothing() {
    let (cpu, numbers) = (cpu(), Numbers::with_budget(3));
    let refused = Mempool::new(&cpu, &numbers, at_least(4), Gfp::KERNEL).unwrap_err();
    assert_eq!((refused, numbers.nr_out()), (CannotFill { min_nr: 4 }, 0));
    let pool = Mempool::new(&cpu, &numbers, at_least(2), Gfp::KERNEL).unwrap();
    assert_eq!(
        pool.resize(&cpu, at_least(4), Gfp::KERNEL),
        Err(CannotFill { min_nr: 4 })
    );
    assert_eq!(
        (pool.stats().min_nr, pool.stats().curr_nr, numbers.nr_out()),
        (2, 2, 2)
    );
    pool.resize(&cpu, at_least(3), Gfp::KERNEL).unwrap();
    assert_eq!(
        (pool.stats().min_nr, pool.stats().curr_nr, numbers.nr_out()),
        (3, 3, 3)
    );
    pool.resize(&cpu, at_least(1), Gfp::KERNEL).unwrap();
    assert_eq!(
        (pool.stats().min_nr, pool.stats().curr_nr, numbers.nr_out()),
        (1, 1, 1)
    );
}

#[test]
fn pools_of_slab_objects_work_when_there_are_no_frames_left() {
    let (slabs, cpu) = small_machine();
    let cache = slabs.create(&CacheSpec::new("request", 4096)).unwrap();
    cache.tune(1, 1).unwrap();
    let source = ObjectSource {
        slabs: &slabs,
        cache: cache.clone(),
    };
    let pool = Mempool::new(&cpu, source, at_least(3), Gfp::KERNEL).unwrap();
    let bytes = Mempool::new(
        &cpu,
        KmallocSource {
            slabs: &slabs,
            size: 8192,
        },
        at_least(1),
        Gfp::KERNEL,
    )
    .unwrap();
    // Exhaustion: every frame there is.
    let mut all = Vec::new();
    while let Ok(object) = slabs.alloc(&cpu, &cache, Gfp::KERNEL) {
        all.push(object);
    }
    while let Ok(object) = slabs.kmalloc(&cpu, 8192, Gfp::KERNEL) {
        all.push(object);
    }
    let mut taken: Vec<_> = (0..3)
        .map(|_| pool.try_alloc(&cpu, Gfp::ATOMIC).unwrap())
        .collect();
    assert_eq!(
        (pool.stats().from_pool, pool.try_alloc(&cpu, Gfp::ATOMIC)),
        (3, None)
    );
    let large = bytes.try_alloc(&cpu, Gfp::ATOMIC).unwrap();
    let woken = Arc::<Woken>::default();
    let mut waiting = Box::pin(pool.alloc(&cpu, Gfp::KERNEL));
    assert!(poll(&mut waiting, &woken).is_pending());
    let freed = taken.pop().unwrap();
    pool.free(&cpu, freed);
    assert_eq!(
        (woken.0.load(SeqCst), poll(&mut waiting, &woken)),
        (1, Poll::Ready(freed))
    );
    drop(waiting);
    taken.push(freed);
    taken.into_iter().for_each(|object| pool.free(&cpu, object));
    bytes.free(&cpu, large);
    pool.destroy(&cpu).unwrap();
    bytes.destroy(&cpu).unwrap();
    all.into_iter()
        .for_each(|object| slabs.kfree(&cpu, object).unwrap());
    slabs.destroy(&cpu, &cache).unwrap();
    slabs.shrink_all(&cpu, u64::MAX);
    assert_eq!((slabs.source().used_pages(), slabs.nr_misuses()), (0, 0));
}

#[test]
fn threads_that_wait_for_each_others_elements_all_get_on() {
    let (numbers, set) = (Numbers::with_budget(2), CpuSet::new(3).unwrap());
    let first = set.claim(CpuId::ZERO).unwrap();
    let pool = Mempool::new(&first, &numbers, at_least(2), Gfp::KERNEL).unwrap();
    std::thread::scope(|scope| {
        for id in [1, 2] {
            let (pool, cpu) = (&pool, set.claim(CpuId::new(id).unwrap()).unwrap());
            scope.spawn(move || {
                for round in 0..5000 {
                    let number = block_on(pool.alloc(&cpu, Gfp::KERNEL));
                    // Two at a time: each may have to wait for the other.
                    let another = (round % 3 == 0)
                        .then(|| pool.try_alloc(&cpu, Gfp::KERNEL))
                        .flatten();
                    pool.free(&cpu, number);
                    if let Some(another) = another {
                        pool.free(&cpu, another);
                    }
                }
            });
        }
    });
    assert_eq!(
        (pool.stats().out, pool.stats().curr_nr, pool.stats().waiting),
        (0, 2, 0)
    );
    pool.destroy(&first).unwrap();
}

/// Waits with the thread, as an executor with one task.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        std::thread::park();
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Try,
    Wait,
    Poll(usize),
    GiveUp(usize),
    Free(usize),
    Resize(usize),
    Budget(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let at = any::<usize>();
    prop_oneof![
        3 => Just(Op::Try),
        3 => Just(Op::Wait),
        4 => at.prop_map(Op::Poll),
        2 => at.prop_map(Op::GiveUp),
        4 => at.prop_map(Op::Free),
        1 => (1..6_usize).prop_map(Op::Resize),
        1 => (0..4_usize).prop_map(Op::Budget),
    ]
}

proptest! {
    #[test]
    fn every_element_is_the_users_the_pools_or_the_allocators(ops in prop::collection::vec(op(), 1..80)) {
        let (cpu, numbers) = (cpu(), Numbers::with_budget(3));
        let pool = Mempool::new(&cpu, &numbers, at_least(2), Gfp::KERNEL).unwrap();
        let woken = Arc::<Woken>::default();
        let (mut taken, mut waiting) = (Vec::new(), Vec::new());
        for op in ops {
            match op {
                Op::Try => taken.extend(pool.try_alloc(&cpu, Gfp::KERNEL)),
                Op::Wait => waiting.push(Box::pin(pool.alloc(&cpu, Gfp::KERNEL))),
                Op::Poll(at) if !waiting.is_empty() => {
                    let at = at % waiting.len();
                    if let Poll::Ready(number) = poll(&mut waiting[at], &woken) {
                        taken.push(number);
                        drop(waiting.swap_remove(at));
                    }
                }
                Op::GiveUp(at) if !waiting.is_empty() => drop(waiting.swap_remove(at % waiting.len())),
                Op::Free(at) if !taken.is_empty() => pool.free(&cpu, taken.swap_remove(at % taken.len())),
                Op::Resize(min_nr) => drop(pool.resize(&cpu, at_least(min_nr), Gfp::KERNEL)),
                Op::Budget(budget) => numbers.set_budget(budget),
                Op::Poll(_) | Op::GiveUp(_) | Op::Free(_) => {}
            }
            let stats = pool.stats();
            prop_assert_eq!(stats.out, taken.len());
            prop_assert!(stats.curr_nr <= stats.min_nr);
            prop_assert!(stats.waiting == 0 || stats.curr_nr == 0, "{stats:?}");
            // Everything else is granted to somebody who was not polled since.
            let granted = numbers.nr_out() - stats.out - stats.curr_nr;
            prop_assert!(granted + stats.waiting <= waiting.len());
            let distinct: BTreeSet<u64> = taken.iter().copied().collect();
            prop_assert_eq!(distinct.len(), taken.len());
        }
        drop(waiting);
        taken.into_iter().for_each(|number| pool.free(&cpu, number));
        prop_assert_eq!(pool.destroy(&cpu), Ok(()));
        prop_assert_eq!(numbers.nr_out(), 0);
    }
}
