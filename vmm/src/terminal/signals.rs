//! SIGINT, SIGTERM, SIGQUIT and SIGHUP as something to read, so that they end a VM in order: threads joined, terminal given back.

use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::low_level;

/// Catches the signals that end a VM, while it lives. After that they are ignored: the process is about to exit.
#[derive(Debug)]
pub struct EndSignals {
    pipe: UnixStream,
    registered: Vec<SigId>,
}

impl EndSignals {
    /// Begins to catch.
    ///
    /// # Errors
    /// No descriptors are left, or a handler cannot be installed.
    pub fn catch() -> io::Result<Self> {
        let (pipe, write_end) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        let mut signals = Self {
            pipe,
            registered: Vec::new(),
        };
        for signal in [SIGINT, SIGTERM, SIGQUIT, SIGHUP] {
            signals
                .registered
                .push(low_level::pipe::register(signal, write_end.try_clone()?)?);
        }
        Ok(signals)
    }

    /// Whether a signal has arrived since the last call.
    pub fn arrived(&mut self) -> bool {
        let mut bytes = [0; 16];
        self.pipe.read(&mut bytes).is_ok_and(|count| count > 0)
    }
}

impl AsFd for EndSignals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl AsRawFd for EndSignals {
    fn as_raw_fd(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }
}

impl Drop for EndSignals {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            low_level::unregister(id);
        }
    }
}
