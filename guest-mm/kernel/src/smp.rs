//! The other CPUs: started one after the other by the boot CPU.

#![expect(unsafe_code, reason = "starts CPUs")]

use crate::log::log;
use crate::machine::apic::LocalApics;
use crate::machine::clock::Clock;
use crate::machine::cpu::{Start, this_cpu};
use crate::machine::nucleus;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU8, Ordering};
use guest_sync::CpuId;

/// How long a CPU may take from its start to the manager: much more than it needs even on a host that is very busy.
const PATIENCE_NS: u64 = 10_000_000_000;

/// Number of the CPU that came up last.
static LATEST: AtomicU8 = AtomicU8::new(0);

/// Starts the other CPUs and returns how many CPUs there are now. They use one page to start, one after the other;
/// should one fail to come up the rest is not tried, as it may still be on its way.
pub(crate) fn start(clock: Clock, others: Vec<Start>) -> u8 {
    let mut running = CpuId::ZERO.number();
    for other in others {
        if !bring_up(clock, &other) {
            log!(Error, "CPU {} does not start: going on with fewer", other.id);
            break;
        }
        running = other.id.number();
    }
    running + 1
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
    // It needs neither the page nor its starter any more.
    LATEST.store(this_cpu().id().number(), Ordering::Release);
    Clock::join();
    LocalApics::join();
    loop {
        nucleus::idle(None);
    }
}
