//! The virtio devices of the command line: found, started, and given a task each.

use crate::balloon;
use crate::control;
use crate::disks;
use crate::drivers::{self, Driver};
use crate::kernel::{Kernel, spawn};
use crate::log::log;
use crate::machine::dma::KernelDma;
use crate::machine::registers::MmioRegisters;
use crate::panic;
use crate::resize;
use alloc::boxed::Box;
use alloc::vec::Vec;
use guest_kernel::cmdline::Options;
use guest_kernel::control_tree::Device;
use guest_kernel::drive::Job;
use guest_kernel::executor::Executor;
use guest_virtio::StartError;
use guest_virtio::balloon::BalloonDriver;
use guest_virtio::block::BlockDriver;
use guest_virtio::console::ConsoleDriver;
use guest_virtio::dma::Gpa;
use guest_virtio::mem::MemDriver;
use guest_virtio::relocate::Relocate;
use guest_virtio::transport::TransportError;

/// The first pause before a broken device is tried again, and the longest.
const FIRST_PAUSE_NS: u64 = 1_000_000_000;
const LONGEST_PAUSE_NS: u64 = 64_000_000_000;

/// The memory device of this machine.
pub(crate) type Memory = MemDriver<MmioRegisters, KernelDma>;
/// The balloon of this machine.
pub(crate) type Balloon = BalloonDriver<MmioRegisters, KernelDma>;
/// The driver of a disk of this machine. Others ask the disk's [`Drive`](guest_kernel::drive::Drive).
pub(crate) type Disk = BlockDriver<MmioRegisters, KernelDma, Job>;
/// The console of this machine.
pub(crate) type Console = ConsoleDriver<MmioRegisters, KernelDma>;

/// Starts a driver for every device that has one. Drivers, and the tasks that use them, belong to this CPU. Disks that are
/// called `scratch` are written full, and checked; how fast those are that are called `raw_rate` is measured.
///
/// The memory manager knows of one hot-plug region: the first memory device has it, and others are left alone.
pub(crate) fn start(
    kernel: &'static Kernel,
    executor: &Executor,
    devices: Vec<(MmioRegisters, u32)>,
    options: &Options,
) {
    let mut has_region = false;
    for (registers, gsi) in devices {
        if has_region && Memory::is_behind(registers) {
            let base = registers.base();
            log!(
                Warning,
                "memory device at {base:#x}: one is enough for this guest, not used"
            );
            continue;
        }
        let here = Place {
            kernel,
            executor,
            registers,
            gsi,
        };
        let found = here
            .memory()
            .or_else(|| here.balloon())
            .or_else(|| here.disk(options))
            .or_else(|| here.console());
        has_region |= found == Some(Found::Region);
        if found.is_none() {
            log!(
                Error,
                "virtio device at {:#x}: no driver knows it",
                registers.base()
            );
        }
    }
}

/// What was found behind some registers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    /// A hot-plug region, in use.
    Region,
    /// Something else, in use.
    Other,
    /// A device of the right type, which does not start; it was reported.
    Broken,
}

/// Where a device may be.
struct Place<'a> {
    kernel: &'static Kernel,
    executor: &'a Executor,
    registers: MmioRegisters,
    gsi: u32,
}

impl Place<'_> {
    fn memory(&self) -> Option<Found> {
        self.take_up(Memory::start, |driver| {
            connect(self.kernel, self.gsi, || driver.on_interrupt());
            spawn(self.executor, resize::work(self.kernel, driver));
            self.may_move(Device::Memory, driver);
            Found::Region
        })
    }

    fn balloon(&self) -> Option<Found> {
        self.take_up(Balloon::start, |driver| {
            connect(self.kernel, self.gsi, || driver.on_interrupt());
            spawn(self.executor, balloon::work(self.kernel, driver));
            spawn(self.executor, balloon::tell(self.kernel, driver));
            self.may_move(Device::Balloon, driver);
            Found::Other
        })
    }

    fn disk(&self, options: &Options) -> Option<Found> {
        self.take_up(Disk::start, |driver| {
            let (index, drive) = disks::add(self.kernel, driver);
            let known = self.driver(disks::device(index), driver.shared_memory());
            connect(self.kernel, self.gsi, || driver.on_interrupt());
            spawn(
                self.executor,
                disks::serve(self.kernel, driver, known, (index, drive)),
            );
            if options.scratch.contains(&disks::name(index)) {
                spawn(self.executor, disks::check(self.kernel, (index, drive)));
            }
            if options.raw_rate.contains(&disks::name(index)) {
                spawn(self.executor, disks::measure(self.kernel, (index, drive)));
            }
            Found::Other
        })
    }

    fn console(&self) -> Option<Found> {
        self.take_up(Console::start, |driver| {
            panic::report_to_console(self.registers);
            connect(self.kernel, self.gsi, || driver.on_interrupt());
            spawn(self.executor, control::work(self.kernel, driver));
            self.may_move(Device::Console, driver);
            Found::Other
        })
    }

    /// Takes note of the driver, for who wants its memory to be elsewhere.
    fn driver(&self, device: Device, memory: Vec<Gpa>) -> &'static Driver {
        drivers::add(self.kernel, device, self.gsi, memory)
    }

    /// The same, with a task that moves its memory.
    fn may_move(&self, device: Device, driver: &'static impl Relocate) {
        let known = self.driver(device, driver.shared_memory());
        spawn(self.executor, drivers::serve(known, driver));
    }

    /// Starts a driver, and has it put to use; `None` if the device is not one for it.
    fn take_up<D: 'static>(
        &self,
        start: impl FnOnce(MmioRegisters, &KernelDma) -> Result<D, StartError>,
        put_to_use: impl FnOnce(&'static D) -> Found,
    ) -> Option<Found> {
        let memory = KernelDma {
            kernel: self.kernel,
            driver: Some(self.gsi),
        };
        match start(self.registers, &memory) {
            Ok(driver) => Some(put_to_use(Box::leak(Box::new(driver)))),
            Err(StartError::Transport(TransportError::OtherDevice { .. })) => None,
            Err(error) => {
                log!(Error, "virtio device at {:#x}: {error}", self.registers.base());
                Some(Found::Broken)
            }
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
