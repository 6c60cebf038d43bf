//! The manager's side of the nucleus: one function for each of its calls.
//!
//! A call is `int3` with its number in rax. The nucleus itself is nucleus.s, which is also where the order of the
//! words in [`Context`] comes from, and start.s, which brings CPUs up. A call concerns the CPU that makes it.

#![expect(
    unsafe_code,
    reason = "calls the nucleus with int3 and describes the registers it exchanges"
)]

use core::arch::{asm, global_asm};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};

global_asm!(include_str!("nucleus.s"), include_str!("start.s"));

/// The numbers of the nucleus's calls: positions in its table `calls`.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Call {
    Run,
    Idle,
    SetRoot,
    Invalidate,
    ReadMsr,
    WriteMsr,
    Cpuid,
    WritePort,
    Reset,
}

/// The vector of `int3`: a system call, when a process executes it.
const VECTOR_CALL: u64 = 3;
/// The vector of a page fault.
const VECTOR_PAGE_FAULT: u64 = 14;
/// Vectors from here on are interrupts.
const FIRST_INTERRUPT: u64 = 32;

/// Everything of a process that the CPU holds while it runs. The nucleus loads and stores it.
#[derive(Clone)]
#[repr(C, align(16))]
pub(crate) struct Context {
    pub(crate) r15: u64,
    pub(crate) r14: u64,
    pub(crate) r13: u64,
    pub(crate) r12: u64,
    pub(crate) r11: u64,
    pub(crate) r10: u64,
    pub(crate) r9: u64,
    pub(crate) r8: u64,
    pub(crate) rbp: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) rcx: u64,
    pub(crate) rbx: u64,
    pub(crate) rax: u64,
    vector: u64,
    error: u64,
    pub(crate) rip: u64,
    cs: u64,
    rflags: u64,
    pub(crate) rsp: u64,
    ss: u64,
    cr3: u64,
    cr2: u64,
    reserved: [u64; 8],
    fx: [u8; 512],
}

const _: () = assert!(offset_of!(Context, cr3) == 22 * 8 && offset_of!(Context, cr2) == 23 * 8);
const _: () = assert!(offset_of!(Context, fx) == 256);

impl Context {
    /// A process that starts at `entry` with its stack pointer at `stack`, in the address space whose root table
    /// lies at the physical address `root`. Interrupts are on, all other registers are 0.
    pub(crate) fn new(root: u64, entry: u64, stack: u64) -> Self {
        let mut fx = [0; 512];
        // As after `fninit` and at reset: every x87 and SSE exception masked (Intel SDM volume 1, 8.1.5, 10.2.3).
        fx[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        fx[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        Self {
            r15: 0,
            r14: 0,
            r13: 0,
            r12: 0,
            r11: 0,
            r10: 0,
            r9: 0,
            r8: 0,
            rbp: 0,
            rdi: 0,
            rsi: 0,
            rdx: 0,
            rcx: 0,
            rbx: 0,
            rax: 0,
            vector: 0,
            error: 0,
            rip: entry,
            cs: 0x33,
            rflags: 0x202,
            rsp: stack,
            ss: 0x2b,
            cr3: root,
            cr2: 0,
            reserved: [0; 8],
            fx,
        }
    }
}

impl Context {
    /// The same process in another address space, with 0 for the result of the call that it is in.
    pub(crate) fn for_child(&self, root: u64) -> Self {
        Self {
            rax: 0,
            cr3: root,
            ..self.clone()
        }
    }

    /// From now on this is the root table of its address space.
    pub(crate) fn set_root(&mut self, root: u64) {
        self.cr3 = root;
    }
}

/// Why a process stopped running. "A fault is a value": whoever called [`run`] serves it and runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trap {
    /// The process executed `int3`: a system call, described by its registers.
    SystemCall,
    /// The process touched `address`; `error` is the page-fault error code (Intel SDM volume 3, 4.7).
    PageFault { address: u64, error: u64 },
    /// This interrupt vector came in; the interrupt controller has been told so already.
    Interrupt(u8),
    /// Any other exception.
    Exception { vector: u64, error: u64 },
}

/// How long until the timer interrupts, in counts of the local APIC's timer; `None` leaves it as it is.
pub(crate) type TimerCount = Option<core::num::NonZeroU32>;

/// Runs a process until something happens.
pub(crate) fn run(context: &mut Context, timer: TimerCount) -> Trap {
    let count = timer.map_or(0, |count| u64::from(count.get()));
    let vector: u64;
    // SAFETY: the nucleus writes nothing but `*context`, which is borrowed for as long, and comes back with every
    // register but rax as it was, except those of x87 and SSE, which the C ABI's clobbers cover. The process can
    // reach only what its own page tables map.
    unsafe {
        asm!(
            "int3",
            inlateout("rax") Call::Run as u64 => vector,
            in("rdi") core::ptr::from_mut(context),
            in("rsi") count,
            clobber_abi("sysv64"),
            options(nostack)
        );
    }
    match vector {
        VECTOR_CALL => Trap::SystemCall,
        VECTOR_PAGE_FAULT => Trap::PageFault {
            address: context.cr2,
            error: context.error,
        },
        FIRST_INTERRUPT..=255 => Trap::Interrupt(u8::try_from(vector).unwrap_or(u8::MAX)),
        vector => Trap::Exception {
            vector,
            error: context.error,
        },
    }
}

/// Sleeps until an interrupt comes in and returns its vector.
pub(crate) fn idle(timer: TimerCount) -> u8 {
    let count = timer.map_or(0, |count| u64::from(count.get()));
    let vector = call(Call::Idle, 0, count, 0);
    u8::try_from(vector).unwrap_or(u8::MAX)
}

/// Root of the manager's page tables; 0 while the first ones are in use.
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Makes the page tables rooted at the physical address `root`, below 4 GiB, the manager's, and forgets the
/// translations that this CPU has cached. (Other CPUs load a new root when they come out of their process.)
///
/// # Safety
/// They must map the nucleus supervisor-only at its place, and all of the manager that is in use as it is now.
pub(crate) unsafe fn set_root(root: u64) {
    ROOT.store(root, Ordering::Release);
    call(Call::SetRoot, root, 0, 0);
}

/// Forgets all translations that this CPU has cached.
pub(crate) fn flush() {
    let root = ROOT.load(Ordering::Acquire);
    if root != 0 {
        call(Call::SetRoot, root, 0, 0);
    }
}

/// Forgets what this CPU has cached of the translation of `address` in the manager's address space.
pub(crate) fn invalidate(address: u64) {
    call(Call::Invalidate, address, 0, 0);
}

/// Reads a model-specific register. One that does not exist is a fault of the manager.
pub(crate) fn read_msr(which: u32) -> u64 {
    call(Call::ReadMsr, u64::from(which), 0, 0)
}

/// Writes a model-specific register.
///
/// # Safety
/// `value` must leave the machine in a state in which the manager can go on.
pub(crate) unsafe fn write_msr(which: u32, value: u64) {
    call(Call::WriteMsr, u64::from(which), value, 0);
}

/// Writes `bytes`, one by one, to an I/O port.
///
/// Cheaper than as many single writes where every I/O instruction of ring 3 traps.
///
/// # Safety
/// The device behind `port` must not act on memory by these writes in a way that the caller has not provided for.
pub(crate) unsafe fn write_port_bytes(port: u16, bytes: &[u8]) {
    call(
        Call::WritePort,
        u64::from(port),
        bytes.as_ptr().addr() as u64,
        bytes.len() as u64,
    );
}

/// Resets the machine by a triple fault.
pub(crate) fn reset() -> ! {
    loop {
        call(Call::Reset, 0, 0, 0);
    }
}

/// What the `cpuid` instruction says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpuid {
    pub(crate) eax: u32,
    pub(crate) ebx: u32,
    pub(crate) ecx: u32,
    pub(crate) edx: u32,
}

/// Executes `cpuid` at ring 0, where every hypervisor answers it (at ring 3 some let the real CPU answer).
#[expect(
    clippy::cast_possible_truncation,
    reason = "the instruction returns 32-bit values"
)]
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> Cpuid {
    let (rax, rbx, rcx, rdx): (u64, u64, u64, u64);
    // SAFETY: the call changes these four registers and nothing else.
    unsafe {
        asm!(
            "int3",
            inlateout("rax") Call::Cpuid as u64 => rax,
            inlateout("rdi") u64::from(leaf) => rbx,
            in("rsi") u64::from(subleaf),
            lateout("rcx") rcx,
            lateout("rdx") rdx,
            options(nostack, nomem)
        );
    }
    Cpuid {
        eax: rax as u32,
        ebx: rbx as u32,
        ecx: rcx as u32,
        edx: rdx as u32,
    }
}

/// Any call that takes up to three numbers, returns one and keeps all other registers.
fn call(number: Call, first: u64, second: u64, third: u64) -> u64 {
    let result;
    // SAFETY: the nucleus restores every register but rax, and uses its own stack, so the red zone stays whole.
    // What the calls do to memory or the machine is stated, and vouched for, at each caller of this function.
    unsafe {
        asm!(
            "int3",
            inlateout("rax") number as u64 => result,
            in("rdi") first,
            in("rsi") second,
            in("rdx") third,
            options(nostack)
        );
    }
    result
}
