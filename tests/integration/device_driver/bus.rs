//! What lies between a driver and its device: register accesses go to the transport, notifications are served by
//! the device at once or when the test lets it, interrupts wait until the test delivers them.

use std::cell::{Cell, RefCell};

use devices::VirtioDevice;
use devices::mmio::{Effects, MmioTransport, QueueSet};
use guest_virtio::transport::Registers;

use super::memory::GuestRam;

/// How many times a device may ask for more processing after one notification.
const MANY_ROUNDS: usize = 10_000;

/// Whether the device works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// Notifications are served before the register write returns.
    AtOnce,
    /// Notifications are kept (and joined, as an eventfd does) until the device serves at once again.
    Held,
}

/// A device in its window.
#[derive(Debug)]
pub(super) struct Bus<'m, D> {
    pub(super) ram: &'m GuestRam,
    transport: RefCell<MmioTransport<D>>,
    service: Cell<Service>,
    /// Queues that were notified and not served.
    due: Cell<QueueSet>,
    interrupt: Cell<bool>,
    accesses: Cell<usize>,
}

impl<'m, D: VirtioDevice> Bus<'m, D> {
    pub(super) fn new(ram: &'m GuestRam, device: D) -> Self {
        Self {
            ram,
            transport: RefCell::new(MmioTransport::new(device)),
            service: Cell::new(Service::AtOnce),
            due: Cell::new(QueueSet::NONE),
            interrupt: Cell::new(false),
            accesses: Cell::new(0),
        }
    }

    /// Looks at the device or its transport.
    pub(super) fn look<T>(&self, with: impl FnOnce(&MmioTransport<D>) -> T) -> T {
        with(&self.transport.borrow())
    }

    /// Does something from the host's side, and what follows from it.
    pub(super) fn host<T>(&self, act: impl FnOnce(&mut MmioTransport<D>) -> (T, Effects)) -> T {
        let (value, effects) = act(&mut self.transport.borrow_mut());
        self.carry_out(effects);
        value
    }

    /// Sets whether the device serves notifications; those that were held are served now if it does.
    pub(super) fn set_service(&self, service: Service) {
        self.service.set(service);
        self.serve();
    }

    /// Whether the device raised its interrupt since the last call.
    pub(super) fn take_interrupt(&self) -> bool {
        self.interrupt.take()
    }

    /// Number of register accesses since the last call.
    pub(super) fn take_accesses(&self) -> usize {
        self.accesses.take()
    }

    fn carry_out(&self, effects: Effects) {
        self.note(effects);
        self.serve();
    }

    fn note(&self, effects: Effects) {
        if effects.interrupt {
            self.interrupt.set(true);
        }
        self.due.set(self.due.get().and(effects.notified));
    }

    fn serve(&self) {
        for _ in 0..MANY_ROUNDS {
            if self.service.get() == Service::Held || self.due.get().is_empty() {
                return;
            }
            for queue in self.due.take().iter() {
                let served = self.transport.borrow_mut().process_queue(self.ram, queue);
                self.note(served.expect("the host has no faults here"));
            }
        }
        panic!("the device does not come to rest");
    }

    fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        self.accesses.set(self.accesses.get() + 1);
        let mut bytes = [0xee; N];
        self.transport.borrow().read(offset, &mut bytes);
        bytes
    }
}

impl<D: VirtioDevice> Registers for Bus<'_, D> {
    fn read32(&self, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }
    fn write32(&self, offset: u64, value: u32) {
        self.accesses.set(self.accesses.get() + 1);
        let effects = self
            .transport
            .borrow_mut()
            .write(self.ram, offset, &value.to_le_bytes());
        self.carry_out(effects);
    }
    fn read16(&self, offset: u64) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }
    fn read8(&self, offset: u64) -> u8 {
        u8::from_le_bytes(self.read(offset))
    }
}
