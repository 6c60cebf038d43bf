//! From a request as the guest wrote it to an action that is known to be possible. Pure: nothing is changed here.
//!
//! The order of the checks is that of the specification's sentences: what is wrong with the request itself is ERROR and is
//! found first; only a request that is right in itself can be more than was requested, which is NACK.

use virtio_wire::mem::{BlockState, Request, ResponseType, UnknownRequest};

use super::region::Region;
use super::{BlockMap, BlockRun};

/// What a valid request makes the device do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Plug these blocks, all of which are unplugged.
    Plug(BlockRun),
    /// Unplug these blocks, all of which are plugged.
    Unplug(BlockRun),
    /// Unplug whatever is plugged.
    UnplugAll,
    /// Answer with the state.
    Report(BlockState),
}

/// Why a request of the guest is not carried out. The guest gets a response, nothing else happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The type is not one of the specification's.
    #[error(transparent)]
    Unknown(#[from] UnknownRequest),
    /// The address is not aligned to the block size.
    #[error("address {addr:#x} is not a multiple of the block size")]
    Unaligned {
        /// As the guest sent it.
        addr: u64,
    },
    /// The request names no block.
    #[error("the request is for 0 blocks")]
    NoBlocks,
    /// A block is outside the usable region.
    #[error("{nb_blocks} blocks at {addr:#x} are not inside the usable region")]
    OutsideUsable {
        /// As the guest sent it.
        addr: u64,
        /// As the guest sent it.
        nb_blocks: u16,
    },
    /// A block to plug is plugged already.
    #[error("a block to plug is plugged already")]
    AlreadyPlugged,
    /// A block to unplug is unplugged already.
    #[error("a block to unplug is unplugged already")]
    AlreadyUnplugged,
    /// More would be plugged than is requested.
    #[error("plugged size {wanted:#x} would exceed requested size {requested_size:#x}")]
    BeyondRequested {
        /// `plugged_size` if it were done.
        wanted: u64,
        /// What the host asked for.
        requested_size: u64,
    },
}

impl RequestError {
    /// The response that the specification gives to it (sections 5.15.6.3 to 5.15.6.6).
    pub fn response_type(&self) -> ResponseType {
        match self {
            RequestError::BeyondRequested { .. } => ResponseType::Nack,
            RequestError::Unknown(_)
            | RequestError::Unaligned { .. }
            | RequestError::NoBlocks
            | RequestError::OutsideUsable { .. }
            | RequestError::AlreadyPlugged
            | RequestError::AlreadyUnplugged => ResponseType::Error,
        }
    }
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits<'a> {
    pub(super) region: &'a Region,
    pub(super) blocks: &'a BlockMap,
    pub(super) usable_size: u64,
    pub(super) requested_size: u64,
}

impl Limits<'_> {
    pub(super) fn check(&self, request: Request) -> Result<Action, RequestError> {
        match request {
            Request::Plug(blocks) => {
                let run = self.region.run(blocks, self.usable_size)?;
                if self.blocks.state(run) != BlockState::Unplugged {
                    return Err(RequestError::AlreadyPlugged);
                }
                // Both are at most the number of blocks in the region, whose size fits.
                let wanted = (self.blocks.nr_plugged() + run.count.get()) * self.region.block_size;
                if wanted > self.requested_size {
                    return Err(RequestError::BeyondRequested {
                        wanted,
                        requested_size: self.requested_size,
                    });
                }
                Ok(Action::Plug(run))
            }
            Request::Unplug(blocks) => {
                let run = self.region.run(blocks, self.usable_size)?;
                match self.blocks.state(run) {
                    BlockState::Plugged => Ok(Action::Unplug(run)),
                    BlockState::Unplugged | BlockState::Mixed => Err(RequestError::AlreadyUnplugged),
                }
            }
            Request::UnplugAll => Ok(Action::UnplugAll),
            Request::State(blocks) => {
                let run = self.region.run(blocks, self.usable_size)?;
                Ok(Action::Report(self.blocks.state(run)))
            }
        }
    }
}
