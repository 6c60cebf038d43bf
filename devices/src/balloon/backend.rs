//! What stands behind the pages: the VMM's hold on guest memory.

use std::io;

/// A part of guest memory that the host backs with pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest-physical address behind its last byte.
    pub end: u64,
    /// Size in bytes of the host's pages there: a power of two, at least 4096. Nothing smaller can be discarded. The extent
    /// starts and ends at a multiple of it, in guest-physical addresses.
    pub host_page: u64,
    /// Size in bytes of what the host likes to take back at once, because it would have to split it otherwise, such as a
    /// transparent huge page: a power of two, at least `host_page`. It is no promise.
    pub preferred: u64,
}

/// Takes pages back from the guest's memory. The device calls it with ranges that the guest has at that moment: no byte of
/// them lies in an unplugged block.
pub trait PageBackend {
    /// The extent that holds the byte at `gpa`; `None` if the host backs nothing there.
    fn extent_at(&self, gpa: u64) -> Option<Extent>;

    /// Gives the host pages of `len` bytes from `gpa` on back to the host. They lie in one extent and are whole host pages;
    /// they read as zeros when the guest touches them again.
    ///
    /// # Errors
    /// The host did not. The guest does not notice: its pages are as they were, and the memory is still in use.
    fn discard(&mut self, gpa: u64, len: u64) -> io::Result<()>;
}
