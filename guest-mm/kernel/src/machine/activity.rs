//! This machine behind `guest_kernel::activity`: local APICs, the nucleus, and the clock.

use super::cpu::this_cpu;
use super::nucleus::{self, Context, TimerCount, Trap};
use super::{apic, clock};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use guest_kernel::activity::{Activity, Counters, Hardware, Hearing};
use guest_kernel::cmdline::MAX_CPUS;
use guest_kernel::executor::Bell;
use guest_mm::frames::{FlushBatch, Mmu};
use guest_mm::kernel_map::{KernelRange, KernelTlb};
use guest_mm::mm::AddressSpace;
use guest_sync::CpuId;

static CPUS: Activity = Activity::new();
/// By what numbers they are called.
static APIC_IDS: [AtomicU32; MAX_CPUS.get() as usize] = [const { AtomicU32::new(0) }; _];

/// How long a CPU may wait for another one from one task to the next: far more than even a host that is very busy lets
/// the other one stand still.
const PATIENCE_NS: u64 = 60_000_000_000;
/// How often a CPU that waits looks at the clock: once in so many turns.
const LOOPS_PER_LOOK: u32 = 1 << 16;
/// Turns that each CPU has waited since it last began something, and the time of the first.
static LOOPS: [AtomicU32; MAX_CPUS.get() as usize] = [const { AtomicU32::new(0) }; _];
static WAITS_SINCE: [AtomicU64; MAX_CPUS.get() as usize] = [const { AtomicU64::new(0) }; _];

struct Machine;

impl Hardware for Machine {
    fn call(&self, cpu: CpuId) {
        apic::call(APIC_IDS[cpu.index()].load(Ordering::Relaxed));
    }

    fn forget(&self) {
        nucleus::flush();
    }

    fn relax(&self) {
        guest_sync::atomic::relax();
    }
}

fn this() -> CpuId {
    this_cpu().id()
}

/// This CPU is in use from now on, and can be called by this number.
pub(crate) fn begin(apic_id: u32) {
    APIC_IDS[this().index()].store(apic_id, Ordering::Relaxed);
    CPUS.begin(this(), &Machine);
}

/// The counters of a CPU.
pub(crate) fn counters(id: CpuId) -> Option<&'static Counters> {
    CPUS.counters(id)
}

/// Runs a process in its address space until something happens. `timer` is asked last of all, when whatever another CPU leaves to be
/// done from then on interrupts the process.
pub(crate) fn run(context: &mut Context, space: &AddressSpace, timer: impl FnOnce() -> TimerCount) -> Trap {
    loop {
        let root = space.root().gpa();
        CPUS.enter(this(), root, &Machine);
        // Who moves the root table after this look sees that this CPU is in it, and waits until it has left.
        if space.root().gpa() == root {
            context.set_root(root);
            break;
        }
        CPUS.come_back(this(), &Machine);
    }
    let trap = nucleus::run(context, timer());
    CPUS.come_back(this(), &Machine);
    if let Trap::Interrupt(vector) = trap {
        count_interrupt(vector);
    }
    trap
}

/// Whether it is time for this CPU to let interrupts in, as of `now`.
pub(crate) fn is_deaf(hearing: &mut Hearing, now: u64) -> bool {
    CPUS.counters(this())
        .is_some_and(|counters| hearing.is_deaf(counters, now))
}

/// Sleeps until an interrupt comes in and returns its vector; `None` if there is work after all.
pub(crate) fn sleep(has_work: impl FnOnce() -> bool, timer: TimerCount) -> Option<u8> {
    CPUS.leave_manager(this(), &Machine);
    if has_work() {
        CPUS.come_back(this(), &Machine);
        return None;
    }
    let counters = CPUS.counters(this())?;
    let since = clock::now();
    counters.asleep_since.store(since, Ordering::Relaxed);
    let vector = nucleus::idle(timer);
    CPUS.come_back(this(), &Machine);
    // In this order: a sleep is rather missed by whoever looks just now than counted twice.
    counters.asleep_since.store(0, Ordering::Release);
    let slept = clock::now().saturating_sub(since);
    counters.slept_ns.fetch_add(slept, Ordering::Relaxed);
    count_interrupt(vector);
    Some(vector)
}

fn count_interrupt(vector: u8) {
    if let Some(counters) = CPUS.counters(this()) {
        counters.interrupts.fetch_add(1, Ordering::Relaxed);
        let is_call = u64::from(vector == apic::CALL_VECTOR);
        counters.calls.fetch_add(is_call, Ordering::Relaxed);
    }
}

/// Makes a CPU look at its tasks.
pub(crate) struct CpuBell(pub(crate) CpuId);

impl Bell for CpuBell {
    fn ring(&self) {
        CPUS.ring(self.0, &Machine);
    }
}

/// The translation caches of all CPUs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllCpus;

impl Mmu for AllCpus {
    /// No CPU runs in one of these address spaces when this returns. Entering one again loads CR3, which drops every
    /// cached translation (no page is global, and PCIDs are off).
    fn flush(&self, batch: &FlushBatch) {
        let is_concerned = |root| batch.iter().any(|flush| flush.root.gpa() == root);
        CPUS.leave_spaces(this(), is_concerned, &Machine);
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

    fn exchange(&self, _: KernelRange, change: &mut dyn FnMut()) {
        CPUS.while_still(this(), &Machine, || {
            change();
            forget_manager_translations();
        });
    }
}

/// Makes all CPUs forget what they have cached of the manager's page tables. When it returns, no CPU uses a translation
/// that was taken out of them before. May be called with locks held: whoever waits for one answers meanwhile.
pub(crate) fn forget_manager_translations() {
    CPUS.forget_everywhere(this(), &Machine);
}

/// Does what other CPUs wait for: see [`Activity::answer`]. To be called by whatever keeps this CPU for long, and between
/// any two tasks.
pub(crate) fn answer() {
    LOOPS[this().index()].store(0, Ordering::Relaxed);
    CPUS.answer(this(), &Machine);
}

/// What a CPU does while it waits for another one, locks included (`guest_sync::atomic::set_while_waiting`): it answers.
///
/// # Panics
/// If it has waited for so long that what it waits for will never come.
pub(crate) fn answer_while_waiting() {
    CPUS.answer(this(), &Machine);
    let loops = LOOPS[this().index()].fetch_add(1, Ordering::Relaxed);
    if loops.is_multiple_of(LOOPS_PER_LOOK) {
        let now = clock::now();
        let since = &WAITS_SINCE[this().index()];
        if loops == 0 {
            since.store(now, Ordering::Relaxed);
        }
        let waited = now.saturating_sub(since.load(Ordering::Relaxed));
        assert!(
            waited < PATIENCE_NS,
            "waited {waited} ns for a lock or another CPU"
        );
    }
}
