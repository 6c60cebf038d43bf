//! What stands behind the blocks: the VMM's hold on the memory of the region.

use std::io;

use super::BlockRun;

/// Gives memory to the guest and takes it away. The device calls it with runs that it has checked: inside the region, all
/// unplugged (for `plug`) or all plugged (for `unplug`).
///
/// Both calls are all or nothing: on [`BackendError::Busy`] every block is as it was before.
pub trait BlockBackend {
    /// Makes the blocks accessible. Their content is undefined (virtio 1.3, section 5.15.6.1); zeros cost nothing and tell
    /// the guest nothing about its past.
    ///
    /// # Errors
    /// [`BackendError`]; nothing is plugged then.
    fn plug(&mut self, run: BlockRun) -> Result<(), BackendError>;

    /// Takes the blocks away: makes them inaccessible *first*, to the guest and to every device, and discards them only
    /// then, so that nothing written in between can revive a page.
    ///
    /// # Errors
    /// [`BackendError`]; nothing is unplugged then.
    fn unplug(&mut self, run: BlockRun) -> Result<(), BackendError>;
}

/// Why a backend did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// Not now (no budget, a snapshot under way): the guest is told to try again.
    #[error("busy")]
    Busy,
    /// The host failed. The machine ends: a guest whose memory is in doubt must not run on.
    #[error(transparent)]
    Fault(#[from] io::Error),
}
