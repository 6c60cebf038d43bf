//! Mappings of high memory, looked at by CPUs that never forget by themselves.

use std::boxed::Box;
use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Wake};
use std::vec::Vec;

use guest_sync::{Cpu, CpuId, CpuSet};
use proptest::prelude::*;

use super::{AtomicMap, AtomicMaps, Kmap, MAX_NESTED, PermanentMaps};
use crate::host::HostFrames;
use crate::kernel_map::{KernelRange, KernelTables};
use crate::pfn::{Order, PAGE_SIZE, Pfn};
use crate::tests::kernel_cpus::Cpus;
use crate::tests::kernel_frames::{TestSource, machine};

const BASE: u64 = 65 << 40;
/// First frame that the direct map of these tests does not have. It need not exist: nobody looks into it.
const HIGH: u32 = 1 << 20;

struct Machine {
    frames: HostFrames,
    source: TestSource,
    tables: KernelTables,
    cpus: Cpus,
}

fn new_machine() -> Machine {
    let (frames, source) = machine(0);
    let tables = KernelTables::new(&frames, &source).unwrap();
    Machine {
        cpus: Cpus::new(tables, 2),
        frames,
        source,
        tables,
    }
}

impl Machine {
    fn permanent(&self, nr_slots: u64) -> PermanentMaps {
        let window = KernelRange::new(BASE, nr_slots * PAGE_SIZE).unwrap();
        PermanentMaps::new(self.tables, &self.frames, &self.source, window).unwrap()
    }

    fn atomic(&self, order: Order, slots_per_cpu: u64) -> AtomicMaps {
        let window = KernelRange::new(BASE, 2 * slots_per_cpu * order.bytes()).unwrap();
        AtomicMaps::new(self.tables, &self.frames, &self.source, (window, order, 2)).unwrap()
    }

    fn try_kmap<'a>(&self, maps: &'a PermanentMaps, page: u32) -> Option<Kmap<'a>> {
        maps.try_kmap(&self.frames, &self.cpus, high(page))
    }

    fn reach(&self, va: u64) -> Pfn {
        self.cpus.reach(&self.frames, va).unwrap()
    }

    fn wait<'a>(&'a self, maps: &'a PermanentMaps, page: u32) -> Waiter<'a> {
        let mut waiter = Waiter {
            wakes: Arc::default(),
            page,
            future: Box::pin(maps.kmap(&self.frames, &self.cpus, high(page))),
        };
        assert!(waiter.poll().is_none(), "nothing to wait for");
        waiter
    }
}

fn high(page: u32) -> Pfn {
    Pfn::new(HIGH + page)
}

#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

struct Waiter<'a> {
    wakes: Arc<Wakes>,
    page: u32,
    future: Pin<Box<dyn Future<Output = Kmap<'a>> + 'a>>,
}

impl<'a> Waiter<'a> {
    fn poll(&mut self) -> Option<Kmap<'a>> {
        let waker = self.wakes.clone().into();
        match self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(kmap) => Some(kmap),
            Poll::Pending => None,
        }
    }

    fn was_woken(&self) -> bool {
        self.wakes.0.swap(0, Ordering::Relaxed) > 0
    }
}

#[test]
fn a_frame_has_one_slot_however_many_use_it() {
    let machine = new_machine();
    let maps = machine.permanent(4);
    let (first, second) = (
        machine.try_kmap(&maps, 7).unwrap(),
        machine.try_kmap(&maps, 7).unwrap(),
    );
    assert_eq!(
        (first.va(), first.pfn(), maps.stats().nr_used),
        (second.va(), high(7), 1)
    );
    drop(first);
    assert_eq!(machine.reach(second.va()), high(7));
    assert_eq!(maps.stats().nr_used, 1);
}

#[test]
fn a_slot_is_used_for_another_frame_only_after_a_flush_for_all_slots() {
    let machine = new_machine();
    let maps = machine.permanent(8);
    let kept = machine.try_kmap(&maps, 100).unwrap();
    for page in 0..70 {
        // Each CPU remembers what it saw.
        let kmap = machine.try_kmap(&maps, page).unwrap();
        for cpu in 0..2 {
            machine.cpus.current.set(cpu);
            assert_eq!(
                (machine.reach(kmap.va()), machine.reach(kept.va())),
                (high(page), high(100))
            );
        }
    }
    // Seven slots a turn: the first turn needs no flush.
    assert_eq!((maps.stats().wraps, machine.cpus.flushes.get()), (9, 9));
    maps.validate(&machine.frames).unwrap();
}

#[test]
fn a_frame_used_again_before_the_flush_keeps_its_slot() {
    let machine = new_machine();
    let maps = machine.permanent(4);
    let va = machine.try_kmap(&maps, 1).unwrap().va();
    (0..100).for_each(|_| assert_eq!(machine.try_kmap(&maps, 1).unwrap().va(), va));
    assert_eq!((maps.stats().hits, machine.cpus.flushes.get()), (100, 0));
}

#[test]
fn when_all_slots_are_used_those_who_wait_are_served_in_order() {
    let machine = new_machine();
    let maps = machine.permanent(2);
    let mut held: Vec<Kmap> = (0..2)
        .map(|page| machine.try_kmap(&maps, page).unwrap())
        .collect();
    assert!(machine.try_kmap(&maps, 2).is_none());
    let mut waiters: Vec<Waiter> = (2..6).map(|page| machine.wait(&maps, page)).collect();
    assert_eq!(maps.nr_waiting(), 4);
    while !waiters.is_empty() {
        drop(held.remove(0));
        assert!(waiters[0].was_woken() && waiters[1..].iter().all(|waiter| !waiter.was_woken()));
        let mut waiter = waiters.remove(0);
        let kmap = waiter.poll().unwrap();
        assert_eq!(machine.reach(kmap.va()), high(waiter.page));
        held.push(kmap);
    }
    // A frame that is mapped needs no slot.
    assert!(machine.try_kmap(&maps, 5).is_some() && machine.try_kmap(&maps, 6).is_none());
    assert_eq!(maps.stats().waits, 4);
}

#[test]
fn a_wait_given_up_after_its_call_costs_the_others_nothing() {
    let machine = new_machine();
    let maps = machine.permanent(1);
    let held = machine.try_kmap(&maps, 0).unwrap();
    let (called, mut next) = (machine.wait(&maps, 1), machine.wait(&maps, 2));
    drop(held);
    assert!(called.was_woken() && !next.was_woken());
    drop(called);
    assert!(next.was_woken());
    assert_eq!(next.poll().unwrap().pfn(), high(2));
    assert_eq!(maps.nr_waiting(), 0);
}

#[test]
fn one_who_waited_and_then_shared_a_slot_calls_the_next() {
    let machine = new_machine();
    let maps = machine.permanent(2);
    let (first, second) = (
        machine.try_kmap(&maps, 0).unwrap(),
        machine.try_kmap(&maps, 1).unwrap(),
    );
    let mut waiters: Vec<Waiter> = [8, 8, 9].map(|page| machine.wait(&maps, page)).into();
    drop(first);
    let eight = waiters[0].poll().unwrap();
    drop(second);
    let again = waiters[1].poll().unwrap();
    assert_eq!(eight.va(), again.va());
    assert!(waiters[2].was_woken());
    assert!(waiters[2].poll().is_some());
}

#[test]
#[should_panic(expected = "16 mappings of high memory at a time")]
fn atomic_mappings_nest_only_so_deep() {
    let machine = new_machine();
    let maps = machine.atomic(Order::ZERO, 32);
    let cpu = CpuSet::new(2).unwrap().claim(CpuId::ZERO).unwrap();
    let mut nest = Nest(Vec::new());
    for page in 0..=u32::try_from(MAX_NESTED).unwrap() {
        nest.0
            .push(maps.kmap_atomic(&cpu, &machine.frames, &machine.cpus, high(page)));
    }
}

/// Mappings in the order of their making, released the other way round.
struct Nest<'a>(Vec<AtomicMap<'a, HostFrames>>);

impl Drop for Nest<'_> {
    fn drop(&mut self) {
        while self.0.pop().is_some() {}
    }
}

#[test]
#[should_panic(expected = "released newest first")]
fn atomic_mappings_are_released_newest_first() {
    let machine = new_machine();
    let maps = machine.atomic(Order::ZERO, 32);
    let cpu = CpuSet::new(2).unwrap().claim(CpuId::ZERO).unwrap();
    let older = maps.kmap_atomic(&cpu, &machine.frames, &machine.cpus, high(0));
    let _newer = maps.kmap_atomic(&cpu, &machine.frames, &machine.cpus, high(1));
    drop(older);
}

#[test]
fn a_ring_is_flushed_once_and_on_its_own_cpu_alone() {
    let machine = new_machine();
    let maps = machine.atomic(Order::ZERO, 64);
    let cpu = CpuSet::new(2).unwrap().claim(CpuId::new(1).unwrap()).unwrap();
    machine.cpus.current.set(1);
    for page in 0..640 {
        let mapped = maps.kmap_atomic(&cpu, &machine.frames, &machine.cpus, high(page));
        assert!(mapped.va() >= BASE + 64 * PAGE_SIZE);
        assert_eq!(machine.reach(mapped.va()), high(page));
    }
    assert_eq!((maps.stats().maps, maps.stats().flushes), (640, 9));
    assert_eq!(
        (machine.cpus.local_flushes.get(), machine.cpus.flushes.get()),
        (9, 0)
    );
}

#[test]
fn a_released_slot_leads_nowhere_once_another_frame_is_mapped() {
    for order in [Order::ZERO, Order::PAGEBLOCK] {
        let machine = new_machine();
        let maps = machine.atomic(order, 8);
        let cpu = CpuSet::new(2).unwrap().claim(CpuId::ZERO).unwrap();
        let mapped = maps.kmap_atomic(&cpu, &machine.frames, &machine.cpus, high(0));
        let va = mapped.va();
        drop(mapped);
        drop(maps.kmap_atomic(&cpu, &machine.frames, &machine.cpus, high(order.nr_pages())));
        assert!(machine.tables.lookup(&machine.frames, va).0.is_empty());
    }
}

#[test]
fn a_frame_that_was_looked_at_last_is_mapped_still() {
    let machine = new_machine();
    let maps = machine.atomic(Order::ZERO, 4);
    let cpu = CpuSet::new(2).unwrap().claim(CpuId::ZERO).unwrap();
    let look = |page| {
        let mapped = maps.kmap_atomic(&cpu, &machine.frames, &machine.cpus, high(page));
        assert_eq!(machine.reach(mapped.va()), high(page));
    };
    (0..100).for_each(|_| look(1));
    assert_eq!(
        (maps.stats().maps, maps.stats().hits, maps.stats().flushes),
        (100, 99, 0)
    );
    // Two in turn are not.
    (0..100).for_each(|index| look(index % 2));
    assert_eq!(maps.stats().hits, 99);
}

#[test]
fn whole_pageblocks_are_mapped_by_one_entry() {
    let machine = new_machine();
    let maps = machine.atomic(Order::PAGEBLOCK, 4);
    let cpu = CpuSet::new(2).unwrap().claim(CpuId::ZERO).unwrap();
    for block in 0..20 {
        let mapped = maps.kmap_atomic(&cpu, &machine.frames, &machine.cpus, high(block * 512));
        for page in [0, 1, 511] {
            let va = mapped.va() + u64::from(page) * PAGE_SIZE;
            assert_eq!(machine.reach(va), high(block * 512 + page));
        }
    }
    assert_eq!((maps.stats().maps, maps.stats().flushes), (20, 4));
}

#[derive(Clone, Debug)]
enum Step {
    Map(u32),
    Release(usize),
    Wait(u32),
    GiveUp(usize),
    OtherCpu,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_u32..14).prop_map(Step::Map),
        5 => any::<usize>().prop_map(Step::Release),
        2 => (0_u32..14).prop_map(Step::Wait),
        1 => any::<usize>().prop_map(Step::GiveUp),
        1 => Just(Step::OtherCpu),
    ]
}

/// Polls whoever was woken until nobody is.
fn run_woken<'a>(waiters: &mut Vec<Waiter<'a>>, held: &mut Vec<Kmap<'a>>) {
    while let Some(at) = waiters.iter().position(Waiter::was_woken) {
        let mut waiter = waiters.remove(at);
        match waiter.poll() {
            Some(kmap) => held.push(kmap),
            None => waiters.insert(at, waiter),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn whoever_has_a_mapping_reaches_its_frame_and_nobody_waits_in_vain(
        steps in prop::collection::vec(step(), 1..200),
        nr_slots in 1_usize..9,
    ) {
        let machine = new_machine();
        let maps = machine.permanent(nr_slots as u64);
        let (mut held, mut waiters): (Vec<Kmap>, Vec<Waiter>) = (Vec::new(), Vec::new());
        for step in steps {
            let in_use = |held: &[Kmap]| held.iter().map(Kmap::pfn).collect::<BTreeSet<_>>();
            match step {
                Step::Map(page) => {
                    let used = in_use(&held);
                    let kmap = machine.try_kmap(&maps, page);
                    prop_assert_eq!(kmap.is_some(), used.contains(&high(page)) || used.len() < nr_slots);
                    held.extend(kmap);
                }
                Step::Wait(page) => {
                    let used = in_use(&held);
                    if !used.contains(&high(page)) && used.len() == nr_slots {
                        waiters.push(machine.wait(&maps, page));
                    }
                }
                Step::Release(which) if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                Step::GiveUp(which) if !waiters.is_empty() => drop(waiters.remove(which % waiters.len())),
                Step::Release(_) | Step::GiveUp(_) => {}
                Step::OtherCpu => machine.cpus.current.set(1 - machine.cpus.current.get()),
            }
            run_woken(&mut waiters, &mut held);
            for kmap in &held {
                prop_assert_eq!(machine.reach(kmap.va()), kmap.pfn());
            }
            let used = in_use(&held);
            prop_assert_eq!(maps.stats().nr_used as usize, used.len());
            prop_assert!(waiters.is_empty() || used.len() == nr_slots, "a slot is free and somebody waits");
            prop_assert_eq!(maps.validate(&machine.frames), Ok(()));
        }
        held.clear();
        while !waiters.is_empty() {
            let before = waiters.len();
            run_woken(&mut waiters, &mut held);
            held.clear();
            prop_assert!(waiters.len() < before, "{} wait for nothing", before);
        }
    }

    #[test]
    fn atomic_mappings_of_two_cpus_nest_and_never_see_a_stale_frame(
        steps in prop::collection::vec((any::<bool>(), 0_u32..6, any::<bool>()), 1..300),
        slots in 2_u64..40,
        huge in any::<bool>(),
    ) {
        let machine = new_machine();
        let order = if huge { Order::PAGEBLOCK } else { Order::ZERO };
        let maps = machine.atomic(order, slots);
        let set = CpuSet::new(2).unwrap();
        let cpus: Vec<Cpu> = [0, 1].map(|id| set.claim(CpuId::new(id).unwrap()).unwrap()).into();
        let mut nested = [const { Nest(Vec::new()) }; 2];
        let mut expected = [const { Vec::new() }; 2];
        for (index, (second, page, release)) in (0_u32..).zip(steps) {
            let at = usize::from(second);
            machine.cpus.current.set(at);
            let stack = &mut nested[at].0;
            if release || stack.len() == MAX_NESTED.min(usize::try_from(slots).unwrap()) {
                stack.pop();
                expected[at].pop();
            } else {
                let pfn = high((index / 8 * 8 + page) * order.nr_pages());
                stack.push(maps.kmap_atomic(&cpus[at], &machine.frames, &machine.cpus, pfn));
                expected[at].push(pfn);
            }
            let found: Vec<Pfn> = nested[at].0.iter().map(|mapped| machine.reach(mapped.va())).collect();
            prop_assert_eq!(&found, &expected[at]);
        }
    }
}
