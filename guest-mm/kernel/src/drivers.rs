//! The drivers of this machine, as all CPUs have them: whose they are, where the memory is that they share with their devices, and the wish that it be
//! elsewhere.
//!
//! A driver is found by its number, which is in the descriptors of its memory, or by its device's name. Its own task, on the boot CPU, moves it.

use crate::kernel::Kernel;
use alloc::boxed::Box;
use alloc::vec::Vec;
use guest_kernel::control_tree::Device;
use guest_kernel::relocation::{NotMoved, Relocation};
use guest_sync::SpinLock;
use guest_virtio::dma::Gpa;
use guest_virtio::relocate::Relocate;

/// A driver.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) device: Device,
    number: u32,
    pub(crate) relocation: Relocation,
    /// Where its areas begin.
    memory: SpinLock<Vec<Gpa>>,
}

/// Takes note of another driver, with the memory that it has.
pub(crate) fn add(kernel: &Kernel, device: Device, number: u32, memory: Vec<Gpa>) -> &'static Driver {
    let driver: &Driver = Box::leak(Box::new(Driver {
        device,
        number,
        relocation: Relocation::default(),
        memory: SpinLock::new(memory),
    }));
    kernel.drivers.lock().push(driver);
    driver
}

/// All of them, in the order of the machine.
pub(crate) fn all(kernel: &Kernel) -> Vec<&'static Driver> {
    kernel.drivers.lock().clone()
}

/// The driver of that number.
pub(crate) fn find(kernel: &Kernel, number: u32) -> Option<&'static Driver> {
    all(kernel).into_iter().find(|driver| driver.number == number)
}

/// The driver of that device.
pub(crate) fn of(kernel: &Kernel, device: Device) -> Option<&'static Driver> {
    all(kernel).into_iter().find(|driver| driver.device == device)
}

/// Has the driver of that number share other memory with its device.
///
/// # Errors
/// It has what it had, or there is none.
pub(crate) async fn relocate(kernel: &Kernel, number: u32) -> Result<(), NotMoved> {
    find(kernel, number).ok_or(NotMoved)?.relocation.request().await
}

/// The task of a driver that moves whenever that is wanted, whatever is under way.
pub(crate) async fn serve(driver: &Driver, device: &impl Relocate) {
    loop {
        let asked = driver.relocation.asked();
        if driver.relocation.is_wanted() {
            let moved = device.relocate().await;
            driver.has_memory(device.shared_memory());
            // A device that does not start again is tried again by whoever uses it.
            driver.relocation.end(moved.map_err(|_| NotMoved));
        }
        driver.relocation.asked_after(asked).await;
    }
}

impl Driver {
    /// Where the memory is that it shares with its device.
    pub(crate) fn memory(&self) -> Vec<Gpa> {
        self.memory.lock().clone()
    }

    /// That is elsewhere now.
    pub(crate) fn has_memory(&self, memory: Vec<Gpa>) {
        *self.memory.lock() = memory;
    }
}
