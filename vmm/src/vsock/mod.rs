//! The host's end of a guest's stream sockets: unix sockets, in the way that Firecracker's users know.
//!
//! - A program of the host that wants port N of the guest connects to the socket at PATH and writes `CONNECT N\n`. Once
//!   the guest has accepted, it reads `OK M\n`, M being the stream's port at the host's end, and from then on what the
//!   guest sends. If the guest does not accept, the socket is closed.
//! - A program of the guest that connects to port N of the host (context id 2) reaches whoever listens on the unix socket
//!   `PATH_N`.
//!
//! Nothing here waits: sockets are non-blocking, and one [`Epoll`] knows which of them have changed, edge by edge, so that
//! nobody has to say again and again what they wait for. Its own descriptor is one more source of the event loop.

mod door;
mod endpoint;
mod socket_file;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use devices::vsock::{Readiness, StreamKey, VsockHost};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

pub use door::{Caller, Door};
pub use endpoint::Endpoint;
pub use socket_file::SocketFile;

/// Bytes of a path that a unix socket can have, without the zero that ends it (`sun_path`, unix(7)).
const UNIX_PATH_MAX: usize = 107;
/// The longest `_PORT` behind a path.
const PORT_SUFFIX_MAX: usize = "_4294967295".len();
/// Bytes of a socket's path at most, so that there is room for a port behind it.
pub const SOCKET_PATH_MAX: usize = UNIX_PATH_MAX - PORT_SUFFIX_MAX;

/// Means "any port" to programs, so no stream has it: what the door waits for is marked with it.
const NO_PORT: u32 = u32::MAX;

/// Events taken at a time.
const BATCH: usize = 64;

/// Where the guest's streams end.
#[derive(Debug, Clone)]
pub struct UnixHost {
    path: PathBuf,
    changes: Changes,
}

/// What has changed among the sockets.
#[derive(Debug, Clone)]
pub struct Changes {
    epoll: Arc<Epoll>,
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Somebody is at the door, or has said more: [`Door::look`].
    Door(u32),
    /// Something about a stream.
    Stream(StreamKey, Readiness),
}

impl UnixHost {
    /// Streams that end at `PATH_PORT`, and whose changes are told to `changes`.
    pub fn new(path: &Path, changes: &Changes) -> Self {
        Self {
            path: path.to_owned(),
            changes: changes.clone(),
        }
    }

    fn path_of(&self, port: u32) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(format!("_{port}"));
        path.into()
    }
}

impl VsockHost for UnixHost {
    type Stream = Endpoint;

    fn connect(&mut self, key: StreamKey) -> io::Result<Endpoint> {
        if key.host_port == NO_PORT {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let endpoint = Endpoint::connect(&self.path_of(key.host_port))?;
        self.changes.watch_stream(&endpoint, key)?;
        Ok(endpoint)
    }
}

impl Changes {
    /// # Errors
    /// No descriptors are left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Arc::new(Epoll::new()?),
        })
    }

    /// Tells of every change of a stream, which ends when the endpoint is dropped.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn watch_stream(&self, endpoint: &Endpoint, key: StreamKey) -> io::Result<()> {
        let events = EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        self.watch(endpoint.as_raw_fd(), events, key.to_token())
    }

    fn watch_door(&self, fd: RawFd, number: u32) -> io::Result<()> {
        let key = StreamKey {
            host_port: NO_PORT,
            guest_port: number,
        };
        self.watch(fd, EventSet::IN | EventSet::EDGE_TRIGGERED, key.to_token())
    }

    fn watch(&self, fd: RawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(events, token))
    }

    fn forget(&self, fd: RawFd) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }

    /// Some of what has changed since it was last asked; none, if nothing has. There may be more as long as the descriptor
    /// is readable.
    ///
    /// # Errors
    /// The host failed.
    pub fn take(&self) -> io::Result<Vec<Change>> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(0, &mut events) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        Ok(events[..count].iter().map(change).collect())
    }
}

impl AsRawFd for Changes {
    /// Readable while something has changed.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

fn change(event: &EpollEvent) -> Change {
    let key = StreamKey::from_token(event.data());
    if key.host_port == NO_PORT {
        return Change::Door(key.guest_port);
    }
    let (events, any) = (event.event_set(), |wanted| event.event_set().intersects(wanted));
    Change::Stream(
        key,
        Readiness {
            readable: any(EventSet::IN | EventSet::READ_HANG_UP | EventSet::ERROR),
            writable: any(EventSet::OUT | EventSet::ERROR),
            hung_up: events.contains(EventSet::HANG_UP),
        },
    )
}
