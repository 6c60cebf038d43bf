//! Which CPU this is, and what each has from its first instruction on: a number, a token, and two stacks.
//!
//! A CPU's stacks lie together, aligned to their size, so that whatever runs finds its CPU by its stack pointer:
//!
//! ```text
//! 0                  number of the CPU
//!        .. 0x8000   stack for the manager's own faults, downwards
//! 0x8000 .. 0x9000   not mapped: the manager's stack has overflowed
//!        .. 0x40000  the manager's stack, downwards
//! ```

#![expect(
    unsafe_code,
    reason = "finds the CPU by its stack, and writes what another one starts with"
)]

use super::apic;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::ops::Range;
use core::ptr::{with_exposed_provenance, with_exposed_provenance_mut};
use guest_kernel::cmdline::MAX_CPUS;
use guest_kernel::physical::to_usize;
use guest_sync::{Cpu, CpuId, CpuSet};

/// Bytes and alignment of a CPU's stacks. In nucleus.s: `MANAGER_STACK_END`.
pub(crate) const STACKS_SIZE: u64 = 0x40000;
/// The page of the stacks that is not mapped. In nucleus.s its start is `FAULT_STACK_END`.
const GUARD: Range<u64> = 0x8000..0x9000;

unsafe extern "C" {
    /// What a CPU executes first, in real mode (start.s).
    safe static start_cpu: [u8; START_BYTES];
}

/// Bytes of it; and in there what it is told.
const START_BYTES: usize = 0x40;
const START_NUMBER: u64 = 0x30;
const START_STACKS: u64 = 0x34;

static TOKENS: [Token; MAX_CPUS.get() as usize] = [const { Token(UnsafeCell::new(None)) }; _];

struct Token(UnsafeCell<Option<Cpu>>);

// SAFETY: the boot CPU fills all of them before another one runs, and from then on each is only read, by its own CPU.
unsafe impl Sync for Token {}

/// Makes the tokens.
///
/// # Safety
/// To be called once, by the boot CPU, before anything else.
pub(crate) unsafe fn make_tokens() {
    let Some(cpus) = CpuSet::new(MAX_CPUS.get()) else {
        return;
    };
    for (token, id) in TOKENS.iter().zip((0..).filter_map(CpuId::new)) {
        // SAFETY: nobody has a reference yet, by this function's own condition.
        unsafe { token.0.get().write(cpus.claim(id)) };
    }
}

/// The CPU that executes this. Its token cannot be sent to another one.
#[inline]
pub(crate) fn this_cpu() -> &'static Cpu {
    // SAFETY: this is the token's own CPU, and nobody writes to it any more.
    let token = unsafe { &*TOKENS[number()].0.get() };
    token.as_ref().expect("tokens are made before anything else")
}

/// The number at the base of the stacks in use.
#[inline]
fn number() -> usize {
    let stack: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rsp", out(reg) stack, options(pure, nomem, nostack, preserves_flags)) };
    let base = with_exposed_provenance::<u32>(to_usize(stack & !(STACKS_SIZE - 1)));
    // SAFETY: the base of every CPU's stacks is mapped and has the number, written before the CPU ran on them.
    unsafe { base.read() as usize }
}

/// The page that is not mapped in the stacks that start at `base`.
pub(crate) fn guard(base: u64) -> Range<u64> {
    base + GUARD.start..base + GUARD.end
}

/// The page below the manager's stack on this CPU: touching it means that the stack has overflowed.
pub(crate) fn this_guard() -> Range<u64> {
    let marker = 0_u8;
    guard((&raw const marker).addr() as u64 & !(STACKS_SIZE - 1))
}

/// What another CPU starts with.
pub(crate) struct Start {
    pub(crate) id: CpuId,
    /// The number by which interrupts are sent to it.
    pub(crate) apic_id: u32,
    /// Its stacks, [`STACKS_SIZE`] bytes below 4 GiB.
    pub(crate) stacks: u32,
    /// A page below 1 MiB.
    pub(crate) page: u64,
}

impl Start {
    /// Prepares stacks and page and starts the CPU, which goes to `manager_main`. Until it is there both must be left
    /// alone.
    ///
    /// # Safety
    /// The CPU must not have been started, the stacks be mapped but for their guard, and both ranges be nobody else's.
    pub(crate) unsafe fn start(&self) {
        assert!(self.page < 1 << 20 && u64::from(self.stacks).is_multiple_of(STACKS_SIZE));
        let word = |address: u64| with_exposed_provenance_mut::<u32>(to_usize(address));
        let number = u32::from(self.id.number());
        let code = with_exposed_provenance_mut::<[u8; START_BYTES]>(to_usize(self.page));
        // SAFETY: by this function's own condition; so for the following ones.
        unsafe { code.write_volatile(start_cpu) };
        // SAFETY: as above.
        unsafe { word(self.page + START_NUMBER).write_volatile(number) };
        // SAFETY: as above.
        unsafe { word(self.page + START_STACKS).write_volatile(self.stacks) };
        // SAFETY: as above.
        unsafe { word(u64::from(self.stacks)).write_volatile(number) };
        // SAFETY: it finds code and stacks as it needs them.
        unsafe { apic::start_cpu(self.apic_id, self.page) };
    }
}

/// A value that the boot CPU alone uses: the devices interrupt no other one.
pub(crate) struct BootCpuOnly<T>(T);

// SAFETY: `get` gives a reference to nobody but the boot CPU, where `new` got the value from. It is part of the kernel,
// which is never dropped.
unsafe impl<T> Sync for BootCpuOnly<T> {}

impl<T> BootCpuOnly<T> {
    /// Keeps `value`, of this CPU, which must be the boot CPU.
    pub(crate) fn new(value: T) -> Self {
        assert!(this_cpu().id() == CpuId::ZERO, "made by CPU {}", this_cpu().id());
        Self(value)
    }

    /// The value; `None` on other CPUs.
    pub(crate) fn get(&self) -> Option<&T> {
        (this_cpu().id() == CpuId::ZERO).then_some(&self.0)
    }
}
