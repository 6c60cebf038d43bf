//! `struct virtio_mem_resp` (virtio 1.3, section 5.15.6): 10 bytes from the device to the driver.

use core::fmt;

use crate::le;

const TYPE: usize = 0;
const STATE: usize = 8;

/// How a request ended, the le16 `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum ResponseType {
    /// Done.
    Ack = 0,
    /// Denied: a plug request would exceed `requested_size`.
    Nack = 1,
    /// Not now: the same request may succeed later.
    Busy = 2,
    /// The request itself is wrong.
    Error = 3,
}

/// State of consecutive blocks, the answer to a STATE request (section 5.15.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BlockState {
    /// All are plugged.
    Plugged = 0,
    /// All are unplugged.
    Unplugged = 1,
    /// Some are plugged and some are not.
    Mixed = 2,
}

/// A response. What follows the type has a meaning only in an ACK to a STATE request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    response_type: ResponseType,
    raw_state: u16,
}

/// The response's `type` is none of [`ResponseType`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownResponse(
    /// The `type` as the device sent it.
    pub u16,
);

/// The state in an answer to a STATE request is none of [`BlockState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownState(
    /// The state as the device sent it.
    pub u16,
);

impl fmt::Display for UnknownResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown virtio-mem response type {}", self.0)
    }
}

impl fmt::Display for UnknownState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown virtio-mem block state {}", self.0)
    }
}

impl core::error::Error for UnknownResponse {}
impl core::error::Error for UnknownState {}

impl TryFrom<u16> for ResponseType {
    type Error = UnknownResponse;

    fn try_from(raw: u16) -> Result<ResponseType, UnknownResponse> {
        match raw {
            0 => Ok(ResponseType::Ack),
            1 => Ok(ResponseType::Nack),
            2 => Ok(ResponseType::Busy),
            3 => Ok(ResponseType::Error),
            _ => Err(UnknownResponse(raw)),
        }
    }
}

impl TryFrom<u16> for BlockState {
    type Error = UnknownState;

    fn try_from(raw: u16) -> Result<BlockState, UnknownState> {
        match raw {
            0 => Ok(BlockState::Plugged),
            1 => Ok(BlockState::Unplugged),
            2 => Ok(BlockState::Mixed),
            _ => Err(UnknownState(raw)),
        }
    }
}

impl Response {
    /// Size on the wire.
    pub const SIZE: usize = 10;

    /// A response without data.
    pub const fn new(response_type: ResponseType) -> Response {
        Response {
            response_type,
            raw_state: 0,
        }
    }

    /// The ACK to a STATE request.
    pub const fn with_state(state: BlockState) -> Response {
        Response {
            response_type: ResponseType::Ack,
            raw_state: state as u16,
        }
    }

    /// How the request ended.
    pub const fn response_type(&self) -> ResponseType {
        self.response_type
    }

    /// The state that an ACK to a STATE request carries.
    ///
    /// # Errors
    /// [`UnknownState`] if the value is not one of the specification's.
    pub fn block_state(&self) -> Result<BlockState, UnknownState> {
        BlockState::try_from(self.raw_state)
    }

    /// The bytes of the response; padding is zero.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        le::put(&mut bytes, TYPE, (self.response_type as u16).to_le_bytes());
        le::put(&mut bytes, STATE, self.raw_state.to_le_bytes());
        bytes
    }

    /// Reads a response, ignoring padding.
    ///
    /// # Errors
    /// [`UnknownResponse`] if `type` is not one of the specification's.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Response, UnknownResponse> {
        Ok(Response {
            response_type: ResponseType::try_from(le::u16_at(bytes, TYPE))?,
            raw_state: le::u16_at(bytes, STATE),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_have_the_bytes_of_section_5_15_6() {
        let all = [
            (0, ResponseType::Ack),
            (1, ResponseType::Nack),
            (2, ResponseType::Busy),
            (3, ResponseType::Error),
        ];
        for (raw, response_type) in all {
            let golden = [raw, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(Response::new(response_type).encode(), golden);
            assert_eq!(Response::decode(&golden), Ok(Response::new(response_type)));
        }
    }

    #[test]
    fn a_state_follows_type_and_padding() {
        let all = [
            (0, BlockState::Plugged),
            (1, BlockState::Unplugged),
            (2, BlockState::Mixed),
        ];
        for (raw, state) in all {
            let golden = [0, 0, 0, 0, 0, 0, 0, 0, raw, 0];
            assert_eq!(Response::with_state(state).encode(), golden);
            assert_eq!(
                Response::decode(&golden).map(|response| response.block_state()),
                Ok(Ok(state))
            );
        }
    }

    #[test]
    fn padding_is_ignored() {
        let bytes = [2, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(Response::decode(&bytes), Ok(Response::new(ResponseType::Busy)));
    }

    #[test]
    fn unknown_types_and_states_are_refused_with_their_values() {
        assert_eq!(
            Response::decode(&[4, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(UnknownResponse(0x104))
        );
        let response = Response::decode(&[0, 0, 0, 0, 0, 0, 0, 0, 3, 0]).unwrap();
        assert_eq!(response.block_state(), Err(UnknownState(3)));
    }
}
