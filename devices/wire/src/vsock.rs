//! The socket device, "virtio-vsock" (virtio 1.3, section 5.10): streams between ports of the guest and of the host.
//!
//! Every packet begins with a [`Header`]; those with [`op::RW`] go on with `len` bytes of payload. Addresses are pairs of
//! a context id (CID) and a port.

use crate::le;

/// Queue 0: packets from the device to the driver.
pub const QUEUE_RECEIVE: u16 = 0;
/// Queue 1: packets from the driver to the device.
pub const QUEUE_TRANSMIT: u16 = 1;
/// Queue 2: events from the device to the driver.
pub const QUEUE_EVENT: u16 = 2;

/// The host's context id.
pub const HOST_CID: u64 = 2;
/// The lowest context id that a guest can have.
pub const FIRST_GUEST_CID: u64 = 3;
/// The highest context id that a guest can have: the one above means "any", and the upper 32 bits are zero.
pub const LAST_GUEST_CID: u64 = 0xffff_fffe;

/// Feature bits of the socket device, as masks of the 64-bit feature word (section 5.10.3).
pub mod feature {
    /// Stream sockets (bit 0).
    pub const STREAM: u64 = 1 << 0;
    /// Sequenced-packet sockets (bit 1).
    pub const SEQPACKET: u64 = 1 << 1;
    /// Without [`STREAM`] there are no stream sockets (bit 2).
    pub const NO_IMPLIED_STREAM: u64 = 1 << 2;
}

/// Values of [`Header::socket_type`].
pub mod socket_type {
    /// A stream.
    pub const STREAM: u16 = 1;
    /// Sequenced packets.
    pub const SEQPACKET: u16 = 2;
}

/// Values of [`Header::op`].
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Grants a connection.
    pub const RESPONSE: u16 = 2;
    /// Refuses a connection, or ends one at once.
    pub const RST: u16 = 3;
    /// The sender will not receive, or not send, any more: [`super::shutdown`].
    pub const SHUTDOWN: u16 = 4;
    /// Payload.
    pub const RW: u16 = 5;
    /// Tells `buf_alloc` and `fwd_cnt`.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for a [`CREDIT_UPDATE`].
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Bits of [`Header::flags`] in a packet with [`op::SHUTDOWN`].
pub mod shutdown {
    /// The sender will not receive any more.
    pub const RECEIVE: u32 = 1 << 0;
    /// The sender will not send any more.
    pub const SEND: u32 = 1 << 1;
}

/// `struct virtio_vsock_hdr` (section 5.10.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload behind the header.
    pub len: u32,
    /// One of [`socket_type`].
    pub socket_type: u16,
    /// One of [`op`].
    pub op: u16,
    /// By `op`; 0 elsewhere.
    pub flags: u32,
    /// Bytes of payload that the sender of this packet can hold for this stream in all.
    pub buf_alloc: u32,
    /// Bytes of payload that the sender of this packet has passed on, counted without end.
    pub fwd_cnt: u32,
}

impl Header {
    /// Size on the wire.
    pub const SIZE: usize = 44;

    /// The bytes of the header.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, 0, self.src_cid.to_le_bytes());
        le::put(&mut bytes, 8, self.dst_cid.to_le_bytes());
        le::put(&mut bytes, 16, self.src_port.to_le_bytes());
        le::put(&mut bytes, 20, self.dst_port.to_le_bytes());
        le::put(&mut bytes, 24, self.len.to_le_bytes());
        le::put(&mut bytes, 28, self.socket_type.to_le_bytes());
        le::put(&mut bytes, 30, self.op.to_le_bytes());
        le::put(&mut bytes, 32, self.flags.to_le_bytes());
        le::put(&mut bytes, 36, self.buf_alloc.to_le_bytes());
        le::put(&mut bytes, 40, self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// Reads a header. Any bytes are one.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Header {
        Header {
            src_cid: le::u64_at(bytes, 0),
            dst_cid: le::u64_at(bytes, 8),
            src_port: le::u32_at(bytes, 16),
            dst_port: le::u32_at(bytes, 20),
            len: le::u32_at(bytes, 24),
            socket_type: le::u16_at(bytes, 28),
            op: le::u16_at(bytes, 30),
            flags: le::u32_at(bytes, 32),
            buf_alloc: le::u32_at(bytes, 36),
            fwd_cnt: le::u32_at(bytes, 40),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_the_bytes_of_section_5_10_6() {
        let header = Header {
            src_cid: 0x0102_0304,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            socket_type: 1,
            op: 5,
            flags: 0x4142_4344,
            buf_alloc: 0x5152_5354,
            fwd_cnt: 0x6162_6364,
        };
        let golden = [
            4, 3, 2, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23, 0x22, 0x21,
            0x34, 0x33, 0x32, 0x31, 1, 0, 5, 0, 0x44, 0x43, 0x42, 0x41, 0x54, 0x53, 0x52, 0x51, 0x64, 0x63,
            0x62, 0x61,
        ];
        assert_eq!(header.encode(), golden);
        assert_eq!(Header::decode(&golden), header);
    }
}
