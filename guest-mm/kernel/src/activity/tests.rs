//! Threads as CPUs, with the machine's way of caching translations: one that is used is remembered, until it is forgotten
//! or, in an address space, until that is entered anew.

use super::*;
use std::thread;
use std::vec::Vec;

/// The address space that programs run in.
const SPACE: u64 = 0x1000;
const ROUNDS: u64 = 2000;

/// A page of memory: whether somebody may still use it.
type Pages = Vec<AtomicBool>;

struct World {
    activity: Activity,
    pages: Pages,
    /// Which page the one address of the programs leads to, and which the one of the manager.
    user_entry: AtomicU64,
    manager_entry: AtomicU64,
    calls: [AtomicBool; 3],
    /// Uses of a page that was gone.
    wrong: AtomicU64,
    over: AtomicBool,
}

/// One CPU: what it has cached.
struct Machine<'a> {
    world: &'a World,
    this: CpuId,
    cached: core::cell::Cell<Option<u64>>,
}

impl Hardware for Machine<'_> {
    fn call(&self, cpu: CpuId) {
        self.world.calls[cpu.index()].store(true, Ordering::Release);
    }

    fn forget(&self) {
        self.cached.set(None);
    }

    fn relax(&self) {
        thread::yield_now();
    }
}

impl Machine<'_> {
    /// Uses the page that an entry leads to, or did when it was cached.
    fn access(&self, cached: Option<u64>, entry: &AtomicU64) -> u64 {
        let page = cached.unwrap_or_else(|| entry.load(Ordering::Relaxed));
        let is_there = self.world.pages[usize::try_from(page).unwrap()].load(Ordering::Relaxed);
        self.world
            .wrong
            .fetch_add(u64::from(!is_there), Ordering::Relaxed);
        page
    }

    /// Runs a program until a call comes, or it stops by itself.
    fn run_program(&self) {
        let (world, activity) = (self.world, &self.world.activity);
        activity.enter(self.this, SPACE, self);
        // Page tables are loaded on the way in and out.
        self.forget();
        let mut cached = None;
        // A call takes a while to arrive.
        for _ in 0..500 {
            if world.calls[self.this.index()].swap(false, Ordering::Acquire) {
                break;
            }
            for _ in 0..32 {
                cached = Some(self.access(cached, &world.user_entry));
            }
        }
        self.forget();
        // A processor may cache what it does not use yet.
        self.cached.set(Some(world.manager_entry.load(Ordering::Relaxed)));
        (0..1000).for_each(|_| core::hint::spin_loop());
        activity.come_back(self.this, self);
    }

    fn work_in_the_manager(&self) {
        for _ in 0..2000 {
            self.cached
                .set(Some(self.access(self.cached.get(), &self.world.manager_entry)));
        }
    }
}

fn cpu(number: u8) -> CpuId {
    CpuId::new(number).unwrap()
}

/// CPU 0 exchanges the page behind an entry again and again, and gives the old one up after `flush`; two others use it.
fn exchange(entry: impl Fn(&World) -> &AtomicU64 + Sync, flush: impl Fn(&Machine<'_>) + Sync) {
    let world = World {
        activity: Activity::new(),
        pages: (0..=2 * ROUNDS + 1).map(|_| AtomicBool::new(true)).collect(),
        user_entry: AtomicU64::new(0),
        manager_entry: AtomicU64::new(ROUNDS + 1),
        calls: Default::default(),
        wrong: AtomicU64::new(0),
        over: AtomicBool::new(false),
    };
    thread::scope(|scope| {
        let world = &world;
        let machine = move |number| Machine {
            world,
            this: cpu(number),
            cached: core::cell::Cell::new(None),
        };
        for number in [1, 2] {
            scope.spawn(move || {
                let machine = machine(number);
                world.activity.begin(machine.this, &machine);
                while !world.over.load(Ordering::Relaxed) {
                    machine.run_program();
                    machine.work_in_the_manager();
                    thread::yield_now();
                }
                // Somebody may still be waiting for an answer.
                world.activity.leave_manager(machine.this, &machine);
            });
        }
        let machine = machine(0);
        world.activity.begin(machine.this, &machine);
        for _ in 0..ROUNDS {
            let old = entry(world).fetch_add(1, Ordering::Relaxed);
            flush(&machine);
            world.pages[usize::try_from(old).unwrap()].store(false, Ordering::Relaxed);
            thread::yield_now();
        }
        world.over.store(true, Ordering::Relaxed);
    });
    assert_eq!(world.wrong.into_inner(), 0, "pages were used that were gone");
}

#[test]
fn no_program_uses_a_page_after_the_flush_that_followed_its_unmapping() {
    exchange(
        |world| &world.user_entry,
        |machine| {
            machine
                .world
                .activity
                .leave_spaces(machine.this, |root| root == SPACE, machine);
        },
    );
}

#[test]
fn no_cpu_uses_a_page_of_the_manager_after_all_have_forgotten_it() {
    exchange(
        |world| &world.manager_entry,
        |machine| machine.world.activity.forget_everywhere(machine.this, machine),
    );
}

/// Threads that are called in vain: none of them sleeps for long.
struct Threads;

impl Hardware for Threads {
    fn call(&self, _: CpuId) {}
    fn forget(&self) {}
    fn relax(&self) {
        thread::yield_now();
    }
}

#[test]
fn while_one_cpu_works_all_others_stand_still_or_are_away() {
    let activity = Activity::new();
    // Each CPU has two numbers that are the same whenever it looks what others want.
    let numbers: [[AtomicU64; 2]; 3] = Default::default();
    let (over, wrong) = (AtomicBool::new(false), AtomicU64::new(0));
    let look = |this: CpuId| {
        activity.while_still(this, &Threads, || {
            let now = || -> Vec<[u64; 2]> {
                let others = numbers
                    .iter()
                    .enumerate()
                    .filter(|(index, _)| *index != this.index());
                others
                    .map(|(_, pair)| [0, 1].map(|at| pair[at].load(Ordering::Relaxed)))
                    .collect()
            };
            let before = now();
            (0..200).for_each(|_| spin_loop());
            let is_still = now() == before && before.iter().all(|[first, second]| first == second);
            wrong.fetch_add(u64::from(!is_still), Ordering::Relaxed);
        });
    };
    thread::scope(|scope| {
        let (activity, numbers, over, look) = (&activity, &numbers, &over, &look);
        for number in [1, 2] {
            scope.spawn(move || {
                let this = cpu(number);
                activity.begin(this, &Threads);
                while !over.load(Ordering::Relaxed) {
                    for _ in 0..20 {
                        for half in &numbers[this.index()] {
                            half.fetch_add(1, Ordering::Relaxed);
                            (0..20).for_each(|_| spin_loop());
                        }
                        activity.answer(this, &Threads);
                    }
                    // Two want it at a time.
                    if number == 1 {
                        look(this);
                    }
                    activity.leave_manager(this, &Threads);
                    thread::yield_now();
                    activity.come_back(this, &Threads);
                }
                activity.leave_manager(this, &Threads);
            });
        }
        activity.begin(cpu(0), &Threads);
        // Until both are at work there is nobody who could go on.
        let is_at_work = |number: usize| numbers[number][1].load(Ordering::Relaxed) > 0;
        while !(is_at_work(1) && is_at_work(2)) {
            activity.answer(cpu(0), &Threads);
            thread::yield_now();
        }
        (0..300).for_each(|_| {
            look(cpu(0));
            thread::yield_now();
        });
        // Another one may still want this CPU to stand still.
        activity.leave_manager(cpu(0), &Threads);
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(
        wrong.into_inner(),
        0,
        "a CPU went on in the middle of another one's work"
    );
}

#[test]
fn who_is_in_another_address_space_is_left_alone() {
    struct Nobody;
    impl Hardware for Nobody {
        fn call(&self, cpu: CpuId) {
            panic!("CPU {cpu} called");
        }
        fn forget(&self) {}
        fn relax(&self) {
            panic!("waited");
        }
    }
    let activity = Activity::new();
    (0..2).for_each(|number| activity.begin(cpu(number), &Nobody));
    activity.enter(cpu(1), SPACE, &Nobody);
    activity.leave_spaces(cpu(0), |root| root == SPACE + 1, &Nobody);
    activity.come_back(cpu(1), &Nobody);
    activity.leave_spaces(cpu(0), |root| root == SPACE, &Nobody);
    activity.ring(cpu(1), &Nobody);
    activity.ring(cpu(0), &Nobody);
}

#[test]
fn a_cpu_that_sleeps_is_called_once_however_often_it_is_rung() {
    struct Calls(AtomicU64);
    impl Hardware for Calls {
        fn call(&self, _: CpuId) {
            count(&self.0);
        }
        fn forget(&self) {}
        fn relax(&self) {}
    }
    let (activity, calls) = (Activity::new(), Calls(AtomicU64::new(0)));
    activity.begin(cpu(1), &calls);
    activity.leave_manager(cpu(1), &calls);
    (0..3).for_each(|_| activity.ring(cpu(1), &calls));
    assert_eq!(calls.0.load(Ordering::Relaxed), 1);
    activity.come_back(cpu(1), &calls);
    activity.leave_manager(cpu(1), &calls);
    activity.ring(cpu(1), &calls);
    assert_eq!(calls.0.load(Ordering::Relaxed), 2);
}

#[test]
fn a_cpu_that_lets_no_interrupt_in_for_long_is_told() {
    let counters = Counters::default();
    let mut hearing = Hearing::default();
    let hears = |what: &AtomicU64| what.fetch_add(1, Ordering::Relaxed);
    assert_ne!(LONGEST_DEAFNESS_NS, 0);
    let mut now = 5 * LONGEST_DEAFNESS_NS;
    for what in [&counters.runs, &counters.interrupts] {
        hears(what);
        assert!(!hearing.is_deaf(&counters, now));
        assert!(!hearing.is_deaf(&counters, now + LONGEST_DEAFNESS_NS - 1));
        now += LONGEST_DEAFNESS_NS;
        assert!(hearing.is_deaf(&counters, now));
        // Until it has.
        assert!(hearing.is_deaf(&counters, now + 1));
        now += 2;
    }
}
