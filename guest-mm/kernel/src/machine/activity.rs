//! What each CPU is doing, as the others see it, and how they get its attention: to look at its tasks (a [`Bell`]), to
//! leave an address space, or to forget translations of the manager's own.
//!
//! The manager runs with interrupts off, so a CPU in it cannot be interrupted, and need not be: before it leaves for a
//! process or sleep it says so, and then looks once more at what others may have left for it. Whoever leaves something
//! looks after that at what the CPU has said. One of the two sees the other, as between both steps on either side is
//! a full fence; marked below with *fence*.

use super::apic;
use super::clock;
use super::cpu::this_cpu;
use super::nucleus::{self, Context, TimerCount, Trap};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use guest_kernel::cmdline::MAX_CPUS;
use guest_kernel::executor::Bell;
use guest_mm::frames::{FlushBatch, Mmu};
use guest_mm::kernel_map::{KernelRange, KernelTlb};
use guest_sync::CpuId;
use guest_sync::atomic::relax;

/// In the manager, or called out of what it did and on its way there.
const MANAGER: u8 = 0;
/// In a process, or asleep.
const AWAY: u8 = 1;

/// One CPU, as all see it.
#[repr(align(128))]
struct State {
    /// Whether the CPU is in use.
    is_up: AtomicBool,
    apic_id: AtomicU32,
    /// [`MANAGER`] or [`AWAY`].
    place: AtomicU8,
    /// Root table of the address space that it runs in, or is about to; 0 in between.
    root: AtomicU64,
    /// The last value of [`GENERATION`] that it has forgotten all translations for.
    forgotten: AtomicU64,
    counters: Counters,
}

/// What a CPU has done so far. Written by itself alone.
#[derive(Default)]
pub(crate) struct Counters {
    /// Times it went into a process.
    pub(crate) runs: AtomicU64,
    /// Interrupts that came in, calls by other CPUs among them.
    pub(crate) interrupts: AtomicU64,
    /// Calls by other CPUs that came in.
    pub(crate) calls: AtomicU64,
    /// Calls it has sent to other CPUs so that they leave an address space.
    pub(crate) leave_calls: AtomicU64,
    /// Calls it has sent to other CPUs so that they forget translations of the manager's own.
    pub(crate) forget_calls: AtomicU64,
    /// Time it has slept.
    pub(crate) idle_ns: AtomicU64,
}

impl Counters {
    fn this() -> &'static Self {
        &State::this().counters
    }
}

static STATES: [State; MAX_CPUS.get() as usize] = [const { State::new() }; _];

/// Counts changes of the manager's page tables that take something away.
static GENERATION: AtomicU64 = AtomicU64::new(0);

impl State {
    const fn new() -> Self {
        Self {
            is_up: AtomicBool::new(false),
            apic_id: AtomicU32::new(0),
            place: AtomicU8::new(MANAGER),
            root: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            counters: Counters {
                runs: AtomicU64::new(0),
                interrupts: AtomicU64::new(0),
                calls: AtomicU64::new(0),
                leave_calls: AtomicU64::new(0),
                forget_calls: AtomicU64::new(0),
                idle_ns: AtomicU64::new(0),
            },
        }
    }

    fn this() -> &'static Self {
        &STATES[this_cpu().id().index()]
    }

    /// The CPUs in use but this one.
    fn others() -> impl Iterator<Item = &'static Self> {
        let this = this_cpu().id().index();
        let others = STATES.iter().enumerate().filter(move |(index, _)| *index != this);
        others
            .map(|(_, state)| state)
            .filter(|state| state.is_up.load(Ordering::Acquire))
    }

    fn call(&self) {
        apic::call(self.apic_id.load(Ordering::Relaxed));
    }
}

/// This CPU is in use from now on, and can be called by this number.
pub(crate) fn begin(apic_id: u32) {
    let state = State::this();
    state.apic_id.store(apic_id, Ordering::Relaxed);
    state.is_up.store(true, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    answer();
}

/// The counters of a CPU.
pub(crate) fn counters(id: CpuId) -> Option<&'static Counters> {
    STATES.get(id.index()).map(|state| &state.counters)
}

/// Runs a process until something happens. `timer` is asked last of all, when whatever another CPU leaves to be done
/// from then on interrupts the process.
pub(crate) fn run(context: &mut Context, timer: impl FnOnce() -> TimerCount) -> Trap {
    let state = State::this();
    state.counters.runs.fetch_add(1, Ordering::Relaxed);
    state.root.store(context.root(), Ordering::Relaxed);
    leave(state);
    let trap = nucleus::run(context, timer());
    state.root.store(0, Ordering::Release);
    come_back(state);
    if let Trap::Interrupt(vector) = trap {
        state.count_interrupt(vector);
    }
    trap
}

/// Sleeps until an interrupt comes in and returns its vector; `None` if there is work after all.
pub(crate) fn sleep(has_work: impl FnOnce() -> bool, timer: TimerCount) -> Option<u8> {
    let state = State::this();
    leave(state);
    if has_work() {
        state.place.store(MANAGER, Ordering::Relaxed);
        return None;
    }
    let since = clock::now();
    let vector = nucleus::idle(timer);
    come_back(state);
    let slept = clock::now().saturating_sub(since);
    state.counters.idle_ns.fetch_add(slept, Ordering::Relaxed);
    state.count_interrupt(vector);
    Some(vector)
}

/// What is left to this CPU from here on comes with a call.
fn leave(state: &State) {
    state.place.store(AWAY, Ordering::Relaxed);
    fence(Ordering::SeqCst); // *fence*
    answer();
}

fn come_back(state: &State) {
    state.place.store(MANAGER, Ordering::Relaxed);
    answer();
}

impl State {
    fn count_interrupt(&self, vector: u8) {
        self.counters.interrupts.fetch_add(1, Ordering::Relaxed);
        if vector == apic::CALL_VECTOR {
            self.counters.calls.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Makes a CPU look at its tasks.
pub(crate) struct CpuBell(pub(crate) CpuId);

impl Bell for CpuBell {
    fn ring(&self) {
        let Some(state) = STATES.get(self.0.index()) else {
            return;
        };
        fence(Ordering::SeqCst); // *fence*
        // Called once is enough: it is on its way. (It is never away when it is the one that rings.)
        if state.place.swap(MANAGER, Ordering::Relaxed) == AWAY {
            state.call();
        }
    }
}

/// The translation caches of all CPUs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllCpus;

impl Mmu for AllCpus {
    /// Makes every CPU that runs in one of the address spaces leave it, and waits until it has. It then needs no flush:
    /// entering an address space loads CR3, which drops every cached translation (no page is global, and PCIDs are off).
    fn flush(&mut self, batch: &FlushBatch) {
        fence(Ordering::SeqCst); // *fence*: the page tables were changed before
        let is_concerned = |root| batch.iter().any(|flush| flush.root.gpa() == root);
        let mut called = [None; MAX_CPUS.get() as usize];
        for (state, called) in State::others().zip(&mut called) {
            // In this order: a CPU that is in the space again has entered it after the change.
            let runs = state.counters.runs.load(Ordering::Acquire);
            let root = state.root.load(Ordering::Acquire);
            if root != 0 && is_concerned(root) {
                Counters::this().leave_calls.fetch_add(1, Ordering::Relaxed);
                state.call();
                *called = Some((state, root, runs));
            }
        }
        for (state, root, runs) in called.into_iter().flatten() {
            while state.root.load(Ordering::Acquire) == root
                && state.counters.runs.load(Ordering::Acquire) == runs
            {
                relax();
            }
        }
    }
}

impl KernelTlb for AllCpus {
    fn flush(&self, _: KernelRange) {
        forget_manager_translations();
    }

    fn flush_local(&self, range: KernelRange) {
        match range.nr_pages() {
            1 => nucleus::invalidate(range.start()),
            _ => nucleus::flush(),
        }
    }
}

/// Makes all CPUs forget what they have cached of the manager's page tables. When it returns, no CPU has a translation
/// that was taken out of them before. May be called with locks held: whoever waits for one answers meanwhile
/// ([`answer`]).
pub(crate) fn forget_manager_translations() {
    let wanted = GENERATION.fetch_add(1, Ordering::SeqCst) + 1;
    fence(Ordering::SeqCst); // *fence*
    answer();
    for state in State::others() {
        if state.forgotten.load(Ordering::Acquire) < wanted && state.place.load(Ordering::Relaxed) == AWAY {
            Counters::this().forget_calls.fetch_add(1, Ordering::Relaxed);
            state.call();
        }
    }
    for state in State::others() {
        while state.forgotten.load(Ordering::Acquire) < wanted {
            relax();
            answer();
        }
    }
}

/// Does what other CPUs wait for: forgets translations if any were taken away. Whatever waits for another CPU calls this
/// again and again, locks included (`guest_sync::atomic::set_while_waiting`).
pub(crate) fn answer() {
    let state = State::this();
    let wanted = GENERATION.load(Ordering::Acquire);
    if state.forgotten.load(Ordering::Relaxed) != wanted {
        nucleus::flush();
        state.forgotten.store(wanted, Ordering::Release);
    }
}
