//! One stream of a guest, as a unix socket.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use devices::vsock::{HostStream, StreamKey};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

/// The host's end of a stream; never waits.
#[derive(Debug)]
pub struct Endpoint {
    socket: UnixStream,
    asked: AskedBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AskedBy {
    /// A program of the host, which reads `OK` before all else.
    Host,
    Guest,
}

impl Endpoint {
    /// Connects to who listens at `path`. A listener whose queue is full counts as none.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &address)?;
        Ok(Self {
            socket: socket.into(),
            asked: AskedBy::Guest,
        })
    }

    /// The end of a program of the host that has asked for a port of the guest.
    pub(super) fn of_caller(socket: UnixStream) -> Self {
        Self {
            socket,
            asked: AskedBy::Host,
        }
    }
}

impl HostStream for Endpoint {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.socket.read(into)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn accepted(&mut self, key: StreamKey) -> io::Result<()> {
        match self.asked {
            AskedBy::Guest => Ok(()),
            // The first bytes of a new socket: there is room for all of them.
            AskedBy::Host => self
                .socket
                .write_all(format!("OK {}\n", key.host_port).as_bytes()),
        }
    }

    fn shutdown(&mut self, direction: Shutdown) {
        // Whoever is gone already needs no telling.
        let _ = self.socket.shutdown(direction);
    }
}

impl AsRawFd for Endpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
