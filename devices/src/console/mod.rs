//! The console device (virtio 1.3, section 5.3): ports with a byte stream in each direction. Port 0 is the guest's console;
//! others have names, which only a driver finds that knows of several ports (VIRTIO_CONSOLE_F_MULTIPORT).
//!
//! The host pushes bytes with [`MmioTransport::push_to_guest`] and takes them with [`MmioTransport::take_from_guest`]. Both directions are
//! bounded, and neither drops anything: a guest that sends more than the host takes finds its buffers unused until the
//! host has taken some, and the host is told how much of its push was accepted.
//!
//! Apart from the streams there is the emergency output (VIRTIO_CONSOLE_F_EMERG_WRITE): single bytes written to the
//! configuration space, which works from the first instruction to the last panic. The newest bytes of it are kept.

mod byte_queue;
mod control;
mod port;
#[cfg(test)]
mod tests;

use virtio_wire::console::{
    Config, QUEUE_CONTROL_RECEIVE, QUEUE_CONTROL_TRANSMIT, QUEUE_FIRST_PORT, QUEUE_RECEIVE, QUEUE_TRANSMIT,
    feature, offset,
};
use virtio_wire::device_id;
use vm_memory::GuestMemory;

use crate::device::{Served, VirtioDevice, read_config_bytes};
use crate::fault::DeviceError;
use crate::mmio::{Effects, MmioTransport, QueueSet};
use crate::queue::Buffers;
use byte_queue::ByteQueue;
use port::Port;
pub use port::{PortName, PortState};

/// Bytes on their way to the guest, at most.
pub const TO_GUEST_LIMIT: usize = 64 << 10;
/// Bytes from the guest that the host has not taken, at most.
pub const FROM_GUEST_LIMIT: usize = 1 << 20;
/// Bytes of emergency output that are kept, the newest ones.
pub const EMERGENCY_LIMIT: usize = 16 << 10;

/// Named ports of a console, at most.
pub const NAMED_PORTS_LIMIT: usize = 8;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 128;

/// Size of a text console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleSize {
    /// Width in characters.
    pub cols: u16,
    /// Height in characters.
    pub rows: u16,
}

/// A console device.
#[derive(Debug)]
pub struct Console {
    size: Option<ConsoleSize>,
    /// The guest's console, and the named ports behind it.
    ports: Vec<Port>,
    emergency: ByteQueue,
    queue_sizes: Vec<u16>,
    /// The driver has accepted several ports.
    multiport: bool,
    /// What became due by what was served.
    due: QueueSet,
}

impl Console {
    /// A console without named ports; with a size, if it is a terminal that the guest should know the size of.
    pub fn new(size: Option<ConsoleSize>) -> Console {
        Console::with_ports(size, Vec::new())
    }

    /// A console with ports of these names behind it, from 1 on; those beyond [`NAMED_PORTS_LIMIT`] are left out.
    pub fn with_ports(size: Option<ConsoleSize>, names: Vec<PortName>) -> Console {
        let named = names.into_iter().take(NAMED_PORTS_LIMIT).map(Some);
        let ports: Vec<Port> = std::iter::once(None).chain(named).map(Port::new).collect();
        // Two queues a port, and two for control where there is more than one port.
        let queues = if ports.len() == 1 { 2 } else { 2 * ports.len() + 2 };
        Console {
            size,
            ports,
            emergency: ByteQueue::new(EMERGENCY_LIMIT),
            queue_sizes: vec![QUEUE_SIZE; queues],
            multiport: false,
            due: QueueSet::NONE,
        }
    }

    /// What the guest wrote to the emergency output, at most the newest [`EMERGENCY_LIMIT`] bytes.
    pub fn emergency_output(&self) -> Vec<u8> {
        self.emergency.to_vec()
    }

    /// How a port stands; nothing if there is none of that number.
    pub fn port(&self, port: usize) -> Option<PortState> {
        self.ports.get(port).map(|port| PortState {
            guest_open: port.guest_open,
            from_guest_len: port.from_guest.len(),
            to_guest_len: port.to_guest.len(),
        })
    }

    fn has_named_ports(&self) -> bool {
        self.ports.len() > 1
    }

    /// Number of bytes from the guest's console that wait to be taken.
    pub fn from_guest_len(&self) -> usize {
        self.ports[0].from_guest.len()
    }

    /// Number of bytes that wait for the guest's console to receive them.
    pub fn to_guest_len(&self) -> usize {
        self.ports[0].to_guest.len()
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        device_id::CONSOLE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let size = if self.size.is_some() { feature::SIZE } else { 0 };
        let ports = if self.has_named_ports() {
            feature::MULTIPORT
        } else {
            0
        };
        feature::EMERG_WRITE | size | ports
    }

    fn required_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let ConsoleSize { cols, rows } = self.size.unwrap_or(ConsoleSize { cols: 0, rows: 0 });
        let config = Config {
            cols,
            rows,
            max_nr_ports: if self.has_named_ports() {
                u32::try_from(self.ports.len()).unwrap_or(u32::MAX)
            } else {
                0
            },
            emerg_wr: 0,
        };
        read_config_bytes(&config.encode(), offset, data);
    }

    /// Takes the lower byte of a write to `emerg_wr`, negotiated or not (section 5.3.5.1).
    fn write_config(&mut self, at: u64, data: &[u8]) {
        if let (true, Some(&byte)) = (at == offset::EMERG_WR as u64, data.first()) {
            self.emergency.push_over(byte);
        }
    }

    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        Ok(match queue {
            QUEUE_CONTROL_RECEIVE if self.multiport => self.tell_driver(chain),
            QUEUE_CONTROL_TRANSMIT if self.multiport => self.hear_driver(chain),
            _ => match self.ports.get_mut(port_of(queue)) {
                Some(port) if queue <= QUEUE_TRANSMIT || self.multiport => {
                    if queue.is_multiple_of(2) {
                        port.receive(chain)
                    } else {
                        port.transmit(chain)
                    }
                }
                // A queue that this driver has not been told of.
                _ => Served::later(),
            },
        })
    }

    fn activate(&mut self, features: u64) {
        self.multiport = features & feature::MULTIPORT != 0;
    }

    fn queues_due(&mut self) -> QueueSet {
        std::mem::take(&mut self.due)
    }

    /// Bytes in the queues belong to the streams, not to the driver: they stay.
    fn reset(&mut self) {
        self.ports.iter_mut().for_each(Port::reset);
        self.multiport = false;
        self.due = QueueSet::NONE;
    }

    /// What was said to and by the guest before means nothing to the next one. Who at the host has a port open keeps it.
    fn reset_with_machine(&mut self) {
        self.ports.iter_mut().for_each(Port::forget);
        self.emergency = ByteQueue::new(EMERGENCY_LIMIT);
    }
}

/// The port that a queue belongs to; the control queues belong to none.
fn port_of(queue: u16) -> usize {
    match queue {
        QUEUE_RECEIVE | QUEUE_TRANSMIT => 0,
        QUEUE_CONTROL_RECEIVE | QUEUE_CONTROL_TRANSMIT => usize::MAX,
        _ => usize::from((queue - QUEUE_FIRST_PORT) / 2) + 1,
    }
}

/// The receive queue of a port; its transmit queue is the next.
fn receive_queue_of(port: usize) -> u16 {
    let port = u16::try_from(port).unwrap_or(u16::MAX);
    match port.checked_sub(1) {
        None => QUEUE_RECEIVE,
        Some(named) => named.saturating_mul(2).saturating_add(QUEUE_FIRST_PORT),
    }
}

impl MmioTransport<Console> {
    /// Takes in bytes for the guest's console, as many as there is room for, and returns how many. Guest memory is not
    /// touched: the effects ask for the receive queue to be processed, by whichever thread does that.
    pub fn push_to_guest(&mut self, bytes: &[u8]) -> (usize, Effects) {
        self.push_to_port(0, bytes)
    }

    /// Hands out up to `max` bytes that the guest's console has sent. Guest memory is not touched: the effects ask for the
    /// transmit queue to be processed, as the guest may have been held back for want of room.
    pub fn take_from_guest(&mut self, max: usize) -> (Vec<u8>, Effects) {
        self.take_from_port(0, max)
    }

    /// [`Self::push_to_guest`] for any port. A port that is not there takes nothing.
    pub fn push_to_port(&mut self, port: usize, bytes: &[u8]) -> (usize, Effects) {
        let Some(of) = self.device_mut().ports.get_mut(port) else {
            return (0, Effects::NONE);
        };
        let accepted = of.to_guest.push(bytes);
        (accepted, process_later(receive_queue_of(port), accepted))
    }

    /// [`Self::take_from_guest`] for any port. A port that is not there has nothing.
    pub fn take_from_port(&mut self, port: usize, max: usize) -> (Vec<u8>, Effects) {
        let Some(of) = self.device_mut().ports.get_mut(port) else {
            return (Vec::new(), Effects::NONE);
        };
        let bytes = of.from_guest.take(max);
        let effects = process_later(receive_queue_of(port) + 1, bytes.len());
        (bytes, effects)
    }

    /// Somebody at the host has opened or closed a named port; the driver is told. What was on its way to a program of the
    /// guest stays.
    pub fn set_host_open(&mut self, port: usize, open: bool) -> Effects {
        let changed = self.device_mut().set_host_open(port, open);
        process_later(QUEUE_CONTROL_RECEIVE, usize::from(changed))
    }
}

/// A queue is due once bytes were moved on the host's side of it.
fn process_later(queue: u16, moved: usize) -> Effects {
    Effects {
        notified: if moved == 0 {
            QueueSet::NONE
        } else {
            QueueSet::one(queue)
        },
        ..Effects::NONE
    }
}
