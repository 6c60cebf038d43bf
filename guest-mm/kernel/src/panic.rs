//! The end of a guest that cannot go on, whichever CPU finds that out: the message, with the CPU's number, on the serial line and through the console's emergency
//! register, then the pvpanic device, then a reset.
//!
//! Nothing here allocates, waits, or trusts what the manager was doing.

#![expect(
    unsafe_code,
    reason = "the nucleus enters here by name; writes the pvpanic port"
)]

use crate::machine::cpu::{this_cpu, this_guard};
use crate::machine::{high_memory, nucleus, ports, power, registers::MmioRegisters, serial::Writer};
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use guest_kernel::cmdline::PanicTest;
use guest_virtio::console::EmergencyConsole;

/// pvpanic: the guest has panicked (QEMU `docs/specs/pvpanic.rst`).
const PVPANIC_PANICKED: u8 = 1;

/// Registers of the console, and how many bytes; 0 while none is known.
static CONSOLE: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));
/// The pvpanic port; 0 while none is known.
static PORT: AtomicU16 = AtomicU16::new(0);
/// Number of the CPU that panics, or [`NOBODY`].
static PANICKING: AtomicU8 = AtomicU8::new(NOBODY);
const NOBODY: u8 = u8::MAX;

/// Panics are reported through this console too.
pub(crate) fn report_to_console(registers: MmioRegisters) {
    CONSOLE.1.store(registers.size(), Ordering::Relaxed);
    CONSOLE.0.store(registers.base(), Ordering::Release);
}

/// Panics are signalled at this port.
pub(crate) fn report_to_port(port: u16) {
    PORT.store(port, Ordering::Release);
}

/// Fails on purpose, as the command line asks for.
pub(crate) fn provoke(test: PanicTest) {
    match test {
        PanicTest::Manager => panic!("asked for by panic_test=manager"),
        PanicTest::Fault => {
            // SAFETY: nothing is mapped at page 0, so this does not read anything: it faults.
            unsafe { core::ptr::without_provenance::<u8>(8).read_volatile() };
        }
        PanicTest::HighMem => {
            if let Some(high) = high_memory::get() {
                high.touch_without_mapping();
            }
        }
        PanicTest::Stack => {
            core::hint::black_box(deeper(&[0; 128]));
        }
    }
}

#[expect(unconditional_recursion, reason = "overflows the stack on purpose")]
fn deeper(above: &[u64; 128]) -> u64 {
    let mut here = *above;
    here[0] += 1;
    deeper(core::hint::black_box(&here)) + here[1]
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    end(format_args!("{info}"))
}

/// Where the nucleus enters when an exception hits the manager, on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn manager_fault_entry(vector: u64, error: u64, rip: u64, address: u64, rsp: u64) -> ! {
    let at = format_args!("at {rip:#x}, stack {rsp:#x}");
    match vector {
        14 if this_guard().contains(&address) => end(format_args!("stack overflow {at}")),
        14 => end(format_args!(
            "access to {address:#x}, error code {error:#x}, {at}"
        )),
        6 => end(format_args!("invalid instruction {at}")),
        13 => end(format_args!(
            "general protection fault, error code {error:#x}, {at}"
        )),
        vector => end(format_args!("exception {vector}, error code {error:#x}, {at}")),
    }
}

fn end(message: fmt::Arguments<'_>) -> ! {
    let cpu = this_cpu().id();
    match PANICKING.compare_exchange(NOBODY, cpu.number(), Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            // Writing to these two cannot fail.
            let _ = writeln!(
                Serial(Writer::lock_or_interrupt()),
                "guest panic: {message} (CPU {cpu})"
            );
            if let Some(mut console) = emergency_console() {
                let _ = writeln!(console, "{message} (CPU {cpu})");
            }
        }
        // Reporting it failed: without a word, then.
        Err(first) if first == cpu.number() => {}
        // Another CPU is about to end the machine, and is not to be hurried.
        Err(_) => loop {
            nucleus::idle(None);
        },
    }
    match PORT.load(Ordering::Acquire) {
        0 => {}
        // SAFETY: tells the VMM, which may end the machine; that is the purpose.
        port => unsafe { ports::write(port, PVPANIC_PANICKED) },
    }
    power::reset()
}

fn emergency_console() -> Option<EmergencyConsole<MmioRegisters>> {
    let base = CONSOLE.0.load(Ordering::Acquire);
    if base == 0 {
        return None;
    }
    let size = CONSOLE.1.load(Ordering::Relaxed);
    // SAFETY: only registers that are mapped for good are ever stored there.
    let registers = unsafe { MmioRegisters::at(base, size) };
    EmergencyConsole::probe(registers).ok()
}

struct Serial(Writer);

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
