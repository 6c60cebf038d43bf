//! What the operator cannot have of a balloon.

use thiserror::Error;

/// Why an order to the balloon was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BalloonError {
    /// The VM was started without one.
    #[error("no balloon: start the VM with --balloon")]
    NoBalloon,
    /// The VM was started with a balloon that does not offer it.
    #[error("the balloon does not offer hinting: start the VM with --balloon hinting")]
    NotOffered,
    /// The guest has no driver, or one that cannot do it.
    #[error("the guest has no virtio-balloon driver that can do it")]
    NoDriver,
    /// The guest did not answer.
    #[error("the guest has given no statistics within {seconds} s")]
    NoStatistics {
        /// How long it had.
        seconds: u64,
    },
}
