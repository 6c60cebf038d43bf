//! The socket device. Its host accepts most ports; each stream has bytes to give and takes some, until it says that it
//! would have to wait.

use std::io;
use std::net::Shutdown;
use std::rc::Rc;

use devices::DeviceError;
use devices::mmio::{Effects, MmioTransport};
use devices::vsock::{
    GuestCid, HostStream, OpenError, Readiness, STREAMS_LIMIT, StreamKey, TO_HOST_LIMIT, Vsock, VsockHost,
};
use virtio_wire::vsock::{HOST_CID, Header, QUEUE_RECEIVE, QUEUE_TRANSMIT, op, socket_type};

use super::{Stage, Subject, expect};
use crate::guest::Guest;
use crate::step::{Body, HostStep, RequestStep};
use crate::world::World;

const CID: u64 = 3;

/// Ports of the host from here on take everything and say nothing.
const QUIET_PORT: u32 = 1000;

/// A stream's far end.
#[derive(Debug)]
pub struct FarEnd {
    /// Bytes that it says before it waits, then before it ends.
    to_say: usize,
    /// Bytes that it takes before it waits.
    room: usize,
}

impl FarEnd {
    fn new(port: u32) -> FarEnd {
        let (to_say, room) = if port >= QUIET_PORT {
            (0, usize::MAX)
        } else {
            (
                usize::try_from(port % 7).unwrap_or(0) * 3000,
                usize::try_from(port % 5).unwrap_or(0) * 900,
            )
        };
        FarEnd { to_say, room }
    }
}

impl HostStream for FarEnd {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let len = into.len().min(self.to_say);
        if len == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.to_say -= len;
        into[..len].fill(0x77);
        Ok(len)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.room);
        if len == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.room -= len;
        Ok(len)
    }

    fn accepted(&mut self, key: StreamKey) -> io::Result<()> {
        if key.guest_port.is_multiple_of(11) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn shutdown(&mut self, _direction: Shutdown) {}
}

/// Where streams end.
#[derive(Debug)]
pub struct Ports;

impl VsockHost for Ports {
    type Stream = FarEnd;

    fn connect(&mut self, key: StreamKey) -> io::Result<FarEnd> {
        if key.host_port.is_multiple_of(13) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(FarEnd::new(key.host_port))
    }
}

/// The socket device.
#[derive(Debug)]
pub struct VsockSubject;

fn packet(host_port: u32, guest_port: u32, op: u16, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: guest_port,
        dst_port: host_port,
        len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        socket_type: socket_type::STREAM,
        op,
        flags: 0,
        buf_alloc: 0x1_0000,
        fwd_cnt: 0,
    };
    [&header.encode()[..], payload].concat()
}

impl Subject for VsockSubject {
    type Device = Vsock<Ports>;
    const NAME: &'static str = "vsock";
    const NR_QUEUES: usize = 3;
    const CHAIN_PAYLOAD: u64 = TO_HOST_LIMIT as u64 + 128;

    fn new(_guest: &Rc<Guest>) -> (VsockSubject, Vsock<Ports>) {
        let cid = GuestCid::new(CID).expect("3 is a guest's");
        (VsockSubject, Vsock::new(cid, Ports))
    }

    fn host(
        &mut self,
        step: &HostStep,
        transport: &mut MmioTransport<Vsock<Ports>>,
        _guest: &Guest,
    ) -> Result<Effects, DeviceError> {
        let port = step.amount % 32;
        if step.choice.is_multiple_of(4) {
            return Ok(
                match transport.open_stream(port, |key| Ok(FarEnd::new(key.host_port))) {
                    Ok(effects) => effects,
                    Err(OpenError::NotReady | OpenError::Full | OpenError::Stream(_)) => Effects::NONE,
                },
            );
        }
        let key = StreamKey {
            host_port: port,
            guest_port: u32::from(step.choice >> 5),
        };
        let readiness = Readiness {
            readable: step.choice & 1 != 0,
            writable: step.choice & 2 != 0,
            hung_up: step.choice & 0x1c == 0x1c,
        };
        Ok(transport.stream_ready(key, readiness))
    }

    fn body(&self, step: &RequestStep) -> Body {
        if step.kind & 0xc0 == 0xc0 {
            let writable = usize::try_from(step.number % 0x400).unwrap_or(0);
            return Body {
                queue: QUEUE_RECEIVE,
                readable: Vec::new(),
                writable,
            };
        }
        let guest_port = u32::from(step.kind >> 3 & 7);
        let mut readable = packet(step.number % 32, guest_port, (step.kind & 7).into(), &step.data);
        // Flags, credit, type, addresses: any byte of the header may be another.
        if step.cuts & 0x20 != 0 {
            let at = usize::from(step.cuts >> 1) % Header::SIZE;
            readable[at] = readable[at].wrapping_add(step.kind);
        }
        Body {
            queue: QUEUE_TRANSMIT,
            readable,
            writable: 0,
        }
    }

    fn check(&self, transport: &MmioTransport<Vsock<Ports>>) -> Result<(), String> {
        let streams = transport.device().streams();
        if streams > STREAMS_LIMIT {
            return Err(format!("{streams} streams are kept, more than {STREAMS_LIMIT}"));
        }
        Ok(())
    }

    fn good(world: &mut World<VsockSubject>, stage: Stage) -> Result<(), String> {
        if stage == Stage::Running {
            // Other streams have their turns, and what they say is not this driver's.
            return Ok(());
        }
        let (host_port, guest_port) = (QUIET_PORT + 2, 77);
        world.exchange(
            QUEUE_TRANSMIT,
            &packet(host_port, guest_port, op::REQUEST, &[]),
            0,
        )?;
        let answer = world.exchange(QUEUE_RECEIVE, &[], 0x400)?;
        let header = <[u8; Header::SIZE]>::try_from(&answer[..answer.len().min(Header::SIZE)])
            .map_err(|_| format!("an answer of {} bytes", answer.len()))?;
        let header = Header::decode(&header);
        let is = (header.op, header.src_port, header.dst_port);
        expect(
            "the answer to a request",
            &is,
            &(op::RESPONSE, host_port, guest_port),
        )?;
        let before = world.transport.device().counters().bytes_from_guest;
        world.exchange(
            QUEUE_TRANSMIT,
            &packet(host_port, guest_port, op::RW, b"hello"),
            0,
        )?;
        let after = world.transport.device().counters().bytes_from_guest;
        expect("the bytes that the host has", &after, &(before + 5))?;
        world.exchange(QUEUE_TRANSMIT, &packet(host_port, guest_port, op::RST, &[]), 0)?;
        expect("the number of streams", &world.transport.device().streams(), &0)
    }
}
