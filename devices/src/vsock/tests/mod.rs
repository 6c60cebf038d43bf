//! The socket device between a guest that the test plays packet by packet and a host of streams in memory.

mod hostile;
mod model;
mod streams;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::rc::Rc;

use super::*;
use crate::testing::{Driver, PatchyMemory, readable, writable};

pub(super) const CID: u64 = 42;
/// Somebody listens at these ports of the host.
pub(super) const LISTENING: std::ops::Range<u32> = 1000..2000;

const RECEIVE_BUFFERS: u64 = PatchyMemory::BASE + 0x10000;
/// As Linux offers: a page.
pub(super) const RECEIVE_SIZE: u32 = 4096;
const TRANSMIT_BUFFERS: u64 = PatchyMemory::BASE + 0x40000;
const TRANSMIT_SIZE: u64 = 0x1_4000;

/// The far end of a stream, in the test's hands.
#[derive(Debug, Default)]
pub(super) struct Far {
    /// What the far end has written and the device has not taken.
    pub(super) outgoing: VecDeque<u8>,
    pub(super) ended: bool,
    /// What the device has handed over.
    pub(super) incoming: Vec<u8>,
    /// How much more it can hand over.
    pub(super) room: usize,
    pub(super) broken: bool,
    pub(super) accepted: bool,
    pub(super) shutdowns: Vec<Shutdown>,
    pub(super) closed: bool,
}

#[derive(Debug)]
pub(super) struct Near(Rc<RefCell<Far>>);

impl Near {
    pub(super) fn new() -> (Near, Rc<RefCell<Far>>) {
        let far = Rc::new(RefCell::new(Far {
            room: usize::MAX,
            ..Far::default()
        }));
        (Near(Rc::clone(&far)), far)
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.0.borrow_mut().closed = true;
    }
}

impl HostStream for Near {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut far = self.0.borrow_mut();
        if far.outgoing.is_empty() && !far.ended {
            return Err(ErrorKind::WouldBlock.into());
        }
        let len = into.len().min(far.outgoing.len());
        for (to, from) in into.iter_mut().zip(far.outgoing.drain(..len)) {
            *to = from;
        }
        Ok(len)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut far = self.0.borrow_mut();
        if far.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let len = bytes.len().min(far.room);
        if len == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        far.room -= len;
        far.incoming.extend(&bytes[..len]);
        Ok(len)
    }

    fn accepted(&mut self, _key: StreamKey) -> io::Result<()> {
        let mut far = self.0.borrow_mut();
        far.accepted = true;
        if far.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        Ok(())
    }

    fn shutdown(&mut self, direction: Shutdown) {
        self.0.borrow_mut().shutdowns.push(direction);
    }
}

/// The far ends of the streams that the guest has made.
#[derive(Debug, Default, Clone)]
pub(super) struct FakeHost(Rc<RefCell<BTreeMap<StreamKey, Rc<RefCell<Far>>>>>);

impl VsockHost for FakeHost {
    type Stream = Near;

    fn connect(&mut self, key: StreamKey) -> io::Result<Near> {
        if !LISTENING.contains(&key.host_port) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        let (near, far) = Near::new();
        self.0.borrow_mut().insert(key, far);
        Ok(near)
    }
}

/// A packet as the guest sees it.
pub(super) type Received = (Header, Vec<u8>);

pub(super) struct Guest {
    pub(super) driver: Driver<Vsock<FakeHost>>,
    host: FakeHost,
    /// Receive buffers that are offered: descriptor to address.
    offered: BTreeMap<u16, u64>,
    next_buffer: u64,
    next_transmit: u64,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Guest {
    /// With a driver that is ready and has offered no receive buffer.
    pub(super) fn without_buffers() -> Guest {
        let host = FakeHost::default();
        let cid = GuestCid::new(CID).unwrap();
        Guest {
            driver: Driver::ready(Vsock::new(cid, host.clone())),
            host,
            offered: BTreeMap::new(),
            next_buffer: 0,
            next_transmit: 0,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        }
    }

    pub(super) fn new() -> Guest {
        let mut guest = Guest::without_buffers();
        guest.offer(8);
        guest
    }

    /// Offers receive buffers.
    pub(super) fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let gpa = RECEIVE_BUFFERS + self.next_buffer % 16 * u64::from(RECEIVE_SIZE);
            self.next_buffer += 1;
            let head = self.driver.offer(QUEUE_RECEIVE, &[writable(gpa, RECEIVE_SIZE)]);
            self.offered.insert(head, gpa);
        }
        let _ = self.driver.kick(QUEUE_RECEIVE);
    }

    /// The packets that have come; their buffers are offered again.
    pub(super) fn received(&mut self) -> Vec<Received> {
        let mut packets = Vec::new();
        loop {
            let used = self.driver.used(QUEUE_RECEIVE);
            if used.is_empty() {
                return packets;
            }
            for element in &used {
                let head = u16::try_from(element.id).unwrap();
                let gpa = self.offered.remove(&head).expect("a buffer that was offered");
                let header = Header::decode(&self.driver.mem.peek(gpa));
                assert_eq!(element.len, u32::try_from(Header::SIZE).unwrap() + header.len);
                let payload = self.driver.mem.peek::<{ RECEIVE_SIZE as usize }>(gpa);
                let end = Header::SIZE + usize::try_from(header.len).unwrap();
                packets.push((header, payload[Header::SIZE..end].to_vec()));
            }
            self.offer(used.len());
        }
    }

    /// The operations that have come, with their flags.
    pub(super) fn ops(&mut self) -> Vec<(u16, u32)> {
        let packets = self.received();
        packets
            .iter()
            .map(|(header, _)| (header.op, header.flags))
            .collect()
    }

    pub(super) fn header(&self, key: StreamKey, op: u16) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: key.guest_port,
            dst_port: key.host_port,
            socket_type: socket_type::STREAM,
            op,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    pub(super) fn send(&mut self, key: StreamKey, op: u16) {
        let header = self.header(key, op);
        self.send_raw(&header, &[]);
    }

    pub(super) fn shut_down(&mut self, key: StreamKey, flags: u32) {
        let header = Header {
            flags,
            ..self.header(key, op::SHUTDOWN)
        };
        self.send_raw(&header, &[]);
    }

    pub(super) fn send_payload(&mut self, key: StreamKey, payload: &[u8]) {
        let header = Header {
            len: u32::try_from(payload.len()).unwrap(),
            ..self.header(key, op::RW)
        };
        self.send_raw(&header, payload);
    }

    pub(super) fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        self.queue_raw(header, payload);
        let _ = self.driver.kick(QUEUE_TRANSMIT);
    }

    /// Makes a packet available without a notification.
    pub(super) fn queue_raw(&mut self, header: &Header, payload: &[u8]) {
        let gpa = TRANSMIT_BUFFERS + self.next_transmit % 8 * TRANSMIT_SIZE;
        self.next_transmit += 1;
        self.driver.mem.poke(gpa, &header.encode());
        let at = gpa + Header::SIZE as u64;
        self.driver.mem.poke(at, payload);
        let mut buffers = vec![readable(gpa, u32::try_from(Header::SIZE).unwrap())];
        if !payload.is_empty() {
            buffers.push(readable(at, u32::try_from(payload.len()).unwrap()));
        }
        self.driver.offer(QUEUE_TRANSMIT, &buffers);
    }

    /// The guest asks for a stream and gets it.
    pub(super) fn connect(&mut self, host_port: u32, guest_port: u32) -> (StreamKey, Rc<RefCell<Far>>) {
        let key = StreamKey {
            host_port,
            guest_port,
        };
        self.send(key, op::REQUEST);
        assert_eq!(self.ops(), [(op::RESPONSE, 0)]);
        (key, self.far(key))
    }

    pub(super) fn far(&self, key: StreamKey) -> Rc<RefCell<Far>> {
        Rc::clone(&self.host.0.borrow()[&key])
    }

    /// A program of the host asks for a stream to a port of the guest.
    pub(super) fn open(&mut self, guest_port: u32) -> Result<(StreamKey, Rc<RefCell<Far>>), OpenError> {
        let mut made = None;
        let effects = self.driver.transport.open_stream(guest_port, |key| {
            let (near, far) = Near::new();
            made = Some((key, far));
            Ok(near)
        })?;
        self.carry_out(effects);
        Ok(made.unwrap())
    }

    /// The host's end has changed in every way.
    pub(super) fn changed(&mut self, key: StreamKey) {
        self.notify(
            key,
            Readiness {
                readable: true,
                writable: true,
                hung_up: false,
            },
        );
    }

    pub(super) fn hung_up(&mut self, key: StreamKey) {
        self.notify(
            key,
            Readiness {
                hung_up: true,
                ..Readiness::default()
            },
        );
    }

    fn notify(&mut self, key: StreamKey, readiness: Readiness) {
        let effects = self.driver.transport.stream_ready(key, readiness);
        self.carry_out(effects);
    }

    /// Bytes come from the far end.
    pub(super) fn host_sends(&mut self, key: StreamKey, far: &Rc<RefCell<Far>>, bytes: &[u8]) {
        far.borrow_mut().outgoing.extend(bytes);
        self.changed(key);
    }

    fn carry_out(&mut self, effects: Effects) {
        let mut due = effects.notified;
        while !due.is_empty() {
            let queues: Vec<u16> = std::mem::take(&mut due).iter().collect();
            for queue in queues {
                let more = self
                    .driver
                    .transport
                    .process_queue(&self.driver.mem, queue)
                    .unwrap();
                due = due.and(more.notified);
            }
        }
    }

    pub(super) fn counters(&self) -> Counters {
        self.driver.transport.device().counters()
    }

    pub(super) fn streams(&self) -> usize {
        self.driver.transport.device().streams()
    }
}

/// Bytes that are told apart by their place.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    pattern_from(0, len)
}

/// The same from further on.
pub(super) fn pattern_from(start: usize, len: usize) -> Vec<u8> {
    (start..start + len)
        .map(|at| u8::try_from((at * 7 + at / 251) % 256).unwrap())
        .collect()
}

/// All payload of RW packets, joined; anything else is an error.
pub(super) fn payload(packets: &[Received]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (header, payload) in packets {
        assert_eq!(header.op, op::RW, "{header:?}");
        bytes.extend(payload);
    }
    bytes
}
