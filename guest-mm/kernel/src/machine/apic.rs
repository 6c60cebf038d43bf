//! The local APIC in x2APIC mode (Intel SDM volume 3, chapter 11): the timer, and interrupts from CPU to CPU.
//!
//! The end of an interrupt is signalled by the nucleus; the timer is armed by it on the way into a process or to
//! sleep ([`TimerCount`]).

#![expect(unsafe_code, reason = "writes the local APIC's registers")]

use super::clock::Clock;
use super::nucleus::{self, TimerCount};
use super::ports;
use core::num::NonZeroU32;
use core::sync::atomic::{Ordering, fence};

/// The timer's vector.
pub(crate) const TIMER_VECTOR: u8 = 32;
/// The vector by which a CPU gets another one's attention. What for, memory says.
pub(crate) const CALL_VECTOR: u8 = 33;
/// The vector of the global system interrupt 0; the others follow.
pub(crate) const GSI_VECTOR: u8 = 48;
/// The vector of interrupts that were withdrawn before they were delivered.
const SPURIOUS_VECTOR: u8 = 255;

const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLED: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;
const ID: u32 = 0x802;
const TASK_PRIORITY: u32 = 0x808;
const SPURIOUS: u32 = 0x80f;
const SPURIOUS_ENABLE: u64 = 1 << 8;
const COMMAND: u32 = 0x830;
const COMMAND_INIT: u64 = 5 << 8 | 1 << 14;
const COMMAND_STARTUP: u64 = 6 << 8 | 1 << 14;
const LVT_TIMER: u32 = 0x832;
const LVT_LINT0: u32 = 0x835;
const LVT_LINT1: u32 = 0x836;
const LVT_ERROR: u32 = 0x837;
const LVT_MASKED: u64 = 1 << 16;
const TIMER_INITIAL_COUNT: u32 = 0x838;
const TIMER_CURRENT_COUNT: u32 = 0x839;
const TIMER_DIVIDE: u32 = 0x83e;
const DIVIDE_BY_1: u64 = 0b1011;

const CPUID_FEATURES: u32 = 1;
const CPUID_ECX_X2APIC: u32 = 1 << 21;
/// How long the timer's speed is measured.
const CALIBRATION_NS: u64 = 1_000_000;

/// The local APICs, all of which are alike.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalApics {
    counts_per_ms: u64,
}

impl LocalApics {
    /// Switches the boot CPU's on and measures the timer's speed. Returns `None` on a machine without x2APIC.
    pub(crate) fn start(clock: &Clock) -> Option<Self> {
        if nucleus::cpuid(CPUID_FEATURES, 0).ecx & CPUID_ECX_X2APIC == 0 {
            return None;
        }
        mask_legacy_controllers();
        Self::join();
        Some(Self {
            counts_per_ms: measure(clock),
        })
    }

    /// Switches this CPU's on, with the timer in one-shot mode.
    pub(crate) fn join() {
        let base = nucleus::read_msr(APIC_BASE) | APIC_BASE_ENABLED;
        for (register, value) in [
            (APIC_BASE, base), // x2APIC mode can only be entered from an enabled APIC.
            (APIC_BASE, base | APIC_BASE_X2APIC),
            // Before the others: no LVT entry can be unmasked while the APIC is disabled by software.
            (SPURIOUS, SPURIOUS_ENABLE | u64::from(SPURIOUS_VECTOR)),
            (TASK_PRIORITY, 0),
            (LVT_LINT0, LVT_MASKED),
            (LVT_LINT1, LVT_MASKED),
            (LVT_ERROR, LVT_MASKED),
            (LVT_TIMER, u64::from(TIMER_VECTOR)),
            (TIMER_DIVIDE, DIVIDE_BY_1),
        ] {
            // SAFETY: these registers decide only which interrupts come in, and the nucleus has a gate for each.
            unsafe { nucleus::write_msr(register, value) };
        }
    }

    /// The count that lets the timer interrupt in `ns` nanoseconds, or as late as it can.
    pub(crate) fn count(&self, ns: u64) -> TimerCount {
        let count = u128::from(ns) * u128::from(self.counts_per_ms) / 1_000_000;
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        Some(NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN))
    }
}

/// The number by which interrupts are sent to this CPU.
pub(crate) fn this_id() -> u32 {
    u32::try_from(nucleus::read_msr(ID)).unwrap_or(u32::MAX)
}

/// Interrupts the CPU with this APIC id. What was written to memory before is seen by it after.
pub(crate) fn call(apic_id: u32) {
    command(apic_id, u64::from(CALL_VECTOR));
}

/// Lets the CPU with this APIC id start at `page`, in real mode (Intel SDM volume 3, 9.4.4). No pause is needed between
/// the two steps where APICs are software, as they are where this guest runs.
///
/// # Safety
/// At `page`, below 1 MiB, must be code that brings the CPU up.
pub(crate) unsafe fn start_cpu(apic_id: u32, page: u64) {
    command(apic_id, COMMAND_INIT);
    command(apic_id, COMMAND_STARTUP | page >> 12);
}

fn command(apic_id: u32, command: u64) {
    // Writing this register orders nothing (10.12.3).
    fence(Ordering::SeqCst);
    // SAFETY: an interrupt only makes its target look at memory; starting a CPU is vouched for by the caller.
    unsafe { nucleus::write_msr(COMMAND, u64::from(apic_id) << 32 | command) };
}

/// Lets the timer run for a while and returns its counts in a millisecond. Interrupts are off: should it run down,
/// its interrupt comes with the first process, and does no harm.
fn measure(clock: &Clock) -> u64 {
    // A call of the nucleus takes a while: what counts is the middle of it.
    let middle = |call: &dyn Fn() -> u64| {
        let before = clock.now();
        let result = call();
        (u64::midpoint(before, clock.now()), result)
    };
    let (start, _) = middle(&|| {
        // SAFETY: starting the timer leads to an interrupt at most.
        unsafe { nucleus::write_msr(TIMER_INITIAL_COUNT, u64::from(u32::MAX)) };
        0
    });
    while clock.now() - start < CALIBRATION_NS {}
    let (end, left) = middle(&|| nucleus::read_msr(TIMER_CURRENT_COUNT));
    // SAFETY: stops the timer.
    unsafe { nucleus::write_msr(TIMER_INITIAL_COUNT, 0) };
    let counts = u64::from(u32::MAX) - left;
    (counts * 1_000_000 / (end - start)).max(1)
}

/// The two 8259s would send their interrupts on vectors of exceptions: masks them.
fn mask_legacy_controllers() {
    for port in [0x21, 0xa1] {
        // SAFETY: masks all lines of an interrupt controller that nobody uses.
        unsafe { ports::write(port, 0xff) };
    }
}
