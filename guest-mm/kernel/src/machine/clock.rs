//! The time: the TSC, as the hypervisor says it is to be read (kvmclock, Linux `Documentation/virt/kvm/x86/msr.rst`).

#![expect(
    unsafe_code,
    reason = "shares a page with the hypervisor and reads the time-stamp counter"
)]

use super::cpu::this_cpu;
use super::nucleus;
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use guest_kernel::cmdline::MAX_CPUS;

/// `MSR_KVM_SYSTEM_TIME_NEW`: where the hypervisor keeps the clock's parameters; bit 0 switches it on.
const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;
const CPUID_HYPERVISOR: u32 = 0x4000_0000;
/// In eax of the leaf after [`CPUID_HYPERVISOR`].
const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;

/// `struct pvclock_vcpu_time_info`, written by the hypervisor at any time. `version` is odd while it writes.
#[repr(C, align(64))]
struct Shared {
    version: AtomicU32,
    reserved: AtomicU32,
    tsc_timestamp: AtomicU64,
    system_time: AtomicU64,
    tsc_to_system_mul: AtomicU32,
    /// Byte 0: `tsc_shift`, signed; byte 1: flags.
    shift_and_flags: AtomicU32,
}

/// One for each CPU: their time-stamp counters need not agree.
static SHARED: [Shared; MAX_CPUS.get() as usize] = [const { Shared::new() }; _];

impl Shared {
    const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            reserved: AtomicU32::new(0),
            tsc_timestamp: AtomicU64::new(0),
            system_time: AtomicU64::new(0),
            tsc_to_system_mul: AtomicU32::new(0),
            shift_and_flags: AtomicU32::new(0),
        }
    }

    /// This CPU's.
    fn this() -> &'static Self {
        &SHARED[this_cpu().id().index()]
    }
}

/// The largest time read so far: the clock never goes back.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// The running clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(());

impl Clock {
    /// Switches the clock on, for this CPU; `None` where the hypervisor has none.
    pub(crate) fn start() -> Option<Self> {
        let vendor = nucleus::cpuid(CPUID_HYPERVISOR, 0);
        let mut name = [0; 12];
        for (bytes, register) in name.chunks_exact_mut(4).zip([vendor.ebx, vendor.ecx, vendor.edx]) {
            bytes.copy_from_slice(&register.to_le_bytes());
        }
        let features = nucleus::cpuid(CPUID_HYPERVISOR + 1, 0).eax;
        if &name != b"KVMKVMKVM\0\0\0" || features & FEATURE_CLOCKSOURCE2 == 0 {
            return None;
        }
        Self::join();
        Some(Self(()))
    }

    /// Lets the clock run on this CPU too.
    pub(crate) fn join() {
        let page = core::ptr::from_ref(Shared::this()).expose_provenance() as u64;
        // SAFETY: the hypervisor writes to `SHARED` only, which consists of atomics and lives for ever.
        unsafe { nucleus::write_msr(MSR_SYSTEM_TIME, page | 1) };
    }

    /// Nanoseconds since the machine started.
    pub(crate) fn now(self) -> u64 {
        now()
    }
}

/// Nanoseconds since the machine started; 0 before the clock was switched on. For messages.
pub(crate) fn now() -> u64 {
    let shared = Shared::this();
    let time = loop {
        let version = shared.version.load(Ordering::Acquire);
        let timestamp = shared.tsc_timestamp.load(Ordering::Relaxed);
        let system_time = shared.system_time.load(Ordering::Relaxed);
        let multiplier = shared.tsc_to_system_mul.load(Ordering::Relaxed);
        let [shift, ..] = shared.shift_and_flags.load(Ordering::Relaxed).to_le_bytes();
        fence(Ordering::Acquire);
        if version.is_multiple_of(2) && shared.version.load(Ordering::Relaxed) == version {
            let ticks = u128::from(time_stamp_counter().saturating_sub(timestamp));
            let ticks = match shift.cast_signed() {
                shift @ 0.. => ticks << shift.unsigned_abs(),
                shift => ticks >> shift.unsigned_abs(),
            };
            #[expect(
                clippy::cast_possible_truncation,
                reason = "nanoseconds fit 64 bits for 500 years"
            )]
            let elapsed = ((ticks * u128::from(multiplier)) >> 32) as u64;
            break system_time.saturating_add(elapsed);
        }
    };
    LATEST.fetch_max(time, Ordering::Relaxed).max(time)
}

fn time_stamp_counter() -> u64 {
    // SAFETY: ring 3 may execute the instruction (CR4.TSD is clear).
    unsafe { _rdtsc() }
}
