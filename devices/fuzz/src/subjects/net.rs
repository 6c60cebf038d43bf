//! The network device. Its host has packets when it is told so, loses some, and keeps those of the guest to look whether
//! each asks for nothing but what was agreed on.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use devices::DeviceError;
use devices::mmio::{Effects, MmioTransport};
use devices::net::{FRAME_LIMIT, LinkState, MacAddress, Net, NetHost, Offloads};
use virtio_wire::net::{FLAG_NEEDS_CSUM, Header, QUEUE_RECEIVE, QUEUE_TRANSMIT, feature, gso};

use super::{Stage, Subject, expect};
use crate::guest::Guest;
use crate::step::{Body, HostStep, RequestStep};
use crate::world::World;

/// Packets of the guest that are kept, at most.
const KEPT: usize = 300;

/// What goes over the wire.
#[derive(Debug, Default)]
struct Packets {
    to_guest: VecDeque<Vec<u8>>,
    from_guest: Vec<Vec<u8>>,
    /// Loses the next so many packets of the guest.
    busy: u8,
}

/// The far end of the wire.
#[derive(Clone, Debug, Default)]
pub struct Wire(Rc<RefCell<Packets>>);

impl NetHost for Wire {
    fn receive(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let packet = self.0.borrow_mut().to_guest.pop_front();
        let packet = packet.ok_or(io::ErrorKind::WouldBlock)?;
        let len = packet.len().min(into.len());
        into[..len].copy_from_slice(&packet[..len]);
        Ok(len)
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let mut packets = self.0.borrow_mut();
        if packets.busy > 0 {
            packets.busy -= 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if packets.from_guest.len() < KEPT {
            packets.from_guest.push(packet.to_vec());
        }
        Ok(())
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }
}

/// The network device.
#[derive(Debug)]
pub struct NetSubject {
    wire: Wire,
}

fn packet(header: &Header, frame: &[u8]) -> Vec<u8> {
    [&header.encode()[..], frame].concat()
}

impl Subject for NetSubject {
    type Device = Net<Wire>;
    const NAME: &'static str = "net";
    const NR_QUEUES: usize = 2;
    const CHAIN_PAYLOAD: u64 = FRAME_LIMIT as u64 + 64;

    fn new(_guest: &Rc<Guest>) -> (NetSubject, Net<Wire>) {
        let wire = Wire::default();
        let device = Net::new(MacAddress::from_seed(7), wire.clone());
        (NetSubject { wire }, device)
    }

    fn host(
        &mut self,
        step: &HostStep,
        transport: &mut MmioTransport<Net<Wire>>,
        _guest: &Guest,
    ) -> Result<Effects, DeviceError> {
        Ok(match step.choice % 6 {
            0 => {
                self.wire.0.borrow_mut().busy = step.choice / 6 % 4;
                Effects::NONE
            }
            1 => transport.set_link(LinkState::Down),
            2 => transport.set_link(LinkState::Up),
            kind => {
                let len = if kind == 3 {
                    usize::from(step.choice) * 280
                } else {
                    0
                };
                let frame = [&step.data[..], &vec![step.choice; len]].concat();
                let mut packets = self.wire.0.borrow_mut();
                if packets.to_guest.len() < KEPT {
                    packets.to_guest.push_back(packet(&Header::default(), &frame));
                }
                drop(packets);
                transport.packets_waiting()
            }
        })
    }

    fn body(&self, step: &RequestStep) -> Body {
        if step.kind.is_multiple_of(2) {
            return Body {
                queue: QUEUE_RECEIVE,
                readable: Vec::new(),
                writable: usize::try_from(step.number % 0x400).unwrap_or(0),
            };
        }
        let mut readable = packet(&Header::default(), &step.data);
        // Any byte of the header may be another.
        if step.kind & 0x80 != 0 {
            let at = usize::from(step.kind >> 1) % Header::SIZE;
            readable[at] = step.cuts;
        }
        Body {
            queue: QUEUE_TRANSMIT,
            readable,
            writable: 0,
        }
    }

    fn check(&self, transport: &MmioTransport<Net<Wire>>) -> Result<(), String> {
        let accepted = transport.negotiated_features();
        for sent in self.wire.0.borrow_mut().from_guest.drain(..) {
            let header = sent
                .first_chunk()
                .filter(|_| sent.len() > Header::SIZE && sent.len() <= Header::SIZE + FRAME_LIMIT)
                .ok_or_else(|| format!("a packet of {} bytes is sent", sent.len()))?;
            let header = Header::decode(header);
            let needed = match header.gso_type & !gso::ECN {
                gso::NONE => 0,
                gso::TCPV4 => feature::HOST_TSO4,
                gso::TCPV6 => feature::HOST_TSO6,
                _ => u64::MAX,
            };
            let checksum = if header.flags & FLAG_NEEDS_CSUM == 0 {
                0
            } else {
                feature::CSUM
            };
            // A step that ends with a reset has nothing agreed on any more.
            if transport.is_live() && (needed | checksum) & !accepted != 0 {
                return Err(format!("{header:?} is sent with features {accepted:#x}"));
            }
        }
        Ok(())
    }

    fn good(world: &mut World<NetSubject>, stage: Stage) -> Result<(), String> {
        if stage == Stage::Running {
            // Buffers that wait take what comes first.
            return Ok(());
        }
        let wire = world.subject.wire.clone();
        *wire.0.borrow_mut() = Packets::default();
        world.with_host(|_, transport, _| Ok(transport.set_link(LinkState::Up)));
        world.process_notified();
        let said = packet(&Header::default(), b"from the guest");
        world.exchange(QUEUE_TRANSMIT, &said, 0)?;
        expect("what the wire has", &wire.0.borrow().from_guest[..], &[said][..])?;
        let told = packet(&Header::default(), b"to the guest");
        wire.0.borrow_mut().to_guest.push_back(told.clone());
        world.with_host(|_, transport, _| Ok(transport.packets_waiting()));
        let heard = world.exchange(QUEUE_RECEIVE, &[], 0x400)?;
        expect(
            "the frame",
            &heard[Header::SIZE.min(heard.len())..],
            &told[Header::SIZE..],
        )
    }
}
