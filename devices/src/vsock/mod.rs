//! The socket device (virtio 1.3, section 5.10): stream sockets between programs of the guest and of the host, without a
//! network.
//!
//! The device keeps the streams, their credit and their order; where they end at the host is a [`VsockHost`]'s business,
//! whose calls never wait. The shell around the device tells it of changes there with [`MmioTransport::stream_ready`], and
//! of programs of the host that want to reach the guest with [`MmioTransport::open_stream`].
//!
//! What the guest can make the host keep is bounded: [`STREAMS_LIMIT`] streams, [`TO_HOST_LIMIT`] bytes for each, and
//! [`REFUSALS_LIMIT`] refusals. When the last are used up, packets of the guest wait until it has taken some. Nothing is
//! kept on the way to the guest: bytes are taken from the host when the guest has room for them.

mod connection;
mod credit;
mod host;
mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;

use virtio_wire::device_id;
use virtio_wire::vsock::{
    FIRST_GUEST_CID, HOST_CID, Header, LAST_GUEST_CID, QUEUE_EVENT, QUEUE_RECEIVE, QUEUE_TRANSMIT, feature,
    op, socket_type,
};
use vm_memory::GuestMemory;

use crate::device::{Served, VirtioDevice, read_config_bytes};
use crate::fault::{DeviceError, GuestFault};
use crate::mmio::{Effects, MmioTransport, QueueSet};
use crate::queue::Buffers;
use connection::{Breach, Connection};
pub use credit::TO_HOST_LIMIT;
pub use host::{HostStream, Readiness, StreamKey, VsockHost};
use table::Table;

/// Streams at a time.
pub const STREAMS_LIMIT: usize = 512;
/// Refusals that wait for the guest to take them.
pub const REFUSALS_LIMIT: usize = 128;

/// Payload of a packet to the guest, at most; Linux offers buffers of a page.
const PAYLOAD_LIMIT: usize = 64 << 10;
/// Receive, transmit and event queue.
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// The context id of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestCid(u64);

impl GuestCid {
    /// A context id that the specification leaves to guests: 3 to 4294967294.
    pub fn new(cid: u64) -> Option<GuestCid> {
        (FIRST_GUEST_CID..=LAST_GUEST_CID)
            .contains(&cid)
            .then_some(GuestCid(cid))
    }

    /// The number.
    pub fn get(self) -> u64 {
        self.0
    }
}

/// What has happened since the device exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Streams that the guest asked for and got.
    pub from_guest: u64,
    /// Streams that the host asked for.
    pub from_host: u64,
    /// Streams that the guest asked for and did not get.
    pub refused: u64,
    /// Payload bytes from the guest and to the guest.
    pub bytes_from_guest: u64,
    /// Payload bytes to the guest.
    pub bytes_to_guest: u64,
    /// Packets of the guest that break the rules of streams: more payload than there is credit for, no stream
    /// they belong to, or addresses that are not its own.
    pub breaches: u64,
}

/// Why a program of the host cannot reach the guest.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No driver is using the device.
    #[error("the guest's socket driver is not ready")]
    NotReady,
    /// There are [`STREAMS_LIMIT`] streams.
    #[error("there are {STREAMS_LIMIT} streams already")]
    Full,
    /// The host's end of the stream cannot be had.
    #[error("cannot prepare the stream")]
    Stream(#[source] io::Error),
}

/// A socket device.
#[derive(Debug)]
pub struct Vsock<H: VsockHost> {
    cid: GuestCid,
    host: H,
    table: Table<H::Stream>,
    /// RSTs for packets that belong to no stream.
    refusals: VecDeque<Header>,
    /// The receive queue may have become due by what was served.
    receive_due: bool,
    /// The transmit queue rests until there is room for refusals.
    transmit_held: bool,
    payload: Box<[u8]>,
    counters: Counters,
}

impl<H: VsockHost> Vsock<H> {
    /// A socket device of the guest `cid`, whose streams end at `host`.
    pub fn new(cid: GuestCid, host: H) -> Vsock<H> {
        Vsock {
            cid,
            host,
            table: Table::new(),
            refusals: VecDeque::new(),
            receive_due: false,
            transmit_held: false,
            payload: vec![0; PAYLOAD_LIMIT].into(),
            counters: Counters::default(),
        }
    }

    /// The guest's context id.
    pub fn cid(&self) -> GuestCid {
        self.cid
    }

    /// What has happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Number of streams now.
    pub fn streams(&self) -> usize {
        self.table.len()
    }

    /// Puts the next packet for the guest into a receive buffer.
    fn receive<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        if self.refusals.is_empty() && !self.table.has_ready() {
            return Served::later();
        }
        let queue = chain.queue();
        if chain.readable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue });
        }
        let (len, needed) = (chain.writable_len(), Header::SIZE as u64 + 1);
        if len < needed {
            return Served::refused(GuestFault::ShortChain { queue, len, needed });
        }
        let payload_room =
            usize::try_from(len - Header::SIZE as u64).map_or(PAYLOAD_LIMIT, |room| room.min(PAYLOAD_LIMIT));
        // First of all: what is taken from the host must not be lost on a bad buffer.
        if let Err(fault) = chain.check_writable(Header::SIZE + payload_room) {
            return Served::refused(fault);
        }
        let Some(header) = self.next_packet(payload_room) else {
            return Served::later();
        };
        let payload = usize::try_from(header.len).map_or(0, |len| len.min(payload_room));
        let written = chain
            .write(0, &header.encode())
            .and_then(|()| chain.write(Header::SIZE as u64, &self.payload[..payload]));
        match written {
            Ok(()) => Served::used(u32::try_from(Header::SIZE + payload).unwrap_or(u32::MAX)),
            Err(fault) => Served::refused(fault),
        }
    }

    /// The next packet, with its payload in the scratch buffer: refusals first, then the streams in turn.
    fn next_packet(&mut self, room: usize) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        for _ in 0..self.table.ready_len() {
            let key = self.table.next_turn()?;
            let payload = &mut self.payload[..room];
            let (sent, _) = self.table.visit(key, |connection| {
                let packet = connection.next_packet(payload)?;
                Some((packet, connection.tell_credit()))
            })?;
            let Some((packet, (buf_alloc, fwd_cnt))) = sent else {
                // It looked as if there was something, and there was not.
                continue;
            };
            self.counters.bytes_to_guest += u64::from(packet.len);
            return Some(Header {
                src_cid: HOST_CID,
                dst_cid: self.cid.get(),
                src_port: key.host_port,
                dst_port: key.guest_port,
                len: packet.len,
                socket_type: socket_type::STREAM,
                op: packet.op,
                flags: packet.flags,
                buf_alloc,
                fwd_cnt,
            });
        }
        None
    }

    /// Takes a packet from the guest.
    fn transmit<M: GuestMemory>(&mut self, chain: &Buffers<'_, M>) -> Served {
        if self.refusals.len() >= REFUSALS_LIMIT {
            self.transmit_held = true;
            return Served::later();
        }
        if chain.writable_len() != 0 {
            return Served::refused(GuestFault::WrongDirection { queue: chain.queue() });
        }
        let mut bytes = [0; Header::SIZE];
        match chain.read(0, &mut bytes).map(|()| Header::decode(&bytes)) {
            Err(fault) => Served::refused(fault),
            Ok(header) => match self.take(&header, chain) {
                Ok(()) => Served::used(0),
                Err(fault) => Served::refused(fault),
            },
        }
    }

    fn take<M: GuestMemory>(&mut self, header: &Header, chain: &Buffers<'_, M>) -> Result<(), GuestFault> {
        if header.src_cid != self.cid.get() {
            self.counters.breaches += 1;
            return Ok(());
        }
        let key = StreamKey {
            host_port: header.dst_port,
            guest_port: header.src_port,
        };
        let is_stream = header.dst_cid == HOST_CID && header.socket_type == socket_type::STREAM;
        if !is_stream {
            self.refuse(header);
            return Ok(());
        }
        let draining = self.table.visit(key, |connection| {
            connection.heard(header.buf_alloc, header.fwd_cnt);
            connection.is_draining()
        });
        match (header.op, draining) {
            (op::REQUEST, None) => self.connect(key, header),
            (op::RST, None) => {}
            // The guest has left that stream, and the host still reads what it said.
            (op::RST, Some((true, _))) => {}
            (_, None | Some((true, _))) => {
                self.counters.breaches += u64::from(header.op != op::REQUEST);
                self.refuse(header);
            }
            (op::RW, Some((false, _))) => return self.take_payload(key, header.len, chain),
            (op, Some((false, _))) => self.control(key, op, header.flags),
        }
        Ok(())
    }

    /// The guest asks for a stream.
    fn connect(&mut self, key: StreamKey, header: &Header) {
        let stream = if self.table.is_full() {
            None
        } else {
            self.host.connect(key).ok()
        };
        let Some(stream) = stream else {
            return self.refuse(header);
        };
        let mut connection = Connection::from_guest(stream);
        connection.heard(header.buf_alloc, header.fwd_cnt);
        self.counters.from_guest += 1;
        self.receive_due |= self.table.insert(key, connection);
    }

    /// A packet without payload for a stream that there is.
    fn control(&mut self, key: StreamKey, op: u16, flags: u32) {
        let visited = self.table.visit(key, |connection| {
            let outcome = match op {
                op::RESPONSE => connection.granted(key),
                op::RST => {
                    connection.guest_left();
                    Ok(())
                }
                op::SHUTDOWN => {
                    connection.shut_down(flags);
                    Ok(())
                }
                op::CREDIT_UPDATE => Ok(()),
                op::CREDIT_REQUEST => {
                    connection.asks_for_credit();
                    Ok(())
                }
                _ => Err(Breach::OutOfPhase),
            };
            if outcome.is_err() {
                connection.abort();
            }
            outcome
        });
        self.note(visited);
    }

    /// Payload for a stream that there is.
    fn take_payload<M: GuestMemory>(
        &mut self,
        key: StreamKey,
        len: u32,
        chain: &Buffers<'_, M>,
    ) -> Result<(), GuestFault> {
        let admitted = self.table.visit(key, |connection| {
            connection.admits(len).inspect_err(|_| connection.abort())
        });
        let admitted = self.note(admitted);
        // Credit is never more than the scratch buffer holds.
        let Some(payload) = usize::try_from(len)
            .ok()
            .and_then(|len| self.payload.get_mut(..len))
            .filter(|_| admitted)
        else {
            return Ok(());
        };
        let read = chain.read(Header::SIZE as u64, payload);
        let visited = self.table.visit(key, |connection| {
            match read {
                Ok(()) => connection.payload(payload),
                // A stream with a hole in it is no stream.
                Err(_) => connection.abort(),
            }
            Ok(())
        });
        self.note(visited);
        read?;
        self.counters.bytes_from_guest += u64::from(len);
        Ok(())
    }

    /// Takes note of what became of a stream. False if the guest broke a rule.
    fn note(&mut self, visited: Option<(Result<(), Breach>, bool)>) -> bool {
        let Some((outcome, ready)) = visited else {
            return false;
        };
        self.receive_due |= ready;
        self.counters.breaches += u64::from(outcome.is_err());
        outcome.is_ok()
    }

    /// Answers a packet with an RST of its own kind.
    fn refuse(&mut self, header: &Header) {
        if header.op == op::RST {
            return;
        }
        self.counters.refused += u64::from(header.op == op::REQUEST);
        self.receive_due = true;
        self.refusals.push_back(Header {
            src_cid: header.dst_cid,
            dst_cid: header.src_cid,
            src_port: header.dst_port,
            dst_port: header.src_port,
            socket_type: header.socket_type,
            op: op::RST,
            ..Header::default()
        });
    }
}

impl<H: VsockHost> VirtioDevice for Vsock<H> {
    fn device_id(&self) -> u32 {
        device_id::VSOCK
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        feature::STREAM | feature::NO_IMPLIED_STREAM
    }

    fn required_features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.cid.get().to_le_bytes(), offset, data);
    }

    /// Nothing there can be written.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn serve<M: GuestMemory>(&mut self, queue: u16, chain: &Buffers<'_, M>) -> Result<Served, DeviceError> {
        Ok(match queue {
            QUEUE_RECEIVE => self.receive(chain),
            QUEUE_TRANSMIT => self.transmit(chain),
            // The one event there is, TRANSPORT_RESET, belongs to migration.
            _ => {
                debug_assert_eq!(queue, QUEUE_EVENT);
                Served::later()
            }
        })
    }

    fn queues_due(&mut self) -> QueueSet {
        let mut due = QueueSet::NONE;
        if std::mem::take(&mut self.receive_due) {
            due = due.and(QueueSet::one(QUEUE_RECEIVE));
        }
        if self.transmit_held && self.refusals.len() < REFUSALS_LIMIT {
            self.transmit_held = false;
            due = due.and(QueueSet::one(QUEUE_TRANSMIT));
        }
        due
    }

    /// Streams belong to the conversation with the driver: they end.
    fn reset(&mut self) {
        self.table.clear();
        self.refusals.clear();
        self.receive_due = false;
        self.transmit_held = false;
    }
}

impl<H: VsockHost> MmioTransport<Vsock<H>> {
    /// A program of the host wants a stream to `guest_port`; `make` gets the key of the new stream and makes the host's
    /// end. Guest memory is not touched. Whether the guest grants it is heard by [`HostStream::accepted`]; if it does not,
    /// the stream is dropped.
    ///
    /// # Errors
    /// [`OpenError`]; without a call of `make` or after it failed.
    pub fn open_stream(
        &mut self,
        guest_port: u32,
        make: impl FnOnce(StreamKey) -> io::Result<H::Stream>,
    ) -> Result<Effects, OpenError> {
        if !self.is_live() {
            return Err(OpenError::NotReady);
        }
        let device = self.device_mut();
        if device.table.is_full() {
            return Err(OpenError::Full);
        }
        let key = device.table.free_key(guest_port);
        let stream = make(key).map_err(OpenError::Stream)?;
        device.counters.from_host += 1;
        Ok(receive_if(
            device.table.insert(key, Connection::from_host(stream)),
        ))
    }

    /// Something has changed at the host's end of a stream. A stream that is gone is passed over. Guest memory is not
    /// touched.
    pub fn stream_ready(&mut self, key: StreamKey, readiness: Readiness) -> Effects {
        let visited = self
            .device_mut()
            .table
            .visit(key, |connection| connection.host_changed(readiness));
        receive_if(visited.is_some_and(|((), ready)| ready))
    }
}

fn receive_if(ready: bool) -> Effects {
    Effects {
        notified: if ready {
            QueueSet::one(QUEUE_RECEIVE)
        } else {
            QueueSet::NONE
        },
        ..Effects::NONE
    }
}
