//! The virtio devices of the command line: found, started, and given a task each.

use crate::balloon;
use crate::control;
use crate::kernel::{Kernel, spawn};
use crate::log::log;
use crate::machine::dma::KernelDma;
use crate::machine::registers::MmioRegisters;
use crate::panic;
use crate::resize;
use alloc::boxed::Box;
use alloc::vec::Vec;
use guest_kernel::executor::Executor;
use guest_virtio::StartError;
use guest_virtio::balloon::BalloonDriver;
use guest_virtio::console::ConsoleDriver;
use guest_virtio::mem::MemDriver;
use guest_virtio::transport::TransportError;

/// The first pause before a broken device is tried again, and the longest.
const FIRST_PAUSE_NS: u64 = 1_000_000_000;
const LONGEST_PAUSE_NS: u64 = 64_000_000_000;

/// The memory device of this machine.
pub(crate) type Memory = MemDriver<MmioRegisters, KernelDma>;
/// The balloon of this machine.
pub(crate) type Balloon = BalloonDriver<MmioRegisters, KernelDma>;
/// The console of this machine.
pub(crate) type Console = ConsoleDriver<MmioRegisters, KernelDma>;

/// Starts a driver for every device that has one. Drivers, and the tasks that use them, belong to this CPU.
///
/// The memory manager knows of one hot-plug region: the first memory device has it, and others are left alone.
pub(crate) fn start(kernel: &'static Kernel, executor: &Executor, devices: Vec<(MmioRegisters, u32)>) {
    let mut has_region = false;
    for (registers, gsi) in devices {
        let memory = KernelDma(kernel);
        if has_region && Memory::is_behind(registers) {
            let base = registers.base();
            log!(
                Warning,
                "memory device at {base:#x}: one is enough for this guest, not used"
            );
            continue;
        }
        match Memory::start(registers, &memory) {
            Ok(driver) => {
                has_region = true;
                let driver: &'static Memory = Box::leak(Box::new(driver));
                connect(kernel, gsi, || driver.on_interrupt());
                spawn(executor, resize::work(kernel, driver));
                continue;
            }
            Err(StartError::Transport(TransportError::OtherDevice { .. })) => {}
            Err(error) => {
                log!(Error, "virtio device at {:#x}: {error}", registers.base());
                continue;
            }
        }
        match Balloon::start(registers, &memory) {
            Ok(driver) => {
                let driver: &'static Balloon = Box::leak(Box::new(driver));
                connect(kernel, gsi, || driver.on_interrupt());
                spawn(executor, balloon::work(kernel, driver));
                spawn(executor, balloon::tell(kernel, driver));
                continue;
            }
            Err(StartError::Transport(TransportError::OtherDevice { .. })) => {}
            Err(error) => {
                log!(Error, "virtio device at {:#x}: {error}", registers.base());
                continue;
            }
        }
        match Console::start(registers, &memory) {
            Ok(driver) => {
                panic::report_to_console(registers);
                let driver: &'static Console = Box::leak(Box::new(driver));
                connect(kernel, gsi, || driver.on_interrupt());
                spawn(executor, control::work(kernel, driver));
            }
            Err(error) => log!(Error, "virtio device at {:#x}: {error}", registers.base()),
        }
    }
}

/// Tries to start a broken device again until that works, after a pause that doubles each time.
pub(crate) async fn restart(kernel: &'static Kernel, again: impl Fn() -> Result<(), StartError>) {
    let mut pause = FIRST_PAUSE_NS;
    loop {
        kernel.timers().sleep(pause).await;
        match again() {
            Ok(()) => return,
            Err(error) => log!(Error, "virtio device: {error}"),
        }
        pause = (pause * 2).min(LONGEST_PAUSE_NS);
    }
}

fn connect(kernel: &'static Kernel, gsi: u32, handler: impl Fn() + 'static) {
    if !kernel.on_interrupt(gsi, handler) {
        log!(Error, "no I/O APIC has an input for interrupt {gsi}");
    }
}
