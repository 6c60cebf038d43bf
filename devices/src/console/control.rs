//! The control queues of a console with several ports (virtio 1.3, section 5.3.6.2).
//!
//! What the driver has to be told is a few flags a port, not a list of messages: however often it asks, nothing grows.

use virtio_wire::console::{Control, QUEUE_CONTROL_RECEIVE, event};
use vm_memory::GuestMemory;

use super::{Console, receive_queue_of};
use crate::device::Served;
use crate::fault::GuestFault;
use crate::mmio::QueueSet;
use crate::queue::Buffers;

/// What the driver has not been told of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Untold {
    /// That it is there.
    pub(super) exists: bool,
    /// That it is the console, or what its name is.
    pub(super) kind: bool,
    /// Whether the host has it open.
    pub(super) open: bool,
}

impl Console {
    /// Puts the next message for the driver into a buffer.
    pub(super) fn tell_driver<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        let queue = chain.queue();
        let Some((port, message, name)) = self.next_message() else {
            return Served::later();
        };
        if chain.readable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue });
        }
        let bytes = [&message.encode()[..], name.as_bytes()].concat();
        match chain.write(0, &bytes) {
            Ok(()) => {
                let untold = &mut self.ports[port].untold;
                match message.event {
                    event::PORT_ADD => untold.exists = false,
                    event::PORT_OPEN => untold.open = false,
                    _ => untold.kind = false,
                }
                Served::used(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
            }
            // It is said again in the next buffer.
            Err(fault) => Served::refused(fault),
        }
    }

    /// The next message: all ports are announced before anything is said of one.
    fn next_message(&self) -> Option<(usize, Control, String)> {
        let first = |untold: fn(&Untold) -> bool| {
            let mut ports = self.ports.iter().enumerate();
            ports.find(|(_, port)| untold(&port.untold))
        };
        let message = |number: usize, event, value| Control {
            id: u32::try_from(number).unwrap_or(u32::MAX),
            event,
            value,
        };
        if let Some((number, _)) = first(|untold| untold.exists) {
            return Some((number, message(number, event::PORT_ADD, 1), String::new()));
        }
        if let Some((number, port)) = first(|untold| untold.kind) {
            return Some(match &port.name {
                None => (number, message(number, event::CONSOLE_PORT, 1), String::new()),
                Some(name) => (number, message(number, event::PORT_NAME, 1), name.to_string()),
            });
        }
        let (number, port) = first(|untold| untold.open)?;
        let open = u16::from(port.host_open);
        Some((number, message(number, event::PORT_OPEN, open), String::new()))
    }

    /// Takes a message of the driver. One that says nothing of a port that is there is passed over.
    pub(super) fn hear_driver<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        if chain.writable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue: chain.queue() });
        }
        let mut bytes = [0; Control::SIZE];
        if let Err(fault) = chain.read(0, &mut bytes) {
            return Served::refused(fault);
        }
        self.hear(Control::decode(&bytes));
        Served::used(0)
    }

    fn hear(&mut self, message: Control) {
        let number = usize::try_from(message.id).unwrap_or(usize::MAX);
        match message.event {
            event::DEVICE_READY if message.value == 1 => {
                self.ports.iter_mut().for_each(|port| port.untold.exists = true);
            }
            event::PORT_READY if message.value == 1 => {
                if let Some(port) = self.ports.get_mut(number) {
                    port.ready = true;
                    port.untold.kind = true;
                    port.untold.open = port.host_open;
                }
            }
            event::PORT_OPEN => {
                if let Some(port) = self.ports.get_mut(number) {
                    port.guest_open = message.value == 1;
                    // Bytes may have waited for it.
                    self.due = self.due.and(QueueSet::one(receive_queue_of(number)));
                }
            }
            _ => return,
        }
        self.due = self.due.and(QueueSet::one(QUEUE_CONTROL_RECEIVE));
    }

    /// Whether that is news which a driver waits for.
    pub(super) fn set_host_open(&mut self, number: usize, open: bool) -> bool {
        let Some(port) = self.ports.get_mut(number) else {
            return false;
        };
        let changed = std::mem::replace(&mut port.host_open, open) != open;
        port.untold.open |= changed && port.ready;
        changed && port.ready
    }
}
