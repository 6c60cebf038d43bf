//! The CPUs: the boot CPU starts the others one after the other, and each runs the manager's main loop.

#![expect(unsafe_code, reason = "starts CPUs")]

use crate::kernel::Kernel;
use crate::log::log;
use crate::machine::activity;
use crate::machine::apic::{self, LocalApics};
use crate::machine::clock::Clock;
use crate::machine::cpu::{Start, this_cpu};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering};
use guest_sync::{CpuId, SpinLock};

/// How long a CPU may take from its start to the manager: much more than it needs even on a host that is very busy.
const PATIENCE_NS: u64 = 10_000_000_000;

/// Number of the CPU that came up last.
static LATEST: AtomicU8 = AtomicU8::new(0);
/// The kernel, for CPUs that arrive.
static KERNEL: SpinLock<Option<&'static Kernel>> = SpinLock::new(None);

/// Starts the other CPUs. They use one page to start, one after the other; should one fail to come up the rest is not
/// tried, as it may still be on its way. To be called by the boot CPU before it does anything that concerns several.
pub(crate) fn start(kernel: &'static Kernel, others: Vec<Start>) {
    guest_sync::atomic::set_while_waiting(activity::answer_while_waiting);
    activity::begin(apic::this_id());
    *KERNEL.lock() = Some(kernel);
    let mut running = CpuId::ZERO.number();
    for other in others {
        if !bring_up(kernel.clock, &other) {
            log!(Error, "CPU {} does not start: going on with fewer", other.id);
            break;
        }
        running = other.id.number();
    }
    kernel.use_cpus(running + 1);
    log!(Info, "CPUs: {}", running + 1);
}

fn bring_up(clock: Clock, other: &Start) -> bool {
    // SAFETY: boot.rs set its stacks and the page aside, and this happens once.
    unsafe { other.start() };
    let end = clock.now() + PATIENCE_NS;
    while LATEST.load(Ordering::Acquire) != other.id.number() {
        if clock.now() > end {
            return false;
        }
        core::hint::spin_loop();
    }
    true
}

/// What a CPU that was started does.
pub(crate) fn arrive() -> ! {
    let kernel = *KERNEL.lock();
    let kernel = kernel.expect("the boot CPU stores it before it starts others");
    // This CPU needs neither the page nor its starter any more.
    LATEST.store(this_cpu().id().number(), Ordering::Release);
    Clock::join();
    LocalApics::join();
    activity::begin(apic::this_id());
    kernel.run(&kernel.executor())
}
