//! The network device (virtio 1.3, section 5.1): Ethernet frames between the guest and a [`NetHost`], such as a tap.
//!
//! Frames travel with the header of section 5.1.6 in front of them, which says what is left to be done: a checksum, or the
//! cutting of a large TCP segment. The device takes such frames from the guest and hands them on as they are; to the guest
//! it brings whole frames, so that a receive buffer of one frame is enough and no guest has to keep 64 KiB for each.
//!
//! Nothing is kept: a frame is taken from the host when the guest has a buffer for it, and what the host does not take at
//! once is lost, as on a wire.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;

use virtio_wire::device_id;
use virtio_wire::net::{Config, FLAG_NEEDS_CSUM, Header, QUEUE_RECEIVE, QUEUE_TRANSMIT, feature, gso, link};
use vm_memory::GuestMemory;

use crate::device::{Served, VirtioDevice, read_config_bytes};
use crate::fault::{DeviceError, GuestFault};
use crate::mmio::{Effects, MmioTransport, QueueSet};
use crate::queue::Buffers;

/// Bytes of a frame at most, from either side: a TCP segment of 64 KiB with its headers.
pub const FRAME_LIMIT: usize = (64 << 10) + 64;

/// Receive queue and transmit queue.
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// The address of a network interface: six bytes, neither of a group nor all zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// An address that one interface can have.
    pub fn new(bytes: [u8; 6]) -> Option<MacAddress> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(MacAddress(bytes))
    }

    /// The address that is chosen when nobody does: the same for the same `seed`, and of the range for local use.
    pub fn from_seed(seed: u64) -> MacAddress {
        let [a, b, c, d, e, ..] = seed.to_le_bytes();
        MacAddress([2, a, b, c, d, e])
    }

    /// The bytes, in the order in which they are written and sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What the guest takes from the host that is not a whole frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be incomplete.
    pub checksum: bool,
}

/// Whether frames go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// They do.
    Up,
    /// They do not.
    Down,
}

/// The host's end of the wire. No call waits. Each packet is a [`Header`] and a frame.
pub trait NetHost {
    /// Takes a packet for the guest.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if there is none; anything else if the link is down, for now or for ever.
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Hands over a packet of the guest.
    ///
    /// # Errors
    /// It is lost.
    fn send(&mut self, packet: &[u8]) -> io::Result<()>;

    /// What the guest takes from now on.
    ///
    /// # Errors
    /// The host cannot do so, and the machine cannot go on.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
}

/// What has happened since the device exists. Bytes are those of frames, without their headers for the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames from the guest that the host has taken.
    pub frames_from_guest: u64,
    /// Their bytes.
    pub bytes_from_guest: u64,
    /// Frames that the guest has been given.
    pub frames_to_guest: u64,
    /// Their bytes.
    pub bytes_to_guest: u64,
    /// Frames from the guest that the host has not taken, or that ask for what was not agreed on.
    pub lost_from_guest: u64,
    /// Frames for the guest that did not fit into its buffer.
    pub lost_to_guest: u64,
}

/// A network device.
#[derive(Debug)]
pub struct Net<H> {
    mac: MacAddress,
    link: LinkState,
    host: H,
    /// The host may have a packet.
    readable: bool,
    accepted: u64,
    offloads_failed: Option<io::Error>,
    /// A packet on its way.
    packet: Box<[u8]>,
    counters: Counters,
}

impl<H: NetHost> Net<H> {
    /// A device at the end of the wire to `host`.
    pub fn new(mac: MacAddress, host: H) -> Net<H> {
        Net {
            mac,
            link: LinkState::Up,
            host,
            readable: true,
            accepted: 0,
            offloads_failed: None,
            packet: vec![0; Header::SIZE + FRAME_LIMIT].into(),
            counters: Counters::default(),
        }
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The guest's address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Whether frames go through.
    pub fn link(&self) -> LinkState {
        self.link
    }

    /// Puts the next frame into a receive buffer.
    fn receive<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        if !self.readable || self.link == LinkState::Down {
            return Served::later();
        }
        let queue = chain.queue();
        if chain.readable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue });
        }
        let room = usize::try_from(chain.writable_len()).unwrap_or(usize::MAX);
        if room <= Header::SIZE {
            let (len, needed) = (chain.writable_len(), Header::SIZE as u64 + 1);
            return Served::refused(GuestFault::ShortChain { queue, len, needed });
        }
        // First of all: a frame must not be lost on a bad buffer.
        if let Err(fault) = chain.check_writable(room.min(self.packet.len())) {
            return Served::refused(fault);
        }
        let Some(len) = self.next_packet(room) else {
            return Served::later();
        };
        let packet = &self.packet[..len];
        match chain.write(0, packet) {
            Ok(()) => {
                self.counters.frames_to_guest += 1;
                self.counters.bytes_to_guest += (len - Header::SIZE) as u64;
                Served::used(u32::try_from(len).unwrap_or(u32::MAX))
            }
            Err(fault) => Served::refused(fault),
        }
    }

    /// The next packet of the host that fits into `room`. Of those that do not, at most as many are thrown away at a time
    /// as the queue has entries.
    fn next_packet(&mut self, room: usize) -> Option<usize> {
        for _ in 0..QUEUE_SIZES[0] {
            let len = match self.host.receive(&mut self.packet) {
                Ok(len) => len.min(self.packet.len()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => {
                    self.readable = false;
                    return None;
                }
            };
            if len <= Header::SIZE || len > room {
                self.counters.lost_to_guest += 1;
                continue;
            }
            // One buffer holds it all (section 5.1.6.4).
            let (header, _) = self.packet.split_first_chunk_mut::<{ Header::SIZE }>()?;
            *header = Header {
                num_buffers: 1,
                ..Header::decode(header)
            }
            .encode();
            return Some(len);
        }
        None
    }

    /// Takes a frame from the guest.
    fn transmit<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        let queue = chain.queue();
        if chain.writable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue });
        }
        let (len, needed) = (chain.readable_len(), Header::SIZE as u64 + 1);
        if len < needed {
            return Served::refused(GuestFault::ShortChain { queue, len, needed });
        }
        let Some(packet) = usize::try_from(len)
            .ok()
            .and_then(|len| self.packet.get_mut(..len))
        else {
            self.counters.lost_from_guest += 1;
            return Served::used(0);
        };
        if let Err(fault) = chain.read(0, packet) {
            return Served::refused(fault);
        }
        let frame = packet.len() - Header::SIZE;
        let agreed = packet
            .first_chunk()
            .is_some_and(|header| is_agreed(&Header::decode(header), self.accepted));
        if agreed && self.link == LinkState::Up && self.host.send(packet).is_ok() {
            self.counters.frames_from_guest += 1;
            self.counters.bytes_from_guest += frame as u64;
        } else {
            self.counters.lost_from_guest += 1;
        }
        Served::used(0)
    }
}

/// Whether a frame asks for nothing but what was agreed on (section 5.1.6.2.1).
fn is_agreed(header: &Header, accepted: u64) -> bool {
    let has = |bit| accepted & bit != 0;
    let segment = match header.gso_type & !gso::ECN {
        gso::NONE => header.gso_type == gso::NONE,
        gso::TCPV4 => has(feature::HOST_TSO4),
        gso::TCPV6 => has(feature::HOST_TSO6),
        _ => false,
    };
    segment && (header.flags & FLAG_NEEDS_CSUM == 0 || has(feature::CSUM))
}

impl<H: NetHost> VirtioDevice for Net<H> {
    fn device_id(&self) -> u32 {
        device_id::NET
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        feature::MAC
            | feature::STATUS
            | feature::CSUM
            | feature::GUEST_CSUM
            | feature::HOST_TSO4
            | feature::HOST_TSO6
    }

    fn required_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = Config {
            mac: self.mac.bytes(),
            status: match self.link {
                LinkState::Up => link::UP,
                LinkState::Down => 0,
            },
        };
        read_config_bytes(&config.encode(), offset, data);
    }

    /// Nothing there can be written by a driver of this version.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        if let Some(source) = self.offloads_failed.take() {
            let device = "a network device's tap";
            return Err(DeviceError::Backend { device, source });
        }
        Ok(if queue == QUEUE_RECEIVE {
            self.receive(chain)
        } else {
            debug_assert_eq!(queue, QUEUE_TRANSMIT);
            self.transmit(chain)
        })
    }

    fn activate(&mut self, features: u64) {
        self.accepted = features;
        self.readable = true;
        let checksum = features & feature::GUEST_CSUM != 0;
        self.offloads_failed = self.host.set_offloads(Offloads { checksum }).err();
    }

    fn reset(&mut self) {
        self.accepted = 0;
    }
}

impl<H: NetHost> MmioTransport<Net<H>> {
    /// The host may have packets. Guest memory is not touched.
    pub fn packets_waiting(&mut self) -> Effects {
        self.device_mut().readable = true;
        Effects {
            notified: QueueSet::one(QUEUE_RECEIVE),
            ..Effects::NONE
        }
    }

    /// Plugs the wire in or out; the driver is told.
    pub fn set_link(&mut self, link: LinkState) -> Effects {
        let effects = self.configure(|device| std::mem::replace(&mut device.link, link) != link);
        match link {
            LinkState::Up => effects.then(self.packets_waiting()),
            LinkState::Down => effects,
        }
    }
}
