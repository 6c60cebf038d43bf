//! One stream: what either end has said, what is on its way, and which packet the guest gets next.
//!
//! A stream from the guest begins [`Phase::Open`], one from the host [`Phase::Requested`]. It ends by an RST, which a side
//! sends at any time to break it off, and as the answer to the other's SHUTDOWN of both directions once everything
//! has arrived (virtio 1.3, section 5.10.6.6).

use std::collections::VecDeque;
use std::io;
use std::net::Shutdown;

use virtio_wire::vsock::{op, shutdown};

use super::credit::{Credit, TO_HOST_LIMIT};
use super::host::{HostStream, Readiness, StreamKey};

/// A stream of the guest's and the host's.
#[derive(Debug)]
pub(super) struct Connection<S> {
    phase: Phase<S>,
    credit: Credit,
    /// From the guest, not taken by the host yet; at most [`TO_HOST_LIMIT`].
    to_host: VecDeque<u8>,
    guest: End,
    host: End,
    /// The host's stream may have bytes, and may have room.
    readable: bool,
    writable: bool,
    due: Due,
}

#[derive(Debug)]
enum Phase<S> {
    /// The host has asked, the guest has not answered.
    Requested(S),
    /// Bytes flow.
    Open(S),
    /// The guest is gone; what it sent before is on its way to the host.
    Draining(S),
    /// The host is gone, and the guest has to say that it knows.
    HostGone,
    /// An RST is due, and ends it.
    Reset,
    /// To be forgotten.
    Over,
}

/// What one end has said about its directions.
#[derive(Debug, Default)]
struct End {
    sends_no_more: bool,
    receives_no_more: bool,
}

/// What the guest has to be told.
#[derive(Debug, Default)]
struct Due {
    /// [`op::REQUEST`] or [`op::RESPONSE`].
    opening: Option<u16>,
    credit_update: bool,
    /// A CREDIT_REQUEST was sent, and no credit has come since.
    credit_asked: bool,
    /// Bits of [`shutdown`] that it has not been told.
    shutdown: u32,
}

/// A packet to the guest, apart from its addresses and credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) op: u16,
    pub(super) flags: u32,
    /// Bytes of payload.
    pub(super) len: u32,
}

/// The guest broke the rules of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breach {
    /// More payload than it had credit for.
    Overrun,
    /// A packet that has no place in this phase.
    OutOfPhase,
}

impl<S: HostStream> Connection<S> {
    /// A stream that the guest has asked for and the host has granted.
    pub(super) fn from_guest(stream: S) -> Self {
        Self::new(Phase::Open(stream), op::RESPONSE)
    }

    /// A stream that the host asks for.
    pub(super) fn from_host(stream: S) -> Self {
        Self::new(Phase::Requested(stream), op::REQUEST)
    }

    fn new(phase: Phase<S>, opening: u16) -> Self {
        Self {
            phase,
            credit: Credit::default(),
            to_host: VecDeque::new(),
            guest: End::default(),
            host: End::default(),
            // Nobody has looked yet.
            readable: true,
            writable: true,
            due: Due {
                opening: Some(opening),
                ..Due::default()
            },
        }
    }

    /// Every packet of the guest says what it can hold.
    pub(super) fn heard(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.credit.heard(buf_alloc, fwd_cnt);
        if self.credit.may_send() > 0 {
            self.due.credit_asked = false;
        }
    }

    /// RESPONSE.
    pub(super) fn granted(&mut self, key: StreamKey) -> Result<(), Breach> {
        match std::mem::replace(&mut self.phase, Phase::Reset) {
            Phase::Requested(mut stream) => {
                if stream.accepted(key).is_ok() {
                    self.phase = Phase::Open(stream);
                }
                Ok(())
            }
            Phase::Draining(stream) => {
                self.phase = Phase::Draining(stream);
                Ok(())
            }
            Phase::Open(_) | Phase::HostGone | Phase::Reset | Phase::Over => Err(Breach::OutOfPhase),
        }
    }

    /// Whether payload of this length is in order; if not, the stream is to be broken off.
    pub(super) fn admits(&mut self, len: u32) -> Result<(), Breach> {
        match self.phase {
            Phase::Requested(_) => Err(Breach::OutOfPhase),
            _ if self.guest.sends_no_more => Err(Breach::OutOfPhase),
            _ => self.credit.receive(len).map_err(|_| Breach::Overrun),
        }
    }

    /// RW, with payload that [`Self::admits`] has let in.
    pub(super) fn payload(&mut self, bytes: &[u8]) {
        let direct = if self.to_host.is_empty() {
            self.write(bytes)
        } else {
            0
        };
        self.to_host.extend(&bytes[direct..]);
        debug_assert!(self.to_host.len() <= TO_HOST_LIMIT as usize);
        self.settle();
    }

    /// SHUTDOWN. Bits once set stay.
    pub(super) fn shut_down(&mut self, flags: u32) {
        self.guest.sends_no_more |= flags & shutdown::SEND != 0;
        if flags & shutdown::RECEIVE != 0 && !self.guest.receives_no_more {
            self.guest.receives_no_more = true;
            if let Phase::Open(stream) = &mut self.phase {
                stream.shutdown(Shutdown::Read);
            }
        }
        self.settle();
    }

    /// RST. What the guest sent before an orderly end still goes to the host.
    pub(super) fn guest_left(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Over) {
            Phase::Open(stream) | Phase::Draining(stream)
                if self.guest.sends_no_more && !self.to_host.is_empty() =>
            {
                Phase::Draining(stream)
            }
            _ => Phase::Over,
        };
    }

    /// A CREDIT_REQUEST.
    pub(super) fn asks_for_credit(&mut self) {
        self.due.credit_update = true;
    }

    /// Breaks it off.
    pub(super) fn abort(&mut self) {
        self.phase = Phase::Reset;
        self.to_host = VecDeque::new();
    }

    /// Something has changed at the host's end.
    pub(super) fn host_changed(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable || readiness.hung_up;
        self.writable |= readiness.writable;
        if readiness.hung_up {
            match self.phase {
                Phase::Requested(_) => self.abort(),
                _ => self.host_receives_no_more(),
            }
        }
        self.settle();
    }

    /// Whether the guest is, or may be, due a packet.
    pub(super) fn has_work(&self) -> bool {
        match self.phase {
            Phase::Reset => true,
            Phase::Over | Phase::Draining(_) => false,
            Phase::Requested(_) | Phase::Open(_) | Phase::HostGone => {
                self.due.opening.is_some()
                    || self.is_credit_due()
                    || self.due.shutdown != 0
                    || (self.may_read() && (self.credit.may_send() > 0 || !self.due.credit_asked))
            }
        }
    }

    /// Whether it can be forgotten.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Whether the guest has already left, so that its port is free for another stream.
    pub(super) fn is_draining(&self) -> bool {
        matches!(self.phase, Phase::Draining(_))
    }

    /// The next packet for the guest, its payload at the start of `payload`.
    pub(super) fn next_packet(&mut self, payload: &mut [u8]) -> Option<Packet> {
        let control = |op| Some(Packet { op, flags: 0, len: 0 });
        match self.phase {
            Phase::Over | Phase::Draining(_) => return None,
            Phase::Reset => {
                self.phase = Phase::Over;
                return control(op::RST);
            }
            Phase::Requested(_) | Phase::Open(_) | Phase::HostGone => {}
        }
        if let Some(op) = self.due.opening.take() {
            return control(op);
        }
        if self.is_credit_due() {
            self.due.credit_update = false;
            return control(op::CREDIT_UPDATE);
        }
        if self.may_read() {
            if self.credit.may_send() > 0 {
                if let Some(len) = self.read(payload) {
                    return Some(Packet {
                        op: op::RW,
                        flags: 0,
                        len,
                    });
                }
            } else if !self.due.credit_asked {
                self.due.credit_asked = true;
                return control(op::CREDIT_REQUEST);
            }
        }
        if self.due.shutdown == 0 {
            return None;
        }
        self.due.shutdown = 0;
        let flags = self.host.shutdown_flags();
        let op = op::SHUTDOWN;
        Some(Packet { op, flags, len: 0 })
    }

    /// `buf_alloc` and `fwd_cnt` of the packet that goes out now.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        self.credit.tell()
    }

    fn is_credit_due(&self) -> bool {
        self.due.credit_update || self.credit.is_news()
    }

    fn may_read(&self) -> bool {
        matches!(self.phase, Phase::Open(_))
            && self.readable
            && !self.host.sends_no_more
            && !self.guest.receives_no_more
    }

    /// Takes from the host what the guest has room for, and sees the end of it.
    fn read(&mut self, payload: &mut [u8]) -> Option<u32> {
        let Phase::Open(stream) = &mut self.phase else {
            return None;
        };
        let room =
            usize::try_from(self.credit.may_send()).map_or(payload.len(), |room| room.min(payload.len()));
        match stream.read(&mut payload[..room]) {
            Ok(0) => {
                self.host.sends_no_more = true;
                self.due.shutdown |= shutdown::SEND;
            }
            Ok(len) => {
                let len = u32::try_from(len.min(room)).ok()?;
                self.credit.send(len);
                return Some(len);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
            Err(_) => {
                self.host.sends_no_more = true;
                self.due.shutdown |= shutdown::SEND;
                self.host_receives_no_more();
            }
        }
        self.settle();
        None
    }

    /// Hands bytes to the host and answers how many need not be kept.
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            if self.host.receives_no_more {
                done = bytes.len();
                break;
            }
            let (Phase::Open(stream) | Phase::Draining(stream)) = &mut self.phase else {
                done = bytes.len();
                break;
            };
            if !self.writable {
                break;
            }
            match stream.write(&bytes[done..]) {
                Ok(0) => self.writable = false,
                Ok(len) => done += len.min(bytes.len() - done),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(_) => self.host_receives_no_more(),
            }
        }
        self.credit.pass_on(u32::try_from(done).unwrap_or(u32::MAX));
        done
    }

    fn host_receives_no_more(&mut self) {
        if !self.host.receives_no_more {
            self.host.receives_no_more = true;
            self.due.shutdown |= shutdown::RECEIVE;
        }
    }

    /// Moves on what can move, and takes the turns that follow.
    fn settle(&mut self) {
        let mut waiting = std::mem::take(&mut self.to_host);
        let gone = self.write(waiting.make_contiguous());
        waiting.drain(..gone);
        self.to_host = waiting;
        match &mut self.phase {
            Phase::Draining(_) if self.to_host.is_empty() => self.phase = Phase::Over,
            Phase::Open(_) if self.host.is_gone() => self.phase = Phase::HostGone,
            _ => {}
        }
        if !self.guest.sends_no_more || !self.to_host.is_empty() {
            return;
        }
        match &mut self.phase {
            Phase::Open(_) | Phase::HostGone | Phase::Requested(_) if self.guest.is_gone() => {
                self.phase = Phase::Reset;
            }
            Phase::Open(stream) => stream.shutdown(Shutdown::Write),
            _ => {}
        }
    }
}

impl End {
    fn is_gone(&self) -> bool {
        self.sends_no_more && self.receives_no_more
    }

    fn shutdown_flags(&self) -> u32 {
        let flag = |said: bool, bit: u32| if said { bit } else { 0 };
        flag(self.receives_no_more, shutdown::RECEIVE) | flag(self.sends_no_more, shutdown::SEND)
    }
}
