//! The socket at which programs of the host ask for ports of the guest.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use devices::vsock::StreamKey;

use super::{Changes, Endpoint, SocketFile};

/// The listener's number among what the door waits for; callers have those above.
const LISTENER: u32 = 0;
/// Programs that have connected and not said what they want, at most: when there are more, the first to have come goes.
const CALLERS_MAX: usize = 64;
/// `CONNECT 4294967295\n`, with room for what is wrong in it to be seen as wrong.
const LINE_MAX: usize = 32;

/// The listening socket, and those who have not said yet what they want. The file goes with it.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    _file: SocketFile,
    changes: Changes,
    pub(super) callers: BTreeMap<u32, Waiting>,
    next_number: u32,
}

#[derive(Debug)]
pub(super) struct Waiting {
    socket: UnixStream,
    line: Vec<u8>,
}

/// A program of the host that wants a port of the guest.
#[derive(Debug)]
pub struct Caller {
    socket: UnixStream,
    changes: Changes,
    /// The port in the guest.
    pub port: u32,
}

/// What a caller's line is so far.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Unfinished,
    Connect(u32),
    Wrong,
}

impl Door {
    /// Listens at `path`, as [`SocketFile::listen`] does.
    ///
    /// # Errors
    /// The path cannot be had.
    pub fn open(path: &Path, changes: &Changes) -> io::Result<Self> {
        let (listener, file) = SocketFile::listen(path)?;
        changes.watch_door(listener.as_raw_fd(), LISTENER)?;
        Ok(Self {
            listener,
            _file: file,
            changes: changes.clone(),
            callers: BTreeMap::new(),
            next_number: LISTENER + 1,
        })
    }

    /// Something has happened to `number`, as [`super::Change::Door`] says. Answers a caller that has said what it wants.
    pub fn look(&mut self, number: u32) -> Option<Caller> {
        if number == LISTENER {
            self.let_in();
            return None;
        }
        let waiting = self.callers.get_mut(&number)?;
        let line = waiting.read_line();
        if line == Line::Unfinished {
            return None;
        }
        let Waiting { socket, .. } = self.callers.remove(&number)?;
        let Line::Connect(port) = line else {
            return None;
        };
        // Its changes are a stream's from now on.
        self.changes.forget(socket.as_raw_fd()).ok()?;
        Some(Caller {
            socket,
            changes: self.changes.clone(),
            port,
        })
    }

    /// Takes in everybody who waits outside: only a new arrival is told of. When descriptors run out, the others wait for
    /// the next arrival.
    fn let_in(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    // A caller that cannot be waited for finds its socket closed.
                    let _ = self.take_in(socket);
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(_) => return,
            }
        }
    }

    fn take_in(&mut self, socket: UnixStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        if self.callers.len() >= CALLERS_MAX {
            self.callers.pop_first();
        }
        let number = self.free_number();
        self.changes.watch_door(socket.as_raw_fd(), number)?;
        let line = Vec::new();
        self.callers.insert(number, Waiting { socket, line });
        Ok(())
    }

    fn free_number(&mut self) -> u32 {
        loop {
            let number = self.next_number;
            self.next_number = number.checked_add(1).unwrap_or(LISTENER + 1);
            if !self.callers.contains_key(&number) {
                return number;
            }
        }
    }
}

impl Waiting {
    /// Byte by byte: what comes behind the line is the guest's.
    fn read_line(&mut self) -> Line {
        let mut byte = [0];
        loop {
            match self.socket.read(&mut byte) {
                Ok(1) if byte == *b"\n" => return parse(&self.line),
                Ok(1) if self.line.len() < LINE_MAX => self.line.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Line::Unfinished,
                Ok(_) | Err(_) => return Line::Wrong,
            }
        }
    }
}

/// `CONNECT PORT`, in either case, as Firecracker takes it.
fn parse(line: &[u8]) -> Line {
    let text = str::from_utf8(line).unwrap_or_default();
    let mut words = text.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(word), Some(port), None) if word.eq_ignore_ascii_case("connect") => {
            port.parse().map_or(Line::Wrong, Line::Connect)
        }
        _ => Line::Wrong,
    }
}

impl Caller {
    /// Makes it a stream of the guest's.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn into_stream(self, key: StreamKey) -> io::Result<Endpoint> {
        let endpoint = Endpoint::of_caller(self.socket);
        self.changes.watch_stream(&endpoint, key)?;
        Ok(endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_connect_and_a_port() {
        assert_eq!(parse(b"CONNECT 1024"), Line::Connect(1024));
        assert_eq!(parse(b"connect 4294967295\r"), Line::Connect(u32::MAX));
        for wrong in [
            &b""[..],
            b"CONNECT",
            b"CONNECT x",
            b"CONNECT -1",
            b"CONNECT 4294967296",
            b"GET / HTTP",
            b"CONNECT 1 2",
            b"\xff",
        ] {
            assert_eq!(parse(wrong), Line::Wrong, "{wrong:?}");
        }
    }
}
