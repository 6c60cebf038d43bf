//! What a socket device needs of the host: streams that never make it wait.

use std::io;
use std::net::Shutdown;

/// Names a stream: its port at either end. No two streams of a device share both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// The port at the host.
    pub host_port: u32,
    /// The port in the guest.
    pub guest_port: u32,
}

impl StreamKey {
    /// The key in one number, for a host that marks its events with one.
    pub fn to_token(self) -> u64 {
        u64::from(self.host_port) << 32 | u64::from(self.guest_port)
    }

    /// The key that [`Self::to_token`] made the number of.
    pub fn from_token(token: u64) -> StreamKey {
        let [a, b, c, d, e, f, g, h] = token.to_be_bytes();
        StreamKey {
            host_port: u32::from_be_bytes([a, b, c, d]),
            guest_port: u32::from_be_bytes([e, f, g, h]),
        }
    }
}

/// Where the guest's streams end.
pub trait VsockHost {
    /// The host's end of a stream.
    type Stream: HostStream;

    /// The guest asks for a stream to `key.host_port`. Answers at once.
    ///
    /// # Errors
    /// Nobody listens there, or the host cannot now: the guest is refused.
    fn connect(&mut self, key: StreamKey) -> io::Result<Self::Stream>;
}

/// The host's end of one stream; closed when dropped. No call waits: what cannot be done now is
/// [`io::ErrorKind::WouldBlock`], and the device is told of a change with [`super::Readiness`].
pub trait HostStream {
    /// Takes bytes for the guest; 0 is the end of them.
    ///
    /// # Errors
    /// None now, or the stream is broken.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;

    /// Hands over bytes of the guest, and says how many were taken.
    ///
    /// # Errors
    /// There is no room now, or nobody will ever read them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// The guest has accepted a stream that the host asked for.
    ///
    /// # Errors
    /// Whoever asked is gone.
    fn accepted(&mut self, key: StreamKey) -> io::Result<()>;

    /// No more bytes go in this direction, seen from this end.
    fn shutdown(&mut self, direction: Shutdown);
}

/// What has changed at the host's end of a stream. A hint: too much of it costs an attempt, too little makes the stream
/// stand still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There may be bytes, or the end of them.
    pub readable: bool,
    /// There may be room.
    pub writable: bool,
    /// Both directions have ended at the far end.
    pub hung_up: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_its_key() {
        for (host_port, guest_port) in [(0, 0), (1, 2), (u32::MAX, 3), (1 << 30, u32::MAX)] {
            let key = StreamKey {
                host_port,
                guest_port,
            };
            assert_eq!(StreamKey::from_token(key.to_token()), key);
        }
    }
}
