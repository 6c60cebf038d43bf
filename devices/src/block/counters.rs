//! What a block device counts.

use virtio_wire::block::Status;

use super::{InFlight, Kind};

/// What became of requests so far, since the device exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads done.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes done on request.
    pub flushes: u64,
    /// Discards done.
    pub discards: u64,
    /// Ranges written with zeros.
    pub write_zeroes: u64,
    /// Requests that were wrong in themselves.
    pub refused: u64,
    /// Requests that the host's storage failed, or could not serve.
    pub failed: u64,
    /// Requests that the disk has put off, once or more often.
    pub throttled: u64,
}

impl Counters {
    /// Counts a request that has come to its end.
    pub(super) fn count(&mut self, request: &InFlight, status: Status) {
        let done = match (status, request.kind) {
            (Status::IoErr | Status::Unsupp, _) => &mut self.failed,
            (Status::Ok, Kind::Read) => {
                self.read_bytes += request.data_len;
                &mut self.reads
            }
            (Status::Ok, Kind::Write) => {
                self.written_bytes += request.data_len;
                &mut self.writes
            }
            (Status::Ok, Kind::Flush) => &mut self.flushes,
            (Status::Ok, Kind::Discard) => &mut self.discards,
            (Status::Ok, Kind::WriteZeroes) => &mut self.write_zeroes,
        };
        *done += 1;
    }
}
