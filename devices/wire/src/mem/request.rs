//! `struct virtio_mem_req` (virtio 1.3, section 5.15.6): 24 bytes from the driver to the device.

use core::fmt;

use crate::le;

const TYPE: usize = 0;
const ADDR: usize = 8;
const NB_BLOCKS: usize = 16;

/// What a request asks for, the le16 `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum RequestType {
    /// Plug blocks that are unplugged (section 5.15.6.3).
    Plug = 0,
    /// Unplug blocks that are plugged (section 5.15.6.4).
    Unplug = 1,
    /// Unplug every block (section 5.15.6.5).
    UnplugAll = 2,
    /// Say whether blocks are plugged (section 5.15.6.6).
    State = 3,
}

/// Consecutive blocks as the driver names them: raw, neither aligned nor inside the region until checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// Guest-physical address of the first block.
    pub addr: u64,
    /// Number of blocks.
    pub nb_blocks: u16,
}

/// A request of a type that is known. The blocks are still to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Plug these blocks.
    Plug(BlockRange),
    /// Unplug these blocks.
    Unplug(BlockRange),
    /// Unplug every block.
    UnplugAll,
    /// Tell the state of these blocks.
    State(BlockRange),
}

/// The request's `type` is none of [`RequestType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownRequest(
    /// The `type` as the driver sent it.
    pub u16,
);

impl fmt::Display for UnknownRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown virtio-mem request type {}", self.0)
    }
}

impl core::error::Error for UnknownRequest {}

impl TryFrom<u16> for RequestType {
    type Error = UnknownRequest;

    fn try_from(raw: u16) -> Result<RequestType, UnknownRequest> {
        match raw {
            0 => Ok(RequestType::Plug),
            1 => Ok(RequestType::Unplug),
            2 => Ok(RequestType::UnplugAll),
            3 => Ok(RequestType::State),
            _ => Err(UnknownRequest(raw)),
        }
    }
}

impl Request {
    /// Size on the wire.
    pub const SIZE: usize = 24;

    /// The type of the request.
    pub fn request_type(&self) -> RequestType {
        match self {
            Request::Plug(_) => RequestType::Plug,
            Request::Unplug(_) => RequestType::Unplug,
            Request::UnplugAll => RequestType::UnplugAll,
            Request::State(_) => RequestType::State,
        }
    }

    /// The blocks the request names, if it names any.
    pub fn blocks(&self) -> Option<BlockRange> {
        match *self {
            Request::Plug(blocks) | Request::Unplug(blocks) | Request::State(blocks) => Some(blocks),
            Request::UnplugAll => None,
        }
    }

    /// The bytes of the request; padding is zero.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, TYPE, (self.request_type() as u16).to_le_bytes());
        if let Some(blocks) = self.blocks() {
            le::put(&mut bytes, ADDR, blocks.addr.to_le_bytes());
            le::put(&mut bytes, NB_BLOCKS, blocks.nb_blocks.to_le_bytes());
        }
        bytes
    }

    /// Reads a request, ignoring padding.
    ///
    /// # Errors
    /// [`UnknownRequest`] if `type` is not one of the specification's.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Request, UnknownRequest> {
        let blocks = BlockRange {
            addr: le::u64_at(bytes, ADDR),
            nb_blocks: le::u16_at(bytes, NB_BLOCKS),
        };
        Ok(match RequestType::try_from(le::u16_at(bytes, TYPE))? {
            RequestType::Plug => Request::Plug(blocks),
            RequestType::Unplug => Request::Unplug(blocks),
            RequestType::UnplugAll => Request::UnplugAll,
            RequestType::State => Request::State(blocks),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: BlockRange = BlockRange {
        addr: 0x1_4020_0000,
        nb_blocks: 0x0203,
    };

    #[rustfmt::skip]
    fn golden(request_type: u8) -> [u8; 24] {
        [
            request_type, 0, 0, 0, 0, 0, 0, 0, // le16 type, le16 padding[3]
            0, 0, 0x20, 0x40, 1, 0, 0, 0,      // le64 addr
            3, 2, 0, 0, 0, 0, 0, 0,            // le16 nb_blocks, le16 padding[3]
        ]
    }

    #[test]
    fn requests_have_the_bytes_of_section_5_15_6() {
        for (request_type, request) in [
            (0, Request::Plug(BLOCKS)),
            (1, Request::Unplug(BLOCKS)),
            (3, Request::State(BLOCKS)),
        ] {
            assert_eq!(request.encode(), golden(request_type));
            assert_eq!(Request::decode(&golden(request_type)), Ok(request));
        }
    }

    #[test]
    fn unplug_all_has_nothing_but_its_type() {
        let mut bytes = [0; 24];
        bytes[0] = 2;
        assert_eq!(Request::UnplugAll.encode(), bytes);
        assert_eq!(Request::decode(&golden(2)), Ok(Request::UnplugAll));
    }

    #[test]
    fn padding_is_ignored() {
        let mut bytes = golden(0);
        bytes[2..8].fill(0xff);
        bytes[18..24].fill(0xff);
        assert_eq!(Request::decode(&bytes), Ok(Request::Plug(BLOCKS)));
    }

    #[test]
    fn every_other_type_is_refused_with_its_value() {
        for raw in 4..=u16::MAX {
            let mut bytes = golden(0);
            bytes[0..2].copy_from_slice(&raw.to_le_bytes());
            assert_eq!(Request::decode(&bytes), Err(UnknownRequest(raw)));
        }
    }
}
