//! What a VM says of one of its disks.

use serde::{Deserialize, Serialize};

use crate::control::rate::RateLimiter;

/// A disk, and what the guest has done with it so far. Requests count when they have ended well; sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// The file or block device.
    pub path: String,
    /// What carries its I/O out: `io-uring` or `thread`.
    pub engine: String,
    /// Whether the guest can only read it.
    pub read_only: bool,
    /// Its size.
    pub capacity_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Ranges cleared by WRITE_ZEROES.
    pub write_zeroes: u64,
    /// Requests refused because they were wrong.
    pub refused: u64,
    /// Requests that the host could not carry out.
    pub failed: u64,
    /// Requests under way.
    pub in_flight: u64,
    /// Requests that had to wait for the limits of the disk's rate.
    pub throttled: u64,
    /// Those limits.
    pub rate_limiter: RateLimiter,
}
